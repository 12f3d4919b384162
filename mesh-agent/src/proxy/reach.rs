//! EDGE: opens the far side of a connection that a local pod has opened.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::allowed::{Admission, Allowed, Denied, Ends};
use super::baggage;
use super::socket::{self, Source};
use crate::hbone::{ConnectHead, Dial, Dialing, Forwarded, Key, OpenError, Pool, Stage, Stream};
use crate::policy::Direction;
use crate::route::{Refusal, Route};
use crate::telemetry::{Connection, Flag};
use crate::trace_context::Span;

/// How often a refused tunnel is dialled again, and how long to wait before: another node's agent may learn of an
/// enrolment a moment after this one.
const REDIALS: [Duration; 4] = [
    Duration::from_millis(25),
    Duration::from_millis(75),
    Duration::from_millis(200),
    Duration::from_millis(500),
];

/// How long a peer may take from the dial to its answer; it waits ten seconds for its application.
const OPEN_TIMEOUT: Duration = Duration::from_secs(25);

/// How much later than another node's agent this one may learn that a pod has left the mesh.
const NEWS: Duration = Duration::from_millis(500);

/// The far side of a connection, and its admission by policy.
pub(super) struct Reached {
    /// The far side.
    pub(super) far: Far,
    /// Held while the connection is open.
    pub(super) admission: Admission,
}

/// The far side of a connection.
pub(super) enum Far {
    /// A stream to an enrolled pod.
    Tunnel(Stream),
    /// An endpoint itself.
    Endpoint(TcpStream),
}

/// Why there is no far side.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It was decided so.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Policy does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// There is nothing to open a tunnel as.
    #[error("the source has no identity")]
    NoIdentity,
    /// The endpoint did not take the connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// The endpoint.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The tunnel or the stream in it was not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The peer was silent for [`OPEN_TIMEOUT`].
    #[error("the peer did not answer in time")]
    Silence,
}

impl Failure {
    /// In a word.
    pub(super) fn flag(&self) -> Flag {
        match self {
            Self::Denied(Denied(_, verdict)) => Flag::of_layer(verdict.layer),
            Self::NoIdentity => Flag::Identity,
            Self::Open(error) => open_flag(error),
            Self::Refused(_) | Self::Connect { .. } | Self::Silence => Flag::Connect,
        }
    }

    /// Whether the other node's agent says that policy does not allow it.
    pub(super) fn is_denied_there(&self) -> bool {
        matches!(self, Self::Open(OpenError::Refused { status }) if *status == StatusCode::UNAUTHORIZED)
    }

    /// If this is how a pod answers that has left the mesh since the decision: how long news of that may take yet.
    pub(super) fn news_within(&self) -> Option<Duration> {
        match self {
            // Also the answer for an application that does not listen, which is not to be told late.
            Self::Open(OpenError::Refused { status }) => {
                (*status == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::ZERO)
            }
            // Dialled again and again for long enough.
            Self::Open(OpenError::Dial { source, .. }) => {
                (source.kind() == io::ErrorKind::ConnectionRefused).then_some(Duration::ZERO)
            }
            Self::Open(OpenError::Closed { .. }) => Some(NEWS),
            _ => None,
        }
    }
}

fn open_flag(error: &OpenError) -> Flag {
    match error {
        OpenError::Certificate(_) => Flag::Identity,
        it if it.is_revoked() => Flag::Revoked,
        OpenError::Tls { .. } | OpenError::Closed { .. } => Flag::Tls,
        OpenError::Timeout { stage, .. } => stage_flag(*stage),
        OpenError::Http2(_) | OpenError::Request(_) => Flag::Http2,
        OpenError::Refused { status } if *status == StatusCode::UNAUTHORIZED => Flag::Deny,
        OpenError::Dial { .. } | OpenError::Refused { .. } | OpenError::Draining => Flag::Connect,
    }
}

