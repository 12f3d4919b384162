//! Where a packet goes: the decision of each TC hook as a pure function.
//!
//! The programs pass their maps and carry out the [`Steer`] they get back; host tests pass a table. Look-ups are made in
//! the order of their price, and only when the answer can depend on them.
//!
//! Three rules hold everywhere:
//! - a connection is judged at its first packet, later packets follow its record or its socket;
//! - a packet of an enrolled pod that has neither goes to the agent's listener, which resets it: never to the wire;
//! - whatever cannot be parsed or judged is dropped.

use crate::HBONE_PORT;
use crate::addr::{Addr, Port};
use crate::maps::{Flow, FlowKey, Pod, Slot, Workload, flags};
use crate::packet::{Kind, Packet};
use crate::verdict::Outcome;

/// The HBONE port as packets carry it.
const HBONE: Port = Port::new(HBONE_PORT);

/// The maps that steering reads; entries by reference, because the programs cannot copy an absent one.
pub trait World {
    /// The workload that owns an address.
    fn workload(&self, addr: &Addr) -> Option<&Workload>;
    /// Whether an address is a service's.
    fn is_service(&self, addr: &Addr) -> bool;
    /// Whether an address is in a pod CIDR of any node.
    fn is_pod_address(&self, addr: &Addr) -> bool;
    /// The record of a flow.
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;
}

/// What a hook is to do with a packet.
///
/// Flat, and with an argument whatever the verb: the verifier refuses programs that copy what was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steer {
    /// What to do.
    pub verb: Verb,
    /// The interface index, [`Slot`] or [`Outcome`] that the verb names, otherwise 0.
    pub argument: u32,
}

/// The verb of a [`Steer`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Leave it to the node's stack.
    Pass,
    /// The first packet of a connection: record the flow as [`Flow::PLAIN`], then pass.
    PassNew,
    /// The first packet of a connection by the agent: forget what stands recorded for the flow, then pass.
    PassAgent,
    /// Redirect to the pod at the interface.
    Local,
    /// The first packet between two enrolled pods of this node: record [`Flow::local`] for both ends, then redirect.
    LocalNew,
    /// The first packet of a connection for the agent: forget what stands recorded for the flow, then as
    /// [`Verb::SocketOrListener`].
    Capture,
    /// Give it to the agent's socket for its tuple, otherwise to the listener in the slot, which takes a SYN, completes a
    /// SYN-cookie handshake, or answers with a reset.
    SocketOrListener,
    /// Give it to the agent's socket for its tuple, otherwise redirect to the pod at the interface.
    SocketOrLocal,
    /// Give it to the agent's socket for its tuple, otherwise leave it to the node's stack.
    SocketOrPass,
    /// Drop it and count the outcome.
    Drop,
}

impl Steer {
    #[inline(always)]
    const fn to(verb: Verb) -> Self {
        Self { verb, argument: 0 }
    }

    #[inline(always)]
    const fn with(verb: Verb, argument: u32) -> Self {
        Self { verb, argument }
    }

    #[inline(always)]
    const fn drop(outcome: Outcome) -> Self {
        Self::with(Verb::Drop, outcome as u32)
    }
}

/// Judges a packet that leaves the pod at `ifindex` (TC ingress at the host end of its veth).
#[inline(always)]
pub fn from_pod<W: World>(world: &W, ifindex: u32, pod: &Pod, packet: &Packet) -> Steer {
    match packet.kind {
        Kind::Arp => return Steer::to(Verb::Pass),
        Kind::NotIp => return Steer::drop(Outcome::EtherType),
        Kind::Malformed => return Steer::drop(Outcome::Malformed),
        Kind::Tcp | Kind::TcpOpening | Kind::TcpFragment | Kind::Neighbour | Kind::Ip => {}
    }
    // An absent address of the pod is `::`, which is nobody's own.
    let own = packet.src == pod.addr4 || packet.src == pod.addr6;
    if !own || packet.src == Addr::NONE {
        return foreign_source(packet);
    }
    match packet.kind {
        Kind::TcpOpening => from_pod_opening(world, pod, packet),
        Kind::Tcp => from_pod_established(world, ifindex, pod, packet),
        Kind::TcpFragment if pod.flags & flags::SOCKETS != 0 => Steer::drop(Outcome::Fragment),
        _ => Steer::to(Verb::Pass),
    }
}

