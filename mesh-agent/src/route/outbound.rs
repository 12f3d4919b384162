//! Connections that start in a pod of this node.

use std::net::{IpAddr, SocketAddr};

use mesh_common::HBONE_PORT;

use super::endpoints::{by_affinity, candidates};
use super::{is_reserved, tcp_port};
use crate::model::{Backend, Identity, Key, Service, Snapshot, Workload, WorkloadKey};

/// A connection that a local pod opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The address of the pod, proved to be its own.
    pub source: IpAddr,
    /// Where it wants to go.
    pub destination: SocketAddr,
}

/// Where an outbound connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// As a stream of a tunnel.
    Tunnel {
        /// What the stream asks for: the pod and its port.
        authority: SocketAddr,
        /// Where the tunnel leads: the pod and [`HBONE_PORT`].
        tunnel: SocketAddr,
        /// Who may answer: one of these, in order and without repeats.
        identities: Vec<Identity>,
        /// The name of the service, when the connection was to one.
        host: Option<String>,
    },
    /// To an enrolled pod of this node, without a tunnel.
    Local {
        /// The pod and its port.
        address: SocketAddr,
    },
    /// To what is not enrolled, as without the mesh.
    Plain {
        /// The endpoint.
        address: SocketAddr,
        /// The address to speak from: the pod's own to another pod, otherwise none, which means the node's. What is no pod
        /// would answer the pod past the agent: this node by its route to the pod, others because of a masquerade.
        source: Option<IpAddr>,
    },
    /// Nowhere.
    Refuse {
        /// Why not.
        reason: Refusal,
    },
}

/// Why an outbound connection is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pod is gone, or not known yet.
    #[error("no workload of this node has the source address")]
    UnknownSource,
    /// The port belongs to the mesh.
    #[error("port {0} is reserved for the mesh")]
    ReservedPort(u16),
    /// Nobody is known at the destination: whoever is found there later may be enrolled, so it gets no plaintext.
    #[error("no workload and no service has the destination address")]
    UnknownDestination,
    /// The service has no such TCP port.
    #[error("service {service} has no TCP port {port}")]
    NoSuchPort {
        /// The service.
        service: Key,
        /// The port asked for.
        port: u16,
    },
    /// The service has no endpoint that takes connections at this port in the address family.
    #[error("service {service} has no ready endpoint for port {port}")]
    NoEndpoint {
        /// The service.
        service: Key,
        /// The port asked for.
        port: u16,
    },
}

/// Decides where a connection goes.
///
/// `pick` is given the number of endpoints to choose from, at least 1, and returns the index of one; it is not asked where the
/// client's address decides.
pub fn decide(snapshot: &Snapshot, outbound: &Outbound, pick: impl FnMut(usize) -> usize) -> Route {
    try_decide(snapshot, outbound, pick).unwrap_or_else(|reason| Route::Refuse { reason })
}

fn try_decide(
    snapshot: &Snapshot,
    outbound: &Outbound,
    pick: impl FnMut(usize) -> usize,
) -> Result<Route, Refusal> {
    // Not whether it is enrolled: it may have left the mesh since its connection was captured, which is carried all the same.
    snapshot
        .workload_by_addr(outbound.source)
        .filter(|it| it.is_local())
        .ok_or(Refusal::UnknownSource)?;
    let destination = outbound.destination;
    let service = snapshot.service_by_addr(destination.ip());
    let (address, workload) = if let Some(service) = service {
        choose(snapshot, service, outbound, pick)?
    } else {
        let workload = snapshot.workload_by_addr(destination.ip());
        (destination, workload.map(|it| &**it))
    };
    if is_reserved(address.port()) {
        return Err(Refusal::ReservedPort(address.port()));
    }
    if service.is_none() && workload.is_none() {
        return Err(Refusal::UnknownDestination);
    }
    Ok(match workload.filter(|it| it.enrolled) {
        None => Route::Plain {
            address,
            source: workload
                .filter(|it| !is_in_host_network(it))
                .map(|_| outbound.source),
        },
        Some(workload) if workload.is_local() => Route::Local { address },
        Some(workload) => Route::Tunnel {
            authority: address,
            tunnel: SocketAddr::new(address.ip(), HBONE_PORT),
            identities: workload.identity.iter().cloned().collect(),
            host: service.map(|it| host_of(snapshot, it)),
        },
    })
}

/// Chooses an endpoint for a connection to a service address: where it listens, and the workload there.
fn choose<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    outbound: &Outbound,
    mut pick: impl FnMut(usize) -> usize,
) -> Result<(SocketAddr, Option<&'a Workload>), Refusal> {
    let Outbound {
        source,
        destination,
    } = outbound;
    let port = destination.port();
    let of = || service.key.clone();
    let service_port = tcp_port(service, port).ok_or_else(|| Refusal::NoSuchPort {
        service: of(),
        port,
    })?;
    let node = &snapshot.settings().node;
    let groups = candidates(snapshot, node, service, service_port, destination.is_ipv4());
    for mut group in groups {
        if service.client_affinity {
            by_affinity(&mut group, *source);
        } else {
            let first = pick(group.len()) % group.len();
            group.rotate_left(first);
        }
        for backend in &group {
            if let Ok(workload) = workload_behind(snapshot, backend) {
                return Ok((backend.address, workload));
            }
        }
    }
    Err(Refusal::NoEndpoint {
        service: of(),
        port,
    })
}

/// The endpoint does not lead to the pod it names: that one is unknown, has ended, or has another address.
struct Stale;

/// The workload an endpoint leads to; none when it is not a pod's.
///
/// Whether a pod is enrolled must be known before anything is sent to it, so an endpoint that names an unknown pod, or
/// has an address that can only be one's, is of no use.
fn workload_behind<'a>(
    snapshot: &'a Snapshot,
    backend: &Backend<'_>,
) -> Result<Option<&'a Workload>, Stale> {
    let address = backend.address.ip();
    let found = snapshot.workload_by_addr(address);
    let Some(named) = backend.pod else {
        if found.is_none() && is_pod_address(snapshot, address) {
            return Err(Stale);
        }
        return Ok(found.map(|it| &**it));
    };
    match found {
        Some(found) if found.pod_key() == Some(named) => Ok(Some(found)),
        Some(_) => Err(Stale),
        // In the host's network, or its object does not tell the address yet.
        None => snapshot
            .workload(&WorkloadKey::Pod(named.clone()))
            .filter(|it| it.addresses.is_empty())
            .filter(|it| it.pod.as_ref().is_some_and(|pod| !pod.terminated))
            .map_or(Err(Stale), |it| Ok(Some(it))),
    }
}

fn is_in_host_network(workload: &Workload) -> bool {
    workload.pod.as_ref().is_some_and(|pod| pod.host_network)
}

/// Whether an address is of a range that a node gives its pods addresses from.
pub fn is_pod_address(snapshot: &Snapshot, address: IpAddr) -> bool {
    let mut ranges = snapshot.nodes().flat_map(|node| &node.pod_cidrs);
    ranges.any(|range| range.contains(&address))
}

fn host_of(snapshot: &Snapshot, service: &Service) -> String {
    let Key { namespace, name } = &service.key;
    format!(
        "{name}.{namespace}.svc.{}",
        snapshot.settings().cluster_domain
    )
}
