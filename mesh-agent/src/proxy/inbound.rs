//! EDGE: tunnels that lead to local pods.

use std::net::TcpListener;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::access_log::AccessLog;
use super::allowed::{Admission, Allowed, Ends};
use super::budget::{Budget, Place};
use super::socket::Source;
use super::workers::{Handed, Loads};
use super::{baggage, drain, socket};
use crate::causes::causes;
use crate::clock;
use crate::hbone::{
    self, Accept, ConnectRequest, Counted, Limits, Open, OpenTunnels, Opener, Progress, Refusal,
    Transfer, Upstream,
};
use crate::model::{Authority, Identity, Snapshot};
use crate::pki::Certificates;
use crate::policy::Direction;
use crate::route::{self, Rejection};

/// The server of inbound tunnels.
#[derive(Clone)]
pub struct Inbound {
    world: watch::Receiver<Snapshot>,
    certificates: Arc<Certificates>,
    workers: Arc<[Handle]>,
    loads: Loads,
    allowed: Arc<Allowed>,
    open: Arc<OpenTunnels>,
    /// For tunnels and their streams.
    budget: Arc<Budget>,
    /// For connections whose peer has not proved yet who it is.
    strangers: Arc<Budget>,
}

impl Inbound {
    /// A server that decides on the latest `world`, speaks with the pods' own `certificates`, and spreads its tunnels over
    /// `workers`, of which there is one.
    ///
    /// How much it carries follows from the limit on open files as it is now.
    pub fn new(
        world: watch::Receiver<Snapshot>,
        certificates: Arc<Certificates>,
        workers: &[Handle],
        allowed: Arc<Allowed>,
        open: Arc<OpenTunnels>,
    ) -> Self {
        Self {
            world,
            certificates,
            workers: workers.into(),
            loads: Loads::new(workers.len()),
            allowed,
            open,
            budget: Budget::for_descriptors(drain::descriptors()),
            strangers: Budget::for_strangers(drain::descriptors()),
        }
    }

    /// Serves a listener until shutdown, on the worker `here`; tunnels that are open then are the tracker's.
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
            &self.strangers,
            |stream, peer, place| {
                let inbound = self.clone();
                let shutdown = shutdown.clone();
                let load = self.loads.claim(here);
                let worker = &self.workers[load.worker];
                let handed = load.hand(here, stream);
                let serving = async move {
                    let strangers = inbound.strangers.clone();
                    let served = match handed.and_then(Handed::take) {
                        Ok(stream) => inbound.serve(stream, place, shutdown).await,
                        Err(error) => Err(error.to_string()),
                    };
                    if let Err(error) = served
                        && let Some(untold) = strangers.may_warn(clock::now())
                    {
                        warn!(src.addr = %peer, error, untold, "tunnel failed");
                    }
                    drop(load);
                };
                connections.spawn_on(serving, worker);
            },
        )
        .await;
    }

    async fn serve(
        self,
        stream: TcpStream,
        stranger: Place,
        shutdown: CancellationToken,
    ) -> Result<(), String> {
        let limits = Limits::default();
        let deadline = clock::now() + limits.handshake;
        // The listener is transparent: the local address is the pod's, whose certificate is to be shown.
        let pod = stream.local_addr().map_err(|error| error.to_string())?.ip();
        if route::is_own_address(&self.world.borrow(), pod) {
            debug!(dst.addr = %pod, "not captured: reset");
            socket::reset(stream);
            return Ok(());
        }
        let workload = self.world.borrow().workload_by_addr(pod).cloned();
        let identity = workload
            .filter(|it| it.enrolled)
            .and_then(|it| it.identity.clone());
        let Some(identity) = identity else {
            socket::reset(stream);
            return Err(format!("{pod} is not enrolled"));
        };
        let certificate = self.certificates.certificate(&identity);
        let certificate = timeout_at(deadline.into(), certificate)
            .await
            .map_err(|_| format!("no certificate for {identity} in time"))?
            .map_err(|error| causes(&*error))?;
        socket::prepare(&stream).map_err(|error| error.to_string())?;
        let (peer, tls) = hbone::authenticate(stream, &certificate, deadline)
            .await
            .map_err(|error| causes(&error))?;
        let place = self.budget.claim(peer.remote.ip());
        let place = place.map_err(|exhausted| exhausted.to_string())?;
        drop(stranger);
        let listed = self.open.enter(Open {
            opener: Opener::They,
            ours: peer.local,
            identity: identity.clone(),
            theirs: peer.remote,
            peer: peer.identity.clone(),
        });
        let handler = Arc::new(Streams {
            world: self.world,
            owner: identity,
            allowed: self.allowed,
            budget: self.budget,
            open: listed.streams.clone(),
        });
        let served = hbone::serve(tls, peer, handler, &limits, deadline, shutdown).await;
        drop((listed, place));
        served.map_err(|error| causes(&error))
    }
}

