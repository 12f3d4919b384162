//! What sources tell, and what came of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::cni::{Attachment, PodRef};

use super::{EndpointSlice, Key, Namespace, Node, PeerAuthentication, Pod, Service, WorkloadKey};
use crate::policy::{AuthorizationPolicy, NetworkPolicy, PolicyRef};

/// Something that happened in the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The object is new or has changed.
    Upsert(Object),
    /// The object is gone; also when it was never told.
    Delete(Reference),
    /// An interface of a pod of this node is wired.
    Attached(Attached),
    /// An interface of a pod of this node is gone.
    Detached(Attachment),
    /// A part of the source, such as a file, cannot be used, or can be again.
    LeftOut {
        /// Which part.
        part: Arc<str>,
        /// What is wrong with it; none when nothing is any more.
        reason: Option<Arc<str>>,
    },
    /// The source has told all it knew when it started.
    Synced,
}

/// A wired interface of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Container and interface.
    pub attachment: Attachment,
    /// The pod it was made for, where the runtime named one.
    pub pod: Option<PodRef>,
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
}

/// An object of any kind that the agent knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A node.
    Node(Arc<Node>),
    /// A peer authentication policy.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// A network policy.
    NetworkPolicy(Arc<NetworkPolicy>),
    /// An authorization policy.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// A service.
    Service(Arc<Service>),
    /// Some endpoints of a service.
    EndpointSlice(Arc<EndpointSlice>),
    /// A pod.
    Pod(Arc<Pod>),
}

impl Object {
    /// Kind and name.
    pub fn reference(&self) -> Reference {
        match self {
            Self::Namespace(it) => Reference::Namespace(it.name.clone()),
            Self::Node(it) => Reference::Node(it.name.clone()),
            Self::PeerAuthentication(it) => Reference::PeerAuthentication(it.key.clone()),
            Self::NetworkPolicy(it) => Reference::NetworkPolicy(it.key.clone()),
            Self::AuthorizationPolicy(it) => Reference::AuthorizationPolicy(it.key.clone()),
            Self::Service(it) => Reference::Service(it.key.clone()),
            Self::EndpointSlice(it) => Reference::EndpointSlice(it.key.clone()),
            Self::Pod(it) => Reference::Pod(it.key.clone()),
        }
    }
}

/// Kind and name of an [`Object`].
///
/// The order of kinds is the order to tell a world in: what decides about pods comes before the pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A namespace.
    Namespace(Arc<str>),
    /// A node.
    Node(Arc<str>),
    /// A peer authentication policy.
    PeerAuthentication(Key),
    /// A network policy.
    NetworkPolicy(Key),
    /// An authorization policy.
    AuthorizationPolicy(Key),
    /// A service.
    Service(Key),
    /// Some endpoints of a service.
    EndpointSlice(Key),
    /// A pod.
    Pod(Key),
}

/// What an event touched: where look-ups may answer differently than before.
///
/// Names of what is gone are among them, so whoever mirrors a snapshot looks each one up again and removes what is no
/// longer found. Changes add up with [`Change::merge`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Namespaces that came, went or changed.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Nodes that came, went or changed.
    pub nodes: BTreeSet<Arc<str>>,
    /// Network and authorization policies that came, went or changed.
    ///
    /// A peer authentication policy is not among them: it shows in the workloads it is about.
    pub policies: BTreeSet<PolicyRef>,
    /// Workloads that came, went or changed in any field.
    pub workloads: BTreeSet<WorkloadKey>,
    /// Addresses at which another workload, a changed one or none is found now.
    pub addresses: BTreeSet<IpAddr>,
    /// Services that came, went or changed, also in their endpoints.
    pub services: BTreeSet<Key>,
    /// Addresses at which another service, a changed one or none is found now.
    pub service_addresses: BTreeSet<IpAddr>,
    /// Parts of the source that cannot be used, or can be again.
    pub left_out: BTreeSet<Arc<str>>,
    /// Whether the source has just told all it knew when it started.
    pub synced: bool,
}

impl Change {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether verdicts may differ: services and the parts of a source have no say in them.
    pub fn bears_on_policy(&self) -> bool {
        !(self.policies.is_empty()
            && self.namespaces.is_empty()
            && self.nodes.is_empty()
            && self.workloads.is_empty()
            && self.addresses.is_empty())
    }

    /// Adds what another event touched.
    pub fn merge(&mut self, other: Self) {
        self.namespaces.extend(other.namespaces);
        self.nodes.extend(other.nodes);
        self.policies.extend(other.policies);
        self.workloads.extend(other.workloads);
        self.addresses.extend(other.addresses);
        self.services.extend(other.services);
        self.service_addresses.extend(other.service_addresses);
        self.left_out.extend(other.left_out);
        self.synced |= other.synced;
    }
}
