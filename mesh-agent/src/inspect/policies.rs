//! What policies are in force.

use std::collections::HashMap;

use super::party::{self, Someone};
use super::walk::direction_name;
use super::{
    End, Found, InForce, LeftOut, Listed, NotAsWritten, PolicyName, PolicyReport, Problem,
};
use crate::model::{Key, MtlsMode, PeerAuthentication, Snapshot, Workload};
use crate::policy::{
    Action, AuthorizationPolicy, Direction, Layer, NetworkPolicy, PolicyKind, PolicyRef,
};

/// Tells what is in force for a pod, or which policies there are, and what of them is not in force as it was written.
///
/// # Errors
/// The pod is not known, or no policy can be about what was asked for.
pub fn policies(snapshot: &Snapshot, of: Option<&End>) -> Result<PolicyReport, Problem> {
    if !snapshot.is_synced() {
        let node = snapshot.settings().node.to_string();
        return Err(Problem::NotSynced(node));
    }
    let census = Census::of(snapshot);
    let found = match of {
        None => Found::All(census.all(snapshot)),
        Some(end) => {
            let address = party::addresses(snapshot, end)?[0];
            let pod = Someone::at(snapshot, address);
            Found::Pod {
                pod: pod.told(snapshot),
                layers: pod
                    .workload
                    .map_or_else(Vec::new, |it| census.layers(snapshot, it)),
            }
        }
    };
    let is_told = |policy: &PolicyName| match &found {
        Found::All(_) => true,
        Found::Pod { layers, .. } => {
            let mut listed = layers.iter().flat_map(|it| &it.policies);
            listed.any(|it| it.policy == *policy)
        }
    };
    let caveats = snapshot.caveats().map(|(policy, caveat)| NotAsWritten {
        policy: PolicyName::from(&policy),
        field: caveat.field.clone(),
        problem: caveat.problem.clone(),
        effect: caveat.effect.to_string(),
    });
    let left_out = snapshot.left_out().map(|(part, reason)| LeftOut {
        part: part.to_owned(),
        reason: reason.to_owned(),
    });
    Ok(PolicyReport {
        node: snapshot.settings().node.to_string(),
        revision: snapshot.revision(),
        not_as_written: caveats.filter(|it| is_told(&it.policy)).collect(),
        left_out: left_out.collect(),
        found,
    })
}

/// The policies in force for a workload, of all kinds.
pub fn in_force(snapshot: &Snapshot, workload: &Workload) -> Vec<PolicyRef> {
    let network = snapshot.network_policies_for(workload);
    let mut policies: Vec<_> = network
        .map(|it| reference(PolicyKind::NetworkPolicy, &it.key))
        .collect();
    if workload.enrolled {
        let authorization = snapshot.authorization_policies_for(workload);
        policies
            .extend(authorization.map(|it| reference(PolicyKind::AuthorizationPolicy, &it.key)));
        let deciding = deciding(snapshot, workload).into_iter();
        policies.extend(deciding.map(|it| reference(PolicyKind::PeerAuthentication, &it.key)));
    }
    policies
}

/// For how many pods of this node each policy is in force.
struct Census(HashMap<PolicyRef, usize>);

impl Census {
    fn of(snapshot: &Snapshot) -> Self {
        let mut counts = HashMap::new();
        let node = &snapshot.settings().node;
        for workload in snapshot.workloads_on(node).filter(|it| it.is_local()) {
            for policy in in_force(snapshot, workload) {
                *counts.entry(policy).or_default() += 1;
            }
        }
        Self(counts)
    }

    fn all(&self, snapshot: &Snapshot) -> Vec<Listed> {
        let network = snapshot.network_policies().map(|it| self.network(it));
        let authentication = snapshot.peer_authentications();
        let authentication = authentication.map(|it| self.authentication(it));
        let authorization = snapshot.authorization_policies();
        let authorization = authorization.map(|it| self.authorization(it));
        network.chain(authentication).chain(authorization).collect()
    }

    fn layers(&self, snapshot: &Snapshot, workload: &Workload) -> Vec<InForce> {
        vec![
            self.isolation(snapshot, workload, Direction::Egress),
            self.isolation(snapshot, workload, Direction::Ingress),
            self.authentications(snapshot, workload),
            self.authorizations(snapshot, workload),
        ]
    }

    fn isolation(&self, snapshot: &Snapshot, workload: &Workload, direction: Direction) -> InForce {
        let policies: Vec<_> = snapshot
            .network_policies_for(workload)
            .filter(|it| it.rules(direction).is_some())
            .map(|it| self.network(it))
            .collect();
        let state = match (policies.len(), workload.pod.is_some()) {
            (0, _) => "not isolated, everything is allowed",
            (_, true) => "isolated, only what these policies allow passes",
            (_, false) => {
                "the pod is not known yet and these policies may be about it, nothing passes"
            }
        };
        layer_in_force(
            Layer::NetworkPolicy,
            direction,
            !policies.is_empty(),
            state,
            policies,
        )
    }

