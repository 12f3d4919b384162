//! The network between nodes, and what others do to a node's.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use mesh_tests::node::{Node, UPLINK};
use mesh_tests::objects;
use mesh_tests::world::Family;

use super::{Guests, last};
use crate::draw::Draw;
use crate::stage::Stage;

pub(super) fn uplink(node: &Node, lasts: Duration) -> Result<Guests> {
    node.netns().ip(&format!("link set {UPLINK} down"))?;
    last(lasts);
    // IPv6 addresses go with the link; whoever manages the network gives them again.
    let address = node.ip(Family::V6);
    node.netns().ip(&format!(
        "link set {UPLINK} up
         address replace {address}/64 dev {UPLINK} nodad"
    ))?;
    Ok(Guests::new())
}

pub(super) fn carrier(stage: &Stage<'_>, node: &Node, lasts: Duration) -> Result<Guests> {
    let fabric = stage.lab.fabric()?;
    fabric.ip(&format!("link set {} down", node.name()))?;
    last(lasts);
    fabric.ip(&format!("link set {} up", node.name()))?;
    Ok(Guests::new())
}

pub(super) fn mtu(stage: &Stage<'_>, lasts: Duration, draw: &mut Draw) -> Result<Guests> {
    let mtu = *draw.one(&[1280, 1400, 9000]);
    let set = |mtu: u32| {
        let fabric = stage.lab.fabric()?;
        stage.lab.nodes().iter().try_for_each(|node| {
            fabric.ip(&format!("link set {} mtu {mtu}", node.name()))?;
            node.netns().ip(&format!("link set {UPLINK} mtu {mtu}"))
        })
    };
    set(mtu)?;
    last(2 * lasts);
    set(1500)?;
    Ok(Guests::new())
}

pub(super) fn address(stage: &Stage<'_>, node: &Node, lasts: Duration) -> Result<Guests> {
    let old = Family::BOTH.map(|family| node.ip(family));
    let new = old.map(another);
    let dev = |verb: &str, [v4, v6]: [IpAddr; 2]| {
        node.netns().ip(&format!(
            "address {verb} {v4}/24 dev {UPLINK}
             address {verb} {v6}/64 dev {UPLINK} nodad"
        ))
    };
    let tell = |addresses: &[IpAddr]| {
        stage.lab.objects().edit("Node", "", node.name(), |object| {
            let told = objects::node(node.name(), addresses, &[]);
            object["status"] = told["status"].clone();
        })
    };
    // Otherwise the kernel takes the other addresses of a network with the first one.
    let promote = format!("/proc/sys/net/ipv4/conf/{UPLINK}/promote_secondaries");
    node.netns().run(|| fs::write(promote, "1"))?;
    // One more, then that one alone.
    dev("replace", new)?;
    tell(&[old, new].concat())?;
    last(lasts);
    tell(&new)?;
    stage.lab.settle()?;
    dev("delete", old)?;
    last(lasts);
    dev("replace", old)?;
    tell(&old)?;
    stage.lab.settle()?;
    dev("delete", new)?;
    Ok(Guests::new())
}

/// An address beside a node's own.
fn another(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::from((ip.to_bits() + 50).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((ip.to_bits() + 50).to_be_bytes()),
    }
}

/// As a network manager does that takes away what it does not know.
pub(super) fn flush(node: &Node) -> Result<Guests> {
    node.netns().ip("route flush proto 109
         -6 route flush proto 109
         route flush table 15008
         rule delete priority 50
         rule delete priority 51
         -6 rule delete priority 50
         -6 rule delete priority 51")?;
    node.netns().exec("nft", ["flush", "ruleset"])?;
    Ok(Guests::new())
}
