use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::convert::told;
use super::wire::{KeyValue, Value};
use super::*;
use crate::clock;
use crate::model::Snapshot;
use crate::model::tests::{ip, namespace, pod, told as tell, world};
use crate::telemetry::{Connection, Counters, Direction, Event, Failure, Flag, Record, Telemetry};
use crate::trace_context::{Share, Span};

fn snapshot() -> Snapshot {
    world([
        namespace("shop", &[]),
        tell(pod("shop", "client", &["10.0.0.1"])),
        tell(pod("shop", "web", &["10.0.0.2"])),
    ])
}

fn record(event: Event, span: Option<Span>) -> Record {
    let at = |address, port| std::net::SocketAddr::new(ip(address), port);
    let (source, destination) = (at("10.0.0.1", 40_000), at("10.0.0.2", 80));
    let mut connection = Connection::new(Direction::Inbound, source, destination, clock::now())
        .known_to(&snapshot());
    connection.span = span.map(Box::new);
    let failure = || Arc::new(Failure::new(Flag::Deny, "because"));
    Record {
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
        event,
        connection: Arc::new(connection),
        sent: 3,
        received: u64::MAX,
        duration: Duration::from_millis(1_500),
        failure: (event == Event::Refused).then(failure),
    }
}

fn root(share: &str) -> Span {
    Span::root(share.parse().unwrap(), || 1 << 63 | 5)
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let mut found = attributes.iter().filter(|it| it.key == key);
    let value = found.next()?.value.as_ref()?.value.as_ref();
    assert!(found.next().is_none(), "{key} twice");
    value
}

#[test]
fn where_a_collector_is() {
    for (text, to) in [
        ("http://127.0.0.1:4317", "http://127.0.0.1:4317/"),
        (
            "http://collector.monitoring.svc/",
            "http://collector.monitoring.svc:4317/",
        ),
        ("http://[fd00::1]", "http://[fd00::1]:4317/"),
    ] {
        let read: Collector = text.parse().unwrap();
        assert_eq!(read, to.parse().unwrap(), "{text}");
    }
    for text in [
        "",
        "127.0.0.1:4317",
        "http://",
        "http://a@b:1",
        "http://a/v1/traces",
        "http://a/?b",
        "grpc://a:4317",
        "unix:///run/otlp",
    ] {
        let told = text.parse::<Collector>().unwrap_err().to_string();
        assert!(told.contains("is not http://HOST:PORT"), "{told}");
    }
    let told = "https://a:4317".parse::<Collector>().unwrap_err();
    assert_eq!(told, NotCollector::Tls);
}

#[test]
fn a_span_and_a_log_record_of_a_connection() {
    let snapshot = snapshot();
    let record = record(Event::Closed, Some(root("1")));
    let (span, log) = told(&record, &snapshot);
    let span = span.unwrap();
    assert_eq!((span.start, span.end), (5_500_000_000, 7_000_000_000));
    assert_eq!((span.flags, log.flags), (0x101, 1));
    assert!(span.parent.is_empty() && span.status.is_none());
    assert_eq!((&span.trace, &span.id), (&log.trace, &log.span));
    for (key, expected) in [
        ("source.k8s.pod.name", Value::Text("client".into())),
        ("destination.k8s.namespace.name", Value::Text("shop".into())),
        ("destination.port", Value::Number(80)),
        ("network.type", Value::Text("ipv4".into())),
        ("mesh.bytes.sent", Value::Number(3)),
        ("mesh.bytes.received", Value::Number(i64::MAX)),
        ("mesh.verdict", Value::Text("allowed".into())),
    ] {
        assert_eq!(value(&span.attributes, key), Some(&expected), "{key}");
        assert_eq!(value(&log.attributes, key), Some(&expected), "{key}");
    }
    let absent = value(&span.attributes, "error.type");
    assert_eq!(absent, None);
    let duration = value(&log.attributes, "mesh.duration_ms");
    assert_eq!(duration, Some(&Value::Number(1_500)));
}

#[test]
fn a_refusal_is_an_error_and_told_without_a_trace_as_well() {
    let snapshot = snapshot();
    let context = root("1").context();
    let child = Span::child(&context, || 6);
    let (span, _) = told(&record(Event::Refused, Some(child)), &snapshot);
    let span = span.unwrap();
    assert_eq!(
        (span.flags, span.parent),
        (0x301, context.parent.parent.to_vec())
    );
    let status = span.status.unwrap();
    assert_eq!((status.code, &*status.message), (2, "because"));
    for part in [None, Some(root("0"))] {
        let has_trace = part.is_some();
        let (span, log) = told(&record(Event::Refused, part), &snapshot);
        assert_eq!((span, log.flags), (None, 0));
        assert_eq!(!log.trace.is_empty(), has_trace);
        assert_eq!(&*log.severity_text, "WARN");
        let reason = value(&log.attributes, "mesh.reason");
        assert_eq!(reason, Some(&Value::Text("because".into())));
    }
}

fn telemetry(sampling: Option<Share>) -> Arc<Telemetry> {
    let (_, world) = watch::channel(snapshot());
    Telemetry::new(world, "Kubernetes", Arc::new(Counters::default()), sampling)
}

#[test]
fn who_decides_what_is_told() {
    let share = |text: &str| telemetry(Some(text.parse().unwrap()));
    let (sampled, unsampled) = (root("1").context(), root("0").context());
    let off = telemetry(None);
    assert!(off.root().is_none() && off.child(Some(&sampled)).is_none());
    let none = share("0");
    assert!(none.root().is_none() && none.child(None).is_none());
    assert!(none.child(Some(&sampled)).unwrap().is_sampled);
    let all = share("1");
    assert!(all.root().unwrap().is_sampled && all.child(None).unwrap().is_sampled);
    assert!(!all.child(Some(&unsampled)).unwrap().is_sampled);
}

#[tokio::test]
async fn what_finds_no_place_is_counted() {
    let telemetry = telemetry(None);
    let resource = Resource {
        node: "n1".to_owned(),
        cluster: "Kubernetes".to_owned(),
    };
    let collector = "http://127.0.0.1:1".parse().unwrap();
    let (exporter, exports) = Exporter::new(&collector, resource, &telemetry);
    let otlp = &telemetry.counters.otlp;
    let lost = || [&otlp.spans, &otlp.logs].map(|it| it.lost.load(Ordering::Relaxed));
    exports.closed(&record(Event::Closed, Some(root("0"))));
    exports.closed(&record(Event::Opened, Some(root("1"))));
    for _ in 0..2_048 {
        exports.closed(&record(Event::Closed, Some(root("1"))));
    }
    assert_eq!(lost(), [0, 0]);
    exports.refused(&record(Event::Refused, None));
    assert_eq!(lost(), [0, 1]);
    exports.closed(&record(Event::Closed, Some(root("1"))));
    assert_eq!(lost(), [1, 2]);
    drop(exporter);
}
