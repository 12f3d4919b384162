//! CORE: the agent's own metrics, `mesh_*`: what its parts count, and how they are doing when a scrape asks.

use std::sync::atomic::Ordering;

use k8s_openapi::jiff::Timestamp;
use mesh_common::verdict::{Hook, Outcome};

use super::connection::Direction;
use super::counters::{Counters, Otlp, Verb};
use super::page::{Kind, Page, labels};
use super::totals::{Pair, Totals};
use crate::cluster::Health;
use crate::cluster::health::SourceState;
use crate::model::Snapshot;
use crate::pki::{Issued, Report};
use crate::status::Map;

/// How the kernel's side is doing.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Packets by what became of them; also those that are zero, as Prometheus sees no growth in a series that appears.
    pub packets: Vec<(Hook, Outcome, u64)>,
    /// What it has carried by itself, in all; of pods that are gone, once.
    pub traffic: Vec<(Pair, Totals)>,
    /// The tables that can fill up.
    pub maps: Vec<Map>,
    /// Whether the kernel refused something and lags behind the world.
    pub is_behind: bool,
    /// How often it refused something.
    pub failures: u64,
}

/// How the agent's parts are doing.
pub struct State<'a> {
    /// The world.
    pub snapshot: &'a Snapshot,
    /// Where it comes from.
    pub health: &'a Health,
    /// The certificates of this node.
    pub certificates: &'a [Report],
    /// The kernel's side; none while the agent stops.
    pub measured: Option<&'a Measured>,
    /// Now, in seconds since 1970.
    pub now: u64,
}

/// Writes all of them.
pub(super) fn write(page: &mut Page, counters: &Counters, state: &State<'_>) {
    let version = env!("CARGO_PKG_VERSION");
    // Dashboards look for the part of Istio that this is in place of.
    let build = labels(&[("component", "ztunnel"), ("tag", version)]);
    page.family("istio_build", Kind::Gauge, "Istio component build info")
        .sample(&build, 1);
    let build = labels(&[("version", version)]);
    page.family("mesh_build", Kind::Gauge, "Version of the agent")
        .sample(&build, 1);
    write_tunnels(page, counters);
    write_counters(page, counters);
    let help = "When the last snapshot of the world was published";
    let published = counters.published.load(Ordering::Relaxed);
    page.single(
        "mesh_snapshot_timestamp_seconds",
        Kind::Gauge,
        help,
        published,
    );
    write_world(page, state);
    write_certificates(page, state.certificates);
    if let Some(measured) = state.measured {
        write_kernel(page, measured);
    }
}

fn write_tunnels(page: &mut Page, counters: &Counters) {
    let both = [Direction::Outbound, Direction::Inbound].map(|it| {
        let tunnels = counters.tunnels(it);
        (it.name(), tunnels, tunnels.stood.read().count)
    });
    let help = "Handshakes of tunnels, from the dial or the first byte on";
    let outcomes = both.iter().flat_map(|(direction, it, _)| {
        [("ok", &it.stood), ("failed", &it.failed)].map(|(outcome, histogram)| {
            let of = labels(&[("direction", direction), ("outcome", outcome)]);
            (of, histogram)
        })
    });
    page.histograms("mesh_tunnel_handshake_duration_seconds", help, outcomes);
    let mut family = page.family("mesh_tunnels_opened", Kind::Counter, "Tunnels that stood");
    for (direction, _, opened) in &both {
        family.sample(&labels(&[("direction", direction)]), opened);
    }
    let mut family = page.family(
        "mesh_tunnels_failed",
        Kind::Counter,
        "Tunnels that never stood",
    );
    for (direction, it, _) in &both {
        family.sample(&labels(&[("direction", direction)]), it.failed.read().count);
    }
    let mut family = page.family("mesh_tunnels_open", Kind::Gauge, "Tunnels that stand");
    for (direction, it, opened) in &both {
        let open = opened.saturating_sub(it.ended.load(Ordering::Relaxed));
        family.sample(&labels(&[("direction", direction)]), open);
    }
}

fn write_counters(page: &mut Page, counters: &Counters) {
    let all = [
        (
            "mesh_connections_revoked",
            "Connections that were ended because policy no longer allows them",
            &counters.revoked,
        ),
        (
            "mesh_connections_exhausted",
            "Connections that were refused because their source or all have too many",
            &counters.exhausted,
        ),
        (
            "mesh_refusals_suppressed",
            "Refusals without a line in the log",
            &counters.suppressed,
        ),
        (
            "mesh_connections_unlogged",
            "Connections without a line in the log, because too many came at once",
            &counters.unlogged,
        ),
    ];
    for (name, help, counter) in all {
        page.single(name, Kind::Counter, help, counter.load(Ordering::Relaxed));
    }
    write_otlp(page, &counters.otlp);
    let help = "Time from a snapshot until the kernel has followed it";
    page.histograms(
        "mesh_update_duration_seconds",
        help,
        [(String::new(), &counters.update)],
    );
    let calls = Verb::ALL
        .iter()
        .zip(&counters.cni)
        .flat_map(|(verb, calls)| {
            [("ok", &calls.done), ("failed", &calls.failed)].map(|(outcome, histogram)| {
                (
                    labels(&[("verb", verb.name()), ("outcome", outcome)]),
                    histogram,
                )
            })
        });
    let help = "Calls of the CNI plugin, as long as the agent had to do with them";
    page.histograms("mesh_cni_call_duration_seconds", help, calls);
}

