//! CORE: Istio's TCP metrics: what is counted for whom, how many series there are at most, and when they go.
//!
//! One lock guards all: a scrape sees each connection once, in its series or among the open ones, so that no counter ever
//! falls. An open connection's bytes stay in its [`Progress`], which only a scrape reads.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Carriage, Connection, Direction, Flag};
use super::labels::{End, Subject, labels, overflow};
use super::page::{Kind, Page};
use crate::hbone::Progress;
use crate::model::{Identity, Key, Service, Snapshot, Workload, WorkloadKey};

/// Series that have labels of their own; who comes later is counted with all others. A page of so many has ten megabytes.
const MOST: usize = 4096;
/// Ways to one of the series that are remembered.
const MOST_WAYS: usize = 4 * MOST;
/// How long a series of workloads that are gone stays after its last connection: several scrapes see its last values.
const STAY: Duration = Duration::from_mins(5);

/// Everything that is counted of connections.
#[derive(Default)]
pub(super) struct Table {
    series: Vec<Option<Series>>,
    free: Vec<usize>,
    by_labels: HashMap<Arc<str>, usize>,
    /// The series of connections that are alike, so that no labels are written for each.
    ways: HashMap<Way, usize>,
    open: Vec<Option<Open>>,
    free_open: Vec<usize>,
    kernel: HashMap<PairKey, Totals>,
    folded: u64,
}

struct Series {
    labels: Arc<str>,
    is_overflow: bool,
    flag: Flag,
    /// The workloads it counts for, as they were last.
    ends: [Option<WorkloadKey>; 2],
    open: u64,
    totals: Totals,
    last: Instant,
}

/// What is counted for a pair of workloads. Bytes are as the opener has it: `sent` are from it, `received` to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections that stood.
    pub opened: u64,
    /// Connections that stood and have ended.
    pub closed: u64,
    /// Connections that never stood.
    pub failed: u64,
    /// Bytes from the opener.
    pub sent: u64,
    /// Bytes to the opener.
    pub received: u64,
}

/// Whom connections that the kernel carries are between.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The workload that opens them.
    pub source: Arc<Workload>,
    /// The workload they end at.
    pub destination: Arc<Workload>,
    /// The service that was asked for, where known.
    pub service: Option<Arc<Service>>,
    /// [`Carriage::SameNode`] or [`Carriage::Plain`].
    pub carriage: Carriage,
    /// Why those that never stood did not.
    pub failed: Flag,
}

#[derive(PartialEq, Eq, Hash)]
struct PairKey {
    ends: [WorkloadKey; 2],
    service: Option<Key>,
    carriage: Carriage,
    failed: Flag,
}

struct Open {
    series: usize,
    direction: Direction,
    progress: Arc<Progress>,
}

impl Open {
    /// Bytes from the opener and to it.
    fn moved(&self) -> (u64, u64) {
        moved(self.direction, &self.progress)
    }
}

/// Bytes from the opener and to it. An outbound tunnel's opener is at its TCP end, an inbound one's at the other.
pub(super) fn moved(direction: Direction, progress: &Progress) -> (u64, u64) {
    match direction {
        Direction::Outbound => (progress.sent(), progress.received()),
        Direction::Inbound => (progress.received(), progress.sent()),
    }
}

/// Objects of the snapshot by their address, which they keep while this holds them.
#[derive(Clone)]
struct At<T>(Arc<T>);

impl<T> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for At<T> {}

impl<T> Hash for At<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Way {
    direction: Direction,
    carriage: Carriage,
    flag: Flag,
    workloads: [Option<At<Workload>>; 2],
    service: Option<At<Service>>,
    identities: [Option<Identity>; 2],
}

impl Way {
    fn of(it: &Connection, flag: Flag) -> Self {
        let at = |it: &Option<Arc<Workload>>| it.clone().map(At);
        Self {
            direction: it.direction,
            carriage: it.carriage,
            flag,
            workloads: [at(&it.source_workload), at(&it.destination_workload)],
            service: it.service.clone().map(At),
            identities: [it.source_identity.clone(), it.destination_identity.clone()],
        }
    }

    fn of_pair(it: &Pair, direction: Direction, flag: Flag) -> Self {
        let proved = it.carriage != Carriage::Plain;
        let identity = |it: &Workload| it.identity.clone().filter(|_| proved);
        Self {
            direction,
            carriage: it.carriage,
            flag,
            workloads: [&it.source, &it.destination].map(|it| Some(At(it.clone()))),
            service: it.service.clone().map(At),
            identities: [identity(&it.source), identity(&it.destination)],
        }
    }

