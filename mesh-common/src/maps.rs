//! Keys and values of the maps, one type for both sides.
//!
//! Integers are in the machine's byte order; addresses and ports keep the order of the wire.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::addr::{Addr, Port};

/// Bits of [`Pod::flags`] and [`Workload::flags`].
pub mod flags {
    /// The workload is part of the mesh: its TCP traffic is captured or short-cut, never sent in plaintext to a peer
    /// that is enrolled too.
    pub const ENROLLED: u32 = 1;
    /// The workload runs on this node and [`super::Workload::ifindex`] names its device.
    pub const LOCAL: u32 = 2;
    /// The agent may hold sockets with this workload's address: set at enrolment and kept until the pod is gone, so that
    /// open connections survive a change of labels.
    pub const SOCKETS: u32 = 4;
    /// Plaintext TCP to this workload is refused at every port (PeerAuthentication mode STRICT).
    pub const STRICT: u32 = 8;
    /// Flows to this pod are judged by its policy set.
    pub const INGRESS: u32 = 16;
    /// Flows of this pod are judged by its policy set.
    pub const EGRESS: u32 = 32;
}

/// `PODS`: host-side interface index of a local pod's veth -> the pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Pod {
    /// Its IPv4 address, or [`Addr::NONE`].
    pub addr4: Addr,
    /// Its IPv6 address, or [`Addr::NONE`].
    pub addr6: Addr,
    /// Workload id, unique on this node while the workload lives.
    pub workload: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// MAC address of the pod's end of the veth.
    pub mac: [u8; 6],
    /// MAC address of the host's end of the veth.
    pub host_mac: [u8; 6],
    /// Its policy set in `POLICY`; of no effect without [`flags::INGRESS`] or [`flags::EGRESS`].
    pub policy: u32,
    /// The generation of `CLASSES` that its policy set was compiled with.
    pub generation: u32,
}
abi!(Pod, size = 60, align = 4);

/// `WORKLOADS`: address -> the workload that owns it, anywhere in the cluster.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Workload {
    /// Workload id, unique on this node while the workload lives.
    pub id: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Host-side interface index of its veth when [`flags::LOCAL`], otherwise 0.
    pub ifindex: u32,
}
abi!(Workload, size = 12, align = 4);

/// `SERVICES`: service address -> the service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Service {
    /// Service id, unique on this node while the service lives.
    pub id: u32,
}
abi!(Service, size = 4, align = 4);

/// `POD_CIDRS`: what follows the prefix length in the key of an LPM trie of the nodes' pod CIDRs; the value is unused.
///
/// An address in one of them is a pod's, also while the world has not told whose.
pub type PodCidr = Addr;

/// A table in `FLOWS`: a flow seen from one local pod. A flow between two pods of a node has two entries.
///
/// The pod stands there by its interface, not its address: a new pod with the address of an old one has no flows.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable,
)]
pub struct FlowKey {
    /// Host-side interface index of the pod's veth.
    pub ifindex: u32,
    /// The other end's address, as the pod sees it.
    pub peer: Addr,
    /// The local pod's port.
    pub pod_port: Port,
    /// The other end's port.
    pub peer_port: Port,
    /// IP protocol number; ICMP echoes have their identifier in both ports.
    pub protocol: u32,
}
abi!(FlowKey, size = 28, align = 4);

/// How a recorded flow travels; flows that the agent carries have no record.
///
/// The record is what keeps the segments of a dead tunnel inside: an enrolled pod's segment without socket and without
/// record is never forwarded. Losing a record therefore closes, it does not open.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Flow {
    /// Interface of the enrolled pod of this node that it is redirected to; 0 when it goes through the node's stack, as
    /// without the mesh.
    pub neighbour: u32,
    /// A number of [`Opener`].
    pub opener: u32,
    /// [`Config::revision`] when it was last judged.
    pub revision: u32,
}
abi!(Flow, size = 12, align = 4);

/// Which end opened a flow.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// The pod whose entry it is: egress policy judges it.
    Pod = 1,
    /// The other end: ingress policy judges it.
    Peer = 2,
    /// A process in the node's own network namespace: ingress policy knows it by [`CLASS_NODE`].
    Node = 3,
    /// The pod whose entry it is, to a service: egress policy judges the flow that it is translated to, which has an entry
    /// of its own.
    PodToService = 4,
}

/// `CLASSES`: what follows the prefix length in the key of an LPM trie; the value is the class, a `u32`.
///
/// A class is a set of addresses that every policy in force on this node treats alike; class 0 is everybody else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable)]
pub struct ClassKey {
    /// [`Pod::generation`], always matched whole.
    pub generation: u32,
    /// The address.
    pub addr: Addr,
}
abi!(ClassKey, size = 20, align = 4);

/// The class of processes in the node's own network namespace.
pub const CLASS_NODE: u32 = u32::MAX;

/// `POLICY`: what follows the prefix length in the key of an LPM trie.
///
/// An entry speaks for all ports below its prefix, or, at [`PolicyKey::ANY_PROTOCOL`] bits, for all protocols. Without an
/// entry a flow is refused.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable,
)]
pub struct PolicyKey {
    /// [`Pod::policy`].
    pub set: u32,
    /// Class of the other end.
    pub class: u32,
    /// A number of [`Direction`].
    pub direction: u8,
    /// 1 when the other end's identity is proved, otherwise 0.
    pub proof: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub zero: u8,
    /// Port that the flow is opened to.
    pub port: Port,
    /// Zero.
    pub end: u16,
}
abi!(PolicyKey, size = 16, align = 4);

impl PolicyKey {
    /// Bits of an entry for all protocols.
    pub const ANY_PROTOCOL: u32 = 80;
    /// Bits of an entry for all ports of a protocol.
    pub const ANY_PORT: u32 = 96;
    /// Bits of an entry for one port; between the two, for ports with as many equal leading bits.
    pub const ONE_PORT: u32 = 112;
}

/// Which side of a flow a pod is on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The flow is opened to the pod.
    Ingress = 0,
    /// The pod opens the flow.
    Egress = 1,
}

/// Value of `POLICY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct PolicyEntry {
    /// 1 to let the flow pass, 0 to refuse it.
    pub allow: u32,
}
abi!(PolicyEntry, size = 4, align = 4);

/// `CONFIG`: one entry, written by the agent before any program is attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of the agent that made the maps.
    pub abi_version: u32,
    /// Bumped whenever a verdict may have changed: a flow of an older revision is judged again at its next packet.
    pub revision: u32,
}
abi!(Config, size = 8, align = 4);

/// Index of a listener in the `LISTENERS` socket map.
///
/// A slot holds the listening socket of whichever agent serves now; an empty slot drops, it never passes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Connections that start in an enrolled pod.
    Outbound = 0,
    /// HBONE tunnels for an enrolled pod.
    Inbound = 2,
}

/// `FLOWS`: interface index of a pod -> its own table of flows, which no other pod can push anything out of.
///
/// At this key it holds the table of all pods, for those that have more than find room in their own.
pub const ALL_FLOWS: u32 = 0;
/// Flows in a pod's own table.
pub const OWN_FLOWS: u32 = 2_048;
/// Flows in the table of all pods.
pub const SHARED_FLOWS: u32 = 131_072;

impl Slot {
    /// Number of entries of the map.
    pub const COUNT: u32 = 4;

    /// The entry of a slot, by its number, for one address family.
    #[inline(always)]
    pub const fn index(slot: u32, v6: bool) -> u32 {
        slot + v6 as u32
    }
}
