//! CNI calls that cannot succeed, that meet each other, or that are cut short: the answer names what is wrong, and nothing
//! stands in the way of the next call.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::cni::{Answer, Call};
use mesh_tests::holdings::{Holdings, devices};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::node::Node;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::json;

/// The answer is an error with this code that names all of these.
fn check(answer: &Answer, code: u64, names: &[&str]) {
    assert_ne!(answer.exit, 0, "{}", answer.json);
    assert_eq!(answer.code(), Some(code), "{}", answer.json);
    let text = format!("{} {}", answer.json["msg"], answer.json["details"]);
    for name in names {
        assert!(text.contains(name), "{text} does not name {name}");
    }
}

fn call(node: &Node, command: &str, call: &Call) -> Result<Answer> {
    node.cni().call(node.netns(), command, call)
}

/// The addresses in a result.
fn ips(answer: &Answer) -> Result<Vec<String>> {
    let ips = answer.success()?["ips"].as_array().context("no ips")?;
    let address = |ip: &serde_json::Value| ip["address"].as_str().map(str::to_owned);
    ips.iter()
        .map(|ip| address(ip).context("no address"))
        .collect()
}

/// Adds as a runtime does, which tries again when it is told to.
fn add(node: &Node, wanted: &Call) -> Result<Answer> {
    let mut answer = call(node, "ADD", wanted)?;
    let deadline = Instant::now() + SOON;
    while answer.code() == Some(11) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        answer = call(node, "ADD", wanted)?;
    }
    Ok(answer)
}

#[test]
fn a_pod_that_the_source_does_not_know() -> Result<()> {
    scenario("cni_ghost", |lab| {
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        let (netns, sandbox) = lab.sandbox("ghost")?;
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=ghost;K8S_POD_UID=7";
        let pod = Call {
            args: args.to_owned(),
            ..sandbox
        };
        check(
            &call(node, "ADD", &pod)?,
            11,
            &["shop/ghost", "K8S_POD_NAME"],
        );
        assert!(devices(&netns)?.is_empty());
        assert_eq!(Holdings::of(node)?, before, "nothing is left");
        Ok(())
    })
}

#[test]
fn an_interface_name_that_is_taken() -> Result<()> {
    scenario("cni_taken", |lab| {
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        let (netns, sandbox) = lab.sandbox("taken")?;
        netns.ip("link add eth0 type veth peer name eth1")?;
        check(&call(node, "ADD", &sandbox)?, 101, &["CNI_IFNAME", "eth0"]);
        assert!(devices(&netns)?.contains("eth0"), "what was there stays");
        assert_eq!(Holdings::of(node)?, before, "nothing else is left");

        netns.ip("link delete eth0")?;
        call(node, "ADD", &sandbox)?.success()?;
        check(&call(node, "ADD", &sandbox)?, 7, &["taken", "eth0"]);
        let stands = Holdings::of(node)?;
        assert_eq!(stands.pods, before.pods + 1, "a second ADD harms nothing");
        call(node, "DEL", &sandbox)?.success()?;
        assert_eq!(Holdings::of(node)?, before);
        Ok(())
    })
}

/// A runtime that gave up on an ADD, and asks again while the first still runs.
#[test]
fn one_container_added_twice_at_once() -> Result<()> {
    scenario("cni_twice", |lab| {
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        for round in 0..20 {
            let (netns, sandbox) = lab.sandbox(&format!("twice{round}"))?;
            let answers = thread::scope(|scope| {
                let adds = [(); 3].map(|()| scope.spawn(|| call(node, "ADD", &sandbox)));
                adds.map(|add| add.join().expect("does not panic"))
            });
            let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
            let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|it| it.exit == 0);
            ensure!(good.len() == 1, "one of them wins: {answers:#?}");
            for answer in bad {
                ensure!(matches!(answer.code(), Some(7 | 11)), "{}", answer.json);
            }
            let config = json!({ "prevResult": good[0].json });
            let wired = Call { config, ..sandbox };
            call(node, "CHECK", &wired)?.success()?;
            let first = ips(good[0])?.remove(0);
            let to = SocketAddr::new(first.split('/').next().unwrap_or_default().parse()?, 9);
            let probe = || TcpStream::connect_timeout(&to, Duration::from_secs(2));
            let refused = node.netns().run(probe).map_err(|error| error.kind());
            ensure!(
                matches!(refused, Err(ErrorKind::ConnectionRefused)),
                "the pod answers: {refused:?}"
            );
            call(node, "DEL", &wired)?.success()?;
            ensure!(devices(&netns)?.is_empty(), "round {round}");
        }
        assert_eq!(Holdings::of(node)?, before, "nothing is left");
        Ok(())
    })
}

/// A DEL overtakes the ADD: whatever came of the ADD, the address is given to one container only.
#[test]
fn a_del_in_the_middle_of_an_add() -> Result<()> {
    scenario("cni_overtaken", |lab| {
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        for round in 0..20 {
            let (_netns, sandbox) = lab.sandbox(&format!("overtaken{round}"))?;
            thread::scope(|scope| -> Result<()> {
                let add = scope.spawn(|| call(node, "ADD", &sandbox));
                thread::sleep(Duration::from_millis(round));
                call(node, "DEL", &sandbox)?.success()?;
                add.join().expect("does not panic").map(drop)
            })?;
            call(node, "DEL", &sandbox)?.success()?;
        }
        assert_eq!(Holdings::of(node)?, before, "nothing is left");
        Ok(())
    })
}