/// Neighbour discovery uses link-local and unspecified sources; nothing else may.
#[inline(always)]
fn foreign_source(packet: &Packet) -> Steer {
    if packet.src.is_v4() || !packet.src.is_link_scoped_v6() {
        return Steer::drop(Outcome::Spoofed);
    }
    match packet.kind {
        Kind::Neighbour => Steer::to(Verb::Pass),
        _ => Steer::drop(Outcome::LinkLocal),
    }
}

#[inline(always)]
fn from_pod_opening<W: World>(world: &W, pod: &Pod, packet: &Packet) -> Steer {
    let enrolled = pod.flags & flags::ENROLLED != 0;
    let hbone = packet.dst_port == HBONE;
    if enrolled && hbone {
        // Forwarded, it could collide with a tunnel that the agent opened from this pod's address.
        return Steer::with(Verb::Capture, Slot::Outbound as u32);
    }
    let Some(peer) = world.workload(&packet.dst) else {
        // A pod of which nothing is told may be enrolled: the agent waits for the word, or refuses.
        if enrolled && (world.is_service(&packet.dst) || world.is_pod_address(&packet.dst)) {
            return Steer::with(Verb::Capture, Slot::Outbound as u32);
        }
        return Steer::to(Verb::PassNew);
    };
    if peer.flags & flags::ENROLLED == 0 {
        return Steer::to(Verb::PassNew);
    }
    let local = peer.flags & flags::LOCAL != 0;
    match (enrolled, local) {
        (true, true) => Steer::with(Verb::LocalNew, peer.ifindex),
        (true, false) => Steer::with(Verb::Capture, Slot::Outbound as u32),
        // A pod that speaks HBONE itself, such as a waypoint.
        (false, true) if hbone => Steer::with(Verb::Capture, Slot::Inbound as u32),
        (false, _) => Steer::to(Verb::PassNew),
    }
}

#[inline(always)]
fn from_pod_established<W: World>(world: &W, ifindex: u32, pod: &Pod, packet: &Packet) -> Steer {
    let peer = world.workload(&packet.dst);
    let sockets = pod.flags & flags::SOCKETS != 0;
    if !sockets && peer.is_none_or(|peer| peer.flags & flags::SOCKETS == 0) {
        return Steer::to(Verb::Pass);
    }
    let local = peer.filter(|peer| peer.flags & flags::LOCAL != 0);
    let here = local.map_or(0, |peer| peer.ifindex);
    match world.flow(&packet.flow_of_source(ifindex)) {
        Some(&Flow::PLAIN) => return Steer::to(Verb::Pass),
        Some(flow) if flow.neighbour == here => return Steer::with(Verb::Local, here),
        // None, or of a neighbour that is gone.
        _ => {}
    }
    if !sockets {
        // The peer's sockets are meant: the agent speaks to this pod with the peer's address.
        return if packet.dst_port == HBONE {
            Steer::with(Verb::SocketOrListener, Slot::Inbound as u32)
        } else {
            Steer::to(Verb::SocketOrPass)
        };
    }
    let enrolled = pod.flags & flags::ENROLLED != 0;
    match local {
        // The record was evicted; between two enrolled pods of this node there is only one way.
        Some(peer) if enrolled && peer.flags & flags::ENROLLED != 0 => {
            Steer::with(Verb::SocketOrLocal, peer.ifindex)
        }
        _ => Steer::with(Verb::SocketOrListener, Slot::Outbound as u32),
    }
}