/// Decides on the streams of a tunnel.
struct Streams {
    world: watch::Receiver<Snapshot>,
    /// Whose certificate the peer was shown.
    owner: Identity,
    allowed: Arc<Allowed>,
    budget: Arc<Budget>,
    open: hbone::Streams,
}

/// A stream that is open.
struct Carried {
    log: AccessLog,
    _admission: Admission,
    _place: Place,
    _open: Counted,
}

impl Accept for Streams {
    type Connection = Carried;

    async fn connect(&self, request: &ConnectRequest) -> Result<Upstream<Carried>, Refusal> {
        let snapshot = self.world.borrow().clone();
        let mut log = AccessLog::inbound(request.remote, request.local);
        log.source_identity = Some(request.peer.clone());
        log.source_workload = snapshot.workload_by_addr(request.remote.ip()).cloned();
        log.destination_workload = snapshot.workload_by_addr(request.local.ip()).cloned();
        log.destination_identity = log
            .destination_workload
            .as_ref()
            .and_then(|it| it.identity.clone());
        if let Authority::Host { name, .. } = &request.head.authority {
            log.service = Some(name.clone());
        }
        let reached = match self.budget.claim(request.remote.ip()) {
            Ok(place) => reach(&snapshot, &self.allowed, &self.owner, request)
                .await
                .map(|(tcp, admission)| (tcp, admission, place)),
            Err(exhausted) => Err((Refusal::Unreachable, exhausted.to_string())),
        };
        match reached {
            Ok((tcp, admission, place)) => Ok(Upstream {
                tcp,
                baggage: log.destination_workload.as_deref().and_then(baggage),
                progress: Arc::new(Progress::counted(place.memory.clone())),
                revoked: admission.revoked.clone(),
                connection: Carried {
                    log,
                    _admission: admission,
                    _place: place,
                    _open: self.open.count(),
                },
            }),
            Err((refusal, reason)) => {
                log.complete(0, 0, Some(&reason));
                Err(refusal)
            }
        }
    }

    fn finished(&self, _: ConnectRequest, carried: Carried, transfer: Transfer) {
        let error = transfer.outcome.err().map(|error| causes(&error));
        // The tunnel's bytes are the opener's: what was received from it, it has sent.
        let (sent, received) = (transfer.received, transfer.sent);
        carried.log.complete(sent, received, error.as_deref());
    }
}

/// Connects to the application from the client's own address; otherwise says what the peer and what our log is told.
async fn reach(
    snapshot: &Snapshot,
    allowed: &Arc<Allowed>,
    owner: &Identity,
    request: &ConnectRequest,
) -> Result<(TcpStream, Admission), (Refusal, String)> {
    let address = route::inbound(snapshot, request.local.ip(), owner, &request.head.authority)
        .map_err(|rejection| (refusal(&rejection), rejection.to_string()))?;
    let ends = Ends {
        source: request.remote,
        asked: request.local,
        identity: Some(request.peer.clone()),
        destination: address,
        directions: &[Direction::Ingress],
        is_tunnelled: true,
    };
    let admission = allowed
        .admit(&ends)
        .map_err(|denied| (Refusal::Denied, denied.to_string()))?;
    let connected = socket::connect(Source::Client(request.remote.ip()), address).await;
    connected.map(|tcp| (tcp, admission)).map_err(|error| {
        (
            Refusal::Unreachable,
            format!("connecting to {address}: {error}"),
        )
    })
}

fn refusal(rejection: &Rejection) -> Refusal {
    match rejection {
        Rejection::AddressMismatch { .. } => Refusal::AddressMismatch,
        Rejection::UnknownWorkload(_)
        | Rejection::ReservedPort(_)
        | Rejection::UnknownService { .. } => Refusal::Unreachable,
    }
}
