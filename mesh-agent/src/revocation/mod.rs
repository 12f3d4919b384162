//! EDGE: ends open connections that policy no longer allows, inside the pods' network namespaces.
//!
//! The kernel's programs refuse the next packet of such a connection; one that is idle has none, so its socket is destroyed,
//! which resets both ends. Tunnels are the proxy's to end.

mod diag;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use mesh_common::maps::FlowKey;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::dataplane::Refused;
use crate::netns::{self, inside};
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
    /// The pod's namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The kernel did not answer, or refused.
    #[error("sock_diag")]
    Netlink(#[source] io::Error),
}

/// Refused connections by the network namespace that has their sockets.
pub type ByNetns = BTreeMap<PathBuf, Vec<Refused>>;

/// Asks for connections to be ended.
#[derive(Debug)]
pub struct Revocations {
    requests: mpsc::Sender<ByNetns>,
    /// For each request, the flows that turned out to have no connection.
    answers: mpsc::Receiver<Vec<FlowKey>>,
    unanswered: usize,
}

/// Ends connections.
#[derive(Debug)]
pub struct Revoker {
    requests: mpsc::Receiver<ByNetns>,
    answers: mpsc::Sender<Vec<FlowKey>>,
}

/// The two ends of what is asked.
pub fn revocations() -> (Revocations, Revoker) {
    let (asks, requests) = mpsc::channel(QUEUE);
    let (tells, answers) = mpsc::channel(QUEUE);
    let revocations = Revocations {
        requests: asks,
        answers,
        unanswered: 0,
    };
    let revoker = Revoker {
        requests,
        answers: tells,
    };
    (revocations, revoker)
}

impl Revocations {
    /// Ends connections, and returns flows of this request or earlier ones that turned out to have none.
    ///
    /// Waits 200 ms at most. What takes longer goes on meanwhile; what finds no place in the queue by then is left to its
    /// next packet.
    pub async fn end(&mut self, refused: ByNetns) -> Vec<FlowKey> {
        let mut gone = Vec::new();
        if refused.is_empty() {
            return gone;
        }
        let answered = timeout(PATIENCE, async {
            // First, so that the revoker never waits for us while we wait for it.
            while let Ok(answer) = self.answers.try_recv() {
                self.unanswered -= 1;
                gone.extend(answer);
            }
            if self.requests.send(refused).await.is_ok() {
                self.unanswered += 1;
            }
            while self.unanswered > 0
                && let Some(answer) = self.answers.recv().await
            {
                self.unanswered -= 1;
                gone.extend(answer);
            }
        });
        if answered.await.is_err() {
            warn!("ending connections that policy no longer allows takes long");
        }
        gone
    }
}

impl Revoker {
    /// Serves until `shutdown`; once the kernel has said that it cannot, everything is left to the next packet.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut supported = true;
        while let Some(Some(refused)) = shutdown.run_until_cancelled(self.requests.recv()).await {
            let mut gone = Vec::new();
            if supported {
                let ended = spawn_blocking(move || end_all(&refused)).await;
                let Ok(ended) = ended else {
                    return;
                };
                (gone, supported) = (ended.0, !matches!(ended.1, Err(Error::Unsupported)));
            }
            // Nobody is left to tell when the agent ends.
            let _ = self.answers.send(gone).await;
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
        let result = inside(netns, || end(connections, &mut gone));
        let result = result.map_err(Error::from).flatten();
        match result {
            Ok(0) => {}
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
