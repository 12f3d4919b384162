//! What follows from what was told: enrolment, strictness, identity, addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::cni::{Attachment, PodRef};

use super::{
    Attached, Identity, Key, Labels, MtlsMode, NotEnrolled, PeerAuthentication, Pod, Snapshot,
    Workload, WorkloadId, WorkloadKey,
};

/// Label of namespaces and pods that decides about enrolment.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

impl Snapshot {
    /// The workload of a key as it follows from what was told, with the number given.
    pub(super) fn derive(&self, key: &WorkloadKey, id: WorkloadId) -> Option<Workload> {
        match key {
            WorkloadKey::Pod(name) => Some(self.derive_pod(self.pods.get(name)?, id)),
            WorkloadKey::Attachment(it) => self.derive_attachment(self.attachments.get(it)?, id),
        }
    }

    /// The key of the workload that an interface of this node belongs to.
    pub(super) fn owner_of(&self, attached: &Attached) -> WorkloadKey {
        let named = attached.pod.as_ref();
        match named.and_then(|of| Some((of, self.pods.get(&key_of(of))?))) {
            Some((of, pod)) if is_same_pod(of, pod) => WorkloadKey::Pod(pod.key.clone()),
            _ => WorkloadKey::Attachment(attached.attachment.clone()),
        }
    }

    /// The interfaces of this node that were made for a pod of this name, of whatever uid.
    pub(super) fn attachments_for(&self, pod: &Key) -> impl Iterator<Item = &Arc<Attached>> {
        let first = Attachment {
            container: String::new(),
            ifname: String::new(),
        };
        self.attachments_of
            .range((pod.clone(), first)..)
            .take_while(move |(of, _)| of == pod)
            .filter_map(|(_, attachment)| self.attachments.get(attachment))
    }

    fn derive_pod(&self, pod: &Arc<Pod>, id: WorkloadId) -> Workload {
        let attached: Vec<_> = self
            .attachments_for(&pod.key)
            .filter(|it| it.pod.as_ref().is_some_and(|of| is_same_pod(of, pod)))
            .collect();
        let node = if attached.is_empty() {
            pod.node.clone()
        } else {
            Some(self.settings.node.clone())
        };
        let modes = self.modes_for(pod);
        let strict = modes.is_strict(None);
        Workload {
            id,
            key: WorkloadKey::Pod(pod.key.clone()),
            attachments: attached.iter().map(|it| it.attachment.clone()).collect(),
            node,
            addresses: addresses(pod, &attached),
            enrolled: self.not_enrolled(pod).is_none(),
            strict,
            strict_ports: modes.exceptions(strict),
            identity: Some(Identity::new(
                &self.settings.trust_domain,
                &pod.key.namespace,
                &pod.service_account,
            )),
            pod: Some(pod.clone()),
        }
    }

    fn derive_attachment(&self, attached: &Attached, id: WorkloadId) -> Option<Workload> {
        let key = WorkloadKey::Attachment(attached.attachment.clone());
        (self.owner_of(attached) == key).then(|| Workload {
            id,
            key,
            pod: None,
            attachments: vec![attached.attachment.clone()],
            node: Some(self.settings.node.clone()),
            addresses: attached.addresses.clone(),
            enrolled: false,
            strict: false,
            strict_ports: BTreeMap::new(),
            identity: None,
        })
    }

    /// Why a pod is not part of the mesh, if it is not.
    pub fn not_enrolled(&self, pod: &Pod) -> Option<NotEnrolled> {
        let namespace = &pod.key.namespace;
        if pod.host_network {
            return Some(NotEnrolled::HostNetwork);
        }
        if pod.sidecar {
            return Some(NotEnrolled::Sidecar);
        }
        if pod.terminated {
            return Some(NotEnrolled::Terminated);
        }
        if self.settings.excluded_namespaces.contains(namespace) {
            return Some(NotEnrolled::ExcludedNamespace);
        }
        let ambient =
            |labels: &Labels| labels.get(DATAPLANE_MODE).is_some_and(|it| it == "ambient");
        match pod.labels.get(DATAPLANE_MODE).map(String::as_str) {
            Some("ambient") => None,
            Some("none") => Some(NotEnrolled::OptedOut),
            _ => match self.namespaces.get(namespace) {
                Some(it) if ambient(&it.labels) => None,
                Some(_) => Some(NotEnrolled::NotLabelled),
                None => Some(NotEnrolled::UnknownNamespace),
            },
        }
    }

