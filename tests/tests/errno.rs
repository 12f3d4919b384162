//! What `connect()` says of a refusal, and that it says so at once: `EPERM` where the node knows that policy is the reason,
//! `ECONNREFUSED` where nobody listens or another node refuses.

use std::fs;
use std::io::ErrorKind::{self, ConnectionRefused, ConnectionReset, PermissionDenied};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::Exactly;
use mesh_tests::holdings::Holdings;
use mesh_tests::lab::{Lab, scenario, scenario_with};
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

/// Well before a SYN is sent again.
const AT_ONCE: Duration = Duration::from_millis(700);

#[test]
fn connect_tells_why() -> Result<()> {
    scenario("errno", |lab| {
        for enrolled in [false, true] {
            let namespace = if enrolled { "meshed" } else { "plain" };
            let builder = lab.namespace(namespace);
            if enrolled { builder.ambient() } else { builder }.create()?;
            tell(lab, namespace)?;
        }
        Ok(())
    })
}

/// Where the agents are told to find the pods' cgroup.
const CGROUP: &str = "/run/mesh-errno-cgroup";

/// The tree of cgroups of version 2, mounted once more; dropping it unmounts.
struct Cgroup;

impl Cgroup {
    fn mount() -> Result<Self> {
        fs::create_dir_all(CGROUP)?;
        let (kind, flags) = (Some("cgroup2"), MsFlags::empty());
        mount(kind, CGROUP, kind, flags, None::<&str>)?;
        Ok(Self)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What fails here fails the next mount.
        let _ = umount2(CGROUP, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(CGROUP);
    }
}

#[test]
fn connect_tells_why_whatever_becomes_of_the_mount_of_cgroups() -> Result<()> {
    let mounted = Cgroup::mount()?;
    scenario_with("errno_cgroup", &["--cgroup", CGROUP], |lab| {
        let client = lab.pod("client").on("n1").create()?;
        let near = lab.pod("near").on("n1").create()?;
        let spec = json!({ "podSelector": {}, "policyTypes": ["Ingress"] });
        lab.policy("NetworkPolicy", "default", "nobody", spec)?;
        let node = lab.node("n1");
        let tells = || {
            for family in Family::BOTH {
                refused(&client, near.at(family, 8080), &[PermissionDenied]);
            }
            Holdings::of(node)
        };
        let before = tells()?;
        drop(mounted);
        assert_eq!(tells()?, before, "unmounted");
        node.agent().stop()?;
        node.agent().start()?;
        let log = node.agent().log();
        assert!(log.contains("see --cgroup"), "{log}");
        assert_eq!(tells()?, before, "by the programs of the agent before");
        let _mounted = Cgroup::mount()?;
        node.agent().stop()?;
        node.agent().start()?;
        assert_eq!(tells()?, before, "mounted again");
        Ok(())
    })
}

fn tell(lab: &Lab, namespace: &str) -> Result<()> {
    let pod = |name: &str, node| lab.pod(name).namespace(namespace).on(node).create();
    let client = pod("client", "n1")?;
    let near = pod("near", "n1")?;
    let far = pod("far", "n2")?;
    let _apps = [&near, &far].map(|server| Server::start(server, 8080, App::Echo));
    let ingress = |name: &str| {
        json!({
            "podSelector": { "matchLabels": { "app": name } },
            "ingress": [{ "ports": [{ "port": 8080 }, { "port": 9090 }] }],
        })
    };
    for name in ["near", "far"] {
        lab.policy("NetworkPolicy", namespace, name, ingress(name))?;
    }
    for family in Family::BOTH {
        let before = lab.node("n1").counters()?;
        for server in [&near, &far] {
            let open = client.connect(server.at(family, 8080))?;
            echoes(&open, b"allowed")?;
            // Allowed, and nobody there.
            refused(
                &client,
                server.at(family, 9090),
                &[ConnectionRefused, ConnectionReset],
            );
        }
        refused(&client, near.at(family, 8081), &[PermissionDenied]);
        // Only the far node knows; through a tunnel the connection opens first.
        refused(
            &client,
            far.at(family, 8081),
            &[ConnectionRefused, ConnectionReset],
        );
        let moved = lab.node("n1").counters()?.since(&before);
        moved.assert(&[(Hook::Connect, Outcome::Policy, Exactly(1))]);
    }
    let line = |line: &&str| {
        let told = ["hook=\"connect\"", "NetworkPolicy", "near", "dst.workload"];
        line.contains(&format!("{namespace}/client")) && told.iter().all(|it| line.contains(it))
    };
    let lines = || lab.node("n1").agent().log().lines().filter(line).count();
    // The programs' word reaches the log a moment after the caller.
    eventually("a line for each refusal", SOON, || Ok(lines() >= 2))?;
    assert_eq!(lines(), 2, "and no more");

    let nothing = json!({
        "podSelector": { "matchLabels": { "app": "client" } },
        "policyTypes": ["Egress"],
    });
    lab.policy("NetworkPolicy", namespace, "client", nothing)?;
    for family in Family::BOTH {
        for server in [&near, &far] {
            refused(&client, server.at(family, 8080), &[PermissionDenied]);
        }
        // No pod of ours: the packet is answered.
        let outside = SocketAddr::new(lab.outside_ip(family), 8080);
        refused(&client, outside, &[ConnectionRefused]);
    }
    Ok(())
}

/// Asserts that a connection is refused at once in one of these ways; through a tunnel that shows when it is used.
fn refused(client: &Pod<'_>, to: SocketAddr, kinds: &[ErrorKind]) {
    let began = Instant::now();
    let used = client.connect(to).and_then(|it| echoes(&it, b"may I?"));
    let error = used.expect_err("refused");
    let who = client.name();
    assert!(kinds.contains(&error.kind()), "{who} to {to}: {error:?}");
    assert!(
        began.elapsed() < AT_ONCE,
        "{who} to {to}: after {:?}",
        began.elapsed()
    );
}
