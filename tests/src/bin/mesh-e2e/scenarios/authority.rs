//! The certificate authority goes away and comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mesh_tests::wait::{SOON, eventually};

use super::Scenario;
use crate::cluster::Cluster;
use crate::pods::Pod;
use crate::report::Report;
use crate::stream::Stream;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "ca",
    about: "without the authority what runs goes on and a new identity waits, with a reason; it recovers by itself",
    run,
};

fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let namespace = cluster.namespace("ca", true)?;
    let [client, far] = report.step("two enrolled pods talk", || {
        let pods = cluster.pods(&namespace, [("client", n1), ("far", n2)])?;
        cluster.reaches(&pods[0], &pods[1])?;
        Ok(pods)
    })?;
    let stream = Stream::open(cluster, &client, &far, 7001)?;
    report.step("the authority is scaled to 0", || cluster.authority_away())?;
    report.step("old and new connections of theirs work", || {
        stream.advances()?;
        cluster.reaches(&client, &far)?;
        cluster.reaches(&far, &client)
    })?;
    let [late] = report.step("a pod with a new identity starts", || {
        cluster.pods(&namespace, [("late", n1)])
    })?;
    report.step("it cannot connect", || {
        let answer = cluster.call(&late, &far.http())?;
        ensure!(
            matches!(answer, crate::pods::Answer::Failed(_)),
            "{answer:?}"
        );
        Ok(())
    })?;
    report.measure("`status` of its node says why", || reason(cluster, &late))?;
    report.step("the authority is back", || cluster.authority_back())?;
    report.measure("the new identity works by itself", || {
        let began = Instant::now();
        eventually("an answer", Duration::from_secs(90), || {
            cluster.reaches(&late, &far)?;
            Ok(true)
        })?;
        Ok(format!(
            "{:.1} s after the authority was ready",
            began.elapsed().as_secs_f64()
        ))
    })?;
    report.step(
        "the open connection never noticed, no agent has a problem",
        || {
            stream.advances()?;
            cluster.healthy(Duration::from_secs(30))
        },
    )
}

/// Why a pod's identity has no certificate, as its node's agent says.
fn reason(cluster: &Cluster, pod: &Pod) -> Result<String> {
    let mut reason = String::new();
    eventually("a reason", SOON, || {
        let status = cluster.status(&pod.node)?;
        let certificates = status["certificates"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let its = certificates.iter().find(|it| {
            it["identity"]
                .as_str()
                .is_some_and(|it| it.ends_with(&pod.identity()))
        });
        let Some(error) = its.and_then(|it| it["error"].as_str()) else {
            bail!("no reason in {certificates:?}");
        };
        let problems = &status["problems"];
        ensure!(
            problems.to_string().contains(&pod.identity()),
            "no problem told: {problems}"
        );
        error.clone_into(&mut reason);
        Ok(true)
    })?;
    Ok(reason)
}
