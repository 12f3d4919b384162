//! Numbers that come again: source ports while the last connection is in TIME_WAIT, ports on which the node itself listens,
//! addresses of pods that are gone.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_common::maps::flags::{ENROLLED, LOCAL, SOCKETS};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::cni::Call;
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::json;

const ROUNDS: u32 = 60;

/// One HTTP exchange from a fixed source port; the server closes first, so its side keeps the TIME_WAIT.
fn exchange(client: &Pod<'_>, from: SocketAddr, to: SocketAddr, resets: bool) -> Result<()> {
    let mut stream = client.connect_with(to, |socket| {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())
    })?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    if resets {
        stream.read_exact(&mut [0])?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        return Ok(());
    }
    stream.read_to_string(&mut answer)?;
    let expected = format!("web saw {}\n", from.ip());
    ensure!(answer.ends_with(&expected), "{answer:?}");
    Ok(())
}

#[test]
fn a_source_port_again_and_again() -> Result<()> {
    scenario("reuse_port", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let _apps = [&far, &near].map(|pod| Server::start(pod, 8080, App::Http("web")));
        let service = lab
            .service("far")
            .namespace("shop")
            .port(80, 8080)
            .create()?;
        let before = lab.node("n1").counters()?;
        for family in Family::BOTH {
            let from = client.at(family, 40_000);
            for to in [
                far.at(family, 8080),
                service.at(family),
                near.at(family, 8080),
            ] {
                for resets in [false, true] {
                    let start = Instant::now();
                    for round in 0..ROUNDS {
                        exchange(&client, from, to, resets)
                            .with_context(|| format!("{to}, resets: {resets}, round {round}"))?;
                    }
                    // A SYN that is lost is sent again after a second.
                    let took = start.elapsed();
                    println!("{to}, resets: {resets}: {ROUNDS} in {took:?}");
                    ensure!(took < Duration::from_secs(10), "{to}: {took:?}");
                }
            }
        }
        let moved = lab.node("n1").counters()?.since(&before);
        moved.assert(&[
            (Hook::FromPod, Outcome::Listener, AtLeast(u64::from(ROUNDS))),
            (Hook::FromPod, Outcome::Local, AtLeast(u64::from(ROUNDS))),
        ]);
        Ok(())
    })
}

/// Ports of all listening TCP sockets of a node.
fn listening(node: &Node) -> Result<Vec<u16>> {
    let shown = node.netns().exec("ss", ["-Hltn"])?;
    let port = |line: &str| {
        line.split_whitespace()
            .nth(3)?
            .rsplit_once(':')?
            .1
            .parse()
            .ok()
    };
    Ok(shown.lines().filter_map(port).collect())
}

#[test]
fn ports_of_the_node_itself() -> Result<()> {
    scenario("reuse_node", |lab| {
        lab.namespace("shop").ambient().create()?;
        let enrolled = lab.pod("client").namespace("shop").on("n1").create()?;
        let plain = lab.pod("plain").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let node = lab.node("n1");
        let of_agent = listening(node)?;
        ensure!(!of_agent.is_empty(), "the agent listens");

        // A service of the node, such as a kubelet, at all its addresses.
        let listen = || TcpListener::bind("[::]:10250");
        let kubelet = Server::run(node.netns().run(listen)?, App::Greet("kubelet"));
        for port in of_agent.iter().copied().chain([10250]) {
            let apps = [&far, &near].map(|pod| Server::start(pod, port, App::Echo));
            for client in [&enrolled, &plain] {
                for pod in [&far, &near] {
                    for family in Family::BOTH {
                        let to = pod.at(family, port);
                        echoes(&client.connect(to)?, b"the pod, not the node")
                            .with_context(|| format!("{} to {to}", client.name()))?;
                    }
                }
            }
            for app in apps {
                assert_eq!(app?.clients().len(), 4, "port {port}");
            }
        }
        assert!(kubelet.clients().is_empty(), "nobody asked for the node");

        for client in [&enrolled, &plain] {
            for family in Family::BOTH {
                let to = SocketAddr::new(node.ip(family), 10250);
                for _ in 0..5 {
                    let mut greeting = [0; 7];
                    client.connect(to)?.read_exact(&mut greeting)?;
                    assert_eq!(&greeting, b"kubelet");
                }
                // The agent serves what is captured, and nobody who asks for it, but for metrics and health.
                for port in of_agent.iter().filter(|it| !HTTP.contains(it)) {
                    let to = SocketAddr::new(node.ip(family), *port);
                    ensure!(client.is_refused(to), "{} gets {to}", client.name());
                }
            }
        }
        assert_eq!(kubelet.clients().len(), 20);
        Ok(())
    })
}

/// Metrics and health, which the agent tells to all.
const HTTP: [u16; 2] = [15_020, 15_021];

