//! EDGE: connections that local pods open.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access_log::AccessLog;
use super::socket::Source;
use super::{baggage, copy, drain, random, socket};
use crate::causes::causes;
use crate::hbone::{self, ConnectHead, Dial, Dialing, Forwarded, Key, Pool, Progress};
use crate::model::{Identity, Snapshot, Workload};
use crate::route::{self, Route};

/// How often a refused tunnel is dialled again, and how long to wait before: another node's agent may learn of an
/// enrolment a moment after this one.
const REDIALS: [Duration; 4] = [
    Duration::from_millis(25),
    Duration::from_millis(75),
    Duration::from_millis(200),
    Duration::from_millis(500),
];

/// How long a connection waits for its destination to become known: a pod's first packets may be faster than its object.
const HOLD: Duration = Duration::from_secs(1);

/// How long a peer may take from the dial to its answer; it waits ten seconds for its application.
const OPEN_TIMEOUT: Duration = Duration::from_secs(25);

/// The server of captured outbound connections.
#[derive(Clone)]
pub struct Outbound {
    world: watch::Receiver<Snapshot>,
    pool: Arc<Pool>,
}

/// Bytes sent and received by the pod, or why it was given a reset.
type Carried = Result<(u64, u64), String>;

impl Outbound {
    /// A server that decides on the latest `world` and opens streams in `pool`.
    pub fn new(world: watch::Receiver<Snapshot>, pool: Arc<Pool>) -> Self {
        Self { world, pool }
    }

    /// Serves a listener until shutdown; connections that are open then are the tracker's.
    pub async fn run(
        self,
        listener: TcpListener,
        connections: TaskTracker,
        shutdown: CancellationToken,
    ) {
        drain::accept(&listener, &shutdown, |stream, source| {
            let outbound = self.clone();
            connections.spawn(async move { outbound.serve(stream, source).await });
        })
        .await;
    }

    async fn serve(mut self, stream: TcpStream, source: SocketAddr) {
        // The listener is transparent: the local address is where the pod wanted to go.
        let Ok(destination) = stream.local_addr() else {
            return;
        };
        let wish = route::Outbound {
            source: source.ip(),
            destination,
        };
        let mut log = AccessLog::outbound(source, destination);
        let (snapshot, route) = decide(&mut self.world, &wish).await;
        log.source_workload = snapshot.workload_by_addr(source.ip()).cloned();
        log.source_identity = log
            .source_workload
            .as_ref()
            .and_then(|it| it.identity.clone());
        let carried = match route {
            Route::Refuse { reason } => refuse(stream, reason.to_string()),
            Route::Local { address } => {
                log.destination_workload = snapshot.workload_by_addr(address.ip()).cloned();
                direct(stream, Source::Pod(source.ip()), address).await
            }
            Route::Plain {
                address,
                source: own,
            } => {
                log.destination_workload = snapshot.workload_by_addr(address.ip()).cloned();
                direct(stream, own.map_or(Source::Node, Source::Pod), address).await
            }
            Route::Tunnel {
                authority,
                tunnel,
                identities,
                host,
            } => {
                log.destination_workload = snapshot.workload_by_addr(authority.ip()).cloned();
                log.hbone = Some(authority);
                log.service.clone_from(&host);
                match key(&log, source.ip(), tunnel, identities) {
                    Some(key) => {
                        let head = head(log.source_workload.as_deref(), source, authority, host);
                        self.tunnelled(stream, &key, &head, &mut log).await
                    }
                    None => refuse(stream, "the source has no identity".to_owned()),
                }
            }
        };
        match carried {
            Ok((sent, received)) => log.complete(sent, received, None),
            Err(error) => log.complete(0, 0, Some(&error)),
        }
    }

    async fn tunnelled(
        &self,
        stream: TcpStream,
        key: &Key,
        head: &ConnectHead,
        log: &mut AccessLog,
    ) -> Carried {
        let opened = match timeout(OPEN_TIMEOUT, self.pool.open(key, head)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return refuse(stream, causes(&error)),
            Err(_) => return refuse(stream, "the peer did not answer in time".to_owned()),
        };
        // One identity was accepted; with several, the certificate alone tells which.
        if let [identity] = &*key.expected() {
            log.destination_identity = Some(identity.clone());
        }
        let progress = Progress::default();
        let never = CancellationToken::new();
        let transfer = hbone::copy(stream, opened.stream, &progress, &never).await;
        transfer.outcome.map_err(|error| causes(&error))?;
        Ok((transfer.sent, transfer.received))
    }
}

