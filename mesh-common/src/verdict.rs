//! What became of a packet: the enums that counters are indexed by.

/// Declares a `u32` enum with its names for metrics and logs.
macro_rules! named {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $type { $($(#[$doc])* $variant,)* }

        impl $type {
            /// Every variant, in the order of its number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// How many there are.
            pub const COUNT: u32 = 0 $(+ { let _ = Self::$variant; 1 })*;

            /// The name in counters, metrics and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

named! {
    /// Where a program is attached.
    Hook {
        /// TC ingress at the host end of a pod's veth: the packet leaves the pod.
        FromPod = "from_pod",
        /// TC egress at the host end of a pod's veth: the packet is about to reach the pod.
        ToPod = "to_pod",
        /// TC ingress at an uplink: the packet reaches the node.
        FromNet = "from_net",
        /// TC egress at an uplink: the packet leaves the node.
        ToNet = "to_net",
        /// `sk_lookup`: a packet from a pod is about to reach a process of the node.
        ToNode = "to_node",
        /// Cgroup `connect`: a process in a pod is about to open a TCP connection.
        Connect = "connect",
    }
}

named! {
    /// What a hook did with a packet.
    Outcome {
        /// Left to the node's stack.
        Pass = "pass",
        /// Given to an existing socket of the agent.
        Socket = "socket",
        /// Given to a listener of the agent.
        Listener = "listener",
        /// Redirected to another pod of this node.
        Local = "local",
        /// Dropped, no pod is known at this interface.
        UnknownPod = "drop_unknown_pod",
        /// Dropped, the source address is not the pod's own.
        Spoofed = "drop_spoofed",
        /// Dropped, the headers are not what they claim or more than the parser follows.
        Malformed = "drop_malformed",
        /// Dropped, neither IP nor ARP, or a VLAN tag.
        EtherType = "drop_ethertype",
        /// Dropped, a TCP fragment from or to an enrolled pod: it has no ports to judge.
        Fragment = "drop_fragment",
        /// Dropped, link-local IPv6 chatter other than neighbour discovery.
        LinkLocal = "drop_link_local",
        /// Dropped, the agent has no listener in the slot.
        AgentAbsent = "drop_agent_absent",
        /// Dropped, the kernel refused to assign the socket.
        AssignFailed = "drop_assign_failed",
        /// Dropped, plaintext to a pod that accepts only the mesh.
        Strict = "drop_strict",
        /// Refused by policy.
        Policy = "drop_policy",
        /// Dropped, a segment of no connection this node has seen begin.
        NoFlow = "drop_no_flow",
        /// Dropped, the new flow could not be recorded.
        FlowsFull = "drop_flows_full",
    }
}

impl Outcome {
    /// Whether the packet was dropped.
    pub const fn is_drop(self) -> bool {
        self as u32 >= Self::UnknownPod as u32
    }
}

/// Number of counters: one for every pair of hook and outcome.
pub const COUNTERS: u32 = Hook::COUNT * Outcome::COUNT;

/// Index of the counter of a hook and an outcome, the latter by its number.
#[inline(always)]
pub const fn counter(hook: Hook, outcome: u32) -> u32 {
    hook as u32 * Outcome::COUNT + outcome
}
