//! Where a packet goes: the decision of each TC hook as a pure function.
//!
//! The programs pass their maps and carry out the [`Steer`] they get back; host tests pass a table. Look-ups are made in
//! the order of their price, and only when the answer can depend on them.
//!
//! Three rules hold everywhere:
//! - a flow is judged at its first packet, and again when a verdict may have changed; in between, packets follow its
//!   record or its socket;
//! - a packet of an enrolled pod that has neither goes to the agent's listener, which resets it: never to the wire;
//! - whatever cannot be parsed or judged is dropped.

use crate::HBONE_PORT;
use crate::addr::{Addr, Port};
use crate::maps::{Direction, Flow, FlowKey, Opener, Pod, Slot, Workload, flags};
use crate::packet::{Kind, Packet};
use crate::policy::{Peer, Policies, allows, seen_by_neighbour, still_allows};
use crate::verdict::Outcome;

/// The HBONE port as packets carry it.
const HBONE: Port = Port::new(HBONE_PORT);

/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// Pods with one of these are judged by a policy set.
const JUDGED: u32 = flags::INGRESS | flags::EGRESS;

/// The maps that steering reads; entries by reference, because the programs cannot copy an absent one.
pub trait World: Policies {
    /// The local pod at an interface.
    fn pod(&self, ifindex: u32) -> Option<&Pod>;
    /// [`Config::revision`](crate::maps::Config::revision).
    fn revision(&self) -> u32;
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
    /// The interface index, [`Slot`], [`Outcome`] or [`Opener`] that the verb names, otherwise 0.
    pub argument: u32,
}

/// The verb of a [`Steer`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Leave it to the node's stack; with [`Opener::PodToService`] told, to be judged where it leaves that.
    Pass,
    /// The first packet of a flow: record it as one through the node's stack, with the [`Opener`] told, then as
    /// [`Verb::Pass`].
    PassNew,
    /// The flow was judged again: record the revision, then as [`Verb::Pass`].
    PassRenew,
    /// The first packet of a connection by the agent: forget what stands recorded for the flow, then pass.
    PassAgent,
    /// Redirect to the pod at the interface.
    Local,
    /// The first packet between two enrolled pods of this node: record it for both ends, then redirect.
    LocalNew,
    /// The flow was judged again: record the revision, then redirect to the pod at the interface.
    LocalRenew,
    /// The first packet of a connection for the agent: forget what stands recorded for the flow, then as
    /// [`Verb::SocketOrListener`].
    Capture,
    /// Give it to the agent's socket for its tuple, otherwise to the listener in the slot, which completes a SYN-cookie
    /// handshake or answers with a reset.
    SocketOrListener,
    /// Give it to the agent's socket for its tuple, otherwise redirect to the pod at the interface.
    SocketOrLocal,
    /// Give it to the agent's socket for its tuple, otherwise leave it to the node's stack.
    SocketOrPass,
    /// Drop it and count the outcome.
    Drop,
    /// As [`Verb::Drop`], forget the flow, and answer its sender with a TCP reset.
    Reset,
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

    #[inline(always)]
    const fn reset(outcome: Outcome) -> Self {
        Self::with(Verb::Reset, outcome as u32)
    }
}

/// How a packet stands to the record of its flow.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// There is no record.
    Unknown,
    /// Judged under the revision in force.
    Current,
    /// Judged under an older one, and still allowed.
    Renewed,
    /// No longer allowed.
    Refused,
}

/// Judges a recorded flow again when the revision has moved on.
#[inline(always)]
fn standing<W: World>(world: &W, pod: &Pod, key: &FlowKey, flow: Option<&Flow>) -> Standing {
    match flow {
        None => Standing::Unknown,
        Some(flow) if flow.revision == world.revision() => Standing::Current,
        Some(flow) if still_allows(world, pod, key, flow) => Standing::Renewed,
        Some(_) => Standing::Refused,
    }
}

