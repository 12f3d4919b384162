//! A pod that takes all it can get takes its share: the agent's places, descriptors, ports and memory suffice for others.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::app::{App, Server, echoes, raise_descriptor_limit};
use mesh_tests::flows::told;
use mesh_tests::foreign::Foreign;
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::objects::{self, Labels};
use mesh_tests::pod::Pod;
use mesh_tests::usage::Usage;
use mesh_tests::wait::eventually;
use mesh_tests::world::Family;

/// Connections that the greedy pod tries to open.
const ATTEMPTS: usize = 8000;
/// Threads that do so.
const HANDS: usize = 8;
/// Connections from one source that a peer may have open, whatever the limit on descriptors.
const SHARE: usize = 10_000;
/// What its agent may hold in memory for the pod, in bytes.
const MEMORY: usize = 1 << 30;
/// How long a call of the other pod may take, on a machine that is busy with all of this.
const SLOW: Duration = Duration::from_secs(8);

#[test]
fn a_greedy_pod_leaves_enough_for_the_others() -> Result<()> {
    scenario("greedy", |lab| {
        raise_descriptor_limit()?;
        lab.namespace("shop").ambient().create()?;
        let pod = |name, node| lab.pod(name).namespace("shop").on(node).create();
        let (greedy, good) = (pod("greedy", "n1")?, pod("good", "n1")?);
        let servers = [pod("web", "n2")?, pod("api", "n2")?, pod("near", "n1")?];
        let _apps = apps(&servers)?;
        let destinations = destinations(lab, &servers)?;
        let before = good.connect(servers[0].at(Family::V4, 8080))?;
        echoes(&before, b"opened before")?;
        let idle = usage(lab)?;

        let (stop, ready) = (AtomicBool::new(false), listeners(&servers)?);
        let held = thread::scope(|scope| -> Result<_> {
            let calls = scope.spawn(|| calls(&good, &servers, &before, &stop));
            scope.spawn(|| pushes(&ready, &stop));
            let held = takes_all(&greedy, &destinations);
            let refusal = told(
                lab.node("n1"),
                &[
                    ("/source/workload", "shop/greedy"),
                    ("/reason", "which is its share"),
                ],
            );
            let greedy_usage = fills(lab);
            stop.store(true, Ordering::Relaxed);
            refusal?;
            let made = calls.join().expect("it returns its failures")?;
            let used = greedy_usage?;
            println!("{} held, {made} calls, {idle:?} then {used:?}", held.len());
            assert!(made >= 20, "{made} calls of the other pod");
            let descriptors = used.descriptors - idle.descriptors;
            assert!(descriptors < 2 * SHARE, "{descriptors} descriptors");
            let memory = used.memory.saturating_sub(idle.memory);
            assert!(memory < MEMORY, "{memory} bytes");
            Ok(held)
        })?;
        echoes(&before, b"opened before").context("after the flood")?;
        let log = lab.node("n1").agent().log();
        assert!(log.contains("which is its share"), "nothing is told");

        drop(held);
        eventually(
            "what the greedy pod had is given back",
            Duration::from_mins(1),
            || Ok(usage(lab)?.descriptors <= idle.descriptors + 300),
        )?;
        let stream = greedy.connect(servers[0].at(Family::V4, 8080))?;
        echoes(&stream, b"welcome again")?;
        Ok(())
    })
}

/// Waits until every window is full, and nothing more comes.
fn fills(lab: &Lab) -> Result<Usage> {
    let mut before = usage(lab)?;
    loop {
        thread::sleep(Duration::from_secs(3));
        let now = usage(lab)?;
        if now.memory < before.memory + (1 << 20) {
            return Ok(now);
        }
        before = now;
    }
}

fn usage(lab: &Lab) -> Result<Usage> {
    Usage::of(lab.node("n1").agent().pid().context("no agent")?)
}

fn apps(servers: &[Pod<'_>]) -> Result<Vec<Server>> {
    let echo = |it| Ok(Server::start(it, 8080, App::Echo)?);
    servers.iter().map(echo).collect()
}

/// At each server, for clients that get more than they read.
fn listeners(servers: &[Pod<'_>]) -> Result<Vec<TcpListener>> {
    let listen = |it: &Pod<'_>| {
        let listener = it.listen(9090)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    servers.iter().map(listen).collect()
}

/// Sends to whoever connects as much as it takes.
fn pushes(listeners: &[TcpListener], stop: &AtomicBool) {
    let mut clients = Vec::new();
    let bytes = vec![b'x'; 1 << 20];
    while !stop.load(Ordering::Relaxed) {
        for listener in listeners {
            while let Ok((client, _)) = listener.accept() {
                if client.set_nonblocking(true).is_ok() {
                    clients.push(client);
                }
            }
        }
        clients.retain_mut(|client| match client.write(&bytes) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        thread::sleep(Duration::from_millis(5));
    }
}

/// Applications that talk, those that are never read, pods that never answer, and addresses of which nothing is known.
fn destinations(lab: &Lab, servers: &[Pod<'_>]) -> Result<Vec<SocketAddr>> {
    Foreign::create(lab)?;
    let mut destinations: Vec<_> = servers
        .iter()
        .flat_map(|it| [it.at(Family::V4, 8080), it.at(Family::V4, 9090)])
        .collect();
    for last in 10..40 {
        let address = IpAddr::from([10, 244, 9, last]);
        let name = format!("silent-{last}");
        let mut pod = objects::pod("shop", &name, "silent", "n9", &Labels::new());
        objects::set_ready(&mut pod, &[address]);
        lab.objects().apply(pod)?;
        destinations.push((address, 8080).into());
    }
    destinations.push(([10, 244, 2, 250], 80).into());
    lab.settle()?;
    Ok(destinations)
}

/// Opens connections to all of them in turn, and keeps what it gets.
fn takes_all(greedy: &Pod<'_>, destinations: &[SocketAddr]) -> Vec<TcpStream> {
    let hand = |hand: usize| {
        greedy.netns().run(|| {
            let turns = (hand..ATTEMPTS).step_by(HANDS);
            let to = |turn: usize| match turn % 2 {
                // Half of them to applications that are there.
                0 => destinations[turn / 2 % 6],
                _ => destinations[turn / 2 % destinations.len()],
            };
            turns
                .filter_map(|turn| TcpStream::connect_timeout(&to(turn), SLOW / 4).ok())
                .collect::<Vec<_>>()
        })
    };
    thread::scope(|scope| {
        let hands: Vec<_> = (0..HANDS).map(|it| scope.spawn(move || hand(it))).collect();
        let held = hands.into_iter().map(|it| it.join().expect("no panics"));
        held.flatten().collect()
    })
}

/// Calls every server in turn until told to stop, and uses a connection that was open before; how many calls were made.
fn calls(
    good: &Pod<'_>,
    servers: &[Pod<'_>],
    before: &TcpStream,
    stop: &AtomicBool,
) -> Result<usize> {
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        let server = &servers[made % servers.len()];
        let began = Instant::now();
        let stream = good
            .connect(server.at(Family::BOTH[made % 2], 8080))
            .with_context(|| format!("call {made}"))?;
        echoes(&stream, b"hello").with_context(|| format!("call {made}"))?;
        echoes(before, b"still here").context("the connection that was open before")?;
        let took = began.elapsed();
        anyhow::ensure!(took < SLOW, "call {made} took {took:?}");
        made += 1;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(made)
}
