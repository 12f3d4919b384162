//! EDGE: sends what is to be told to a collector, a batch at a time, over gRPC.
//!
//! A collector that is away, or slow, costs what finds no place in the queue, and nothing else.

use std::error::Error;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout_at};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tracing::warn;

use super::super::counters::{Counters, Signal};
use super::super::{Event, Record, Telemetry};
use super::convert::{self, Resource};
use super::wire::{Item, LOGS, LogRecord, Request, Response, Span, TRACES};
use crate::causes::causes;
use crate::clock;
use crate::model::Snapshot;

/// Connections that may wait to be told.
const QUEUE: usize = 2048;
/// Connections told at once.
const BATCH: usize = 512;
/// How long the first of a batch waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// How long a connection to the collector may take, and a call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a collector that has not answered is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Pauses between the calls for one batch: each twice as long as the one before, about a minute in all.
const PAUSE: Duration = Duration::from_millis(500);
const CALLS: u32 = 8;
/// How long a collector is not told of spans, or of logs, that says that it takes none.
const REST: Duration = Duration::from_mins(5);
/// How often it is warned of a collector that does not take what it is told.
const WARNINGS: Duration = Duration::from_mins(1);
/// The port of OTLP over gRPC.
const PORT: u16 = 4317;

/// Where a collector is: `http://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(Uri);

/// The text tells of no collector that can be spoken to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCollector {
    /// It is something else.
    #[error(
        "{0:?} is not http://HOST:PORT, such as http://127.0.0.1:4317, where a collector takes OTLP over gRPC"
    )]
    Uri(String),
    /// It wants TLS.
    #[error(
        "a collector is told without TLS: name one of this node by http://, such as http://127.0.0.1:4317, which speaks TLS to \
         the others"
    )]
    Tls,
}

impl FromStr for Collector {
    type Err = NotCollector;

    fn from_str(text: &str) -> Result<Self, NotCollector> {
        let none = || NotCollector::Uri(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| none())?;
        if uri.scheme() == Some(&Scheme::HTTPS) {
            return Err(NotCollector::Tls);
        }
        let is_bare = matches!(
            uri.path_and_query().map(PathAndQuery::as_str),
            None | Some("/")
        );
        let authority = uri.authority().filter(|it| !it.as_str().contains('@'));
        let host = authority.map(Authority::host).filter(|it| !it.is_empty());
        let is_http = uri.scheme() == Some(&Scheme::HTTP);
        let host = host.filter(|_| is_http && is_bare).ok_or_else(none)?;
        let port = uri.port_u16().unwrap_or(PORT);
        let whole = format!("http://{host}:{port}").parse();
        whole.map(Self).map_err(|_| none())
    }
}

/// Where what is to be told waits. Dropped, it lets the [`Exporter`] end.
pub struct Exports {
    queue: mpsc::Sender<Record>,
    counters: Arc<Counters>,
}

impl Exports {
    /// A connection that has ended, if it is among those that are told.
    pub(in super::super) fn closed(&self, record: &Record) {
        if record.event == Event::Closed && is_sampled(record) {
            self.offer(record);
        }
    }

    /// A connection that was refused.
    pub(in super::super) fn refused(&self, record: &Record) {
        self.offer(record);
    }

    fn offer(&self, record: &Record) {
        if self.queue.try_send(record.clone()).is_err() {
            let lost = &self.counters.otlp;
            lost.logs.lost.fetch_add(1, Ordering::Relaxed);
            let spans = u64::from(is_sampled(record));
            lost.spans.lost.fetch_add(spans, Ordering::Relaxed);
        }
    }
}

fn is_sampled(record: &Record) -> bool {
    let span = record.connection.span.as_ref();
    span.is_some_and(|it| it.is_sampled)
}

/// Sends to a collector what waits to be told.
pub struct Exporter {
    queue: mpsc::Receiver<Record>,
    world: watch::Receiver<Snapshot>,
    resource: Resource,
    line: Line,
}

impl Exporter {
    /// One that has not been told anything yet, and where it is told.
    pub fn new(
        collector: &Collector,
        resource: Resource,
        telemetry: &Telemetry,
    ) -> (Self, Exports) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let counters = telemetry.counters.clone();
        let endpoint = Endpoint::from(collector.0.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(CONNECT_TIMEOUT);
        let exporter = Self {
            queue: waiting,
            world: telemetry.world.clone(),
            resource,
            line: Line {
                client: Grpc::new(endpoint.connect_lazy()),
                collector: collector.clone(),
                counters: counters.clone(),
                warned: None,
            },
        };
        (exporter, Exports { queue, counters })
    }

