//! `--source kubernetes`: objects from the API server, which are listed and then watched.
//!
//! [`source::run`] owns what was told. One follower a kind lists and watches ([`follow`]); the [`mirror`] finds out what is
//! to be told; the [`store`] keeps it for a start while the API is away.

mod access;
mod agents;
mod backoff;
mod follow;
mod keeper;
mod mirror;
pub mod node;
mod options;
mod reach;
mod source;
pub mod store;
#[cfg(test)]
mod tests;
mod wire;

pub use access::{Access, AccessError};
pub use agents::{AgentPod, Agents, AgentsError, Forwarded};
pub use options::{Options, Timing};
pub use reach::{Permission, Unreachable, permissions};
pub use source::{Error, run};
