//! The world at one moment.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};
use mesh_common::cni::Attachment;

use super::claims::Claims;
use super::policies::Policies;
use super::{
    Attached, Endpoint, EndpointSlice, Hints, Key, Namespace, Node, PeerAuthentication, Pod,
    Service, ServicePort, TargetPort, Workload, WorkloadId, WorkloadKey,
};
use crate::policy::{AuthorizationPolicy, NetworkPolicy};

/// What does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name of this node.
    pub node: Arc<str>,
    /// The trust domain of every identity.
    pub trust_domain: String,
    /// The domain behind `<service>.<namespace>.svc.`.
    pub cluster_domain: String,
    /// The namespace whose policies are the mesh's.
    pub root_namespace: Arc<str>,
    /// Namespaces whose pods are never enrolled.
    pub excluded_namespaces: BTreeSet<Arc<str>>,
}

impl Settings {
    /// The defaults of Istio for a node: `cluster.local`, `istio-system`, and `kube-system` left out.
    pub fn for_node(node: impl Into<Arc<str>>) -> Self {
        Self {
            node: node.into(),
            trust_domain: "cluster.local".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".into(),
            excluded_namespaces: BTreeSet::from(["kube-system".into()]),
        }
    }
}

/// The world at one moment: what was told and what follows from it.
///
/// A clone costs a few reference counts and never changes. One owner applies events ([`Snapshot::apply`]) and
/// publishes clones. Invariant: two snapshots that hold the same objects and attachments, however they came to, differ at
/// most in [`Snapshot::revision`] and in workload ids.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) settings: Arc<Settings>,
    pub(super) revision: u64,
    pub(super) synced: bool,
    pub(super) last_id: u32,

    // What was told.
    pub(super) left_out: OrdMap<Arc<str>, Arc<str>>,
    pub(super) namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    pub(super) nodes: OrdMap<Arc<str>, Arc<Node>>,
    pub(super) pods: OrdMap<Key, Arc<Pod>>,
    pub(super) services: OrdMap<Key, Arc<Service>>,
    pub(super) slices: OrdMap<Key, Arc<EndpointSlice>>,
    pub(super) peer_authentications: OrdMap<Key, Arc<PeerAuthentication>>,
    pub(super) network_policies: OrdMap<Key, Arc<NetworkPolicy>>,
    pub(super) authorization_policies: OrdMap<Key, Arc<AuthorizationPolicy>>,
    pub(super) attachments: OrdMap<Attachment, Arc<Attached>>,

    // What follows: indexes of the above, and workloads.
    pub(super) network_policies_by_label: Policies<NetworkPolicy>,
    pub(super) authorization_policies_by_label: Policies<AuthorizationPolicy>,
    pub(super) slices_of: OrdMap<(Key, Key), Arc<EndpointSlice>>,
    pub(super) attachments_of: OrdSet<(Key, Attachment)>,
    pub(super) workloads: OrdMap<WorkloadKey, Arc<Workload>>,
    pub(super) on_node: OrdSet<(Arc<str>, WorkloadKey)>,
    pub(super) by_id: HashMap<WorkloadId, WorkloadKey>,
    pub(super) by_addr: Claims<Workload>,
    pub(super) by_service_addr: Claims<Service>,
}

/// An endpoint of a service for one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pod behind it.
    pub pod: Option<&'a Key>,
    /// The node it runs on.
    pub node: Option<&'a str>,
    /// Who is to prefer it.
    pub hints: &'a Hints,
    /// Whether it takes connections.
    pub readiness: Readiness,
}

/// Whether an endpoint takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It is shutting down and still answers: good enough when nothing is ready.
    Terminating,
    /// It does not.
    NotReady,
}

