//! EDGE: the kernel's side. The only user of aya, and the only writer of maps and attacher of programs.

pub mod attach;
mod attached;
pub mod bpffs;
mod error;
mod events;
mod flows;
mod load;
mod maps;
pub mod plan;
mod policy;
pub mod probe;
mod refused;
pub mod remove;
pub mod seen;
mod strays;
mod sys;
mod traffic;

pub use error::Error;
pub use events::Events;
pub use load::{Dataplane, Options, cgroup_root};
pub use maps::Fill;
pub use refused::Refused;
pub use traffic::{Carried, Connection};