#[test]
fn an_add_that_is_killed_blocks_nothing() -> Result<()> {
    scenario("cni_killed", |lab| {
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        for round in 0..30 {
            let (netns, sandbox) = lab.sandbox(&format!("killed{round}"))?;
            let after = Duration::from_millis(round);
            node.cni()
                .call_and_kill(node.netns(), "ADD", &sandbox, after)?;
            let mut again = add(node, &sandbox)?;
            if again.code() == Some(7) {
                // It was complete but for its answer; a runtime deletes what it had no answer for.
                call(node, "DEL", &sandbox)?.success()?;
                again = add(node, &sandbox)?;
            }
            again
                .success()
                .with_context(|| format!("after {after:?}"))?;
            call(node, "DEL", &sandbox)?.success()?;
            ensure!(devices(&netns)?.is_empty(), "after {after:?}");
        }
        assert_eq!(Holdings::of(node)?, before, "nothing is left");
        Ok(())
    })
}

/// Gives a node pod CIDRs while its agent does not run.
fn set_cidrs(lab: &Lab, node: &Node, cidrs: &[&str]) -> Result<()> {
    lab.objects().edit("Node", "", node.name(), |object| {
        object["spec"] = json!({ "podCIDR": cidrs.first(), "podCIDRs": cidrs });
    })
}

#[test]
fn a_del_that_found_no_agent() -> Result<()> {
    scenario("cni_queued", |lab| {
        let node = lab.node("n1");
        node.agent().stop()?;
        // Five addresses: the network's own, the one after it and the last are never given.
        set_cidrs(lab, node, &["10.244.1.0/29", "fd00:244:1::/64"])?;
        node.agent().start()?;
        let before = Holdings::of(node)?;
        let sandboxes = (0..6)
            .map(|number| lab.sandbox(&format!("queued{number}")))
            .collect::<Result<Vec<_>>>()?;
        let (netns, first) = &sandboxes[0];
        let (_, last) = &sandboxes[5];
        let mut given = Vec::new();
        for (_, sandbox) in &sandboxes[..5] {
            given.push(ips(&call(node, "ADD", sandbox)?)?);
        }
        check(&call(node, "ADD", last)?, 11, &["IPv4", "pod CIDR"]);
        let none = Call::default();
        check(&call(node, "STATUS", &none)?, 50, &["IPv4", "pod CIDR"]);

        for stop in [true, false] {
            let agent = node.agent();
            if stop {
                agent.stop()?;
            } else {
                agent.kill()?;
            }
            check(&call(node, "STATUS", &none)?, 50, &["socket"]);
            call(node, "DEL", first)?.success()?;
            call(node, "DEL", first)?.success()?;
            assert!(devices(netns)?.is_empty());
            agent.start()?;
            let again = ips(&call(node, "ADD", first)?)?;
            assert_eq!(again[0], given[0][0], "the one address that is free");
            check(&call(node, "ADD", last)?, 11, &["IPv4"]);
        }
        for (_, sandbox) in &sandboxes {
            call(node, "DEL", sandbox)?.success()?;
        }
        assert_eq!(Holdings::of(node)?, before, "nothing is left");
        call(node, "STATUS", &none)?.success()?;
        Ok(())
    })
}

#[test]
fn a_pod_cidr_that_is_none() -> Result<()> {
    scenario("cni_cidr", |lab| {
        let node = lab.node("n1");
        let none = Call::default();
        let (_netns, sandbox) = lab.sandbox("nowhere")?;
        node.agent().stop()?;
        let before = devices(node.netns())?;
        for (cidrs, names) in [
            (
                &["10.244.1.0/33"][..],
                &["spec.podCIDRs[0]", "10.244.1.0/33"][..],
            ),
            (&[], &["spec.podCIDRs", "Node"]),
        ] {
            set_cidrs(lab, node, cidrs)?;
            node.agent().start_unready()?;
            eventually("STATUS tells why", SOON, || {
                let answer = call(node, "STATUS", &none)?;
                let text = answer.json["msg"].to_string();
                Ok(answer.code() == Some(50) && names.iter().all(|name| text.contains(name)))
            })?;
            check(&call(node, "ADD", &sandbox)?, 11, names);
            assert_eq!(devices(node.netns())?, before, "nothing is left");
            node.agent().stop()?;
        }
        let log = node.agent().log();
        let told = log.lines().find(|line| line.contains("10.244.1.0/33"));
        let told = told.context("the log does not tell")?;
        assert!(
            told.contains("node-n1.yaml") && told.contains("WARN"),
            "{told}"
        );

        // Mended while the agent runs, and spoiled again: what was good stays in force.
        set_cidrs(lab, node, &["10.244.1.0/33"])?;
        node.agent().start_unready()?;
        set_cidrs(lab, node, &["10.244.1.0/24", "fd00:244:1::/64"])?;
        eventually("STATUS is good", SOON, || {
            Ok(call(node, "STATUS", &none)?.exit == 0)
        })?;
        set_cidrs(lab, node, &["10.244.1.0/33"])?;
        let client = lab.pod("client").create()?;
        let server = lab.pod("server").create()?;
        let _app = Server::start(&server, 8080, App::Echo)?;
        echoes(&client.connect(server.at(Family::V4, 8080))?, b"hello")?;
        Ok(())
    })
}
