//! CORE: what the agent's parts count where it happens.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::connection::Direction;
use super::histogram::Histogram;

/// Events that the agent's parts count where they happen.
#[derive(Debug, Default)]
pub struct Counters {
    /// From a snapshot's publication until the kernel has followed it.
    pub update: Histogram,
    /// When the last snapshot was published, in seconds since 1970; 0 before there was one.
    pub published: AtomicU64,
    /// Tunnels to peers.
    pub outbound: Tunnels,
    /// Tunnels from peers.
    pub inbound: Tunnels,
    /// Calls of the CNI plugin.
    pub cni: [Calls; Verb::ALL.len()],
    /// Connections that were ended because policy no longer allows them.
    pub revoked: AtomicU64,
    /// Connections that were refused because there was no place for them.
    pub exhausted: AtomicU64,
    /// Refusals without a line in the log.
    pub suppressed: AtomicU64,
    /// Connections without a line in the log, because too many came at once.
    pub unlogged: AtomicU64,
    /// What a collector was told.
    pub otlp: Otlp,
}

/// What is counted of telling a collector.
#[derive(Debug, Default)]
pub struct Otlp {
    /// Spans.
    pub spans: Signal,
    /// Log records.
    pub logs: Signal,
    /// Calls that the collector did not answer, or refused.
    pub failed: AtomicU64,
}

/// What became of spans, or of log records.
#[derive(Debug, Default)]
pub struct Signal {
    /// Taken by the collector.
    pub exported: AtomicU64,
    /// Not told: too many waited, or the collector did not take them.
    pub lost: AtomicU64,
}

/// What is counted of tunnels.
#[derive(Debug, Default)]
pub struct Tunnels {
    /// Handshakes that led to a tunnel: as many tunnels stood.
    pub stood: Histogram,
    /// Handshakes that led to none, from the dial on.
    pub failed: Histogram,
    /// Tunnels that stood and have ended.
    pub ended: AtomicU64,
}

/// What is counted of one kind of CNI calls.
#[derive(Debug, Default)]
pub struct Calls {
    /// Answered as asked.
    pub done: Histogram,
    /// Refused, or broken off.
    pub failed: Histogram,
}

/// A kind of CNI calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// ADD.
    Add,
    /// DEL.
    Del,
    /// CHECK.
    Check,
    /// GC.
    Gc,
    /// STATUS.
    Status,
}

impl Verb {
    pub(super) const ALL: [Self; 5] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

impl Counters {
    /// Tunnels of a direction.
    pub fn tunnels(&self, direction: Direction) -> &Tunnels {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }

    /// Counts a CNI call.
    pub fn called(&self, verb: Verb, is_done: bool, took: Duration) {
        let calls = &self.cni[verb as usize];
        let which = if is_done { &calls.done } else { &calls.failed };
        which.observe(took);
    }
}

impl Tunnels {
    /// Counts a handshake.
    pub fn shaken(&self, is_stood: bool, took: Duration) {
        let which = if is_stood { &self.stood } else { &self.failed };
        which.observe(took);
    }
}
