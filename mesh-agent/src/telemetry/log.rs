//! EDGE: the access log: one line a connection at each end, with the fields that ambient users know, and one for each packet
//! that the kernel refused.
//!
//! A task of its own reads the ring and writes; what it does not get to in time is counted and told. Lines of refusals
//! are limited in rate: whoever causes them does not get to fill the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_common::verdict::{Hook, Outcome};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Level, event, info};

use super::Telemetry;
use super::connection::{Carriage, Connection, Event, Failure, Record};
use super::labels::host;
use super::otlp::Exports;
use crate::clock;
use crate::model::{Service, Snapshot, Workload};

/// Lines of refusals of each kind written in a [`PERIOD`].
const LINES: u32 = 50;
const PERIOD: Duration = Duration::from_secs(1);
/// How long records may wait for more, so that not each of them wakes the writer.
const PAUSE: Duration = Duration::from_millis(10);
/// Periods after which series of workloads that are gone are looked for.
const SWEEP: u32 = 60;

/// Which connections the access log tells of. Refusals are always told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Whether it tells of any.
    pub on: bool,
    /// Only of those with a pod of one of these namespaces at an end; none for all.
    pub namespaces: Option<Vec<String>>,
    /// Of one in so many; at least 1.
    pub sample: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            on: true,
            namespaces: None,
            sample: 1,
        }
    }
}

impl Filter {
    /// One line to read.
    pub fn line(&self) -> String {
        let of = match &self.namespaces {
            _ if !self.on => return "refusals alone\n".to_owned(),
            None => "of all namespaces".to_owned(),
            Some(names) => format!("of {}", names.join(", ")),
        };
        match self.sample {
            1 => format!("every connection {of}, and refusals\n"),
            sample => format!("one in {sample} connections {of}, and refusals\n"),
        }
    }

    /// Whether a connection that was not refused is told; `number` is how many were before it.
    fn wants(&self, it: &Connection, number: u64) -> bool {
        let of_namespace = |namespaces: &Vec<String>| {
            let ends = [&it.source_workload, &it.destination_workload];
            let keys = ends.into_iter().filter_map(|it| it.as_ref()?.pod_key());
            keys.into_iter()
                .any(|key| namespaces.iter().any(|it| **it == *key.namespace))
        };
        self.on
            && number.is_multiple_of(self.sample.max(1).into())
            && self.namespaces.as_ref().is_none_or(of_namespace)
    }
}

/// Whether lines of connections that open would be written.
pub(super) fn tells_opened() -> bool {
    tracing::enabled!(target: "access", Level::DEBUG)
}

