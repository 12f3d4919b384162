//! Whether a flow is allowed: the look-ups in compiled policy, shared by the programs and the host.

use crate::addr::{Addr, Port};
use crate::maps::{
    CLASS_NODE, Direction, Flow, FlowKey, Opener, Pod, PolicyEntry, PolicyKey, flags,
};

/// The maps that judging reads.
pub trait Policies {
    /// The class of an address in a generation; 0 for everybody else.
    fn class(&self, generation: u32, addr: &Addr) -> u32;
    /// The entry that speaks for a flow.
    fn entry(&self, key: &PolicyKey) -> Option<&PolicyEntry>;
}

/// The other end of a flow, as policy knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer<'a> {
    /// Whoever has the address.
    Addr(&'a Addr),
    /// A process in the node's own network namespace.
    Node,
}

/// Whether `pod` allows a flow to the port `port` of whichever end is opened to; one with itself always.
///
/// `proved`: the peer's identity is proved, because it is an enrolled pod of this node reached by the short cut.
#[inline(always)]
pub fn allows<P: Policies>(
    policies: &P,
    pod: &Pod,
    direction: Direction,
    peer: &Peer<'_>,
    proved: bool,
    (protocol, port): (u32, Port),
) -> bool {
    let judged = match direction {
        Direction::Ingress => flags::INGRESS,
        Direction::Egress => flags::EGRESS,
    };
    if pod.flags & judged == 0 {
        return true;
    }
    let class = match peer {
        // A pod reaches itself: without an entry, so that pods of equal policy can share a set.
        Peer::Addr(addr) if is_own(pod, addr) => return true,
        Peer::Addr(addr) => policies.class(pod.generation, addr),
        Peer::Node => CLASS_NODE,
    };
    let key = PolicyKey {
        set: pod.policy,
        class,
        direction: direction as u8,
        proof: u8::from(proved),
        protocol: protocol.to_le_bytes()[0],
        zero: 0,
        port,
        end: 0,
    };
    policies.entry(&key).is_some_and(|entry| entry.allow == 1)
}

/// An absent address of the pod is nobody's own.
#[inline(always)]
fn is_own(pod: &Pod, addr: &Addr) -> bool {
    (*addr == pod.addr4 || *addr == pod.addr6) && *addr != Addr::NONE
}

/// Whether `pod` still allows a recorded flow, whose entry it is.
#[inline(always)]
pub fn still_allows<P: Policies>(policies: &P, pod: &Pod, key: &FlowKey, flow: &Flow) -> bool {
    if flow.opener == Opener::PodToService as u32 {
        // Judged by what it is translated to.
        return true;
    }
    let proved = flow.neighbour != 0;
    let (direction, port) = if flow.opener == Opener::Pod as u32 {
        (Direction::Egress, key.peer_port)
    } else {
        (Direction::Ingress, key.pod_port)
    };
    let by_node = flow.opener == Opener::Node as u32;
    let peer = if by_node {
        Peer::Node
    } else {
        Peer::Addr(&key.peer)
    };
    let proved = proved && matches!(direction, Direction::Ingress);
    allows(
        policies,
        pod,
        direction,
        &peer,
        proved,
        (key.protocol, port),
    )
}

/// A short-cut flow as the pod at its other end has it recorded, or had. `own`: the address of the pod whose entry it is.
#[inline(always)]
pub const fn seen_by_neighbour(key: &FlowKey, flow: &Flow, own: Addr) -> (FlowKey, Flow) {
    let opener = if flow.opener == Opener::Pod as u32 {
        Opener::Peer
    } else {
        Opener::Pod
    };
    let theirs = FlowKey {
        ifindex: flow.neighbour,
        peer: own,
        pod_port: key.peer_port,
        peer_port: key.pod_port,
        protocol: key.protocol,
    };
    let flow = Flow {
        neighbour: key.ifindex,
        opener: opener as u32,
        revision: flow.revision,
    };
    (theirs, flow)
}
