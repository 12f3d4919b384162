//! What is judged, and what came of it.

use std::fmt;
use std::net::IpAddr;

use super::PolicyRef;
use crate::model::{Identity, Protocol, Workload};

/// A connection, or a first datagram, seen from one of its ends.
///
/// Replies, ICMP errors and what a network needs to work (ARP, neighbour discovery, DHCP) are never judged.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The end that judges: egress where it starts, ingress where it ends.
    pub direction: Direction,
    /// What it speaks.
    pub protocol: IpProtocol,
    /// Where it starts.
    pub source: Source<'a>,
    /// Where it ends, after a service's address was translated.
    pub destination: Destination<'a>,
    /// Whether a process of the judging node opened it: one in the node's own network, not one that merely has the
    /// node's address because it was translated.
    pub from_node: bool,
}

/// Where a connection starts.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The address, as packets carry it.
    pub address: IpAddr,
    /// Whose address it is.
    pub workload: Option<&'a Workload>,
    /// Who it is, proved by mTLS or, on the same node, by the kernel.
    pub identity: Option<&'a Identity>,
}

/// Where a connection ends.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The address.
    pub address: IpAddr,
    /// The port; of no meaning to protocols without ports.
    pub port: u16,
    /// Whose address it is.
    pub workload: Option<&'a Workload>,
}

/// From which end a connection is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// It ends in the pod.
    Ingress,
    /// It starts in the pod.
    Egress,
}

/// What a connection speaks above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP, or `ICMPv6`.
    Icmp,
    /// Another one, by its number.
    Other(u8),
}

impl IpProtocol {
    /// As the protocol of a port; none for those without.
    pub fn of_ports(self) -> Option<Protocol> {
        match self {
            Self::Tcp => Some(Protocol::Tcp),
            Self::Udp => Some(Protocol::Udp),
            Self::Sctp => Some(Protocol::Sctp),
            Self::Icmp | Self::Other(_) => None,
        }
    }
}

impl From<u8> for IpProtocol {
    /// Of the number in an IP header.
    fn from(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            1 | 58 => Self::Icmp,
            other => Self::Other(other),
        }
    }
}

/// One of those that must all allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// Kubernetes `NetworkPolicy`.
    NetworkPolicy,
    /// Istio's `PeerAuthentication`.
    PeerAuthentication,
    /// Istio's `AuthorizationPolicy`.
    AuthorizationPolicy,
}

/// What came of a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be.
    pub allow: bool,
    /// The layer that decided.
    pub layer: Layer,
    /// The policy that decided; none when there is none, or several in common.
    pub policy: Option<PolicyRef>,
    /// Index of the rule that decided, within the rules of the policy for the direction.
    pub rule: Option<usize>,
    /// Why.
    pub reason: Reason,
}

impl Verdict {
    /// What a layer says, without a policy to name.
    pub(super) fn new(layer: Layer, reason: Reason) -> Self {
        Self {
            allow: reason.allows(),
            layer,
            policy: None,
            rule: None,
            reason,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allow { "allowed" } else { "denied" };
        write!(f, "{word} by {:?}: {}", self.layer, self.reason)?;
        match (&self.policy, self.rule) {
            (Some(policy), Some(rule)) => write!(f, " ({policy}, rule {rule})"),
            (Some(policy), None) => write!(f, " ({policy})"),
            (None, _) => Ok(()),
        }
    }
}

/// Why a layer allows or denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A pod reaches itself.
    Itself,
    /// The node reaches its pods.
    Node,
    /// The kubelet probes a port that the pod tells.
    Probe,
    /// No policy is about the pod.
    NoPolicy,
    /// The layer is not about what is not enrolled.
    NotEnrolled,
    /// The layer is about TCP only.
    NotTcp,
    /// Plaintext is taken at this port.
    Permissive,
    /// The peer has proved who it is.
    Authenticated,
    /// A rule allows it.
    Allowed,
    /// A rule denies it.
    Denied,
    /// A rule that is not understood, or asks for what L4 cannot know, is in a policy that denies.
    NotUnderstood,
    /// Policies are about the pod and none allows it.
    DefaultDeny {
        /// How many.
        policies: usize,
        /// How many of them are not in force as they were written.
        caveats: usize,
    },
    /// The pod of an interface is not known yet, and policies of its namespace may be about it.
    UnknownPod {
        /// How many.
        policies: usize,
    },
    /// Plaintext is not taken at this port.
    Strict,
}

impl Reason {
    /// Whether it is one to allow.
    pub fn allows(self) -> bool {
        match self {
            Self::Itself
            | Self::Node
            | Self::Probe
            | Self::NoPolicy
            | Self::NotEnrolled
            | Self::NotTcp
            | Self::Permissive
            | Self::Authenticated
            | Self::Allowed => true,
            Self::Denied
            | Self::NotUnderstood
            | Self::DefaultDeny { .. }
            | Self::UnknownPod { .. }
            | Self::Strict => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("a pod reaches itself"),
            Self::Node => f.write_str("the node reaches its pods"),
            Self::Probe => f.write_str("the node probes its pods"),
            Self::NoPolicy => f.write_str("no policy is about the pod"),
            Self::NotEnrolled => f.write_str("the destination is not enrolled"),
            Self::NotTcp => f.write_str("not TCP"),
            Self::Permissive => f.write_str("plaintext is taken"),
            Self::Authenticated => f.write_str("the peer has proved its identity"),
            Self::Allowed => f.write_str("a rule allows it"),
            Self::Denied => f.write_str("a rule denies it"),
            Self::NotUnderstood => f.write_str("a rule that denies cannot be decided"),
            Self::DefaultDeny { policies, caveats } => {
                write!(f, "default deny by {}", count(*policies))?;
                match caveats {
                    0 => Ok(()),
                    it => write!(f, ", {it} not in force as written"),
                }
            }
            Self::UnknownPod { policies } => {
                let policies = count(*policies);
                write!(f, "the pod is not known yet, {policies} may be about it")
            }
            Self::Strict => f.write_str("plaintext is not taken"),
        }
    }
}

fn count(policies: usize) -> String {
    match policies {
        1 => "1 policy".to_owned(),
        it => format!("{it} policies"),
    }
}
