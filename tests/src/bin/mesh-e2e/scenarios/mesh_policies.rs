//! Istio's policies: who may talk to an enrolled pod by its identity, and whether in plaintext.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Scenario;
use super::network_policies::change;
use crate::calls::Calls;
use crate::cluster::Cluster;
use crate::objects::{istio, network_policy};
use crate::pods::{PATIENCE, Pod};
use crate::report::Report;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "policies-istio",
    about: "AuthorizationPolicy and PeerAuthentication act within a second; probes stay green under STRICT and default deny",
    run,
};

fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    cluster
        .kubectl
        .run(&[
            "get",
            "crd",
            "authorizationpolicies.security.istio.io",
            "peerauthentications.security.istio.io",
        ])
        .context(
            "Istio's two kinds of policy are not defined: `kubectl apply -k deploy/crds` first",
        )?;
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let mesh = cluster.namespace("policies-istio", true)?;
    let outside = cluster.namespace("policies-outside", false)?;
    let [client, near, far] = report.step("three enrolled pods are ready", || {
        cluster.pods(&mesh, [("client", n1), ("near", n1), ("far", n2)])
    })?;
    let [stranger] = report.step("and one outside the mesh", || {
        cluster.pods(&outside, [("stranger", n1)])
    })?;
    authorization(cluster, report, [&client, &near, &far])?;
    strict(cluster, report, [&client, &near, &far], &stranger)?;
    report.step("probes are green", || cluster.probes_green(&mesh))
}

fn authorization(cluster: &Cluster, report: &Report, pods: [&Pod; 3]) -> Result<()> {
    let [client, near, far] = pods;
    let namespace = &client.namespace;
    let policy = |action: &str, account: &str| {
        let source = json!({ "principals": [format!("*/ns/{namespace}/sa/{account}")] });
        let rules = json!([{ "from": [{ "source": source }] }]);
        istio(
            "AuthorizationPolicy",
            namespace,
            "who",
            &json!({ "action": action, "rules": rules }),
        )
    };
    let within = Calls::start(cluster, client, &near.http(), PATIENCE)?;
    let between = Calls::start(cluster, client, &far.http(), PATIENCE)?;
    let both = [("within the node", &within), ("between nodes", &between)];
    change(
        cluster,
        report,
        "DENY of the client's identity: refused",
        &policy("DENY", "client"),
        &both,
        false,
    )?;
    report.step("the other identity is answered", || {
        cluster.reaches(near, far)
    })?;
    change(
        cluster,
        report,
        "ALLOW of the client's identity: answered",
        &policy("ALLOW", "client"),
        &both,
        true,
    )?;
    report.step("the other identity is refused, at once", || {
        cluster.refused(near, &far.http())?;
        cluster.refused(far, &near.http()).map(drop)
    })?;
    report.step("the policy deleted: answered again", || {
        cluster
            .kubectl
            .run(&["delete", "authorizationpolicy", "who", "-n", namespace])?;
        cluster.eventually_answered(near, &far.http()).map(drop)
    })
}

fn strict(cluster: &Cluster, report: &Report, pods: [&Pod; 3], stranger: &Pod) -> Result<()> {
    let [client, near, far] = pods;
    let namespace = &client.namespace;
    let mode = |mode: &str| -> Value {
        istio(
            "PeerAuthentication",
            namespace,
            "mode",
            &json!({ "mtls": { "mode": mode } }),
        )
    };
    let within = Calls::start(cluster, stranger, &near.http(), PATIENCE)?;
    let between = Calls::start(cluster, stranger, &far.http(), PATIENCE)?;
    let both = [("within the node", &within), ("between nodes", &between)];
    change(
        cluster,
        report,
        "STRICT: plaintext refused",
        &mode("STRICT"),
        &both,
        false,
    )?;
    report.step("the mesh is answered", || {
        cluster.reaches(client, near)?;
        cluster.reaches(client, far)
    })?;
    let deny = network_policy(
        namespace,
        "deny",
        &json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
    );
    report.step(
        "and default deny of both directions: the mesh is refused, at once",
        || {
            cluster.kubectl.apply(&deny)?;
            sleep(Duration::from_secs(1));
            cluster.refused(client, &near.http())?;
            cluster.refused(client, &far.http()).map(drop)
        },
    )?;
    report.step("probes stay green for five seconds", || {
        sleep(Duration::from_secs(5));
        cluster.probes_green(namespace)
    })?;
    cluster
        .kubectl
        .run(&["delete", "networkpolicy", "deny", "-n", namespace])?;
    change(
        cluster,
        report,
        "PERMISSIVE: plaintext answered",
        &mode("PERMISSIVE"),
        &both,
        true,
    )
}
