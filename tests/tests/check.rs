//! `mesh-agent check` passes a healthy node, and names what is wrong with others, with its remedy.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use mesh_tests::cabling::Cabling;
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::node::{Node, UPLINK};
use serde_json::Value;

#[test]
fn of_a_running_agent() -> Result<()> {
    scenario("check", |lab| {
        lab.namespace("shop").ambient().create()?;
        let _web = lab.pod("web").namespace("shop").on("n1").create()?;
        let node = lab.node("n1");
        let check = Check::of(lab, node)?;
        check.passes()?;
        check.told("ok", "the agent of node n1 is healthy", "")?;
        let mtu = Cabling::of_environment()?.mtu;
        for node in ["10.77.0.2", "fd00:77::2"] {
            check.told(
                "ok",
                &format!("packets of {mtu} bytes reach node {node}"),
                "",
            )?;
        }

        check.unset("net.ipv4.ip_forward", || {
            check.told("fail", "ip_forward is 0", "mesh-agent prepare")
        })?;
        check.unset("net.ipv6.conf.all.forwarding", || {
            check.told(
                "fail",
                "ipv6/conf/all/forwarding is 0",
                "mesh-agent prepare",
            )
        })?;

        // A port of the switch that takes less than both nodes think.
        let fabric = lab.outside()?;
        fabric.ip("link set n2 mtu 1400")?;
        let lost = format!("packets of {mtu} bytes do not reach node 10.77.0.2, small ones do");
        check.told("fail", &lost, "lower the MTU of the uplink")?;
        fabric.ip(&format!("link set n2 mtu {mtu}"))?;
        check.passes()?;

        lab.node("n1").agent().kill()?;
        check.passes()?;
        check.told("ok", "no agent runs here", "")?;
        for left in [
            "programs and maps in",
            "4 policy rules",
            "routes (protocol 109",
            "programs at eth0",
        ] {
            check.told("warn", left, "mesh-agent uninstall")?;
        }
        Ok(())
    })
}

#[test]
fn of_a_node_before_its_agent() -> Result<()> {
    let lab = Lab::without_agents("check_before", 1, &[])?;
    let node = lab.node("n1");
    let check = Check::of(&lab, node)?;
    check.passes()?;
    let text = String::from_utf8(node.netns().output(&mut check.command(&[]))?.stdout)?;
    assert!(
        text.lines()
            .all(|it| it.starts_with("ok ") || it.starts_with("WARN ")),
        "{text}"
    );
    check.told("ok", "ip_forward is 0, which the agent sets to 1", "")?;

    fs::write(
        check.conflists.join("05-other.conflist"),
        r#"{"plugins": [{"type": "ptp"}]}"#,
    )?;
    check.told(
        "fail",
        "05-other.conflist (plugin ptp) before ours",
        "remove it",
    )?;
    fs::remove_file(check.conflists.join("05-other.conflist"))?;
    check.passes()?;

    let nowhere = ["--bpffs", "/run/mesh-lab/check_before"];
    check.told_with(
        &nowhere,
        "fail",
        "is on no BPF file system",
        "mesh-agent prepare",
    )?;

    node.netns()
        .ip("rule add fwmark 0x0d000000/0x0f000000 lookup 15008 priority 51")?;
    check.told("warn", "1 policy rules (50, 51)", "mesh-agent uninstall")?;
    node.netns().ip("rule del priority 51")?;

    node.netns()
        .ip("link add cali123 type veth peer name cali456")?;
    check.told("warn", "interface cali123 is Calico's", "remove what")?;
    node.netns()
        .exec("nft", ["add table ip t; add chain ip t cali-INPUT"])?;
    check.told("ok", "1 chains of the packet filter are Calico's", "")?;
    node.netns()
        .exec("sysctl", ["-q", "net.ipv4.ip_local_port_range=10000 60999"])?;
    check.told(
        "warn",
        "ip_local_port_range is 10000 60999",
        "4096 to 14999",
    )?;
    check.told_with(
        &["--cgroup", "/proc"],
        "warn",
        "not of version 2",
        "--cgroup",
    )?;
    check.passes()?;

    let config = lab.directory().join("kubeconfig");
    fs::write(&config, KUBECONFIG)?;
    let config = config.to_string_lossy();
    let refused = ["--kubeconfig", &config];
    check.told_with(
        &refused,
        "fail",
        "the Kubernetes API cannot be asked",
        "--kubeconfig",
    )?;

    let ca = lab.directory().join("roots.pem");
    fs::write(&ca, "")?;
    let ca = ca.to_string_lossy();
    let refused = ["--ca-address", "127.0.0.1:15012", "--ca-root", &ca];
    check.told_with(
        &refused,
        "fail",
        "the authority 127.0.0.1:15012 cannot be asked",
        "--ca-root",
    )?;

    let away = ["--node-address", "10.77.0.9", "--uplink", UPLINK];
    check.told_with(
        &away,
        "warn",
        "reach node 10.77.0.9 is not known",
        "UDP port 15008",
    )
}

