//! When the node's links, addresses, rules or our routes have changed, by whomever.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use mesh_common::cni::Attachment;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::netlink::PROTOCOL;

/// What the kernel tells of. A link that goes down takes routes with it of which it tells nothing.
const TOLD: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// The kernel's notifications.
pub(super) struct Changes {
    told: Arc<Notify>,
    _handle: Handle,
    /// The connection's driver, and who reads what it gets; they end with this value.
    _tasks: JoinSet<()>,
}

impl Changes {
    /// Listens in the calling thread's network namespace.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&TOLD)?;
        let told = Arc::new(Notify::new());
        let tell = told.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        tasks.spawn(async move {
            // That some were lost is a message, too.
            while let Some((message, _)) = messages.next().await {
                if is_of_interest(&message.payload) {
                    tell.notify_one();
                }
            }
        });
        Ok(Self {
            told,
            _handle: handle,
            _tasks: tasks,
        })
    }

    /// Waits until anything has changed since the last time.
    pub(super) async fn next(&self) {
        self.told.notified().await;
    }
}

/// Not routes of others, of which nodes that speak BGP have many, and not pods' interfaces, which the plugin tells of.
fn is_of_interest(message: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelLink, DelRoute, NewLink, NewRoute};
    match message {
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => {
            route.header.protocol == PROTOCOL
        }
        NetlinkPayload::InnerMessage(NewLink(link) | DelLink(link)) => !is_of_a_pod(link),
        _ => true,
    }
}

fn is_of_a_pod(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|it| match it {
        LinkAttribute::IfName(name) => Attachment::is_host_ifname(name),
        _ => false,
    })
}
