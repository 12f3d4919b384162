//! EDGE: connections that local pods open: accept, decide, act, record.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access_log::AccessLog;
use super::{copy, drain, socket};
use crate::hbone::{Baggage, ConnectHead, Forwarded, Key, Pool, WorkloadKind, relay};
use crate::model::{Snapshot, Workload};
use crate::route::{self, Route};

/// The server of captured outbound connections.
#[derive(Clone)]
pub struct Outbound {
    world: watch::Receiver<Snapshot>,
    pool: Arc<Pool>,
}

impl Outbound {
    /// A server that decides on the latest `world` and opens streams in `pool`.
    pub fn new(world: watch::Receiver<Snapshot>, pool: Arc<Pool>) -> Self {
        Self { world, pool }
    }

    /// Serves a listener until shutdown; connections that are open then are the tracker's.
    pub async fn run(self, listener: TcpListener, connections: TaskTracker, shutdown: CancellationToken) {
        drain::accept(&listener, &shutdown, |stream, source| {
            let outbound = self.clone();
            connections.spawn(async move { outbound.serve(stream, source).await });
        })
        .await;
    }

    async fn serve(self, stream: TcpStream, source: SocketAddr) {
        // The listener is transparent: the local address is where the pod wanted to go.
        let Ok(destination) = stream.local_addr() else {
            return;
        };
        let snapshot = self.world.borrow().clone();
        let mut log = AccessLog::outbound(source, destination);
        log.source_workload = snapshot.workload_by_addr(source.ip()).cloned();
        log.source_identity = log.source_workload.as_ref().and_then(|it| it.identity.clone());
        let wish = route::Outbound { source: source.ip(), destination };
        let route = route::decide(&snapshot, &wish, pick);
        match self.carry(&snapshot, route, stream, source, &mut log).await {
            Ok((sent, received)) => log.complete(sent, received, None),
            Err(error) => log.complete(0, 0, Some(&error)),
        }
    }

    /// Returns the bytes sent and received, or why the pod was given a reset.
    async fn carry(
        &self,
        snapshot: &Snapshot,
        route: Route,
        stream: TcpStream,
        source: SocketAddr,
        log: &mut AccessLog,
    ) -> Result<(u64, u64), String> {
        let refuse = |stream, reason: String| {
            socket::reset(stream);
            Err(reason)
        };
        if let Err(error) = socket::prepare(&stream) {
            return refuse(stream, error.to_string());
        }
        match route {
            Route::Refuse { reason } => refuse(stream, reason.to_string()),
            Route::Local { address } | Route::Plain { address } => {
                log.destination_workload = snapshot.workload_by_addr(address.ip()).cloned();
                match socket::connect(source.ip(), address).await {
                    Ok(upstream) => copy::splice(stream, upstream).await.map_err(|it| it.to_string()),
                    Err(error) => refuse(stream, format!("connecting to {address}: {error}")),
                }
            }
            Route::Tunnel { authority, tunnel, identities, host } => {
                let Some(workload) = log.source_workload.clone() else {
                    return refuse(stream, "the source is not known".to_owned());
                };
                let Some(identity) = workload.identity.clone() else {
                    return refuse(stream, "the source has no identity".to_owned());
                };
                log.destination_workload = snapshot.workload_by_addr(authority.ip()).cloned();
                log.hbone = Some(authority);
                log.service.clone_from(&host);
                let key = Key::new(identity, source.ip(), tunnel, identities);
                let head = head(&workload, source, authority, host);
                match self.pool.open(&key, head).await {
                    Ok(tunnelled) => {
                        log.destination_identity = tunnelled.peer().cloned();
                        relay(stream, tunnelled).await
                    }
                    Err(error) => refuse(stream, error.to_string()),
                }
            }
        }
    }
}
