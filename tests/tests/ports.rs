//! The agents connect with pods' addresses beside the pods' own kernels, and beside each other: whatever one of them opens
//! is never a connection that another has.

use std::net::{SocketAddr, TcpStream};
use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use mesh_tests::app::{App, Server, echoes, raise_descriptor_limit};
use mesh_tests::lab::scenario;
use mesh_tests::objects::MODE;
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;

/// Connections that are open before enrolment.
const BEFORE: usize = 300;
/// Connections through tunnels.
const TUNNELLED: usize = 500;
/// After so many of the latter, the former are looked at.
const ROUND: usize = 100;

/// Ports of the agent of the client's node.
const POD_PORTS: RangeInclusive<u16> = 4096..=14_999;
/// Ports of the agent of the server's node.
const CLIENT_PORTS: RangeInclusive<u16> = 16_384..=32_767;
/// Ports of the client's kernel.
const KERNEL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

#[test]
fn of_the_pods_own_kernel() -> Result<()> {
    scenario("ports_kernel", |lab| {
        lab.namespace("shop").create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let server = lab.pod("web").namespace("shop").on("n2").create()?;
        let app = Server::start(&server, 8080, App::Echo)?;

        let before = open(&client, |family| server.at(family, 8080), BEFORE)?;
        came_from(&app, 0, &KERNEL_PORTS);
        lab.label_namespace("shop", MODE, Some("ambient"))?;
        survive(&before, &client, &server, &app)
    })
}

#[test]
fn of_the_agent_of_the_clients_node() -> Result<()> {
    scenario("ports_agents", |lab| {
        lab.namespace("shop").create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let server = lab.pod("web").namespace("shop").on("n2").create()?;
        let service = lab
            .service("web")
            .namespace("shop")
            .port(80, 8080)
            .create()?;
        let app = Server::start(&server, 8080, App::Echo)?;

        client.enrol()?;
        let before = open(&client, |family| service.at(family), BEFORE)?;
        came_from(&app, 0, &POD_PORTS);
        server.enrol()?;
        survive(&before, &client, &server, &app)
    })
}

/// Opens connections through tunnels, and keeps them, while the others are in use.
fn survive(before: &[TcpStream], client: &Pod<'_>, server: &Pod<'_>, app: &Server) -> Result<()> {
    let mut tunnelled = Vec::new();
    for _ in 0..TUNNELLED / ROUND {
        tunnelled.extend(open(client, |family| server.at(family, 8080), ROUND)?);
        for (number, stream) in before.iter().enumerate() {
            let lost = || format!("connection {number} is lost: {:?}", stream.local_addr());
            echoes(stream, b"opened before").with_context(lost)?;
        }
        for stream in &tunnelled {
            echoes(stream, b"opened in a tunnel")?;
        }
    }
    came_from(app, BEFORE, &CLIENT_PORTS);
    assert_eq!(app.clients().len(), BEFORE + TUNNELLED);
    Ok(())
}

/// Opens connections, of both families in turn.
fn open(
    client: &Pod<'_>,
    to: impl Fn(Family) -> SocketAddr,
    count: usize,
) -> Result<Vec<TcpStream>> {
    raise_descriptor_limit()?;
    (0..count)
        .map(|number| {
            let stream = client.connect(to(Family::BOTH[number % 2]))?;
            echoes(&stream, b"opening").with_context(|| format!("connection {number}"))?;
            Ok(stream)
        })
        .collect()
}

/// Asserts from which ports the server was connected to, but for the first connections.
fn came_from(app: &Server, but: usize, ports: &RangeInclusive<u16>) {
    for client in &app.clients()[but..] {
        assert!(ports.contains(&client.port()), "{client} of {ports:?}");
    }
}
