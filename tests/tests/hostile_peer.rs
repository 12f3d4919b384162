//! A machine on the network that means harm to the tunnel port: it gets no further than its share, and nobody else notices.
//!
//! What such a peer can do within one connection is in `mesh-agent/src/hbone/tests/hostile.rs`.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_common::HBONE_PORT;
use mesh_tests::app::{App, Server, echoes, raise_descriptor_limit};
use mesh_tests::foreign::Foreign;
use mesh_tests::lab::scenario;
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::usage::Usage;
use mesh_tests::wait::{eventually, uninterrupted};
use mesh_tests::world::Family;

/// Connections that never send a byte.
const SILENT: usize = 10_000;
/// How many of those one address may have.
const SHARE: usize = 1000;
/// What one of these costs at most, in bytes.
const COST: usize = 64 << 10;
/// How long a handshake may take.
const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn connections_that_never_speak_cost_one_share_for_ten_seconds() -> Result<()> {
    scenario("silent", |lab| {
        raise_descriptor_limit()?;
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let server = lab.pod("web").namespace("shop").on("n2").create()?;
        let _app = Server::start(&server, 8080, App::Echo)?;
        let foreign = Foreign::create(lab)?;
        let before = client.connect(server.at(Family::V4, 8080))?;
        echoes(&before, b"opened before")?;
        let idle = usage(lab.node("n2"))?;

        let began = Instant::now();
        let to = server.at(Family::V4, HBONE_PORT);
        let silent = foreign.netns().run(|| connect(to, SILENT))?;
        assert!(
            began.elapsed() < DEADLINE,
            "too slow: {:?}",
            began.elapsed()
        );
        let flooded = usage(lab.node("n2"))?;
        let more = flooded.descriptors - idle.descriptors;
        assert!((1..=SHARE + 50).contains(&more), "{more} descriptors");
        let memory = flooded.memory.saturating_sub(idle.memory);
        assert!(memory < SHARE * COST, "{memory} bytes");
        others_are_served(&client, &server, &before)?;

        eventually("the silent ones are gone", 3 * DEADLINE, || {
            Ok(usage(lab.node("n2"))?.descriptors <= idle.descriptors + 50)
        })?;
        let open = silent.iter().filter(|it| is_open(it)).count();
        assert_eq!(open, 0, "connections nobody ended");
        others_are_served(&client, &server, &before)?;
        // Also those of the same address.
        assert!(is_open(&foreign.netns().run(|| connect(to, 1))?[0]));

        let log = lab.node("n2").agent().log();
        let told = |what: &str| log.lines().filter(|it| it.contains(what)).count();
        let refused = told("connections are refused");
        assert!((1..=30).contains(&refused), "{refused} lines of refusals");
        let failed = told("did not finish the TLS handshake in time");
        assert!((1..=30).contains(&failed), "{failed} lines of failures");
        Ok(())
    })
}

fn usage(node: &Node) -> Result<Usage> {
    Usage::of(node.agent().pid().context("no agent")?)
}

/// Tries so many times, and keeps those that are not reset at once.
fn connect(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut open = Vec::new();
    for number in 0..count {
        match TcpStream::connect_timeout(&to, DEADLINE) {
            Ok(stream) => open.push(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error).with_context(|| format!("connection {number}")),
        }
    }
    Ok(open)
}

/// A tunnel that stands goes on, and a new one is opened: the node's agent has none to this pod by this address yet.
fn others_are_served(client: &Pod<'_>, server: &Pod<'_>, before: &TcpStream) -> Result<()> {
    echoes(before, b"meanwhile").context("the tunnel that stood before")?;
    for family in Family::BOTH {
        let began = Instant::now();
        let stream = client.connect(server.at(family, 8080))?;
        echoes(&stream, b"meanwhile").with_context(|| format!("a new one by {family:?}"))?;
        assert!(
            began.elapsed() < DEADLINE / 2,
            "slow: {:?}",
            began.elapsed()
        );
    }
    Ok(())
}

fn is_open(mut stream: &TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
    matches!(uninterrupted(|| stream.read(&mut [0])), Err(error) if error.kind() == ErrorKind::WouldBlock)
}
