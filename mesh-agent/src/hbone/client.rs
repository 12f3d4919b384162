//! The client's end: a pool of tunnels, dialled when needed and shared by the streams of one [`Key`].

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use h2::Reason;
use http::{Request, StatusCode};
use tokio::sync::watch;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connect::baggage;
use super::dial::{Handle, Http2, establish};
use super::pool::{Claim, Key, TunnelId, Tunnels};
use super::{Baggage, ConnectHead, Counted, Dial, Limits, OpenError, OpenTunnels, Stream, Streams};
use crate::pki::Certificates;

/// All tunnels that this agent has opened; dropping it ends them.
///
/// Cancelling `shutdown` drains: no new streams, idle tunnels close, streams run on. See [`closed`](Self::closed) and
/// [`abort`](Self::abort) for the rest.
pub struct Pool(Arc<Inner>);

struct Inner {
    certificates: Arc<Certificates>,
    dial: Arc<dyn Dial>,
    limits: Limits,
    observer: Observer,
    tunnels: Mutex<Tunnels<Line, Outcome>>,
    open: Arc<OpenTunnels>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    abort: CancellationToken,
}

/// What becomes of tunnels, for whoever counts them.
#[derive(Clone, Copy, Debug)]
pub enum Dialled {
    /// One stands, after so long.
    Stands(Duration),
    /// One does not, after so long.
    Failed(Duration),
    /// One that stood has ended.
    Ended,
}

/// Is told what becomes of each tunnel.
pub type Observer = Box<dyn Fn(Dialled) + Send + Sync>;

/// A tunnel that takes streams.
#[derive(Clone)]
struct Line {
    handle: Handle,
    streams: Streams,
}

/// What a dial came to, once it has come to something.
type Outcome = watch::Receiver<Option<Result<(), OpenError>>>;

/// A stream that the peer has accepted.
pub struct Opened {
    /// To be given to [`copy`](super::copy).
    pub stream: Stream,
    /// What the peer tells about the destination.
    pub baggage: Option<Baggage>,
}

impl Pool {
    /// An empty pool, whose tunnels are listed among those that are `open`, and of whose tunnels `observer` is told. They run
    /// on the runtime that [`open`](Self::open) is called on.
    pub fn new(
        certificates: Arc<Certificates>,
        dial: Arc<dyn Dial>,
        limits: Limits,
        open: Arc<OpenTunnels>,
        shutdown: CancellationToken,
        observer: Observer,
    ) -> Self {
        Self(Arc::new(Inner {
            certificates,
            dial,
            limits,
            observer,
            tunnels: Mutex::default(),
            open,
            tasks: TaskTracker::new(),
            shutdown,
            abort: CancellationToken::new(),
        }))
    }

    /// Opens a stream to where `head` asks, on a tunnel for `key`.
    ///
    /// Callers that find no room wait for one dial and share its failure. Once the tunnel stands, waiting for the
    /// peer's answer is bounded only by the tunnel's own PINGs. A request that the peer cannot have acted upon is
    /// repeated on another tunnel. Cancel-safe: a dropped call gives its place back.
    pub async fn open(&self, key: &Key, head: &ConnectHead) -> Result<Opened, OpenError> {
        let request = head
            .to_http()
            .map_err(|e| OpenError::Request(Arc::new(e)))?;
        let mut attempts = 0;
        loop {
            let (handle, lease) = self.claim(key).await?;
            attempts += 1;
            match send(handle, lease, request.clone()).await {
                Err(OpenError::Http2(error)) if attempts < ATTEMPTS && unprocessed(&error) => {}
                outcome => return outcome,
            }
        }
    }

    /// Takes the tunnels that `keep` refuses out of the pool; their streams run on, new streams dial anew.
    pub fn retain(&self, keep: impl Fn(&Key) -> bool) {
        self.0.tunnels().retain(keep);
    }

    /// How many tunnels take streams, and how many streams are open on those.
    pub fn census(&self) -> (usize, usize) {
        self.0.tunnels().census()
    }

