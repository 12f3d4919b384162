//! Agents come and go under load: connections within a node and those of plain pods never notice, tunnels work again at
//! once, and the next agent takes up exactly what the last one left.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::holdings::Holdings;
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::node::{Node, UPLINK};
use mesh_tests::pod::{PATIENCE, Pod};
use mesh_tests::programs::one_each;
use mesh_tests::world::Family;

const ROUNDS: usize = 5;
const SECRET: &[u8] = b"the show goes on";

#[test]
fn stopped_and_started() -> Result<()> {
    again_and_again("restart_stop", End::Stop)
}

#[test]
fn killed_and_started() -> Result<()> {
    again_and_again("restart_kill", End::Kill)
}

/// How an agent ends.
#[derive(Clone, Copy)]
enum End {
    Stop,
    Kill,
}

fn again_and_again(name: &str, end: End) -> Result<()> {
    scenario(name, |lab| {
        lab.namespace("shop").ambient().create()?;
        let empty = lab
            .nodes()
            .iter()
            .map(Holdings::of)
            .collect::<Result<Vec<_>>>()?;
        let shop = |name, node| lab.pod(name).namespace("shop").on(node).create();
        let client = shop("client", "n1")?;
        let (near, far) = (shop("near", "n1")?, shop("far", "n2")?);
        let plain = lab.pod("plain").on("n1").create()?;
        let plain_far = lab.pod("plain-far").on("n2").create()?;
        let _apps = [&near, &far, &plain_far].map(|pod| Server::start(pod, 8080, App::Echo));

        let before = lab.node("n1").counters()?;
        let wire = lab.capture()?;
        let load = Load {
            unharmed: [(&client, &near), (&plain, &plain_far), (&plain, &near)],
            tunnelled: (&client, &far),
            end,
            done: AtomicBool::new(false),
        };
        load.during(|| {
            for round in 0..ROUNDS {
                for node in lab.nodes() {
                    restart(lab, node, end).with_context(|| format!("round {round}"))?;
                    for family in Family::BOTH {
                        let stream = client.connect(far.at(family, 8080))?;
                        echoes(&stream, SECRET).context("a tunnel after the restart")?;
                    }
                    sleep(Duration::from_millis(300));
                }
            }
            Ok(())
        })?;
        // Plain pods speak other words.
        assert!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
        lab.node("n1").counters()?.since(&before).assert(&[
            (Hook::FromPod, Outcome::Local, AtLeast(100)),
            (Hook::FromPod, Outcome::Listener, AtLeast(10)),
            (Hook::FromPod, Outcome::AgentAbsent, AtLeast(1)),
            // What the other end still sends to a tunnel that is gone.
            (Hook::ToPod, Outcome::NoFlow, AtLeast(0)),
        ]);

        let late = shop("late", "n1")?;
        for pod in [&client, &near, &plain] {
            assert_ne!(pod.ip(Family::V4), late.ip(Family::V4));
            assert_ne!(pod.ip(Family::V6), late.ip(Family::V6));
        }
        for pod in [client, near, far, plain, plain_far, late] {
            pod.delete()?;
        }
        for (node, empty) in lab.nodes().iter().zip(&empty) {
            assert_eq!(&Holdings::of(node)?, empty, "nothing is left");
        }
        Ok(())
    })
}

/// Ends and starts an agent; everything is as before, but for the programs, which are the new agent's.
fn restart(lab: &Lab, node: &Node, end: End) -> Result<()> {
    let holdings = Holdings::of(node)?;
    let before = programs(node)?;
    match end {
        End::Stop => node.agent().stop()?,
        End::Kill => node.agent().kill()?,
    }
    ensure!(programs(node)? == before, "programs outlive the agent");
    node.agent().start()?;
    lab.settle()?;
    ensure!(Holdings::of(node)? == holdings, "attachments are kept");
    let renewed = programs(node)?;
    ensure!(
        renewed.iter().all(|id| !before.contains(id)),
        "the new agent's programs: {before:?}, {renewed:?}"
    );
    Ok(())
}