    /// Sends until nobody tells it anything any more, and what waits then.
    pub async fn run(mut self) {
        let (mut spans_rest, mut logs_rest) = (None, None);
        loop {
            let batch = self.batch().await;
            if batch.is_empty() {
                return;
            }
            let (spans, logs) = self.told(&batch);
            drop(batch);
            let counters = self.line.counters.clone();
            let (line, otlp) = (&mut self.line, &counters.otlp);
            line.tell(TRACES, spans, &otlp.spans, &mut spans_rest).await;
            line.tell(LOGS, logs, &otlp.logs, &mut logs_rest).await;
        }
    }

    /// What waits, and what comes soon after; nothing at the end.
    async fn batch(&mut self) -> Vec<Record> {
        let mut batch = Vec::new();
        self.queue.recv_many(&mut batch, BATCH).await;
        let deadline = clock::now() + WAIT;
        while !batch.is_empty() && batch.len() < BATCH {
            let room = BATCH - batch.len();
            let more = self.queue.recv_many(&mut batch, room);
            if let Ok(0) | Err(_) = timeout_at(deadline.into(), more).await {
                break;
            }
        }
        batch
    }

    fn told(&self, batch: &[Record]) -> (Batch<Span>, Batch<LogRecord>) {
        let snapshot = self.world.borrow().clone();
        let both = batch.iter().map(|it| convert::told(it, &snapshot));
        let (spans, logs): (Vec<_>, Vec<_>) = both.unzip();
        let spans = spans.into_iter().flatten().collect();
        (
            Batch::new(&self.resource, spans),
            Batch::new(&self.resource, logs),
        )
    }
}

/// Spans, or log records, of a batch.
struct Batch<T: Item> {
    request: Request<T>,
    count: u64,
}

impl<T: Item> Batch<T> {
    fn new(resource: &Resource, items: Vec<T>) -> Self {
        Self {
            count: items.len() as u64,
            request: convert::request(resource, items),
        }
    }
}

/// The way to the collector.
struct Line {
    client: Grpc<Channel>,
    collector: Collector,
    counters: Arc<Counters>,
    warned: Option<Instant>,
}

impl Line {
    /// Tells of a batch, more than once if need be; a collector that takes none of these is left alone until `rest`.
    async fn tell<T: Item>(
        &mut self,
        path: &'static str,
        batch: Batch<T>,
        told: &Signal,
        rest: &mut Option<Instant>,
    ) {
        if batch.count == 0 {
            return;
        }
        let rejected = if rest.is_some_and(|until| clock::now() < until) {
            batch.count
        } else {
            match self.call_patiently(path, &batch.request).await {
                Ok(response) => self.rejected(response, batch.count),
                Err(code) => {
                    *rest = (code == Code::Unimplemented).then(|| clock::now() + REST);
                    batch.count
                }
            }
        };
        told.lost.fetch_add(rejected, Ordering::Relaxed);
        let exported = batch.count - rejected;
        told.exported.fetch_add(exported, Ordering::Relaxed);
    }

    async fn call_patiently<T: Item>(
        &mut self,
        path: &'static str,
        request: &Request<T>,
    ) -> Result<Response, Code> {
        let mut pause = PAUSE;
        let mut calls = 1;
        loop {
            let status = match self.call(path, request.clone()).await {
                Ok(response) => return Ok(response),
                Err(status) => status,
            };
            self.counters.otlp.failed.fetch_add(1, Ordering::Relaxed);
            if self.may_warn() {
                let error = status.source().map_or_else(|| status.to_string(), causes);
                warn!(to = %self.collector.0, path, error, "the collector does not take what it is told");
            }
            if calls == CALLS || !passes(&status) {
                return Err(status.code());
            }
            sleep(pause).await;
            (pause, calls) = (pause * 2, calls + 1);
        }
    }

    async fn call<T: Item>(
        &mut self,
        path: &'static str,
        request: Request<T>,
    ) -> Result<Response, Status> {
        let ready = self.client.ready().await;
        ready.map_err(|source| Status::from_error(Box::new(source)))?;
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<Request<T>, Response>::default();
        let request = tonic::Request::new(request);
        let answer = self.client.unary(request, path, codec).await?;
        Ok(answer.into_inner())
    }

    /// How many of what was sent were refused for good.
    fn rejected(&mut self, response: Response, count: u64) -> u64 {
        let Some(partial) = response.partial.filter(|it| it.rejected > 0) else {
            return 0;
        };
        if self.may_warn() {
            let (rejected, error) = (partial.rejected, partial.message);
            warn!(to = %self.collector.0, rejected, error, "the collector takes a part of what it is told");
        }
        u64::try_from(partial.rejected).unwrap_or(0).min(count)
    }

    fn may_warn(&mut self) -> bool {
        let now = clock::now();
        let may = self.warned.is_none_or(|it| now >= it + WARNINGS);
        if may {
            self.warned = Some(now);
        }
        may
    }
}

/// Whether it may be otherwise a moment later: what the protocol says is tried again, and what is no answer.
fn passes(status: &Status) -> bool {
    let is_ours = status.source().is_some();
    is_ours
        || matches!(
            status.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss
        )
}
