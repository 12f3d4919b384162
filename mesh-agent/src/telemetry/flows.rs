//! CORE: records as people and programs read them: `mesh-agent flows`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use mesh_common::verdict::Hook;
use serde::{Deserialize, Serialize};

use super::connection::{Direction, Event, Record};
use super::labels::host;
use crate::model::{Identity, Key, Snapshot, Workload};

/// Which flows are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Only those with this pod at one end: `(namespace, name)`.
    pub pod: Option<(String, String)>,
    /// Only those with a pod of this namespace at one end.
    pub namespace: Option<String>,
    /// Only those that were refused, or ended because they are no longer allowed.
    pub denied: bool,
    /// Also the moment in which a connection opens; told only while somebody follows.
    pub opened: bool,
}

impl Filter {
    /// Whether a record is asked for.
    pub(super) fn wants(&self, it: &Record) -> bool {
        let is_denied = || it.failure.as_ref().is_some_and(|it| it.is_denied());
        let ends = || {
            let Connection {
                source_workload,
                destination_workload,
                ..
            } = &*it.connection;
            [source_workload, destination_workload]
                .into_iter()
                .filter_map(|it| it.as_ref()?.pod_key())
        };
        let is_pod = |(namespace, name): &(String, String), key: &Key| {
            *key.namespace == **namespace && *key.name == **name
        };
        (self.opened || it.event != Event::Opened)
            && (!self.denied || it.event == Event::Refused || is_denied())
            && self
                .pod
                .as_ref()
                .is_none_or(|pod| ends().any(|key| is_pod(pod, key)))
            && self
                .namespace
                .as_ref()
                .is_none_or(|it| ends().any(|key| *key.namespace == **it))
    }
}

use super::connection::Connection;

/// An answer to somebody who asks for flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// In the order of their ends.
    pub flows: Vec<Flow>,
    /// What to ask with for those that come after these.
    pub next: Since,
    /// Records, wanted or not, that were replaced by later ones before they were asked for.
    pub lost: u64,
}

/// How far somebody was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// The number of the next record.
    pub number: u64,
    /// The moment up to which the kernel's connections were told, in microseconds that wrap around.
    pub kernel: Option<u32>,
}

/// One moment of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// When (RFC 3339, in UTC, milliseconds).
    pub time: String,
    /// `opened`, `closed` or `refused`.
    pub event: String,
    /// From which end this node sees it: `outbound` or `inbound`.
    pub direction: String,
    /// What it speaks, such as `tcp`.
    pub protocol: String,
    /// Who opened it.
    pub source: Party,
    /// Where it was opened to; of a service the workload is that of the endpoint.
    pub destination: Party,
    /// What the tunnel leads to, where there is one.
    pub hbone: Option<SocketAddr>,
    /// The service that was asked for.
    pub service: Option<String>,
    /// Bytes from the opener.
    pub sent: u64,
    /// Bytes to the opener.
    pub received: u64,
    /// Milliseconds since it was seen first.
    pub duration_ms: u64,
    /// `tunnel`, `same_node`, `plain`, or `unknown` if it did not get that far.
    pub carriage: String,
    /// `allowed`, `denied`, or `failed` if something was in its way.
    pub verdict: String,
    /// Istio's response flag; `-` for none.
    pub flag: String,
    /// Why it was not, or what broke it.
    pub reason: Option<String>,
    /// The policy that denied it: kind, namespace and name.
    pub policy: Option<String>,
    /// The hook of the kernel that refused it.
    pub hook: Option<String>,
}

/// An end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Address and port.
    pub address: SocketAddr,
    /// `namespace/pod`, or the interface of what is no pod.
    pub workload: Option<String>,
    /// Its SPIFFE id.
    pub identity: Option<String>,
}

impl Party {
    fn of(
        address: SocketAddr,
        workload: Option<&Arc<Workload>>,
        identity: Option<&Identity>,
    ) -> Self {
        Self {
            address,
            workload: workload.map(|it| it.key.to_string()),
            identity: identity.map(ToString::to_string),
        }
    }
}

impl Flow {
    /// A record in words; the snapshot knows the cluster's domain.
    pub(super) fn of(record: &Record, snapshot: &Snapshot) -> Self {
        let it = &*record.connection;
        let failure = record.failure.as_deref();
        let source = Party::of(
            it.source,
            it.source_workload.as_ref(),
            it.source_identity.as_ref(),
        );
        let destination = Party::of(
            it.destination,
            it.destination_workload.as_ref(),
            it.destination_identity.as_ref(),
        );
        let hook = failure.and_then(|it| it.hook).map(|(hook, _)| hook);
        Self {
            time: time(record),
            event: record.event.name().to_owned(),
            direction: it.direction.name().to_owned(),
            protocol: record.protocol(),
            source,
            destination,
            hbone: it.hbone,
            service: it.service.as_ref().map(|it| host(snapshot, it)),
            sent: record.sent,
            received: record.received,
            duration_ms: u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
            carriage: it.carriage.name().to_owned(),
            verdict: record.verdict().to_owned(),
            flag: failure.map_or("-", |it| it.flag.name()).to_owned(),
            reason: failure.map(ToString::to_string),
            policy: failure.and_then(|it| it.policy()).map(ToString::to_string),
            hook: hook.map(Hook::name).map(ToOwned::to_owned),
        }
    }

    /// One line to read.
    pub fn line(&self) -> String {
        let end = |it: &Party, address: SocketAddr| match &it.workload {
            Some(workload) => format!("{workload} {address}"),
            None => address.to_string(),
        };
        // What comes in by a tunnel was opened to the tunnel's own port.
        let inner = self
            .hbone
            .filter(|_| self.direction == Direction::Inbound.name());
        let destination = inner.unwrap_or(self.destination.address);
        let mut text = format!(
            "{} {:<8} {:<7} {:<9} {} -> {}",
            self.time,
            self.direction,
            self.event,
            self.carriage,
            end(&self.source, self.source.address),
            end(&self.destination, destination),
        );
        // Writing to a string cannot fail.
        if let Some(service) = &self.service {
            let _ = write!(text, " ({service})");
        }
        if self.event == "closed" {
            let (sent, received, took) = (self.sent, self.received, self.duration_ms);
            let _ = write!(text, " {sent} B out, {received} B back, {took} ms");
        }
        if let Some(reason) = &self.reason {
            let _ = write!(text, " {}: {reason}", self.verdict.to_uppercase());
        }
        if let Some(policy) = self.policy.as_ref().filter(|it| {
            let told = self.reason.as_ref();
            !told.is_some_and(|reason| reason.contains(&***it))
        }) {
            let _ = write!(text, " ({policy})");
        }
        if let Some(hook) = &self.hook {
            let _ = write!(text, " [kernel, {hook}]");
        }
        text + "\n"
    }
}

fn time(record: &Record) -> String {
    let at = record.at.duration_since(std::time::SystemTime::UNIX_EPOCH);
    let milliseconds = at.ok().and_then(|it| i64::try_from(it.as_millis()).ok());
    let at = milliseconds.and_then(|it| Timestamp::from_millisecond(it).ok());
    at.map(|it| format!("{it:.3}")).unwrap_or_default()
}
