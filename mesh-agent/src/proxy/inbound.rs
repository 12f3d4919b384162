//! EDGE: tunnels that lead to local pods.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::allowed::{Admission, Allowed, Denied, Ends};
use super::budget::{Budget, Exhausted, Place};
use super::outbound::broken;
use super::reach::stage_flag;
use super::socket::Source;
use super::workers::{Handed, Loads};
use super::{baggage, drain, socket};
use crate::causes::causes;
use crate::clock;
use crate::hbone::{
    self, Accept, ConnectRequest, Counted, Limits, OpenTunnels, Opener, Peer, Progress, Refusal,
    ServeError, Transfer, Upstream,
};
use crate::model::{Authority, Identity, Snapshot};
use crate::pki::{self, Certificates};
use crate::policy::Direction;
use crate::route::{self, Rejection};
use crate::telemetry::{
    Carriage, Connection, Direction as Seen, Failure, Flag, Open, Telemetry, service_of,
};

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
    telemetry: Arc<Telemetry>,
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
        telemetry: Arc<Telemetry>,
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
            telemetry,
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
            |peer, pod, exhausted| {
                super::exhausted(&self.telemetry, Seen::Inbound, peer, pod, exhausted);
            },
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
                        Err(error) => Err(Failed::Socket(error)),
                    };
                    if let Err(error) = served
                        && let Some(untold) = strangers.may_warn(clock::now())
                    {
                        let error = causes(&error);
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
    ) -> Result<(), Failed> {
        let limits = Limits::default();
        let began = clock::now();
        let deadline = began + limits.handshake;
        // The listener is transparent: the local address is the pod's, whose certificate is to be shown.
        let pod = stream.local_addr().map_err(Failed::Socket)?;
        if route::is_own_address(&self.world.borrow(), pod.ip()) {
            debug!(dst.addr = %pod.ip(), "not captured: reset");
            socket::reset(stream);
            return Ok(());
        }
        let remote = stream.peer_addr().map_err(Failed::Socket)?;
        let established = self.establish(stream, pod.ip(), deadline).await;
        let tunnels = &self.telemetry.counters.inbound;
        tunnels.shaken(established.is_ok(), began.elapsed());
        let (owner, peer, tls, place) = established.inspect_err(|failed| {
            let connection = Connection::new(Seen::Inbound, remote, pod, began);
            let failure = Failure::new(failed.flag(), causes(failed));
            self.telemetry.refuse_early(connection, failure);
        })?;
        drop(stranger);
        let listed = self.open.enter(hbone::Open {
            opener: Opener::They,
            ours: peer.local,
            identity: owner.clone(),
            theirs: peer.remote,
            peer: peer.identity.clone(),
        });
        let handler = Arc::new(Streams {
            world: self.world,
            owner,
            open: listed.streams.clone(),
            allowed: self.allowed,
            budget: self.budget,
            telemetry: self.telemetry.clone(),
        });
        let served = hbone::serve(tls, peer, handler, &limits, deadline, shutdown).await;
        self.telemetry
            .counters
            .inbound
            .ended
            .fetch_add(1, Ordering::Relaxed);
        drop((listed, place));
        served.map_err(Failed::Serve)
    }

    /// Finds out who has connected to a pod, and takes a place for the tunnel; also tells whose certificate was shown.
    async fn establish(
        &self,
        stream: TcpStream,
        pod: IpAddr,
        deadline: Instant,
    ) -> Result<(Identity, Peer, TlsStream<TcpStream>, Place), Failed> {
        let workload = self.world.borrow().workload_by_addr(pod).cloned();
        let identity = workload
            .filter(|it| it.enrolled)
            .and_then(|it| it.identity.clone());
        let Some(identity) = identity else {
            socket::reset(stream);
            return Err(Failed::NotEnrolled(pod));
        };
        let certificate = self.certificates.certificate(&identity);
        let certificate = match timeout_at(deadline.into(), certificate).await {
            Ok(certificate) => certificate?,
            Err(_) => return Err(Failed::NoCertificate(identity)),
        };
        socket::prepare(&stream).map_err(Failed::Socket)?;
        let (peer, tls) = hbone::authenticate(stream, &certificate, deadline).await?;
        let place = self.budget.claim(peer.remote.ip())?;
        Ok((identity, peer, tls, place))
    }
}

