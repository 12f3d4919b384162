//! From one world to the next.

use std::sync::Arc;

use imbl::OrdMap;
use mesh_common::cni::Attachment;

use tracing::warn;

use super::derive::key_of;
use super::{
    Attached, Change, EndpointSlice, Event, Key, Namespace, Node, Object, PeerAuthentication, Pod,
    Reference, Service, Snapshot, Workload, WorkloadId, WorkloadKey,
};
use crate::policy::{AuthorizationPolicy, Caveat, NetworkPolicy, PolicyKind, PolicyRef};

impl Snapshot {
    /// Takes an event in and tells what it touched; an event that tells nothing new touches nothing.
    ///
    /// Work is in proportion to what can differ: one pod for a pod, the pods of a namespace for its labels or its
    /// policies, all pods for a policy of the mesh.
    pub fn apply(&mut self, event: Event) -> Change {
        let mut change = Change::default();
        match event {
            Event::Upsert(object) => self.upsert(object, &mut change),
            Event::Delete(reference) => self.delete(&reference, &mut change),
            Event::Attached(it) => {
                self.set_attachment(&it.attachment.clone(), Some(it), &mut change);
            }
            Event::Detached(it) => self.set_attachment(&it, None, &mut change),
            Event::LeftOut { part, reason } => {
                if set(&mut self.left_out, &part, reason).is_some() {
                    change.left_out.insert(part);
                }
            }
            Event::Synced => {
                change.synced = !self.synced;
                self.synced = true;
            }
        }
        if !change.is_empty() {
            self.revision += 1;
        }
        change
    }

    fn upsert(&mut self, object: Object, change: &mut Change) {
        match object {
            Object::Namespace(it) => self.set_namespace(&it.name.clone(), Some(it), change),
            Object::Node(it) => self.set_node(&it.name.clone(), Some(it), change),
            Object::PeerAuthentication(it) => {
                self.set_peer_authentication(&it.key.clone(), Some(it), change);
            }
            Object::NetworkPolicy(it) => {
                self.set_network_policy(&it.key.clone(), Some(it), change);
            }
            Object::AuthorizationPolicy(it) => {
                self.set_authorization_policy(&it.key.clone(), Some(it), change);
            }
            Object::Service(it) => self.set_service(&it.key.clone(), Some(it), change),
            Object::EndpointSlice(it) => self.set_slice(&it.key.clone(), Some(it), change),
            Object::Pod(it) => self.set_pod(&it.key.clone(), Some(it), change),
        }
    }

    fn delete(&mut self, reference: &Reference, change: &mut Change) {
        match reference {
            Reference::Namespace(name) => self.set_namespace(name, None, change),
            Reference::Node(name) => self.set_node(name, None, change),
            Reference::PeerAuthentication(key) => self.set_peer_authentication(key, None, change),
            Reference::NetworkPolicy(key) => self.set_network_policy(key, None, change),
            Reference::AuthorizationPolicy(key) => self.set_authorization_policy(key, None, change),
            Reference::Service(key) => self.set_service(key, None, change),
            Reference::EndpointSlice(key) => self.set_slice(key, None, change),
            Reference::Pod(key) => self.set_pod(key, None, change),
        }
    }

    fn set_namespace(&mut self, name: &Arc<str>, new: Option<Arc<Namespace>>, change: &mut Change) {
        if set(&mut self.namespaces, name, new).is_some() {
            change.namespaces.insert(name.clone());
            self.refresh_pods(Some(name), change);
        }
    }

    fn set_node(&mut self, name: &Arc<str>, new: Option<Arc<Node>>, change: &mut Change) {
        if set(&mut self.nodes, name, new).is_some() {
            change.nodes.insert(name.clone());
        }
    }

    fn set_peer_authentication(
        &mut self,
        key: &Key,
        new: Option<Arc<PeerAuthentication>>,
        change: &mut Change,
    ) {
        let Some(replaced) = set(&mut self.peer_authentications, key, new) else {
            return;
        };
        if let Some(it) = &replaced.new {
            warn_of(PolicyKind::PeerAuthentication, key, &it.caveats);
        }
        let of_mesh = key.namespace == self.settings.root_namespace
            && replaced.both().any(|it| it.selector.is_empty());
        self.refresh_pods((!of_mesh).then_some(&key.namespace), change);
    }

    fn set_network_policy(
        &mut self,
        key: &Key,
        new: Option<Arc<NetworkPolicy>>,
        change: &mut Change,
    ) {
        if let Some(Replaced { old, new }) = set(&mut self.network_policies, key, new) {
            self.network_policies_by_label
                .replace(old.as_ref(), new.as_ref());
            let caveats = new.as_ref().map_or(&[][..], |it| &it.caveats);
            touch(PolicyKind::NetworkPolicy, key, caveats, change);
        }
    }

    fn set_authorization_policy(
        &mut self,
        key: &Key,
        new: Option<Arc<AuthorizationPolicy>>,
        change: &mut Change,
    ) {
        if let Some(Replaced { old, new }) = set(&mut self.authorization_policies, key, new) {
            self.authorization_policies_by_label
                .replace(old.as_ref(), new.as_ref());
            let caveats = new.as_ref().map_or(&[][..], |it| &it.caveats);
            touch(PolicyKind::AuthorizationPolicy, key, caveats, change);
        }
    }

    fn set_service(&mut self, key: &Key, new: Option<Arc<Service>>, change: &mut Change) {
        if let Some(Replaced { old, new }) = set(&mut self.services, key, new) {
            let touched = &mut change.service_addresses;
            self.by_service_addr
                .replace(old.as_ref(), new.as_ref(), touched);
            change.services.insert(key.clone());
        }
    }

