//! What is installed on the cluster: the agents and what they say, and the authority.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::wait::{SOON, eventually};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::kubectl::Kubectl;
use crate::pods::Pod;

const AGENTS: &str = "daemonset/mesh-agent";
const AGENT_PODS: &str = "app.kubernetes.io/name=mesh-agent";
const AUTHORITY: &str = "deployment/mesh-ca";
const AUTHORITY_PODS: &str = "app.kubernetes.io/name=mesh-ca";
/// Where the number of the authority's replicas is kept while a scenario has changed it.
const REPLICAS: &str = "mesh.dev/e2e-replicas";

impl Cluster {
    /// The agents' pods by node; of two on one node the younger.
    pub(crate) fn agents(&self) -> Result<BTreeMap<String, String>> {
        let pods = self
            .kubectl
            .json(&["get", "pods", "-n", &self.system, "-l", AGENT_PODS])?;
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

    fn agent(&self, node: &str) -> Result<String> {
        let agent = self.agents()?.remove(node);
        agent.with_context(|| format!("no agent runs on node {node}"))
    }

    /// What the agent of a node answers to one of its commands.
    ///
    /// # Errors
    /// When there is no answer; one that says no is an answer.
    pub(crate) fn ask(&self, node: &str, question: &[&str]) -> Result<Value> {
        let agent = self.agent(node)?;
        let exec = [
            "exec",
            "-n",
            &self.system,
            &agent,
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
        let agent = self.agent(node)?;
        let log = self
            .kubectl
            .run(&["logs", "-n", &self.system, &agent, "-c", "agent"])?;
        Ok(log
            .lines()
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .count())
    }

    /// Replaces the agents, one node after the other, as an upgrade does; or ends them as was asked for.
    pub(crate) fn restart_agents(&self) -> Result<()> {
        let system = ["-n", &self.system];
        if let Some(program) = &self.restart_by {
            let status = Command::new(program).status();
            let status = status.with_context(|| format!("cannot start {}", program.display()))?;
            ensure!(status.success(), "{}: {status}", program.display());
        } else {
            self.kubectl
                .run(&[&["rollout", "restart", AGENTS], &system[..]].concat())?;
        }
        self.kubectl
            .run(
                &[
                    &["rollout", "status", AGENTS, "--timeout=240s"],
                    &system[..],
                ]
                .concat(),
            )
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
            let pods = self.kubectl.run(&[
                "get",
                "pods",
                "-n",
                &self.system,
                "-l",
                AUTHORITY_PODS,
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
}

/// Scales the authority to what it was before a scenario changed that.
pub(crate) fn restore_authority(kubectl: &Kubectl, system: &str) -> Result<()> {
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