    fn subject(&self) -> Subject<'_> {
        let [source, destination] = [0, 1].map(|end: usize| End {
            workload: self.workloads[end].as_ref().map(|it| &*it.0),
            identity: self.identities[end].as_ref(),
        });
        Subject {
            direction: self.direction,
            carriage: self.carriage,
            flag: self.flag,
            source,
            destination,
            service: self.service.as_ref().map(|it| &*it.0),
        }
    }

    fn ends(&self) -> [Option<WorkloadKey>; 2] {
        let key = |it: &Option<At<Workload>>| it.as_ref().map(|it| it.0.key.clone());
        [key(&self.workloads[0]), key(&self.workloads[1])]
    }
}

/// Where labels come from, besides the objects themselves.
pub(super) struct Names<'a> {
    pub(super) snapshot: &'a dyn Fn() -> Snapshot,
    pub(super) cluster: &'a str,
    pub(super) now: Instant,
}

impl Table {
    /// Counts a connection that stands; the number is for [`Self::closed`].
    pub(super) fn opened(
        &mut self,
        it: &Connection,
        progress: Arc<Progress>,
        names: &Names<'_>,
    ) -> usize {
        let number = self.find(Way::of(it, Flag::None), names);
        if let Some(series) = &mut self.series[number] {
            series.totals.opened += 1;
            series.open += 1;
        }
        let open = Some(Open {
            series: number,
            direction: it.direction,
            progress,
        });
        if let Some(slot) = self.free_open.pop() {
            self.open[slot] = open;
            return slot;
        }
        self.open.push(open);
        self.open.len() - 1
    }

    /// Counts that it has ended, with the bytes that it moved in all: from the opener, and to it.
    pub(super) fn closed(&mut self, number: usize, now: Instant) -> (u64, u64) {
        let Some(open) = self.open.get_mut(number).and_then(Option::take) else {
            return (0, 0);
        };
        self.free_open.push(number);
        let (sent, received) = open.moved();
        if let Some(series) = &mut self.series[open.series] {
            series.open -= 1;
            series.totals.closed += 1;
            series.totals.sent += sent;
            series.totals.received += received;
            series.last = now;
        }
        (sent, received)
    }

    /// Counts a connection that never stood.
    pub(super) fn failed(&mut self, it: &Connection, flag: Flag, names: &Names<'_>) {
        let number = self.find(Way::of(it, flag), names);
        if let Some(series) = &mut self.series[number] {
            series.totals.failed += 1;
        }
    }

    /// Takes up what the kernel has counted for a pair since it was asked last, at each end that is of this node.
    pub(super) fn kernel(&mut self, pair: &Pair, now: Totals, names: &Names<'_>) {
        let key = PairKey {
            ends: [pair.source.key.clone(), pair.destination.key.clone()],
            service: pair.service.as_ref().map(|it| it.key.clone()),
            carriage: pair.carriage,
            failed: pair.failed,
        };
        let before = self.kernel.insert(key, now).unwrap_or_default();
        let grown = now.since(before);
        if grown == Totals::default() {
            return;
        }
        let ends = [
            (Direction::Outbound, &pair.source),
            (Direction::Inbound, &pair.destination),
        ];
        for (direction, _) in ends.into_iter().filter(|(_, end)| end.is_local()) {
            let stood = Totals { failed: 0, ..grown };
            if stood != Totals::default() {
                let number = self.find(Way::of_pair(pair, direction, Flag::None), names);
                if let Some(series) = &mut self.series[number] {
                    series.totals.add(stood);
                    series.open = (series.open + stood.opened).saturating_sub(stood.closed);
                }
            }
            if grown.failed > 0 {
                let number = self.find(Way::of_pair(pair, direction, pair.failed), names);
                if let Some(series) = &mut self.series[number] {
                    series.totals.failed += grown.failed;
                }
            }
        }
    }

    /// Lets series go whose workloads are gone and that nobody has used for a while, and all objects of older snapshots.
    pub(super) fn sweep(&mut self, snapshot: &Snapshot, now: Instant) {
        let is_here = |it: &WorkloadKey| snapshot.workload(it).is_some();
        self.kernel.retain(|pair, _| pair.ends.iter().all(is_here));
        // They are found again by their labels.
        self.ways = HashMap::new();
        for (number, slot) in self.series.iter_mut().enumerate() {
            let is_gone = |it: &Series| {
                let gone = it.ends.iter().flatten().any(|it| !is_here(it));
                gone && it.open == 0 && now.saturating_duration_since(it.last) >= STAY
            };
            if let Some(gone) = slot.take_if(|it| is_gone(it)) {
                self.by_labels.remove(&gone.labels);
                self.free.push(number);
            }
        }
    }

    /// The series of a way, made if there is none yet.
    fn find(&mut self, way: Way, names: &Names<'_>) -> usize {
        let known = self.ways.get(&way).copied();
        let number = known.unwrap_or_else(|| self.learn(way, names));
        if let Some(series) = &mut self.series[number] {
            series.last = names.now;
            self.folded += u64::from(series.is_overflow);
        }
        number
    }

