//! CORE: where a captured connection goes.

mod endpoints;
mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use mesh_common::HBONE_PORT;

pub use endpoints::candidates;
pub use inbound::{Rejection, inbound};
pub use outbound::{Outbound, Refusal, Route, decide, is_pod_address};

use crate::model::{Protocol, Service, ServicePort, Snapshot};

/// Ports of the mesh itself, at which no application listens: Istio's outbound and plain inbound capture, and HBONE.
const RESERVED_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// Whether a port belongs to the mesh: no application is reached by it.
pub fn is_reserved(port: u16) -> bool {
    RESERVED_PORTS.contains(&port)
}

/// Whether an address is this node's own. No route leads there: who comes to a listener of the agent by it was not captured,
/// but has found the listener's port.
pub fn is_own_address(snapshot: &Snapshot, address: IpAddr) -> bool {
    let node = snapshot.node(&snapshot.settings().node);
    address.is_loopback() || node.is_some_and(|node| node.addresses.contains(&address))
}

/// The TCP port of a service with this number.
fn tcp_port(service: &Service, port: u16) -> Option<&ServicePort> {
    let mut ports = service.ports.iter();
    ports.find(|it| it.port == port && it.protocol == Protocol::Tcp)
}