/// Judges a packet that leaves the pod at `ifindex` (TC ingress at the host end of its veth).
#[inline(always)]
pub fn from_pod<W: World>(world: &W, ifindex: u32, pod: &Pod, packet: &Packet) -> Steer {
    match packet.kind {
        Kind::Arp => return Steer::to(Verb::Pass),
        Kind::NotIp => return Steer::drop(Outcome::EtherType),
        Kind::Malformed => return Steer::drop(Outcome::Malformed),
        _ => {}
    }
    // An absent address of the pod is `::`, which is nobody's own.
    let own = packet.src == pod.addr4 || packet.src == pod.addr6;
    if !own || packet.src == Addr::NONE {
        return foreign_source(packet);
    }
    match packet.kind {
        Kind::TcpOpening => from_pod_opening(world, pod, packet),
        Kind::Tcp => from_pod_established(world, ifindex, pod, packet),
        Kind::TcpFragment if pod.flags & (flags::SOCKETS | JUDGED) != 0 => {
            Steer::drop(Outcome::Fragment)
        }
        Kind::Ip if pod.flags & JUDGED != 0 => from_pod_datagram(world, ifindex, pod, packet),
        _ => Steer::to(Verb::Pass),
    }
}

/// Any protocol but TCP: the first packet of a flow is as good as any other.
#[inline(always)]
fn from_pod_datagram<W: World>(world: &W, ifindex: u32, pod: &Pod, packet: &Packet) -> Steer {
    let key = packet.flow_of_source(ifindex);
    let flow = world.flow(&key);
    let service = to_service(flow);
    match standing(world, pod, &key, flow) {
        Standing::Current => Steer::with(Verb::Pass, service),
        Standing::Renewed => Steer::with(Verb::PassRenew, service),
        Standing::Unknown | Standing::Refused => {
            if is_for_translation(world, pod, &packet.dst) {
                Steer::with(Verb::PassNew, Opener::PodToService as u32)
            } else if allows_egress(world, pod, packet) {
                Steer::with(Verb::PassNew, Opener::Pod as u32)
            } else {
                Steer::drop(Outcome::Policy)
            }
        }
    }
}

/// [`Opener::PodToService`] if that is what a record says, otherwise 0.
#[inline(always)]
fn to_service(flow: Option<&Flow>) -> u32 {
    match flow {
        Some(flow) if flow.opener == Opener::PodToService as u32 => flow.opener,
        _ => 0,
    }
}

/// Whether egress policy has to wait for the endpoint that the node's stack chooses.
#[inline(always)]
fn is_for_translation<W: World>(world: &W, pod: &Pod, dst: &Addr) -> bool {
    pod.flags & flags::EGRESS != 0 && world.is_service(dst)
}

/// Judges a packet to a service once it is translated, where it leaves the node's stack: by the egress policy of the pod
/// at `ifindex` that sent it.
///
/// Only packets that [`from_pod`] has put off are asked about.
#[inline(always)]
pub fn translated<W: World>(world: &W, ifindex: u32, pod: &Pod, packet: &Packet) -> Steer {
    let key = packet.flow_of_source(ifindex);
    match world.flow(&key) {
        // Nothing translated it: the service's own address is judged, each time.
        Some(flow) if flow.opener == Opener::PodToService as u32 => {
            if allows_egress(world, pod, packet) {
                return Steer::to(Verb::Pass);
            }
        }
        flow => match standing(world, pod, &key, flow) {
            Standing::Current => return Steer::to(Verb::Pass),
            Standing::Renewed => return Steer::to(Verb::PassRenew),
            Standing::Unknown if allows_egress(world, pod, packet) => {
                return Steer::with(Verb::PassNew, Opener::Pod as u32);
            }
            Standing::Unknown | Standing::Refused => {}
        },
    }
    if packet.protocol == TCP {
        Steer::reset(Outcome::Policy)
    } else {
        Steer::drop(Outcome::Policy)
    }
}

