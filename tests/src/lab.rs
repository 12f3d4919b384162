//! A cluster in network namespaces: nodes on one bridge, pods wired by the real plugin, real agents.
//!
//! Everything has the lab's name: namespaces `mesh-<lab>-*`, and `/run/mesh-lab/<lab>` with files, sockets, records of
//! processes and a BPF file system of its own. A lab is removed when it is dropped; what a killed run left is removed by
//! the next lab of that name, or by [`site::down`].

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, ensure};
use nix::fcntl::Flock;
use serde_json::{Value, json};

use crate::bpffs::Bpffs;
use crate::builders::{NamespaceBuilder, PodBuilder, ServiceBuilder};
use crate::capture::{Capture, Recording};
use crate::cni::Call;
use crate::netns::Netns;
use crate::node::Node;
use crate::objects::{self, MODE, Objects};
use crate::site;
use crate::wait::{SOON, eventually};
use crate::world::Family;

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    nodes: Vec<Node>,
    objects: Objects,
    /// How often the lab has settled.
    settled: AtomicU16,
    kept: bool,
    /// Held while the lab is ours; the kernel lets go of it when we die.
    _lock: Flock<File>,
}

/// Runs a scenario in a lab of two nodes; when it fails, the ends of the agents' logs are printed.
pub fn scenario(name: &str, test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    scenario_with(name, &[], test)
}

/// Runs a scenario in a lab of two nodes whose agents are given more flags.
pub fn scenario_with(
    name: &str,
    flags: &'static [&'static str],
    test: impl FnOnce(&Lab) -> Result<()>,
) -> Result<()> {
    let lab = Lab::with_flags(name, 2, flags)?;
    let result = test(&lab);
    if result.is_err() {
        lab.print_logs();
    }
    result
}

