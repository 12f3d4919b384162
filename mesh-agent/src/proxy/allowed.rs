//! EDGE: the connections that policy allows: judged when they open, and again whenever the world changes.
//!
//! What is no longer allowed is reset at once; what still is never notices.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::model::{Identity, Snapshot};
use crate::policy::{Connection, Destination, Direction, IpProtocol, Source, Verdict, evaluate};
use crate::telemetry::Counters;

/// What policy has to know of a connection, and where it was to go.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The opener's address; of one from another node, the tunnel's.
    pub source: SocketAddr,
    /// The address that was connected to.
    pub asked: SocketAddr,
    /// The opener's identity, if it is proved.
    pub identity: Option<Identity>,
    /// Where it ends, after a service's address was translated.
    pub destination: SocketAddr,
    /// The ends that are this node's to judge.
    pub directions: &'static [Direction],
    /// Whether it is a stream of a tunnel.
    pub is_tunnelled: bool,
}

impl Ends {
    /// The first verdict that denies.
    pub(super) fn denied(&self, snapshot: &Snapshot) -> Option<Denied> {
        let judged = self.directions.iter().map(|direction| {
            let verdict = evaluate(
                snapshot,
                &Connection {
                    direction: *direction,
                    protocol: IpProtocol::Tcp,
                    source: Source {
                        address: self.source.ip(),
                        workload: snapshot.workload_by_addr(self.source.ip()).map(|it| &**it),
                        identity: self.identity.as_ref(),
                    },
                    destination: Destination {
                        address: self.destination.ip(),
                        port: self.destination.port(),
                        workload: snapshot
                            .workload_by_addr(self.destination.ip())
                            .map(|it| &**it),
                    },
                    from_node: false,
                },
            );
            Denied(*direction, verdict)
        });
        judged.into_iter().find(|Denied(_, verdict)| !verdict.allow)
    }
}

/// Policy refuses a connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?}: {1}")]
pub(super) struct Denied(pub(super) Direction, pub(super) Verdict);

/// All connections of the agent that are open.
pub struct Allowed {
    world: watch::Receiver<Snapshot>,
    counters: Arc<Counters>,
    open: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    last: u64,
    by_number: HashMap<u64, (Ends, CancellationToken)>,
}

/// A connection's place among those that are allowed; dropped with it.
pub(super) struct Admission {
    allowed: Arc<Allowed>,
    number: u64,
    /// Cancelled when policy no longer allows the connection.
    pub(super) revoked: CancellationToken,
}

impl Allowed {
    /// No connections, judged on the latest `world`; `counters` count those that are ended.
    pub fn new(world: watch::Receiver<Snapshot>, counters: Arc<Counters>) -> Self {
        Self {
            world,
            counters,
            open: Mutex::default(),
        }
    }

    /// Judges a connection that is about to open, and from then on until the admission is dropped.
    ///
    /// # Errors
    /// The verdict that denies.
    pub(super) fn admit(self: &Arc<Self>, ends: &Ends) -> Result<Admission, Denied> {
        let revoked = CancellationToken::new();
        let number = {
            let mut open = self.open();
            open.last += 1;
            let number = open.last;
            open.by_number
                .insert(number, (ends.clone(), revoked.clone()));
            number
        };
        let admission = Admission {
            allowed: self.clone(),
            number,
            revoked,
        };
        // Judged once it is listed: a change that comes now finds it.
        match ends.denied(&self.world.borrow()) {
            None => Ok(admission),
            Some(denied) => Err(denied),
        }
    }

    /// Every connection that is open, in no order.
    pub fn open_now(&self) -> Vec<Ends> {
        let open = self.open();
        open.by_number
            .values()
            .map(|(ends, _)| ends.clone())
            .collect()
    }

    /// Judges every open connection again at each change of the world, until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut world = self.world.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = world.changed() => if changed.is_err() { return },
            }
            let snapshot = world.borrow_and_update().clone();
            for (ends, revoked) in self.open().by_number.values() {
                if let Some(denied) = ends.denied(&snapshot) {
                    info!(
                        src.addr = %ends.source, dst.addr = %ends.destination, %denied,
                        "connection is no longer allowed"
                    );
                    if !revoked.is_cancelled() {
                        self.counters.revoked.fetch_add(1, Ordering::Relaxed);
                    }
                    revoked.cancel();
                }
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Entries> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.allowed.open().by_number.remove(&self.number);
    }
}
