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
use crate::addr::Addr;
use crate::maps::{Flow, FlowKey, Pod, Slot, Workload, flags};
use crate::packet::{Class, Frame, Packet, Transport};
use crate::verdict::Outcome;

/// The maps that steering reads.
pub trait World {
    /// The workload that owns an address.
    fn workload(&self, addr: &Addr) -> Option<Workload>;
    /// Whether an address is a service's.
    fn is_service(&self, addr: &Addr) -> bool;
    /// The record of a flow.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
}

/// What a hook is to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// Leave it to the node's stack.
    Pass,
    /// The first packet of a connection: record the flow as [`Flow::PLAIN`], then pass.
    PassNew(FlowKey),
    /// The first packet of a connection by the agent: forget what stands recorded for its tuple, then pass.
    PassAgent(FlowKey),
    /// Redirect to the pod at this interface.
    Local(u32),
    /// The first packet between two enrolled pods of this node: record [`Flow::LOCAL`] for both ends, then redirect.
    LocalNew(u32, FlowKey),
    /// Give it to the agent's socket for its tuple; when there is none, do as told.
    Socket(NoSocket),
    /// The first packet of a connection for the agent: forget what stands recorded, give it to the socket for its tuple,
    /// otherwise to the listener.
    Capture(Slot, FlowKey),
    /// Drop it.
    Drop(Outcome),
}

/// What to do with a packet whose tuple no socket of this node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSocket {
    /// Give it to the listener: it completes a SYN-cookie handshake or answers with a reset.
    Listener(Slot),
    /// Redirect it to the pod at this interface.
    Local(u32),
    /// Leave it to the node's stack.
    Pass,
}

/// Judges a packet that leaves a pod (TC ingress at the host end of its veth).
#[inline(always)]
pub fn from_pod<W: World>(world: &W, pod: &Pod, frame: &Frame) -> Steer {
    let packet = match frame.class {
        Class::Arp => return Steer::Pass,
        Class::Other => return Steer::Drop(Outcome::EtherType),
        Class::Malformed => return Steer::Drop(Outcome::Malformed),
        Class::Ip => &frame.packet,
    };
    if packet.src != pod.addr4 && packet.src != pod.addr6 {
        return foreign_source(packet);
    }
    match packet.transport {
        Transport::Tcp if packet.tcp.opens => from_pod_opening(world, pod, packet),
        Transport::Tcp => from_pod_established(world, pod, packet),
        Transport::TcpFragment if pod.flags & flags::SOCKETS != 0 => Steer::Drop(Outcome::Fragment),
        Transport::TcpFragment | Transport::Icmp6 | Transport::Other => Steer::Pass,
    }
}

/// Neighbour discovery uses link-local and unspecified sources; nothing else may.
#[inline(always)]
fn foreign_source(packet: &Packet) -> Steer {
    if packet.src.is_v4() || !packet.src.is_link_scoped_v6() {
        return Steer::Drop(Outcome::Spoofed);
    }
    // Router solicitation, neighbour solicitation and advertisement (RFC 4861); never a router advertisement.
    let discovery = matches!(packet.icmp6_type, 133 | 135 | 136);
    if packet.transport == Transport::Icmp6 && discovery {
        Steer::Pass
    } else {
        Steer::Drop(Outcome::LinkLocal)
    }
}

#[inline(always)]
fn from_pod_opening<W: World>(world: &W, pod: &Pod, packet: &Packet) -> Steer {
    let enrolled = pod.flags & flags::ENROLLED != 0;
    let hbone = packet.tcp.dst_port == HBONE_PORT.to_be_bytes();
    let flow = packet.flow_of_source();
    if enrolled && hbone {
        // Forwarded, it could collide with a tunnel that the agent opened from this pod's address.
        return Steer::Capture(Slot::Outbound, flow);
    }
    let plain = Steer::PassNew(flow);
    let Some(peer) = world.workload(&packet.dst) else {
        if enrolled && world.is_service(&packet.dst) {
            return Steer::Capture(Slot::Outbound, flow);
        }
        return plain;
    };
    if peer.flags & flags::ENROLLED == 0 {
        return plain;
    }
    let local = peer.flags & flags::LOCAL != 0;
    match (enrolled, local) {
        (true, true) => Steer::LocalNew(peer.ifindex, flow),
        (true, false) => Steer::Capture(Slot::Outbound, flow),
        // A pod that speaks HBONE itself, such as a waypoint.
        (false, true) if hbone => Steer::Capture(Slot::Inbound, flow),
        (false, _) => plain,
    }
}