    /// Returns once the pool drains and its last tunnel has closed.
    pub async fn closed(&self) {
        self.0.shutdown.cancelled().await;
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Ends all tunnels at once; their streams fail.
    pub fn abort(&self) {
        self.0.abort.cancel();
    }

    /// A place on a tunnel, dialled if need be.
    async fn claim(&self, key: &Key) -> Result<(Handle, Lease), OpenError> {
        loop {
            if self.0.shutdown.is_cancelled() {
                return Err(OpenError::Draining);
            }
            let mut outcome = match self.try_claim(key) {
                Ok(place) => return Ok(place),
                Err(outcome) => outcome,
            };
            let settled = outcome.wait_for(Option::is_some).await;
            match settled.map(|outcome| outcome.clone()) {
                Ok(Some(Err(error))) => return Err(error),
                Ok(Some(Ok(())) | None) => {}
                Err(_) => {
                    // The dial panicked, or the runtime is ending.
                    self.0.tunnels().dial_failed(key);
                    return Err(OpenError::Draining);
                }
            }
        }
    }

    /// A place on a tunnel that stands, or what to wait for; starts the dial if nobody has.
    fn try_claim(&self, key: &Key) -> Result<(Handle, Lease), Outcome> {
        let mut settle = None;
        let limit = |line: &Line| room(&line.handle, self.0.limits.streams_per_tunnel);
        let claim = self.0.tunnels().claim(key, limit, || {
            let (sender, receiver) = watch::channel(None);
            settle = Some(sender);
            receiver
        });
        match claim {
            Claim::Use(id, Line { handle, streams }) => {
                let lease = Lease {
                    pool: self.0.clone(),
                    key: key.clone(),
                    id,
                    _stream: streams.count(),
                };
                Ok((handle, lease))
            }
            Claim::Wait(outcome) => Err(outcome),
            Claim::Dial(outcome) => {
                if let Some(settle) = settle {
                    let tunnel = Inner::tunnel(self.0.clone(), key.clone(), settle);
                    self.0.tasks.spawn(tunnel);
                }
                Err(outcome)
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.abort();
    }
}

/// How many streams a tunnel takes in all; none after GOAWAY or a failure.
fn room(handle: &Handle, ours: usize) -> Option<usize> {
    match handle
        .clone()
        .poll_ready(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Err(_)) => None,
        Poll::Ready(Ok(())) | Poll::Pending => Some(handle.current_max_send_streams().min(ours)),
    }
}

async fn send(mut handle: Handle, lease: Lease, request: Request<()>) -> Result<Opened, OpenError> {
    let http2 = |error| OpenError::Http2(Arc::new(error));
    let (response, send) = handle.send_request(request, false).map_err(http2)?;
    // The stream alone keeps the tunnel from now on.
    drop(handle);
    let response = response.await.map_err(http2)?;
    match response.status() {
        StatusCode::OK => Ok(Opened {
            baggage: baggage(response.headers()),
            stream: Stream::new(send, response.into_body(), Some(lease)),
        }),
        status => Err(OpenError::Refused { status }),
    }
}

/// Whether the peer says, or HTTP/2 implies, that it has not acted upon a request (RFC 9113, 8.7).
///
/// A tunnel that breaks before the answer counts as well: not one byte of the application's has been sent.
fn unprocessed(error: &h2::Error) -> bool {
    error.is_go_away() || error.is_io() || error.reason() == Some(Reason::REFUSED_STREAM)
}

/// One stream's place on a tunnel, given back when dropped.
pub(super) struct Lease {
    pool: Arc<Inner>,
    key: Key,
    id: TunnelId,
    _stream: Counted,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = Instant::now();
        let idle = self.pool.limits.idle_per_source;
        self.pool.tunnels().release(&self.key, self.id, now, idle);
    }
}

impl Inner {
    fn tunnels(&self) -> MutexGuard<'_, Tunnels<Line, Outcome>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a tunnel, from the dial to the end of its last stream.
    async fn tunnel(
        self: Arc<Self>,
        key: Key,
        settle: watch::Sender<Option<Result<(), OpenError>>>,
    ) {
        let began = Instant::now();
        let established = tokio::select! {
            established = Box::pin(establish(&self.certificates, &*self.dial, &self.limits, &key)) => established,
            () = self.abort.cancelled() => Err(OpenError::Draining),
        };
        match established {
            Ok((handle, connection, open)) => {
                (self.observer)(Dialled::Stands(began.elapsed()));
                let listed = open.map(|it| self.open.enter(it));
                let streams = listed.as_ref().map(|it| it.streams.clone());
                let streams = streams.unwrap_or_default();
                let line = Line { handle, streams };
                let id = self.tunnels().dialled(&key, line, Instant::now());
                settle.send_replace(Some(Ok(())));
                tracing::debug!(source = %key.source(), destination = %key.destination(), "tunnel open");
                let end = self.drive(&key, id, connection).await;
                self.tunnels().retire(&key, id);
                (self.observer)(Dialled::Ended);
                tracing::debug!(source = %key.source(), destination = %key.destination(), ?end, "tunnel closed");
            }
            Err(error) => {
                (self.observer)(Dialled::Failed(began.elapsed()));
                self.tunnels().dial_failed(&key);
                settle.send_replace(Some(Err(error)));
            }
        }
    }

    /// Keeps a tunnel going until it has closed, broken, or fallen silent.
    async fn drive(&self, key: &Key, id: TunnelId, mut connection: Http2) -> End {
        let keepalive = self.limits.keepalive(connection.ping_pong());
        let mut keepalive = pin!(keepalive);
        let mut idle = interval((self.limits.idle / IDLE_CHECKS).max(MIN_CHECK));
        let mut draining = false;
        loop {
            tokio::select! {
                ended = &mut connection => return ended.map_or_else(End::Failed, |()| End::Closed),
                () = &mut keepalive => return End::Silent,
                () = self.abort.cancelled() => return End::Aborted,
                () = self.shutdown.cancelled(), if !draining => {
                    draining = true;
                    self.tunnels().retire(key, id);
                }
                _ = idle.tick() => {
                    self.tunnels().retire_idle(key, id, Instant::now(), self.limits.idle);
                }
            }
        }
    }
}

/// How a tunnel ended, for the log.
#[derive(Debug)]
enum End {
    /// Idle or drained, or closed by the peer.
    Closed,
    /// The connection broke, or a side violated HTTP/2.
    Failed(#[expect(dead_code, reason = "read by Debug alone")] h2::Error),
    /// A PING stayed unanswered.
    Silent,
    /// [`Pool::abort`].
    Aborted,
}

/// How often a request is sent in all, if the peer never acts upon it.
const ATTEMPTS: usize = 3;
/// How many times within the idle time a tunnel is looked at.
const IDLE_CHECKS: u32 = 10;
/// And no more often than this.
const MIN_CHECK: Duration = Duration::from_millis(10);
