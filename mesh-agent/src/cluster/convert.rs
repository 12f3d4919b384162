//! Objects as they are written -> objects the agent decides by.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub use super::authorization_policy::authorization_policy;
use super::field::{ADDRESS, CIDR, Invalid, key, name, parse_all, port, protocol};
pub use super::network_policy::network_policy;
pub use super::peer_authentication::peer_authentication;
pub use super::pod::pod;
use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, Hints, Key, Namespace, Node, Service, ServicePort,
    TargetPort,
};

/// Converts a namespace.
///
/// # Errors
/// It has no name.
pub fn namespace(it: core::Namespace) -> Result<Namespace, Invalid> {
    Ok(Namespace {
        name: name(&it.metadata)?,
        labels: it.metadata.labels.unwrap_or_default(),
    })
}

/// Converts a node.
///
/// # Errors
/// It has no name, or an address or pod CIDR that is none.
pub fn node(it: core::Node) -> Result<Node, Invalid> {
    let spec = it.spec.unwrap_or_default();
    let cidrs = spec.pod_cidrs.unwrap_or_default();
    let cidrs = if cidrs.is_empty() {
        parse_all("spec.podCIDR", spec.pod_cidr.iter(), CIDR)?
    } else {
        parse_all("spec.podCIDRs", cidrs.iter(), CIDR)?
    };
    let labels = it.metadata.labels.as_ref();
    let label = |name| labels?.get(name).map(|it| it.as_str().into());
    let (zone, region) = (label(ZONE), label(REGION));
    let addresses = it.status.and_then(|it| it.addresses).unwrap_or_default();
    let addresses = addresses
        .iter()
        .filter(|it| matches!(&*it.type_, "InternalIP" | "ExternalIP"))
        .map(|it| &it.address);
    Ok(Node {
        name: name(&it.metadata)?,
        addresses: parse_all("status.addresses", addresses, ADDRESS)?,
        pod_cidrs: cidrs,
        zone,
        region,
    })
}

/// The label of a node that tells its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The label of a node that tells its region.
const REGION: &str = "topology.kubernetes.io/region";

/// Converts a service.
///
/// # Errors
/// It has no name, or an address or port that is none.
pub fn service(it: core::Service) -> Result<Service, Invalid> {
    let key = key(&it.metadata)?;
    let spec = it.spec.unwrap_or_default();
    let mut addresses = spec.cluster_ips.unwrap_or_default();
    if addresses.is_empty() {
        addresses.extend(spec.cluster_ip);
    }
    let headless = addresses.iter().any(|it| it == "None");
    let is_external = spec.type_.as_deref() == Some("ExternalName");
    addresses.retain(|it| !headless && !is_external && !it.is_empty());
    let ports = spec.ports.unwrap_or_default();
    let ports = ports.iter().enumerate().map(|(i, it)| service_port(i, it));
    Ok(Service {
        key,
        addresses: parse_all("spec.clusterIPs", addresses.iter(), ADDRESS)?,
        ports: ports.collect::<Result<_, _>>()?,
        headless,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        client_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
    })
}

fn service_port(index: usize, it: &core::ServicePort) -> Result<ServicePort, Invalid> {
    let field = |name: &str| format!("spec.ports[{index}].{name}");
    let number = port(|| field("port"), it.port)?;
    let target = match &it.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(it)) => TargetPort::Number(port(|| field("targetPort"), *it)?),
        Some(IntOrString::String(it)) => TargetPort::Name(it.clone()),
    };
    Ok(ServicePort {
        name: it.name.clone().unwrap_or_default(),
        port: number,
        protocol: protocol(|| field("protocol"), it.protocol.as_deref())?,
        target,
    })
}

/// Converts an endpoint slice; none when it belongs to no service or holds host names.
///
/// # Errors
/// It has no name, or an address or port that is none.
pub fn endpoint_slice(it: discovery::EndpointSlice) -> Result<Option<EndpointSlice>, Invalid> {
    let key = key(&it.metadata)?;
    let labels = it.metadata.labels.unwrap_or_default();
    let Some(service) = labels.get("kubernetes.io/service-name") else {
        return Ok(None);
    };
    if it.address_type == "FQDN" {
        return Ok(None);
    }
    let mut ports = Vec::new();
    for (i, it) in it.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("ports[{i}].{name}");
        // A port without a number stands for all of them; no endpoint of a service has one.
        let Some(number) = it.port else { continue };
        ports.push(EndpointPort {
            name: it.name.clone().unwrap_or_default(),
            port: port(|| field("port"), number)?,
            protocol: protocol(|| field("protocol"), it.protocol.as_deref())?,
        });
    }
    let endpoints = it.endpoints.into_iter().enumerate();
    let endpoints = endpoints.map(|(i, it)| endpoint(i, it, &key.namespace));
    Ok(Some(EndpointSlice {
        service: Key::new(key.namespace.clone(), service.as_str()),
        endpoints: endpoints.collect::<Result<_, _>>()?,
        ports,
        key,
    }))
}

/// Conditions that are not told default as the API defines: ready, serving as ready, not terminating.
fn endpoint(
    index: usize,
    it: discovery::Endpoint,
    namespace: &Arc<str>,
) -> Result<Endpoint, Invalid> {
    let field = format!("endpoints[{index}].addresses");
    let conditions = it.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let pod = it.target_ref.filter(|it| it.kind.as_deref() == Some("Pod"));
    Ok(Endpoint {
        addresses: parse_all(&field, it.addresses.iter(), ADDRESS)?,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        pod: pod.and_then(|it| {
            let namespace = it.namespace.map_or_else(|| namespace.clone(), Into::into);
            Some(Key::new(namespace, it.name?))
        }),
        node: it.node_name.map(Into::into),
        hints: hints(it.hints.unwrap_or_default()),
    })
}

fn hints(it: discovery::EndpointHints) -> Hints {
    let zones = it.for_zones.into_iter().flatten();
    let nodes = it.for_nodes.into_iter().flatten();
    Hints {
        zones: zones.map(|it| it.name.into()).collect(),
        nodes: nodes.map(|it| it.name.into()).collect(),
    }
}
