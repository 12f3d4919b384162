//! kube-proxy in ipvs mode: what an enrolled pod opens to a service is the agent's, all else is IPVS's and judged behind it.
//!
//! IPVS takes what comes in for its services from under the socket that a packet has. The test sees that first, without the
//! rules that keep it off.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::capture::inject;
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::frames::{Frame, flag, protocol};
use mesh_tests::lab::{Lab, scenario_with, stop};
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::reach::Reach::{Open, Refused, Silent};
use mesh_tests::reach::{UdpEcho, tcp, udp};
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::json;

/// Of every service.
const PORT: u16 = 80;
/// Of every endpoint.
const TARGET: u16 = 8080;
/// The agent's table of nftables.
const TABLE: &str = "mesh-cni";
const SECRET: &[u8] = b"not for IPVS to see";

#[test]
#[ignore = "needs a kernel with IPVS: `cargo xtask vm-test`"]
fn the_agent_gets_what_ipvs_would_take() -> Result<()> {
    scenario_with("ipvs", &["--masquerade"], |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let [one, two] = ["one", "two"].map(|name| {
            let pod = lab.pod(name).namespace("shop").on("n2");
            pod.label("app", "web").create()
        });
        let servers = [one?, two?];
        let mut apps = Vec::new();
        for server in &servers {
            let echo = Server::start(server, TARGET, App::Echo)?;
            apps.push((echo, UdpEcho::start(server, TARGET)?));
        }
        let service = lab.service("web").namespace("shop").port(PORT, TARGET);
        let service = service.create()?;
        let node = lab.node("n1");
        let vips = Family::BOTH.map(|family| service.at(family));
        for vip in vips {
            bind(node, vip.ip())?;
            schedule(node, vip, &servers)?;
        }

        taken_without_rules(&client, vips)?;

        let before = scheduled(node, "TCP")?;
        for vip in vips {
            captured(lab, &client, vip).with_context(|| vip.to_string())?;
            eventually("IPVS serves datagrams", SOON, || {
                Ok(udp(client.netns(), vip)? == Open)
            })?;
        }
        ensure!(!scheduled(node, "UDP")?.is_empty(), "who served them?");
        for (app, _) in &apps {
            for seen in app.clients() {
                let own = client.ip(Family::of(seen.ip()));
                ensure!(seen.ip() == own, "{seen} is not the client");
            }
        }
        behind_headers(&client, vips[1])?;
        let seen = &scheduled(node, "TCP")? - &before;
        ensure!(seen.is_empty(), "IPVS saw {seen:?}");
        judged_behind(lab)
    })
}

/// What the rules are for; afterwards they are back.
fn taken_without_rules(client: &Pod<'_>, vips: [SocketAddr; 2]) -> Result<()> {
    let node = client.node();
    let nft = |words: &[&str]| node.netns().exec("nft", words);
    for chain in ["hidden", "shown"] {
        nft(&["flush", "chain", "inet", TABLE, chain])?;
    }
    for vip in vips {
        let (frame, own) = opening(client, vip, 20_000)?;
        inject(client.netns(), "eth0", &frame.bytes())?;
        let what = format!("IPVS takes {vip} when nothing keeps it off");
        eventually(&what, SOON, || Ok(scheduled(node, "TCP")?.contains(&own)))?;
    }
    nft(&["delete", "table", "inet", TABLE])?;
    eventually("the table is back", SOON, || {
        Ok(nft(&["list", "chain", "inet", TABLE, "shown"]).is_ok())
    })
}

/// Many bytes both ways, and none of them in plaintext on the wire.
fn captured(lab: &Lab, client: &Pod<'_>, vip: SocketAddr) -> Result<()> {
    let before = client.node().counters()?;
    let wire = lab.capture()?;
    for _ in 0..4 {
        let stream = client.connect(vip)?;
        echoes(&stream, SECRET)?;
        for _ in 0..16 {
            echoes(&stream, &[0x5a; 16 << 10])?;
        }
    }
    let wire = stop(wire)?;
    ensure!(wire.tcp(HBONE_PORT) > 0, "no tunnel crosses the wire");
    ensure!(wire.tcp(TARGET) == 0 && !wire.contains(SECRET), "plaintext");
    client.node().counters()?.since(&before).assert(&[
        (Hook::FromPod, Outcome::Listener, AtLeast(4)),
        (Hook::FromPod, Outcome::Socket, AtLeast(64)),
    ]);
    Ok(())
}