impl Telemetry {
    /// Writes the access log until `stopped`, and what there is then, and hands to `exports` what a collector is told; also
    /// lets go of what is counted for nobody.
    pub async fn run(self: Arc<Self>, exports: Option<Exports>, stopped: CancellationToken) {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut writer = Writer {
            exports,
            ..Writer::default()
        };
        let mut periods = 0;
        loop {
            tokio::select! {
                () = stopped.cancelled() => {
                    writer.write_news(&self);
                    writer.end_period(&self);
                    return;
                }
                () = self.news.notified() => {
                    writer.write_news(&self);
                    sleep(PAUSE).await;
                }
                _ = period.tick() => {
                    writer.end_period(&self);
                    periods += 1;
                    if periods % SWEEP == 0 {
                        self.sweep(clock::now());
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Writer {
    /// The number of the next record.
    next: u64,
    /// Connections that were not refused.
    passed: u64,
    /// Lines of refusals in this period: of connections, and of packets, neither of which may hide the other.
    written: [u32; 2],
    suppressed: u64,
    lost: u64,
    exports: Option<Exports>,
}

impl Writer {
    fn write_news(&mut self, telemetry: &Telemetry) {
        let read = telemetry.lock_ring().since(self.next);
        self.next = read.next;
        self.lost += read.lost;
        let snapshot = telemetry.world.borrow().clone();
        let filter = telemetry.log_filter();
        for record in &read.records {
            if record.event == Event::Refused {
                self.refused(record, &snapshot);
            } else {
                let wanted = filter.wants(&record.connection, self.passed);
                self.passed += u64::from(record.event == Event::Closed);
                if wanted {
                    write(record, &snapshot);
                }
                if let Some(exports) = &self.exports {
                    exports.closed(record);
                }
            }
        }
    }

    fn refused(&mut self, record: &Record, snapshot: &Snapshot) {
        if record.failure.as_ref().is_some_and(|it| it.is_early) {
            return;
        }
        let failure = record.failure.as_deref();
        let packet = failure.and_then(|it| Some((it, it.hook?)));
        let written = &mut self.written[usize::from(packet.is_some())];
        if *written == LINES {
            self.suppressed += 1;
            return;
        }
        *written += 1;
        if let Some(exports) = &self.exports {
            exports.refused(record);
        }
        match packet {
            Some((failure, (hook, outcome))) => write_packet(record, failure, hook, outcome),
            None => write(record, snapshot),
        }
    }

    fn end_period(&mut self, telemetry: &Telemetry) {
        let counters = &telemetry.counters;
        if self.suppressed > 0 {
            info!(target: "refused", suppressed = self.suppressed, "refusals not told one by one");
            counters
                .suppressed
                .fetch_add(self.suppressed, Ordering::Relaxed);
        }
        if self.lost > 0 {
            info!(target: "access", lost = self.lost, "connections not told: too many to write");
            counters.unlogged.fetch_add(self.lost, Ordering::Relaxed);
        }
        (self.written, self.suppressed, self.lost) = ([0; 2], 0, 0);
    }
}

/// A line of Istio's fields.
macro_rules! line {
    ($level:expr, $record:expr, $service:expr, $message:literal) => {{
        let it = &*$record.connection;
        event!(
            target: "access",
            $level,
            src.addr = %it.source,
            src.workload = name(it.source_workload.as_deref()),
            src.namespace = namespace(it.source_workload.as_deref()),
            src.identity = it.source_identity.as_ref().map(tracing::field::display),
            dst.addr = %it.destination,
            dst.hbone_addr = it.hbone.map(tracing::field::display),
            dst.service = $service,
            dst.workload = name(it.destination_workload.as_deref()),
            dst.namespace = namespace(it.destination_workload.as_deref()),
            dst.identity = it.destination_identity.as_ref().map(tracing::field::display),
            direction = it.direction.name(),
            bytes_sent = $record.received,
            bytes_recv = $record.sent,
            duration = format!("{}ms", $record.duration.as_millis()),
            policy = $record.failure.as_ref().and_then(|it| it.policy()).map(tracing::field::display),
            error = $record.failure.as_ref().map(ToString::to_string),
            $message
        );
    }};
}

/// As ztunnel does: bytes are those of the response and of the request, and what failed before anything was decided
/// has a message of its own.
fn write(record: &Record, snapshot: &Snapshot) {
    let service = record.connection.service.as_deref();
    let service = service.map(|it: &Service| host(snapshot, it));
    let is_decided = record.connection.carriage != Carriage::Undecided;
    match (record.event, &record.failure) {
        (Event::Opened, _) => line!(Level::DEBUG, record, service, "connection opened"),
        (_, None) => line!(Level::INFO, record, service, "connection complete"),
        (Event::Refused, _) if !is_decided => {
            line!(Level::WARN, record, service, "connection failed");
        }
        (_, Some(_)) => line!(Level::ERROR, record, service, "connection complete"),
    }
}

/// A packet that the kernel refused.
fn write_packet(record: &Record, failure: &Failure, hook: Hook, outcome: Outcome) {
    let it = &*record.connection;
    let verdict = failure.verdict.as_ref();
    let whose = |it: &Option<Arc<Workload>>| it.as_ref().map(|it| it.key.to_string());
    event!(
        target: "refused",
        Level::INFO,
        hook = hook.name(),
        reason = outcome.name(),
        direction = verdict.map(|(direction, _)| tracing::field::debug(direction)),
        policy = verdict.map(|(_, verdict)| tracing::field::display(verdict)),
        src.addr = %it.source,
        src.workload = whose(&it.source_workload).map(tracing::field::display),
        src.identity = it.source_identity.as_ref().map(ToString::to_string),
        dst.addr = %it.destination,
        dst.workload = whose(&it.destination_workload).map(tracing::field::display),
        dst.identity = it.destination_identity.as_ref().map(ToString::to_string),
        protocol = ?it.protocol,
        "refused"
    );
}

fn name(workload: Option<&Workload>) -> Option<&str> {
    workload?.pod_key().map(|key| &*key.name)
}

fn namespace(workload: Option<&Workload>) -> Option<&str> {
    workload?.pod_key().map(|key| &*key.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{ip, namespace, pod, told, world};
    use crate::telemetry::Direction;

    #[test]
    fn a_filter_names_namespaces_and_a_share() {
        let snapshot = world([
            namespace("shop", &[]),
            told(pod("shop", "a", &["10.0.0.1"])),
            told(pod("bank", "b", &["10.0.0.2"])),
        ]);
        let address = |text| std::net::SocketAddr::new(ip(text), 80);
        let connection = |from, to| {
            let new = Connection::new(
                Direction::Outbound,
                address(from),
                address(to),
                clock::now(),
            );
            new.known_to(&snapshot)
        };
        let (there, within) = (
            connection("10.0.0.1", "10.0.0.2"),
            connection("10.0.0.1", "10.0.0.1"),
        );
        let of = |names: &[&str]| Filter {
            namespaces: Some(names.iter().map(ToString::to_string).collect()),
            ..Filter::default()
        };
        assert!(Filter::default().wants(&there, 7));
        assert!(of(&["bank"]).wants(&there, 0) && !of(&["bank"]).wants(&within, 0));
        assert!(!of(&[]).wants(&there, 0));
        let sampled = Filter {
            sample: 3,
            ..Filter::default()
        };
        let told = (0..9).filter(|it| sampled.wants(&there, *it)).count();
        assert_eq!(told, 3);
        let off = Filter {
            on: false,
            ..Filter::default()
        };
        assert!(!off.wants(&there, 0));
    }
}