impl Snapshot {
    /// A world in which nothing was told yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            revision: 0,
            synced: false,
            last_id: 0,
            left_out: OrdMap::new(),
            namespaces: OrdMap::new(),
            nodes: OrdMap::new(),
            pods: OrdMap::new(),
            services: OrdMap::new(),
            slices: OrdMap::new(),
            peer_authentications: OrdMap::new(),
            network_policies: OrdMap::new(),
            authorization_policies: OrdMap::new(),
            attachments: OrdMap::new(),
            network_policies_by_label: Policies::new(),
            authorization_policies_by_label: Policies::new(),
            slices_of: OrdMap::new(),
            attachments_of: OrdSet::new(),
            workloads: OrdMap::new(),
            on_node: OrdSet::new(),
            by_id: HashMap::new(),
            by_addr: Claims::new(),
            by_service_addr: Claims::new(),
        }
    }

    /// What does not change while the agent runs.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Number of events so far that changed anything.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the source has told all it knew when it started.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Parts of the source that cannot be used, and what is wrong with each.
    pub fn left_out(&self) -> impl Iterator<Item = (&str, &str)> {
        self.left_out
            .iter()
            .map(|(part, reason)| (&**part, &**reason))
    }

    /// The workload that packets to or from an address belong to.
    ///
    /// Pods in the host's network are never found, terminated pods no longer. Of several claimants the one wired here
    /// wins, then the newest pod.
    pub fn workload_by_addr(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_addr.winner(address)
    }

    /// The service whose cluster address this is.
    pub fn service_by_addr(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.by_service_addr.winner(address)
    }

    /// Every workload address and what is found there, in no order.
    pub fn workload_addresses(&self) -> impl Iterator<Item = (IpAddr, &Arc<Workload>)> {
        self.by_addr.iter()
    }

    /// Every service address and what is found there, in no order.
    pub fn service_addresses(&self) -> impl Iterator<Item = (IpAddr, &Arc<Service>)> {
        self.by_service_addr.iter()
    }

    /// The workload of a key.
    pub fn workload(&self, key: &WorkloadKey) -> Option<&Arc<Workload>> {
        self.workloads.get(key)
    }

    /// The workload with a number from a kernel map.
    pub fn workload_by_id(&self, id: WorkloadId) -> Option<&Arc<Workload>> {
        self.workload(self.by_id.get(&id)?)
    }

    /// The workload that an interface of this node belongs to.
    pub fn workload_by_attachment(&self, attachment: &Attachment) -> Option<&Arc<Workload>> {
        let key = self.owner_of(self.attachments.get(attachment)?);
        self.workload(&key)
    }

    /// Every workload, pods first, in the order of their names.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The workloads of a node, those in the host's network and terminated ones too.
    pub fn workloads_on(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let node: Arc<str> = node.into();
        self.on_node
            .range((node.clone(), WorkloadKey::first())..)
            .take_while(move |(name, _)| *name == node)
            .filter_map(|(_, key)| self.workload(key))
    }

    /// The pod of a name, as it was told.
    pub fn pod(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.pods.get(key)
    }

    /// The namespace of a name.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// The node of a name.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// Every node, in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The service of a name.
    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Every service, in the order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The interface of this node, as it was told.
    pub fn attachment(&self, attachment: &Attachment) -> Option<&Arc<Attached>> {
        self.attachments.get(attachment)
    }

    /// Every endpoint address of a service, of both families and whatever its readiness, that serves one of its ports.
    pub fn endpoints<'a>(
        &'a self,
        service: &'a Service,
        port: &'a ServicePort,
    ) -> impl Iterator<Item = Backend<'a>> {
        self.slices_of
            .range((service.key.clone(), Key::first())..)
            .take_while(|((of, _), _)| *of == service.key)
            .flat_map(move |(_, slice)| slice.endpoints.iter().map(move |it| (slice, it)))
            .flat_map(move |(slice, endpoint)| self.backends(service, port, slice, endpoint))
    }

    /// The number of a service's port at one of its pods; none when the pod does not have it.
    pub fn target_port(&self, port: &ServicePort, pod: Option<&Key>) -> Option<u16> {
        let name = match &port.target {
            TargetPort::Number(number) => return Some(*number),
            TargetPort::Name(name) => name,
        };
        let ports = &self.pods.get(pod?)?.ports;
        ports
            .iter()
            .find(|it| it.name == *name && it.protocol == port.protocol)
            .map(|it| it.port)
    }

    fn backends<'a>(
        &'a self,
        service: &Service,
        port: &ServicePort,
        slice: &'a EndpointSlice,
        endpoint: &'a Endpoint,
    ) -> impl Iterator<Item = Backend<'a>> {
        let number = if slice.ports.is_empty() {
            self.target_port(port, endpoint.pod.as_ref())
        } else {
            slice
                .ports
                .iter()
                .find(|it| it.name == port.name && it.protocol == port.protocol)
                .map(|it| it.port)
        };
        let readiness = if endpoint.ready || service.publish_not_ready {
            Readiness::Ready
        } else if endpoint.serving && endpoint.terminating {
            Readiness::Terminating
        } else {
            Readiness::NotReady
        };
        number.into_iter().flat_map(move |number| {
            endpoint.addresses.iter().map(move |address| Backend {
                address: SocketAddr::new(*address, number),
                pod: endpoint.pod.as_ref(),
                node: endpoint.node.as_deref(),
                hints: &endpoint.hints,
                readiness,
            })
        })
    }
}
