//! A namespace joins the mesh and leaves it while its pods run.

use std::time::Instant;

use anyhow::{Result, ensure};
use mesh_tests::wait::{SOON, eventually};

use super::Scenario;
use crate::cluster::Cluster;
use crate::pods::Pod;
use crate::report::Report;
use crate::stream::Stream;
use crate::wire;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "enrol",
    about: "a label puts running pods into the mesh and takes them out; open connections never notice",
    run,
};

/// Part of every request.
const SECRET: &str = "cgi-bin/who";

fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let namespace = cluster.namespace("enrol", false)?;
    let [client, near, far] = report.step("three plain pods are ready", || {
        cluster.pods(&namespace, [("client", n1), ("near", n1), ("far", n2)])
    })?;
    report.step("between nodes: plain", || {
        cluster.goes(&client, &far.http(), "plain")?;
        exchange(cluster, &client, &far)
    })?;
    let plain = report.step("three connections are opened", || {
        open(cluster, &client, &near, &far, [7001, 7001, 7001])
    })?;

    joins(cluster, report, &namespace, [&client, &near, &far])?;
    unharmed(report, "opened before the label", &plain)?;
    let meshed = report.step("three more connections are opened", || {
        open(cluster, &client, &near, &far, [7002, 7002, 7002])
    })?;

    leaves(cluster, report, &namespace, [&client, &far])?;
    unharmed(report, "opened before the label", &plain)?;
    unharmed(report, "opened in the mesh", &meshed)?;
    report.step("no pod was started again, probes are green", || {
        cluster.probes_green(&namespace)
    })
}

fn joins(cluster: &Cluster, report: &Report, namespace: &str, pods: [&Pod; 3]) -> Result<()> {
    let [client, near, far] = pods;
    report.measure("the namespace is labelled: both agents tunnel", || {
        let began = labelled(cluster, namespace, true)?;
        cluster.goes(client, &far.http(), "tunnel")?;
        cluster.goes(far, &client.http(), "tunnel")?;
        Ok(format!("within {} ms", began.elapsed().as_millis()))
    })?;
    report.step("between nodes, both ways", || {
        exchange(cluster, client, far)
    })?;
    report.step(
        "a line with both identities in the logs of both agents",
        || {
            let words = [client.identity(), far.identity(), client.ip.clone()];
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            for (node, direction) in [(&client.node, "outbound"), (&far.node, "inbound")] {
                let line = [&words[..], &[direction, "connection complete"]].concat();
                eventually("a line", SOON, || Ok(cluster.logged(node, &line)? > 0))?;
            }
            Ok(())
        },
    )?;
    report.step("within the node: in the kernel", || {
        cluster.goes(client, &near.http(), "same-node")?;
        cluster.reaches(client, near)
    })?;
    let Some(link) = &cluster.link else {
        return Ok(());
    };
    report.measure("on the wire", || {
        let recording = link.during(|| exchange(cluster, client, far))?;
        wire::encrypted(&recording, SECRET)
    })
}

fn leaves(cluster: &Cluster, report: &Report, namespace: &str, pods: [&Pod; 2]) -> Result<()> {
    let [client, far] = pods;
    report.measure("the label is taken away: plain again", || {
        let began = labelled(cluster, namespace, false)?;
        cluster.goes(client, &far.http(), "plain")?;
        cluster.goes(far, &client.http(), "plain")?;
        Ok(format!("within {} ms", began.elapsed().as_millis()))
    })?;
    report.step("between nodes, both ways, no line in the logs", || {
        let lines = || cluster.logged(&client.node, &[&client.identity(), "connection complete"]);
        let before = lines()?;
        exchange(cluster, client, far)?;
        ensure!(
            lines()? == before,
            "{before} lines before, {} after",
            lines()?
        );
        Ok(())
    })?;
    let Some(link) = &cluster.link else {
        return Ok(());
    };
    report.step("on the wire: readable", || {
        let recording = link.during(|| exchange(cluster, client, far))?;
        ensure!(
            recording.contains(SECRET.as_bytes()),
            "this is not the link between them"
        );
        Ok(())
    })
}

fn labelled(cluster: &Cluster, namespace: &str, enrolled: bool) -> Result<Instant> {
    cluster.enrol(namespace, enrolled)?;
    Ok(Instant::now())
}

fn exchange(cluster: &Cluster, client: &Pod, far: &Pod) -> Result<()> {
    cluster.reaches(client, far)?;
    cluster.reaches(far, client)
}

/// One within the node, one each way between the nodes.
fn open(
    cluster: &Cluster,
    client: &Pod,
    near: &Pod,
    far: &Pod,
    ports: [u16; 3],
) -> Result<[Stream; 3]> {
    Ok([
        Stream::open(cluster, client, near, ports[0])?,
        Stream::open(cluster, client, far, ports[1])?,
        Stream::open(cluster, far, client, ports[2])?,
    ])
}

fn unharmed(report: &Report, when: &str, streams: &[Stream]) -> Result<()> {
    report.measure(
        &format!("connections {when} carry on, no line lost"),
        || {
            let lines: Result<Vec<_>> = streams.iter().map(Stream::advances).collect();
            Ok(format!("{:?} lines", lines?))
        },
    )
}