/// The programs of a node, all four.
fn programs(node: &Node) -> Result<Vec<u32>> {
    let ids = one_each(node, |device| device == UPLINK)?;
    ensure!(
        ids.len() == 4,
        "from_net, to_net, from_pod, to_pod: {ids:?}"
    );
    Ok(ids)
}

/// Pods that speak without a pause, in old and in new connections.
struct Load<'a> {
    /// Client and server that must not notice.
    unharmed: [(&'a Pod<'a>, &'a Pod<'a>); 3],
    /// Those whose connections fail when an agent is killed, and wait when it is stopped.
    tunnelled: (&'a Pod<'a>, &'a Pod<'a>),
    end: End,
    done: AtomicBool,
}

impl Load<'_> {
    /// Runs something under load.
    ///
    /// # Errors
    /// Its own, or that of a connection that noticed.
    fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut open = Vec::new();
        for (client, server) in self.unharmed {
            for to in Family::BOTH.map(|family| server.at(family, 8080)) {
                open.push((client, to, client.connect(to)?));
            }
        }
        let (client, far) = self.tunnelled;
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for (client, to, stream) in &open {
                threads.push(scope.spawn(|| self.talk(stream)));
                threads.push(scope.spawn(|| self.connect(client, *to)));
            }
            let fickle: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| self.fickle(client, far.at(Family::V4, 8080))))
                .collect();
            let outcome = work();
            self.done.store(true, Ordering::Relaxed);
            outcome?;
            for thread in threads {
                let exchanges = thread.join().expect("does not panic")?;
                ensure!(exchanges > 50, "only {exchanges} exchanges");
            }
            let (mut good, mut cut) = (0, Vec::new());
            for thread in fickle {
                let (more, errors) = thread.join().expect("does not panic");
                good += more;
                cut.extend(errors);
            }
            println!("tunnelled connections: {good} good, {} cut", cut.len());
            ensure!(good > 50, "only {good} tunnelled connections");
            // What is open when an agent is told to stop has seconds to end; on a busy machine one may be late.
            let few = cut.len() * 100 <= good as usize;
            ensure!(matches!(self.end, End::Kill) || few, "cut: {cut:?}");
            Ok(())
        })
    }

    fn is_on(&self) -> bool {
        sleep(Duration::from_millis(5));
        !self.done.load(Ordering::Relaxed)
    }

    fn talk(&self, stream: &TcpStream) -> Result<u32> {
        let mut exchanges = 0;
        while self.is_on() {
            echoes(stream, b"unharmed").with_context(|| format!("{stream:?}"))?;
            exchanges += 1;
        }
        Ok(exchanges)
    }

    fn connect(&self, client: &Pod<'_>, to: SocketAddr) -> Result<u32> {
        let mut exchanges = 0;
        while self.is_on() {
            let attempt = client.connect(to).and_then(|it| echoes(&it, b"unharmed"));
            attempt.with_context(|| format!("{} to {to}", client.name()))?;
            exchanges += 1;
        }
        Ok(exchanges)
    }

    /// New tunnelled connections that worked, and how others failed.
    fn fickle(&self, client: &Pod<'_>, to: SocketAddr) -> (u32, Vec<io::Error>) {
        let (mut good, mut cut) = (0, Vec::new());
        // A SYN that is held while the agent is away is sent again after a second.
        let patience = match self.end {
            End::Stop => PATIENCE,
            End::Kill => Duration::from_millis(200),
        };
        while self.is_on() {
            let connect = || TcpStream::connect_timeout(&to, patience);
            let stream = client.netns().run(connect);
            let exchange = stream.and_then(|it| {
                it.set_read_timeout(Some(PATIENCE))?;
                echoes(&it, SECRET)
            });
            match exchange {
                Ok(()) => good += 1,
                Err(error) => cut.push(error),
            }
        }
        (good, cut)
    }
}