#[inline(always)]
fn allows_egress<W: World>(world: &W, pod: &Pod, packet: &Packet) -> bool {
    let to = (packet.protocol, packet.dst_port);
    allows(
        world,
        pod,
        Direction::Egress,
        &Peer::Addr(&packet.dst),
        false,
        to,
    )
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

/// Flags and interface of the workload that owns an address; zero where there is none.
///
/// Numbers, not the entry: LLVM would choose between pointers by masking them, which the verifier refuses.
#[inline(always)]
fn peer_of<W: World>(world: &W, addr: &Addr) -> (bool, u32, u32) {
    match world.workload(addr) {
        Some(workload) => (true, workload.flags, workload.ifindex),
        None => (false, 0, 0),
    }
}

#[inline(always)]
fn from_pod_opening<W: World>(world: &W, pod: &Pod, packet: &Packet) -> Steer {
    const HERE: u32 = flags::ENROLLED | flags::LOCAL;
    let enrolled = pod.flags & flags::ENROLLED != 0;
    let hbone = packet.dst_port == HBONE;
    if enrolled && hbone {
        // Forwarded, it could collide with a tunnel that the agent opened from this pod's address.
        return Steer::with(Verb::Capture, Slot::Outbound as u32);
    }
    let (known, peer, ifindex) = peer_of(world, &packet.dst);
    // The agent chooses a service's endpoint, and policy is about endpoints. A pod of which nothing is told may be enrolled:
    // the agent waits for the word, or refuses.
    if enrolled && !known && (world.is_service(&packet.dst) || world.is_pod_address(&packet.dst)) {
        return Steer::with(Verb::Capture, Slot::Outbound as u32);
    }
    if hbone && peer & HERE == HERE {
        // A pod that speaks HBONE itself, such as a waypoint; policy is about what the tunnel carries.
        return Steer::with(Verb::Capture, Slot::Inbound as u32);
    }
    if !known && is_for_translation(world, pod, &packet.dst) {
        return Steer::with(Verb::PassNew, Opener::PodToService as u32);
    }
    if !allows_egress(world, pod, packet) {
        return Steer::reset(Outcome::Policy);
    }
    if !enrolled || peer & flags::ENROLLED == 0 {
        return Steer::with(Verb::PassNew, Opener::Pod as u32);
    }
    if peer & flags::LOCAL == 0 {
        return Steer::with(Verb::Capture, Slot::Outbound as u32);
    }
    let Some(neighbour) = world.pod(ifindex) else {
        return Steer::drop(Outcome::UnknownPod);
    };
    let to = (packet.protocol, packet.dst_port);
    let from = Peer::Addr(&packet.src);
    if allows(world, neighbour, Direction::Ingress, &from, true, to) {
        Steer::with(Verb::LocalNew, ifindex)
    } else {
        Steer::reset(Outcome::Policy)
    }
}

#[inline(always)]
fn from_pod_established<W: World>(world: &W, ifindex: u32, pod: &Pod, packet: &Packet) -> Steer {
    let (_, peer, peer_ifindex) = peer_of(world, &packet.dst);
    let sockets = pod.flags & flags::SOCKETS != 0;
    let peer_sockets = peer & flags::SOCKETS != 0;
    if !sockets && !peer_sockets && pod.flags & JUDGED == 0 {
        return Steer::to(Verb::Pass);
    }
    let here = if peer & flags::LOCAL != 0 {
        peer_ifindex
    } else {
        0
    };
    let key = packet.flow_of_source(ifindex);
    if let Some(flow) = world.flow(&key)
        // A record of a neighbour that is gone is none.
        && (flow.neighbour == 0 || flow.neighbour == here)
    {
        return from_pod_recorded(world, pod, &key, flow);
    }
    if sockets {
        // The record was evicted; between two enrolled pods of this node there is only one way, and without policy nothing
        // to judge.
        let both = pod.flags & peer & flags::ENROLLED != 0 && here != 0;
        return if both && pod.flags & JUDGED == 0 {
            Steer::with(Verb::SocketOrLocal, here)
        } else {
            Steer::with(Verb::SocketOrListener, Slot::Outbound as u32)
        };
    }
    // The peer's sockets are meant: the agent speaks to this pod with the peer's address.
    match (peer_sockets, packet.dst_port == HBONE) {
        (true, true) => Steer::with(Verb::SocketOrListener, Slot::Inbound as u32),
        (true, false) => Steer::to(Verb::SocketOrPass),
        (false, _) => Steer::reset(Outcome::NoFlow),
    }
}

#[inline(always)]
fn from_pod_recorded<W: World>(world: &W, pod: &Pod, key: &FlowKey, flow: &Flow) -> Steer {
    let neighbour = flow.neighbour;
    if flow.revision == world.revision() {
        return if neighbour == 0 {
            Steer::with(Verb::Pass, to_service(Some(flow)))
        } else {
            Steer::with(Verb::Local, neighbour)
        };
    }
    if !still_allows(world, pod, key, flow) {
        return Steer::reset(Outcome::Policy);
    }
    if neighbour == 0 {
        Steer::with(Verb::PassRenew, to_service(Some(flow)))
    } else if neighbour_still_allows(world, pod, key, flow) {
        Steer::with(Verb::LocalRenew, neighbour)
    } else {
        Steer::reset(Outcome::Policy)
    }
}

/// Whether the pod at the other end of a short-cut flow of `pod` still allows it.
///
/// Its own record is not asked: it may have been evicted, and says the same.
#[inline(always)]
fn neighbour_still_allows<W: World>(world: &W, pod: &Pod, key: &FlowKey, flow: &Flow) -> bool {
    let Some(neighbour) = world.pod(flow.neighbour) else {
        return false;
    };
    let own = if key.peer.is_v4() {
        pod.addr4
    } else {
        pod.addr6
    };
    let (key, flow) = seen_by_neighbour(key, flow, own);
    still_allows(world, neighbour, &key, &flow)
}

/// Who sent a packet that is about to reach a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The agent of this node: judged before it was sent.
    Agent,
    /// Another process in the node's network namespace.
    Node,
    /// The pod itself, through a service that it is an endpoint of.
    Itself,
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
    match packet.kind {
        Kind::NotIp => return Steer::drop(Outcome::EtherType),
        Kind::Malformed => return Steer::drop(Outcome::Malformed),
        _ => {}
    }
    let watched = pod.flags & (flags::SOCKETS | JUDGED) != 0;
    match packet.kind {
        Kind::TcpOpening if origin == Origin::Agent => Steer::to(Verb::PassAgent),
        Kind::TcpOpening => to_pod_opening(world, pod, packet, origin),
        Kind::Tcp if watched && origin != Origin::Agent => {
            to_pod_established(world, ifindex, pod, packet, origin)
        }
        Kind::TcpFragment if watched && origin == Origin::Forwarded => {
            Steer::drop(Outcome::Fragment)
        }
        Kind::Ip if pod.flags & JUDGED != 0 && origin != Origin::Agent => {
            to_pod_datagram(world, ifindex, pod, packet, origin)
        }
        _ => Steer::to(Verb::Pass),
    }
}

