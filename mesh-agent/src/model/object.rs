//! What a source tells: the parts of cluster objects that the agent decides by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Key;
use crate::policy::Caveat;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its internal and external addresses, in the order told.
    pub addresses: Vec<IpAddr>,
    /// The ranges its pods get their addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// The zone it stands in (label `topology.kubernetes.io/zone`).
    pub zone: Option<Arc<str>>,
    /// The region it stands in (label `topology.kubernetes.io/region`).
    pub region: Option<Arc<str>>,
}

/// A pod, as its object tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`; empty when the source gives none, which matches any.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 when the source gives none.
    pub created: i64,
    /// Its labels.
    pub labels: Labels,
    /// What made it, such as its Deployment; none if nothing did.
    pub owner: Option<Arc<str>>,
    /// Its service account, `default` when it names none.
    pub service_account: Arc<str>,
    /// The node it is bound to.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Whether it lives in its node's network namespace.
    pub host_network: bool,
    /// Whether a sidecar was injected (annotation `sidecar.istio.io/status`).
    pub sidecar: bool,
    /// Whether its condition `Ready` is true.
    pub ready: bool,
    /// Whether it has come to its end (phase `Succeeded` or `Failed`) and will not run again.
    pub terminated: bool,
    /// Ports that its containers name.
    pub ports: Vec<ContainerPort>,
    /// Ports that the kubelet connects to for probes and lifecycle hooks.
    pub probe_ports: BTreeSet<u16>,
}

impl Pod {
    /// What people call it: by what made it, otherwise by its own name.
    pub fn workload_name(&self) -> &str {
        self.owner.as_deref().unwrap_or(&self.key.name)
    }
}

/// A port that a container names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// Its cluster addresses; none when headless or `ExternalName`.
    ///
    /// External and load-balancer addresses are not among them: those are kube-proxy's.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Whether `clusterIP` is `None`.
    pub headless: bool,
    /// Whether endpoints count as ready whatever they say.
    pub publish_not_ready: bool,
    /// Whether connections from within the cluster go to endpoints of the client's node only (`internalTrafficPolicy: Local`).
    pub internal_local: bool,
    /// Whether all connections of a client go to the same endpoint (`sessionAffinity: ClientIP`).
    pub client_affinity: bool,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty for the only port.
    pub name: String,
    /// The port at the service's addresses.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the endpoints.
    pub target: TargetPort,
}

/// The port of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number at each endpoint.
    Number(u16),
    /// The container port of this name, which may differ from pod to pod.
    Name(String),
}

/// Some of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: Key,
    /// The service, in the same namespace (label `kubernetes.io/service-name`).
    pub service: Key,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Ports of every endpoint of the slice; empty in slices that leave them to the service.
    pub ports: Vec<EndpointPort>,
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Interchangeable addresses of the endpoint.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it answers, also while terminating.
    pub serving: bool,
    /// Whether it is being shut down.
    pub terminating: bool,
    /// The pod behind it.
    pub pod: Option<Key>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Who is to prefer it.
    pub hints: Hints,
}

/// Who is to prefer an endpoint, as the control plane has computed it from the service's wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Clients in these zones.
    pub zones: Vec<Arc<str>>,
    /// Clients on these nodes.
    pub nodes: Vec<Arc<str>>,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the service's port it belongs to, empty for the only port.
    pub name: String,
    /// The port at the endpoint.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What pods of a namespace, or of the mesh, accept: Istio's `PeerAuthentication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.creationTimestamp` in seconds since 1970: of several that apply, the oldest wins.
    pub created: i64,
    /// Labels of the pods it is about; empty means all of its namespace, or of the mesh in the root namespace.
    pub selector: Labels,
    /// What is accepted.
    pub mode: MtlsMode,
    /// What is accepted at ports that have a mode of their own.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// What of it is not in force as it was written.
    pub caveats: Vec<Caveat>,
}

/// What a pod accepts from its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// As the next wider policy says.
    Unset,
    /// The mesh and plaintext; also what `DISABLE` means here.
    Permissive,
    /// Only the mesh.
    Strict,
}