#[inline(always)]
fn from_pod_established<W: World>(world: &W, pod: &Pod, packet: &Packet) -> Steer {
    let peer = world.workload(&packet.dst);
    let sockets = pod.flags & flags::SOCKETS != 0;
    if !sockets && !peer.is_some_and(|peer| peer.flags & flags::SOCKETS != 0) {
        return Steer::Pass;
    }
    let local = peer.filter(|peer| peer.flags & flags::LOCAL != 0);
    match world.flow(&packet.flow_of_source()) {
        Some(Flow::PLAIN) => return Steer::Pass,
        Some(_) => {
            return local.map_or(Steer::Drop(Outcome::NoFlow), |peer| {
                Steer::Local(peer.ifindex)
            });
        }
        None => {}
    }
    if !sockets {
        // The peer's sockets are meant: the agent speaks to this pod with the peer's address.
        return Steer::Socket(if packet.tcp.dst_port == HBONE_PORT.to_be_bytes() {
            NoSocket::Listener(Slot::Inbound)
        } else {
            NoSocket::Pass
        });
    }
    let enrolled = pod.flags & flags::ENROLLED != 0;
    Steer::Socket(match local {
        // The record was evicted; between two enrolled pods of this node there is only one way.
        Some(peer) if enrolled && peer.flags & flags::ENROLLED != 0 => {
            NoSocket::Local(peer.ifindex)
        }
        _ => NoSocket::Listener(Slot::Outbound),
    })
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

/// Judges a packet that is about to reach a pod (TC egress at the host end of its veth).
#[inline(always)]
pub fn to_pod<W: World>(world: &W, pod: &Pod, frame: &Frame, origin: Origin) -> Steer {
    let packet = match frame.class {
        Class::Arp => return Steer::Pass,
        Class::Other => return Steer::Drop(Outcome::EtherType),
        Class::Malformed => return Steer::Drop(Outcome::Malformed),
        Class::Ip => &frame.packet,
    };
    let sockets = pod.flags & flags::SOCKETS != 0;
    match packet.transport {
        Transport::Tcp if packet.tcp.opens => {
            let flow = packet.flow_of_destination();
            let strict = flags::ENROLLED | flags::STRICT;
            match origin {
                Origin::Agent => Steer::PassAgent(flow),
                Origin::Forwarded if pod.flags & strict == strict => Steer::Drop(Outcome::Strict),
                Origin::Forwarded | Origin::Node => Steer::PassNew(flow),
            }
        }
        Transport::Tcp if sockets && origin == Origin::Forwarded => {
            match world.flow(&packet.flow_of_destination()) {
                Some(_) => Steer::Pass,
                None => Steer::Drop(Outcome::NoFlow),
            }
        }
        Transport::TcpFragment if sockets && origin == Origin::Forwarded => {
            Steer::Drop(Outcome::Fragment)
        }
        Transport::Tcp | Transport::TcpFragment | Transport::Icmp6 | Transport::Other => {
            Steer::Pass
        }
    }
}

/// Judges a packet that reaches the node (TC ingress at an uplink).
///
/// Only traffic for local pods whose address the agent uses is looked at; `to_pod` judges what is passed here.
#[inline(always)]
pub fn from_net<W: World>(world: &W, frame: &Frame) -> Steer {
    let packet = &frame.packet;
    if frame.class != Class::Ip || packet.transport != Transport::Tcp {
        return Steer::Pass;
    }
    let Some(pod) = world.workload(&packet.dst) else {
        return Steer::Pass;
    };
    if pod.flags & (flags::LOCAL | flags::SOCKETS) != flags::LOCAL | flags::SOCKETS {
        return Steer::Pass;
    }
    let hbone = pod.flags & flags::ENROLLED != 0 && packet.tcp.dst_port == HBONE_PORT.to_be_bytes();
    match (packet.tcp.opens, hbone) {
        (true, true) => Steer::Capture(Slot::Inbound, packet.flow_of_destination()),
        (true, false) => Steer::Pass,
        (false, true) => Steer::Socket(NoSocket::Listener(Slot::Inbound)),
        (false, false) => Steer::Socket(NoSocket::Pass),
    }
}

/// Picks the listener for a connection attempt whose tuple is in TIME_WAIT at the agent (`sk_lookup`).
///
/// Only tuples that the TC hooks capture are answered, so listeners of the node itself are never shadowed.
#[inline(always)]
pub fn listen<W: World>(world: &W, local: &Addr, local_port: u16, remote: &Addr) -> Option<Slot> {
    const HERE: u32 = flags::LOCAL | flags::ENROLLED;
    let destination = world.workload(local);
    let meshed = destination.is_some_and(|to| to.flags & flags::ENROLLED != 0);
    let here = |workload: Option<Workload>| workload.is_some_and(|w| w.flags & HERE == HERE);
    if here(world.workload(remote)) && (meshed || world.is_service(local)) {
        return Some(Slot::Outbound);
    }
    (local_port == HBONE_PORT && here(destination)).then_some(Slot::Inbound)
}
