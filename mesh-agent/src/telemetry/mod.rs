//! EDGE: what the agent tells of connections: metrics, access log and flows.
//!
//! A connection costs the path that carries it two short locks, when it opens and when it ends: nothing is formatted or
//! written there, and nothing is done for a read. [`Open`] counts; the ring keeps the latest records; [`log`] writes lines
//! from it; a scrape reads the bytes of what is open.

mod columns;
pub mod connection;
mod counters;
mod edges;
mod flows;
mod graph;
mod histogram;
mod kernel;
mod labels;
mod log;
mod merge;
mod otlp;
mod own;
mod page;
mod process;
mod refused;
mod ring;
mod scrape;
mod series;
#[cfg(test)]
mod tests;
mod totals;
mod way;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

pub use connection::{Carriage, Connection, Direction, Event, Failure, Flag, Record};
pub use counters::{Calls, Counters, Tunnels, Verb};
pub use flows::{Batch, Filter as Wanted, Flow, Party, Since};
pub use graph::{Agent, Edge, Graph, Node, RoundTrips};
pub use histogram::Histogram;
pub use kernel::Told;
pub(crate) use labels::service_of;
pub use log::Filter;
pub use merge::merge;
pub use otlp::{Collector, Exporter, Exports, NotCollector, Resource};
pub use own::{Measured, State};
pub use page::Exposition;
pub use refused::run as refusals;
pub use scrape::Scraper;
pub use totals::{Pair, Totals};

use crate::clock;
use crate::hbone::Progress;
use crate::model::Snapshot;
use crate::random;
use crate::trace_context::{Share, Span, TraceContext};
use edges::Edges;
use page::Page;
use ring::Ring;
use series::{Names, Table};

/// How long records of connections that open are kept up after somebody has asked for them.
const INTEREST: Duration = Duration::from_secs(10);

/// What the agent tells of connections.
pub struct Telemetry {
    world: watch::Receiver<Snapshot>,
    cluster: String,
    began: Instant,
    table: Mutex<Table>,
    edges: Mutex<Edges>,
    ring: Mutex<Ring>,
    /// There are records that the log's writer has not seen.
    news: Notify,
    filter: Mutex<Filter>,
    /// Whether the log is to tell of connections that open.
    logs_opened: AtomicBool,
    /// Until when somebody wants to know of connections that open, in milliseconds since `began`.
    interest: AtomicU64,
    /// The share of connections that a collector is told of; none without a collector.
    sampling: Option<Share>,
    /// What other parts of the agent count.
    pub counters: Arc<Counters>,
}

impl Telemetry {
    /// Nothing yet. `cluster` is this one's name in labels; `counters` are those that the agent's parts count in; `sampling` is
    /// the share of connections that a collector is told of, if there is one.
    pub fn new(
        world: watch::Receiver<Snapshot>,
        cluster: impl Into<String>,
        counters: Arc<Counters>,
        sampling: Option<Share>,
    ) -> Arc<Self> {
        Arc::new(Self {
            world,
            cluster: cluster.into(),
            began: clock::now(),
            table: Mutex::default(),
            edges: Mutex::default(),
            ring: Mutex::new(Ring::new()),
            news: Notify::new(),
            filter: Mutex::default(),
            logs_opened: AtomicBool::new(log::tells_opened()),
            interest: AtomicU64::new(0),
            sampling,
            counters,
        })
    }

    /// The part in a trace of a connection that was opened here; none if nobody is told of any.
    pub fn root(&self) -> Option<Box<Span>> {
        let share = self.sampling.filter(|it| !it.is_none())?;
        Some(Box::new(Span::root(share, random::number)))
    }

    /// The same of one that another end has opened, which may have told of a trace.
    pub fn child(&self, of: Option<&TraceContext>) -> Option<Box<Span>> {
        self.sampling?;
        match of {
            Some(context) => Some(Box::new(Span::child(context, random::number))),
            None => self.root(),
        }
    }

    /// Counts a connection that stands. Its bytes are read from `progress` until the [`Open`] is dropped or closed.
    pub fn open(self: &Arc<Self>, connection: Arc<Connection>, progress: Arc<Progress>) -> Open {
        let edge = self
            .lock_edges()
            .opened(&connection, progress.clone(), clock::now());
        let number = self.with_table(|table, names| table.opened(&connection, progress, names));
        if self.is_wanted() {
            self.push(Record {
                at: clock::wall(),
                event: Event::Opened,
                connection: connection.clone(),
                sent: 0,
                received: 0,
                duration: connection.began.elapsed(),
                failure: None,
            });
        }
        Open {
            telemetry: self.clone(),
            number,
            edge,
            connection: Some(connection),
        }
    }

    /// Counts a connection that never stood, and tells of it.
    pub fn refuse(&self, connection: Connection, failure: Failure) {
        self.with_table(|table, names| table.failed(&connection, failure.flag, names));
        self.flow(Record {
            at: clock::wall(),
            event: Event::Refused,
            duration: connection.began.elapsed(),
            connection: Arc::new(connection),
            sent: 0,
            received: 0,
            failure: Some(Arc::new(failure)),
        });
    }

    /// The same for one of which only the addresses are known, and that failed before anything was decided.
    pub fn refuse_early(&self, connection: Connection, failure: Failure) {
        let connection = connection.known_to(&self.world.borrow());
        let failure = Failure {
            is_early: true,
            ..failure
        };
        self.refuse(connection, failure);
    }

