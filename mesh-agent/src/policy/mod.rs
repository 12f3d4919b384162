//! CORE: who may talk to whom.
//!
//! [`evaluate`] judges one connection on one snapshot. Three layers are asked in turn, and each must allow: Kubernetes
//! `NetworkPolicy` at both ends and for every pod, then Istio's `PeerAuthentication` and `AuthorizationPolicy` where the
//! connection ends in an enrolled pod. The rules are plain terms (selectors, prefixes, port ranges), so that what is
//! asked here one connection at a time can be compiled for the kernel as well.
//!
//! Invariant: what is not understood or not known never allows.

mod authorization;
mod caveat;
mod compile;
mod connection;
mod evaluate;
mod network;
mod rule;
mod selector;
#[cfg(test)]
mod tests;

pub use caveat::{Caveat, Effect};
pub use compile::{Compiled, Subject, compile};
pub use connection::{
    Connection, Destination, Direction, IpProtocol, Layer, Reason, Source, Verdict,
};
pub use evaluate::{evaluate, explain};
pub use rule::{
    Action, Among, AuthorizationPolicy, AuthorizationRule, IpBlock, Match, Namespaces,
    NetworkPolicy, NetworkRule, Pattern, Peer, PolicyKind, PolicyRef, PortRange, PortTerm,
    ServiceAccount, Terms,
};
pub use selector::{Operator, Requirement, Selector};
