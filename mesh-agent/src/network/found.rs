//! What agents have made on the node, and the chains of everybody, as they are found; nothing is changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rtnetlink::packet_route::route::RouteAttribute;

use super::netlink::{Error, Network, blocking, ip};
use super::nftables;

/// What agents have made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many policy rules.
    pub rules: usize,
    /// How many routes, in all tables.
    pub routes: usize,
    /// The next hops of those: addresses of other nodes.
    pub next_hops: BTreeSet<IpAddr>,
    /// Whether there is the nftables table.
    pub has_table: bool,
}

impl Network {
    /// Looks for what agents have made.
    pub async fn found(&self) -> Result<Found, Error> {
        let routes = self.our_routes().await?;
        let attributes = routes.iter().flat_map(|route| &route.attributes);
        let next_hops = attributes.filter_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        });
        Ok(Found {
            rules: self.our_rules().await?.len(),
            next_hops: next_hops.collect(),
            routes: routes.len(),
            // A kernel without nftables has no table.
            has_table: matches!(blocking(nftables::has_table).await, Ok(true)),
        })
    }

    /// The names of the packet filter's chains, of all who have some.
    pub async fn chains(&self) -> Result<Vec<String>, Error> {
        blocking(nftables::chains).await.map_err(Error::Nftables)
    }
}
