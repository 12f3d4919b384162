//! What follows from what was told: enrolment, strictness, identity, addresses.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::cni::{Attachment, PodRef};

use super::{
    Attached, Identity, Key, Labels, MtlsMode, PeerAuthentication, Pod, Snapshot, Workload,
    WorkloadId, WorkloadKey,
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
        Workload {
            id,
            key: WorkloadKey::Pod(pod.key.clone()),
            attachments: attached.iter().map(|it| it.attachment.clone()).collect(),
            node,
            addresses: addresses(pod, &attached),
            enrolled: self.is_enrolled(pod),
            strict: self.is_strict(pod),
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
            identity: None,
        })
    }

    fn is_enrolled(&self, pod: &Pod) -> bool {
        let namespace = &pod.key.namespace;
        if pod.host_network
            || pod.sidecar
            || pod.terminated
            || self.settings.excluded_namespaces.contains(namespace)
        {
            return false;
        }
        let ambient =
            |labels: &Labels| labels.get(DATAPLANE_MODE).is_some_and(|it| it == "ambient");
        match pod.labels.get(DATAPLANE_MODE).map(String::as_str) {
            Some("ambient") => true,
            Some("none") => false,
            _ => self
                .namespaces
                .get(namespace)
                .is_some_and(|it| ambient(&it.labels)),
        }
    }

    /// The narrowest policy that says something decides: selector, namespace, mesh; of several the oldest.
    fn is_strict(&self, pod: &Pod) -> bool {
        let mut decided: [Option<&PeerAuthentication>; 3] = [None; 3];
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
            if selects && decided[scope].is_none_or(|best| age(policy) < age(best)) {
                decided[scope] = Some(policy);
            }
        }
        let modes = decided.iter().flatten().map(|it| it.mode);
        modes
            .into_iter()
            .find(|mode| *mode != MtlsMode::Unset)
            .is_some_and(|mode| mode == MtlsMode::Strict)
    }

    fn policies_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &PeerAuthentication> {
        self.peer_authentications
            .range(Key::first_in(namespace)..)
            .take_while(move |(key, _)| key.namespace == *namespace)
            .map(|(_, policy)| &**policy)
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
