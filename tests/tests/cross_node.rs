//! From an enrolled pod to an enrolled pod of another node: by pod address and by service address, both families; the
//! server sees the client's address, and nothing crosses the wire in plaintext.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

const SECRET: &[u8] = b"the quick brown fox jumps over the lazy dog";

#[test]
fn by_pod_address() -> Result<()> {
    scenario("cross_pod", |lab| {
        let (client, server) = shop(lab)?;
        for family in Family::BOTH {
            check(lab, &client, &server, server.at(family, 8080))?;
        }
        Ok(())
    })
}

#[test]
fn by_service_address() -> Result<()> {
    scenario("cross_service", |lab| {
        let (client, server) = shop(lab)?;
        let service = lab
            .service("web")
            .namespace("shop")
            .port(80, 8080)
            .create()?;
        for family in Family::BOTH {
            check(lab, &client, &server, service.at(family))?;
        }
        Ok(())
    })
}

#[test]
fn curl() -> Result<()> {
    scenario("cross_curl", |lab| {
        let (client, server) = shop(lab)?;
        let service = lab
            .service("web")
            .namespace("shop")
            .port(80, 8080)
            .create()?;
        let _web = Server::start(&server, 8080, App::Http("web"))?;
        for family in Family::BOTH {
            for to in [server.at(family, 8080), service.at(family)] {
                let url = format!("http://{to}/");
                let answer = client.exec("curl", &["-sS", "-m", "10", "--data", "hello", &url])?;
                assert_eq!(answer, format!("web saw {}\nhello", client.ip(family)));
            }
        }
        Ok(())
    })
}

fn shop(lab: &Lab) -> Result<(Pod<'_>, Pod<'_>)> {
    lab.namespace("shop").ambient().create()?;
    let client = lab.pod("client").namespace("shop").on("n1").create()?;
    let server = lab.pod("web").namespace("shop").on("n2").create()?;
    Ok((client, server))
}

/// Connects to an address that leads to the server, and shows both ends, the counters and the wire.
fn check(lab: &Lab, client: &Pod<'_>, server: &Pod<'_>, to: SocketAddr) -> Result<()> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let app = Server::start(server, 8080, App::Echo)?;
    let before = [lab.node("n1").counters()?, lab.node("n2").counters()?];
    let wire = lab.capture()?;

    let stream = client
        .connect(to)
        .with_context(|| format!("connecting to {to}"))?;
    assert_eq!(
        stream.peer_addr()?,
        to,
        "the client believes to speak to whom it asked for"
    );
    echoes(&stream, SECRET)?;
    let own = stream.local_addr()?;
    drop(stream);

    let clients = app.clients();
    assert_eq!(clients.len(), 1, "one connection: {clients:?}");
    assert_eq!(
        clients[0].ip(),
        own.ip(),
        "the server sees the client pod's address"
    );

    let wire = stop(wire)?;
    assert!(wire.tcp(HBONE_PORT) > 0, "a tunnel crosses the wire");
    assert_eq!(
        wire.tcp(8080),
        0,
        "no plaintext connection crosses the wire"
    );
    assert!(
        !wire.contains(&SECRET[..16]),
        "the payload does not occur on the wire"
    );

    let [source, destination] = [lab.node("n1").counters()?, lab.node("n2").counters()?];
    source.since(&before[0]).assert(&[
        (Hook::FromPod, Outcome::Listener, AtLeast(1)),
        (Hook::FromPod, Outcome::Socket, AtLeast(1)),
        (Hook::FromNet, Outcome::Socket, AtLeast(1)),
        (Hook::ToPod, Outcome::Pass, AtLeast(1)),
    ]);
    destination.since(&before[1]).assert(&[
        (Hook::FromNet, Outcome::Socket, AtLeast(1)),
        (Hook::FromPod, Outcome::Socket, AtLeast(1)),
        (Hook::ToPod, Outcome::Pass, AtLeast(1)),
    ]);
    identities(lab, family)
}

/// Both agents tell both identities.
fn identities(lab: &Lab, family: Family) -> Result<()> {
    for node in lab.nodes() {
        let what = format!("{} tells the identities, {family:?}", node.name());
        eventually(&what, SOON, || {
            let told = |line: &&str| {
                [
                    "spiffe://cluster.local/ns/shop/sa/client",
                    "spiffe://cluster.local/ns/shop/sa/web",
                ]
                .iter()
                .all(|identity| line.contains(identity))
            };
            Ok(node.agent().log().lines().any(|line| told(&line)))
        })?;
    }
    Ok(())
}