/// Who sent a packet that is about to reach a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The agent of this node: judged before it was sent.
    Agent,
    /// Another process in the node's network namespace.
    Node,
    /// Another pod or another machine.
    Forwarded,
}

/// Judges a packet that is about to reach the pod at `ifindex` (TC egress at the host end of its veth).
#[inline(always)]
pub fn to_pod<W: World>(
    world: &W,
    ifindex: u32,
    pod: &Pod,
    packet: &Packet,
    origin: Origin,
) -> Steer {
    const STRICT: u32 = flags::ENROLLED | flags::STRICT;
    match packet.kind {
        Kind::NotIp => return Steer::drop(Outcome::EtherType),
        Kind::Malformed => return Steer::drop(Outcome::Malformed),
        Kind::Arp | Kind::Neighbour | Kind::Ip => return Steer::to(Verb::Pass),
        Kind::TcpOpening => {
            return match origin {
                Origin::Agent => Steer::to(Verb::PassAgent),
                Origin::Forwarded if pod.flags & STRICT == STRICT => Steer::drop(Outcome::Strict),
                Origin::Forwarded | Origin::Node => Steer::to(Verb::PassNew),
            };
        }
        Kind::Tcp | Kind::TcpFragment => {}
    }
    if pod.flags & flags::SOCKETS == 0 || origin != Origin::Forwarded {
        return Steer::to(Verb::Pass);
    }
    if packet.kind == Kind::TcpFragment {
        return Steer::drop(Outcome::Fragment);
    }
    match world.flow(&packet.flow_of_destination(ifindex)) {
        Some(_) => Steer::to(Verb::Pass),
        None => Steer::drop(Outcome::NoFlow),
    }
}

/// Judges a packet that reaches the node (TC ingress at an uplink).
///
/// Only traffic for local pods whose address the agent uses is looked at; `to_pod` judges what is passed here.
#[inline(always)]
pub fn from_net<W: World>(world: &W, packet: &Packet) -> Steer {
    const OURS: u32 = flags::LOCAL | flags::SOCKETS;
    if packet.kind != Kind::Tcp && packet.kind != Kind::TcpOpening {
        return Steer::to(Verb::Pass);
    }
    let Some(pod) = world.workload(&packet.dst) else {
        return Steer::to(Verb::Pass);
    };
    if pod.flags & OURS != OURS {
        return Steer::to(Verb::Pass);
    }
    if world
        .workload(&packet.src)
        .is_some_and(|source| source.flags & flags::LOCAL != 0)
    {
        // A pod of this node does not come in by an uplink.
        return Steer::drop(Outcome::Spoofed);
    }
    let hbone = pod.flags & flags::ENROLLED != 0 && packet.dst_port == HBONE;
    match (hbone, packet.kind) {
        (true, _) => Steer::with(Verb::SocketOrListener, Slot::Inbound as u32),
        (false, Kind::TcpOpening) => Steer::to(Verb::Pass),
        (false, _) => Steer::to(Verb::SocketOrPass),
    }
}

/// Picks the listener for a connection attempt whose tuple is in TIME_WAIT at the agent (`sk_lookup`).
///
/// Only tuples that the TC hooks capture are answered, so listeners of the node itself are never shadowed.
#[inline(always)]
pub fn listen<W: World>(world: &W, local: &Addr, local_port: Port, remote: &Addr) -> Option<Slot> {
    const HERE: u32 = flags::LOCAL | flags::ENROLLED;
    let destination = world.workload(local);
    let meshed = destination.is_some_and(|to| to.flags & flags::ENROLLED != 0);
    let here = |workload: Option<&Workload>| workload.is_some_and(|w| w.flags & HERE == HERE);
    if here(world.workload(remote)) && (meshed || world.is_service(local)) {
        return Some(Slot::Outbound);
    }
    (local_port == HBONE && here(destination)).then_some(Slot::Inbound)
}
