//! Many pods come to one node and go: each is wired, none has another's address, and nothing is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::wait::eventually;
use serde_json::{Value, json};

use super::Scenario;
use crate::cluster::Cluster;
use crate::report::Report;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "churn",
    about: "many pods created and deleted on one node: all ready, no address twice, nothing left",
    run,
};

/// Pods at a time.
const WAVE: usize = 25;

fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let node = &cluster.nodes[0];
    let namespace = cluster.namespace("churn", true)?;
    report.step("no pods of other scenarios are left", || {
        let wait = ["wait", "--for=delete", "pod", "--all", "-n"];
        let ours = cluster
            .kubectl
            .json(&["get", "namespaces", "-l", crate::objects::MADE])?;
        for other in ours["items"].as_array().into_iter().flatten() {
            let name = other["metadata"]["name"].as_str().unwrap_or_default();
            if name != namespace {
                // Fails when there are none.
                let _ = cluster
                    .kubectl
                    .run(&[&wait[..], &[name, "--timeout=120s"]].concat());
            }
        }
        Ok(())
    })?;
    let before = holdings(cluster, node)?;
    let mut seen = BTreeSet::new();
    let began = Instant::now();
    let mut made = 0;
    while made < cluster.churn {
        let wave = WAVE.min(cluster.churn - made);
        report.measure(&format!("{wave} pods come and go"), || {
            let addresses = come_and_go(cluster, &namespace, node, made..made + wave)?;
            seen.extend(addresses);
            made += wave;
            Ok(format!("{made} so far"))
        })?;
    }
    report.measure("all were ready", || {
        Ok(format!(
            "{made} pods in {:.0} s, {} addresses",
            began.elapsed().as_secs_f64(),
            seen.len()
        ))
    })?;
    report.measure("nothing is left of them", || {
        eventually("as before", Duration::from_mins(1), || {
            let after = holdings(cluster, node)?;
            ensure!(after == before, "{before} before, {after} after");
            Ok(true)
        })?;
        Ok(before.to_string())
    })
}

/// A wave of pods, from nothing to nothing; returns their addresses, all different.
fn come_and_go(
    cluster: &Cluster,
    namespace: &str,
    node: &str,
    numbers: std::ops::Range<usize>,
) -> Result<BTreeSet<String>> {
    let names: Vec<_> = numbers.map(|number| format!("churn-{number}")).collect();
    let pods: Vec<_> = names.iter().map(|name| (name.as_str(), node)).collect();
    cluster.create_pods(namespace, &pods)?;
    let wait = [
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "-n",
        namespace,
        "--timeout=180s",
    ];
    cluster.kubectl.run(&wait)?;
    let list = cluster.kubectl.json(&["get", "pods", "-n", namespace])?;
    let mut addresses = BTreeSet::new();
    for pod in list["items"].as_array().into_iter().flatten() {
        let ip = pod["status"]["podIP"]
            .as_str()
            .context("a pod without address")?;
        ensure!(addresses.insert(ip.to_owned()), "{ip} was given twice");
    }
    ensure!(
        addresses.len() == names.len(),
        "{} of {} pods",
        addresses.len(),
        names.len()
    );
    cluster.probes_green(namespace)?;
    cluster.kubectl.run(&[
        "delete",
        "pods",
        "--all",
        "-n",
        namespace,
        "--wait=true",
        "--timeout=180s",
    ])?;
    Ok(addresses)
}

/// What a node has of pods.
fn holdings(cluster: &Cluster, node: &str) -> Result<Value> {
    let status = cluster.status(node)?;
    let taken: Vec<_> = status["network"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| it["taken"].clone())
        .collect();
    let interfaces = status["network"]["pods"].as_array().map(Vec::len);
    Ok(json!({
        "wired": status["pods"]["wired"],
        "interfaces": interfaces,
        "addresses": taken,
        "problems": status["problems"],
    }))
}
