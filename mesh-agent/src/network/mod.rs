//! EDGE: the node's own network: sysctls, the delivery of captured packets, routes to other nodes' pods, masquerading.

mod changes;
mod filters;
mod found;
mod listing;
mod masquerade;
mod netlink;
mod nftables;
mod remove;
mod round_trips;
mod routes;
mod sysctl;

pub use found::Found;
pub use listing::Listing;
pub use masquerade::{Masquerade, masquerade};
pub use netlink::{Error, Network, Uplink};
pub use nftables::TABLE;
pub use round_trips::round_trips;
pub use routes::{NodeRoute, Via, wanted};
