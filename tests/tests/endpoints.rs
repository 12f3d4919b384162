//! What an agent tells over HTTP and to its operator's commands, and what of it reaches whom.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::node::Node;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::web::{ask, get};
use mesh_tests::world::Family;
use serde_json::{Value, json};

const METRICS: u16 = 15020;
const HEALTH: u16 = 15021;
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

fn at(node: &Node, port: u16) -> SocketAddr {
    SocketAddr::new(node.ip(Family::V4), port)
}

/// The exit status and the JSON that a command of the agent prints.
fn told(node: &Node, words: &[&str]) -> Result<(Option<i32>, Value)> {
    let output = node.command(words).args(["-o", "json"]).output()?;
    let answer = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code(), answer))
}

/// The one of a list whose field is this.
fn one<'a>(list: &'a Value, field: &str, value: &str) -> &'a Value {
    let mut all = list.as_array().into_iter().flatten();
    let found = all.find(|it| it[field] == value);
    found.unwrap_or_else(|| panic!("no {field} {value} in {list:#}"))
}

#[test]
fn of_a_node_with_a_tunnel() -> Result<()> {
    scenario("endpoints", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let out = lab.pod("out").namespace("plain").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2");
        let far = far.label("app", "far").create()?;
        let web = lab.service("web").namespace("shop").selector("app", "far");
        let web = web.port(80, 8080).create()?;
        lab.policy(
            "AuthorizationPolicy",
            "shop",
            "to-far",
            json!({"rules": [{"to": [{"operation": {"ports": ["8080"]}}]}]}),
        )?;
        let _app = Server::start(&far, 8080, App::Echo)?;
        let connection = client.connect(web.at(Family::V4))?;
        echoes(&connection, b"a stream")?;

        let [n1, n2] = ["n1", "n2"].map(|name| lab.node(name));
        let (status, dump) = get(n1.netns(), ADMIN, "/config_dump")?;
        assert_eq!(status, 200);
        assert!(!dump.contains("PRIVATE KEY"));
        let dump: Value = serde_json::from_str(&dump)?;
        for pod in [&client, &far] {
            let workload = one(&dump["workloads"], "name", pod.name());
            let addresses: Vec<_> = pod.addresses().iter().map(ToString::to_string).collect();
            assert_eq!(workload["workloadIps"], json!(addresses));
            assert_eq!(workload["node"], pod.node().name());
            assert_eq!(workload["protocol"], "HBONE");
        }
        assert_eq!(one(&dump["workloads"], "name", "out")["protocol"], "TCP");
        let service = one(&dump["services"], "name", "web");
        assert_eq!(service["vips"][0], format!("/{}", web.at(Family::V4).ip()));
        assert_eq!(service["ports"]["80"], 8080);
        let endpoint = &service["endpoints"]["Kubernetes//Pod/shop/far"];
        assert_eq!(endpoint["port"]["80"], 8080, "{service:#}");
        assert_eq!(one(&dump["policies"], "name", "to-far")["action"], "Allow");
        let certificate = &dump["certificates"][0];
        assert_eq!(certificate["state"], "Available", "{certificate:#}");
        let pem = certificate["certChain"][0]["pem"]
            .as_str()
            .unwrap_or_default();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
        let state = &dump["workloadState"]["Kubernetes//Pod/shop/client"];
        assert_eq!(state["state"], "Up");
        let open = &state["connections"]["outbound"][0];
        assert_eq!(open["src"], connection.local_addr()?.to_string());
        assert_eq!(open["originalDst"], web.at(Family::V4).to_string());
        assert_eq!(open["actualDst"], far.at(Family::V4, 8080).to_string());

        lists(n1, n2)?;
        let tunnels =
            |node| -> Result<Value> { Ok(told(node, &["tunnels"])?.1["tunnels"].clone()) };
        for (node, direction, local, remote) in [
            (n1, "outbound", "client", "far"),
            (n2, "inbound", "far", "client"),
        ] {
            let tunnels = tunnels(node)?;
            let tunnel = one(&tunnels, "direction", direction);
            let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
            assert_eq!(tunnel["local_identity"], id(local), "{tunnels:#}");
            assert_eq!(tunnel["remote_identity"], id(remote), "{tunnels:#}");
            assert_eq!(tunnel["streams"], 1, "{tunnels:#}");
        }
        drop(connection);
        eventually("the stream has ended", SOON, || {
            Ok(tunnels(n1)?[0]["streams"] == 0 && tunnels(n2)?[0]["streams"] == 0)
        })?;

        // What others reach of it, and what they do not.
        for from in [n1.netns(), n2.netns(), client.netns(), out.netns()] {
            assert_eq!(get(from, at(n1, HEALTH), "/healthz/ready")?.0, 200);
            let (status, metrics) = get(from, at(n1, METRICS), "/metrics")?;
            assert!(
                status == 200 && metrics.contains("istio_build"),
                "{metrics}"
            );
            let (status, _) = get(from, at(n1, METRICS), "/config_dump")?;
            assert_eq!(status, 404);
        }
        for from in [n2.netns(), client.netns(), out.netns()] {
            for to in [ADMIN, at(n1, ADMIN.port())] {
                if std::ptr::eq(from, n2.netns()) && to == ADMIN {
                    continue;
                }
                let reached = get(from, to, "/config_dump");
                assert!(reached.is_err(), "{to} from {}", from.name());
            }
        }
        logging(n1)?;
        dumps(lab, n1)
    })
}

