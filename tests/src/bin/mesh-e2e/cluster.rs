//! The cluster: its nodes, the agents on them and what they say, and namespaces of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::wait::{SOON, eventually};
use serde_json::Value;

use crate::Args;
use crate::kubectl::Kubectl;
use crate::objects::{self, MADE, MODE};
use crate::pods::Pod;
use crate::wire::Link;

/// The labels of the agents' and of the authority's pods.
const AGENT: &str = "app.kubernetes.io/name=mesh-agent";
/// The authority.
pub(crate) const AUTHORITY: &str = "deployment/mesh-ca";
/// Where the number of the authority's replicas is kept while a scenario has changed it.
const REPLICAS: &str = "mesh.dev/e2e-replicas";

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
    /// Where the traffic between the first two nodes can be seen.
    pub(crate) link: Option<Link>,
    system: String,
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

    /// The agents' pods by node; of two on one node the younger.
    pub(crate) fn agents(&self) -> Result<BTreeMap<String, String>> {
        let pods = self
            .kubectl
            .json(&["get", "pods", "-n", &self.system, "-l", AGENT])?;
        let mut running: Vec<_> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| {
                pod["status"]["phase"] == "Running"
                    && pod["metadata"]["deletionTimestamp"].is_null()
            })
            .collect();
        running.sort_by_key(|pod| pod["metadata"]["creationTimestamp"].to_string());
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let by_node = running.iter().filter_map(|pod| {
            Some((
                text(&pod["spec"]["nodeName"])?,
                text(&pod["metadata"]["name"])?,
            ))
        });
        Ok(by_node.collect())
    }

    /// What the agent of a node answers to one of its commands.
    ///
    /// # Errors
    /// When there is no answer; one that says no is an answer.
    pub(crate) fn ask(&self, node: &str, question: &[&str]) -> Result<Value> {
        let agents = self.agents()?;
        let agent = agents
            .get(node)
            .with_context(|| format!("no agent runs on node {node}"))?;
        let exec = [
            "exec",
            "-n",
            &self.system,
            agent,
            "-c",
            "agent",
            "--",
            "/mesh-agent",
        ];
        let output = self
            .kubectl
            .output(&[&exec, question, &["-o", "json"]].concat(), None)?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!(
                "the agent of {node} does not answer {}: {}",
                question.join(" "),
                said.trim()
            )
        })
    }

    /// How a node is doing.
    pub(crate) fn status(&self, node: &str) -> Result<Value> {
        self.ask(node, &["status"])
    }

    /// Waits until no agent has a problem.
    pub(crate) fn healthy(&self, within: Duration) -> Result<()> {
        eventually("agents without problems", within, || {
            for node in &self.nodes {
                let problems = &self.status(node)?["problems"];
                if problems != &Value::Array(Vec::new()) {
                    bail!("{node}: {problems}");
                }
            }
            Ok(true)
        })
    }

    /// How a connection of a pod gets to its destination, as its node's agent says: `tunnel`, `same-node`, `plain`, ...
    fn carriage(&self, from: &Pod, to: &str) -> Result<String> {
        let trace = self.ask(&from.node, &["trace", &from.full_name(), to])?;
        let steps = trace["paths"][0]["steps"].as_array();
        let route = steps
            .into_iter()
            .flatten()
            .find(|step| step["step"] == "route");
        let carriage = route.and_then(|route| route["carriage"].as_str());
        Ok(carriage
            .with_context(|| format!("a trace without a way: {trace}"))?
            .to_owned())
    }

    /// Waits until the agent says that a connection of a pod goes this way.
    pub(crate) fn goes(&self, from: &Pod, to: &str, way: &str) -> Result<()> {
        eventually(way, SOON, || {
            let carriage = self.carriage(from, to)?;
            ensure!(carriage == way, "{} to {to}: {carriage}", from.full_name());
            Ok(true)
        })
    }

    /// Lines of the agent of a node that have all of these in them.
    pub(crate) fn logged(&self, node: &str, words: &[&str]) -> Result<usize> {
        let agents = self.agents()?;
        let agent = agents
            .get(node)
            .with_context(|| format!("no agent runs on node {node}"))?;
        let log = self
            .kubectl
            .run(&["logs", "-n", &self.system, agent, "-c", "agent"])?;
        Ok(log
            .lines()
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .count())
    }

    /// Replaces the agents, one node after the other, as an upgrade does.
    pub(crate) fn roll_agents(&self) -> Result<()> {
        let system = ["-n", &self.system];
        let set = "daemonset/mesh-agent";
        self.kubectl
            .run(&[&["rollout", "restart", set], &system[..]].concat())?;
        self.kubectl
            .run(&[&["rollout", "status", set, "--timeout=240s"], &system[..]].concat())
            .map(drop)
    }

    /// Stops the authority; [`Cluster::authority_back`] or the end of the run undoes it.
    pub(crate) fn authority_away(&self) -> Result<()> {
        let deployment = self.kubectl.json(&["get", AUTHORITY, "-n", &self.system])?;
        let replicas = deployment["spec"]["replicas"]
            .as_u64()
            .context("no replicas")?;
        ensure!(
            replicas > 0,
            "{AUTHORITY} has no replicas to begin with: scale it"
        );
        let kept = format!("{REPLICAS}={replicas}");
        self.kubectl.run(&[
            "annotate",
            AUTHORITY,
            "-n",
            &self.system,
            &kept,
            "--overwrite",
        ])?;
        self.kubectl
            .run(&["scale", AUTHORITY, "-n", &self.system, "--replicas=0"])?;
        eventually("the authority is away", Duration::from_mins(1), || {
            let label = "app.kubernetes.io/name=mesh-ca";
            let pods = self.kubectl.run(&[
                "get",
                "pods",
                "-n",
                &self.system,
                "-l",
                label,
                "-o",
                "name",
            ])?;
            Ok(pods.trim().is_empty())
        })
    }

    /// Starts the authority as it was, and waits until it is ready.
    pub(crate) fn authority_back(&self) -> Result<()> {
        restore_authority(&self.kubectl, &self.system)?;
        self.kubectl
            .run(&[
                "rollout",
                "status",
                AUTHORITY,
                "-n",
                &self.system,
                "--timeout=120s",
            ])
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

fn restore_authority(kubectl: &Kubectl, system: &str) -> Result<()> {
    let deployment = kubectl.json(&["get", AUTHORITY, "-n", system])?;
    if let Some(replicas) = deployment["metadata"]["annotations"][REPLICAS].as_str() {
        kubectl.run(&[
            "scale",
            AUTHORITY,
            "-n",
            system,
            &format!("--replicas={replicas}"),
        ])?;
        kubectl.run(&["annotate", AUTHORITY, "-n", system, &format!("{REPLICAS}-")])?;
    }
    Ok(())
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
