//! The node's network as the agent reads it, one thing a line; everybody's, and nothing is changed.

use std::collections::HashMap;

use rtnetlink::IpVersion;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

use super::netlink::{Error, Network, collect, families, ip};

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The interfaces.
    pub links: Vec<String>,
    /// Their addresses.
    pub addresses: Vec<String>,
    /// The policy rules.
    pub rules: Vec<String>,
    /// The routes of all tables.
    pub routes: Vec<String>,
}

impl Network {
    /// Reads all of it.
    pub async fn listing(&self) -> Result<Listing, Error> {
        let links = self.links().await?;
        let names = links.iter().map(|it| (it.index, it.name.clone())).collect();
        let link = |it: &super::Uplink| format!("{} {} mtu {}", it.index, it.name, it.mtu);
        let mut listing = Listing {
            links: links.iter().map(link).collect(),
            ..Listing::default()
        };
        let listed = self.handle.address().get().execute();
        for it in collect("listing addresses", listed).await? {
            let address = it.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            if let Some(address) = address {
                let (dev, length) = (name(&names, it.header.index), it.header.prefix_len);
                listing
                    .addresses
                    .push(format!("{address}/{length} dev {dev}"));
            }
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            let listed = self.handle.rule().get(version).execute();
            let rules = collect("listing rules", listed).await?;
            listing.rules.extend(rules.iter().map(rule));
        }
        for family in families() {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let listed = self.handle.route().get(filter).execute();
            let routes = collect("listing routes", listed).await?;
            listing
                .routes
                .extend(routes.iter().map(|it| route(it, &names)));
        }
        Ok(listing)
    }
}

fn name(names: &HashMap<u32, String>, index: u32) -> String {
    names
        .get(&index)
        .cloned()
        .unwrap_or_else(|| index.to_string())
}

fn rule(it: &RuleMessage) -> String {
    let (mut priority, mut table) = (0, u32::from(it.header.table));
    let mut words = Vec::new();
    for attribute in &it.attributes {
        match attribute {
            RuleAttribute::Priority(it) => priority = *it,
            RuleAttribute::Table(it) => table = *it,
            RuleAttribute::FwMark(mark) => words.push(format!("fwmark {mark:#010x}")),
            RuleAttribute::FwMask(mask) => words.push(format!("mask {mask:#010x}")),
            RuleAttribute::Iifname(name) => words.push(format!("iif {name}")),
            RuleAttribute::Oifname(name) => words.push(format!("oif {name}")),
            _ => {}
        }
    }
    words.insert(0, format!("{priority} {:?}", it.header.family));
    words.push(format!("{:?} table {table}", it.header.action));
    words.join(" ")
}

fn route(it: &RouteMessage, names: &HashMap<u32, String>) -> String {
    let (mut table, mut to) = (u32::from(it.header.table), "default".to_owned());
    let mut words = Vec::new();
    for attribute in &it.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let length = it.header.destination_prefix_length;
                to = ip(address).map_or(to, |ip| format!("{ip}/{length}"));
            }
            RouteAttribute::Gateway(address) => {
                words.extend(ip(address).map(|ip| format!("via {ip}")));
            }
            RouteAttribute::Oif(index) => words.push(format!("dev {}", name(names, *index))),
            RouteAttribute::Table(it) => table = *it,
            RouteAttribute::Priority(metric) => words.push(format!("metric {metric}")),
            _ => {}
        }
    }
    let (kind, protocol) = (it.header.kind, u8::from(it.header.protocol));
    words.insert(0, format!("{kind:?} {to} table {table} proto {protocol}"));
    words.join(" ")
}
