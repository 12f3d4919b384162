//! Namespaces, pods and services of a lab before they are made. For pods the harness plays the kubelet: object, sandbox,
//! plugin, status.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cabling::Cabling;
use crate::cni::{Answer, Call};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::node::Node;
use crate::objects::{self, Labels, MODE};
use crate::pod::Pod;
use crate::wait::{SOON, eventually};
use crate::world::Family;

/// A pod to be made.
#[derive(Debug)]
pub struct PodBuilder<'lab> {
    lab: &'lab Lab,
    namespace: String,
    name: String,
    service_account: String,
    node: String,
    labels: Labels,
    probe: Option<u16>,
}

impl<'lab> PodBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            node: "n1".to_owned(),
            labels: Labels::from([("app".to_owned(), name.to_owned())]),
            probe: None,
        }
    }

    /// Its namespace; `default` unless told.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// Its service account; one of the pod's own name unless told.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Adds a label; `app`, with the pod's name, is there unless told otherwise.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Its node; `n1` unless told.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// The port at which the kubelet probes it; none unless told.
    #[must_use]
    pub fn probed(mut self, port: u16) -> Self {
        self.probe = Some(port);
        self
    }

    /// Makes the pod, and waits until every agent knows it.
    pub fn create(self) -> Result<Pod<'lab>> {
        Ok(self.create_and(|_, _| ())?.0)
    }

    /// As [`Self::create`], but with a process that acts as soon as the plugin has answered: given the pod's network
    /// namespace and addresses, IPv4 first.
    pub fn create_and<T>(
        self,
        first: impl FnOnce(&Netns, &[IpAddr]) -> T,
    ) -> Result<(Pod<'lab>, T)> {
        let Self {
            lab,
            namespace,
            name,
            ..
        } = &self;
        let node = lab.node(&self.node);
        if lab.objects().get("Namespace", "", namespace).is_none() {
            lab.objects()
                .apply(objects::namespace(namespace, &Labels::new()))?;
        }
        lab.objects()
            .apply(objects::service_account(namespace, &self.service_account))?;
        let mut object = objects::pod(
            namespace,
            name,
            &self.service_account,
            &self.node,
            &self.labels,
        );
        if let Some(port) = self.probe {
            objects::set_probe(&mut object, port);
        }
        lab.objects().apply(object)?;

        let sandbox = format!("mesh-{}-{namespace}-{name}", lab.name());
        let netns = Netns::create(&sandbox)?;
        let call = Call {
            container: sandbox,
            netns: netns.path().display().to_string(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=uid-{namespace}-{name}"
            ),
            config: Value::Null,
        };
        let added = add(node, &call).with_context(|| format!("pod {namespace}/{name}"))?;
        let addresses = addresses(&added)?;
        let cabling = Cabling::of_environment()?;
        cabling.pod(&netns, "eth0")?;
        let host = added["interfaces"][0]["name"].as_str();
        cabling.pod(node.netns(), host.context("a result without interfaces")?)?;
        let done = first(&netns, &addresses);
        lab.objects().edit("Pod", namespace, name, |pod| {
            objects::set_ready(pod, &addresses);
        })?;
        lab.settle()?;
        let Self {
            lab,
            namespace,
            name,
            ..
        } = self;
        let pod = Pod {
            lab,
            namespace,
            name,
            node,
            netns,
            addresses,
            call,
            added,
        };
        Ok((pod, done))
    }
}

/// Adds the pod to the network, trying again when the plugin says so, as a kubelet does.
fn add(node: &Node, call: &Call) -> Result<Value> {
    let mut last: Option<Answer> = None;
    let done = eventually("ADD", SOON, || {
        let answer = last.insert(node.cni().call(node.netns(), "ADD", call)?);
        Ok(answer.code() != Some(11))
    });
    let answer = last.context("mesh-cni was not called")?;
    answer.success()?;
    done?;
    Ok(answer.json)
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("a result without ips")?;
    let mut addresses = ips
        .iter()
        .map(|ip| {
            let cidr = ip["address"].as_str().context("an ip without address")?;
            Ok(cidr.split('/').next().unwrap_or(cidr).parse()?)
        })
        .collect::<Result<Vec<IpAddr>>>()?;
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

/// A namespace to be made.
#[derive(Debug)]
pub struct NamespaceBuilder<'lab> {
    lab: &'lab Lab,
    name: String,
    labels: Labels,
}

impl<'lab> NamespaceBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_owned(),
            labels: Labels::new(),
        }
    }

    /// Enrols its pods.
    #[must_use]
    pub fn ambient(mut self) -> Self {
        self.labels.insert(MODE.to_owned(), "ambient".to_owned());
        self
    }

    /// Makes it.
    pub fn create(self) -> Result<()> {
        self.lab
            .objects()
            .apply(objects::namespace(&self.name, &self.labels))
    }
}

/// A service to be made.
#[derive(Debug)]
pub struct ServiceBuilder<'lab> {
    lab: &'lab Lab,
    namespace: String,
    name: String,
    selector: Labels,
    ports: (u16, u16),
}

impl<'lab> ServiceBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            selector: Labels::from([("app".to_owned(), name.to_owned())]),
            ports: (80, 80),
        }
    }

    /// Its namespace; `default` unless told.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// The one label that it selects by; `app`, with its own name, unless told.
    #[must_use]
    pub fn selector(mut self, key: &str, value: &str) -> Self {
        self.selector = Labels::from([(key.to_owned(), value.to_owned())]);
        self
    }

    /// Its port, and that of the pods; 80 and 80 unless told.
    #[must_use]
    pub fn port(mut self, port: u16, target: u16) -> Self {
        self.ports = (port, target);
        self
    }

    /// Makes it, and waits until every agent knows it. Its endpoints follow the pods from now on.
    pub fn create(self) -> Result<Service> {
        let number = self.lab.objects().all("Service").len() + 10;
        let ips = [
            format!("10.96.0.{number}").parse()?,
            format!("fd00:96::{number:x}").parse()?,
        ];
        let (port, target) = self.ports;
        let object = objects::service(
            &self.namespace,
            &self.name,
            &self.selector,
            &ips,
            port,
            target,
        );
        self.lab.objects().apply(object)?;
        self.lab.settle()?;
        Ok(Service { ips, port })
    }
}

/// A service.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    ips: [IpAddr; 2],
    port: u16,
}

impl Service {
    /// Its address and port.
    pub fn at(&self, family: Family) -> SocketAddr {
        let [v4, v6] = self.ips;
        SocketAddr::new(if family == Family::V4 { v4 } else { v6 }, self.port)
    }
}