impl Lab {
    /// Makes a lab of two nodes and starts their agents. Its name is of letters, digits and underscores.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_nodes(name, 2)
    }

    /// Makes a lab of some nodes and starts their agents.
    pub fn with_nodes(name: &str, count: u8) -> Result<Self> {
        Self::with_flags(name, count, &[])
    }

    /// Makes a lab of some nodes and starts their agents with more flags.
    pub fn with_flags(name: &str, count: u8, flags: &'static [&'static str]) -> Result<Self> {
        let lab = Self::without_agents(name, count, flags)?;
        if let Err(error) = lab.nodes.iter().try_for_each(|node| node.agent().start()) {
            lab.print_logs();
            return Err(error);
        }
        Ok(lab)
    }

    /// Makes a lab of some nodes whose agents are given more flags, and are started by the test.
    pub fn without_agents(name: &str, count: u8, flags: &'static [&'static str]) -> Result<Self> {
        ensure!(
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
            "a lab's name is of letters, digits and underscores"
        );
        let binaries = site::binaries()?;
        let lock = site::lock_patiently(name)?;
        site::remove(name)?;
        let directory = site::directory(name);
        fs::create_dir_all(&directory)?;
        let mut lab = Self {
            name: name.to_owned(),
            nodes: Vec::new(),
            objects: Objects::create(&directory.join("source"))?,
            settled: AtomicU16::new(0),
            kept: false,
            _lock: lock,
        };
        lab.build(count, flags, &directory, &binaries)?;
        Ok(lab)
    }

    fn build(
        &mut self,
        count: u8,
        flags: &'static [&'static str],
        directory: &Path,
        binaries: &Path,
    ) -> Result<()> {
        // Unmounted by name, with the lab.
        std::mem::forget(Bpffs::mount(&directory.join("bpf"))?);
        let fabric = Netns::create(&format!("mesh-{}-net", self.name))?;
        fabric.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0
             link set br0 up")?;
        for number in 1..=count {
            let node = Node::create(
                &self.name,
                number,
                directory.to_owned(),
                binaries.to_owned(),
                flags,
            )?;
            let addresses = Family::BOTH.map(|family| node.ip(family));
            self.objects
                .apply(objects::node(node.name(), &addresses, &node.pod_cidrs()))?;
            self.nodes.push(node);
        }
        Ok(())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn directory(&self) -> PathBuf {
        site::directory(&self.name)
    }

    /// The directory of the agents' certificate authority.
    pub fn ca(&self) -> PathBuf {
        self.directory().join("ca")
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name: `n1`, `n2`.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .expect("a node of the lab")
    }

    /// The cluster's objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// A namespace to be made.
    pub fn namespace(&self, name: &str) -> NamespaceBuilder<'_> {
        NamespaceBuilder::new(self, name)
    }

    /// A pod to be made.
    pub fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, name)
    }

    /// A sandbox without a pod behind it, and the call that wires it.
    pub fn sandbox(&self, name: &str) -> Result<(Netns, Call)> {
        let netns = Netns::create(&format!("mesh-{}-{name}", self.name))?;
        let call = Call {
            container: name.to_owned(),
            netns: netns.path().display().to_string(),
            ..Call::default()
        };
        Ok((netns, call))
    }

    /// A service to be made.
    pub fn service(&self, name: &str) -> ServiceBuilder<'_> {
        ServiceBuilder::new(self, name)
    }

    /// What links the nodes: a bridge with a port named as each of them.
    pub fn fabric(&self) -> Result<Netns> {
        Netns::open(&format!("mesh-{}-net", self.name))
    }

    /// A machine that is no node, on the fabric at [`Self::outside_ip`]; it knows the way to all pods.
    pub fn outside(&self) -> Result<Netns> {
        let fabric = self.fabric()?;
        for family in Family::BOTH {
            let ip = self.outside_ip(family);
            let (prefix, nodad) = if ip.is_ipv4() {
                (24, "")
            } else {
                (64, "nodad")
            };
            fabric.ip(&format!("address replace {ip}/{prefix} dev br0 {nodad}"))?;
            for node in &self.nodes {
                let cidr = &node.pod_cidrs()[usize::from(ip.is_ipv6())];
                fabric.ip(&format!("route replace {cidr} via {}", node.ip(family)))?;
            }
        }
        Ok(fabric)
    }

    /// The address of the machine outside.
    pub fn outside_ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([10, 77, 0, 100]),
            Family::V6 => IpAddr::from([0xfd00, 0x77, 0, 0, 0, 0, 0, 0x100]),
        }
    }

    /// Sets the mode of a namespace's `PeerAuthentication` (`STRICT`, `PERMISSIVE`), and waits until it is in force.
    pub fn peer_authentication(&self, namespace: &str, mode: &str) -> Result<()> {
        let spec = json!({ "mtls": { "mode": mode } });
        self.policy("PeerAuthentication", namespace, "default", spec)
    }

    /// Writes a policy with this spec, and waits until it is in force.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write the value in place"
    )]
    pub fn policy(&self, kind: &str, namespace: &str, name: &str, spec: Value) -> Result<()> {
        self.objects
            .apply(objects::policy(kind, namespace, name, &spec))?;
        self.settle()
    }

    /// Takes a policy away, and waits until it no longer is in force.
    pub fn remove_policy(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.objects.remove(kind, namespace, name);
        self.settle()
    }

    /// Sets or removes a label of a namespace, and waits until it is in force.
    pub fn label_namespace(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.objects.edit("Namespace", "", name, |object| {
            set_label(object, key, value);
        })?;
        self.settle()
    }

    /// Sets or removes a label of a pod, and waits until it is in force.
    pub fn label_pod(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        self.objects.edit("Pod", namespace, name, |object| {
            set_label(object, key, value);
        })?;
        self.settle()
    }

    /// Records what passes all uplinks, both directions.
    pub fn capture(&self) -> Result<Vec<Capture>> {
        self.nodes.iter().map(Node::capture).collect()
    }

    /// Writes the endpoints of all services, and waits until every running agent's kernel state is what the objects ask.
    pub fn settle(&self) -> Result<()> {
        let pods = self.objects.all("Pod");
        let mut has_written = false;
        for service in self.objects.all("Service") {
            for slice in objects::endpoint_slices(&service, &pods) {
                if self
                    .objects
                    .get(
                        "EndpointSlice",
                        text(&slice, "namespace"),
                        text(&slice, "name"),
                    )
                    .as_ref()
                    != Some(&slice)
                {
                    self.objects.apply(slice)?;
                    has_written = true;
                }
            }
        }
        for node in self.running() {
            for pod in &pods {
                let what = format!("{} knows {}", node.name(), pod["metadata"]["name"]);
                eventually(&what, SOON, || self.knows_pod(node, pod))?;
            }
            for service in self.objects.all("Service") {
                for ip in ips(&service["spec"]["clusterIPs"]) {
                    eventually(&format!("{} knows service {ip}", node.name()), SOON, || {
                        node.has_service(ip)
                    })?;
                }
            }
        }
        if has_written {
            // Endpoints are nowhere in the kernel to be seen.
            self.overtake()?;
        }
        if objects::POLICIES
            .iter()
            .any(|kind| self.objects.was_there(kind))
        {
            // What came with the first is wholly in force once there is the second.
            self.overtake()?;
            self.overtake()?;
        }
        Ok(())
    }

    /// Gives a service that nobody uses a new address, and waits for it: agents take changes in order, so whatever was
    /// written before has reached them.
    fn overtake(&self) -> Result<()> {
        let [third, fourth] = self.settled.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let ip = IpAddr::from([10, 97, third, fourth]);
        let none = objects::Labels::new();
        self.objects
            .apply(objects::service("mesh-lab", "settled", &none, &[ip], 1, 1))?;
        for node in self.running() {
            let what = format!("{} has taken the changes", node.name());
            eventually(&what, SOON, || node.has_service(ip))?;
        }
        Ok(())
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.agent().is_running())
    }

    /// Whether a node's kernel state says of a pod what its objects say.
    fn knows_pod(&self, node: &Node, pod: &Value) -> Result<bool> {
        use mesh_common::maps::flags::{ENROLLED, LOCAL};
        let enrolled = self.is_enrolled(pod);
        let local = pod["spec"]["nodeName"] == node.name();
        for ip in pod["status"]["podIPs"].as_array().into_iter().flatten() {
            let ip = ip["ip"]
                .as_str()
                .context("a pod without address")?
                .parse()?;
            let Some(workload) = node.workload(ip)? else {
                return Ok(false);
            };
            let has = |flag| workload.flags & flag != 0;
            if has(ENROLLED) != enrolled || has(LOCAL) != local {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_enrolled(&self, pod: &Value) -> bool {
        let namespace = self.objects.get("Namespace", "", text(pod, "namespace"));
        let of = |object: &Value| {
            object["metadata"]["labels"][MODE]
                .as_str()
                .map(str::to_owned)
        };
        of(pod).or_else(|| of(&namespace?)).as_deref() == Some("ambient")
    }

    /// Prints the ends of the agents' logs.
    pub fn print_logs(&self) {
        for node in &self.nodes {
            eprintln!(
                "--- agent of {}, the end of its log:\n{}",
                node.name(),
                node.agent().log_tail(60)
            );
        }
    }

    /// Leaves everything up when the lab is dropped; `down` removes it.
    pub fn keep(mut self) {
        self.kept = true;
        for node in &self.nodes {
            node.agent().keep();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        if self.kept {
            return;
        }
        // Ended first, and by us: a child that nobody waits for stays a zombie.
        for node in &self.nodes {
            let _ = node.agent().stop();
        }
        if let Err(error) = site::abandon(&self.name) {
            eprintln!("the lab {} is not removed: {error:#}", self.name);
        }
    }
}

/// Ends all recordings, as one.
pub fn stop(captures: Vec<Capture>) -> Result<Recording> {
    let mut all = Recording::default();
    for capture in captures {
        all.extend(capture.stop()?);
    }
    Ok(all)
}

pub(crate) fn set_label(object: &mut Value, key: &str, value: Option<&str>) {
    let labels = &mut object["metadata"]["labels"];
    match (value, labels.as_object_mut()) {
        (Some(value), _) => labels[key] = value.into(),
        (None, Some(labels)) => {
            labels.remove(key);
        }
        (None, None) => {}
    }
}

/// A field of an object's metadata.
fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub(crate) fn ips(list: &Value) -> Vec<IpAddr> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}
