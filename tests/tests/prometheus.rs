//! What `deploy/monitoring` has, with a real Prometheus that scrapes two agents: numbers, alerts, dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::app::{App, Server, echoes_to_the_end};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::process::Process;
use mesh_tests::promql::Names;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::{Value, json};

/// Connections for each family, and bytes that each sends and gets back.
const CONNECTIONS: u64 = 10;
const BYTES: u64 = 20_011;

/// Where it listens, in the namespace in which it runs.
const ADDRESS: &str = "127.0.0.1:9090";

/// A Prometheus beside the nodes.
struct Prometheus {
    netns: Netns,
    _process: Process,
}

impl Prometheus {
    /// Starts one that scrapes both nodes as `deploy/monitoring` says, but each second.
    fn start(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("prometheus");
        fs::create_dir_all(&directory)?;
        let file = directory.join("prometheus.yaml");
        fs::write(&file, serde_json::to_vec(&configuration(lab)?)?)?;
        let netns = lab.outside()?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("data").display()
            ))
            .arg(format!("--web.listen-address={ADDRESS}"));
        let log = directory.join("log");
        let process = Process::spawn(&netns, &mut command, &log, &lab.directory().join("pids"))?;
        let prometheus = Self {
            netns,
            _process: process,
        };
        eventually("Prometheus is ready", SOON, || {
            prometheus.query("1").map(|_| true)
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(prometheus)
    }

    /// What its HTTP API answers.
    fn ask(&self, path: &str, query: &str) -> Result<Value> {
        let url = format!("http://{ADDRESS}/api/v1/{path}");
        let query = format!("query={query}");
        let words = ["-sS", "--get", "--data-urlencode", &query, &url];
        let answer: Value = serde_json::from_str(&self.netns.exec("curl", words)?)?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        Ok(answer["data"].clone())
    }

    /// An expression's values now, each with its labels.
    fn query(&self, expression: &str) -> Result<Vec<(Value, String)>> {
        let data = self.ask("query", expression)?;
        let Some(results) = data["result"]
            .as_array()
            .filter(|_| data["resultType"] == "vector")
        else {
            return Ok(Vec::new());
        };
        let value = |it: &Value| {
            let value = it["value"][1].as_str().context("no value")?;
            Ok((it["metric"].clone(), value.to_owned()))
        };
        results.iter().map(value).collect()
    }

    /// A name's values in all series.
    fn values(&self, label: &str) -> Result<BTreeSet<String>> {
        let data = self.ask(&format!("label/{label}/values"), "")?;
        Ok(serde_json::from_value(data)?)
    }
}

/// The configuration for a cluster, in which the lab's nodes stand where Kubernetes would tell of pods.
fn configuration(lab: &Lab) -> Result<Value> {
    let mut configuration = yaml(&deploy("prometheus.yaml"))?;
    configuration["global"] = json!({
        "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s",
    });
    configuration["rule_files"] = json!([deploy("rules.yaml")]);
    let job = configuration["scrape_configs"][0]
        .as_object_mut()
        .context("a job")?;
    job.remove("kubernetes_sd_configs")
        .context("is for Kubernetes")?;
    let pod = |node: &Node, pod: &str, container: &str, family| {
        let ip = node.ip(family).to_string();
        json!({ "targets": [ip], "labels": {
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": pod,
            "__meta_kubernetes_pod_name": "x",
            "__meta_kubernetes_pod_container_name": container,
            "__meta_kubernetes_pod_ip": ip,
            "__meta_kubernetes_pod_node_name": node.name(),
        }})
    };
    let [n1, n2] = ["n1", "n2"].map(|it| lab.node(it));
    job.insert(
        "static_configs".to_owned(),
        json!([
            pod(n1, "mesh-agent", "agent", Family::V4),
            pod(n1, "mesh-agent", "prepare", Family::V4),
            pod(n1, "mesh-ca", "ca", Family::V4),
            // One agent replaces another.
            pod(n2, "mesh-agent", "agent", Family::V6),
            pod(n2, "mesh-agent", "agent", Family::V6),
        ]),
    );
    Ok(configuration)
}

fn deploy(file: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join("deploy/monitoring").join(file)
}

fn yaml(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_yaml_ng::from_str(&text)?)
}

/// Connects so often, and has so many bytes sent back.
fn load(client: &Pod<'_>, server: &Pod<'_>) -> Result<()> {
    for family in Family::BOTH {
        let to: SocketAddr = server.at(family, 8080);
        for _ in 0..CONNECTIONS {
            echoes_to_the_end(client, to, BYTES)?;
        }
    }
    Ok(())
}