#[inline(always)]
fn to_pod_opening<W: World>(world: &W, pod: &Pod, packet: &Packet, origin: Origin) -> Steer {
    const STRICT: u32 = flags::ENROLLED | flags::STRICT;
    if origin == Origin::Forwarded && pod.flags & STRICT == STRICT {
        return Steer::reset(Outcome::Strict);
    }
    if allows_ingress(world, pod, packet, origin) {
        Steer::with(Verb::PassNew, opener(origin))
    } else {
        Steer::reset(Outcome::Policy)
    }
}

#[inline(always)]
fn to_pod_established<W: World>(
    world: &W,
    ifindex: u32,
    pod: &Pod,
    packet: &Packet,
    origin: Origin,
) -> Steer {
    let key = packet.flow_of_destination(ifindex);
    match standing(world, pod, &key, world.flow(&key)) {
        Standing::Current => Steer::to(Verb::Pass),
        Standing::Renewed => Steer::to(Verb::PassRenew),
        Standing::Refused => Steer::reset(Outcome::Policy),
        Standing::Unknown if origin == Origin::Node => Steer::to(Verb::Pass),
        Standing::Unknown => Steer::reset(Outcome::NoFlow),
    }
}

#[inline(always)]
fn to_pod_datagram<W: World>(
    world: &W,
    ifindex: u32,
    pod: &Pod,
    packet: &Packet,
    origin: Origin,
) -> Steer {
    let key = packet.flow_of_destination(ifindex);
    match standing(world, pod, &key, world.flow(&key)) {
        Standing::Current => Steer::to(Verb::Pass),
        Standing::Renewed => Steer::to(Verb::PassRenew),
        Standing::Unknown | Standing::Refused => {
            if allows_ingress(world, pod, packet, origin) {
                Steer::with(Verb::PassNew, opener(origin))
            } else {
                Steer::drop(Outcome::Policy)
            }
        }
    }
}

