//! A small cluster as a table: what the packet tests put into the kernel's maps, and what `mesh_common::steer` decides on
//! when it runs on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use mesh_common::addr::{Addr, Port};
use mesh_common::maps::{
    ClassKey, Flow, FlowKey, Opener, Pod, PodCidr, PolicyEntry, PolicyKey, Workload, flags,
};
use mesh_common::packet::Packet;
use mesh_common::policy::Policies;
use mesh_common::steer::{self, Origin, Steer, World};
use mesh_common::verdict::Hook;

use crate::frames::protocol;
use crate::rules;
use crate::trie::Trie;

/// IP families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Who takes part: local pods with their flags, remote workloads, a service and a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A pod of this node, enrolled.
    Enrolled,
    /// Another one.
    Neighbour,
    /// A pod of this node, enrolled, that takes no plaintext.
    Strict,
    /// A plain pod of this node.
    Plain,
    /// A pod of this node that was enrolled.
    Left,
    /// A plain pod of this node under a STRICT policy, which means nothing without the mesh.
    PlainStrict,
    /// A plain pod of this node under policy.
    Judged,
    /// An enrolled one.
    JudgedEnrolled,
    /// A plain pod of this node under ingress policy alone.
    OnlyIngress,
    /// A plain pod of this node under egress policy alone, of another generation.
    OnlyEgress,
    /// A plain pod of this node under a policy that is not there.
    Unruled,
    /// An enrolled pod of another node.
    Remote,
    /// A plain pod of another node.
    RemotePlain,
    /// A service address.
    Service,
    /// An address of a node's pod CIDR of which nothing is told.
    Untold,
    /// An address that nobody owns.
    Stranger,
    /// One of the same network, which policy tells apart.
    Outcast,
}

/// Interface of the uplink.
pub const UPLINK: u32 = 30;
/// An interface that no pod is known at.
pub const NO_POD: u32 = 31;

impl Who {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Enrolled,
        Self::Neighbour,
        Self::Strict,
        Self::Plain,
        Self::Left,
        Self::PlainStrict,
        Self::Judged,
        Self::JudgedEnrolled,
        Self::OnlyIngress,
        Self::OnlyEgress,
        Self::Unruled,
        Self::Remote,
        Self::RemotePlain,
        Self::Service,
        Self::Untold,
        Self::Stranger,
        Self::Outcast,
    ];

    /// The address.
    pub fn ip(self, family: Family) -> IpAddr {
        let (v4, v6) = match self {
            Self::Enrolled => pod_address(1, 2),
            Self::Neighbour => pod_address(1, 3),
            Self::Strict => pod_address(1, 4),
            Self::Plain => pod_address(1, 5),
            Self::Left => pod_address(1, 6),
            Self::PlainStrict => pod_address(1, 7),
            Self::Judged => pod_address(1, 8),
            Self::JudgedEnrolled => pod_address(1, 9),
            Self::OnlyIngress => pod_address(1, 10),
            Self::OnlyEgress => pod_address(1, 11),
            Self::Unruled => pod_address(1, 12),
            Self::Remote => pod_address(2, 2),
            Self::RemotePlain => pod_address(2, 3),
            Self::Service => ([10, 96, 0, 10], [0xfd00, 0x96, 0, 0, 0, 0, 0, 10]),
            Self::Untold => pod_address(2, 9),
            Self::Stranger => ([192, 0, 2, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            Self::Outcast => ([192, 0, 2, 2], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]),
        };
        match family {
            Family::V4 => v4.into(),
            Family::V6 => v6.into(),
        }
    }

    /// The address with a port.
    pub fn at(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Interface index of a local pod's veth, otherwise 0.
    pub fn ifindex(self) -> u32 {
        match self {
            Self::Enrolled => 10,
            Self::Neighbour => 11,
            Self::Strict => 12,
            Self::Plain => 13,
            Self::Left => 14,
            Self::PlainStrict => 15,
            Self::Judged => 16,
            Self::JudgedEnrolled => 17,
            Self::OnlyIngress => 18,
            Self::OnlyEgress => 19,
            Self::Unruled => 20,
            Self::Remote
            | Self::RemotePlain
            | Self::Service
            | Self::Untold
            | Self::Stranger
            | Self::Outcast => 0,
        }
    }

    /// The flags of a workload; `None` for what is none.
    pub fn flags(self) -> Option<u32> {
        const MESHED: u32 = flags::LOCAL | flags::ENROLLED | flags::SOCKETS;
        const JUDGED: u32 = flags::INGRESS | flags::EGRESS;
        Some(match self {
            Self::Enrolled | Self::Neighbour => MESHED,
            Self::Strict => MESHED | flags::STRICT,
            Self::Plain => flags::LOCAL,
            Self::PlainStrict => flags::LOCAL | flags::STRICT,
            Self::Left => flags::LOCAL | flags::SOCKETS,
            Self::Judged | Self::Unruled => flags::LOCAL | JUDGED,
            Self::JudgedEnrolled => MESHED | JUDGED,
            Self::OnlyIngress => flags::LOCAL | flags::INGRESS,
            Self::OnlyEgress => flags::LOCAL | flags::EGRESS,
            Self::Remote => flags::ENROLLED,
            Self::RemotePlain => 0,
            Self::Service | Self::Untold | Self::Stranger | Self::Outcast => return None,
        })
    }

    /// The policy set of a pod, and the generation of the classes it is about.
    fn policy(self) -> (u32, u32) {
        match self {
            Self::Judged | Self::OnlyIngress => (rules::SET, rules::GENERATION),
            Self::JudgedEnrolled => (rules::TCP_SET, rules::GENERATION),
            Self::OnlyEgress => (rules::SET, rules::OTHER_GENERATION),
            _ => (rules::NO_SET, rules::GENERATION),
        }
    }

    /// MAC address of a local pod's own end of its veth.
    pub fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 1, self as u8]
    }
}

