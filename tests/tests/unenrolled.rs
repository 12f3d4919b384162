//! Whoever is not in the mesh has an ordinary network: pods, machines outside, TCP and UDP, both families.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use mesh_common::HBONE_PORT;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::netns::Netns;
use mesh_tests::pod::Pod;
use mesh_tests::wait::uninterrupted;
use mesh_tests::world::Family;

const OPEN: &[u8] = b"an open letter to everybody";

#[test]
fn plain_pods_speak_as_ever() -> Result<()> {
    scenario("plain", |lab| {
        let client = lab.pod("client").on("n1").create()?;
        let far = lab.pod("far").on("n2").create()?;
        let near = lab.pod("near").on("n1").create()?;
        lab.namespace("shop").ambient().create()?;
        let enrolled = lab.pod("enrolled").namespace("shop").on("n2").create()?;
        for family in Family::BOTH {
            for server in [&far, &near, &enrolled] {
                let app = Server::start(server, 8080, App::Echo)?;
                let wire = lab.capture()?;
                let stream = client.connect(server.at(family, 8080))?;
                echoes(&stream, OPEN)?;
                assert_eq!(
                    app.clients(),
                    [stream.local_addr()?],
                    "the very connection of the client"
                );
                drop(stream);
                let wire = stop(wire)?;
                assert_eq!(
                    wire.contains(OPEN),
                    server.name() != "near",
                    "in plaintext over the wire"
                );
                assert_eq!(wire.tcp(HBONE_PORT), 0);
            }
            udp(&client, far.netns(), far.at(family, 5353))?;
            udp(&client, near.netns(), near.at(family, 5353))?;
        }
        Ok(())
    })
}

#[test]
fn enrolled_pods_reach_what_is_not_in_the_mesh() -> Result<()> {
    scenario("beyond", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let enrolled = lab.pod("web").namespace("shop").on("n2").create()?;
        let far = lab.pod("far").on("n2").create()?;
        let near = lab.pod("near").on("n1").create()?;
        let outside = lab.outside()?;
        let listener = outside.run(|| std::net::TcpListener::bind("[::]:8080"))?;
        let app = Server::run(listener, App::Echo);
        for family in Family::BOTH {
            for server in [&far, &near] {
                let _app = Server::start(server, 8080, App::Echo)?;
                let stream = client.connect(server.at(family, 8080))?;
                echoes(&stream, OPEN)?;
            }
            let to = (lab.outside_ip(family), 8080).into();
            let wire = lab.capture()?;
            let stream = client.connect(to)?;
            echoes(&stream, OPEN)?;
            assert_eq!(app.clients().last(), Some(&stream.local_addr()?));
            assert!(stop(wire)?.contains(OPEN), "untouched");
            udp(&client, enrolled.netns(), enrolled.at(family, 5353))?;
            udp(&client, &outside, (lab.outside_ip(family), 5353).into())?;
        }
        into_the_mesh(lab, &outside, &enrolled)
    })
}

/// A machine outside reaches an enrolled pod that takes plaintext.
fn into_the_mesh(lab: &Lab, outside: &Netns, pod: &Pod<'_>) -> Result<()> {
    let app = Server::start(pod, 8080, App::Echo)?;
    for family in Family::BOTH {
        let to = pod.at(family, 8080);
        let stream = outside.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
        echoes(&stream, OPEN)?;
        let seen = app.clients().last().map(SocketAddr::ip);
        assert_eq!(seen, Some(lab.outside_ip(family)));
    }
    Ok(())
}

/// A datagram goes, and its answer comes back.
fn udp(client: &Pod<'_>, server: &Netns, to: SocketAddr) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let server = server.run(|| UdpSocket::bind(SocketAddr::new(to.ip(), to.port())))?;
    let client = client.netns().run(|| UdpSocket::bind(any))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let mut buffer = [0; 64];
    client.send_to(OPEN, to)?;
    let (length, from) = uninterrupted(|| server.recv_from(&mut buffer))?;
    server.send_to(&buffer[..length], from)?;
    let (length, from) = uninterrupted(|| client.recv_from(&mut buffer))?;
    assert_eq!((&buffer[..length], from), (OPEN, to));
    Ok(())
}
