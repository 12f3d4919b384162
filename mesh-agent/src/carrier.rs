//! EDGE: what carries connections, from the listeners to the drain.

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use mesh_common::maps::Slot;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::hbone::{Dialled, Limits, Observer, OpenTunnels, Pool};
use crate::model::Snapshot;
use crate::pki::Certificates;
use crate::proxy::{Allowed, Inbound, Lane, Outbound, TransparentDial, Workers, socket};
use crate::telemetry::{Counters, Telemetry};
use crate::world::Listener;

/// The threads, the tunnels and the connections of an agent.
pub struct Carrier {
    workers: Workers,
    lanes: Arc<[Lane]>,
    outbound: Outbound,
    inbound: Inbound,
    allowed: Arc<Allowed>,
    connections: TaskTracker,
    /// Connections that were accepted before the order to stop may still need a tunnel.
    drained: CancellationToken,
}

impl Carrier {
    /// Starts the threads, one for each processor unless told otherwise, and at most four: more would be more tunnels
    /// between the same two pods. Their tunnels are listed among those that are `open`, their connections among those
    /// that are `allowed`.
    ///
    /// # Errors
    /// No thread or descriptor is to be had.
    pub fn start(
        workers: Option<NonZeroUsize>,
        snapshots: &watch::Receiver<Snapshot>,
        certificates: &Arc<Certificates>,
        open: Arc<OpenTunnels>,
        allowed: Arc<Allowed>,
        telemetry: &Arc<Telemetry>,
    ) -> anyhow::Result<Self> {
        const MOST: NonZeroUsize = NonZeroUsize::new(4).expect("not zero");
        let usual = || available_parallelism().unwrap_or(MOST).min(MOST);
        let workers = Workers::start(workers.unwrap_or_else(usual))?;
        let drained = CancellationToken::new();
        let counters = &telemetry.counters;
        let lanes = lanes(&workers, certificates, &open, &drained, counters);
        Ok(Self {
            outbound: Outbound::new(
                snapshots.clone(),
                lanes.clone(),
                allowed.clone(),
                telemetry.clone(),
            ),
            inbound: Inbound::new(
                snapshots.clone(),
                certificates.clone(),
                workers.handles(),
                allowed.clone(),
                open,
                telemetry.clone(),
            ),
            workers,
            lanes,
            allowed,
            connections: TaskTracker::new(),
            drained,
        })
    }

    /// Whether open connections are still allowed.
    pub fn allowed(&self) -> Arc<Allowed> {
        self.allowed.clone()
    }

    /// Serves listeners until `retired`, and what is in their queues then.
    pub fn serve(
        &self,
        listeners: Listeners,
        parts: &mut JoinSet<anyhow::Result<()>>,
        retired: &CancellationToken,
    ) {
        let mut serve = |worker: usize, serving: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let serving = self.connections.track_future(serving);
            let part = async {
                serving.await;
                Ok(())
            };
            parts.spawn_on(part, &self.workers.handles()[worker]);
        };
        let (first, last) = (0, self.lanes.len() - 1);
        for listener in listeners.outbound {
            let (outbound, connections) = (self.outbound.clone(), self.connections.clone());
            let serving = outbound.run(first, listener, connections, retired.clone());
            serve(first, Box::pin(serving));
        }
        for listener in listeners.inbound {
            let (inbound, connections) = (self.inbound.clone(), self.connections.clone());
            let serving = inbound.run(last, listener, connections, retired.clone());
            serve(last, Box::pin(serving));
        }
    }

    /// Gives open connections until a deadline to end.
    pub async fn drain(&self, deadline: Duration) {
        self.connections.close();
        let ended = async {
            self.connections.wait().await;
            self.drained.cancel();
            for lane in &*self.lanes {
                lane.pool.closed().await;
            }
        };
        if timeout(deadline, ended).await.is_err() {
            let open = self.connections.len();
            warn!(open, "connections cut at the drain deadline");
        }
    }
}

/// Tunnels of its own for each worker.
fn lanes(
    workers: &Workers,
    certificates: &Arc<Certificates>,
    open: &Arc<OpenTunnels>,
    drained: &CancellationToken,
    counters: &Arc<Counters>,
) -> Arc<[Lane]> {
    let lane = |worker: &Handle| Lane {
        worker: worker.clone(),
        pool: Arc::new(Pool::new(
            certificates.clone(),
            Arc::new(TransparentDial),
            Limits::default(),
            open.clone(),
            drained.clone(),
            observer(counters.clone()),
        )),
    };
    workers.handles().iter().map(lane).collect()
}

/// Counts tunnels to peers.
fn observer(counters: Arc<Counters>) -> Observer {
    Box::new(move |dialled| {
        let tunnels = &counters.outbound;
        match dialled {
            Dialled::Stands(took) => tunnels.shaken(true, took),
            Dialled::Failed(took) => tunnels.shaken(false, took),
            Dialled::Ended => {
                tunnels.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}

/// The agent's listening sockets.
pub struct Listeners {
    outbound: Vec<TcpListener>,
    inbound: Vec<TcpListener>,
}

impl Listeners {
    /// Opens those of both families, with a descriptor of each for its slot.
    ///
    /// # Errors
    /// The kernel's answer; a kernel without IPv6 has none of that family.
    pub fn open() -> anyhow::Result<(Self, Vec<Listener>)> {
        let mut slots = Vec::new();
        let mut both = |slot| -> anyhow::Result<Vec<TcpListener>> {
            let mut opened = Vec::new();
            for v6 in [false, true] {
                let listener = match socket::listener(v6) {
                    Ok(listener) => listener,
                    Err(error) if v6 && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
                        continue;
                    }
                    Err(error) => return Err(error).context("opening a transparent listener"),
                };
                let socket = std::os::fd::AsFd::as_fd(&listener).try_clone_to_owned()?;
                slots.push(Listener { slot, v6, socket });
                opened.push(listener);
            }
            Ok(opened)
        };
        let outbound = both(Slot::Outbound)?;
        let inbound = both(Slot::Inbound)?;
        Ok((Self { outbound, inbound }, slots))
    }
}