    fn authentications(&self, snapshot: &Snapshot, workload: &Workload) -> InForce {
        let layer = Layer::PeerAuthentication;
        if !workload.enrolled {
            return not_enrolled(layer);
        }
        let mode = |strict| if strict { "STRICT" } else { "PERMISSIVE" };
        let exceptions = workload.strict_ports.iter();
        let exceptions = exceptions.map(|(port, strict)| (*port, mode(*strict)));
        let state = with_ports(mode(workload.strict), exceptions);
        let deciding = deciding(snapshot, workload).into_iter();
        let policies = deciding.map(|it| self.authentication(it)).collect();
        let restricts = workload.strict || !workload.strict_ports.is_empty();
        layer_in_force(layer, Direction::Ingress, restricts, &state, policies)
    }

    fn authorizations(&self, snapshot: &Snapshot, workload: &Workload) -> InForce {
        let layer = Layer::AuthorizationPolicy;
        if !workload.enrolled {
            return not_enrolled(layer);
        }
        let (mut allows, mut denies, mut policies) = (false, false, Vec::new());
        for policy in snapshot.authorization_policies_for(workload) {
            allows |= policy.action == Action::Allow;
            denies |= policy.action == Action::Deny;
            policies.push(self.authorization(policy));
        }
        let state = match (allows, denies) {
            (false, false) => "everything is allowed",
            (false, true) => "everything is allowed but what these policies deny",
            (true, false) => "only what these policies allow passes",
            (true, true) => "only what these policies allow and none of them denies passes",
        };
        layer_in_force(layer, Direction::Ingress, allows || denies, state, policies)
    }

    fn network(&self, policy: &NetworkPolicy) -> Listed {
        let does = match (policy.ingress.is_some(), policy.egress.is_some()) {
            (true, true) => "isolates ingress and egress",
            (true, false) => "isolates ingress",
            (false, true) => "isolates egress",
            (false, false) => "nothing",
        };
        let kind = PolicyKind::NetworkPolicy;
        self.listed(kind, &policy.key, does, policy.caveats.len())
    }

    fn authentication(&self, policy: &PeerAuthentication) -> Listed {
        let mode = |mode| match mode {
            MtlsMode::Unset => "UNSET",
            MtlsMode::Permissive => "PERMISSIVE",
            MtlsMode::Strict => "STRICT",
        };
        let ports = policy.ports.iter().map(|(port, it)| (*port, mode(*it)));
        let does = with_ports(mode(policy.mode), ports);
        self.listed(
            PolicyKind::PeerAuthentication,
            &policy.key,
            &does,
            policy.caveats.len(),
        )
    }

    fn authorization(&self, policy: &AuthorizationPolicy) -> Listed {
        let does = match policy.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Nothing => "nothing",
        };
        let kind = PolicyKind::AuthorizationPolicy;
        self.listed(kind, &policy.key, does, policy.caveats.len())
    }

    fn listed(&self, kind: PolicyKind, key: &Key, does: &str, caveats: usize) -> Listed {
        let local_pods = self.0.get(&reference(kind, key)).copied();
        Listed {
            policy: PolicyName::new(kind, key),
            does: does.to_owned(),
            local_pods: local_pods.unwrap_or(0),
            not_as_written: caveats,
        }
    }
}

fn reference(kind: PolicyKind, key: &Key) -> PolicyRef {
    let key = key.clone();
    PolicyRef { kind, key }
}

/// The policies that decide what a pod takes, at all of its ports or at some.
fn deciding<'a>(snapshot: &'a Snapshot, workload: &Workload) -> Vec<&'a PeerAuthentication> {
    let Some(pod) = workload.pod.as_deref() else {
        return Vec::new();
    };
    let ports = workload.strict_ports.keys();
    let of_ports = ports.filter_map(|port| snapshot.peer_authentication_at(pod, *port));
    let all = snapshot.peer_authentication(pod).into_iter();
    let mut policies: Vec<&PeerAuthentication> = Vec::new();
    for policy in all.chain(of_ports) {
        if !policies.iter().any(|it| it.key == policy.key) {
            policies.push(policy);
        }
    }
    policies
}

/// A mode, and those of ports.
fn with_ports(mode: &str, ports: impl Iterator<Item = (u16, &'static str)>) -> String {
    let ports = ports.map(|(port, mode)| format!(", {mode} at port {port}"));
    mode.to_owned() + &ports.collect::<String>()
}

fn layer_in_force(
    layer: Layer,
    direction: Direction,
    restricts: bool,
    state: &str,
    mut policies: Vec<Listed>,
) -> InForce {
    policies.sort_by(|a, b| {
        let key = |it: &Listed| (it.policy.namespace.clone(), it.policy.name.clone());
        key(a).cmp(&key(b))
    });
    InForce {
        layer: format!("{layer:?}"),
        direction: direction_name(direction).to_owned(),
        restricts,
        state: state.to_owned(),
        policies,
    }
}

fn not_enrolled(layer: Layer) -> InForce {
    let state = "not asked, the pod is not enrolled";
    layer_in_force(layer, Direction::Ingress, false, state, Vec::new())
}
