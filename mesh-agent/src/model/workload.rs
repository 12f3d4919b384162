//! Pods as the mesh sees them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::cni::Attachment;

use super::{Identity, Key, Pod};

/// Number of a workload in kernel maps, unique on this node while the workload lives; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId(pub u32);

/// What a workload is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadKey {
    /// A pod that the source has told.
    Pod(Key),
    /// An interface of this node whose pod is not known, or that has none.
    Attachment(Attachment),
}

impl WorkloadKey {
    /// The least key there is, for ranges.
    pub(super) fn first() -> Self {
        Self::Pod(Key::first())
    }
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Attachment(it) => write!(f, "{} of container {}", it.ifname, it.container),
        }
    }
}

/// A pod as the mesh sees it, or an interface of this node without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its number in kernel maps.
    pub id: WorkloadId,
    /// What it is known by.
    pub key: WorkloadKey,
    /// The pod's object; none for [`WorkloadKey::Attachment`].
    pub pod: Option<Arc<Pod>>,
    /// Its interfaces on this node, in order; empty for pods of other nodes.
    pub attachments: Vec<Attachment>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// The addresses it claims; which workload an address finds is told by the snapshot.
    pub addresses: Vec<IpAddr>,
    /// Whether it is part of the mesh.
    pub enrolled: bool,
    /// Whether it takes TCP only from the mesh at ports of no mode of their own; of no effect unless enrolled.
    pub strict: bool,
    /// The ports at which it is otherwise than [`Workload::strict`] tells, and how it is there.
    pub strict_ports: BTreeMap<u16, bool>,
    /// Whose certificate it carries; none without a pod.
    pub identity: Option<Identity>,
}

impl Workload {
    /// Whether it has an interface that this agent has wired.
    pub fn is_local(&self) -> bool {
        !self.attachments.is_empty()
    }

    /// Whether it takes TCP only from the mesh at a port; of no effect unless enrolled.
    pub fn is_strict_at(&self, port: u16) -> bool {
        self.strict_ports.get(&port).copied().unwrap_or(self.strict)
    }

    /// Namespace and name of its pod.
    pub fn pod_key(&self) -> Option<&Key> {
        self.pod.as_ref().map(|pod| &pod.key)
    }
}

/// Why a pod is not part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotEnrolled {
    /// It lives in its node's network namespace.
    HostNetwork,
    /// It has a sidecar, which is its own way into the mesh.
    Sidecar,
    /// It has come to its end.
    Terminated,
    /// Pods of its namespace never are.
    ExcludedNamespace,
    /// Its label says that it is not to be.
    OptedOut,
    /// Neither it nor its namespace has the label.
    NotLabelled,
    /// It has no label, and its namespace was not told.
    UnknownNamespace,
}

impl fmt::Display for NotEnrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => "host network",
            Self::Sidecar => "sidecar",
            Self::Terminated => "terminated",
            Self::ExcludedNamespace => "excluded namespace",
            Self::OptedOut => "opted out",
            Self::NotLabelled => "namespace not labelled",
            Self::UnknownNamespace => "namespace not known",
        })
    }
}