/// The lists of workloads, services and certificates.
fn lists(n1: &Node, n2: &Node) -> Result<()> {
    let (_, list) = told(n1, &["workloads"])?;
    let out = one(&list["workloads"], "name", "out");
    assert_eq!(out["not_enrolled"], "namespace not labelled", "{list:#}");
    let (_, list) = told(n1, &["workloads", "shop/far"])?;
    assert_eq!(list["workloads"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["workloads"][0]["wired"], false);
    let (_, list) = told(n2, &["workloads", "shop/far"])?;
    assert_eq!(list["workloads"][0]["wired"], true);
    let unknown = n1.command(&["workloads", "shop/nobody"]).output()?;
    assert_eq!(unknown.status.code(), Some(2));
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(text.contains("no pod shop/nobody is known"), "{text}");

    let (_, list) = told(n1, &["services"])?;
    let web = one(&list["services"], "name", "web");
    assert_eq!((&web["ready"], &web["endpoints"]), (&json!(1), &json!(1)));
    let (code, list) = told(n1, &["certs"])?;
    assert_eq!(code, Some(0), "{list:#}");
    let id = "spiffe://cluster.local/ns/shop/sa/client";
    assert_eq!(one(&list, "identity", id)["last_error"], Value::Null);
    assert!(!list.to_string().contains("PRIVATE KEY"));

    let (_, status) = n1.status()?;
    assert_eq!(
        status["not_enrolled"]["namespace not labelled"],
        json!(["plain/out"])
    );
    assert_eq!(status["tunnels"], 1, "{status:#}");
    let http = status["http"].as_array().context("HTTP ports")?;
    assert_eq!(http.len(), 3);
    assert!(http.iter().all(|it| it["error"].is_null()), "{status:#}");
    let text = n1.command(&["tunnels"]).output()?.stdout;
    let text = String::from_utf8(text)?;
    assert!(
        text.starts_with("DIRECTION") && text.contains("outbound"),
        "{text}"
    );
    Ok(())
}

fn logging(node: &Node) -> Result<()> {
    let post = |path| ask(node.netns(), ADMIN, "POST", path, "*/*");
    let (status, text) = post("/logging?level=mesh_agent::http:debug")?;
    assert!(
        status == 200 && text.contains("mesh_agent::http=debug"),
        "{text}"
    );
    let (status, text) = post("/logging?level=loud")?;
    assert!(status == 400 && text.contains("\"loud\""), "{text}");
    assert_eq!(post("/logging?reset")?.0, 200);
    Ok(())
}

/// What `mesh-agent sysdump` writes, with an agent and without one.
fn dumps(lab: &Lab, node: &Node) -> Result<()> {
    let files = dump(lab, node)?;
    for name in [
        "agent/status.json",
        "agent/workloads.json",
        "agent/services.json",
        "agent/policies.json",
        "agent/tunnels.json",
        "agent/certificates.json",
        "agent/config_dump.json",
        "agent/flags.json",
        "agent/log.txt",
        "kernel/uname.txt",
        "kernel/counters.json",
        "network/links.txt",
    ] {
        assert!(
            files.get(name).is_some_and(|it| !it.is_empty()),
            "{name} in {:?}",
            files.keys()
        );
    }
    assert!(files["agent/log.txt"].contains("agent started"));
    assert!(files["agent/flags.json"].contains("\"node\": \"n1\""));
    assert!(files["kernel/programs.txt"].contains("from_pod"));
    assert!(
        files["kernel/maps.txt"].contains("WORKLOADS holds "),
        "{}",
        files["kernel/maps.txt"]
    );
    assert!(
        files["network/rules.txt"].contains("table 15008"),
        "{}",
        files["network/rules.txt"]
    );
    let route = "10.244.2.0/24 table 254 proto 109";
    assert!(
        files["network/routes.txt"].contains(route),
        "{}",
        files["network/routes.txt"]
    );
    assert!(
        !files["README.txt"].contains("MISSING"),
        "{}",
        files["README.txt"]
    );

    node.agent().stop()?;
    let files = dump(lab, node)?;
    assert!(
        files["README.txt"].contains("no agent answers"),
        "{}",
        files["README.txt"]
    );
    assert!(files["kernel/maps.txt"].contains("WORKLOADS holds "));
    Ok(())
}

/// The files of an archive, in which there is no secret of those that are at hand.
fn dump(lab: &Lab, node: &Node) -> Result<BTreeMap<String, String>> {
    const CANARY: &str = "value-of-the-environment";
    let path = lab.directory().join("dump.tar.gz");
    let mut command = node.command(&["sysdump"]);
    command.arg("--output").arg(&path);
    command.arg("--state").arg(node.state().join("state"));
    command.arg("--bpffs").arg(node.pins());
    command.env("SOME_TOKEN", CANARY);
    let output = node.netns().output(&mut command)?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let files = unpack(&path)?;
    let key = fs::read_to_string(lab.ca().join("root-key.pem"))?;
    let key = key.lines().nth(1).context("a key")?;
    for (name, text) in &files {
        for secret in ["PRIVATE KEY", "eyJ", CANARY, key] {
            assert!(!text.contains(secret), "{secret} in {name}");
        }
    }
    Ok(files)
}

fn unpack(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(path)?));
    let mut files = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry
            .path()?
            .components()
            .skip(1)
            .collect::<std::path::PathBuf>();
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        files.insert(name.display().to_string(), text);
    }
    Ok(files)
}

