//! Rules, routes and links of the node, over rtnetlink.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures_util::TryStreamExt;
use futures_util::stream::Stream;
use ipnet::IpNet;
use mesh_common::names::{MARK_DELIVER, MARK_MASK, ROUTE_TABLE, RULE_DELIVER, RULE_REVERSE};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinSet;

use super::changes::Changes;
use super::masquerade::Masquerade;
use super::routes::{NodeRoute, Via};
use super::sysctl::Settings;
use super::{nftables, sysctl};

/// The routing protocol number by which routes of ours are known again after a restart; unassigned elsewhere.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(109);

/// A failure to set up the node's network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{what}")]
    Netlink {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// No netlink socket can be had.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// A kernel setting cannot be made; the operator runs the agent privileged.
    #[error("kernel setting")]
    Sysctl(#[source] io::Error),
    /// Our table cannot be written.
    #[error(
        "our nftables table, which masquerades pods and keeps kube-proxy off captured connections; it needs a kernel with CONFIG_NF_TABLES_INET, CONFIG_NFT_CT and CONFIG_NFT_MASQ"
    )]
    Nftables(#[source] io::Error),
    /// No interface has any of the node's addresses.
    #[error(
        "no interface has an address of this node ({0:?}): pass --uplink, or mend status.addresses of the Node"
    )]
    NoUplink(Vec<IpAddr>),
    /// The interface named by `--uplink` does not exist.
    #[error("--uplink {0}: there is no such interface")]
    NoSuchUplink(String),
}

/// An interface that leads to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The node's network, by netlink.
pub struct Network {
    pub(super) handle: Handle,
    pub(super) settings: Settings,
    /// What our nftables table says, as far as this agent knows.
    masquerade: Option<Masquerade>,
    changes: Changes,
    /// The connection's driver; it ends with this value.
    _driver: JoinSet<()>,
}

