//! A node's network changes under a running mesh: what was open goes on, what is new works, and nothing leaves in plaintext.

use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::holdings::Holdings;
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::node::{Node, UPLINK};
use mesh_tests::objects;
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

const SECRET: &[u8] = b"nobody on the wire may read this";

/// Enrolled and plain pods on two nodes.
struct Cast<'lab> {
    client: Pod<'lab>,
    far: Pod<'lab>,
    plain: Pod<'lab>,
    plain_far: Pod<'lab>,
    _servers: [Server; 2],
}

impl<'lab> Cast<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        lab.namespace("shop").ambient().create()?;
        let shop = |name, node| lab.pod(name).namespace("shop").on(node).create();
        let (client, far) = (shop("client", "n1")?, shop("far", "n2")?);
        let plain = lab.pod("plain").on("n1").create()?;
        let plain_far = lab.pod("plain-far").on("n2").create()?;
        let serve = |pod| Server::start(pod, 8080, App::Echo);
        let servers = [serve(&far)?, serve(&plain_far)?];
        Ok(Self {
            client,
            far,
            plain,
            plain_far,
            _servers: servers,
        })
    }

    /// Changes a node: streams go on that were open, the node soon has what it had, and new connections work.
    fn outlives(&self, lab: &Lab, node: &Node, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = routes(node)?;
        let mut open = Vec::new();
        for family in Family::BOTH {
            open.push((self.client.connect(self.far.at(family, 8080))?, SECRET));
            let plain = self.plain.connect(self.plain_far.at(family, 8080))?;
            open.push((plain, b"for all to read"));
        }
        let wire = lab.capture()?;
        change()?;
        eventually("the node has its routes", SOON, || {
            Ok(routes(node)? == before)
        })?;
        for (stream, words) in &open {
            echoes(stream, words)?;
        }
        for family in Family::BOTH {
            echoes(&self.client.connect(self.far.at(family, 8080))?, SECRET)?;
            let plain = self.plain.connect(self.plain_far.at(family, 8080))?;
            echoes(&plain, b"for all to read")?;
        }
        assert!(!stop(wire)?.contains(SECRET), "nothing in plaintext");
        eventually("all is well", SOON, || Ok(node.status()?.0 == 0))
    }
}

/// The agent's routes, all tables.
fn routes(node: &Node) -> Result<BTreeSet<String>> {
    let all = Holdings::of(node)?.routes;
    let ours = all.lines().filter(|it| it.contains("proto 109"));
    Ok(ours.map(|it| it.trim().to_owned()).collect())
}

#[test]
fn the_uplink_goes_down_and_comes_up() -> Result<()> {
    scenario("node_uplink", |lab| {
        let cast = Cast::new(lab)?;
        for node in lab.nodes() {
            cast.outlives(lab, node, || {
                // The kernel drops every route of the link, and its IPv6 addresses.
                node.netns().ip(&format!("link set {UPLINK} down"))?;
                sleep(Duration::from_millis(300));
                let address = node.ip(Family::V6);
                node.netns().ip(&format!(
                    "link set {UPLINK} up
                     address replace {address}/64 dev {UPLINK} nodad"
                ))
            })?;
        }
        Ok(())
    })
}

#[test]
fn somebody_removes_rules_and_routes() -> Result<()> {
    scenario("node_flush", |lab| {
        let cast = Cast::new(lab)?;
        for node in lab.nodes() {
            cast.outlives(lab, node, || {
                for family in ["-4", "-6"] {
                    node.netns().ip(&format!(
                        "{family} route flush proto 109
                         {family} route flush table 15008
                         {family} rule delete priority 50
                         {family} rule delete priority 51"
                    ))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn the_links_get_another_mtu() -> Result<()> {
    scenario("node_mtu", |lab| {
        let cast = Cast::new(lab)?;
        let node = lab.node("n1");
        let mtu = || node.status().map(|(_, it)| it["network"]["mtu"].clone());
        let before = mtu()?;
        for mtu_now in [1400, 9000] {
            cast.outlives(lab, node, || {
                for node in lab.nodes() {
                    lab.fabric()?
                        .ip(&format!("link set {} mtu {mtu_now}", node.name()))?;
                    node.netns()
                        .ip(&format!("link set {UPLINK} mtu {mtu_now}"))?;
                }
                Ok(())
            })?;
            assert_ne!(mtu_now, before);
            eventually("new pods get it", SOON, || Ok(mtu()? == mtu_now))?;
            let late = lab.pod("late").on("n1").create()?;
            assert_eq!(late.added()["interfaces"][1]["mtu"], mtu_now);
            late.delete()?;
        }
        Ok(())
    })
}

#[test]
fn the_node_gets_another_address() -> Result<()> {
    scenario("node_address", |lab| {
        let cast = Cast::new(lab)?;
        let (node, other) = (lab.node("n2"), lab.node("n1"));
        let promote = format!("/proc/sys/net/ipv4/conf/{UPLINK}/promote_secondaries");
        node.netns().run(|| fs::write(promote, "1"))?;
        let [old4, old6] = Family::BOTH.map(|family| node.ip(family));
        let (new4, new6) = ("10.77.0.52", "fd00:77::52");
        cast.outlives(lab, node, || {
            node.netns().ip(&format!(
                "address add {new4}/24 dev {UPLINK}
                 address add {new6}/64 dev {UPLINK} nodad"
            ))?;
            lab.objects().edit("Node", "", node.name(), |object| {
                let told = objects::node(
                    node.name(),
                    &[new4, new6].map(|it| it.parse().expect("an address")),
                    &[],
                );
                object["status"] = told["status"].clone();
            })?;
            lab.settle()?;
            node.netns().ip(&format!(
                "address delete {old4}/24 dev {UPLINK}
                 address delete {old6}/64 dev {UPLINK}"
            ))
        })?;
        let routes = other
            .netns()
            .exec("ip", ["route", "show", "proto", "109"])?;
        assert!(routes.contains(new4), "{routes}");
        Ok(())
    })
}