#[test]
fn of_a_node_that_is_not_ready() -> Result<()> {
    let lab = Lab::without_agents("endpoints_unready", 1, &[])?;
    let node = lab.node("n1");
    let broken = lab.directory().join("source/broken.yaml");
    fs::write(&broken, "kind: [")?;
    // Somebody else has the port.
    let taken = node
        .netns()
        .run(|| TcpListener::bind(("0.0.0.0", METRICS)))?;
    node.agent().start_unready()?;

    let ready = |accept| {
        ask(
            node.netns(),
            at(node, HEALTH),
            "GET",
            "/healthz/ready",
            accept,
        )
    };
    let (status, text) = ready("*/*")?;
    assert_eq!(status, 503);
    assert!(text.contains("has not read its source yet"), "{text}");
    assert!(text.contains("broken.yaml"), "{text}");
    assert!(text.contains("not in their slots yet"), "{text}");
    let (_, text) = ready("application/json")?;
    let document: Value = serde_json::from_str(&text)?;
    assert_eq!(document["ready"], false);
    assert!(
        document["pending"]
            .as_array()
            .is_some_and(|it| it.len() > 1),
        "{text}"
    );
    assert_eq!(get(node.netns(), at(node, HEALTH), "/healthz/live")?.0, 200);
    let problems = node.problems()?;
    assert!(
        problems.contains("--metrics-address [::]:15020 is not served"),
        "{problems}"
    );

    fs::remove_file(&broken)?;
    drop(taken);
    eventually("the node is ready", SOON, || Ok(ready("*/*")?.0 == 200))?;
    eventually("the port is served", SOON, || {
        Ok(get(node.netns(), at(node, METRICS), "/metrics")?.0 == 200)
    })?;
    assert_eq!(node.problems()?, "");

    // The next one has the ports as soon as the one before it lets go.
    node.agent().replace(None)?;
    eventually("the next agent is ready", SOON, || {
        Ok(ready("*/*")?.0 == 200)
    })?;
    assert_eq!(node.problems()?, "");
    Ok(())
}
