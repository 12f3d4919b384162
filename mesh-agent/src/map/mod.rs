//! EDGE: the live map: a page of who speaks with whom, served by every agent and, of several, by `mesh-agent map`.
//!
//! Invariant: the page has no outside assets and may reach nothing but where it came from; it is served to loopback's names
//! alone, so that no other site's page can read it through a name of its own.

mod agents;
mod cluster;
mod live;
mod page;

pub use agents::{Error, Place, Unreadable};
pub use live::run;
pub use page::{PATHS, answer};
