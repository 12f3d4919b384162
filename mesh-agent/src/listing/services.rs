//! Services.

use std::collections::BTreeMap;

use super::{Service, Services};
use crate::inspect::Problem;
use crate::model::{self, Backend, Readiness, Snapshot};

/// Lists all services.
///
/// # Errors
/// The source has not told them yet.
pub fn services(snapshot: &Snapshot) -> Result<Services, Problem> {
    if !snapshot.is_synced() {
        let node = snapshot.settings().node.to_string();
        return Err(Problem::NotSynced(node));
    }
    Ok(Services {
        node: snapshot.settings().node.to_string(),
        services: snapshot.services().map(|it| told(snapshot, it)).collect(),
    })
}

fn told(snapshot: &Snapshot, it: &model::Service) -> Service {
    let mut endpoints = BTreeMap::new();
    for backend in it
        .ports
        .iter()
        .flat_map(|port| snapshot.endpoints(it, port))
    {
        *endpoints.entry(whose(&backend)).or_insert(false) |= backend.readiness == Readiness::Ready;
    }
    let ports = it.ports.iter().map(|port| {
        let protocol = format!("{:?}", port.protocol).to_uppercase();
        format!("{}/{protocol}", port.port)
    });
    Service {
        namespace: it.key.namespace.to_string(),
        name: it.key.name.to_string(),
        hostname: hostname(snapshot, it),
        addresses: it.addresses.clone(),
        ports: ports.collect(),
        ready: endpoints.values().filter(|is_ready| **is_ready).count(),
        endpoints: endpoints.len(),
    }
}

/// The pod behind an endpoint, or its address.
pub(super) fn whose(backend: &Backend<'_>) -> String {
    match backend.pod {
        Some(pod) => pod.to_string(),
        None => backend.address.ip().to_string(),
    }
}

/// The name that DNS has for a service.
pub(super) fn hostname(snapshot: &Snapshot, it: &model::Service) -> String {
    let domain = &snapshot.settings().cluster_domain;
    format!("{}.{}.svc.{domain}", it.key.name, it.key.namespace)
}
