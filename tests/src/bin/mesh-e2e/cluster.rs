//! The cluster: its nodes, and namespaces of ours on it.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::Args;
use crate::installed::restore_authority;
use crate::kubectl::Kubectl;
use crate::objects::{self, MADE, MODE};
use crate::wire::Link;

/// A cluster with Mesh CNI.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kubectl: Kubectl,
    /// Two nodes or more that take pods.
    pub(crate) nodes: Vec<String>,
    pub(crate) image: String,
    pub(crate) pull: String,
    /// Pods of scenario `churn`.
    pub(crate) churn: usize,
    /// What ends agents in place of a rolling update.
    pub(crate) restart_by: Option<PathBuf>,
    /// Where the traffic between the first two nodes can be seen.
    pub(crate) link: Option<Link>,
    /// The namespace that Mesh CNI is installed in.
    pub(crate) system: String,
    version: String,
}

impl Cluster {
    /// Looks at a cluster.
    ///
    /// # Errors
    /// When it has fewer than two nodes that take pods, or no agent on one of them.
    pub(crate) fn find(kubectl: Kubectl, args: &Args) -> Result<Self> {
        let version = kubectl.json(&["version"])?;
        let mut cluster = Self {
            nodes: open_nodes(&kubectl.json(&["get", "nodes"])?),
            kubectl,
            image: args.image.clone(),
            pull: args.pull.clone(),
            churn: args.pods,
            restart_by: args.restart_by.clone(),
            link: args.link.as_deref().map(Link::parse).transpose()?,
            system: args.system.clone(),
            version: version["serverVersion"]["gitVersion"]
                .as_str()
                .unwrap_or("?")
                .to_owned(),
        };
        cluster.nodes.sort();
        ensure!(
            cluster.nodes.len() >= 2,
            "the scenarios need two nodes that are Ready and take pods; there are {:?}",
            cluster.nodes
        );
        let agents = cluster.agents()?;
        for node in &cluster.nodes {
            ensure!(
                agents.contains_key(node),
                "no agent runs on node {node}: install Mesh CNI with `kubectl apply -k deploy/base` first"
            );
        }
        Ok(cluster)
    }

    /// Makes a namespace of ours, in the mesh or not, and returns its name.
    pub(crate) fn namespace(&self, name: &str, enrolled: bool) -> Result<String> {
        let name = format!("mesh-e2e-{name}");
        self.kubectl.apply(&objects::namespace(&name, enrolled))?;
        Ok(name)
    }

    /// Labels a namespace: what is in it joins the mesh, or leaves it.
    pub(crate) fn enrol(&self, namespace: &str, enrolled: bool) -> Result<()> {
        let label = if enrolled {
            format!("{MODE}=ambient")
        } else {
            format!("{MODE}-")
        };
        self.kubectl
            .run(&["label", "namespace", namespace, &label, "--overwrite"])
            .map(drop)
    }

    /// Begins to delete every namespace of ours.
    pub(crate) fn forget_namespaces(&self) -> Result<()> {
        self.kubectl
            .run(&["delete", "namespace", "-l", MADE, "--wait=false"])
            .map(drop)
    }

    /// Writes what may explain a failure to standard error.
    pub(crate) fn explain(&self) {
        let pods = self.kubectl.run(&["get", "pods", "-A", "-o", "wide"]);
        eprintln!("{}", pods.unwrap_or_else(|error| format!("{error:#}")));
        for (node, agent) in self.agents().unwrap_or_default() {
            let status = self.status(&node).map_or_else(
                |error| format!("{error:#}"),
                |it| it["problems"].to_string(),
            );
            let log = self.kubectl.run(&[
                "logs",
                "-n",
                &self.system,
                &agent,
                "-c",
                "agent",
                "--tail=15",
            ]);
            eprintln!("--- {node}: {agent}: problems {status}");
            eprintln!("{}", log.unwrap_or_else(|error| format!("{error:#}")));
        }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Kubernetes {}, pods on {}",
            self.version,
            self.nodes.join(" and ")
        )
    }
}

/// Removes everything that scenarios have made, and undoes what they have changed; waits until it is gone.
pub(crate) fn clean(kubectl: &Kubectl, system: &str) -> Result<()> {
    restore_authority(kubectl, system)?;
    let delete = [
        "delete",
        "namespace",
        "-l",
        MADE,
        "--wait=true",
        "--timeout=180s",
    ];
    kubectl.run(&delete).map(drop)
}

/// Names of the nodes that are ready and have no taint that keeps pods away.
fn open_nodes(nodes: &Value) -> Vec<String> {
    let is_true = |value: &Value| value == "True";
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions
            .iter()
            .any(|it| it["type"] == "Ready" && is_true(&it["status"]))
    };
    let open = |node: &Value| {
        let taints = node["spec"]["taints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        taints
            .iter()
            .all(|taint| taint["effect"] == "PreferNoSchedule")
    };
    let items = nodes["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .filter(|node| ready(node) && open(node))
        .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}
