//! CORE: which open connections policy no longer allows.
//!
//! Judged as the programs judge the next packet of each, so that connections without a next packet end as well.

use mesh_common::addr::Addr;
use mesh_common::maps::{Flow, FlowKey, Opener, Pod, flags};
use mesh_common::policy::{Policies, still_allows};

/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// A TCP connection of a local pod that is no longer allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The pod's record of it.
    pub flow: FlowKey,
    /// The pod's own address.
    pub own: Addr,
}

/// A recorded flow, if it is a connection that policy no longer allows. `pod`: the local pod at an interface.
pub(super) fn refused<'a, P: Policies>(
    policies: &P,
    pod: impl Fn(u32) -> Option<&'a Pod>,
    key: &FlowKey,
    flow: &Flow,
) -> Option<Refused> {
    if key.protocol != TCP {
        // Without connection: the next packet is as good as the first one.
        return None;
    }
    let own_pod = pod(key.ifindex)?;
    let own = if key.peer.is_v4() {
        own_pod.addr4
    } else {
        own_pod.addr6
    };
    let refused = Refused { flow: *key, own };
    let judges = |pod: &Pod| pod.flags & (flags::INGRESS | flags::EGRESS) != 0;
    if judges(own_pod) && !still_allows(policies, own_pod, key, flow) {
        return Some(refused);
    }
    let neighbour = pod(flow.neighbour).filter(|it| flow.neighbour != 0 && judges(it))?;
    let (key, flow) = from_neighbour(&refused, flow);
    (!still_allows(policies, neighbour, &key, &flow)).then_some(refused)
}

/// The same flow as the pod at its other end has it recorded, or had.
fn from_neighbour(seen: &Refused, flow: &Flow) -> (FlowKey, Flow) {
    let opener = if flow.opener == Opener::Pod as u32 {
        Opener::Peer
    } else {
        Opener::Pod
    };
    let key = FlowKey {
        ifindex: flow.neighbour,
        peer: seen.own,
        pod_port: seen.flow.peer_port,
        peer_port: seen.flow.pod_port,
        protocol: seen.flow.protocol,
    };
    let flow = Flow {
        neighbour: seen.flow.ifindex,
        opener: opener as u32,
        revision: flow.revision,
    };
    (key, flow)
}
