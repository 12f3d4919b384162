//! CORE: records as spans and log records, with the attributes of OpenTelemetry's semantic conventions where there are some.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use super::super::connection::{Direction, Event, Failure, Record};
use super::super::labels::host;
use super::wire::{
    self, AnyValue, Item, KeyValue, LogRecord, Severity, SpanKind, StatusCode, Value,
};
use crate::model::{Identity, Pod, Snapshot, Workload};
use crate::trace_context::Span;

/// Who tells.
#[derive(Clone, Debug)]
pub struct Resource {
    /// The node's name.
    pub node: String,
    /// The cluster's name.
    pub cluster: String,
}

impl Resource {
    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        let mut all = Attributes::default();
        all.text("service.name", SCOPE);
        all.text("service.version", VERSION);
        all.text("k8s.node.name", &self.node);
        all.text("k8s.cluster.name", &self.cluster);
        all.0
    }
}

/// A request that tells of some spans or log records.
pub(super) fn request<T: Item>(resource: &Resource, items: Vec<T>) -> wire::Request<T> {
    let scope = wire::Scope {
        name: SCOPE.to_owned(),
        version: VERSION.to_owned(),
    };
    let resource = wire::Resource {
        attributes: resource.attributes(),
    };
    wire::Request {
        of_resources: vec![wire::OfResource {
            resource: Some(resource),
            of_scopes: vec![wire::OfScope {
                scope: Some(scope),
                items,
            }],
        }],
    }
}

/// A connection that has ended or was refused: its span if it is among those that are told, and its log record.
pub(super) fn told(record: &Record, snapshot: &Snapshot) -> (Option<wire::Span>, LogRecord) {
    let attributes = attributes(record, snapshot);
    let part = record.connection.span.as_deref();
    let sampled = part.filter(|it| it.is_sampled);
    let span = sampled.map(|it| span(it, record, attributes.clone()));
    (span, log(part, record, attributes))
}

fn span(it: &Span, record: &Record, attributes: Vec<KeyValue>) -> wire::Span {
    let (name, kind) = match record.connection.direction {
        Direction::Outbound => ("mesh outbound", SpanKind::Client),
        Direction::Inbound => ("mesh inbound", SpanKind::Server),
    };
    let remote = it.parent.map_or(0, |_| wire::IS_REMOTE);
    let began = record.at.checked_sub(record.duration);
    wire::Span {
        trace: it.trace.to_vec(),
        id: it.id.to_vec(),
        state: state(it),
        parent: it.parent.map(Vec::from).unwrap_or_default(),
        flags: flags(it) | wire::HAS_IS_REMOTE | remote,
        name: name.to_owned(),
        kind: kind.into(),
        start: nanoseconds(began.unwrap_or(record.at)),
        end: nanoseconds(record.at),
        attributes,
        status: record.failure.as_deref().map(|failure| wire::Status {
            message: failure.to_string(),
            code: StatusCode::Error.into(),
        }),
    }
}

fn log(part: Option<&Span>, record: &Record, attributes: Vec<KeyValue>) -> LogRecord {
    let (severity, severity_text) = match record.failure.as_deref() {
        None => (Severity::Info, "INFO"),
        Some(failure) if failure.is_denied() => (Severity::Warn, "WARN"),
        Some(_) => (Severity::Error, "ERROR"),
    };
    let (event_name, body) = match record.event {
        Event::Opened => ("mesh.connection.opened", "connection opened"),
        Event::Closed => ("mesh.connection.closed", "connection complete"),
        Event::Refused => ("mesh.connection.refused", "connection refused"),
    };
    let mut attributes = Attributes(attributes);
    let duration = i64::try_from(record.duration.as_millis());
    attributes.number("mesh.duration_ms", duration.unwrap_or(i64::MAX));
    LogRecord {
        time: nanoseconds(record.at),
        observed: nanoseconds(record.at),
        severity: severity.into(),
        severity_text: severity_text.to_owned(),
        body: Some(text(body)),
        attributes: attributes.0,
        flags: part.map_or(0, flags),
        trace: part.map(|it| it.trace.to_vec()).unwrap_or_default(),
        span: part.map(|it| it.id.to_vec()).unwrap_or_default(),
        event_name: event_name.to_owned(),
    }
}

