//! EDGE: accepting until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::budget::{Budget, Exhausted, Place};
use super::socket;

/// How long to wait when the kernel has no descriptor or memory for another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// More than a handshake takes within a cluster.
const QUIET: Duration = Duration::from_millis(500);

/// Hands every accepted connection to `serve` until shutdown, with its place in the budget; resets those that get none, which
/// `refused` is told of with both addresses.
///
/// One that was opened to the listener itself is reset: no pod's destination is meant, and the agent's connection on
/// behalf of a pod would come back here (`route_localnet` lets pods send to the loopback address).
///
/// A failing accept is told and tried again: a node out of descriptors must not stop serving for good.
///
/// After the shutdown, connections that are in the queue or half open are still accepted, until none has come for
/// [`QUIET`]: the world takes the listener out of its slot, so there will be no others.
pub(super) async fn accept(
    listener: std::net::TcpListener,
    shutdown: &CancellationToken,
    budget: &Arc<Budget>,
    refused: impl Fn(SocketAddr, SocketAddr, Exhausted),
    mut serve: impl FnMut(TcpStream, SocketAddr, Place),
) {
    let own = listener.local_addr().ok();
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "cannot wait for connections"),
    };
    loop {
        let accepted = if shutdown.is_cancelled() {
            let Ok(accepted) = timeout(QUIET, listener.accept()).await else {
                return;
            };
            accepted
        } else {
            tokio::select! {
                () = shutdown.cancelled() => continue,
                accepted = listener.accept() => accepted,
            }
        };
        match accepted {
            Ok((stream, _)) if stream.local_addr().ok() == own => socket::reset(stream),
            Ok((stream, peer)) => match budget.claim(peer.ip()) {
                Ok(place) => serve(stream, peer, place),
                Err(exhausted) => {
                    if let Ok(destination) = stream.local_addr() {
                        refused(peer, destination, exhausted);
                    }
                    socket::reset(stream);
                    if let Some(untold) = budget.may_warn(crate::clock::now()) {
                        warn!(src.addr = %peer, %exhausted, untold, "connections are refused");
                    }
                }
            },
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot accept a connection"
                );
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The limit on open files as it is now.
pub(super) fn descriptors() -> u64 {
    // What every system grants, if this one does not tell.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}
