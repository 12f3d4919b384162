//! The cluster's objects as files: what a lab writes into the directory that the agents watch.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The label that enrols a namespace or a pod.
pub const MODE: &str = "istio.io/dataplane-mode";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A directory of objects, one a file.
#[derive(Debug)]
pub struct Objects {
    directory: PathBuf,
    present: Mutex<BTreeMap<String, Value>>,
    /// Every kind that ever was present.
    kinds: Mutex<BTreeSet<String>>,
}

impl Objects {
    /// An empty directory.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            present: Mutex::default(),
            kinds: Mutex::default(),
        })
    }

    /// Writes an object, whole at once: readers never see half of it.
    pub fn apply(&self, object: Value) -> Result<()> {
        let file = file_name(&object)?;
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        self.kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(kind);
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = self.directory.join(format!(".{file}"));
        fs::write(&temporary, serde_yaml_ng::to_string(&object)?)?;
        fs::rename(&temporary, self.directory.join(&file))?;
        present.insert(file, object);
        Ok(())
    }

    /// Changes an object that is there.
    pub fn edit(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<()> {
        let mut object = self
            .get(kind, namespace, name)
            .with_context(|| format!("no {kind} {namespace}/{name}"))?;
        change(&mut object);
        self.apply(object)
    }

    /// An object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.get(&file(kind, namespace, name)).cloned()
    }

    /// Whether there is or was an object of a kind.
    pub fn was_there(&self, kind: &str) -> bool {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.contains(kind)
    }

    /// Every object of a kind.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        present
            .values()
            .filter(|object| object["kind"] == kind)
            .cloned()
            .collect()
    }

    /// Removes an object; fine when there is none.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let file = file(kind, namespace, name);
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = fs::remove_file(self.directory.join(&file));
        present.remove(&file);
    }
}

fn file(kind: &str, namespace: &str, name: &str) -> String {
    let kind = kind.to_lowercase();
    if namespace.is_empty() {
        format!("{kind}-{name}.yaml")
    } else {
        format!("{kind}-{namespace}-{name}.yaml")
    }
}

fn file_name(object: &Value) -> Result<String> {
    let kind = object["kind"].as_str().context("an object without kind")?;
    let metadata = &object["metadata"];
    let name = metadata["name"]
        .as_str()
        .context("an object without name")?;
    Ok(file(
        kind,
        metadata["namespace"].as_str().unwrap_or_default(),
        name,
    ))
}

/// A Namespace.
pub fn namespace(name: &str, labels: &Labels) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": labels },
    })
}

/// A Node.
pub fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[String]) -> Value {
    let addresses: Vec<_> = addresses
        .iter()
        .map(|address| json!({ "type": "InternalIP", "address": address }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name },
        "spec": { "podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs },
        "status": { "addresses": addresses },
    })
}

/// A `ServiceAccount`.
pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "namespace": namespace, "name": name },
    })
}

/// A Pod that is bound to a node and not wired yet.
pub fn pod(
    namespace: &str,
    name: &str,
    service_account: &str,
    node: &str,
    labels: &Labels,
) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("uid-{namespace}-{name}"), "labels": labels,
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": service_account,
            "containers": [{ "name": "app", "image": "none" }],
        },
        "status": { "phase": "Pending" },
    })
}

/// Has the kubelet probe a Pod at a port.
pub fn set_probe(pod: &mut Value, port: u16) {
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": port } });
}

/// Marks a Pod as running and ready at its addresses.
pub fn set_ready(pod: &mut Value, addresses: &[IpAddr]) {
    let ips: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    pod["status"] = json!({
        "phase": "Running",
        "podIP": addresses.first(),
        "podIPs": ips,
        "conditions": [{ "type": "Ready", "status": "True" }],
    });
}

/// A Service with one TCP port.
pub fn service(
    namespace: &str,
    name: &str,
    selector: &Labels,
    ips: &[IpAddr],
    port: u16,
    target: u16,
) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "selector": selector,
            "clusterIP": ips.first(),
            "clusterIPs": ips,
            "ipFamilies": ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect::<Vec<_>>(),
            "ports": [{ "name": "tcp", "port": port, "targetPort": target, "protocol": "TCP" }],
        },
    })
}

/// The `EndpointSlice`s of a Service, one a family, from the Pods that it selects and that are ready.
pub fn endpoint_slices(service: &Value, pods: &[Value]) -> Vec<Value> {
    let (namespace, name) = (
        &service["metadata"]["namespace"],
        &service["metadata"]["name"],
    );
    let selected = |pod: &&Value| {
        let selector = service["spec"]["selector"].as_object();
        pod["metadata"]["namespace"] == *namespace
            && pod["status"]["phase"] == "Running"
            && selector
                .into_iter()
                .flatten()
                .all(|(key, value)| pod["metadata"]["labels"][key] == *value)
    };
    let selected: Vec<_> = pods.iter().filter(selected).collect();
    let port = &service["spec"]["ports"][0];
    [("IPv4", 0), ("IPv6", 1)]
        .into_iter()
        .map(|(family, index)| {
            let endpoints: Vec<_> = selected.iter().map(|pod| endpoint(pod, index)).collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": namespace,
                    "name": format!("{}-{}", name.as_str().unwrap_or_default(), family.to_lowercase()),
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": family,
                "endpoints": endpoints,
                "ports": [{ "name": port["name"], "port": port["targetPort"], "protocol": "TCP" }],
            })
        })
        .collect()
}

fn endpoint(pod: &Value, family: usize) -> Value {
    json!({
        "addresses": [pod["status"]["podIPs"][family]["ip"]],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    })
}

/// The kinds of policies.
pub const POLICIES: [&str; 3] = ["NetworkPolicy", "AuthorizationPolicy", "PeerAuthentication"];

/// A policy of one of [`POLICIES`].
pub fn policy(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    let version = if kind == "NetworkPolicy" {
        "networking.k8s.io/v1"
    } else {
        "security.istio.io/v1"
    };
    json!({
        "apiVersion": version, "kind": kind,
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}
