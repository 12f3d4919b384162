//! EDGE: accepting until told to stop.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::socket;

/// How long to wait when the kernel has no descriptor or memory for another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Hands every accepted connection to `serve` until shutdown.
///
/// One that was opened to the listener itself is reset: no pod's destination is meant, and the agent's connection on
/// behalf of a pod would come back here (`route_localnet` lets pods send to the loopback address).
///
/// A failing accept is told and tried again: a node out of descriptors must not stop serving for good.
pub(super) async fn accept(
    listener: &TcpListener,
    shutdown: &CancellationToken,
    mut serve: impl FnMut(TcpStream, SocketAddr),
) {
    let own = listener.local_addr().ok();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if stream.local_addr().ok() == own => socket::reset(stream),
            Ok((stream, peer)) => serve(stream, peer),
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
