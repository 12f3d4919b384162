//! CORE: what is counted of connections, and for whom when the kernel counts.

use std::sync::Arc;

use super::connection::{Carriage, Flag};
use crate::model::{Key, Service, Snapshot, Workload, WorkloadKey};

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

impl Totals {
    /// What has come since; all of it if it has begun anew.
    pub(super) fn since(self, before: Self) -> Self {
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

    pub(super) fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.failed += other.failed;
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// Whom connections that the kernel carries are between.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The workload that opens them; none for what is no pod.
    pub source: Option<Arc<Workload>>,
    /// The workload they end at; none for what is no pod.
    pub destination: Option<Arc<Workload>>,
    /// The service that was asked for, where known.
    pub service: Option<Arc<Service>>,
    /// [`Carriage::SameNode`] or [`Carriage::Plain`].
    pub carriage: Carriage,
    /// Why those that never stood did not.
    pub failed: Flag,
}

#[derive(PartialEq, Eq, Hash)]
pub(super) struct PairKey {
    ends: [Option<WorkloadKey>; 2],
    service: Option<Key>,
    carriage: Carriage,
    failed: Flag,
}

impl PairKey {
    pub(super) fn of(pair: &Pair) -> Self {
        let key = |it: &Option<Arc<Workload>>| it.as_ref().map(|it| it.key.clone());
        Self {
            ends: [key(&pair.source), key(&pair.destination)],
            service: pair.service.as_ref().map(|it| it.key.clone()),
            carriage: pair.carriage,
            failed: pair.failed,
        }
    }

    /// Whether its workloads are all of a snapshot.
    pub(super) fn is_in(&self, snapshot: &Snapshot) -> bool {
        let mut ends = self.ends.iter().flatten();
        ends.all(|it| snapshot.workload(it).is_some())
    }
}