fn write_otlp(page: &mut Page, otlp: &Otlp) {
    let signals = [("spans", &otlp.spans), ("logs", &otlp.logs)];
    let mut family = page.family(
        "mesh_otlp_exported",
        Kind::Counter,
        "Spans and log records that the collector has taken",
    );
    for (signal, told) in signals {
        let exported = told.exported.load(Ordering::Relaxed);
        family.sample(&labels(&[("signal", signal)]), exported);
    }
    let help = "Spans and log records that were not told: too many waited, or the collector did not take them";
    let mut family = page.family("mesh_otlp_lost", Kind::Counter, help);
    for (signal, told) in signals {
        let lost = told.lost.load(Ordering::Relaxed);
        family.sample(&labels(&[("signal", signal)]), lost);
    }
    let help = "Calls that the collector did not answer, or refused";
    let failed = otlp.failed.load(Ordering::Relaxed);
    page.single("mesh_otlp_failed", Kind::Counter, help, failed);
}

fn write_world(page: &mut Page, state: &State<'_>) {
    let State {
        snapshot,
        health,
        now,
        ..
    } = state;
    let help = "Revision of the snapshot of the world";
    page.single(
        "mesh_snapshot_revision",
        Kind::Gauge,
        help,
        snapshot.revision(),
    );
    let help = "Whether the source has told all it knew when it started";
    let synced = u8::from(snapshot.is_synced());
    page.single("mesh_snapshot_synced", Kind::Gauge, help, synced);
    let node = &snapshot.settings().node;
    let wired = || snapshot.workloads_on(node).filter(|it| it.is_local());
    let pods = [
        ("wired", wired().count()),
        ("enrolled", wired().filter(|it| it.enrolled).count()),
    ];
    let mut family = page.family("mesh_pods", Kind::Gauge, "Pods of this node");
    for (state, count) in pods {
        family.sample(&labels(&[("state", state)]), count);
    }
    let help = "State of the source of the world; the one it is in is 1";
    let mut family = page.family("mesh_source_state", Kind::Gauge, help);
    for (name, is_in) in [
        ("starting", health.state == SourceState::Starting),
        ("live", health.state == SourceState::Live),
        ("stale", health.state == SourceState::Stale),
    ] {
        let of = labels(&[("source", &health.source), ("state", name)]);
        family.sample(&of, u8::from(is_in));
    }
    let instants = [
        (
            "mesh_source_lag_seconds",
            "Time since what the source told was last known to be how things are",
            health.as_of,
        ),
        (
            "mesh_source_last_event_age_seconds",
            "Time since the source last told something",
            health.last_event,
        ),
    ];
    for (name, help, at) in instants {
        if let Some(at) = at {
            page.single(name, Kind::Gauge, help, now.saturating_sub(at));
        }
    }
    let help = "Objects of the source that cannot be understood";
    page.single("mesh_source_left_out", Kind::Gauge, help, health.left_out);
}

/// Name, help, and which instant of a certificate it is.
type Instant = (&'static str, &'static str, fn(&Issued) -> &str);

fn write_certificates(page: &mut Page, certificates: &[Report]) {
    let of = |it: &Report| labels(&[("identity", &it.identity)]);
    let instants: [Instant; 2] = [
        (
            "mesh_certificate_expiry_timestamp_seconds",
            "End of the validity of an identity's certificate",
            |it| &it.not_after,
        ),
        (
            "mesh_certificate_issued_timestamp_seconds",
            "Start of the validity of an identity's certificate",
            |it| &it.not_before,
        ),
    ];
    for (name, help, instant) in instants {
        let mut family = page.family(name, Kind::Gauge, help);
        for it in certificates {
            let at = it.certificate.as_ref().map(instant);
            if let Some(Ok(at)) = at.map(str::parse::<Timestamp>) {
                family.sample(&of(it), at.as_second());
            }
        }
    }
    let help = "Certificates that were issued for an identity";
    let mut family = page.family("mesh_certificate_issued", Kind::Counter, help);
    for it in certificates {
        family.sample(&of(it), it.issued);
    }
    let help = "Whether the last request for an identity's certificate failed";
    let mut family = page.family("mesh_certificate_failing", Kind::Gauge, help);
    for it in certificates {
        family.sample(&of(it), u8::from(it.last_error.is_some()));
    }
}

fn write_kernel(page: &mut Page, it: &Measured) {
    let drops = it
        .packets
        .iter()
        .filter(|(_, outcome, _)| outcome.is_drop());
    let help = "Packets that the kernel refused";
    let mut family = page.family("mesh_drops", Kind::Counter, help);
    for (hook, outcome, count) in drops {
        family.sample(
            &labels(&[("hook", hook.name()), ("reason", outcome.name())]),
            count,
        );
    }
    let passed = it
        .packets
        .iter()
        .filter(|(_, outcome, _)| !outcome.is_drop());
    let help = "Packets that the kernel let through, by what it did with them";
    let mut family = page.family("mesh_packets", Kind::Counter, help);
    for (hook, outcome, count) in passed {
        family.sample(
            &labels(&[("hook", hook.name()), ("outcome", outcome.name())]),
            count,
        );
    }
    let mut family = page.family("mesh_map_entries", Kind::Gauge, "Entries of a kernel map");
    for map in &it.maps {
        family.sample(&labels(&[("map", &map.name)]), map.held);
    }
    let help = "Entries that a kernel map has room for";
    let mut family = page.family("mesh_map_max_entries", Kind::Gauge, help);
    for map in it.maps.iter().filter(|it| it.room > 0) {
        family.sample(&labels(&[("map", &map.name)]), map.room);
    }
    let help = "Whether the kernel is behind the world";
    page.single(
        "mesh_kernel_behind",
        Kind::Gauge,
        help,
        u8::from(it.is_behind),
    );
    let help = "Writes that the kernel refused";
    page.single("mesh_kernel_failures", Kind::Counter, help, it.failures);
}