/// Decides on the latest world; when nobody is known at the destination, once more when somebody is, or at the latest
/// after [`HOLD`].
async fn decide(
    world: &mut watch::Receiver<Snapshot>,
    wish: &route::Outbound,
) -> (Snapshot, Route) {
    let unknown = Route::Refuse {
        reason: route::Refusal::UnknownDestination,
    };
    let snapshot = world.borrow().clone();
    let route = route::decide(&snapshot, wish, random::below);
    if route != unknown {
        return (snapshot, route);
    }
    let to = wish.destination.ip();
    let is_known = |snapshot: &Snapshot| {
        snapshot.workload_by_addr(to).is_some() || snapshot.service_by_addr(to).is_some()
    };
    // In time or not: what is known now decides.
    let _ = timeout(HOLD, world.wait_for(is_known)).await;
    let snapshot = world.borrow().clone();
    let route = route::decide(&snapshot, wish, random::below);
    (snapshot, route)
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

/// Connects the pod to an endpoint without a tunnel.
async fn direct(stream: TcpStream, source: Source, address: SocketAddr) -> Carried {
    match socket::connect(source, address).await {
        Ok(upstream) => copy::splice(stream, upstream)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => refuse(stream, format!("connecting to {address}: {error}")),
    }
}

fn refuse(stream: TcpStream, reason: String) -> Carried {
    socket::reset(stream);
    Err(reason)
}

fn key(
    log: &AccessLog,
    source: IpAddr,
    tunnel: SocketAddr,
    identities: Vec<Identity>,
) -> Option<Key> {
    Some(Key::new(
        log.source_identity.clone()?,
        source,
        tunnel,
        identities,
    ))
}

/// What the CONNECT tells of the connection; telemetry only.
fn head(
    source: Option<&Workload>,
    client: SocketAddr,
    authority: SocketAddr,
    host: Option<String>,
) -> ConnectHead {
    ConnectHead {
        baggage: source.and_then(baggage),
        forwarded: Some(Forwarded { client, host }),
        ..ConnectHead::new(authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{attached, ip, namespace, pod, told, world};

    /// The enrolled pod a is here; it connects to 10.1.0.1.
    fn small_world() -> (Snapshot, route::Outbound) {
        let snapshot = world([
            namespace("shop", &[("istio.io/dataplane-mode", "ambient")]),
            told(pod("shop", "a", &[])),
            attached("ca", Some(("shop", "a")), &["10.0.0.1"]),
        ]);
        let wish = route::Outbound {
            source: ip("10.0.0.1"),
            destination: "10.1.0.1:80".parse().unwrap(),
        };
        (snapshot, wish)
    }

    #[tokio::test]
    async fn a_destination_may_become_known_while_its_connection_is_held() {
        let (mut snapshot, wish) = small_world();
        let (publish, mut published) = watch::channel(snapshot.clone());
        let later = async {
            for (name, address) in [("b", "10.1.0.2"), ("c", "10.1.0.1")] {
                sleep(HOLD / 10).await;
                snapshot.apply(told(pod("shop", name, &[address])));
                publish.send_replace(snapshot.clone());
            }
        };
        let ((_, route), ()) = tokio::join!(decide(&mut published, &wish), later);
        assert!(matches!(route, Route::Tunnel { .. }), "{route:?}");
    }

    #[tokio::test]
    async fn a_destination_that_stays_unknown_is_refused() {
        let (snapshot, wish) = small_world();
        let (_publish, mut published) = watch::channel(snapshot);
        let began = crate::clock::now();
        let (_, route) = decide(&mut published, &wish).await;
        let reason = route::Refusal::UnknownDestination;
        assert_eq!(route, Route::Refuse { reason });
        assert!(began.elapsed() >= HOLD);
    }
}