/// Why a tunnel from a peer never stood, or broke.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// The peer's connection is broken already, or could not be handed over.
    #[error(transparent)]
    Socket(io::Error),
    /// Nobody there speaks for the mesh.
    #[error("{0} is not enrolled")]
    NotEnrolled(IpAddr),
    /// The pod's certificate is not here, and did not come.
    #[error("no certificate for {0} in time")]
    NoCertificate(Identity),
    /// The pod's certificate cannot be had.
    #[error(transparent)]
    Certificate(#[from] Arc<pki::Error>),
    /// The handshake failed, or the tunnel.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// There is no place for it.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

impl Failed {
    /// In a word.
    fn flag(&self) -> Flag {
        match self {
            Self::Socket(_)
            | Self::NotEnrolled(_)
            | Self::Exhausted(_)
            | Self::Serve(ServeError::Socket(_)) => Flag::Connect,
            Self::NoCertificate(_) | Self::Certificate(_) | Self::Serve(ServeError::NoIdentity) => {
                Flag::Identity
            }
            Self::Serve(ServeError::Timeout(stage)) => stage_flag(*stage),
            Self::Serve(ServeError::Http2(_) | ServeError::Unresponsive) => Flag::Http2,
            Self::Serve(ServeError::Tls(_)) => Flag::Tls,
        }
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
    telemetry: Arc<Telemetry>,
}

/// A stream that is open.
struct Carried {
    open: Open,
    _admission: Admission,
    _place: Place,
    _open: Counted,
}

impl Accept for Streams {
    type Connection = Carried;

    async fn connect(&self, request: &ConnectRequest) -> Result<Upstream<Carried>, Refusal> {
        let snapshot = self.world.borrow().clone();
        let mut log = requested(&snapshot, request);
        log.span = self.telemetry.child(request.head.trace.as_ref());
        let reached = match self.budget.claim(request.remote.ip()) {
            Ok(place) => reach(&snapshot, &self.allowed, &self.owner, request, &mut log)
                .await
                .map(|(tcp, admission)| (tcp, admission, place)),
            Err(exhausted) => {
                let counters = &self.telemetry.counters;
                counters.exhausted.fetch_add(1, Ordering::Relaxed);
                Err((Refusal::Unreachable, Failure::new(Flag::Connect, exhausted)))
            }
        };
        match reached {
            Ok((tcp, admission, place)) => {
                let progress = Arc::new(Progress::counted(place.memory.clone()));
                let baggage = log.destination_workload.as_deref().and_then(baggage);
                Ok(Upstream {
                    tcp,
                    baggage,
                    revoked: admission.revoked.clone(),
                    connection: Carried {
                        open: self.telemetry.open(Arc::new(log), progress.clone()),
                        _admission: admission,
                        _place: place,
                        _open: self.open.count(),
                    },
                    progress,
                })
            }
            Err((refusal, failure)) => {
                self.telemetry.refuse(log, failure);
                Err(refusal)
            }
        }
    }

    fn finished(&self, carried: Carried, transfer: Transfer) {
        carried.open.close(transfer.outcome.err().map(broken));
    }
}

/// What is known of a stream that is asked for.
fn requested(snapshot: &Snapshot, request: &ConnectRequest) -> Connection {
    let (remote, local) = (request.remote, request.local);
    let log = Connection::new(Seen::Inbound, remote, local, clock::now()).known_to(snapshot);
    let head = &request.head;
    let host = match &head.authority {
        Authority::Host { name, .. } => Some(&**name),
        Authority::Address(_) => head.forwarded.as_ref().and_then(|it| it.host.as_deref()),
    };
    Connection {
        source_identity: Some(request.peer.clone()),
        service: host.and_then(|it| service_of(snapshot, it)),
        carriage: Carriage::Tunnel,
        ..log
    }
}

/// Connects to the application from the client's own address, and notes which; otherwise says what the peer and what our log is
/// told.
async fn reach(
    snapshot: &Snapshot,
    allowed: &Arc<Allowed>,
    owner: &Identity,
    request: &ConnectRequest,
    log: &mut Connection,
) -> Result<(TcpStream, Admission), (Refusal, Failure)> {
    let address = route::inbound(snapshot, request.local.ip(), owner, &request.head.authority)
        .map_err(|rejection| (refusal(&rejection), Failure::new(Flag::Connect, rejection)))?;
    log.hbone = Some(address);
    let ends = Ends {
        source: request.remote,
        asked: request.local,
        identity: Some(request.peer.clone()),
        destination: address,
        directions: &[Direction::Ingress],
        is_tunnelled: true,
    };
    let admission = allowed.admit(&ends).map_err(|denied| {
        let Denied(direction, verdict) = denied.clone();
        let flag = Flag::of_layer(verdict.layer);
        let failure = Failure {
            verdict: Some((direction, verdict)),
            ..Failure::new(flag, denied)
        };
        (Refusal::Denied, failure)
    })?;
    let connected = socket::connect(Source::Client(request.remote.ip()), address).await;
    connected.map(|tcp| (tcp, admission)).map_err(|source| {
        let failure = Failure::new(Flag::Connect, Unreachable { address, source });
        (Refusal::Unreachable, failure)
    })
}

/// The application does not accept.
#[derive(Debug, thiserror::Error)]
#[error("connecting to {address}")]
struct Unreachable {
    address: SocketAddr,
    source: io::Error,
}

fn refusal(rejection: &Rejection) -> Refusal {
    match rejection {
        Rejection::AddressMismatch { .. } => Refusal::AddressMismatch,
        Rejection::UnknownWorkload(_)
        | Rejection::ReservedPort(_)
        | Rejection::UnknownService { .. } => Refusal::Unreachable,
    }
}
