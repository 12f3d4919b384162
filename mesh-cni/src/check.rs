//! EDGE: CHECK: the agent, the result of ADD and the kernel must agree.
//!
//! Plugins behind us may change a pod's interface and say so in the result: what the result no longer claims, or
//! claims differently, is measured by the result.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mesh_common::cni::{Request, Wiring};

use crate::agent::Session;
use crate::apply::opened;
use crate::command::Command;
use crate::error::Error;
use crate::netlink::{Found, Link, Netlink};
use crate::netns::Netns;
use crate::plan::{self, End, Mac};
use crate::request::Check;
use crate::result::Interface;

/// Carries a CHECK out.
pub(crate) fn run(check: &Check) -> Result<(), Error> {
    let netns = Netns::open(&check.netns)?;
    let attachment = check.attachment.clone();
    let mut session = Session::connect(Command::Check, &check.socket)?;
    let wiring = session.wiring(Request::Check { attachment })?;
    check_claims(check, &wiring)?;
    let mut host = opened(Netlink::open())?;
    let mut pod = opened(netns.inside(Netlink::open)?)?;
    let host_link = check_host_link(check, &wiring, &mut host)?;
    let pod_link = check_pod_link(check, &wiring, &mut pod)?;
    check_addresses(check, &wiring, &mut pod, pod_link)?;
    for &address in &wiring.addresses {
        check_ways(check, address, (&mut host, host_link), (&mut pod, pod_link))?;
    }
    Ok(())
}

/// The result must list our interface and the agent's addresses.
fn check_claims(check: &Check, wiring: &Wiring) -> Result<(), Error> {
    if claimed(check).is_none() {
        return differs("interfaces of prevResult", &check.attachment.ifname, "none");
    }
    for &address in &wiring.addresses {
        let ips = &check.previous.ips;
        if !ips.iter().any(|ip| ip.address.addr() == address) {
            return differs(
                "ips of prevResult",
                address,
                list(ips.iter().map(|ip| ip.address)),
            );
        }
    }
    Ok(())
}

fn claimed(check: &Check) -> Option<&Interface> {
    let ours = |interface: &&Interface| {
        interface.name == check.attachment.ifname && !interface.sandbox.is_empty()
    };
    check.previous.interfaces.iter().find(ours)
}

fn check_host_link(check: &Check, wiring: &Wiring, host: &mut Netlink) -> Result<Link, Error> {
    let name = check.attachment.host_ifname();
    let link = existing(host, &name)?;
    check_up(&name, link)?;
    let mac = Mac::of(&check.attachment, End::Host);
    same(format!("MAC address of {name}"), mac, shown(link.mac))?;
    same(format!("MTU of {name}"), wiring.mtu, link.mtu)?;
    Ok(link)
}

fn check_pod_link(check: &Check, wiring: &Wiring, pod: &mut Netlink) -> Result<Link, Error> {
    let name = &check.attachment.ifname;
    let link = existing(pod, name)?;
    check_up(name, link)?;
    let claimed = claimed(check);
    let ours = Mac::of(&check.attachment, End::Pod).to_string();
    let mac = claimed.and_then(|interface| interface.mac.clone());
    let mac = mac.unwrap_or(ours).to_lowercase();
    same(format!("MAC address of {name}"), mac, shown(link.mac))?;
    let mtu = claimed.and_then(|interface| interface.mtu);
    // Results before 1.1 say nothing of a plugin behind us that lowered it; more than the path carries is never right.
    if mtu.unwrap_or(wiring.mtu) != link.mtu && (mtu.is_some() || link.mtu > wiring.mtu) {
        return differs(
            format!("MTU of {name}"),
            mtu.unwrap_or(wiring.mtu),
            link.mtu,
        );
    }
    Ok(link)
}

fn check_addresses(
    check: &Check,
    wiring: &Wiring,
    pod: &mut Netlink,
    link: Link,
) -> Result<(), Error> {
    let found = told("list the pod's addresses", pod.addresses(link.index))?;
    for &address in &wiring.addresses {
        if !found.contains(&IpNet::from(address)) {
            let subject = format!("addresses of {}", check.attachment.ifname);
            return differs(subject, IpNet::from(address), list(&found));
        }
    }
    Ok(())
}

/// From the pod to anywhere, and from the node to the pod: route and neighbour entry, each way.
fn check_ways(
    check: &Check,
    address: IpAddr,
    (host, host_link): (&mut Netlink, Link),
    (pod, pod_link): (&mut Netlink, Link),
) -> Result<(), Error> {
    let gateway = plan::gateway(address);
    if claims_default_route(check, address) {
        let way = Found {
            index: pod_link.index,
            gateway: Some(gateway),
        };
        check_way("the pod's default route", elsewhere(address), pod, way)?;
    }
    check_neighbour("the pod", gateway, (pod, pod_link), host_link)?;
    let way = Found {
        index: host_link.index,
        gateway: None,
    };
    check_way("the node's route to the pod", address, host, way)?;
    check_neighbour("the node", address, (host, host_link), pod_link)
}

fn claims_default_route(check: &Check, address: IpAddr) -> bool {
    let destination = plan::default_destination(address);
    let gateway = Some(plan::gateway(address));
    let routes = &check.previous.routes;
    routes
        .iter()
        .any(|route| route.dst == destination && route.gw == gateway)
}

fn check_way(
    subject: &'static str,
    destination: IpAddr,
    netlink: &mut Netlink,
    expected: Found,
) -> Result<(), Error> {
    let found = told("look a route up", netlink.route_to(destination))?;
    if found == Some(expected) {
        return Ok(());
    }
    let found = found.map_or_else(|| "none".to_owned(), describe);
    differs(subject, describe(expected), found)
}

fn check_neighbour(
    whose: &str,
    address: IpAddr,
    (netlink, link): (&mut Netlink, Link),
    neighbour: Link,
) -> Result<(), Error> {
    let found = netlink.permanent_neighbour(link.index, address);
    let found = told("look a neighbour up", found)?;
    let subject = format!("{whose}'s neighbour {address}");
    same(subject, shown(neighbour.mac), shown(found))
}

fn check_up(name: &str, link: Link) -> Result<(), Error> {
    let state = if link.up { "up" } else { "down" };
    same(format!("state of {name}"), "up", state)
}

fn existing(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    match told("look an interface up", netlink.link(name))? {
        Some(link) => Ok(link),
        None => differs("interfaces", name, "none of that name"),
    }
}

fn same(subject: String, expected: impl Display, found: impl Display) -> Result<(), Error> {
    if expected.to_string() == found.to_string() {
        return Ok(());
    }
    differs(subject, expected, found)
}

fn differs<T>(
    subject: impl Into<String>,
    expected: impl Display,
    found: impl Display,
) -> Result<T, Error> {
    Err(Error::Differs {
        subject: subject.into(),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

fn told<T>(what: &'static str, answer: io::Result<T>) -> Result<T, Error> {
    answer.map_err(|source| Error::Kernel { what, source })
}

fn shown(mac: Option<Mac>) -> String {
    mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string())
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        return "none".to_owned();
    }
    items.join(", ")
}

fn describe(way: Found) -> String {
    match way.gateway {
        Some(gateway) => format!("via {gateway} on interface {}", way.index),
        None => format!("on interface {}", way.index),
    }
}

/// An address that only the default route leads to: of the blocks for documentation (RFC 5737, RFC 3849).
fn elsewhere(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}
