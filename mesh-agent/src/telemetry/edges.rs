//! CORE: what is counted between two workloads, for the map: as [`series`](super::series), but pod by pod, and with the last
//! refusal.
//!
//! Bounded: who finds no place is counted as left out. Edges that never carried anything have half of the places at most, so
//! that whoever tries everybody hides nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Carriage, Connection, Direction, Record};
use super::series::moved;
use super::totals::{Pair, Totals};
use crate::hbone::Progress;
use crate::model::{Key, Service, Snapshot, Workload, WorkloadKey};

/// Edges at most.
const MOST: usize = 8192;
/// Edges that only refusals have made, at most.
const MOST_IDLE: usize = MOST / 2;
/// How long an edge of workloads that are gone stays after its last connection.
const STAY: Duration = Duration::from_mins(1);

/// Everything that is counted between workloads.
#[derive(Default)]
pub(super) struct Edges {
    counted: Vec<Option<Counted>>,
    free: Vec<usize>,
    by_ends: HashMap<Ends, usize>,
    open: Vec<Option<Open>>,
    free_open: Vec<usize>,
    left_out: u64,
}

/// What tells an edge from others; an end is none where no workload is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) direction: Direction,
    pub(super) carriage: Carriage,
    pub(super) source: Option<WorkloadKey>,
    pub(super) destination: Option<WorkloadKey>,
    pub(super) service: Option<Key>,
}

/// What is known of an edge.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub(super) ends: Ends,
    /// Connections that stood, their bytes, and those that something was in the way of.
    pub(super) totals: Totals,
    /// Connections, or packets of such, that policy refused.
    pub(super) refused: u64,
    /// The last that was refused or failed.
    pub(super) last_refusal: Option<Record>,
    last: Instant,
}

struct Open {
    edge: usize,
    direction: Direction,
    progress: Arc<Progress>,
}

impl Ends {
    fn of(it: &Connection) -> Self {
        Self::between(
            it.direction,
            it.carriage,
            [
                it.source_workload.as_ref(),
                it.destination_workload.as_ref(),
            ],
            it.service.as_ref(),
        )
    }

    fn between(
        direction: Direction,
        carriage: Carriage,
        workloads: [Option<&Arc<Workload>>; 2],
        service: Option<&Arc<Service>>,
    ) -> Self {
        let [source, destination] = workloads.map(|it| it.map(|it| it.key.clone()));
        Self {
            direction,
            carriage,
            source,
            destination,
            service: service.map(|it| it.key.clone()),
        }
    }
}

impl Edges {
    /// Counts a connection that stands; the number, if it has one, is for [`Self::closed`].
    pub(super) fn opened(
        &mut self,
        it: &Connection,
        progress: Arc<Progress>,
        now: Instant,
    ) -> Option<usize> {
        let edge = self.find(Ends::of(it), MOST, now)?;
        self.at(edge)?.totals.opened += 1;
        let open = Some(Open {
            edge,
            direction: it.direction,
            progress,
        });
        if let Some(slot) = self.free_open.pop() {
            self.open[slot] = open;
            return Some(slot);
        }
        self.open.push(open);
        Some(self.open.len() - 1)
    }

    /// Counts that it has ended.
    pub(super) fn closed(&mut self, number: usize, now: Instant) {
        let Some(open) = self.open.get_mut(number).and_then(Option::take) else {
            return;
        };
        self.free_open.push(number);
        let (sent, received) = moved(open.direction, &open.progress);
        if let Some(edge) = self.at(open.edge) {
            edge.totals.closed += 1;
            edge.totals.sent += sent;
            edge.totals.received += received;
            edge.last = now;
        }
    }

    /// Counts what was refused, or failed.
    pub(super) fn refused(&mut self, record: &Record, now: Instant) {
        let is_denied = record.failure.as_ref().is_some_and(|it| it.is_denied());
        let ends = Ends::of(&record.connection);
        let found = self.find(ends, MOST_IDLE, now);
        if let Some(edge) = found.and_then(|it| self.at(it)) {
            if is_denied {
                edge.refused += 1;
            } else {
                edge.totals.failed += 1;
            }
            edge.last_refusal = Some(record.clone());
        }
    }

    /// Takes over what the kernel has carried for a pair since it was asked last.
    pub(super) fn kernel(&mut self, pair: &Pair, grown: Totals, now: Instant) {
        if grown == Totals::default() {
            return;
        }
        let direction = match pair.carriage {
            Carriage::SameNode => Direction::Outbound,
            _ => pair.direction,
        };
        let workloads = [pair.source.as_ref(), pair.destination.as_ref()];
        let ends = Ends::between(direction, pair.carriage, workloads, None);
        let found = self.find(ends, MOST, now);
        if let Some(edge) = found.and_then(|it| self.at(it)) {
            edge.totals.add(grown);
        }
    }

    /// Lets edges go whose workloads are gone and that nobody has used for a while.
    pub(super) fn sweep(&mut self, snapshot: &Snapshot, now: Instant) {
        let is_here = |it: &WorkloadKey| snapshot.workload(it).is_some();
        for (number, slot) in self.counted.iter_mut().enumerate() {
            let is_gone = |it: &mut Counted| {
                let ends = [&it.ends.source, &it.ends.destination];
                ends.into_iter().flatten().any(|end| !is_here(end))
                    && it.totals.opened <= it.totals.closed
                    && now.saturating_duration_since(it.last) >= STAY
            };
            if let Some(gone) = slot.take_if(is_gone) {
                self.by_ends.remove(&gone.ends);
                self.free.push(number);
            }
        }
    }

    /// All edges, with the bytes of what is open; and how much was left out for want of a place.
    pub(super) fn read(&self) -> (Vec<Counted>, u64) {
        let mut edges = self.counted.clone();
        for open in self.open.iter().flatten() {
            let (sent, received) = moved(open.direction, &open.progress);
            if let Some(edge) = &mut edges[open.edge] {
                edge.totals.sent += sent;
                edge.totals.received += received;
            }
        }
        (edges.into_iter().flatten().collect(), self.left_out)
    }

    fn at(&mut self, edge: usize) -> Option<&mut Counted> {
        self.counted.get_mut(edge)?.as_mut()
    }

    /// The edge between these ends, made if there are fewer than `most`.
    fn find(&mut self, ends: Ends, most: usize, now: Instant) -> Option<usize> {
        if let Some(&number) = self.by_ends.get(&ends) {
            if let Some(edge) = self.at(number) {
                edge.last = now;
            }
            return Some(number);
        }
        if self.by_ends.len() >= most {
            self.left_out += 1;
            return None;
        }
        let edge = Some(Counted {
            ends: ends.clone(),
            totals: Totals::default(),
            refused: 0,
            last_refusal: None,
            last: now,
        });
        let number = self.free.pop().unwrap_or(self.counted.len());
        match self.counted.get_mut(number) {
            Some(slot) => *slot = edge,
            None => self.counted.push(edge),
        }
        self.by_ends.insert(ends, number);
        Some(number)
    }
}
