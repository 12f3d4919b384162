//! EDGE: connections that local pods open.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::allowed::{Admission, Allowed, Denied, Ends};
use super::budget::Budget;
use super::reach::{self, Far, Reached, reach};
use super::workers::{Handed, Loads};
use super::{copy, drain, socket};
use crate::clock;
use crate::hbone::{Broken, Memory, Pair, Pool, Progress};
use crate::model::{Snapshot, Workload};
use crate::policy;
use crate::random;
use crate::route::{self, Route};
use crate::telemetry::{self, Carriage, Connection, Direction, Failure, Flag, Telemetry};

/// How long a connection waits for its destination to become known: a pod's first packets may be faster than its object.
const HOLD: Duration = Duration::from_secs(1);

/// The server of captured outbound connections.
#[derive(Clone)]
pub struct Outbound {
    world: watch::Receiver<Snapshot>,
    lanes: Arc<[Lane]>,
    loads: Loads,
    allowed: Arc<Allowed>,
    budget: Arc<Budget>,
    telemetry: Arc<Telemetry>,
}

/// A worker and the tunnels that its connections share.
pub struct Lane {
    /// The worker's runtime.
    pub worker: Handle,
    /// Its tunnels.
    pub pool: Arc<Pool>,
}

impl Outbound {
    /// A server that decides on the latest `world` and spreads its connections over `lanes`, of which there is one.
    ///
    /// How much it carries follows from the limit on open files as it is now.
    pub fn new(
        world: watch::Receiver<Snapshot>,
        lanes: Arc<[Lane]>,
        allowed: Arc<Allowed>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            world,
            loads: Loads::new(lanes.len()),
            lanes,
            allowed,
            telemetry,
            budget: Budget::for_descriptors(drain::descriptors()),
        }
    }

    /// Serves a listener until shutdown, on the worker `here`; connections that are open then are the tracker's.
    pub async fn run(
        self,
        here: usize,
        listener: TcpListener,
        connections: TaskTracker,
        shutdown: CancellationToken,
    ) {
        drain::accept(
            listener,
            &shutdown,
            &self.budget,
            |source, destination, exhausted| {
                let direction = Direction::Outbound;
                super::exhausted(&self.telemetry, direction, source, destination, exhausted);
            },
            |stream, source, place| {
                let outbound = self.clone();
                let load = self.loads.claim(here);
                let worker = &self.lanes[load.worker].worker;
                let handed = load.hand(here, stream);
                let memory = place.memory.clone();
                // Boxed, as an open connection must not go on paying for what opening it took.
                let opening = Box::pin(outbound.open(handed, source, load.worker, memory));
                let serving = async move {
                    if let Some(open) = opening.await {
                        open.carry().await;
                    }
                    drop((load, place));
                };
                connections.spawn_on(serving, worker);
            },
        )
        .await;
    }

    /// Opens the far side of a connection; none if nothing came of it.
    async fn open(
        mut self,
        handed: io::Result<Handed>,
        source: SocketAddr,
        worker: usize,
        memory: Memory,
    ) -> Option<Box<Open>> {
        let taken = handed.and_then(Handed::take);
        let carried = |error| warn!(src.addr = %source, %error, "cannot carry a connection");
        let stream = taken.map_err(carried).ok()?;
        // The listener is transparent: the local address is where the pod wanted to go.
        let destination = stream.local_addr().ok()?;
        if route::is_own_address(&self.world.borrow(), destination.ip()) {
            debug!(src.addr = %source, dst.addr = %destination, "not captured: reset");
            socket::reset(stream);
            return None;
        }
        let mut log = Connection::new(Direction::Outbound, source, destination, clock::now());
        log.span = self.telemetry.root();
        let lanes = self.lanes.clone();
        let pool = &*lanes[worker].pool;
        match self.reach(pool, source, destination, &mut log).await {
            Ok(Reached { far, admission }) => {
                let progress = Arc::new(Progress::counted(memory));
                let between = match far {
                    Far::Tunnel(tunnel) => Between::Tunnel(Pair::new(stream, tunnel)),
                    Far::Endpoint(endpoint) => Between::Endpoint(stream, endpoint),
                };
                Some(Box::new(Open {
                    told: self.telemetry.open(Arc::new(log), progress.clone()),
                    progress,
                    admission,
                    between,
                }))
            }
            Err(failure) => {
                socket::reset(stream);
                let failure = self.failure(&log, failure);
                self.telemetry.refuse(log, failure);
                None
            }
        }
    }

    /// A failure with the verdict behind it: this node's, or the one that the other node has come to as this one sees it.
    fn failure(&self, log: &Connection, failure: reach::Failure) -> Failure {
        let verdict = match &failure {
            reach::Failure::Denied(denied) => Some(denied.clone()),
            it if it.is_denied_there() => self.denied_there(log),
            _ => None,
        };
        let verdict = verdict.map(|Denied(direction, verdict)| (direction, verdict));
        let flag = match &verdict {
            Some((_, verdict)) => Flag::of_layer(verdict.layer),
            None => failure.flag(),
        };
        Failure {
            verdict,
            ..Failure::new(flag, failure)
        }
    }

    fn denied_there(&self, log: &Connection) -> Option<Denied> {
        let ends = Ends {
            source: log.source,
            asked: log.destination,
            identity: log.source_identity.clone(),
            destination: log.hbone?,
            directions: &[policy::Direction::Ingress],
            is_tunnelled: true,
        };
        ends.denied(&self.world.borrow())
    }

    /// Opens what is decided; when that fails as a pod does that has left the mesh, and the world is another by now, what
    /// is decided then.
    async fn reach(
        &mut self,
        pool: &Pool,
        source: SocketAddr,
        destination: SocketAddr,
        log: &mut Connection,
    ) -> Result<Reached, reach::Failure> {
        let wish = route::Outbound {
            source: source.ip(),
            destination,
        };
        let (snapshot, route) = decide(&mut self.world, &wish).await;
        decided(log, &snapshot, &route);
        let failure = match reach(pool, &self.allowed, route.clone(), source, log).await {
            Err(failure) => failure,
            reached => return reached,
        };
        let Some(within) = failure.news_within() else {
            return Err(failure);
        };
        let is_news = |newer: &Snapshot| newer.revision() != snapshot.revision();
        let _ = timeout(within, self.world.wait_for(is_news)).await;
        let snapshot = self.world.borrow().clone();
        let newer = route::decide(&snapshot, &wish, random::below);
        if newer == route {
            return Err(failure);
        }
        decided(log, &snapshot, &newer);
        reach(pool, &self.allowed, newer, source, log).await
    }
}

