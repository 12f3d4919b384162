//! CORE: what is counted of connections, and for whom when the kernel counts.

use std::net::IpAddr;
use std::sync::Arc;

use super::connection::{Carriage, Direction};
use crate::model::{Workload, WorkloadKey};

/// What is counted for a pair of workloads, be it by the kernel or the agent. Bytes are as the opener has it.
pub use crate::dataplane::Carried as Totals;

impl Totals {
    /// Becomes what it is now, and returns what has come since. Nothing falls: of a connection whose record was lost the
    /// kernel tells less for a while.
    pub(super) fn grow(&mut self, now: Self) -> Self {
        let grown = Self {
            opened: now.opened.saturating_sub(self.opened),
            closed: now.closed.saturating_sub(self.closed),
            failed: now.failed.saturating_sub(self.failed),
            sent: now.sent.saturating_sub(self.sent),
            received: now.received.saturating_sub(self.received),
            handshakes: now.handshakes.saturating_sub(self.handshakes),
        };
        self.add(grown);
        grown
    }

    /// What a handshake took on average, in microseconds; of what the kernel carries by itself.
    pub(super) fn handshake(&self) -> Option<u32> {
        let average = self.handshakes.checked_div(self.opened)?;
        u32::try_from(average).ok().filter(|it| *it > 0)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.failed += other.failed;
        self.sent += other.sent;
        self.received += other.received;
        self.handshakes += other.handshakes;
    }
}

/// Whom connections that the kernel carries are between.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Interface index of the pod of this node whose totals they are; a pod that comes has another.
    pub interface: u32,
    /// The other end's address; none of all that are no workloads.
    pub peer: Option<IpAddr>,
    /// Who opens them, where known.
    pub source: Option<Arc<Workload>>,
    /// Whom they are opened to, where known.
    pub destination: Option<Arc<Workload>>,
    /// [`Carriage::SameNode`] or [`Carriage::Plain`].
    pub carriage: Carriage,
    /// From which end the pod of the interface sees them.
    pub direction: Direction,
}

impl Pair {
    /// The pod whose totals they are.
    pub(super) fn pod(&self) -> Option<&Arc<Workload>> {
        match self.direction {
            Direction::Outbound => self.source.as_ref(),
            Direction::Inbound => self.destination.as_ref(),
        }
    }
}

/// What tells totals of the kernel apart.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct PairKey {
    interface: u32,
    peer: Option<IpAddr>,
    carriage: Carriage,
    direction: Direction,
}

impl From<&Pair> for PairKey {
    fn from(pair: &Pair) -> Self {
        Self {
            interface: pair.interface,
            peer: pair.peer,
            carriage: pair.carriage,
            direction: pair.direction,
        }
    }
}

/// What the kernel has told so far.
pub(super) struct Told {
    pub(super) pod: WorkloadKey,
    pub(super) totals: Totals,
}