/// Leaves a node one free pod address of each family; returns what holds the others.
fn one_address_left(lab: &Lab, node: &Node) -> Result<Vec<(Netns, Call)>> {
    node.agent().stop()?;
    // Three of 8 are never given; of IPv6 the same.
    let cidrs = ["10.244.1.0/29", "fd00:244:1::/125"];
    lab.objects().edit("Node", "", node.name(), |object| {
        object["spec"] = json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs });
    })?;
    node.agent().start()?;
    (0..4)
        .map(|number| {
            let (netns, call) = lab.sandbox(&format!("filler{number}"))?;
            node.cni().call(node.netns(), "ADD", &call)?.success()?;
            Ok((netns, call))
        })
        .collect()
}

/// Both nodes know an address with these flags of all that matter, on its own node with those of local pods.
fn flagged(lab: &Lab, ip: IpAddr, flags: u32, local: u32) -> Result<()> {
    for (node, expected) in lab.nodes().iter().zip([flags | local, flags]) {
        let workload = node.workload(ip)?.context("unknown")?;
        let found = workload.flags & (ENROLLED | LOCAL | SOCKETS);
        ensure!(found == expected, "{}: {found:#b}", node.name());
    }
    Ok(())
}

/// Connects, and tells whether the connection crossed the wire in a tunnel.
fn tunnelled(lab: &Lab, client: &Pod<'_>, to: SocketAddr) -> Result<bool> {
    let wire = lab.capture()?;
    let stream = client.connect_with(to, |socket| {
        let own = client.at(Family::of(to.ip()), 41_000);
        socket.set_reuse_address(true)?;
        socket.bind(&own.into())
    })?;
    echoes(&stream, b"who am I now")?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    let wire = stop(wire)?;
    ensure!(wire.contains(b"who am I now") == (wire.tcp(8080) > 0));
    Ok(wire.tcp(HBONE_PORT) > 0 && wire.tcp(8080) == 0)
}

/// The last connection in an agent's log is between these identities.
fn told(node: &Node, port: u16, source: &str, destination: &str) -> Result<()> {
    eventually("the agent tells", SOON, || {
        let log = node.agent().log();
        let port = format!(":{port}");
        let last = log
            .lines()
            .rfind(|line| line.contains("access") && line.contains(&port));
        Ok(last.is_some_and(|line| {
            [source, destination]
                .iter()
                .all(|name| line.contains(&format!("/sa/{name}")))
        }))
    })
}

#[test]
fn the_address_of_a_pod_that_is_gone() -> Result<()> {
    scenario("reuse_address", |lab| {
        lab.namespace("shop").ambient().create()?;
        let server = lab.pod("web").namespace("shop").on("n2").create()?;
        let _app = Server::start(&server, 8080, App::Echo)?;
        let node = lab.node("n1");
        let _fillers = one_address_left(lab, node)?;
        let mut addresses = Vec::new();
        for (round, (name, namespace)) in [
            ("alice", "shop"),
            ("paul", "default"),
            ("carol", "shop"),
            ("dora", "shop"),
            ("peter", "default"),
        ]
        .into_iter()
        .enumerate()
        {
            let pod = lab.pod(name).namespace(namespace).on("n1").create()?;
            addresses.push(Family::BOTH.map(|family| pod.ip(family)));
            ensure!(addresses[round] == addresses[0], "the one that is free");
            let meshed = namespace == "shop";
            let (common, local) = if meshed {
                (ENROLLED, LOCAL | SOCKETS)
            } else {
                (0, LOCAL)
            };
            let _app = Server::start(&pod, 8080, App::Echo)?;
            for family in Family::BOTH {
                flagged(lab, pod.ip(family), common, local).context(name)?;
                // As a client, from the same port each time, and as a server.
                ensure!(
                    tunnelled(lab, &pod, server.at(family, 8080))? == meshed,
                    "{name}"
                );
                ensure!(
                    tunnelled(lab, &server, pod.at(family, 8080))? == meshed,
                    "{name}"
                );
            }
            if meshed {
                told(lab.node("n2"), 8080, name, "web")?;
                told(node, 8080, "web", name)?;
            }
            pod.delete()?;
            eventually("nobody knows the address", SOON, || {
                let gone = |node: &Node| Ok(node.workload(addresses[0][0])?.is_none());
                Ok(lab.nodes().iter().map(gone).collect::<Result<Vec<_>>>()? == [true, true])
            })?;
        }
        Ok(())
    })
}

/// STRICT belongs to the pod, not to its address.
#[test]
fn the_policy_of_a_pod_that_is_gone() -> Result<()> {
    scenario("reuse_strict", |lab| {
        lab.namespace("shop").ambient().create()?;
        lab.peer_authentication("shop", "STRICT")?;
        let plain = lab.pod("plain").on("n2").create()?;
        let node = lab.node("n1");
        let _fillers = one_address_left(lab, node)?;
        for (name, namespace) in [("alice", "shop"), ("paul", "default"), ("carol", "shop")] {
            let pod = lab.pod(name).namespace(namespace).on("n1").create()?;
            let _app = Server::start(&pod, 8080, App::Echo)?;
            let strict = namespace == "shop";
            let to = pod.at(Family::V4, 8080);
            assert_eq!(plain.is_refused(to), strict, "{name}");
            pod.delete()?;
        }
        Ok(())
    })
}
