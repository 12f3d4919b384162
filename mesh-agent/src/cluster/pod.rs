//! Pods as they are written -> pods the agent decides by.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{ADDRESS, Invalid, created, key, parse_all, port, protocol};
use crate::model::{ContainerPort, Pod};

/// Converts a pod.
///
/// # Errors
/// It has no name, or an address or port that is none.
pub fn pod(it: core::Pod) -> Result<Pod, Invalid> {
    let meta = it.metadata;
    let key = key(&meta)?;
    let spec = it.spec.unwrap_or_default();
    let status = it.status.unwrap_or_default();
    let mut addresses: Vec<_> = status
        .pod_ips
        .into_iter()
        .flatten()
        .map(|it| it.ip)
        .collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip);
    }
    let mut ports = Vec::new();
    let mut probe_ports = BTreeSet::new();
    for (list, containers) in [
        ("initContainers", spec.init_containers.unwrap_or_default()),
        ("containers", spec.containers),
    ] {
        for (i, container) in containers.iter().enumerate() {
            let field = format!("spec.{list}[{i}]");
            let own = container_ports(&field, container)?;
            add_probe_ports(&field, container, &own, &mut probe_ports)?;
            ports.extend(own);
        }
    }
    let conditions = status.conditions.unwrap_or_default();
    let account = spec.service_account_name.or(spec.service_account);
    Ok(Pod {
        owner: owner(&meta).map(Into::into),
        uid: meta.uid.unwrap_or_default().into(),
        created: created(meta.creation_timestamp.as_ref()),
        labels: meta.labels.unwrap_or_default(),
        service_account: account
            .filter(|it| !it.is_empty())
            .unwrap_or_else(|| "default".to_owned())
            .into(),
        node: spec.node_name.filter(|it| !it.is_empty()).map(Into::into),
        addresses: parse_all("status.podIPs", addresses.iter(), ADDRESS)?,
        host_network: spec.host_network.unwrap_or_default(),
        sidecar: meta
            .annotations
            .is_some_and(|it| it.contains_key("sidecar.istio.io/status")),
        ready: conditions
            .iter()
            .any(|it| it.type_ == "Ready" && it.status == "True"),
        terminated: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        ports,
        probe_ports,
        key,
    })
}

/// What people know a pod's maker by, as Istio tells it: a Deployment rather than its `ReplicaSet`, a `CronJob` rather than
/// one of its jobs.
fn owner(meta: &ObjectMeta) -> Option<&str> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|it| it.controller == Some(true))?;
    let label = |name| meta.labels.as_ref()?.get(name);
    let (name, made_by) = (&*owner.name, &*owner.kind);
    let shorter = match made_by {
        "ReplicaSet" => label("pod-template-hash").and_then(|hash| name.strip_suffix(&**hash)),
        // Of a CronJob's jobs the names end in minutes since 1970.
        "Job" => {
            let rest = name.trim_end_matches(|it: char| it.is_ascii_digit());
            Some(rest).filter(|it| (8..=10).contains(&(name.len() - it.len())))
        }
        _ => None,
    };
    let shorter = shorter.and_then(|it| it.strip_suffix('-'));
    Some(shorter.filter(|it| !it.is_empty()).unwrap_or(name))
}

fn container_ports(field: &str, it: &core::Container) -> Result<Vec<ContainerPort>, Invalid> {
    let named = it.ports.iter().flatten().enumerate();
    let named = named.filter_map(|(i, it)| Some((i, it, it.name.clone()?)));
    let ports = named.map(|(i, it, name)| {
        let field = |name: &str| format!("{field}.ports[{i}].{name}");
        Ok(ContainerPort {
            name,
            port: port(|| field("containerPort"), it.container_port)?,
            protocol: protocol(|| field("protocol"), it.protocol.as_deref())?,
        })
    });
    ports.collect()
}

/// Adds every port that the kubelet connects to at the pod's address.
///
/// A name that no port of the container has is left out: the kubelet cannot connect to it either.
fn add_probe_ports(
    field: &str,
    it: &core::Container,
    named: &[ContainerPort],
    ports: &mut BTreeSet<u16>,
) -> Result<(), Invalid> {
    for (handler, target) in kubelet_targets(it) {
        let number = match target {
            IntOrString::Int(it) => port(|| format!("{field}.{handler}.port"), it)?,
            IntOrString::String(text) => {
                let found = named.iter().find(|it| it.name == text).map(|it| it.port);
                match found.or_else(|| text.parse().ok()) {
                    Some(number) => number,
                    None => continue,
                }
            }
        };
        ports.insert(number);
    }
    Ok(())
}

/// The probes and hooks of a container that connect to the pod, and the ports they name.
fn kubelet_targets(it: &core::Container) -> Vec<(&'static str, IntOrString)> {
    let mut targets = Vec::new();
    let own = |host: &Option<String>| host.as_ref().is_none_or(String::is_empty);
    let mut add =
        |name, http: Option<&core::HTTPGetAction>, tcp: Option<&core::TCPSocketAction>| {
            let http = http.filter(|it| own(&it.host)).map(|it| &it.port);
            let tcp = tcp.filter(|it| own(&it.host)).map(|it| &it.port);
            targets.extend(http.into_iter().chain(tcp).map(|port| (name, port.clone())));
        };
    let hooks = it.lifecycle.as_ref();
    for (name, hook) in [
        (
            "lifecycle.postStart",
            hooks.and_then(|it| it.post_start.as_ref()),
        ),
        (
            "lifecycle.preStop",
            hooks.and_then(|it| it.pre_stop.as_ref()),
        ),
    ] {
        if let Some(hook) = hook {
            add(name, hook.http_get.as_ref(), hook.tcp_socket.as_ref());
        }
    }
    let probes = [
        ("startupProbe", &it.startup_probe),
        ("livenessProbe", &it.liveness_probe),
        ("readinessProbe", &it.readiness_probe),
    ];
    for (name, probe) in &probes {
        if let Some(probe) = probe {
            add(name, probe.http_get.as_ref(), probe.tcp_socket.as_ref());
        }
    }
    for (name, probe) in probes {
        let grpc = probe.as_ref().and_then(|it| it.grpc.as_ref());
        targets.extend(grpc.map(|it| (name, IntOrString::Int(it.port))));
    }
    targets
}