fn pod_address(node: u8, pod: u8) -> ([u8; 4], [u16; 8]) {
    let v6 = [0xfd00, 0x244, node.into(), 0, 0, 0, 0, pod.into()];
    ([10, 244, node, pod], v6)
}

/// MAC address of the host's end of every veth.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Pod CIDRs of the nodes.
fn pod_cidrs() -> Trie<PodCidr, u32> {
    let mut cidrs = Trie::default();
    for node in [1, 2] {
        let (v4, v6) = pod_address(node, 0);
        cidrs.insert(120, IpAddr::from(v4).into(), 0);
        cidrs.insert(64, IpAddr::from(v6).into(), 0);
    }
    cidrs
}

/// The revision in force.
pub const REVISION: u32 = 7;

/// The record of a flow through the node's stack, judged under the revision in force.
pub const fn plain(opener: Opener) -> Flow {
    Flow {
        neighbour: 0,
        opener: opener as u32,
        revision: REVISION,
    }
}

/// The record of a flow by the short cut to a pod, judged under the revision in force.
pub fn local(neighbour: Who, opener: Opener) -> Flow {
    Flow {
        neighbour: neighbour.ifindex(),
        ..plain(opener)
    }
}

/// The TCP flow between two ends, as the first sees it, a pod at `ifindex`.
pub fn flow(ifindex: u32, pod: SocketAddr, peer: SocketAddr) -> FlowKey {
    FlowKey {
        ifindex,
        peer: peer.ip().into(),
        pod_port: Port::new(pod.port()),
        peer_port: Port::new(peer.port()),
        protocol: protocol::TCP.into(),
    }
}

/// The content of the maps.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// `PODS`.
    pub pods: BTreeMap<u32, Pod>,
    /// `WORKLOADS`.
    pub workloads: BTreeMap<Addr, Workload>,
    /// `SERVICES`.
    pub services: BTreeSet<Addr>,
    /// `POD_CIDRS`.
    pub pod_cidrs: Trie<PodCidr, u32>,
    /// `CLASSES`.
    pub classes: Trie<ClassKey, u32>,
    /// `POLICY`.
    pub policy: Trie<PolicyKey, PolicyEntry>,
    /// `POD_FLOWS` and `FLOWS`.
    pub flows: BTreeMap<FlowKey, Flow>,
    /// `CONFIG`.
    pub revision: u32,
}

impl Table {
    /// The cluster of [`Who`], in both families, without flows.
    pub fn cluster() -> Self {
        let mut table = Self {
            pod_cidrs: pod_cidrs(),
            classes: rules::classes(),
            policy: rules::policy(),
            revision: REVISION,
            ..Self::default()
        };
        for (who, id) in Who::ALL.into_iter().zip(1..) {
            let [v4, v6] = Family::BOTH.map(|family| Addr::from(who.ip(family)));
            if who == Who::Service {
                table.services.extend([v4, v6]);
            }
            let Some(flags) = who.flags() else {
                continue;
            };
            let ifindex = who.ifindex();
            let workload = Workload { id, flags, ifindex };
            table.workloads.extend([(v4, workload), (v6, workload)]);
            if ifindex != 0 {
                let (policy, generation) = who.policy();
                let pod = Pod {
                    addr4: v4,
                    addr6: v6,
                    workload: id,
                    flags,
                    mac: who.mac(),
                    host_mac: HOST_MAC,
                    policy,
                    generation,
                };
                table.pods.insert(ifindex, pod);
            }
        }
        table
    }

    /// What the programs do with a frame up to the decision, on the host.
    ///
    /// `client`: interface of the pod that sent it to a service, for `to_net`.
    pub fn decide(
        &self,
        hook: Hook,
        (ifindex, client): (u32, u32),
        origin: Origin,
        frame: &[u8],
    ) -> Decision {
        let at = if hook == Hook::ToNet { client } else { ifindex };
        let pod = self.pods.get(&at);
        if pod.is_none() && hook != Hook::FromNet {
            return Decision::UnknownPod;
        }
        let packet = Packet::parse(frame);
        Decision::Steer(match (hook, pod) {
            (Hook::FromPod, Some(pod)) => steer::from_pod(self, ifindex, pod, &packet),
            (Hook::ToPod, Some(pod)) => steer::to_pod(self, ifindex, pod, &packet, origin),
            (Hook::ToNet, Some(pod)) => steer::translated(self, client, pod, &packet),
            _ => steer::from_net(self, &packet),
        })
    }
}

impl Policies for Table {
    fn class(&self, generation: u32, addr: &Addr) -> u32 {
        let key = ClassKey {
            generation,
            addr: *addr,
        };
        self.classes.get(&key).copied().unwrap_or(0)
    }

    fn entry(&self, key: &PolicyKey) -> Option<&PolicyEntry> {
        self.policy.get(key)
    }
}

impl World for Table {
    fn pod(&self, ifindex: u32) -> Option<&Pod> {
        self.pods.get(&ifindex)
    }

    fn revision(&self) -> u32 {
        self.revision
    }

    fn workload(&self, addr: &Addr) -> Option<&Workload> {
        self.workloads.get(addr)
    }

    fn is_service(&self, addr: &Addr) -> bool {
        self.services.contains(addr)
    }

    fn is_pod_address(&self, addr: &Addr) -> bool {
        self.pod_cidrs.get(addr).is_some()
    }

    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }
}

/// What a hook decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No pod is known at the interface.
    UnknownPod,
    /// The decision of `mesh_common::steer`.
    Steer(Steer),
}
