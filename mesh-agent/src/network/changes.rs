//! Whether the node's links, addresses, rules or our routes have changed, by whomever.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};
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
    told: Arc<AtomicBool>,
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
        let told = Arc::new(AtomicBool::new(false));
        let tell = told.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        tasks.spawn(async move {
            // That some were lost is a message, too.
            while let Some((message, _)) = messages.next().await {
                if !is_foreign_route(&message.payload) {
                    tell.store(true, Ordering::Relaxed);
                }
            }
        });
        Ok(Self {
            told,
            _handle: handle,
            _tasks: tasks,
        })
    }

    /// Whether anything has changed since this was asked last.
    pub(super) fn take(&self) -> bool {
        self.told.swap(false, Ordering::Relaxed)
    }
}

/// Whether it is about a route that is none of ours: nodes that speak BGP have many, which come and go.
fn is_foreign_route(message: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelRoute, NewRoute};
    match message {
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => {
            route.header.protocol != PROTOCOL
        }
        _ => false,
    }
}
