//! Whether the node's links, routes or rules have changed, by whomever.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinSet;

/// What the kernel tells of. A link that goes down takes routes with it of which it tells nothing.
const TOLD: [MulticastGroup; 5] = [
    MulticastGroup::Link,
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
            while messages.next().await.is_some() {
                tell.store(true, Ordering::Relaxed);
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
