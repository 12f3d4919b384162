//! EDGE: the node's own network: sysctls, the delivery of captured packets, routes to other nodes' pods.

mod netlink;
mod routes;
mod sysctl;

pub use netlink::{Error, Network, Uplink};
pub use routes::{NodeRoute, Via, wanted};
