//! EDGE: `mesh-agent check`: whether a node can run the agent, and whether anything around a running one is wrong.
//!
//! [`run()`] reads; what is read is judged by the CORE files [`kernel`], [`neighbours`] and [`reach`].

mod files;
mod finding;
mod kernel;
mod neighbours;
mod path;
mod reach;
mod run;

pub use finding::{Finding, Outcome, passes, render};
pub use run::run;