    /// The policy that decides what a pod takes at a port; none when nothing is said, and plaintext is taken.
    pub fn peer_authentication_at(&self, pod: &Pod, port: u16) -> Option<&PeerAuthentication> {
        self.modes_for(pod).decide(Some(port)).map(|(it, _)| it)
    }

    /// The policy that decides what a pod takes at ports of no mode of their own; none when nothing is said.
    pub fn peer_authentication(&self, pod: &Pod) -> Option<&PeerAuthentication> {
        self.modes_for(pod).decide(None).map(|(it, _)| it)
    }

    fn modes_for(&self, pod: &Pod) -> Modes<'_> {
        let mut modes = Modes([None; 3]);
        let mesh = self.policies_in(&self.settings.root_namespace);
        let mesh = mesh.filter(|it| it.selector.is_empty()).map(|it| (2, it));
        let own = self.policies_in(&pod.key.namespace);
        let own = own.map(|it| (usize::from(it.selector.is_empty()), it));
        for (scope, policy) in own.chain(mesh) {
            let age = |it: &PeerAuthentication| (it.created, it.key.clone());
            let selects = policy
                .selector
                .iter()
                .all(|(k, v)| pod.labels.get(k) == Some(v));
            if selects && modes.0[scope].is_none_or(|best| age(policy) < age(best)) {
                modes.0[scope] = Some(policy);
            }
        }
        modes
    }

    fn policies_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &PeerAuthentication> {
        self.peer_authentications
            .range(Key::first_in(namespace)..)
            .take_while(move |(key, _)| key.namespace == *namespace)
            .map(|(_, policy)| &**policy)
    }
}

/// The policies that may decide what a pod takes, narrowest first: by selector, of its namespace, of the mesh; of several
/// the oldest.
struct Modes<'a>([Option<&'a PeerAuthentication>; 3]);

impl<'a> Modes<'a> {
    /// The narrowest policy that says something about the port, or about all, and what it says.
    fn decide(&self, port: Option<u16>) -> Option<(&'a PeerAuthentication, MtlsMode)> {
        self.0.iter().flatten().find_map(|policy| {
            let of_port = port.and_then(|it| policy.ports.get(&it));
            let modes = of_port.into_iter().chain([&policy.mode]).copied();
            let mode = modes.into_iter().find(|it| *it != MtlsMode::Unset);
            Some((*policy, mode?))
        })
    }

    fn is_strict(&self, port: Option<u16>) -> bool {
        self.decide(port)
            .is_some_and(|(_, mode)| mode == MtlsMode::Strict)
    }

    /// The ports at which it is otherwise than `strict`.
    fn exceptions(&self, strict: bool) -> BTreeMap<u16, bool> {
        let policies = self.0.iter().flatten();
        let ports: BTreeSet<_> = policies.flat_map(|it| it.ports.keys()).copied().collect();
        let strictness = ports.into_iter().map(|it| (it, self.is_strict(Some(it))));
        strictness.filter(|(_, it)| *it != strict).collect()
    }
}

/// Where a pod can be found: what was wired here, otherwise what its object tells.
fn addresses(pod: &Pod, attached: &[&Arc<Attached>]) -> Vec<IpAddr> {
    if pod.host_network || pod.terminated {
        Vec::new()
    } else if attached.is_empty() {
        pod.addresses.clone()
    } else {
        attached
            .iter()
            .flat_map(|it| &it.addresses)
            .copied()
            .collect()
    }
}

/// The key a runtime names a pod by.
pub(super) fn key_of(pod: &PodRef) -> Key {
    Key::new(pod.namespace.as_str(), pod.name.as_str())
}

/// Whether the runtime meant this very pod, not an earlier or later one of its name.
fn is_same_pod(named: &PodRef, pod: &Pod) -> bool {
    match &named.uid {
        Some(uid) if !pod.uid.is_empty() => **uid == *pod.uid,
        _ => true,
    }
}
