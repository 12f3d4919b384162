//! `NetworkPolicy`: <https://kubernetes.io/docs/concepts/services-networking/network-policies/>.

use std::net::IpAddr;

use super::{
    Among, Connection, Direction, IpBlock, Layer, Namespaces, NetworkPolicy, NetworkRule, Peer,
    PolicyKind, PolicyRef, PortRange, PortTerm, Reason, Selector, Verdict,
};
use crate::model::{Pod, Snapshot, Workload};

/// Label that every namespace has, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Judges by the policies about the pod at the judging end.
pub(super) fn judge(snapshot: &Snapshot, connection: &Connection<'_>) -> Verdict {
    let say = |reason| Verdict::new(Layer::NetworkPolicy, reason);
    let subject = match connection.direction {
        Direction::Ingress if connection.from_node => return say(Reason::Node),
        Direction::Ingress => connection.destination.workload,
        Direction::Egress => connection.source.workload,
    };
    match subject {
        None => say(Reason::NoPolicy),
        Some(subject) => judge_for(snapshot, connection, subject),
    }
}

fn judge_for(snapshot: &Snapshot, connection: &Connection<'_>, subject: &Workload) -> Verdict {
    let view = View::new(snapshot, connection);
    let (mut policies, mut caveats, mut first) = (0, 0, None);
    for policy in snapshot.network_policies_for(subject) {
        let Some(rules) = policy.rules(connection.direction) else {
            continue;
        };
        // What is allowed to a pod depends on which one it is.
        let mut rules = subject.pod.iter().flat_map(|_| rules);
        if let Some(rule) = rules.position(|rule| view.is_allowed_by(policy, rule)) {
            return Verdict {
                policy: Some(reference(policy)),
                rule: Some(rule),
                ..Verdict::new(Layer::NetworkPolicy, Reason::Allowed)
            };
        }
        policies += 1;
        caveats += usize::from(!policy.caveats.is_empty());
        first = first.or(Some(policy));
    }
    let reason = match policies {
        0 => Reason::NoPolicy,
        _ if subject.pod.is_none() => Reason::UnknownPod { policies },
        _ => Reason::DefaultDeny { policies, caveats },
    };
    Verdict {
        policy: first.filter(|_| policies == 1).map(|it| reference(it)),
        ..Verdict::new(Layer::NetworkPolicy, reason)
    }
}

fn reference(policy: &NetworkPolicy) -> PolicyRef {
    PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        key: policy.key.clone(),
    }
}

/// A connection as rules look at it.
struct View<'a> {
    snapshot: &'a Snapshot,
    connection: &'a Connection<'a>,
    /// The address of the other end.
    peer_address: IpAddr,
    /// The pod at the other end.
    peer: Option<&'a Pod>,
}

impl<'a> View<'a> {
    fn new(snapshot: &'a Snapshot, connection: &'a Connection<'a>) -> Self {
        let (address, peer) = match connection.direction {
            Direction::Ingress => (connection.source.address, connection.source_pod()),
            Direction::Egress => (connection.destination.address, connection.destination_pod()),
        };
        Self {
            snapshot,
            connection,
            peer_address: address.to_canonical(),
            peer,
        }
    }

    fn is_allowed_by(&self, policy: &NetworkPolicy, rule: &NetworkRule) -> bool {
        let ports = |is_named: bool| match &rule.ports {
            Among::Any => !is_named,
            Among::OneOf(terms) => terms
                .iter()
                .filter(|it| matches!(it.port, PortRange::Name(_)) == is_named)
                .any(|it| self.has_port(it)),
        };
        let (by_number, by_name) = (ports(false), ports(true));
        if !by_number && !by_name {
            return false;
        }
        // What a block leads to is no pod, so it has no names for its ports.
        let by_block = by_number || self.connection.direction == Direction::Ingress;
        match &rule.peers {
            Among::Any => true,
            Among::OneOf(peers) => peers.iter().any(|peer| match peer {
                Peer::Block(block) => by_block && block.contains(self.peer_address),
                Peer::Pods { .. } => self
                    .peer
                    .is_some_and(|pod| peer.selects(self.snapshot, policy, pod)),
            }),
        }
    }

    fn has_port(&self, term: &PortTerm) -> bool {
        let port = self.connection.destination.port;
        if self.connection.protocol.of_ports() != Some(term.protocol) {
            return false;
        }
        match &term.port {
            PortRange::All => true,
            PortRange::Numbers(numbers) => numbers.contains(&port),
            PortRange::Name(name) => self.connection.destination_pod().is_some_and(|pod| {
                pod.ports
                    .iter()
                    .any(|it| it.port == port && it.protocol == term.protocol && it.name == *name)
            }),
        }
    }
}

impl Peer {
    /// Whether a pod is one of those that a policy's rule means; a block means none.
    fn selects(&self, snapshot: &Snapshot, policy: &NetworkPolicy, pod: &Pod) -> bool {
        self.pods_of(snapshot, policy, &pod.key.namespace)
            .is_some_and(|pods| pods.matches(&pod.labels))
    }

    /// The pods of a namespace that a policy's rule means; none if it means no namespace, or not this one.
    pub(super) fn pods_of(
        &self,
        snapshot: &Snapshot,
        policy: &NetworkPolicy,
        namespace: &str,
    ) -> Option<&Selector> {
        let Self::Pods { namespaces, pods } = self else {
            return None;
        };
        let is_meant = match namespaces {
            Namespaces::Own => *namespace == *policy.key.namespace,
            Namespaces::Matching(selector) => is_namespace_selected(snapshot, namespace, selector),
        };
        is_meant.then_some(pods)
    }
}

/// Of a namespace that was not told, only the name is known: no other requirement holds, not even that a label is absent.
fn is_namespace_selected(snapshot: &Snapshot, name: &str, selector: &Selector) -> bool {
    let told = snapshot.namespace(name);
    selector.requirements.iter().all(|it| {
        if it.key == NAMESPACE_NAME {
            it.holds(Some(name))
        } else {
            told.is_some_and(|told| it.holds(told.labels.get(&it.key).map(String::as_str)))
        }
    })
}

impl IpBlock {
    /// Whether an address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|it| it.contains(&address))
    }
}