/// For a part of setting up a tunnel that hangs.
pub(super) fn stage_flag(stage: Stage) -> Flag {
    match stage {
        Stage::Certificate => Flag::Identity,
        Stage::Connect => Flag::Connect,
        Stage::Tls => Flag::Tls,
        Stage::Http2 => Flag::Http2,
    }
}

/// Opens what a route leads to for the client at `client` if policy allows it, and notes what is learnt.
pub(super) async fn reach(
    pool: &Pool,
    allowed: &Arc<Allowed>,
    route: Route,
    client: SocketAddr,
    log: &mut Connection,
) -> Result<Reached, Failure> {
    let ends = ends(&route, client, log)?;
    let admission = allowed.admit(&ends)?;
    let far = open(pool, route, client, log).await?;
    Ok(Reached { far, admission })
}

/// What policy has to know. An endpoint of this node is judged at both ends: nobody else judges what the agent sends it.
fn ends(route: &Route, client: SocketAddr, log: &Connection) -> Result<Ends, Failure> {
    const FAR: &[Direction] = &[Direction::Egress];
    const HERE: &[Direction] = &[Direction::Egress, Direction::Ingress];
    let is_here = log
        .destination_workload
        .as_ref()
        .is_some_and(|it| it.is_local());
    let (destination, identity, directions) = match route {
        Route::Refuse { reason } => return Err(reason.clone().into()),
        Route::Tunnel { authority, .. } => (*authority, None, FAR),
        Route::Local { address } => (*address, log.source_identity.clone(), HERE),
        Route::Plain { address, .. } if is_here => (*address, None, HERE),
        Route::Plain { address, .. } => (*address, None, FAR),
    };
    Ok(Ends {
        source: client,
        asked: log.destination,
        identity,
        destination,
        directions,
        is_tunnelled: matches!(route, Route::Tunnel { .. }),
    })
}

async fn open(
    pool: &Pool,
    route: Route,
    client: SocketAddr,
    log: &mut Connection,
) -> Result<Far, Failure> {
    match route {
        Route::Refuse { reason } => Err(reason.into()),
        Route::Local { address } => direct(Some(client.ip()), address).await,
        Route::Plain { address, source } => direct(source, address).await,
        Route::Tunnel {
            authority,
            tunnel,
            identities,
            host,
        } => {
            let own = log.source_identity.clone().ok_or(Failure::NoIdentity)?;
            let key = Key::new(own, client.ip(), tunnel, identities);
            let head = ConnectHead {
                baggage: log.source_workload.as_deref().and_then(baggage),
                forwarded: Some(Forwarded { client, host }),
                trace: log.span.as_deref().map(Span::context),
                ..ConnectHead::new(authority)
            };
            let opened = timeout(OPEN_TIMEOUT, pool.open(&key, &head))
                .await
                .map_err(|_| Failure::Silence)??;
            // One identity was accepted; with several, the certificate alone tells which.
            if let [identity] = &*key.expected() {
                log.destination_identity = Some(identity.clone());
            }
            Ok(Far::Tunnel(opened.stream))
        }
    }
}

/// Connects from a pod's address, or from the node's.
async fn direct(source: Option<IpAddr>, address: SocketAddr) -> Result<Far, Failure> {
    // A pod takes nothing from outside that has its own address: what it opens to itself, by a service, is from the node.
    let source = source
        .filter(|it| *it != address.ip())
        .map_or(Source::Node, Source::Pod);
    let connected = socket::connect(source, address).await;
    connected
        .map(Far::Endpoint)
        .map_err(|source| Failure::Connect { address, source })
}

/// Dials tunnels from the pod's own address.
pub struct TransparentDial;

impl Dial for TransparentDial {
    fn dial(&self, source: IpAddr, destination: SocketAddr) -> Dialing<'_> {
        Box::pin(async move {
            for pause in REDIALS {
                match socket::connect(Source::Pod(source), destination).await {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        sleep(pause).await;
                    }
                    other => return other,
                }
            }
            socket::connect(Source::Pod(source), destination).await
        })
    }
}