impl Network {
    /// Opens a netlink connection in the calling thread's network namespace.
    ///
    /// Kernel settings that it changes are recorded in the state directory.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self {
            handle,
            settings: Settings::new(state),
            masquerade: None,
            changes: Changes::open().map_err(Error::Socket)?,
            _driver: driver,
        })
    }

    /// Waits until the node's links, addresses, rules or our routes have changed; many changes may be one. Cancel-safe.
    pub async fn changed(&self) {
        self.changes.next().await;
    }

    /// The uplinks: those named, otherwise every interface that has one of the node's addresses.
    pub async fn uplinks(
        &self,
        named: &[String],
        addresses: &[IpAddr],
    ) -> Result<Vec<Uplink>, Error> {
        let links = self.links().await?;
        if !named.is_empty() {
            let find = |name: &String| {
                let link = links.iter().find(|link| link.name == *name);
                link.cloned()
                    .ok_or_else(|| Error::NoSuchUplink(name.clone()))
            };
            return named.iter().map(find).collect();
        }
        let indices = self.interfaces_with(addresses).await?;
        let uplinks: Vec<_> = links
            .into_iter()
            .filter(|link| indices.contains(&link.index))
            .collect();
        if uplinks.is_empty() {
            Err(Error::NoUplink(addresses.to_vec()))
        } else {
            Ok(uplinks)
        }
    }

    /// Every interface of the namespace.
    pub async fn links(&self) -> Result<Vec<Uplink>, Error> {
        let messages = collect("listing interfaces", self.handle.link().get().execute()).await?;
        let link = |message: rtnetlink::packet_route::link::LinkMessage| {
            let mut link = Uplink {
                name: String::new(),
                index: message.header.index,
                mtu: 0,
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    _ => {}
                }
            }
            link
        };
        Ok(messages.into_iter().map(link).collect())
    }

    /// Removes an interface; absent is fine.
    pub async fn remove_link(&self, name: &str) -> Result<(), Error> {
        let Some(link) = self
            .links()
            .await?
            .into_iter()
            .find(|link| link.name == name)
        else {
            return Ok(());
        };
        let removed = self.handle.link().del(link.index).execute().await;
        tolerate(removed, nix::errno::Errno::ENODEV, || {
            format!("removing interface {name}")
        })
    }

    /// Makes the node forward, and deliver marked packets to the agent; may be called again.
    pub async fn prepare(&self, uplinks: &[Uplink]) -> Result<(), Error> {
        let names = uplinks.iter().map(|uplink| uplink.name.clone());
        self.settings.forward(names).map_err(Error::Sysctl)?;
        self.deliver_marked(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
            .await?;
        if sysctl::has_ipv6() {
            self.deliver_marked(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
                .await?;
        }
        Ok(())
    }

    /// Makes the routes with our protocol number those wanted.
    ///
    /// A route that cannot be made (a node that is no neighbour) does not keep the others from being made; the first
    /// failure is returned at the end.
    pub async fn sync_routes(&self, wanted: &BTreeSet<NodeRoute>) -> Result<(), Error> {
        let present = self.routes().await?;
        let mut first = Ok(());
        for route in wanted.difference(&present) {
            let added = self
                .handle
                .route()
                .add(message(route))
                .replace()
                .execute()
                .await;
            let what = || format!("adding route {} {:?}", route.prefix, route.via);
            first = first.and(added.map_err(|source| Error::Netlink {
                what: what(),
                source,
            }));
        }
        for route in present.difference(wanted) {
            // A changed next hop was replaced above.
            if wanted.iter().any(|other| other.prefix == route.prefix) {
                continue;
            }
            let removed = self.handle.route().del(message(route)).execute().await;
            let what = || format!("removing route {}", route.prefix);
            first = first.and(tolerate(removed, nix::errno::Errno::ESRCH, what));
        }
        first
    }

    /// Makes our nftables table say what is wanted, or not be there.
    ///
    /// Another agent's table is replaced in one transaction; connections that are masqueraded already are so until they
    /// end. A table that somebody removed is made again.
    pub async fn sync_masquerade(&mut self, wanted: Option<Masquerade>) -> Result<(), Error> {
        let held = blocking(nftables::has_table).await;
        let batch = match (&wanted, held) {
            (None, Ok(false) | Err(_)) => return Ok(()),
            (None, Ok(true)) => nftables::removal(),
            (Some(_), Ok(true)) if self.masquerade == wanted => return Ok(()),
            (Some(plan), Ok(_)) => nftables::masquerading(plan),
            (Some(_), Err(error)) => return Err(Error::Nftables(error)),
        };
        self.masquerade = None;
        let committed = blocking(move || nftables::commit(&batch)).await;
        committed.map_err(Error::Nftables)?;
        self.masquerade = wanted;
        Ok(())
    }

    /// Whether the table that was written last is still there.
    pub async fn has_masquerade(&self) -> bool {
        self.masquerade.is_none() || matches!(blocking(nftables::has_table).await, Ok(true))
    }

    /// Two rules and a local route, one family: see `DELIVER` and `REVERSE` in `mesh_common::names`.
    async fn deliver_marked(&self, any: IpAddr) -> Result<(), Error> {
        let exists = nix::errno::Errno::EEXIST;
        let lo = self
            .links()
            .await?
            .into_iter()
            .find(|link| link.name == "lo");
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(any, 0)
            .expect("a prefix of length 0 is valid for both families")
            .output_interface(lo.map_or(1, |lo| lo.index))
            .table_id(ROUTE_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .protocol(PROTOCOL)
            .build();
        let added = self.handle.route().add(route).execute().await;
        tolerate(added, exists, || {
            "adding the local route for captured packets".to_owned()
        })?;
        let reverse = self.add_rule(
            any,
            RULE_REVERSE,
            u32::from(RouteHeader::RT_TABLE_MAIN),
            true,
        );
        tolerate(reverse.await, exists, || {
            "adding the reverse-path rule".to_owned()
        })?;
        let deliver = self.add_rule(any, RULE_DELIVER, ROUTE_TABLE, false);
        tolerate(deliver.await, exists, || {
            "adding the rule for captured packets".to_owned()
        })
    }

    async fn add_rule(
        &self,
        any: IpAddr,
        priority: u32,
        table: u32,
        from_lo: bool,
    ) -> Result<(), rtnetlink::Error> {
        let mut rule = self
            .handle
            .rule()
            .add()
            .priority(priority)
            .table_id(table)
            .fw_mark(MARK_DELIVER)
            .action(RuleAction::ToTable);
        rule.message_mut()
            .attributes
            .push(RuleAttribute::FwMask(MARK_MASK));
        if from_lo {
            rule = rule.input_interface("lo");
        }
        match any {
            IpAddr::V4(_) => rule.v4().execute().await,
            IpAddr::V6(_) => rule.v6().execute().await,
        }
    }

    /// The single addresses that routes of the main table lead to by an interface.
    pub async fn hosts_behind(&self, index: u32) -> Result<Vec<IpAddr>, Error> {
        let mut hosts = Vec::new();
        for family in families() {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let listed = self.handle.route().get(filter).execute();
            let routes = collect("listing routes", listed).await?;
            hosts.extend(routes.iter().filter_map(|route| host_behind(route, index)));
        }
        Ok(hosts)
    }

    async fn interfaces_with(&self, addresses: &[IpAddr]) -> Result<BTreeSet<u32>, Error> {
        let messages = collect("listing addresses", self.handle.address().get().execute()).await?;
        let has = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => addresses.contains(ip),
            _ => false,
        };
        Ok(messages
            .into_iter()
            .filter(|message| message.attributes.iter().any(has))
            .map(|message| message.header.index)
            .collect())
    }

    async fn routes(&self) -> Result<BTreeSet<NodeRoute>, Error> {
        let mut routes = BTreeSet::new();
        for family in families() {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let messages =
                collect("listing routes", self.handle.route().get(filter).execute()).await?;
            routes.extend(messages.iter().filter_map(parse));
        }
        Ok(routes)
    }
}

/// Both families.
pub(super) fn families() -> [AddressFamily; 2] {
    [AddressFamily::Inet, AddressFamily::Inet6]
}

fn message(route: &NodeRoute) -> RouteMessage {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.prefix.addr(), route.prefix.prefix_len())
        .expect("an IpNet is a valid prefix")
        .protocol(PROTOCOL);
    match route.via {
        Via::Node(ip) => builder
            .gateway(ip)
            .expect("the gateway is of the prefix's family")
            .build(),
        Via::Unreachable => builder.kind(RouteType::Unreachable).build(),
    }
}

