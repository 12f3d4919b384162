//! EDGE: `mesh-agent ca`, the certificate authority of a cluster.
//!
//! `decide` and `rotation` are CORE: who gets which certificate, and what becomes of the root when. `keeper` keeps the
//! root in a Secret that all replicas share, `service` answers agents, `server` listens. Kubernetes is behind
//! [`Cluster`]; signing is [`crate::pki::Authority`]'s.

mod cluster;
mod decide;
mod keeper;
mod rotation;
mod server;
mod service;
#[cfg(test)]
mod tests;

pub use cluster::{Cluster, ClusterError, Outcome, Patch, Stored};
pub use decide::{PodFacts, PodRef, Review, Rules, ServiceAccount};
pub use keeper::{Keeper, KeeperError, Settings};
pub use rotation::{RootsError, Timing};
pub use server::{health, serve};
pub use service::Service;
