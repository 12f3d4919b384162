//! Who is meant by an end of a question.

use std::net::IpAddr;

use super::{End, Party, Problem};
use crate::model::{Key, Pod, Service, Snapshot, Workload, WorkloadKey};

/// An end with its address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Someone<'a> {
    /// The address.
    pub(super) address: IpAddr,
    /// Whose it is; none for nodes, for pods in their network, and for what is not of the cluster.
    pub(super) workload: Option<&'a Workload>,
    /// The node it is on.
    pub(super) node: Option<&'a str>,
}

impl<'a> Someone<'a> {
    /// Whoever has an address.
    pub(super) fn at(snapshot: &'a Snapshot, address: IpAddr) -> Self {
        let workload = snapshot.workload_by_addr(address).map(|it| &**it);
        let node = if let Some(workload) = workload {
            workload.node.as_deref()
        } else {
            let mut nodes = snapshot.nodes();
            let node = nodes.find(|it| it.addresses.contains(&address));
            node.map(|it| &*it.name)
        };
        Self {
            address,
            workload,
            node,
        }
    }

    pub(super) fn is_enrolled(&self) -> bool {
        self.workload.is_some_and(|it| it.enrolled)
    }

    /// Whether it is a node itself, or a pod in its network.
    pub(super) fn is_node(&self) -> bool {
        self.workload.is_none() && self.node.is_some()
    }

    pub(super) fn is_on_node_of(&self, other: &Self) -> bool {
        self.node.is_some() && self.node == other.node
    }

    pub(super) fn is_here(&self, snapshot: &Snapshot) -> bool {
        self.node == Some(&*snapshot.settings().node)
    }

    pub(super) fn told(&self, snapshot: &Snapshot) -> Party {
        let name = match (self.workload, self.node) {
            (Some(workload), _) => Some(workload.key.to_string()),
            (None, Some(node)) => Some(format!("node {node}")),
            (None, None) => None,
        };
        let identity = self.workload.and_then(|it| it.identity.as_ref());
        Party {
            address: self.address,
            name,
            node: self.node.map(str::to_owned),
            here: self.is_here(snapshot),
            enrolled: self.is_enrolled(),
            identity: identity.map(ToString::to_string),
        }
    }
}

/// The pod of a name.
pub(super) fn pod<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    name: &str,
) -> Result<&'a Pod, Problem> {
    let key = Key::new(namespace, name);
    snapshot
        .pod(&key)
        .map(|it| &**it)
        .ok_or_else(|| Problem::UnknownPod {
            pod: key,
            node: snapshot.settings().node.to_string(),
        })
}

/// The service of a name.
pub(super) fn service<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    name: &str,
) -> Result<&'a Service, Problem> {
    let key = Key::new(namespace, name);
    snapshot
        .service(&key)
        .map(|it| &**it)
        .ok_or_else(|| Problem::UnknownService {
            service: key,
            node: snapshot.settings().node.to_string(),
        })
}

/// The addresses of an end that is no service, at least one.
pub(super) fn addresses(snapshot: &Snapshot, end: &End) -> Result<Vec<IpAddr>, Problem> {
    let pod = match end {
        End::Address(address) => return Ok(vec![address.to_canonical()]),
        End::Service { namespace, name } => {
            return Err(Problem::NotAPod(Key::new(
                namespace.as_str(),
                name.as_str(),
            )));
        }
        End::Pod { namespace, name } => pod(snapshot, namespace, name)?,
    };
    let key = WorkloadKey::Pod(pod.key.clone());
    let workload = snapshot.workload(&key);
    let addresses = if pod.host_network && !pod.terminated {
        pod.addresses.clone()
    } else {
        workload.map_or_else(Vec::new, |it| it.addresses.clone())
    };
    if addresses.is_empty() {
        return Err(Problem::NoAddress(pod.key.clone()));
    }
    Ok(addresses)
}
