//! A node boots: the conflist and the agent's state are on disk from before, the runtime starts pods at once, and the agent
//! comes later. No pod starts before its capture stands.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{scenario, stop};
use mesh_tests::netns::Netns;
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;

const SECRET: &[u8] = b"not before the tunnel stands";
/// How long the agent's container takes to start.
const LATE: Duration = Duration::from_secs(1);
const PODS: [&str; 3] = ["first", "second", "third"];

#[test]
fn pods_that_start_at_once_wait_for_their_capture() -> Result<()> {
    scenario("boot", |lab| {
        lab.namespace("shop").ambient().create()?;
        let shop = |name, node| lab.pod(name).namespace("shop").on(node);
        let far = shop("far", "n2").create()?;
        let _app = Server::start(&far, 8080, App::Echo)?;
        let before = [shop("before", "n1").create()?, shop("too", "n1").create()?];

        let node = lab.node("n1");
        node.reboot(&before.each_ref().map(Pod::netns))?;
        for pod in &before {
            lab.objects().remove("Pod", "shop", pod.name());
        }
        let wire = lab.capture()?;
        let agent_runs = AtomicBool::new(false);
        let pods = scope(|scope| {
            let starting = PODS.map(|name| {
                let (agent_runs, far) = (&agent_runs, &far);
                scope.spawn(move || {
                    shop(name, "n1").create_and(|netns, _| {
                        ensure!(
                            agent_runs.load(Ordering::SeqCst),
                            "{name} starts before the agent"
                        );
                        Family::BOTH
                            .into_iter()
                            .try_for_each(|family| speak(netns, far.at(family, 8080)))
                    })
                })
            });
            sleep(LATE);
            agent_runs.store(true, Ordering::SeqCst);
            node.agent().start()?;
            let started = starting.map(|it| it.join().expect("does not panic"));
            started.into_iter().collect::<Result<Vec<_>>>()
        })?;
        let mut addresses: BTreeSet<_> = before.iter().map(|pod| pod.ip(Family::V4)).collect();
        for (pod, spoke) in pods {
            spoke.with_context(|| pod.name().to_owned())?;
            ensure!(
                addresses.insert(pod.ip(Family::V4)),
                "an address is given twice"
            );
        }
        let wire = stop(wire)?;
        assert!(!wire.contains(SECRET), "nothing in plaintext");
        assert!(wire.tcp(HBONE_PORT) > 0, "tunnels");
        Ok(())
    })
}

/// The first act of a pod: to connect, until it is heard.
fn speak(netns: &Netns, to: SocketAddr) -> Result<()> {
    let began = Instant::now();
    loop {
        let connect = || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2));
        match netns
            .run(connect)
            .and_then(|stream| echoes(&stream, SECRET))
        {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > Duration::from_secs(20) => {
                return Err(error).with_context(|| format!("to {to}"));
            }
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}
