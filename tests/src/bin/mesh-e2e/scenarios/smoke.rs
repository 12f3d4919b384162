//! What any cluster network must do, for pods in the mesh and for others.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::Scenario;
use crate::cluster::Cluster;
use crate::objects::service;
use crate::report::Report;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "smoke",
    about: "pods reach pods and services on both nodes, probes are green, exec works; enrolled or not",
    run,
};

fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.step("every agent is healthy", || {
        cluster.healthy(Duration::from_secs(30))
    })?;
    for (what, enrolled) in [("plain", false), ("enrolled", true)] {
        pods(cluster, report, what, enrolled)?;
    }
    Ok(())
}

fn pods(cluster: &Cluster, report: &Report, what: &str, enrolled: bool) -> Result<()> {
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let namespace = cluster.namespace(&format!("smoke-{what}"), enrolled)?;
    let [client, near, far] = report.step(&format!("three {what} pods are ready"), || {
        cluster.pods(&namespace, [("client", n1), ("near", n1), ("far", n2)])
    })?;
    let ways = if enrolled {
        ["same-node", "tunnel"]
    } else {
        ["plain", "plain"]
    };
    report.step(
        &format!("{what}: on one node both ways, {}", ways[0]),
        || {
            cluster.goes(&client, &near.http(), ways[0])?;
            cluster.reaches(&client, &near)?;
            cluster.reaches(&near, &client)
        },
    )?;
    report.step(
        &format!("{what}: between nodes both ways, {}", ways[1]),
        || {
            cluster.goes(&client, &far.http(), ways[1])?;
            cluster.reaches(&client, &far)?;
            cluster.reaches(&far, &client)
        },
    )?;
    report.step(&format!("{what}: a pod reaches itself"), || {
        cluster.reaches(&client, &client)
    })?;
    report.step(&format!("{what}: by a service address"), || {
        cluster
            .kubectl
            .apply(&service(&namespace, "far", "far", &json!({})))?;
        let to = cluster.service(&namespace, "far")?;
        ensure!(cluster.eventually_answered(&client, &to)? == "far");
        Ok(())
    })?;
    report.step(&format!("{what}: probes are green"), || {
        cluster.probes_green(&namespace)
    })
}
