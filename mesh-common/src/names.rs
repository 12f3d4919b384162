//! Names that more than one process uses: programs, maps, marks, routing table.

/// TC ingress at the host end of a pod's veth.
pub const PROGRAM_FROM_POD: &str = "from_pod";
/// TC egress at the host end of a pod's veth.
pub const PROGRAM_TO_POD: &str = "to_pod";
/// TC ingress at an uplink.
pub const PROGRAM_FROM_NET: &str = "from_net";
/// TC egress at an uplink.
pub const PROGRAM_TO_NET: &str = "to_net";
/// `sk_lookup` in the node's network namespace.
pub const PROGRAM_LISTEN: &str = "listen";
/// `sk_lookup` there as well, behind [`PROGRAM_LISTEN`].
pub const PROGRAM_TO_NODE: &str = "to_node";
/// The programs at the hooks of a cgroup's sockets, each named as its hook.
pub const PROGRAMS_CONNECT: [&str; 2] = ["connect4", "connect6"];

/// Every map, as it is named in the object and under the pin directory.
pub const MAPS: [&str; 13] = [
    MAP_CLASSES,
    MAP_CONFIG,
    MAP_COUNTERS,
    MAP_EVENTS,
    MAP_FLOWS,
    MAP_LISTENERS,
    MAP_NAMESPACES,
    MAP_PODS,
    MAP_POD_CIDRS,
    MAP_POLICY,
    MAP_SERVICES,
    MAP_TRAFFIC,
    MAP_WORKLOADS,
];
/// [`crate::maps::ClassKey`] -> class, LPM.
pub const MAP_CLASSES: &str = "CLASSES";
/// [`crate::maps::Config`], an array of one.
pub const MAP_CONFIG: &str = "CONFIG";
/// `u64` packets per CPU, indexed by [`crate::verdict::counter`].
pub const MAP_COUNTERS: &str = "COUNTERS";
/// [`crate::event::Refused`], a ring buffer; when it is full, what is refused is only counted.
pub const MAP_EVENTS: &str = "EVENTS";
/// Interface index of a pod, or [`crate::maps::ALL_FLOWS`] -> a table: [`crate::maps::FlowKey`] ->
/// [`crate::traffic::Record`], LRU.
pub const MAP_FLOWS: &str = "FLOWS";
/// [`crate::maps::PodCidr`] -> 0, LPM.
pub const MAP_POD_CIDRS: &str = "POD_CIDRS";
/// [`crate::maps::Slot`] -> listening socket.
pub const MAP_LISTENERS: &str = "LISTENERS";
/// Cookie of a pod's network namespace, a `u64` -> interface index of its veth.
pub const MAP_NAMESPACES: &str = "NAMESPACES";
/// Interface index -> [`crate::maps::Pod`].
pub const MAP_PODS: &str = "PODS";
/// [`crate::maps::PolicyKey`] -> [`crate::maps::PolicyEntry`], LPM.
pub const MAP_POLICY: &str = "POLICY";
/// Address -> [`crate::maps::Service`].
pub const MAP_SERVICES: &str = "SERVICES";
/// [`crate::traffic::TrafficKey`] -> [`crate::traffic::Traffic`].
pub const MAP_TRAFFIC: &str = "TRAFFIC";
/// Address -> [`crate::maps::Workload`].
pub const MAP_WORKLOADS: &str = "WORKLOADS";

/// The bits of a packet mark that are ours; kube-proxy uses 0x4000 and 0x8000, the portmap plugin 0x2000.
pub const MARK_MASK: u32 = 0x0f00_0000;
/// Mark of packets that a program steered to a socket of the agent: one policy rule delivers them locally.
pub const MARK_DELIVER: u32 = 0x0d00_0000;
/// Mark of packets that the agent sends: `to_pod` knows them as judged.
pub const MARK_AGENT: u32 = 0x0e00_0000;
/// Mark of resets that a program built: nothing judges them.
pub const MARK_ANSWER: u32 = 0x0c00_0000;
/// Mark of packets from a pod under egress policy to a service: judged where they leave the node's stack, translated.
pub const MARK_SERVICE: u32 = 0x0b00_0000;
/// The routing table that delivers packets marked [`MARK_DELIVER`].
pub const ROUTE_TABLE: u32 = 15008;
/// Priority of the rule that sends [`MARK_DELIVER`] to [`ROUTE_TABLE`].
pub const RULE_DELIVER: u32 = 51;
/// Priority of the rule that keeps reverse-path lookups of marked packets (`iif lo`) on the main table.
pub const RULE_REVERSE: u32 = 50;

/// Where the CNI binary finds the agent unless its configuration says otherwise.
pub const CNI_SOCKET: &str = "/run/mesh-cni/cni.sock";
/// Next hop of every pod's IPv4 default route, answered by a permanent neighbour entry.
pub const GATEWAY_V4: core::net::Ipv4Addr = core::net::Ipv4Addr::new(169, 254, 1, 1);
/// Next hop of every pod's IPv6 default route, answered by a permanent neighbour entry.
pub const GATEWAY_V6: core::net::Ipv6Addr = core::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
