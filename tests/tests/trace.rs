//! `mesh-agent trace` tells what becomes of a connection before it is opened, and `mesh-agent policies` why.

use anyhow::{Context, Result};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::scenario;
use mesh_tests::node::Node;
use mesh_tests::world::Family;
use serde_json::{Value, json};

/// The exit status and the JSON that the agent's command prints.
fn ask(node: &Node, words: &[&str]) -> Result<(Option<i32>, Value)> {
    let output = node.command(words).args(["-o", "json"]).output()?;
    let answer = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code(), answer))
}

#[test]
fn what_is_told_is_what_happens() -> Result<()> {
    scenario("trace", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2").create()?;
        lab.objects().apply(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "only-8080"},
            "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]},
        }))?;
        lab.settle()?;
        let node = lab.node("n1");
        for server in [&near, &far] {
            let name = format!("shop/{}", server.name());
            for (port, allowed) in [(8080, true), (8081, false)] {
                let _app = Server::start(server, port, App::Echo)?;
                let to = format!("{name}:{port}");
                let (code, trace) = ask(node, &["trace", "shop/client", &to])?;
                assert_eq!(code, Some(i32::from(!allowed)), "{trace:#}");
                let at = server.at(Family::V4, port);
                if allowed {
                    assert_eq!(trace["conclusion"], "allowed");
                    echoes(&client.connect(at)?, b"as it was told")?;
                } else {
                    let conclusion = trace["conclusion"].as_str().unwrap_or_default();
                    assert!(conclusion.contains("shop/only-8080"), "{conclusion}");
                    // The agent has taken a captured connection before it is refused, and resets it.
                    let opened = client.connect(at);
                    let passed = opened.and_then(|it| echoes(&it, b"not to pass"));
                    assert!(passed.is_err(), "{conclusion}");
                }
            }
        }
        let (code, report) = ask(node, &["policies", "shop/near"])?;
        assert_eq!(code, Some(0));
        let layers = &report["found"]["pod"]["layers"];
        assert_eq!(layers[1]["policies"][0]["policy"]["name"], "only-8080");
        let unknown = node
            .command(&["trace", "shop/nobody", "shop/far:80"])
            .output()?;
        assert_eq!(unknown.status.code(), Some(2));
        let told = String::from_utf8_lossy(&unknown.stderr).into_owned();
        assert!(told.contains("no pod shop/nobody is known"), "{told}");
        Ok(())
    })
}