/// Notes whom a snapshot knows at the source, and where the connection goes.
fn decided(log: &mut Connection, snapshot: &Snapshot, route: &Route) {
    let identity = |it: &Arc<Workload>| it.identity.clone();
    log.source_workload = snapshot.workload_by_addr(log.source.ip()).cloned();
    log.source_identity = log.source_workload.as_ref().and_then(identity);
    log.service = snapshot.service_by_addr(log.destination.ip()).cloned();
    let (address, carriage) = match route {
        Route::Tunnel { authority, .. } => (Some(*authority), Carriage::Tunnel),
        Route::Local { address } => (Some(*address), Carriage::SameNode),
        Route::Plain { address, .. } => (Some(*address), Carriage::Plain),
        Route::Refuse { .. } => (None, Carriage::Undecided),
    };
    log.carriage = carriage;
    log.hbone = address.filter(|_| carriage == Carriage::Tunnel);
    log.destination_workload = address.and_then(|it| snapshot.workload_by_addr(it.ip()).cloned());
    // Who is behind a tunnel is proved when it stands.
    log.destination_identity = log
        .destination_workload
        .as_ref()
        .filter(|_| carriage == Carriage::SameNode)
        .and_then(identity);
}

/// What broke a connection that stood.
pub(super) fn broken(broken: Broken) -> Failure {
    let flag = match broken {
        Broken::Revoked => Flag::Deny,
        Broken::Tcp(_) | Broken::Reset(_) | Broken::Tunnel(_) | Broken::Memory(_) => Flag::Connect,
    };
    Failure::new(flag, broken)
}

/// A connection whose far side is open.
struct Open {
    told: telemetry::Open,
    progress: Arc<Progress>,
    admission: Admission,
    between: Between,
}

/// What is copied between.
enum Between {
    Tunnel(Pair),
    Endpoint(TcpStream, TcpStream),
}

impl Open {
    /// Copies until it has ended, and tells of it.
    async fn carry(mut self: Box<Self>) {
        let revoked = &self.admission.revoked;
        let outcome = match self.between {
            Between::Tunnel(ref mut pair) => pair.copy(&self.progress, revoked).await.outcome,
            Between::Endpoint(stream, endpoint) => {
                let splice = copy::splice(stream, endpoint, &self.progress, revoked);
                Box::pin(splice).await
            }
        };
        self.told.close(outcome.err().map(broken));
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

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

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