/// A route of ours in the main table, as [`NodeRoute`].
fn parse(message: &RouteMessage) -> Option<NodeRoute> {
    if message.header.protocol != PROTOCOL || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut prefix = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => prefix = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    let via = match message.header.kind {
        RouteType::Unreachable => Via::Unreachable,
        _ => Via::Node(gateway?),
    };
    let prefix = IpNet::new(prefix?, message.header.destination_prefix_length).ok()?;
    Some(NodeRoute { prefix, via })
}

/// The one address that a route of the main table leads to by an interface.
fn host_behind(route: &RouteMessage, index: u32) -> Option<IpAddr> {
    let leads_there = route.attributes.contains(&RouteAttribute::Oif(index));
    let destination = route.attributes.iter().find_map(|it| match it {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    })?;
    let bits = if destination.is_ipv4() { 32 } else { 128 };
    let is_host = route.header.destination_prefix_length == bits;
    (leads_there && is_host && route.header.table == RouteHeader::RT_TABLE_MAIN)
        .then_some(destination)
}

pub(super) fn ip(address: &rtnetlink::packet_route::route::RouteAddress) -> Option<IpAddr> {
    use rtnetlink::packet_route::route::RouteAddress;
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// Runs what waits for the kernel in a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|panic| Err(panic.into()))
}

pub(super) async fn collect<T>(
    what: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Error> {
    let collected = stream.try_collect().await;
    collected.map_err(|source| Error::Netlink {
        what: what.to_owned(),
        source,
    })
}

/// Takes one errno as success.
pub(super) fn tolerate(
    result: Result<(), rtnetlink::Error>,
    errno: nix::errno::Errno,
    what: impl Fn() -> String,
) -> Result<(), Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(errno as i32) => {
            Ok(())
        }
        other => other.map_err(|source| Error::Netlink {
            what: what(),
            source,
        }),
    }
}