    fn learn(&mut self, way: Way, names: &Names<'_>) -> usize {
        let mut text = labels(&way.subject(), &(names.snapshot)(), names.cluster);
        let is_overflow = self.by_labels.len() >= MOST && !self.by_labels.contains_key(&*text);
        if is_overflow {
            text = overflow(way.direction, way.carriage, way.flag);
        }
        let number = match self.by_labels.get(&*text) {
            Some(number) => *number,
            None => self.add(text.into(), &way, is_overflow, names.now),
        };
        if let Some(series) = &mut self.series[number]
            && !is_overflow
        {
            series.ends = way.ends();
        }
        if self.ways.len() >= MOST_WAYS {
            self.ways.clear();
        }
        self.ways.insert(way, number);
        number
    }

    fn add(&mut self, labels: Arc<str>, way: &Way, is_overflow: bool, now: Instant) -> usize {
        let series = Some(Series {
            labels: labels.clone(),
            is_overflow,
            flag: way.flag,
            ends: [None, None],
            open: 0,
            totals: Totals::default(),
            last: now,
        });
        let number = self.free.pop().unwrap_or(self.series.len());
        match self.series.get_mut(number) {
            Some(slot) => *slot = series,
            None => self.series.push(series),
        }
        self.by_labels.insert(labels, number);
        number
    }

    /// What a scrape sees.
    pub(super) fn read(&self) -> Read {
        let mut series: Vec<_> = self
            .series
            .iter()
            .map(|it| it.as_ref().map(Row::of))
            .collect();
        for open in self.open.iter().flatten() {
            let (sent, received) = open.moved();
            if let Some(row) = &mut series[open.series] {
                row.totals.sent += sent;
                row.totals.received += received;
            }
        }
        Read {
            rows: series.into_iter().flatten().collect(),
            folded: self.folded,
        }
    }
}

impl Totals {
    /// What has come since; all of it if it has begun anew.
    fn since(self, before: Self) -> Self {
        let pairs = [
            (self.opened, before.opened),
            (self.closed, before.closed),
            (self.failed, before.failed),
            (self.sent, before.sent),
            (self.received, before.received),
        ];
        if pairs.iter().any(|(now, before)| now < before) {
            return self;
        }
        let [opened, closed, failed, sent, received] = pairs.map(|(now, before)| now - before);
        Self {
            opened,
            closed,
            failed,
            sent,
            received,
        }
    }

    fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.failed += other.failed;
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// What a scrape sees of all series.
pub(super) struct Read {
    rows: Vec<Row>,
    folded: u64,
}

struct Row {
    labels: Arc<str>,
    flag: Flag,
    open: u64,
    totals: Totals,
}

impl Row {
    fn of(series: &Series) -> Self {
        Self {
            labels: series.labels.clone(),
            flag: series.flag,
            open: series.open,
            totals: series.totals,
        }
    }
}

/// Name, help, and what of a row it is. By Istio's names bytes are "sent" in the response, towards the opener, and "received"
/// in the request, at both ends alike.
type Column = (&'static str, &'static str, fn(&Totals) -> u64);

const STOOD: [Column; 4] = [
    (
        "istio_tcp_connections_opened",
        "The total number of TCP connections opened",
        |it| it.opened,
    ),
    (
        "istio_tcp_connections_closed",
        "The total number of TCP connections closed",
        |it| it.closed,
    ),
    (
        "istio_tcp_sent_bytes",
        "The size of total bytes sent during response in case of a TCP connection",
        |it| it.received,
    ),
    (
        "istio_tcp_received_bytes",
        "The size of total bytes received during request in case of a TCP connection",
        |it| it.sent,
    ),
];

impl Read {
    /// Writes Istio's families, and how bounded ours are.
    pub(super) fn write(&self, page: &mut Page) {
        let stood = || self.rows.iter().filter(|it| it.flag == Flag::None);
        for (name, help, value) in STOOD {
            let mut family = page.family(name, Kind::Counter, help);
            for row in stood() {
                family.sample(&row.labels, value(&row.totals));
            }
        }
        let help = "The total number of TCP connections that failed to establish";
        let mut family = page.family("istio_tcp_connections_failed", Kind::Counter, help);
        for row in self.rows.iter().filter(|it| it.flag != Flag::None) {
            family.sample(&row.labels, row.totals.failed);
        }
        let help = "The number of TCP connections that are open";
        let mut family = page.family("istio_tcp_sockets_open", Kind::Gauge, help);
        for row in stood() {
            family.sample(&row.labels, row.open);
        }
        let help = "Series of connections";
        page.single("mesh_series", Kind::Gauge, help, self.rows.len());
        let help = "Connections that are counted with others, there being too many series";
        page.single("mesh_series_folded", Kind::Counter, help, self.folded);
    }
}
