//! With every agent killed: enrolled pods reach no other node and leak nothing, pods of one node and plain pods carry on;
//! with the agents back, all works again without touching a pod.

use std::io::Read;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::{AtLeast, Exactly};
use mesh_tests::flows::told;
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;

const SECRET: &[u8] = b"what nobody on the wire may read";

struct Cast<'lab> {
    client: Pod<'lab>,
    far: Pod<'lab>,
    near: Pod<'lab>,
    plain: Pod<'lab>,
    plain_far: Pod<'lab>,
}

impl<'lab> Cast<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        lab.namespace("shop").ambient().create()?;
        let enrolled = |name, node| lab.pod(name).namespace("shop").on(node).create();
        Ok(Self {
            client: enrolled("client", "n1")?,
            far: enrolled("far", "n2")?,
            near: enrolled("near", "n1")?,
            plain: lab.pod("plain").on("n1").create()?,
            plain_far: lab.pod("plain-far").on("n2").create()?,
        })
    }

    fn servers(&self) -> Result<Vec<Server>> {
        let pods = [&self.far, &self.near, &self.plain_far];
        Ok(pods
            .into_iter()
            .map(|pod| Server::start(pod, 8080, App::Echo))
            .collect::<Result<_, _>>()?)
    }
}

#[test]
fn killed() -> Result<()> {
    fail_closed("killed", |node| node.agent().kill())
}

#[test]
fn stopped() -> Result<()> {
    fail_closed("stopped", |node| node.agent().stop())
}

fn fail_closed(name: &str, end: impl Fn(&Node) -> Result<()>) -> Result<()> {
    scenario(name, |lab| {
        let cast = Cast::new(lab)?;
        let _servers = cast.servers()?;
        let far = cast.client.connect(cast.far.at(Family::V4, 8080))?;
        let near = cast.client.connect(cast.near.at(Family::V4, 8080))?;
        let plain = cast.plain.connect(cast.plain_far.at(Family::V4, 8080))?;
        for stream in [&far, &near, &plain] {
            echoes(stream, SECRET)?;
        }

        lab.nodes().iter().try_for_each(&end)?;
        for stream in [&near, &plain] {
            echoes(stream, SECRET)?;
        }
        // The last acknowledgement may be late.
        sleep(Duration::from_millis(200));
        let wire = lab.capture()?;
        let before = lab.node("n1").counters()?;
        assert!(
            !matches!((&far).read(&mut [0]), Ok(1..)),
            "the tunnel is gone, the application is told"
        );
        // What the application still sends goes nowhere.
        let _ = echoes(&far, SECRET);
        for family in Family::BOTH {
            assert!(
                cast.client.is_refused(cast.far.at(family, 8080)),
                "a new connection to another node"
            );
            echoes(&cast.client.connect(cast.near.at(family, 8080))?, SECRET)?;
        }
        echoes(&near, SECRET)?;
        let wire = stop(wire)?;
        assert!(!wire.contains(SECRET), "nothing in plaintext");
        assert_eq!(wire.tcp(8080), 0, "not even a SYN");
        assert_eq!(wire.tcp(HBONE_PORT), 0, "and no tunnel");
        lab.node("n1").counters()?.since(&before).assert(&[
            (Hook::FromPod, Outcome::AgentAbsent, AtLeast(2)),
            (Hook::FromPod, Outcome::Local, AtLeast(10)),
            (Hook::FromPod, Outcome::Listener, Exactly(0)),
        ]);

        echoes(&plain, SECRET)?;
        let wire = lab.capture()?;
        for family in Family::BOTH {
            echoes(
                &cast.plain.connect(cast.plain_far.at(family, 8080))?,
                SECRET,
            )?;
        }
        assert!(
            stop(wire)?.contains(SECRET),
            "plain pods speak as ever: the capture would have shown the payload"
        );

        lab.nodes()
            .iter()
            .try_for_each(|node| node.agent().start())?;
        // The kernel has kept what it had to tell.
        told(
            lab.node("n1"),
            &[
                ("/hook", "from_pod"),
                ("/reason", "the agent was away"),
                ("/source/workload", "shop/client"),
                ("/destination/workload", "shop/far"),
            ],
        )?;
        lab.settle()?;
        let wire = lab.capture()?;
        for family in Family::BOTH {
            for server in [&cast.far, &cast.near] {
                echoes(&cast.client.connect(server.at(family, 8080))?, SECRET)?;
            }
        }
        echoes(&near, SECRET)?;
        let wire = stop(wire)?;
        assert!(wire.tcp(HBONE_PORT) > 0, "tunnels again");
        assert!(!wire.contains(SECRET), "nothing in plaintext");
        Ok(())
    })
}

#[test]
fn pods_are_made_and_deleted_around_a_restart() -> Result<()> {
    scenario("restart", |lab| {
        let cast = Cast::new(lab)?;
        let node = lab.node("n1");
        let pods = node.pods()?;
        node.agent().kill()?;
        cast.near.delete()?;
        node.agent().start()?;
        lab.settle()?;
        let late = lab.pod("late").namespace("shop").on("n1").create()?;
        mesh_tests::wait::eventually(
            "the deleted pod is forgotten",
            mesh_tests::wait::SOON,
            || Ok(node.pods()? == pods),
        )?;
        let _app = Server::start(&late, 8080, App::Echo)?;
        for family in Family::BOTH {
            echoes(&cast.client.connect(late.at(family, 8080))?, SECRET)?;
            echoes(&cast.far.connect(late.at(family, 8080))?, SECRET)?;
        }
        Ok(())
    })
}
