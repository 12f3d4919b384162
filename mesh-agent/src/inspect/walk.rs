//! The way of a connection: who carries it, and who judges it on the way.
//!
//! The order is that of `steer::from_pod` and `steer::to_pod`, told for people.

use std::net::SocketAddr;

use mesh_common::HBONE_PORT;

use super::party::Someone;
use super::{Carriage, Judgement, PolicyName, Step, Transport};
use crate::model::{Identity, Snapshot};
use crate::policy::{
    Connection, Destination, Direction, Layer, PolicyKind, PolicyRef, Source, Verdict, explain,
};
use crate::route::{self, Outbound, Refusal, Route, is_pod_address, is_reserved};

/// A connection's opener and what it speaks.
pub(super) struct Walk<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) source: Someone<'a>,
    pub(super) protocol: Transport,
}

/// Who sends it on at the source's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// The kernel, which judges egress by itself.
    Kernel,
    /// The kernel, which has judged the service's address.
    Service,
    /// The agent, which chose the endpoint.
    Agent,
}

impl From<bool> for Hop {
    /// Of whether a service's endpoint is chosen by the agent.
    fn from(by_agent: bool) -> Self {
        if by_agent { Self::Agent } else { Self::Service }
    }
}

/// The way to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) address: SocketAddr,
    hop: Hop,
    pub(super) carriage: Carriage,
    detail: String,
    identities: Vec<Identity>,
}

impl Leg {
    fn new(address: SocketAddr, hop: Hop, carriage: Carriage, detail: &str) -> Self {
        Self {
            address,
            hop,
            carriage,
            detail: detail.to_owned(),
            identities: Vec::new(),
        }
    }

    /// To what takes no tunnel.
    pub(super) fn plain(address: SocketAddr, hop: Hop) -> Self {
        Self::new(address, hop, Carriage::Plain, "as without the mesh")
    }

    /// To nobody.
    pub(super) fn refused(address: SocketAddr, hop: Hop, why: String) -> Self {
        Self {
            detail: why,
            ..Self::new(address, hop, Carriage::Refused, "")
        }
    }

    /// Whether the destination learns by it who the source is.
    fn proves(&self) -> bool {
        matches!(
            self.carriage,
            Carriage::SameNode | Carriage::Agent | Carriage::Tunnel
        )
    }
}