    fn set_slice(&mut self, key: &Key, new: Option<Arc<EndpointSlice>>, change: &mut Change) {
        let Some(Replaced { old, new }) = set(&mut self.slices, key, new) else {
            return;
        };
        if let Some(old) = old {
            self.slices_of.remove(&(old.service.clone(), key.clone()));
            change.services.insert(old.service.clone());
        }
        if let Some(new) = new {
            change.services.insert(new.service.clone());
            self.slices_of
                .insert((new.service.clone(), key.clone()), new);
        }
    }

    fn set_pod(&mut self, key: &Key, new: Option<Arc<Pod>>, change: &mut Change) {
        if set(&mut self.pods, key, new).is_none() {
            return;
        }
        // The pod may take over interfaces that stood alone, or leave them alone.
        let attached = self.attachments_for(key);
        let attached: Vec<_> = attached.map(|it| it.attachment.clone()).collect();
        for attachment in attached {
            self.refresh(WorkloadKey::Attachment(attachment), change);
        }
        self.refresh(WorkloadKey::Pod(key.clone()), change);
    }

    fn set_attachment(&mut self, of: &Attachment, new: Option<Attached>, change: &mut Change) {
        let Some(replaced) = set(&mut self.attachments, of, new.map(Arc::new)) else {
            return;
        };
        let pods: Vec<_> = replaced
            .both()
            .map(|it| it.pod.as_ref().map(key_of))
            .collect();
        for pod in pods.iter().flatten() {
            self.attachments_of.remove(&(pod.clone(), of.clone()));
        }
        if let Some(pod) = replaced.new.as_ref().and_then(|it| it.pod.as_ref()) {
            self.attachments_of.insert((key_of(pod), of.clone()));
        }
        self.refresh(WorkloadKey::Attachment(of.clone()), change);
        for pod in pods.into_iter().flatten() {
            self.refresh(WorkloadKey::Pod(pod), change);
        }
    }

    /// Derives the pods of a namespace again, or all.
    fn refresh_pods(&mut self, namespace: Option<&Arc<str>>, change: &mut Change) {
        let keys: Vec<_> = match namespace {
            Some(namespace) => {
                let pods = self.pods.range(Key::first_in(namespace)..);
                let pods = pods.take_while(|(key, _)| key.namespace == *namespace);
                pods.map(|(key, _)| key.clone()).collect()
            }
            None => self.pods.keys().cloned().collect(),
        };
        for key in keys {
            self.refresh(WorkloadKey::Pod(key), change);
        }
    }

    /// Derives one workload again and brings the indexes in line.
    fn refresh(&mut self, key: WorkloadKey, change: &mut Change) {
        let old = self.workloads.get(&key).cloned();
        let id = old.as_ref().map_or(WorkloadId(0), |it| it.id);
        let mut new = self.derive(&key, id);
        if new.as_ref() == old.as_deref() {
            return;
        }
        if let Some(new) = &mut new
            && !old.as_ref().is_some_and(|old| is_same_life(old, new))
        {
            new.id = self.unused_id();
        }
        let new = new.map(Arc::new);
        if let Some(old) = &old {
            self.by_id.remove(&old.id);
            if let Some(node) = &old.node {
                self.on_node.remove(&(node.clone(), key.clone()));
            }
        }
        let touched = &mut change.addresses;
        self.by_addr.replace(old.as_ref(), new.as_ref(), touched);
        match new {
            Some(new) => {
                self.by_id.insert(new.id, key.clone());
                if let Some(node) = &new.node {
                    self.on_node.insert((node.clone(), key.clone()));
                }
                self.workloads.insert(key.clone(), new);
            }
            None => {
                self.workloads.remove(&key);
            }
        }
        change.workloads.insert(key);
    }

    /// The number that was not in use for the longest time.
    fn unused_id(&mut self) -> WorkloadId {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            let id = WorkloadId(self.last_id);
            if id.0 != 0 && !self.by_id.contains_key(&id) {
                return id;
            }
        }
    }
}

/// Notes that a policy has changed, and tells if it is not in force as it was written.
fn touch(kind: PolicyKind, key: &Key, caveats: &[Caveat], change: &mut Change) {
    warn_of(kind, key, caveats);
    let key = key.clone();
    change.policies.insert(PolicyRef { kind, key });
}

fn warn_of(kind: PolicyKind, key: &Key, caveats: &[Caveat]) {
    if let [first, others @ ..] = caveats {
        let others = others.len();
        warn!(?kind, %key, %first, others, "policy is not in force as it was written");
    }
}

/// What a map entry was and what it is now; they differ.
struct Replaced<T: ?Sized> {
    old: Option<Arc<T>>,
    new: Option<Arc<T>>,
}

impl<T: ?Sized> Replaced<T> {
    fn both(&self) -> impl Iterator<Item = &Arc<T>> {
        [&self.old, &self.new].into_iter().flatten()
    }
}

/// Sets or removes an entry; none when that changes nothing.
fn set<K: Ord + Clone, T: PartialEq + ?Sized>(
    map: &mut OrdMap<K, Arc<T>>,
    key: &K,
    new: Option<Arc<T>>,
) -> Option<Replaced<T>> {
    if map.get(key) == new.as_ref() {
        return None;
    }
    let old = match &new {
        Some(new) => map.insert(key.clone(), new.clone()),
        None => map.remove(key),
    };
    Some(Replaced { old, new })
}

/// Whether both are the same pod, not two that had the same name one after the other.
fn is_same_life(old: &Workload, new: &Workload) -> bool {
    let uid = |it: &Workload| it.pod.as_ref().map(|pod| pod.uid.clone());
    uid(old) == uid(new)
}