/// The command with a node's directories.
struct Check<'a> {
    node: &'a Node,
    conflists: PathBuf,
}

impl<'a> Check<'a> {
    fn of(lab: &Lab, node: &'a Node) -> Result<Self> {
        let conflists = lab.directory().join("conflists");
        fs::create_dir_all(&conflists)?;
        Ok(Self { node, conflists })
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = self.node.command(&["check"]);
        command.arg("--cni-conf-dir").arg(&self.conflists);
        command.arg("--state").arg(self.node.state().join("state"));
        if !more.contains(&"--bpffs") {
            command.arg("--bpffs").arg(self.node.pins());
        }
        command.args(more);
        command
    }

    /// The exit code and the findings.
    fn run(&self, more: &[&str]) -> Result<(i32, Vec<Value>)> {
        let mut command = self.command(more);
        let output = self.node.netns().output(command.args(["-o", "json"]))?;
        let code = output.status.code().context("an exit code")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let findings = serde_json::from_slice(&output.stdout);
        Ok((code, findings.with_context(|| said.into_owned())?))
    }

    fn passes(&self) -> Result<()> {
        let (code, findings) = self.run(&[])?;
        let failures = findings.iter().filter(|it| it["outcome"] == "fail");
        assert_eq!(failures.collect::<Vec<_>>(), Vec::<&Value>::new());
        assert_eq!(code, 0);
        Ok(())
    }

    fn told(&self, outcome: &str, what: &str, remedy: &str) -> Result<()> {
        self.told_with(&[], outcome, what, remedy)
    }

    /// Checks that a finding has these words, and that a failure alone makes the exit code 1.
    fn told_with(&self, more: &[&str], outcome: &str, what: &str, remedy: &str) -> Result<()> {
        let (code, findings) = self.run(more)?;
        let has = |it: &&Value, key: &str, words: &str| {
            it[key].as_str().is_some_and(|it| it.contains(words))
        };
        let found = findings.iter().find(|it| has(it, "what", what));
        let found = found.with_context(|| format!("{what} in {findings:#?}"))?;
        assert_eq!(found["outcome"], outcome, "{found}");
        assert!(has(&found, "remedy", remedy), "{remedy} in {found}");
        let fails = findings.iter().any(|it| it["outcome"] == "fail");
        assert_eq!(code, i32::from(fails));
        Ok(())
    }

    /// Runs with a setting at 0.
    fn unset(&self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let set = |value: u8| {
            let setting = format!("{name}={value}");
            self.node.netns().exec("sysctl", ["-q", &setting])
        };
        set(0)?;
        work()?;
        set(1).map(drop)
    }
}

/// Nobody listens there.
const KUBECONFIG: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:6"}}],
    "users": [{"name": "c", "user": {}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]}"#;