impl Walk<'_> {
    /// Whether the mesh carries it, if its destination is of the mesh.
    pub(super) fn is_captured(&self) -> bool {
        self.source.is_enrolled() && self.protocol == Transport::Tcp
    }

    /// The way to an address that is no service's.
    pub(super) fn direct(&self, to: SocketAddr) -> Leg {
        let destination = Someone::at(self.snapshot, to.ip());
        let (source, peer) = (self.source.workload, destination.workload);
        if source.is_some_and(|it| peer.is_some_and(|peer| peer.key == it.key)) {
            let detail = "a pod's packets to itself do not leave it";
            return Leg::new(to, Hop::Kernel, Carriage::Itself, detail);
        }
        if !self.is_captured() {
            return Leg::plain(to, Hop::Kernel);
        }
        let unknown = peer.is_none() && is_pod_address(self.snapshot, to.ip());
        let remote = destination.is_enrolled() && !destination.is_on_node_of(&self.source);
        if to.port() == HBONE_PORT || unknown || remote {
            let mut leg = self.by_agent(to);
            if leg.carriage == Carriage::Tunnel {
                // Judged before it was captured.
                leg.hop = Hop::Kernel;
            }
            leg
        } else if destination.is_enrolled() {
            let detail = "from pod to pod, without a tunnel; the kernel proves who the source is";
            Leg::new(to, Hop::Kernel, Carriage::SameNode, detail)
        } else {
            Leg::plain(to, Hop::Kernel)
        }
    }

    /// The way that the agent of the source's node chooses to an endpoint.
    pub(super) fn by_agent(&self, to: SocketAddr) -> Leg {
        if self.source.is_here(self.snapshot) {
            let decided = self.decided(to);
            return decided.into_iter().next().unwrap_or_else(|| {
                // It always decides something.
                Leg::plain(to, Hop::Agent)
            });
        }
        let destination = Someone::at(self.snapshot, to.ip());
        if is_reserved(to.port()) {
            let why = Refusal::ReservedPort(to.port()).to_string();
            return Leg::refused(to, Hop::Agent, why);
        }
        match destination.workload {
            Some(it) if it.enrolled && destination.is_on_node_of(&self.source) => agent_leg(to),
            Some(it) if it.enrolled => tunnel_leg(to, it.identity.iter().cloned().collect()),
            None if is_pod_address(self.snapshot, to.ip()) => {
                Leg::refused(to, Hop::Agent, Refusal::UnknownDestination.to_string())
            }
            _ => Leg::plain(to, Hop::Agent),
        }
    }

    /// All that this node's agent may decide for a connection, by the endpoint it picks.
    pub(super) fn decided(&self, to: SocketAddr) -> Vec<Leg> {
        let outbound = Outbound {
            source: self.source.address,
            destination: to,
        };
        let mut legs = Vec::new();
        let (mut index, mut count) = (0, 1);
        while index < count {
            let route = route::decide(self.snapshot, &outbound, |endpoints| {
                count = endpoints;
                index
            });
            let leg = match route {
                Route::Tunnel {
                    authority,
                    identities,
                    ..
                } => tunnel_leg(authority, identities),
                Route::Local { address } => agent_leg(address),
                Route::Plain {
                    address,
                    source: None,
                } => Leg::new(
                    address,
                    Hop::Agent,
                    Carriage::Plain,
                    "as without the mesh, from the node's address",
                ),
                Route::Plain { address, .. } => Leg::plain(address, Hop::Agent),
                Route::Refuse { reason } => Leg::refused(to, Hop::Agent, reason.to_string()),
            };
            if !legs.contains(&leg) {
                legs.push(leg);
            }
            index += 1;
        }
        legs
    }

    /// What happens on a way.
    pub(super) fn steps(&self, leg: &Leg) -> Vec<Step> {
        let mut steps = Vec::new();
        // Nothing is judged that is refused before anything is sent: by the agent, or for want of an endpoint.
        let refused = leg.carriage == Carriage::Refused;
        if !refused && leg.hop != Hop::Service {
            steps.extend(self.egress(leg.address, leg.hop));
        }
        steps.push(self.route(leg));
        if !refused {
            steps.extend(self.ingress(leg));
        }
        steps
    }

    /// The verdicts where it starts; none for what is no pod.
    pub(super) fn egress(&self, to: SocketAddr, hop: Hop) -> Vec<Step> {
        if self.source.workload.is_none() {
            return Vec::new();
        }
        let node = self.source.node.unwrap_or("?");
        let by = match hop {
            Hop::Agent => format!("the agent of node {node}"),
            Hop::Kernel | Hop::Service => format!("the kernel of node {node}"),
        };
        self.judged(Direction::Egress, to, None, &by)
    }

    fn route(&self, leg: &Leg) -> Step {
        let by = match (leg.hop, self.source.node) {
            (_, None) => "its own network".to_owned(),
            (Hop::Agent, Some(node)) => format!("the agent of node {node}"),
            (Hop::Kernel | Hop::Service, Some(node)) if leg.carriage == Carriage::Tunnel => {
                format!("the agent of node {node}")
            }
            (Hop::Kernel | Hop::Service, Some(node)) => format!("the kernel of node {node}"),
        };
        let tunnel = SocketAddr::new(leg.address.ip(), HBONE_PORT);
        Step::Route {
            carriage: leg.carriage,
            by,
            detail: leg.detail.clone(),
            tunnel: (leg.carriage == Carriage::Tunnel).then_some(tunnel),
            identities: leg.identities.iter().map(ToString::to_string).collect(),
        }
    }

    /// The verdicts where it ends; none for what is no pod.
    fn ingress(&self, leg: &Leg) -> Vec<Step> {
        let destination = Someone::at(self.snapshot, leg.address.ip());
        if destination.workload.is_none() {
            return Vec::new();
        }
        let node = destination.node.unwrap_or("?");
        let local = leg.hop == Hop::Agent && destination.is_on_node_of(&self.source);
        let by = if leg.carriage == Carriage::Tunnel || local {
            format!("the agent of node {node}")
        } else {
            format!("the kernel of node {node}")
        };
        let identity = self.source.workload.and_then(|it| it.identity.as_ref());
        let identity = identity.filter(|_| leg.proves());
        self.judged(Direction::Ingress, leg.address, identity, &by)
    }

    fn judged(
        &self,
        direction: Direction,
        to: SocketAddr,
        identity: Option<&Identity>,
        by: &str,
    ) -> Vec<Step> {
        let destination = Someone::at(self.snapshot, to.ip());
        let connection = Connection {
            direction,
            protocol: self.protocol.into(),
            source: Source {
                address: self.source.address,
                workload: self.source.workload,
                identity,
            },
            destination: Destination {
                address: to.ip(),
                port: to.port(),
                workload: destination.workload,
            },
            from_node: self.source.is_node() && destination.is_on_node_of(&self.source),
        };
        let verdicts = explain(self.snapshot, &connection);
        let told = verdicts.iter().map(|it| judgement(direction, it, by));
        told.map(Step::Verdict).collect()
    }
}

fn tunnel_leg(to: SocketAddr, identities: Vec<Identity>) -> Leg {
    Leg {
        identities,
        ..Leg::new(
            to,
            Hop::Agent,
            Carriage::Tunnel,
            "as a stream of an mTLS tunnel",
        )
    }
}

fn agent_leg(to: SocketAddr) -> Leg {
    let detail = "through the agent, without a tunnel";
    Leg::new(to, Hop::Agent, Carriage::Agent, detail)
}

fn judgement(direction: Direction, verdict: &Verdict, by: &str) -> Judgement {
    let rules = match (verdict.layer, direction) {
        (Layer::NetworkPolicy, _) => direction_name(direction),
        _ => "rules",
    };
    Judgement {
        direction: direction_name(direction).to_owned(),
        by: by.to_owned(),
        layer: format!("{:?}", verdict.layer),
        allow: verdict.allow,
        reason: verdict.reason.to_string(),
        policy: verdict.policy.as_ref().map(PolicyName::from),
        rule: verdict.rule.map(|it| format!("spec.{rules}[{it}]")),
    }
}

/// The direction as `NetworkPolicy` writes it.
pub(super) fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

impl From<&PolicyRef> for PolicyName {
    fn from(policy: &PolicyRef) -> Self {
        Self::new(policy.kind, &policy.key)
    }
}

impl PolicyName {
    pub(super) fn new(kind: PolicyKind, key: &crate::model::Key) -> Self {
        Self {
            kind: format!("{kind:?}"),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
        }
    }
}