/// What an end tells of connections: opened, closed, bytes of requests and of responses; and of how many there are no more.
fn counts(prometheus: &Prometheus, labels: &str) -> Result<Vec<u64>> {
    let names = [
        "connections_opened_total",
        "connections_closed_total",
        "received_bytes_total",
        "sent_bytes_total",
        "sockets_open",
    ];
    let mut counts = Vec::new();
    for name in names {
        let told = prometheus.query(&format!("sum(istio_tcp_{name}{{{labels}}})"))?;
        for (_, value) in told {
            counts.push(value.parse()?);
        }
    }
    Ok(counts)
}

#[test]
fn numbers_alerts_and_dashboard_hold() -> Result<()> {
    scenario("prometheus", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2").create()?;
        let plain = lab.pod("plain").on("n1").create()?;
        let _apps = [&near, &far].map(|it| Server::start(it, 8080, App::Echo));
        lab.settle()?;
        let prometheus = Prometheus::start(lab)?;
        eventually("both agents are scraped", SOON, || {
            let up = prometheus.query("up == 1")?;
            Ok(up.len() == 2)
        })?;
        let up = prometheus.query("up")?;
        let mut instances: Vec<_> = up.iter().map(|it| &it.0["instance"]).collect();
        instances.sort_by_key(|it| it.as_str());
        assert_eq!(instances, ["n1", "n2"], "{up:?}");

        load(&client, &far)?;
        load(&client, &near)?;
        let connections = 2 * CONNECTIONS;
        let bytes = connections * BYTES;
        let expected = [connections, connections, bytes, bytes, 0];
        for (node, reporter, carriage, to) in [
            ("n1", "source", "tunnel", "far"),
            ("n2", "destination", "tunnel", "far"),
            ("n1", "source", "same_node", "near"),
            ("n1", "destination", "same_node", "near"),
        ] {
            let labels = format!(
                "instance=\"{node}\",reporter=\"{reporter}\",mesh_carriage=\"{carriage}\",\
                 source_workload=\"client\",destination_workload=\"{to}\""
            );
            let mut told = Vec::new();
            eventually("the numbers are those of the load", SOON, || {
                told = counts(&prometheus, &labels)?;
                Ok(told == expected)
            })
            .with_context(|| format!("{labels}: {told:?}, not {expected:?}"))?;
        }
        let alerts = prometheus.query("ALERTS")?;
        assert!(alerts.is_empty(), "{alerts:?}");
        dashboard_is_of_what_agents_tell(&prometheus)?;
        rules_are_of_what_agents_tell(&prometheus)?;
        metrics_are_well_formed(lab)?;

        lab.peer_authentication("shop", "STRICT")?;
        assert!(
            plain.is_refused(far.at(Family::V4, 8080)),
            "plaintext gets in"
        );
        let firing = "ALERTS{alertstate=\"firing\"}";
        eventually("the alert fires", SOON, || {
            Ok(!prometheus.query(firing)?.is_empty())
        })?;
        let fires = prometheus.query(firing)?;
        let labels: Vec<_> = fires.into_iter().map(|it| it.0).collect();
        let expected = json!({
            "__name__": "ALERTS", "alertname": "MeshPlaintextRefused", "alertstate": "firing", "instance": "n2",
            "job": "mesh-agent", "reason": "drop_strict", "severity": "warning",
        });
        assert_eq!(labels, [expected]);
        Ok(())
    })
}

/// Fails unless every name in an expression is one that is told.
fn names_are_known(prometheus: &Prometheus, expression: &str) -> Result<()> {
    let names = Names::of(expression);
    let metrics = prometheus.values("__name__")?;
    let untold = |it: &&String| !metrics.contains(*it) && !may_be_absent(it);
    ensure!(!names.metrics.is_empty(), "{expression}: no metrics");
    let unknown: Vec<_> = names.metrics.iter().filter(untold).collect();
    ensure!(unknown.is_empty(), "{expression}: {unknown:?}");
    for (label, value) in &names.labels {
        let values = prometheus.values(label)?;
        let is_known = value
            .as_ref()
            .map_or(!values.is_empty(), |it| values.contains(it));
        // Of connections that failed alone.
        ensure!(
            is_known || label == "response_flags",
            "{expression}: {label} {value:?}"
        );
    }
    Ok(())
}

