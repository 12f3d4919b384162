//! Programs as clsact filters, as kernels before 6.6 have it: capture and the short cut work, the next agent's filters take
//! the place of the last one's, and deleted pods leave nothing.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::holdings::{Holdings, devices};
use mesh_tests::lab::{Lab, scenario_with, stop};
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;
use serde_json::Value;

const CLSACT: &[&str] = &["--attach", "clsact"];
const SECRET: &[u8] = b"an old kernel knows old tricks";

/// Ids of the programs that filter at a device, ingress and egress.
fn filters(node: &Node, device: &str) -> Result<[Vec<u64>; 2]> {
    let ids = |direction| -> Result<Vec<u64>> {
        let shown = node
            .netns()
            .exec("tc", ["-json", "filter", "show", "dev", device, direction])?;
        let shown: Value = serde_json::from_str(&shown)?;
        let all = shown.as_array().context("no list of filters")?.iter();
        Ok(all
            .filter_map(|it| it["options"]["prog"]["id"].as_u64())
            .collect())
    };
    Ok([ids("ingress")?, ids("egress")?])
}

/// Every device has one filter each way, all of the programs of the running agent; returns those.
fn one_each(node: &Node) -> Result<Vec<u64>> {
    let mut programs = Vec::new();
    for device in devices(node.netns())? {
        let found = filters(node, &device)?;
        ensure!(
            [found[0].len(), found[1].len()] == [1, 1],
            "{device}: {found:?}"
        );
        programs.extend(found.concat());
    }
    programs.sort_unstable();
    programs.dedup();
    ensure!(
        programs.len() <= 4,
        "from_net, to_net, from_pod, to_pod: {programs:?}"
    );
    Ok(programs)
}

fn talk(lab: &Lab, client: &Pod<'_>, far: SocketAddr, near: SocketAddr) -> Result<()> {
    let before = lab.node("n1").counters()?;
    let wire = lab.capture()?;
    for to in [far, near] {
        echoes(&client.connect(to)?, SECRET).with_context(|| to.to_string())?;
    }
    let wire = stop(wire)?;
    assert!(wire.tcp(HBONE_PORT) > 0 && !wire.contains(SECRET));
    lab.node("n1").counters()?.since(&before).assert(&[
        (Hook::FromPod, Outcome::Listener, AtLeast(1)),
        (Hook::FromPod, Outcome::Local, AtLeast(4)),
        (Hook::FromNet, Outcome::Socket, AtLeast(1)),
    ]);
    Ok(())
}

#[test]
fn filters_of_clsact_do_the_same() -> Result<()> {
    scenario_with("clsact", CLSACT, |lab| {
        lab.namespace("shop").ambient().create()?;
        let node = lab.node("n1");
        let before = Holdings::of(node)?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2").create()?;
        let _apps = [&near, &far].map(|pod| Server::start(pod, 8080, App::Echo));
        let all_talk = || {
            Family::BOTH.iter().try_for_each(|family| {
                talk(lab, &client, far.at(*family, 8080), near.at(*family, 8080))
            })
        };
        all_talk()?;
        let open = client.connect(near.at(Family::V4, 8080))?;

        let mut programs = one_each(node)?;
        for kill in [false, true, true] {
            let agent = node.agent();
            if kill {
                agent.kill()?;
            } else {
                agent.stop()?;
            }
            ensure!(one_each(node)? == programs, "filters outlive the agent");
            echoes(&open, SECRET)?;
            agent.start()?;
            let now = one_each(node)?;
            ensure!(
                now.iter().all(|id| !programs.contains(id)),
                "the programs are the new agent's: {programs:?}, {now:?}"
            );
            programs = now;
            echoes(&open, SECRET)?;
            all_talk()?;
        }

        drop(open);
        for pod in [client, near] {
            pod.delete()?;
        }
        assert_eq!(Holdings::of(node)?, before, "nothing is left");
        one_each(node)?;
        far.delete()
    })
}
