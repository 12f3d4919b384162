//! Which policies may be about a pod, found without asking them all.

use std::collections::BTreeSet;
use std::iter;
use std::sync::Arc;

use imbl::OrdMap;

use super::{Key, Labels, PeerAuthentication, Snapshot, Workload};
use crate::policy::{AuthorizationPolicy, Caveat, NetworkPolicy, PolicyKind, PolicyRef, Selector};

/// Something that selects pods of its namespace.
pub(super) trait Selects {
    /// Namespace and name.
    fn key(&self) -> &Key;

    /// The pods it selects.
    fn selector(&self) -> &Selector;
}

impl Selects for NetworkPolicy {
    fn key(&self) -> &Key {
        &self.key
    }

    fn selector(&self) -> &Selector {
        &self.selector
    }
}

impl Selects for AuthorizationPolicy {
    fn key(&self) -> &Key {
        &self.key
    }

    fn selector(&self) -> &Selector {
        &self.selector
    }
}

/// Policies by namespace and by one label that they require: a pod is held only against those that require one of its
/// labels or none at all.
#[derive(Clone, Debug)]
pub(super) struct Policies<P>(OrdMap<(Place, Key), Arc<P>>);

/// Where a policy stands: its namespace, and the label it requires if it does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    namespace: Arc<str>,
    label: Option<(String, String)>,
}

impl Place {
    fn of(policy: &impl Selects) -> Self {
        let label = policy.selector().required_label();
        Self {
            namespace: policy.key().namespace.clone(),
            label: label.map(|(key, value)| (key.to_owned(), value.to_owned())),
        }
    }
}

impl<P: Selects> Policies<P> {
    pub(super) fn new() -> Self {
        Self(OrdMap::new())
    }

    /// Puts one state of a policy in the place of another.
    pub(super) fn replace(&mut self, old: Option<&Arc<P>>, new: Option<&Arc<P>>) {
        if let Some(old) = old {
            self.0.remove(&(Place::of(&**old), old.key().clone()));
        }
        if let Some(new) = new {
            let place = (Place::of(&**new), new.key().clone());
            self.0.insert(place, new.clone());
        }
    }

    /// The policies of a namespace that select what has these labels.
    pub(super) fn selecting<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<P>> {
        let pairs = labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()));
        let places = iter::once(None).chain(pairs.map(Some));
        places
            .flat_map(move |label| {
                let namespace = namespace.clone();
                let place = Place { namespace, label };
                let first = (place.clone(), Key::first());
                let from_there = self.0.range(first..);
                from_there.take_while(move |((it, _), _)| *it == place)
            })
            .map(|(_, policy)| policy)
            .filter(|it| it.selector().matches(labels))
    }

    /// Every policy of a namespace.
    pub(super) fn of_namespace<'a>(
        &'a self,
        namespace: &Arc<str>,
    ) -> impl Iterator<Item = &'a Arc<P>> + use<'a, P> {
        let namespace = namespace.clone();
        let first = Place {
            namespace: namespace.clone(),
            label: None,
        };
        self.0
            .range((first, Key::first())..)
            .take_while(move |((place, _), _)| place.namespace == namespace)
            .map(|(_, policy)| policy)
    }
}

impl Snapshot {
    /// The network policies that select a workload's pod.
    ///
    /// While the pod of an interface is not known these are all that could: those of the namespace that the runtime named.
    /// Pods in the host's network are never selected.
    pub fn network_policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<NetworkPolicy>> {
        let policies = &self.network_policies_by_label;
        let pod = workload.pod.as_ref().filter(|it| !it.host_network);
        let selecting = pod.map(|it| policies.selecting(&it.key.namespace, &it.labels));
        let named = workload
            .pod
            .is_none()
            .then(|| self.named_namespaces(workload));
        let possible = named.into_iter().flatten();
        let possible = possible.flat_map(|it| policies.of_namespace(&it));
        selecting.into_iter().flatten().chain(possible)
    }

    /// The authorization policies that select a workload's pod: of its namespace, and of the mesh.
    pub fn authorization_policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        let root = &self.settings.root_namespace;
        workload.pod.iter().flat_map(move |pod| {
            let own = &pod.key.namespace;
            let namespaces = iter::once(root).chain((own != root).then_some(own));
            let policies = &self.authorization_policies_by_label;
            namespaces.flat_map(|it| policies.selecting(it, &pod.labels))
        })
    }

    /// Every network policy, in the order of their names.
    pub fn network_policies(&self) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.network_policies.values()
    }

    /// Every authorization policy, in the order of their names.
    pub fn authorization_policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorization_policies.values()
    }

    /// Every peer authentication policy, in the order of their names.
    pub fn peer_authentications(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.peer_authentications.values()
    }

    /// The network policy of a name.
    pub fn network_policy(&self, key: &Key) -> Option<&Arc<NetworkPolicy>> {
        self.network_policies.get(key)
    }

    /// The authorization policy of a name.
    pub fn authorization_policy(&self, key: &Key) -> Option<&Arc<AuthorizationPolicy>> {
        self.authorization_policies.get(key)
    }

    /// Everything that is not in force as it was written, by policy.
    pub fn caveats(&self) -> impl Iterator<Item = (PolicyRef, &Caveat)> {
        let network = self.network_policies.values().map(|it| {
            let kind = PolicyKind::NetworkPolicy;
            (kind, &it.key, &it.caveats)
        });
        let authorization = self.authorization_policies.values().map(|it| {
            let kind = PolicyKind::AuthorizationPolicy;
            (kind, &it.key, &it.caveats)
        });
        let peer = self.peer_authentications.values().map(|it| {
            let kind = PolicyKind::PeerAuthentication;
            (kind, &it.key, &it.caveats)
        });
        network
            .chain(peer)
            .chain(authorization)
            .flat_map(|(kind, key, caveats)| {
                let policy = move || PolicyRef {
                    kind,
                    key: key.clone(),
                };
                caveats.iter().map(move |it| (policy(), it))
            })
    }

    /// The namespaces of the pods that a workload's interfaces were made for.
    fn named_namespaces(&self, workload: &Workload) -> BTreeSet<Arc<str>> {
        let attached = workload.attachments.iter();
        let attached = attached.filter_map(|it| self.attachments.get(it));
        let pods = attached.filter_map(|it| it.pod.as_ref());
        pods.map(|it| it.namespace.as_str().into()).collect()
    }
}