    /// Takes up what the kernel has counted in all for a pair. May be called as often as one likes: only what was added since
    /// is taken over.
    pub fn kernel(&self, pair: &Pair, totals: Totals) {
        let grown = self.with_table(|table, names| table.kernel(pair, totals, names));
        self.lock_edges().kernel(pair, grown, clock::now());
    }

    /// Tells of a connection in log and flows, without counting it.
    pub fn flow(&self, record: Record) {
        if record.event == Event::Refused {
            self.lock_edges().refused(&record, clock::now());
        }
        self.push(record);
    }

    /// The metrics; `state` is what the agent's parts tell now.
    pub fn metrics(&self, exposition: Exposition, state: &State<'_>) -> String {
        let read = self.lock_table().read();
        let mut page = Page::new(exposition);
        read.write(&mut page);
        own::write(&mut page, &self.counters, state);
        process::write(&mut page);
        page.finish()
    }

    /// The latest flows that are wanted, at most `most` of them, or all `since` an earlier answer. `kernel`: what it has told
    /// just now, if it was asked.
    pub fn flows(
        &self,
        wanted: &Wanted,
        since: Option<Since>,
        most: usize,
        kernel: Option<&Told>,
    ) -> Batch {
        if since.is_some() && wanted.opened {
            let until = self.began.elapsed() + INTEREST;
            let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
            self.interest.store(until, Ordering::Relaxed);
        }
        let (mut records, number, lost) = {
            let ring = self.lock_ring();
            match since {
                None => (ring.latest(most, |it| wanted.wants(it)), ring.next(), 0),
                Some(since) => {
                    let mut read = ring.since(since.number);
                    read.records.retain(|it| wanted.wants(it));
                    (read.records, read.next, read.lost)
                }
            }
        };
        let snapshot = self.world.borrow().clone();
        if let Some(told) = kernel {
            let mut more = told.records(since.and_then(|it| it.kernel), &snapshot);
            more.retain(|it| wanted.wants(it));
            records.extend(more);
            records.sort_by_key(|it| it.at);
        }
        if since.is_none() {
            records.drain(..records.len().saturating_sub(most));
        }
        let told = kernel.map(Told::until);
        Batch {
            flows: records.iter().map(|it| Flow::of(it, &snapshot)).collect(),
            next: Since {
                number,
                kernel: told.or(since.and_then(|it| it.kernel)),
            },
            lost,
        }
    }

    /// Who speaks with whom; `round_trips` are those of the tunnels that are open.
    pub fn graph(&self, round_trips: &RoundTrips) -> Graph {
        let edges = self.lock_edges().read();
        let snapshot = self.world.borrow().clone();
        Graph::of(&snapshot, edges, round_trips, clock::wall())
    }

    /// What the access log is to tell.
    pub fn log_filter(&self) -> Filter {
        self.lock_filter().clone()
    }

    /// Has the access log tell something else from now on.
    pub fn set_log_filter(&self, filter: Filter) {
        *self.lock_filter() = filter;
    }

    /// Lets go of what was counted for workloads that are gone.
    fn sweep(&self, now: Instant) {
        let snapshot = self.world.borrow().clone();
        self.lock_table().sweep(&snapshot, now);
        self.lock_edges().sweep(&snapshot, now);
    }

    /// Whether somebody wants to know of connections that open.
    fn is_wanted(&self) -> bool {
        if self.logs_opened.load(Ordering::Relaxed) {
            return true;
        }
        match self.interest.load(Ordering::Relaxed) {
            0 => false,
            until => self.began.elapsed() < Duration::from_millis(until),
        }
    }

    fn push(&self, record: Record) {
        self.lock_ring().push(record);
        self.news.notify_one();
    }

    fn with_table<T>(&self, act: impl FnOnce(&mut Table, &Names<'_>) -> T) -> T {
        let snapshot = || self.world.borrow().clone();
        let names = Names {
            snapshot: &snapshot,
            cluster: &self.cluster,
            now: clock::now(),
        };
        act(&mut self.lock_table(), &names)
    }

    // Nothing panics while one of these is held.
    fn lock_table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_edges(&self) -> MutexGuard<'_, Edges> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_filter(&self) -> MutexGuard<'_, Filter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that stands; counted as ended when it is dropped, or [closed](Self::close).
pub struct Open {
    telemetry: Arc<Telemetry>,
    number: usize,
    edge: Option<usize>,
    connection: Option<Arc<Connection>>,
}

impl Open {
    /// Counts that it has ended, and tells of it: by itself, or broken by something.
    pub fn close(mut self, failure: Option<Failure>) {
        self.end(failure);
    }

    fn end(&mut self, failure: Option<Failure>) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let telemetry = &self.telemetry;
        if let Some(edge) = self.edge {
            telemetry.lock_edges().closed(edge, clock::now());
        }
        let (sent, received) = telemetry.lock_table().closed(self.number, clock::now());
        telemetry.push(Record {
            at: clock::wall(),
            event: Event::Closed,
            sent,
            received,
            duration: connection.began.elapsed(),
            failure: failure.map(Arc::new),
            connection,
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end(Some(Failure::new(Flag::Connect, "cut off by the agent")));
    }
}
