//! `mesh-agent status` tells a healthy node from one that is not, and says what is wrong.

use std::fs;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, scenario_with};
use mesh_tests::node::Node;
use mesh_tests::wait::{SOON, eventually};
use serde_json::Value;

#[test]
fn of_a_node() -> Result<()> {
    scenario_with("status", &["--masquerade"], |lab| {
        lab.namespace("shop").ambient().create()?;
        let _web = lab.pod("web").namespace("shop").on("n1").create()?;
        let _plain = lab.pod("plain").on("n1").create()?;
        lab.peer_authentication("shop", "STRICT")?;
        let node = lab.node("n1");
        let (code, status) = node.status()?;
        assert_eq!((code, &status["problems"]), (0, &Value::Array(Vec::new())));
        let pods = &status["pods"];
        assert_eq!(
            (&pods["wired"], &pods["enrolled"], &pods["strict"]),
            (&2.into(), &1.into(), &1.into())
        );
        let network = &status["network"];
        assert_eq!(network["uplinks"][0]["name"], "eth0");
        assert_eq!(network["addresses"][0]["taken"], 2);
        assert_eq!(network["addresses"][0]["free"], 251, "{network}");
        assert_eq!(network["masquerades"], true);
        let text = node.netns().output(&mut node.command(&["status"]))?.stdout;
        let text = String::from_utf8(text)?;
        assert!(
            text.contains("node n1") && text.contains("2 wired, 1 enrolled, 1 strict"),
            "{text}"
        );

        // A program that somebody took away.
        fs::remove_file(node.pins().join("links/from_net-eth0"))?;
        problem(node, "eth0 is without from_net")?;
        node.agent().stop()?;
        let (code, _) = node.status()?;
        assert_eq!(code, 2, "nobody answers");
        Ok(())
    })
}

#[test]
fn of_a_node_that_is_not_told() -> Result<()> {
    let lab = Lab::without_agents("status_unready", 1, &[])?;
    lab.objects().remove("Node", "", "n1");
    let node = lab.node("n1");
    node.agent().start_unready()?;
    problem(node, "the source has no Node n1")
}

fn problem(node: &Node, what: &str) -> Result<()> {
    // The kernel lets go of a program a moment after its pin is gone.
    eventually(what, SOON, || {
        let (code, status) = node.status()?;
        let problem = status["problems"][0]["what"].as_str();
        let problem = problem.context("no problem is told")?;
        ensure!(code == 1 && problem.contains(what), "{code} {problem}");
        Ok(true)
    })
}
