//! Workloads, all or some.

use std::sync::Arc;

use super::{Workload, Workloads};
use crate::inspect::{End, Problem};
use crate::model::{self, Key, Snapshot, WorkloadKey};

/// Lists the workloads that are named, or all.
///
/// # Errors
/// One that is named is not known.
pub fn workloads(snapshot: &Snapshot, named: &[End]) -> Result<Workloads, Problem> {
    if !snapshot.is_synced() {
        let node = snapshot.settings().node.to_string();
        return Err(Problem::NotSynced(node));
    }
    let found: Vec<_> = if named.is_empty() {
        snapshot.workloads().collect()
    } else {
        let found = named.iter().map(|end| find(snapshot, end));
        found.collect::<Result<_, _>>()?
    };
    Ok(Workloads {
        node: snapshot.settings().node.to_string(),
        workloads: found.into_iter().map(|it| told(snapshot, it)).collect(),
    })
}

fn find<'a>(snapshot: &'a Snapshot, end: &End) -> Result<&'a Arc<model::Workload>, Problem> {
    let node = || snapshot.settings().node.to_string();
    match end {
        End::Pod { namespace, name } => {
            let pod = Key::new(namespace.as_str(), name.as_str());
            let found = snapshot.workload(&WorkloadKey::Pod(pod.clone()));
            found.ok_or_else(|| Problem::UnknownPod { pod, node: node() })
        }
        End::Service { namespace, name } => Err(Problem::NotAPod(Key::new(
            namespace.as_str(),
            name.as_str(),
        ))),
        End::Address(address) => {
            let (address, node) = (*address, node());
            let found = snapshot.workload_by_addr(address);
            found.ok_or(Problem::UnknownAddress { address, node })
        }
    }
}

fn told(snapshot: &Snapshot, it: &model::Workload) -> Workload {
    let (namespace, name) = match &it.key {
        WorkloadKey::Pod(key) => (key.namespace.to_string(), key.name.to_string()),
        WorkloadKey::Attachment(_) => (String::new(), it.key.to_string()),
    };
    let not_enrolled = match &it.pod {
        Some(pod) => snapshot.not_enrolled(pod).map(|why| why.to_string()),
        None => Some("pod not known".to_owned()),
    };
    Workload {
        namespace,
        name,
        addresses: it.addresses.clone(),
        node: it.node.as_deref().map(str::to_owned),
        protocol: protocol(it).to_owned(),
        identity: it.identity.as_ref().map(ToString::to_string),
        wired: it.is_local(),
        strict: it.enrolled && it.strict,
        not_enrolled,
    }
}

/// How the mesh speaks to it.
pub(super) fn protocol(it: &model::Workload) -> &'static str {
    if it.enrolled { "HBONE" } else { "TCP" }
}