/// Whether a lab without failures has no series of it.
fn may_be_absent(metric: &str) -> bool {
    [
        "istio_tcp_connections_failed_total",
        // Of the API server.
        "mesh_source_lag_seconds",
    ]
    .contains(&metric)
}

fn dashboard_is_of_what_agents_tell(prometheus: &Prometheus) -> Result<()> {
    let dashboard = yaml(&deploy("dashboard.json"))?;
    let list = |it: &Value| it.as_array().cloned().unwrap_or_default();
    let mut expressions = 0;
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            let expression = target["expr"].as_str().context("no expression")?;
            names_are_known(prometheus, expression)?;
            let asked = expression
                .replace("$__rate_interval", "1m")
                .replace("\"$reporter\"", "\"source\"");
            let asked = ["$node", "$source_namespace", "$namespace"]
                .into_iter()
                .fold(asked, |asked, it| asked.replace(it, ".*"));
            ensure!(
                !asked.contains('$'),
                "{asked}: a variable that nobody knows"
            );
            let metrics = Names::of(&asked).metrics;
            if metrics.iter().any(|it| may_be_absent(it)) {
                prometheus.query(&asked)?;
            } else {
                // A rate is of two scrapes.
                let what = format!("{}: {asked} tells something", panel["title"]);
                eventually(&what, SOON, || Ok(!prometheus.query(&asked)?.is_empty()))?;
            }
            expressions += 1;
        }
    }
    ensure!(expressions > 30, "{expressions} expressions");
    for variable in list(&dashboard["templating"]["list"]) {
        if variable["type"] == "query" {
            let query = variable["definition"].as_str().context("no query")?;
            let inside = query
                .strip_prefix("label_values(")
                .and_then(|it| it.strip_suffix(')'));
            let (metric, label) = inside
                .and_then(|it| it.split_once(", "))
                .context("label_values")?;
            names_are_known(prometheus, &format!("count by ({label}) ({metric})"))?;
        }
    }
    Ok(())
}

/// The rules of the file.
fn rules() -> Result<Vec<Value>> {
    let file = yaml(&deploy("rules.yaml"))?;
    let groups = file["groups"].as_array().context("groups")?;
    let rules = groups.iter().filter_map(|it| it["rules"].as_array());
    Ok(rules.flatten().cloned().collect())
}

fn rules_are_of_what_agents_tell(prometheus: &Prometheus) -> Result<()> {
    for rule in rules()? {
        names_are_known(prometheus, rule["expr"].as_str().context("no expression")?)?;
    }
    Ok(())
}

/// As promtool sees it, in the text of Prometheus.
fn metrics_are_well_formed(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let check = format!(
            "curl -sS http://{}:15020/metrics | promtool check metrics",
            node.ip(Family::V4)
        );
        lab.outside()?.exec("sh", ["-c", &check])?;
    }
    Ok(())
}

#[test]
fn every_alert_fires_when_it_should() -> Result<()> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prometheus/alerts.yaml");
    for words in [["check", "rules"], ["test", "rules"]] {
        let file = if words[0] == "check" {
            deploy("rules.yaml")
        } else {
            cases.clone()
        };
        let output = Command::new("promtool").args(words).arg(file).output()?;
        let [out, err] =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        ensure!(output.status.success(), "{words:?}: {out}{err}");
    }
    let cases = yaml(&cases)?;
    let asked = cases["tests"].as_array().into_iter().flatten();
    let asked: Vec<_> = asked
        .filter_map(|it| it["alert_rule_test"].as_array())
        .flatten()
        .collect();
    for rule in rules()?.iter().filter(|it| it["alert"].is_string()) {
        for fires in [true, false] {
            let is_asked = asked
                .iter()
                .any(|it| it["alertname"] == rule["alert"] && it["exp_alerts"].is_array() == fires);
            ensure!(
                is_asked,
                "{}: no case in which firing is {fires}",
                rule["alert"]
            );
        }
        for annotation in ["summary", "description", "runbook"] {
            let text = rule["annotations"][annotation].as_str().unwrap_or_default();
            ensure!(!text.is_empty(), "{}: no {annotation}", rule["alert"]);
        }
        let runbook = &rule["annotations"]["runbook"];
        ensure!(
            runbook
                .as_str()
                .is_some_and(|it| it.contains("`mesh-agent ")),
            "{runbook}"
        );
    }
    Ok(())
}
