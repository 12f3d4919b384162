//! The lab: enrolled and plain pods on two nodes with few addresses, servers, and policy that denies one port everywhere.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use mesh_tests::app::{App, Server};
use mesh_tests::lab::Lab;
use mesh_tests::node::Node;
use mesh_tests::objects;
use mesh_tests::pod::Pod;
use nix::mount::{MsFlags, mount};
use serde_json::json;

/// The port that everybody may speak to.
pub(crate) const OPEN: u16 = 8080;
/// The port that policy denies to everybody.
pub(crate) const DENIED: u16 = 8081;

/// Room on the disk of an agent's state.
const DISK: &str = "size=256k,mode=0700";

/// Flags of the agents: what is open has a moment to end, so that a stop is quick.
pub(crate) const FLAGS: &[&str] = &["--masquerade", "--drain-deadline", "1"];

/// The pods that stay.
pub(crate) struct Stage<'lab> {
    pub(crate) lab: &'lab Lab,
    /// Enrolled, on the first node.
    pub(crate) client: Pod<'lab>,
    /// Enrolled, beside it.
    pub(crate) near: Pod<'lab>,
    /// Enrolled, on the second node.
    pub(crate) far: Pod<'lab>,
    /// Not enrolled, on the first node.
    pub(crate) plain: Pod<'lab>,
    /// Not enrolled, on the second node.
    pub(crate) plain_far: Pod<'lab>,
    /// On the second node, enrolled or not.
    pub(crate) fickle: Pod<'lab>,
    _servers: Vec<Server>,
}

impl<'lab> Stage<'lab> {
    /// Starts the agents and makes the pods.
    pub(crate) fn set(lab: &'lab Lab) -> Result<Self> {
        for node in lab.nodes() {
            prepare(lab, node)?;
            node.agent().start()?;
        }
        lab.namespace("shop").ambient().create()?;
        let shop = |name, node| lab.pod(name).namespace("shop").on(node).create();
        let plain = |name, node| lab.pod(name).on(node).create();
        let (client, near, far) = (
            shop("client", "n1")?,
            shop("near", "n1")?,
            shop("far", "n2")?,
        );
        let (plain, plain_far) = (plain("plain", "n1")?, plain("plain-far", "n2")?);
        let fickle = lab.pod("fickle").namespace("fickle").on("n2").create()?;
        guard(lab)?;
        let servers = [&near, &far, &plain_far, &fickle].map(|pod| {
            let ports = [OPEN, DENIED].map(|port| Server::start(pod, port, App::Echo));
            ports.into_iter().collect::<Result<Vec<_>, _>>()
        });
        let servers = servers.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            lab,
            client,
            near,
            far,
            plain,
            plain_far,
            fickle,
            _servers: servers.into_iter().flatten().collect(),
        })
    }

    /// The pods that stay.
    pub(crate) fn pods(&self) -> [&Pod<'lab>; 6] {
        [
            &self.client,
            &self.near,
            &self.far,
            &self.plain,
            &self.plain_far,
            &self.fickle,
        ]
    }
}

/// The directory of an agent's state.
pub(crate) fn state(node: &Node) -> PathBuf {
    node.state().join("state")
}

/// A small disk for the state, and so few addresses that they are soon used again.
fn prepare(lab: &Lab, node: &Node) -> Result<()> {
    fs::create_dir_all(state(node))?;
    let (kind, none) = (Some("tmpfs"), MsFlags::empty());
    mount(kind, &state(node), kind, none, Some(DISK))?;
    let cidrs = node
        .pod_cidrs()
        .map(|cidr| cidr.replace("/24", "/29").replace("/64", "/125"));
    lab.objects().edit("Node", "", node.name(), |object| {
        object["spec"] = json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs });
    })
}

/// Denies [`DENIED`], each layer of policy where it is in force.
fn guard(lab: &Lab) -> Result<()> {
    let open = json!({ "protocol": "TCP", "port": OPEN });
    let spec = json!({
        "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{ "ports": [open] }],
    });
    lab.objects()
        .apply(objects::policy("NetworkPolicy", "default", "guard", &spec))?;
    let ports = json!([{ "operation": { "ports": [DENIED.to_string()] } }]);
    let spec = json!({ "action": "DENY", "rules": [{ "to": ports }] });
    lab.policy("AuthorizationPolicy", "shop", "guard", spec)
}
