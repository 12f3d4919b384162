//! The agent puts plugin and network configuration in place, keeps them there, and `uninstall` leaves the node as it was.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use mesh_tests::holdings::devices;
use mesh_tests::lab::Lab;
use mesh_tests::netns::Netns;
use mesh_tests::node::{Node, UPLINK};
use mesh_tests::wait::{SOON, eventually};
use serde_json::Value;

/// Directories of the runtime, below the lab's own, and what makes the agent leave as many traces as it can.
macro_rules! flags {
    ($lab:literal $(, $more:literal)*) => {
        &[
            concat!("--cni-bin-dir=/run/mesh-lab/", $lab, "/opt"),
            concat!("--cni-conf-dir=/run/mesh-lab/", $lab, "/etc"),
            "--masquerade",
            $($more),*
        ]
    };
}

#[test]
fn files_are_kept() -> Result<()> {
    let (lab, opt, etc) = lab("install", flags!("install"))?;
    let node = lab.node("n1");
    let (plugin, conflist) = (opt.join("mesh-cni"), etc.join("10-mesh-cni.conflist"));
    // Half a world: a node that the source does not tell yet.
    let object = lab.objects().get("Node", "", "n1");
    lab.objects().remove("Node", "", "n1");
    node.agent().start_unready()?;
    eventually("the plugin is there", SOON, || Ok(plugin.exists()))?;
    ensure!(
        !conflist.exists(),
        "no network before the agent can wire pods"
    );
    lab.objects()
        .apply(object.expect("a lab makes its nodes"))?;
    let is_there = || Ok(conflist.exists() && plugin.exists());
    eventually("the configuration is there", SOON, is_there)?;
    assert_eq!(fs::metadata(&plugin)?.permissions().mode() & 0o777, 0o755);
    let list: Value = serde_json::from_slice(&fs::read(&conflist)?)?;
    assert_eq!(list["plugins"][0]["type"], "mesh-cni");
    let socket = list["plugins"][0]["socket"].as_str().unwrap_or_default();
    assert!(Path::new(socket).exists(), "{socket}");

    fs::remove_file(&conflist)?;
    fs::write(&plugin, "not a plugin")?;
    eventually("they are put back", SOON, || {
        Ok(conflist.exists() && fs::metadata(&plugin)?.len() > 1000)
    })?;
    let told = |path: &Path| {
        let log = node.agent().log();
        let path = path.display().to_string();
        log.lines()
            .filter(|it| it.contains("put back") && it.contains(&path))
            .count()
    };
    eventually("it is told once each", SOON, || {
        Ok((told(&plugin), told(&conflist)) == (1, 1))
    })?;

    fs::write(etc.join("05-other.conflist"), "{}")?;
    eventually("another network is told", SOON, || {
        Ok(node.agent().log().contains("05-other.conflist"))
    })?;
    node.agent().stop()?;
    ensure!(is_there()?, "both stay when the agent stops");
    let (netns, late) = lab.sandbox("late")?;
    let away = node.cni().call(node.netns(), "ADD", &late)?;
    Netns::remove(netns.name())?;
    assert_eq!(away.code(), Some(11), "and pods are told to try again");
    Ok(())
}

#[test]
fn uninstall_leaves_the_node_as_it_was() -> Result<()> {
    as_it_was("uninstall", flags!("uninstall"))
}

#[test]
fn uninstall_removes_filters_too() -> Result<()> {
    as_it_was("uninstall_tc", flags!("uninstall_tc", "--attach=clsact"))
}

fn as_it_was(name: &str, flags: &'static [&'static str]) -> Result<()> {
    let (lab, ..) = lab(name, flags)?;
    let node = lab.node("n1");
    let before = traces(&lab, node)?;
    lab.nodes()
        .iter()
        .try_for_each(|node| node.agent().start())?;
    let pod = lab.pod("a").on("n1").create()?;
    eventually("it is installed", SOON, || {
        Ok(lab.directory().join("etc/10-mesh-cni.conflist").exists())
    })?;
    let running = traces(&lab, node)?;
    for what in ["15008", "proto 109", "masquerade", "mesh-cni"] {
        assert!(
            running.iter().any(|it| it.contains(what)),
            "{what} in {running:?}"
        );
    }
    let refused = uninstall(&lab, node)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("an agent runs"), "{said}");
    assert_eq!(traces(&lab, node)?, running, "a refusal touches nothing");

    node.agent().stop()?;
    let done = uninstall(&lab, node)?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(said.contains("left: 1 pod interface"), "{said}");
    // The pod is left to its runtime, whose next network ends it.
    let device = devices(node.netns())?.into_iter().find(|it| it != UPLINK);
    let device = device.expect("the pod's interface is left");
    node.netns().ip(&format!("link del {device}"))?;
    Netns::remove(pod.netns().name())?;
    assert_eq!(traces(&lab, node)?, before);

    let again = uninstall(&lab, node)?;
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(
        again.status.success() && !said.contains("removed"),
        "{said}"
    );
    Ok(())
}

/// A lab whose agents are not started yet, and the runtime's directories.
fn lab(name: &str, flags: &'static [&'static str]) -> Result<(Lab, PathBuf, PathBuf)> {
    let lab = Lab::without_agents(name, 1, flags)?;
    let [opt, etc] = ["opt", "etc"].map(|name| lab.directory().join(name));
    fs::create_dir_all(&opt)?;
    fs::create_dir_all(&etc)?;
    Ok((lab, opt, etc))
}

fn uninstall(lab: &Lab, node: &Node) -> Result<Output> {
    let mut command = node.program(&["uninstall", "--purge-state"]);
    for (flag, directory) in [
        ("--bpffs", node.pins()),
        ("--state", node.state().join("state")),
        ("--run-dir", node.state().join("run")),
        ("--cni-bin-dir", lab.directory().join("opt")),
        ("--cni-conf-dir", lab.directory().join("etc")),
    ] {
        command.arg(flag).arg(directory);
    }
    node.netns().output(&mut command)
}

/// What can be seen of an agent on a node: one line each.
fn traces(lab: &Lab, node: &Node) -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for command in [
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
        "tc qdisc show dev eth0",
        "tc filter show dev eth0 ingress",
        "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.accept_ra",
    ] {
        let mut words = command.split_whitespace();
        let program = words.next().unwrap_or_default();
        let shown = node.netns().exec(program, words)?;
        traces.extend(shown.lines().map(|line| format!("{command}: {line}")));
    }
    for attach in [TcAttachType::Ingress, TcAttachType::Egress] {
        let queried = node
            .netns()
            .run(|| SchedClassifier::query_tcx(UPLINK, attach));
        let programs = queried.map_or(0, |(_, programs)| programs.len());
        traces.insert(format!("{programs} programs at {attach:?}"));
    }
    for directory in [
        lab.directory().join("opt"),
        lab.directory().join("etc"),
        node.pins(),
    ] {
        list(&directory, &mut traces);
    }
    list(&node.state().join("state"), &mut traces);
    Ok(traces)
}

fn list(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(path.display().to_string());
        if path.is_dir() {
            list(&path, found);
        }
    }
}
