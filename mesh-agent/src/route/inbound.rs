//! Streams of tunnels that lead to a pod of this node.

use std::net::{IpAddr, SocketAddr};

use super::{is_reserved, tcp_port};
use crate::model::{Authority, Identity, Key, Snapshot, Workload};

/// Why an inbound stream is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The authority's address is not the one the tunnel leads to.
    #[error("the authority names {authority}, the tunnel leads to {local}")]
    AddressMismatch {
        /// The address in the authority.
        authority: IpAddr,
        /// The address of the pod.
        local: IpAddr,
    },
    /// No workload of this node has the address and the identity that the tunnel was made with.
    #[error("the pod that the tunnel was made with is no longer at {0}")]
    UnknownWorkload(IpAddr),
    /// The port belongs to the mesh.
    #[error("port {0} is reserved for the mesh")]
    ReservedPort(u16),
    /// The authority's name is not that of a known service with this port.
    #[error("{host:?} is no service with TCP port {port} at this pod")]
    UnknownService {
        /// The name in the authority.
        host: String,
        /// The port in the authority.
        port: u16,
    },
}

/// Decides which socket of a pod a stream of an inbound tunnel is for.
///
/// `local` is the address the tunnel leads to, `owner` the identity of the pod that was there when it was made, `authority`
/// that of the CONNECT request.
///
/// # Errors
/// A [`Rejection`].
pub fn inbound(
    snapshot: &Snapshot,
    local: IpAddr,
    owner: &Identity,
    authority: &Authority,
) -> Result<SocketAddr, Rejection> {
    if let Authority::Address(address) = authority
        && address.ip() != local
    {
        let authority = address.ip();
        return Err(Rejection::AddressMismatch { authority, local });
    }
    // Not whether it is enrolled: only enrolled pods are given tunnels, and the peer may not have heard yet that this one has
    // left the mesh.
    let workload = snapshot
        .workload_by_addr(local)
        .filter(|it| it.is_local() && it.identity.as_ref() == Some(owner))
        .ok_or(Rejection::UnknownWorkload(local))?;
    let port = match authority {
        Authority::Address(address) => address.port(),
        Authority::Host { name, port } => service_port(snapshot, workload, local, name, *port)
            .ok_or_else(|| Rejection::UnknownService {
                host: name.clone(),
                port: *port,
            })?,
    };
    if is_reserved(port) {
        return Err(Rejection::ReservedPort(port));
    }
    Ok(SocketAddr::new(local, port))
}

/// The port of a pod behind a port of a service: as its endpoint tells, or as the service does while this node has not
/// heard of the endpoint.
fn service_port(
    snapshot: &Snapshot,
    workload: &Workload,
    local: IpAddr,
    host: &str,
    port: u16,
) -> Option<u16> {
    let domain = &snapshot.settings().cluster_domain;
    let (name, namespace) = host
        .strip_suffix(domain)?
        .strip_suffix(".svc.")?
        .split_once('.')?;
    let service = snapshot.service(&Key::new(namespace, name))?;
    let port = tcp_port(service, port)?;
    let told = snapshot
        .endpoints(service, port)
        .find(|it| it.address.ip() == local);
    match told {
        Some(backend) => Some(backend.address.port()),
        None => snapshot.target_port(port, workload.pod_key()),
    }
}
