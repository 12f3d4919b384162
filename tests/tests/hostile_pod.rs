//! A pod with every capability in its network namespace: it leaves as nobody else, and neither gets plaintext to an
//! enrolled pod that wants none, nor out of the mesh in plaintext.

use std::net::IpAddr;

use anyhow::Result;
use mesh_common::HBONE_PORT;
use mesh_common::addr::Addr;
use mesh_common::names::{MARK_AGENT, MARK_DELIVER};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::capture::{Recording, inject};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::frames::{Frame, flag};
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;

const SECRET: &[u8] = b"smuggled past the mesh";

/// Sends a frame from inside a pod, to the host's end of its veth.
fn send(pod: &Pod<'_>, frame: Frame) -> Result<()> {
    let (host, own) = pod.macs()?;
    inject(pod.netns(), "eth0", &frame.macs(host, own).bytes())
}

/// Whether any packet has an address as its source.
fn came_from(wire: &Recording, ip: IpAddr) -> bool {
    wire.packets().any(|packet| packet.src == Addr::from(ip))
}

#[test]
fn a_forged_source_goes_nowhere() -> Result<()> {
    scenario("forged", |lab| {
        lab.namespace("shop").ambient().create()?;
        let victim = lab.pod("victim").namespace("shop").on("n1").create()?;
        let server = lab.pod("web").namespace("shop").on("n2").create()?;
        for enrolled in [false, true] {
            let namespace = if enrolled { "shop" } else { "default" };
            let mallory = lab
                .pod(&format!("mallory-{enrolled}"))
                .namespace(namespace)
                .on("n1")
                .create()?;
            for family in Family::BOTH {
                let sources = [
                    victim.ip(family),
                    server.ip(family),
                    lab.node("n1").ip(family),
                    lab.outside_ip(family),
                ];
                for source in sources {
                    let before = lab.node("n1").counters()?;
                    let wire = lab.node("n1").capture()?;
                    let from = (source, 40_000).into();
                    for port in [8080, HBONE_PORT] {
                        send(
                            &mallory,
                            Frame::tcp(from, server.at(family, port), flag::SYN),
                        )?;
                    }
                    send(&mallory, Frame::udp(from, server.at(family, 53)))?;
                    let wire = stop(vec![wire])?;
                    let leaked = wire.packets().filter(|packet| {
                        packet.src == Addr::from(source)
                            && packet.dst == Addr::from(server.ip(family))
                    });
                    assert_eq!(leaked.count(), 0, "packets of {source}");
                    let moved = lab.node("n1").counters()?.since(&before);
                    moved.assert(&[(Hook::FromPod, Outcome::Spoofed, AtLeast(3))]);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn marks_buy_nothing() -> Result<()> {
    scenario("marks", |lab| {
        lab.namespace("shop").ambient().create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2").create()?;
        let mallory = lab.pod("mallory").on("n1").create()?;
        lab.peer_authentication("shop", "STRICT")?;
        let _apps = [
            Server::start(&near, 8080, App::Echo)?,
            Server::start(&far, 8080, App::Echo)?,
        ];
        for family in Family::BOTH {
            for server in [&near, &far] {
                for mark in [MARK_AGENT, MARK_DELIVER, u32::MAX] {
                    let attempt = mallory.connect_with(server.at(family, 8080), |socket| {
                        socket.set_tcp_user_timeout(Some(std::time::Duration::from_secs(1)))?;
                        socket.set_mark(mark)
                    });
                    assert!(attempt.is_err(), "mark {mark:#x} opens {}", server.name());
                }
            }
        }
        Ok(())
    })
}

#[test]
fn orphans_and_tricks_of_an_enrolled_pod_stay_in() -> Result<()> {
    scenario("orphans", |lab| {
        let (mallory, server) = enrolled_pair(lab)?;
        for family in Family::BOTH {
            let before = lab.node("n1").counters()?;
            let wire = lab.capture()?;
            let (from, to) = (mallory.at(family, 41_000), server.at(family, 8080));
            for flags in [flag::ACK, flag::FIN | flag::ACK, flag::SYN | flag::ACK] {
                send(&mallory, Frame::tcp(from, to, flags).payload(SECRET))?;
            }
            send(&mallory, Frame::tcp(from, to, flag::SYN).payload(SECRET))?;
            send(
                &mallory,
                Frame::tcp(from, server.at(family, HBONE_PORT), flag::SYN).payload(SECRET),
            )?;
            send(
                &mallory,
                Frame::tcp(from, to, flag::ACK)
                    .payload(SECRET)
                    .fragment(0, true),
            )?;
            let (host, own) = mallory.macs()?;
            let tagged = Frame::tcp(from, to, flag::SYN)
                .payload(SECRET)
                .macs(host, own)
                .tagged(7);
            inject(mallory.netns(), "eth0", &tagged)?;
            let wire = stop(wire)?;
            assert!(
                !wire.contains(SECRET),
                "nothing of it crosses the wire, {family:?}"
            );
            lab.node("n1").counters()?.since(&before).assert(&[
                (Hook::FromPod, Outcome::Fragment, AtLeast(1)),
                (Hook::FromPod, Outcome::EtherType, AtLeast(1)),
            ]);
        }
        Ok(())
    })
}

#[test]
fn own_routes_and_rules_lead_nowhere_else() -> Result<()> {
    scenario("routes", |lab| {
        let (mallory, server) = enrolled_pair(lab)?;
        let app = Server::start(&server, 8080, App::Echo)?;
        let node = lab.node("n1");
        let (host, _) = mallory.macs()?;
        let host = host.map(|byte| format!("{byte:02x}")).join(":");
        mallory.netns().ip("
            route flush table main
            -6 route flush table main
            rule add fwmark 1 lookup 7
            route add default dev eth0
            -6 route add default dev eth0
        ")?;
        for family in Family::BOTH {
            let to = server.at(family, 8080);
            mallory.netns().ip(&format!(
                "neighbour replace {} lladdr {host} dev eth0",
                to.ip()
            ))?;
            let before = node.counters()?;
            let wire = lab.capture()?;
            echoes(&mallory.connect(to)?, SECRET)?;
            let wire = stop(wire)?;
            assert!(
                !wire.contains(SECRET),
                "captured, whatever the pod's routes say"
            );
            assert!(wire.tcp(HBONE_PORT) > 0 && wire.tcp(8080) == 0);
            node.counters()?.since(&before).assert(&[(
                Hook::FromPod,
                Outcome::Listener,
                AtLeast(1),
            )]);
        }
        assert!(
            app.clients()
                .iter()
                .all(|client| client.ip() == mallory.ip(Family::V4)
                    || client.ip() == mallory.ip(Family::V6))
        );

        // An address of another, given to its own device, is forged all the same.
        let other = server.ip(Family::V4);
        mallory.netns().ip("address add 10.244.1.200/32 dev eth0")?;
        let wire = node.capture()?;
        let stolen: IpAddr = "10.244.1.200".parse()?;
        let attempt = mallory.connect_with((other, 8080).into(), |socket| {
            socket.set_tcp_user_timeout(Some(std::time::Duration::from_secs(1)))?;
            socket.bind(&std::net::SocketAddr::new(stolen, 0).into())
        });
        assert!(
            attempt.is_err(),
            "a connection from an address of its own making"
        );
        assert!(!came_from(&stop(vec![wire])?, stolen));
        Ok(())
    })
}

/// An attacker and a server, enrolled, on different nodes.
fn enrolled_pair(lab: &Lab) -> Result<(Pod<'_>, Pod<'_>)> {
    lab.namespace("shop").ambient().create()?;
    let mallory = lab.pod("mallory").namespace("shop").on("n1").create()?;
    let server = lab.pod("web").namespace("shop").on("n2").create()?;
    Ok((mallory, server))
}