/// IPVS looks behind IPv6 extension headers, and so do the kernel programs.
fn behind_headers(client: &Pod<'_>, vip: SocketAddr) -> Result<()> {
    let before = client.node().counters()?;
    let (frame, _) = opening(client, vip, 20_001)?;
    let frame = frame.extension(protocol::DESTINATION_OPTIONS);
    inject(client.netns(), "eth0", &frame.bytes())?;
    eventually("the agent got it", SOON, || {
        let moved = client.node().counters()?.since(&before);
        Ok(moved.of(Hook::FromPod, Outcome::Listener) == 1)
    })
}

/// Egress policy means the endpoint that IPVS chose.
fn judged_behind(lab: &Lab) -> Result<()> {
    let pod = |name: &str, node| lab.pod(name).namespace("plain").on(node).create();
    let client = pod("client", "n1")?;
    let servers = [pod("near", "n1")?, pod("far", "n2")?];
    let mut apps = Vec::new();
    let mut vips = Vec::new();
    for server in servers {
        let echo = Server::start(&server, TARGET, App::Echo)?;
        apps.push((echo, UdpEcho::start(&server, TARGET)?));
        let service = lab.service(server.name()).namespace("plain");
        let service = service.port(PORT, TARGET).create()?;
        let server = [server];
        for family in Family::BOTH {
            let vip = service.at(family);
            bind(client.node(), vip.ip())?;
            schedule(client.node(), vip, &server)?;
            vips.push((server[0].name().to_owned(), vip));
        }
    }
    let check = |allowed: Option<&str>| -> Result<()> {
        for (name, vip) in &vips {
            let is_open = allowed.is_none_or(|it| it == name);
            let (over_tcp, over_udp) = if is_open {
                (Open, Open)
            } else {
                (Refused, Silent)
            };
            let say = |of| format!("{of} to {name}, {vip}, allowed: {allowed:?}");
            eventually(&say("TCP"), SOON, || {
                Ok(tcp(client.netns(), *vip)? == over_tcp)
            })?;
            eventually(&say("UDP"), SOON, || {
                Ok(udp(client.netns(), *vip)? == over_udp)
            })?;
        }
        Ok(())
    };
    check(None)?;
    for name in ["near", "far"] {
        let spec = json!({
            "podSelector": { "matchLabels": { "app": "client" } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": name } } }] }],
        });
        lab.policy("NetworkPolicy", "plain", "egress", spec)?;
        check(Some(name))?;
    }
    Ok(())
}

/// As kube-proxy does: the address is the node's, at a device that is down.
fn bind(node: &Node, vip: IpAddr) -> Result<()> {
    let netns = node.netns();
    let _ = netns.exec("ip", ["link", "add", "kube-ipvs0", "type", "dummy"]);
    netns.exec("sysctl", ["-qw", "net.ipv4.vs.conntrack=1"])?;
    let (bits, nodad) = if vip.is_ipv4() {
        (32, "")
    } else {
        (128, "nodad")
    };
    netns.ip(&format!("address add {vip}/{bits} dev kube-ipvs0 {nodad}"))
}

/// A service of IPVS, over TCP and UDP, and the pods behind it.
fn schedule(node: &Node, vip: SocketAddr, pods: &[Pod<'_>]) -> Result<()> {
    let vip_text = vip.to_string();
    for protocol in ["-t", "-u"] {
        node.netns()
            .exec("ipvsadm", ["-A", protocol, &vip_text, "-s", "rr"])?;
        for pod in pods {
            let real = pod.at(Family::of(vip.ip()), TARGET).to_string();
            let words = ["-a", protocol, &vip_text, "-r", &real, "-m"];
            node.netns().exec("ipvsadm", words)?;
        }
    }
    Ok(())
}

/// The clients of the connections that IPVS knows.
fn scheduled(node: &Node, protocol: &str) -> Result<BTreeSet<String>> {
    let list = node.netns().exec("ipvsadm", ["-L", "-n", "-c"])?;
    let lines = list.lines().filter(|line| line.starts_with(protocol));
    // Protocol, time to live, state, client, service, endpoint.
    Ok(lines
        .filter_map(|line| Some(line.split_whitespace().nth(3)?.to_owned()))
        .collect())
}

/// The first segment of a connection from a port that the pod's kernel does not choose, and who sends it.
fn opening(client: &Pod<'_>, vip: SocketAddr, port: u16) -> Result<(Frame, String)> {
    let own = client.at(Family::of(vip.ip()), port);
    let (to, from) = client.macs()?;
    let frame = Frame::tcp(own, vip, flag::SYN).macs(to, from);
    Ok((frame, own.to_string()))
}
