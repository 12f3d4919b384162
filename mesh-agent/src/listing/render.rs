//! Lists as text, a line each.

use std::fmt::Display;

use super::columns::columns;
use super::{Services, Tunnels, Workloads};
use crate::pki::Report;

/// Workloads as text.
pub fn workloads(list: &Workloads) -> String {
    let header = [
        "NAMESPACE",
        "NAME",
        "ADDRESSES",
        "NODE",
        "PROTOCOL",
        "WIRED",
        "STRICT",
        "IDENTITY",
        "NOT ENROLLED",
    ];
    let row = |it: &super::Workload| {
        [
            it.namespace.clone(),
            it.name.clone(),
            joined(&it.addresses),
            it.node.clone().unwrap_or_default(),
            it.protocol.clone(),
            yes(it.wired),
            yes(it.strict),
            it.identity.clone().unwrap_or_default(),
            it.not_enrolled.clone().unwrap_or_default(),
        ]
    };
    columns(header, list.workloads.iter().map(row).collect())
}

/// Services as text.
pub fn services(list: &Services) -> String {
    let header = [
        "NAMESPACE",
        "NAME",
        "ADDRESSES",
        "PORTS",
        "READY",
        "HOSTNAME",
    ];
    let row = |it: &super::Service| {
        [
            it.namespace.clone(),
            it.name.clone(),
            joined(&it.addresses),
            it.ports.join(","),
            format!("{}/{}", it.ready, it.endpoints),
            it.hostname.clone(),
        ]
    };
    columns(header, list.services.iter().map(row).collect())
}

/// Tunnels as text.
pub fn tunnels(list: &Tunnels) -> String {
    let header = [
        "DIRECTION",
        "LOCAL",
        "REMOTE",
        "STREAMS",
        "AGE",
        "LOCAL IDENTITY",
        "REMOTE IDENTITY",
    ];
    let row = |it: &super::Tunnel| {
        [
            it.direction.clone(),
            it.local.to_string(),
            it.remote.to_string(),
            it.streams.to_string(),
            age(it.age),
            it.local_identity.clone(),
            it.remote_identity.clone(),
        ]
    };
    columns(header, list.tunnels.iter().map(row).collect())
}

/// Certificates as text.
pub fn certificates(list: &[Report]) -> String {
    let header = [
        "IDENTITY",
        "SERIAL",
        "VALID FROM",
        "VALID UNTIL",
        "NEXT REQUEST",
        "CHAIN",
        "ROOTS",
        "LAST ERROR",
    ];
    let row = |it: &Report| {
        let of = |pick: fn(&crate::pki::Issued) -> String| {
            it.certificate.as_ref().map(pick).unwrap_or_default()
        };
        [
            it.identity.clone(),
            of(|it| it.serial.clone()),
            of(|it| it.not_before.clone()),
            of(|it| it.not_after.clone()),
            it.next_request
                .clone()
                .unwrap_or_else(|| "under way".to_owned()),
            of(|it| it.chain.len().to_string()),
            of(|it| it.trusted.len().to_string()),
            it.last_error.clone().unwrap_or_default(),
        ]
    };
    columns(header, list.iter().map(row).collect())
}

fn joined(list: &[impl Display]) -> String {
    let words: Vec<_> = list.iter().map(ToString::to_string).collect();
    words.join(",")
}

fn yes(it: bool) -> String {
    if it { "yes" } else { "no" }.to_owned()
}

/// The two largest units.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        (_, _, _) => format!("{days}d{}h", hours % 24),
    }
}