fn attributes(record: &Record, snapshot: &Snapshot) -> Vec<KeyValue> {
    let it = &*record.connection;
    let mut all = Attributes::default();
    all.text("network.transport", &record.protocol());
    let family = if it.source.is_ipv4() { "ipv4" } else { "ipv6" };
    all.text("network.type", family);
    all.socket(["source.address", "source.port"], it.source);
    all.socket(["destination.address", "destination.port"], it.destination);
    let service = it.service.as_deref().map(|it| host(snapshot, it));
    let server = service.clone();
    let server = server.unwrap_or_else(|| it.destination.ip().to_string());
    all.text("server.address", &server);
    all.port("server.port", it.destination.port());
    if let Some(endpoint) = it.hbone {
        all.socket(["network.peer.address", "network.peer.port"], endpoint);
    }
    let (source, destination) = (&it.source_workload, &it.destination_workload);
    all.end(&SOURCE, source.as_deref(), it.source_identity.as_ref());
    let identity = it.destination_identity.as_ref();
    all.end(&DESTINATION, destination.as_deref(), identity);
    all.known("mesh.service", service.as_ref());
    all.text("mesh.direction", it.direction.name());
    all.text("mesh.carriage", it.carriage.name());
    all.bytes("mesh.bytes.sent", record.sent);
    all.bytes("mesh.bytes.received", record.received);
    all.text("mesh.verdict", record.verdict());
    if let Some(failure) = record.failure.as_deref() {
        all.failure(failure);
    }
    all.0
}

/// Names of an end's attributes, in the order of [`Attributes::end`].
type Names = [&'static str; 4];

const SOURCE: Names = [
    "source.k8s.namespace.name",
    "source.k8s.pod.name",
    "mesh.source.workload",
    "mesh.source.identity",
];

const DESTINATION: Names = [
    "destination.k8s.namespace.name",
    "destination.k8s.pod.name",
    "mesh.destination.workload",
    "mesh.destination.identity",
];

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &str, value: AnyValue) {
        self.0.push(KeyValue {
            key: key.to_owned(),
            value: Some(value),
        });
    }

    fn text(&mut self, key: &str, value: &str) {
        self.add(key, text(value));
    }

    fn number(&mut self, key: &str, value: i64) {
        let value = Some(Value::Number(value));
        self.add(key, AnyValue { value });
    }

    fn known(&mut self, key: &str, value: Option<&impl ToString>) {
        if let Some(value) = value {
            self.text(key, &value.to_string());
        }
    }

    fn bytes(&mut self, key: &str, count: u64) {
        self.number(key, i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Of what has ports; 0 is none.
    fn port(&mut self, key: &str, port: u16) {
        if port > 0 {
            self.number(key, port.into());
        }
    }

    fn socket(&mut self, [address, port]: [&str; 2], it: SocketAddr) {
        let ip: IpAddr = it.ip();
        self.text(address, &ip.to_string());
        self.port(port, it.port());
    }

    fn end(&mut self, names: &Names, workload: Option<&Workload>, identity: Option<&Identity>) {
        let [namespace, name, of, principal] = names;
        if let Some(pod) = workload.and_then(|it| it.pod.as_deref()) {
            self.text(namespace, &pod.key.namespace);
            self.text(name, &pod.key.name);
            self.text(of, Pod::workload_name(pod));
        }
        self.known(principal, identity);
    }

    fn failure(&mut self, it: &Failure) {
        self.text("error.type", it.flag.name());
        self.text("mesh.reason", &it.to_string());
        self.known("mesh.policy", it.policy());
        if let Some((hook, outcome)) = it.hook {
            self.text("mesh.hook", hook.name());
            self.text("mesh.outcome", outcome.name());
        }
    }
}

fn text(value: &str) -> AnyValue {
    AnyValue {
        value: Some(Value::Text(value.to_owned())),
    }
}

fn state(it: &Span) -> String {
    it.state
        .as_ref()
        .map_or_else(String::new, |it| it.as_str().to_owned())
}

fn flags(it: &Span) -> u32 {
    it.context().parent.flags.into()
}

fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX))
}

const SCOPE: &str = "mesh-agent";
const VERSION: &str = env!("CARGO_PKG_VERSION");
