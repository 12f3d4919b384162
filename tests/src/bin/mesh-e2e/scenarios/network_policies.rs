//! `NetworkPolicy`, applied while pods talk: it acts within a second, at both ends, and never on probes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::calls::Calls;
use crate::cluster::Cluster;
use crate::objects::{network_policy, service};
use crate::pods::{Answer, PATIENCE, Pod};
use crate::report::Report;

/// For pods outside the mesh.
pub(crate) const PLAIN: Scenario = Scenario {
    name: "policies-plain",
    about: "NetworkPolicy on plain pods acts within a second",
    run: |cluster, report| run(cluster, report, false),
};

/// For enrolled pods.
pub(crate) const MESH: Scenario = Scenario {
    name: "policies-mesh",
    about: "NetworkPolicy on enrolled pods acts within a second",
    run: |cluster, report| run(cluster, report, true),
};

/// How long a policy may take to act, from the return of `kubectl apply`.
pub(crate) const ACTS: Duration = Duration::from_secs(1);

fn run(cluster: &Cluster, report: &Report, enrolled: bool) -> Result<()> {
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let name = if enrolled {
        "policies-mesh"
    } else {
        "policies-plain"
    };
    let namespace = cluster.namespace(name, enrolled)?;
    let [client, near, far, other] = report.step("four pods are ready", || {
        cluster.pods(
            &namespace,
            [("client", n1), ("near", n1), ("far", n2), ("other", n2)],
        )
    })?;
    ingress(cluster, report, [&client, &near, &far])?;
    egress(cluster, report, [&client, &far, &other])?;
    report.step("probes are green", || cluster.probes_green(&namespace))
}

fn ingress(cluster: &Cluster, report: &Report, pods: [&Pod; 3]) -> Result<()> {
    let [client, near, far] = pods;
    let namespace = &client.namespace;
    let within = Calls::start(cluster, client, &near.http(), PATIENCE)?;
    let between = Calls::start(cluster, client, &far.http(), PATIENCE)?;
    let both = [("within the node", &within), ("between nodes", &between)];

    let deny = json!({ "podSelector": {}, "policyTypes": ["Ingress"] });
    change(
        cluster,
        report,
        "default deny of ingress: refused",
        &network_policy(namespace, "deny", &deny),
        &both,
        false,
    )?;
    report.step("probes stay green for five seconds", || {
        sleep(Duration::from_secs(5));
        cluster.probes_green(namespace)
    })?;
    let allow = json!({
        "podSelector": {}, "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }],
            "ports": [{ "port": 8080 }]
        }]
    });
    change(
        cluster,
        report,
        "the client allowed on 8080: answered",
        &network_policy(namespace, "allow", &allow),
        &both,
        true,
    )?;
    report.step("others are still refused, at once", || {
        cluster.refused(far, &near.http())?;
        cluster.refused(near, &far.http()).map(drop)
    })?;
    report.step("both policies deleted: everybody answers", || {
        cluster
            .kubectl
            .run(&["delete", "networkpolicy", "deny", "allow", "-n", namespace])?;
        cluster.eventually_answered(far, &near.http()).map(drop)
    })
}

fn egress(cluster: &Cluster, report: &Report, pods: [&Pod; 3]) -> Result<()> {
    let [client, far, other] = pods;
    let namespace = &client.namespace;
    let mut to = Vec::new();
    for name in ["far", "other"] {
        cluster
            .kubectl
            .apply(&service(namespace, name, name, &json!({})))?;
        to.push(cluster.service(namespace, name)?);
        ensure!(cluster.eventually_answered(client, &to[to.len() - 1])? == name);
    }
    let calls = Calls::start(cluster, client, &to[1], PATIENCE)?;
    let only_far = json!({
        "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"],
        "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "far" } } }] }]
    });
    let policy = network_policy(namespace, "egress", &only_far);
    change(
        cluster,
        report,
        "egress to `far` alone: another's service refused",
        &policy,
        &[("service", &calls)],
        false,
    )?;
    report.step(
        "its service and itself are answered, the other itself is refused",
        || {
            ensure!(cluster.answered(client, &to[0])? == "far");
            cluster.reaches(client, far)?;
            cluster.refused(client, &other.http())?;
            // Replies are no egress.
            cluster.reaches(other, client)
        },
    )?;
    report.step("the policy deleted: answered again", || {
        cluster
            .kubectl
            .run(&["delete", "networkpolicy", "egress", "-n", namespace])?;
        cluster.eventually_answered(client, &to[1]).map(drop)
    })
}

/// Applies an object, and measures how long it takes to act on calls; from then on it must hold.
pub(crate) fn change(
    cluster: &Cluster,
    report: &Report,
    what: &str,
    object: &Value,
    calls: &[(&str, &Calls)],
    answered: bool,
) -> Result<()> {
    let wanted = |answer: &Answer| matches!(answer, Answer::Page(_)) == answered;
    report.measure(what, || {
        cluster.kubectl.apply(object)?;
        let applied = Instant::now();
        let mut times = Vec::new();
        for (way, calls) in calls {
            let took = calls.wait_for(applied, Duration::from_secs(10), wanted)?;
            ensure!(took <= ACTS, "{way}: only after {took:?}");
            times.push(format!("{way} {} ms", took.as_millis()));
            sleep(Duration::from_millis(700));
            calls.all(applied + took, wanted)?;
        }
        Ok(format!("after {}", times.join(", ")))
    })
}
