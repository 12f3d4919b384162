//! Programs as clsact filters, as kernels before 6.6 have it: capture and the short cut work, the next agent's filters take
//! the place of the last one's, and deleted pods leave nothing.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::holdings::Holdings;
use mesh_tests::lab::{Lab, scenario_with, stop};
use mesh_tests::pod::Pod;
use mesh_tests::programs::one_each;
use mesh_tests::world::Family;

const CLSACT: &[&str] = &["--attach", "clsact"];
const SECRET: &[u8] = b"an old kernel knows old tricks";

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

        let mut programs = one_each(node, |_| false)?;
        for kill in [false, true, true] {
            let agent = node.agent();
            if kill {
                agent.kill()?;
            } else {
                agent.stop()?;
            }
            ensure!(
                one_each(node, |_| false)? == programs,
                "filters outlive the agent"
            );
            echoes(&open, SECRET)?;
            agent.start()?;
            let now = one_each(node, |_| false)?;
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
        one_each(node, |_| false)?;
        far.delete()
    })
}
