//! Services of every kind, called by plain and by enrolled pods.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::cluster::Cluster;
use crate::objects::service;
use crate::pods::{HTTP, Pod, at};
use crate::report::Report;

/// For pods outside the mesh.
pub(crate) const PLAIN: Scenario = Scenario {
    name: "services-plain",
    about: "services of every kind, called by plain pods",
    run: |cluster, report| run(cluster, report, false),
};

/// For enrolled pods.
pub(crate) const MESH: Scenario = Scenario {
    name: "services-mesh",
    about: "services of every kind, called by enrolled pods",
    run: |cluster, report| run(cluster, report, true),
};

/// A label of both servers.
const SERVERS: &str = "e2e-server";

fn run(cluster: &Cluster, report: &Report, enrolled: bool) -> Result<()> {
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let name = if enrolled {
        "services-mesh"
    } else {
        "services-plain"
    };
    let namespace = cluster.namespace(name, enrolled)?;
    let [client, one, two] = report.step("a client and two servers are ready", || {
        let pods = cluster.pods(&namespace, [("client", n1), ("one", n1), ("two", n2)])?;
        for server in &pods[1..] {
            let label = format!("{SERVERS}=yes");
            cluster
                .kubectl
                .run(&["label", "pod", &server.name, "-n", &namespace, &label])?;
        }
        Ok(pods)
    })?;
    let create = |name: &str, more: &Value| -> Result<()> {
        let mut more = more.clone();
        more["selector"] = json!({ SERVERS: "yes" });
        cluster.kubectl.apply(&service(&namespace, name, "", &more))
    };
    report.measure("ClusterIP: both endpoints answer", || {
        create("both", &json!({}))?;
        let to = cluster.service(&namespace, "both")?;
        cluster.eventually_answered(&client, &to)?;
        let who = who_answers(cluster, &client, &to, 30)?;
        ensure!(who.len() == 2, "{who:?}");
        Ok(format!("{who:?}"))
    })?;
    report.measure("session affinity: one endpoint answers", || {
        create("sticky", &json!({ "sessionAffinity": "ClientIP" }))?;
        let to = cluster.service(&namespace, "sticky")?;
        cluster.eventually_answered(&client, &to)?;
        let who = who_answers(cluster, &client, &to, 15)?;
        ensure!(who.len() == 1, "{who:?}");
        Ok(format!("{who:?}"))
    })?;
    report.step("headless: every endpoint answers by its address", || {
        create("headless", &json!({ "clusterIP": "None" }))?;
        let addresses = cluster.endpoints(&namespace, "headless", 2)?;
        for address in addresses {
            let name = if address == one.ip {
                &one.name
            } else {
                &two.name
            };
            ensure!(
                cluster.answered(&client, &at(&address, HTTP))? == *name,
                "{address}"
            );
        }
        Ok(())
    })?;
    report.measure("internalTrafficPolicy: Local", || {
        let known = ["explain", "service.spec.internalTrafficPolicy"];
        if cluster.kubectl.run(&known).is_err() {
            return Ok("unknown to this Kubernetes (it came with 1.22)".to_owned());
        }
        create("local", &json!({ "internalTrafficPolicy": "Local" }))?;
        let to = cluster.service(&namespace, "local")?;
        cluster.eventually_answered(&client, &to)?;
        let who = who_answers(cluster, &client, &to, 15)?;
        ensure!(who.keys().collect::<Vec<_>>() == [&one.name], "{who:?}");
        Ok("the endpoint of the client's node answers".to_owned())
    })?;
    report.measure("no endpoint: refused at once", || {
        cluster
            .kubectl
            .apply(&service(&namespace, "empty", "nobody", &json!({})))?;
        let to = cluster.service(&namespace, "empty")?;
        // What translates services learns of them in its own time.
        std::thread::sleep(Duration::from_secs(3));
        let took = cluster.refused(&client, &to)?;
        ensure!(took < Duration::from_secs(1), "only after {took:?}");
        Ok(format!(
            "{} ms, kubectl's own time included",
            took.as_millis()
        ))
    })
}

/// Which pods answer so many calls, and how often.
fn who_answers(
    cluster: &Cluster,
    from: &Pod,
    to: &str,
    calls: usize,
) -> Result<BTreeMap<String, usize>> {
    let mut who = BTreeMap::new();
    for _ in 0..calls {
        *who.entry(cluster.answered(from, to)?).or_default() += 1;
    }
    Ok(who)
}

impl Cluster {
    /// The address and port 80 of a service.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Result<String> {
        let service = self
            .kubectl
            .json(&["get", "service", name, "-n", namespace])?;
        let ip = service["spec"]["clusterIP"]
            .as_str()
            .context("no clusterIP")?;
        Ok(at(ip, 80))
    }

    /// The addresses of a service's endpoints, once there are so many.
    pub(crate) fn endpoints(
        &self,
        namespace: &str,
        name: &str,
        number: usize,
    ) -> Result<Vec<String>> {
        let mut found = Vec::new();
        mesh_tests::wait::eventually("endpoints", Duration::from_secs(20), || {
            let endpoints = self
                .kubectl
                .json(&["get", "endpoints", name, "-n", namespace])?;
            let addresses = endpoints["subsets"][0]["addresses"].as_array().cloned();
            found = addresses
                .unwrap_or_default()
                .iter()
                .filter_map(|it| it["ip"].as_str().map(str::to_owned))
                .collect();
            Ok(found.len() == number)
        })?;
        Ok(found)
    }

    /// Calls an address until it answers: endpoints take a moment to be known everywhere. Returns who answers.
    pub(crate) fn eventually_answered(&self, from: &Pod, to: &str) -> Result<String> {
        let mut who = String::new();
        mesh_tests::wait::eventually("an answer", Duration::from_secs(15), || {
            who = self.answered(from, to)?;
            Ok(true)
        })?;
        Ok(who)
    }
}
