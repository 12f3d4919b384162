//! Which endpoints of a service a connection may go to.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Backend, Hints, Readiness, Service, ServicePort, Snapshot};

/// The endpoints that a connection from a node to a service in one address family may go to, in groups: those of a later one
/// count when none of an earlier one can be used. No group is empty.
///
/// First those that the control plane wants clients of this node or zone to use, then all that are ready, then those that are
/// shutting down and still answer. A service for the client's own node has no others, however few they are. As kube-proxy
/// chooses: <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-policies>.
pub fn candidates<'a>(
    snapshot: &'a Snapshot,
    node: &str,
    service: &'a Service,
    port: &'a ServicePort,
    is_ipv4: bool,
) -> Vec<Vec<Backend<'a>>> {
    let mut ready = Vec::new();
    let mut terminating = Vec::new();
    for backend in snapshot.endpoints(service, port) {
        let is_elsewhere = service.internal_local && backend.node != Some(node);
        if backend.address.is_ipv4() == is_ipv4 && !is_elsewhere {
            match backend.readiness {
                Readiness::Ready => ready.push(backend),
                Readiness::Terminating => terminating.push(backend),
                Readiness::NotReady => {}
            }
        }
    }
    let near = if service.internal_local {
        Vec::new()
    } else {
        let zone = snapshot.node(node).and_then(|it| it.zone.as_deref());
        near(&ready, node, zone)
    };
    let mut groups = vec![near, ready, terminating];
    groups.retain(|it| !it.is_empty());
    groups
}

/// The endpoints that hint at clients of this node, otherwise of its zone; none unless every endpoint has hints of the kind,
/// for they are incomplete while they are being changed.
fn near<'a>(ready: &[Backend<'a>], node: &str, zone: Option<&str>) -> Vec<Backend<'a>> {
    let hinting_at = |name: &str, names: fn(&Hints) -> &[Arc<str>]| -> Vec<_> {
        if ready.iter().any(|it| names(it.hints).is_empty()) {
            return Vec::new();
        }
        let hints = |it: &&Backend<'_>| names(it.hints).iter().any(|it| **it == *name);
        ready.iter().filter(hints).cloned().collect()
    };
    let of_node = hinting_at(node, |it| &it.nodes);
    match zone {
        Some(zone) if of_node.is_empty() => hinting_at(zone, |it| &it.zones),
        _ => of_node,
    }
}

/// Puts endpoints in the order in which a client is to try them: the same for all its connections, at whichever node and
/// without any memory, and each client in another (rendezvous hashing: an endpoint that comes or goes changes the choice of
/// its own clients only). So affinity never times out, and lasts as long as the endpoint.
pub(super) fn by_affinity(endpoints: &mut [Backend<'_>], client: IpAddr) {
    endpoints.sort_by_cached_key(|it| {
        // Without a seed. Not by port, so that all ports of a service are at the same endpoint.
        let mut hasher = DefaultHasher::new();
        (client, it.address.ip()).hash(&mut hasher);
        Reverse(hasher.finish())
    });
}
