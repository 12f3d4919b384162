//! Many pods at once, and what a runtime may get wrong: every answer is the specification's, and nothing is left behind.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::cni::Call;
use mesh_tests::holdings::{Holdings, devices};
use mesh_tests::lab::scenario;
use mesh_tests::netns::Netns;
use serde_json::{Value, json};

/// Calls for every sandbox, so many at a time, and returns how long each took.
fn parallel(
    sandboxes: &[(Netns, Call)],
    at_a_time: usize,
    work: impl Fn(&Call) -> Result<()> + Sync,
) -> Result<Vec<Duration>> {
    let next = AtomicUsize::new(0);
    let durations = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_a_time)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some((_, call)) = sandboxes.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let start = Instant::now();
                        work(call).with_context(|| call.container.clone())?;
                        durations
                            .lock()
                            .expect("nobody panics")
                            .push(start.elapsed());
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("does not panic"))
    })?;
    let mut durations = durations.into_inner()?;
    durations.sort();
    Ok(durations)
}

#[test]
fn two_hundred_pods_twenty_at_a_time() -> Result<()> {
    scenario("churn", |lab| {
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        let sandboxes: Vec<_> = (0..200)
            .map(|i| lab.sandbox(&format!("c{i}")))
            .collect::<Result<_>>()?;
        for round in 0..2 {
            let addresses = Mutex::new(BTreeSet::new());
            let durations = parallel(&sandboxes, 20, |call| {
                let answer = node.cni().call(node.netns(), "ADD", call)?;
                let ips = answer.success()?["ips"].as_array().context("ips")?;
                ensure!(ips.len() == 2, "one address a family: {ips:?}");
                let mut addresses = addresses.lock().expect("nobody panics");
                for ip in ips {
                    ensure!(
                        addresses.insert(ip["address"].to_string()),
                        "{ip} is given twice"
                    );
                }
                Ok(())
            })?;
            println!(
                "ADD, round {round}: p50 {:?}, p99 {:?}",
                durations[100], durations[198]
            );
            ensure!(
                node.pods()? == before.pods + 200,
                "the kernel knows every pod"
            );
            let durations = parallel(&sandboxes, 20, |call| {
                node.cni().call(node.netns(), "DEL", call)?.success()?;
                // A runtime may ask again.
                node.cni()
                    .call(node.netns(), "DEL", call)?
                    .success()
                    .map(drop)
            })?;
            println!(
                "DEL twice, round {round}: p50 {:?}, p99 {:?}",
                durations[100], durations[198]
            );
            assert_eq!(Holdings::of(node)?, before, "nothing is left");
        }
        for (netns, _) in &sandboxes {
            ensure!(
                devices(netns)?.is_empty(),
                "{} keeps a device",
                netns.name()
            );
        }
        Ok(())
    })
}

#[test]
fn without_the_agent() -> Result<()> {
    scenario("absent", |lab| {
        let node = lab.node("n1");
        let cni = node.cni();
        let (netns, call) = lab.sandbox("c1")?;
        let (kept, kept_call) = lab.sandbox("c2")?;
        cni.call(node.netns(), "ADD", &kept_call)?.success()?;
        node.agent().kill()?;

        let before = devices(node.netns())?;
        assert_eq!(
            cni.call(node.netns(), "ADD", &call)?.code(),
            Some(11),
            "try again later"
        );
        assert!(devices(&netns)?.is_empty(), "nothing in the pod");
        assert_eq!(devices(node.netns())?, before, "nothing on the node");
        assert_eq!(
            cni.call(node.netns(), "STATUS", &Call::default())?.code(),
            Some(50)
        );
        cni.call(node.netns(), "DEL", &kept_call)?.success()?;
        assert!(devices(&kept)?.is_empty(), "DEL needs no agent");

        node.agent().start()?;
        cni.call(node.netns(), "ADD", &call)?.success()?;
        cni.call(node.netns(), "DEL", &call)?.success()?;
        Ok(())
    })
}

#[test]
fn errors_are_those_of_the_specification() -> Result<()> {
    scenario("cni_errors", |lab| {
        let node = lab.node("n1");
        let (netns, good) = lab.sandbox("c1")?;
        let cni = node.cni();
        let call = |command: &str, call: &Call| cni.call(node.netns(), command, call);
        let check = |what: &str, answer: mesh_tests::cni::Answer, code: u64, names: &str| {
            let text = format!("{} {}", answer.json["msg"], answer.json["details"]);
            assert_eq!(answer.code(), Some(code), "{what}: {}", answer.json);
            assert_ne!(answer.exit, 0, "{what}");
            assert!(text.contains(names), "{what}: {text} does not name {names}");
        };
        let with = |config: Value| Call {
            config,
            ..good.clone()
        };
        check(
            "no JSON",
            cni.call_raw(node.netns(), "ADD", &good, b"{")?,
            6,
            "",
        );
        check(
            "a version of tomorrow",
            call("ADD", &with(json!({ "cniVersion": "9.0.0" })))?,
            1,
            "9.0.0",
        );
        let nameless = Call {
            container: String::new(),
            ..good.clone()
        };
        check(
            "no container",
            call("ADD", &nameless)?,
            4,
            "CNI_CONTAINERID",
        );
        let odd = Call {
            container: "../x".to_owned(),
            ..good.clone()
        };
        check("an odd container", call("ADD", &odd)?, 4, "CNI_CONTAINERID");
        let nowhere = Call {
            netns: "/run/netns/none".to_owned(),
            ..good.clone()
        };
        let answer = call("ADD", &nowhere)?;
        assert!(
            answer.code().is_some() && answer.exit != 0,
            "a namespace that is not there: {}",
            answer.json
        );
        check(
            "an unknown command",
            call("FETCH", &good)?,
            4,
            "CNI_COMMAND",
        );
        check(
            "CHECK before it existed",
            call("CHECK", &with(json!({ "cniVersion": "0.3.1" })))?,
            1,
            "",
        );

        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let added = call("ADD", &with(json!({ "cniVersion": version })))?;
            assert_eq!(added.success()?["cniVersion"], version);
            if version != "0.3.1" {
                let config = json!({ "cniVersion": version, "prevResult": added.json });
                call("CHECK", &with(config))?.success()?;
            }
            call("DEL", &with(json!({ "cniVersion": version })))?.success()?;
        }
        let gone = Call {
            netns: String::new(),
            ..good.clone()
        };
        call("DEL", &gone)?.success()?;
        let versions = call("VERSION", &good)?;
        assert!(
            versions.success()?["supportedVersions"]
                .as_array()
                .is_some_and(|all| all.contains(&json!("1.1.0")))
        );
        assert!(devices(&netns)?.is_empty(), "nothing is left");
        Ok(())
    })
}

#[test]
fn gc_drops_what_is_not_listed() -> Result<()> {
    scenario("cni_gc", |lab| {
        let node = lab.node("n1");
        let before = node.pods()?;
        let sandboxes: Vec<_> = (0..3)
            .map(|i| lab.sandbox(&format!("c{i}")))
            .collect::<Result<_>>()?;
        for (_, call) in &sandboxes {
            node.cni().call(node.netns(), "ADD", call)?.success()?;
        }
        let keep =
            json!({ "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }] });
        let gc = Call {
            config: keep,
            ..Call::default()
        };
        node.cni().call(node.netns(), "GC", &gc)?.success()?;
        assert_eq!(node.pods()?, before + 1);
        let (_, kept) = &sandboxes[1];
        node.cni().call(node.netns(), "DEL", kept)?.success()?;
        assert_eq!(node.pods()?, before);
        Ok(())
    })
}