#[inline(always)]
fn allows_ingress<W: World>(world: &W, pod: &Pod, packet: &Packet, origin: Origin) -> bool {
    if origin == Origin::Itself {
        // Under the node's address, so that its answers go through the node.
        return true;
    }
    let peer = if origin == Origin::Node {
        Peer::Node
    } else {
        Peer::Addr(&packet.src)
    };
    let to = (packet.protocol, packet.dst_port);
    allows(world, pod, Direction::Ingress, &peer, false, to)
}

#[inline(always)]
const fn opener(origin: Origin) -> u32 {
    match origin {
        Origin::Node => Opener::Node as u32,
        Origin::Agent | Origin::Itself | Origin::Forwarded => Opener::Peer as u32,
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

/// Judges a TCP connection that a process in `pod` is about to open: [`Outcome::Pass`], or what the packet hooks are sure
/// to refuse it for.
///
/// Only destinations that are pods are judged: a pod may have devices of its own, and what goes that way is not ours.
#[inline(always)]
pub fn connect<W: World>(world: &W, pod: &Pod, dst: &Addr, port: Port) -> Outcome {
    const MESHED: u32 = flags::ENROLLED | flags::LOCAL;
    const STRICT: u32 = flags::ENROLLED | flags::STRICT;
    let (known, peer, ifindex) = peer_of(world, dst);
    // HBONE is about what a tunnel carries.
    if !known || port == HBONE && (pod.flags | peer) & flags::ENROLLED != 0 {
        return Outcome::Pass;
    }
    let to = (TCP, port);
    if !allows(world, pod, Direction::Egress, &Peer::Addr(dst), false, to) {
        return Outcome::Policy;
    }
    let own = if dst.is_v4() { &pod.addr4 } else { &pod.addr6 };
    if peer & flags::LOCAL == 0 || own == dst {
        return Outcome::Pass;
    }
    let Some(neighbour) = world.pod(ifindex) else {
        return Outcome::Pass;
    };
    let proved = pod.flags & peer & MESHED == MESHED;
    if !proved && neighbour.flags & STRICT == STRICT {
        return Outcome::Strict;
    }
    let from = Peer::Addr(own);
    if allows(world, neighbour, Direction::Ingress, &from, proved, to) {
        Outcome::Pass
    } else {
        Outcome::Policy
    }
}

/// Whether a packet from the pod at `ifindex` may reach a process of the node (`sk_lookup`): the pod's egress policy
/// judges what [`from_pod`] saw as a service.
///
/// Answers to the node have a record, and are not asked about.
#[inline(always)]
pub fn to_node<W: World>(world: &W, ifindex: u32, pod: &Pod, packet: &Packet) -> bool {
    pod.flags & flags::EGRESS == 0
        || (packet.src != pod.addr4 && packet.src != pod.addr6)
        || world.flow(&packet.flow_of_source(ifindex)).is_some()
        || allows_egress(world, pod, packet)
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
