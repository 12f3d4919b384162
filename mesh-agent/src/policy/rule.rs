//! What policies say, as terms that can be listed.

use std::fmt;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{Caveat, Direction, Selector};
use crate::model::{Key, Protocol};

/// Kind and name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyRef {
    /// Its kind.
    pub kind: PolicyKind,
    /// Namespace and name.
    pub key: Key,
}

/// The kinds of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// Of `networking.k8s.io`.
    NetworkPolicy,
    /// Of `security.istio.io`.
    PeerAuthentication,
    /// Of `security.istio.io`.
    AuthorizationPolicy,
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.key)
    }
}

/// Any value, or one of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Among<T> {
    /// Whatever it is.
    Any,
    /// One of these; of none, nothing.
    OneOf(Vec<T>),
}

/// Isolates pods of its namespace and tells what is allowed nevertheless: a Kubernetes `NetworkPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: Key,
    /// The pods of its namespace that it is about.
    pub selector: Selector,
    /// What may come in; none when it does not isolate ingress.
    pub ingress: Option<Vec<NetworkRule>>,
    /// What may go out; none when it does not isolate egress.
    pub egress: Option<Vec<NetworkRule>>,
    /// What is not in force as it was written.
    pub caveats: Vec<Caveat>,
}

impl NetworkPolicy {
    /// What it allows in a direction; none when it does not isolate that one.
    pub fn rules(&self, direction: Direction) -> Option<&[NetworkRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Allows connections with one of the peers at one of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRule {
    /// The other end.
    pub peers: Among<Peer>,
    /// The protocol and port at the destination; without restriction also protocols that have no ports.
    pub ports: Among<PortTerm>,
}

/// The other end of a connection, as a [`NetworkRule`] tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods; never those in the host's network.
    Pods {
        /// Their namespaces.
        namespaces: Namespaces,
        /// Their labels.
        pods: Selector,
    },
    /// Addresses, whoever has them.
    Block(IpBlock),
}

/// The namespaces of a [`Peer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// The policy's own.
    Own,
    /// Those with such labels.
    Matching(Selector),
}

/// A prefix with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpBlock {
    /// The prefix, without host bits.
    pub cidr: IpNet,
    /// Prefixes within it that do not belong to it.
    pub except: Vec<IpNet>,
}

/// A protocol and ports at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTerm {
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub port: PortRange,
}

/// The ports of a [`PortTerm`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRange {
    /// All of them.
    All,
    /// These, both ends included.
    Numbers(RangeInclusive<u16>),
    /// The number that the destination pod gives this name for the protocol; nothing at what is not a pod.
    Name(String),
}

/// Tells which connections enrolled pods take: the L4 part of Istio's `AuthorizationPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name; in the root namespace it is about the pods of every namespace.
    pub key: Key,
    /// The pods it is about.
    pub selector: Selector,
    /// What it does with what matches one of its rules.
    pub action: Action,
    /// Its rules; without any, nothing matches.
    pub rules: Vec<AuthorizationRule>,
    /// What is not in force as it was written.
    pub caveats: Vec<Caveat>,
}

/// What an [`AuthorizationPolicy`] does with what matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Allows it, and thereby denies whatever no policy allows.
    Allow,
    /// Denies it, whatever else allows it.
    Deny,
    /// Nothing: another part of the mesh enforces it, or nobody.
    Nothing,
}

/// A rule of an [`AuthorizationPolicy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorizationRule {
    /// Matches when every clause has a match that holds; without clauses always.
    AllOf(Vec<Vec<Match>>),
    /// It asks for what L4 cannot know, or is not understood: matches if that denies, not if that allows.
    Undecided,
}

/// Properties of a connection; all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The peer's identity, without `spiffe://`.
    pub principals: Terms<Pattern>,
    /// The namespace of the peer's identity, empty when it has none.
    pub namespaces: Terms<Pattern>,
    /// The service account of the peer's identity.
    pub service_accounts: Terms<ServiceAccount>,
    /// The source address.
    pub sources: Terms<IpNet>,
    /// The destination address.
    pub destinations: Terms<IpNet>,
    /// The destination port.
    pub ports: Terms<u16>,
}

/// What a property is to be, and what it is not to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms<T> {
    /// One of these; empty for whatever.
    pub any_of: Vec<T>,
    /// None of these.
    pub none_of: Vec<T>,
}

impl<T> Default for Terms<T> {
    fn default() -> Self {
        Self {
            any_of: Vec::new(),
            none_of: Vec::new(),
        }
    }
}

impl<T> Terms<T> {
    /// Whether they hold for whatever.
    pub fn is_any(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }

    /// Whether they hold for a property, given which terms match it.
    pub fn hold(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(&matches))
            && !self.none_of.iter().any(&matches)
    }
}

/// A service account and its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// What a text is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Like this.
    Exact(String),
    /// Beginning with this.
    Prefix(String),
    /// Ending with this.
    Suffix(String),
    /// Not empty.
    Present,
}

impl Pattern {
    /// Whether a text looks like it.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(it) => text == it,
            Self::Prefix(it) => text.starts_with(it.as_str()),
            Self::Suffix(it) => text.ends_with(it.as_str()),
            Self::Present => !text.is_empty(),
        }
    }
}

impl From<&str> for Pattern {
    /// Reads `exact`, `prefix*`, `*suffix` or `*`; a star elsewhere is a star.
    fn from(text: &str) -> Self {
        if text == "*" {
            Self::Present
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(text.to_owned())
        }
    }
}
