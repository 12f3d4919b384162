//! CORE: what is counted of connections for whom, how many series there are at most, and when they go.
//!
//! One lock guards all: a scrape sees each connection once, in its series or among the open ones, so that no counter ever
//! falls. An open connection's bytes stay in its [`Progress`], which only a scrape reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::columns::{Read, Row};
use super::connection::{Carriage, Connection, Direction, Flag};
use super::labels::{labels, overflow};
use super::totals::{Pair, PairKey, Told, Totals};
use super::way::Way;
use crate::hbone::Progress;
use crate::model::{Snapshot, WorkloadKey};

/// Series that have labels of their own; who comes later is counted with all others. A page of so many has eighteen megabytes.
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
    kernel: HashMap<PairKey, Told>,
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

impl Series {
    fn row(&self) -> Row {
        Row {
            labels: self.labels.clone(),
            flag: self.flag,
            open: self.open,
            totals: self.totals,
        }
    }
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

    /// Takes up what the kernel has counted for a pair since it was asked last: at both ends of what it carries within this
    /// node, otherwise at the pod's; returns that.
    pub(super) fn kernel(&mut self, pair: &Pair, now: Totals, names: &Names<'_>) -> Totals {
        let Some(pod) = pair.pod() else {
            return Totals::default();
        };
        let told = self.kernel.entry(pair.into()).or_insert_with(|| Told {
            pod: pod.key.clone(),
            totals: Totals::default(),
        });
        let grown = told.totals.grow(now);
        if grown == Totals::default() {
            return grown;
        }
        let directions: &[_] = match pair.carriage {
            Carriage::SameNode => &[Direction::Outbound, Direction::Inbound],
            _ => &[pair.direction],
        };
        for direction in directions {
            let stood = Totals { failed: 0, ..grown };
            if stood != Totals::default() {
                let way = Way::of_pair(pair, *direction, Flag::None);
                let number = self.find(way, names);
                if let Some(series) = &mut self.series[number] {
                    series.totals.add(stood);
                    series.open = (series.open + stood.opened).saturating_sub(stood.closed);
                }
            }
            if grown.failed > 0 {
                // Whatever policy refuses the kernel tells one by one; this is what the other end has refused.
                let way = Way::of_pair(pair, *direction, Flag::Connect);
                let number = self.find(way, names);
                if let Some(series) = &mut self.series[number] {
                    series.totals.failed += grown.failed;
                }
            }
        }
        grown
    }

    /// Lets series go whose workloads are gone and that nobody has used for a while, and all objects of older snapshots.
    pub(super) fn sweep(&mut self, snapshot: &Snapshot, now: Instant) {
        let is_here = |it: &WorkloadKey| snapshot.workload(it).is_some();
        self.kernel.retain(|_, told| is_here(&told.pod));
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
            .map(|it| it.as_ref().map(Series::row))
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
