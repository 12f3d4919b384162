//! What was pinned is gone: the next agent takes the place of programs that it knows by their names alone.

use anyhow::{Result, ensure};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{scenario, stop};
use mesh_tests::node::UPLINK;
use mesh_tests::programs::one_each;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

const SECRET: &[u8] = b"pinned or not";

#[test]
fn an_agent_that_finds_no_pins_leaves_no_strays() -> Result<()> {
    scenario("pins", |lab| {
        lab.namespace("shop").ambient().create()?;
        let pod = |name, node| lab.pod(name).namespace("shop").on(node).create();
        let (client, near, far) = (pod("client", "n1")?, pod("near", "n1")?, pod("far", "n2")?);
        let _apps = [&near, &far].map(|it| Server::start(it, 8080, App::Echo));
        let node = lab.node("n1");
        let lo = || SchedClassifier::query_tcx("lo", TcAttachType::Ingress);
        let has_tcx = node.netns().run(lo).is_ok();
        let is_by_tcx = |device: &str| has_tcx && device == UPLINK;
        let before = one_each(node, is_by_tcx)?;
        let wire = lab.capture()?;
        node.agent().kill()?;
        node.lose_pins()?;
        node.agent().start()?;
        lab.settle()?;
        eventually("one program of each kind at each device", SOON, || {
            let now = one_each(node, is_by_tcx)?;
            ensure!(
                now.iter().all(|id| !before.contains(id)),
                "{before:?} then {now:?}"
            );
            Ok(true)
        })?;
        for family in Family::BOTH {
            for server in [&near, &far] {
                echoes(&client.connect(server.at(family, 8080))?, SECRET)?;
            }
        }
        let problems = node.problems()?;
        ensure!(problems.is_empty(), "{problems}");
        assert!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
        Ok(())
    })
}
