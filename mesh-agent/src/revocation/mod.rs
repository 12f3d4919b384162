//! EDGE: ends open connections that policy no longer allows, inside the pods' network namespaces.
//!
//! The kernel's programs refuse the next packet of such a connection; one that is idle has none, so its socket is destroyed,
//! which resets both ends. Tunnels are the proxy's to end.
//!
//! Invariant: no thread that serves anything else ever enters a pod's namespace.

mod diag;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mesh_common::maps::FlowKey;
use nix::sched::{CloneFlags, setns};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::dataplane::Refused;
use diag::SockDiag;

/// How long connections may take to end before the world goes on; what is left then ends at its next packet, or later.
const PATIENCE: Duration = Duration::from_millis(200);
/// Requests that may wait.
const QUEUE: usize = 4;

/// Why a connection could not be ended; it ends with its next packet.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The kernel cannot do it.
    #[error(
        "the kernel has no SOCK_DESTROY (CONFIG_INET_DIAG, CONFIG_INET_DIAG_DESTROY): idle connections that policy no \
         longer allows end at their next packet"
    )]
    Unsupported,
    /// The pod's namespace cannot be entered; in a container, the agent needs the directory mounted.
    #[error("cannot enter network namespace {}", path.display())]
    Netns {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer, or refused.
    #[error("sock_diag")]
    Netlink(#[source] io::Error),
}

/// Refused connections by the network namespace that has their sockets.
pub type ByNetns = BTreeMap<PathBuf, Vec<Refused>>;

struct Request {
    refused: ByNetns,
    /// Gets the flows of which there was no connection.
    reply: oneshot::Sender<Vec<FlowKey>>,
}

/// Asks for connections to be ended.
#[derive(Clone, Debug)]
pub struct Revocations(mpsc::Sender<Request>);

/// Ends connections.
#[derive(Debug)]
pub struct Revoker(mpsc::Receiver<Request>);

/// The two ends of what is asked.
pub fn revocations() -> (Revocations, Revoker) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Revocations(sender), Revoker(receiver))
}

impl Revocations {
    /// Ends connections, and returns those flows that turn out to have none. Waits 200 ms at most: the rest follows.
    pub async fn end(&self, refused: ByNetns) -> Vec<FlowKey> {
        if refused.is_empty() {
            return Vec::new();
        }
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let sent = self.0.send(Request { refused, reply }).await;
            // The revoker is gone only when the agent ends.
            sent.ok()?;
            answer.await.ok()
        };
        timeout(PATIENCE, asked)
            .await
            .ok()
            .flatten()
            .unwrap_or_default()
    }
}

impl Revoker {
    /// Serves until `shutdown`; once the kernel has said that it cannot, everything is left to the next packet.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut supported = true;
        while let Some(Some(request)) = shutdown.run_until_cancelled(self.0.recv()).await {
            if supported {
                let Request { refused, reply } = request;
                let ended = spawn_blocking(move || end_all(&refused)).await;
                let Ok((gone, result)) = ended else {
                    return;
                };
                supported = !matches!(result, Err(Error::Unsupported));
                // Whoever asked may have gone on.
                let _ = reply.send(gone);
            }
        }
    }
}

/// Ends connections, namespace by namespace, and returns the flows that have none.
///
/// # Errors
/// [`Error::Unsupported`]; what goes wrong in one namespace is told and does not keep the others.
fn end_all(refused: &ByNetns) -> (Vec<FlowKey>, Result<(), Error>) {
    let mut gone = Vec::new();
    for (netns, connections) in refused {
        let result = inside(netns, || end(connections, &mut gone)).flatten();
        match result {
            Ok(ended) => {
                let netns = netns.display();
                info!(%netns, ended, "connections ended that policy no longer allows");
            }
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    netns = %netns.display(),
                    "connections that policy no longer allows end at their next packet"
                );
                if matches!(error, Error::Unsupported) {
                    return (gone, Err(error));
                }
            }
        }
    }
    (gone, Ok(()))
}

/// Ends connections of the calling thread's network namespace; counts them.
fn end(connections: &[Refused], gone: &mut Vec<FlowKey>) -> Result<usize, Error> {
    let diag = SockDiag::open()?;
    let mut ended = 0;
    for connection in connections {
        if diag.end(connection)? {
            ended += 1;
        } else {
            gone.push(connection.flow);
        }
    }
    Ok(ended)
}

/// Runs `work` inside a network namespace, on a thread of its own that ends there.
fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let enter_and_work = || {
        let file = File::open(netns)?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    let entered = thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, enter_and_work)?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    entered.map_err(|source| Error::Netns {
        path: netns.to_owned(),
        source,
    })
}
