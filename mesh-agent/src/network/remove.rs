//! Takes rules, routes and the table of ours away, for good.

use mesh_common::names::{MARK_DELIVER, ROUTE_TABLE, RULE_DELIVER, RULE_REVERSE};
use nix::errno::Errno;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::tc::TcHandle;

use super::netlink::{Error, Network, PROTOCOL, blocking, collect, families, tolerate};
use super::nftables;

impl Network {
    /// Removes our rules; returns how many there were.
    pub async fn remove_rules(&self) -> Result<usize, Error> {
        let mut removed = 0;
        for rule in self.our_rules().await? {
            let gone = self.handle.rule().del(rule).execute().await;
            tolerate(gone, Errno::ENOENT, || "removing a rule".to_owned())?;
            removed += 1;
        }
        Ok(removed)
    }

    pub(super) async fn our_rules(&self) -> Result<Vec<RuleMessage>, Error> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let listed = self.handle.rule().get(version).execute();
            rules.extend(collect("listing rules", listed).await?);
        }
        rules.retain(is_our_rule);
        Ok(rules)
    }

    /// Removes our routes from all tables; returns how many there were.
    pub async fn remove_routes(&self) -> Result<usize, Error> {
        let mut removed = 0;
        for route in self.our_routes().await? {
            let gone = self.handle.route().del(route).execute().await;
            tolerate(gone, Errno::ESRCH, || "removing a route".to_owned())?;
            removed += 1;
        }
        Ok(removed)
    }

    pub(super) async fn our_routes(&self) -> Result<Vec<RouteMessage>, Error> {
        let mut routes = Vec::new();
        for family in families() {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let listed = self.handle.route().get(filter).execute();
            routes.extend(collect("listing routes", listed).await?);
        }
        routes.retain(is_our_route);
        Ok(routes)
    }

    /// Removes our nftables table; whether there was one.
    pub async fn remove_masquerade(&self) -> Result<bool, Error> {
        // A kernel without nftables has no table.
        if !matches!(blocking(nftables::has_table).await, Ok(true)) {
            return Ok(false);
        }
        let removed = blocking(|| nftables::commit(&nftables::removal())).await;
        removed.map_err(Error::Nftables).map(|()| true)
    }

    /// Puts kernel settings back that agents changed; returns their names.
    pub fn restore_settings(&self) -> Result<Vec<String>, Error> {
        self.settings.restore().map_err(Error::Sysctl)
    }

    /// Removes the clsact qdisc of an interface if no filter is left in it.
    pub async fn remove_empty_clsact(&self, index: u32) -> Result<(), Error> {
        if !self.filters(index).await?.is_empty() {
            return Ok(());
        }
        let mut request = self.handle.qdisc().del(index.cast_signed());
        request.message_mut().header.parent = TcHandle::CLSACT;
        let gone = request.execute().await;
        tolerate(gone, Errno::ENOENT, || "removing a clsact qdisc".to_owned())
    }
}

fn is_our_rule(rule: &RuleMessage) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    has(&RuleAttribute::FwMark(MARK_DELIVER))
        && [RULE_DELIVER, RULE_REVERSE]
            .map(RuleAttribute::Priority)
            .iter()
            .any(has)
}

fn is_our_route(route: &RouteMessage) -> bool {
    let table = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    let table = table.unwrap_or(route.header.table.into());
    let tables = [ROUTE_TABLE, RouteHeader::RT_TABLE_MAIN.into()];
    route.header.protocol == PROTOCOL && tables.contains(&table)
}
