//! Connections counted, told and asked for.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use super::*;
use crate::cluster::Health;
use crate::model::tests::{attached, ip, namespace, pod, told, world};
use crate::model::{Event as Told, Key, Object, Pod, Service, ServicePort, TargetPort};
use crate::policy::{Layer, PolicyKind, PolicyRef, Reason, Verdict};

/// A page as Prometheus reads it: samples by name and labels. Asserts that each belongs to the family before it, and that
/// none is told twice.
fn parse(page: &str) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    let mut families = HashSet::new();
    let mut family = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned()), "twice: {line}");
            name.clone_into(&mut family);
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(series.starts_with(&family), "{line} in {family}");
        let open = series.matches('{').count();
        assert_eq!(open, series.matches('}').count(), "{line}");
        let whole = value.parse::<f64>().unwrap().to_string();
        let known = samples.insert(series.to_owned(), whole.parse().unwrap_or_default());
        assert!(known.is_none(), "twice: {line}");
    }
    samples
}

/// The sum of the samples of a name with these labels.
fn sum(samples: &BTreeMap<String, u64>, name: &str, labels: &[&str]) -> u64 {
    let of = samples.iter().filter(|(series, _)| {
        let bare = series.split('{').next();
        bare == Some(name) && labels.iter().all(|it| series.contains(it))
    });
    of.map(|(_, value)| value).sum()
}

fn service() -> Told {
    Told::Upsert(Object::Service(Arc::new(Service {
        key: Key::new("shop", "web"),
        addresses: vec![ip("10.96.0.1")],
        ports: vec![ServicePort {
            name: String::new(),
            port: 80,
            protocol: crate::model::Protocol::Tcp,
            target: TargetPort::Number(8080),
        }],
        headless: false,
        publish_not_ready: false,
        internal_local: false,
        client_affinity: false,
    })))
}

fn client() -> Pod {
    let mut client = pod("shop", "client-5d4f-x1", &["10.0.0.1"]);
    client.owner = Some("client".into());
    client.labels.insert("app".into(), "front".into());
    client.labels.insert("version".into(), "v2".into());
    client
}

/// A client here, its server there, a service.
fn shop() -> Snapshot {
    world([
        namespace("shop", &[("istio.io/dataplane-mode", "ambient")]),
        told(client()),
        attached("c1", Some(("shop", "client-5d4f-x1")), &["10.0.0.1"]),
        told(pod("shop", "web-0", &["10.1.0.1"])),
        service(),
    ])
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

/// From the client to the service, through a tunnel to the server.
fn to_web(snapshot: &Snapshot) -> Connection {
    let connection = Connection::new(
        Direction::Outbound,
        at("10.0.0.1", 33000),
        at("10.96.0.1", 80),
        clock::now(),
    );
    let web = snapshot.workload_by_addr(ip("10.1.0.1")).cloned();
    Connection {
        destination_identity: web.as_ref().and_then(|it| it.identity.clone()),
        destination_workload: web,
        hbone: Some(at("10.1.0.1", 8080)),
        carriage: Carriage::Tunnel,
        ..connection.known_to(snapshot)
    }
}

struct Stage {
    publish: watch::Sender<Snapshot>,
    telemetry: Arc<Telemetry>,
}

impl Stage {
    fn new(snapshot: Snapshot) -> Self {
        let (publish, world) = watch::channel(snapshot);
        let telemetry = Telemetry::new(world, "Kubernetes", Arc::default(), None);
        Self { publish, telemetry }
    }

    fn snapshot(&self) -> Snapshot {
        self.publish.borrow().clone()
    }

    fn scrape(&self) -> BTreeMap<String, u64> {
        let both = [Exposition::Prometheus, Exposition::OpenMetrics].map(|it| {
            let state = State {
                snapshot: &self.snapshot(),
                health: &Health::starting("test", 0),
                certificates: &[],
                measured: Some(&Measured::default()),
                now: 0,
            };
            parse(&self.telemetry.metrics(it, &state))
        });
        let [prometheus, open_metrics] = both;
        let names = |it: &BTreeMap<String, u64>| it.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&prometheus), names(&open_metrics));
        prometheus
    }
}

#[test]
fn istio_labels() {
    let stage = Stage::new(shop());
    let connection = Arc::new(to_web(&stage.snapshot()));
    let _open = stage.telemetry.open(connection, Arc::default());
    let samples = stage.scrape();
    let labels = "reporter=\"source\",source_workload=\"client\",source_canonical_service=\"front\",\
        source_canonical_revision=\"v2\",source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/default\",source_app=\"front\",source_version=\"v2\",\
        source_cluster=\"Kubernetes\",source_region=\"unknown\",source_zone=\"unknown\",\
        destination_service=\"web.shop.svc.cluster.local\",destination_service_name=\"web\",\
        destination_service_namespace=\"shop\",destination_workload=\"web-0\",\
        destination_canonical_service=\"web-0\",destination_canonical_revision=\"latest\",\
        destination_workload_namespace=\"shop\",\
        destination_principal=\"spiffe://cluster.local/ns/shop/sa/default\",destination_app=\"web-0\",\
        destination_version=\"latest\",destination_cluster=\"Kubernetes\",destination_region=\"unknown\",\
        destination_zone=\"unknown\",request_protocol=\"tcp\",response_flags=\"-\",\
        connection_security_policy=\"mutual_tls\",mesh_carriage=\"tunnel\"";
    let name = format!("istio_tcp_connections_opened_total{{{labels}}}");
    assert_eq!(samples.get(&name), Some(&1), "{samples:#?}");
}

#[test]
fn bytes_show_while_they_move_and_no_counter_falls() {
    let stage = Stage::new(shop());
    let progress = Arc::new(Progress::default());
    let open = stage
        .telemetry
        .open(Arc::new(to_web(&stage.snapshot())), progress.clone());
    let counts = |stage: &Stage| {
        let samples = stage.scrape();
        [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_received_bytes_total",
            "istio_tcp_sent_bytes_total",
            "istio_tcp_sockets_open",
        ]
        .map(|name| sum(&samples, name, &["reporter=\"source\""]))
    };
    assert_eq!(counts(&stage), [1, 0, 0, 0, 1]);
    progress.add_sent(70);
    progress.add_received(500);
    // Bytes of the request are those that Istio calls received.
    assert_eq!(counts(&stage), [1, 0, 70, 500, 1]);
    progress.add_sent(1);
    open.close(None);
    assert_eq!(counts(&stage), [1, 1, 71, 500, 0]);

    // The server's end: what its pod sends is the response.
    let progress = Arc::new(Progress::default());
    let inbound = Connection {
        direction: Direction::Inbound,
        ..to_web(&stage.snapshot())
    };
    let open = stage.telemetry.open(Arc::new(inbound), progress.clone());
    progress.add_sent(9);
    drop(open);
    let samples = stage.scrape();
    let destination = ["reporter=\"destination\""];
    assert_eq!(sum(&samples, "istio_tcp_sent_bytes_total", &destination), 9);
    let closed = stage
        .telemetry
        .flows(&Wanted::default(), None, 9, None)
        .flows;
    assert_eq!(closed.len(), 2);
    assert_eq!((closed[0].sent, closed[0].received), (71, 500));
    assert_eq!((closed[1].received, &*closed[1].event), (9, "closed"));
    assert!(closed[1].reason.as_ref().unwrap().contains("cut off"));
}

#[test]
fn failures_are_counted_by_flag() {
    let stage = Stage::new(shop());
    for flag in [Flag::Deny, Flag::Connect, Flag::Deny] {
        let failure = Failure::new(flag, "because");
        stage.telemetry.refuse(to_web(&stage.snapshot()), failure);
    }
    let samples = stage.scrape();
    let failed = |flag: &str| {
        let flag = format!("response_flags=\"{flag}\"");
        sum(&samples, "istio_tcp_connections_failed_total", &[&flag])
    };
    assert_eq!((failed("DENY"), failed("CONNECT")), (2, 1));
    assert_eq!(sum(&samples, "istio_tcp_connections_opened_total", &[]), 0);
}

#[test]
fn series_of_workloads_that_are_gone_go_and_pods_of_one_owner_share_one() {
    let stage = Stage::new(shop());
    let open = |stage: &Stage| {
        let connection = Arc::new(to_web(&stage.snapshot()));
        stage.telemetry.open(connection, Arc::default())
    };
    drop(open(&stage));
    // The pod changes in what no label tells: another object, the same series.
    let ready = Pod {
        ready: false,
        ..client()
    };
    stage.publish.send_modify(|it| drop(it.apply(told(ready))));
    let long = open(&stage);
    let opened = |stage: &Stage| {
        let samples = stage.scrape();
        let name = "istio_tcp_connections_opened_total";
        let of = samples.iter().filter(|(it, _)| it.starts_with(name));
        of.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    assert_eq!(opened(&stage), [2]);
    let later = clock::now() + Duration::from_mins(6);
    stage.telemetry.sweep(later);
    assert_eq!(opened(&stage), [2], "its workloads are here");
    let gone = Told::Delete(crate::model::Reference::Pod(Key::new("shop", "web-0")));
    stage.publish.send_modify(|it| drop(it.apply(gone)));
    stage.telemetry.sweep(later);
    assert_eq!(opened(&stage), [2], "it has an open connection");
    long.close(None);
    stage.telemetry.sweep(clock::now());
    assert_eq!(opened(&stage), [2], "somebody may still have to read it");
    stage.telemetry.sweep(later);
    assert_eq!(opened(&stage), [0; 0]);
    // Its number is used again.
    drop(open(&stage));
    assert_eq!(opened(&stage), [1]);
}

#[test]
fn there_are_so_many_series_and_no_more() {
    let stage = Stage::new(shop());
    let all = 5000_u64;
    for number in 0..all {
        let mut connection = to_web(&stage.snapshot());
        connection.source_identity = Some(crate::model::Identity::new(
            "cluster.local",
            "shop",
            &number.to_string(),
        ));
        let open = stage.telemetry.open(Arc::new(connection), Arc::default());
        open.close(None);
    }
    let samples = stage.scrape();
    let name = "istio_tcp_connections_closed_total";
    assert_eq!(sum(&samples, name, &[]), all);
    let series = samples.keys().filter(|it| it.starts_with(name)).count();
    assert_eq!(series, 4097);
    let other = sum(&samples, name, &["source_workload=\"other\""]);
    assert_eq!(other, all - 4096);
    assert_eq!(sum(&samples, "mesh_series_folded_total", &[]), other);
}

#[test]
fn what_the_kernel_counts() {
    let mut snapshot = shop();
    snapshot.apply(told(pod("shop", "cart", &["10.0.0.2"])));
    snapshot.apply(attached("c2", Some(("shop", "cart")), &["10.0.0.2"]));
    let stage = Stage::new(snapshot);
    let workload = |address: &str| {
        stage
            .snapshot()
            .workload_by_addr(ip(address))
            .unwrap()
            .clone()
    };
    let pair = |carriage, to| Pair {
        interface: 7,
        peer: Some(ip(to)),
        source: Some(workload("10.0.0.1")),
        destination: Some(workload(to)),
        carriage,
        direction: Direction::Outbound,
    };
    let totals = |opened, sent| Totals {
        opened,
        closed: opened - 1,
        failed: 2,
        sent,
        received: 2 * sent,
        handshakes: 0,
    };
    let local = pair(Carriage::SameNode, "10.0.0.2");
    // What is lost with a record comes back, and counts once.
    for totals in [
        totals(3, 100),
        totals(3, 100),
        totals(3, 40),
        totals(6, 307),
    ] {
        stage.telemetry.kernel(&local, totals);
    }
    // A pod of the same name has an interface of its own, and begins anew.
    let later = Pair {
        interface: 8,
        ..local
    };
    stage.telemetry.kernel(
        &later,
        Totals {
            failed: 0,
            ..totals(1, 0)
        },
    );
    // In plaintext only the end of the pod is told, which is proved to nobody.
    stage
        .telemetry
        .kernel(&pair(Carriage::Plain, "10.0.0.2"), totals(9, 9));
    stage
        .telemetry
        .kernel(&pair(Carriage::Plain, "10.1.0.1"), totals(1, 1000));
    let samples = stage.scrape();
    let of = |name: &str, carriage: &str, reporter: &str, to: &str| {
        let labels = [
            format!("reporter=\"{reporter}\""),
            format!("destination_workload=\"{to}\""),
            format!("mesh_carriage=\"{carriage}\""),
        ];
        let name = format!("istio_tcp_{name}_total");
        sum(&samples, &name, &labels.each_ref().map(String::as_str))
    };
    for reporter in ["source", "destination"] {
        for (name, expected) in [
            ("connections_opened", 7),
            ("connections_closed", 5),
            ("connections_failed", 2),
            ("received_bytes", 307),
            ("sent_bytes", 614),
        ] {
            let counted = of(name, "same_node", reporter, "cart");
            assert_eq!(counted, expected, "{name} {reporter}");
        }
    }
    for (reporter, to, expected) in [
        ("source", "cart", 9),
        ("source", "web-0", 1000),
        ("destination", "cart", 0),
        ("destination", "web-0", 0),
    ] {
        let counted = of("received_bytes", "plain", reporter, to);
        assert_eq!(counted, expected, "{reporter} {to}");
    }
}

#[test]
fn flows_are_told_to_who_asks() {
    let stage = Stage::new(shop());
    let open = |stage: &Stage| {
        let connection = Arc::new(to_web(&stage.snapshot()));
        stage.telemetry.open(connection, Arc::default())
    };
    open(&stage).close(None);
    let verdict = Verdict {
        allow: false,
        layer: Layer::NetworkPolicy,
        policy: Some(PolicyRef {
            kind: PolicyKind::NetworkPolicy,
            key: Key::new("shop", "nobody"),
        }),
        rule: None,
        reason: Reason::DefaultDeny {
            policies: 1,
            caveats: 0,
        },
    };
    let failure = Failure {
        flag: Flag::of_layer(verdict.layer),
        hook: None,
        verdict: Some((crate::policy::Direction::Ingress, verdict)),
        cause: None,
        is_early: false,
    };
    stage.telemetry.refuse(to_web(&stage.snapshot()), failure);
    let denied = Wanted {
        denied: true,
        ..Wanted::default()
    };
    let batch = stage.telemetry.flows(&denied, None, 9, None);
    let [flow] = &batch.flows[..] else {
        panic!("{batch:?}");
    };
    assert_eq!(flow.verdict, "denied");
    assert_eq!(flow.flag, "NETWORK_POLICY");
    assert_eq!(flow.policy.as_deref(), Some("NetworkPolicy shop/nobody"));
    assert_eq!(flow.source.workload.as_deref(), Some("shop/client-5d4f-x1"));
    assert_eq!(flow.service.as_deref(), Some("web.shop.svc.cluster.local"));
    let line = flow.line();
    assert!(
        line.contains("default deny by 1 policy") && line.ends_with('\n'),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);

    // A follower is told of connections that open, too.
    let follower = Wanted {
        opened: true,
        ..Wanted::default()
    };
    let batch = stage.telemetry.flows(&follower, Some(batch.next), 9, None);
    assert!(batch.flows.is_empty());
    open(&stage).close(None);
    let batch = stage.telemetry.flows(&follower, Some(batch.next), 9, None);
    let events: Vec<_> = batch.flows.iter().map(|it| &*it.event).collect();
    assert_eq!((events, batch.lost), (vec!["opened", "closed"], 0));

    let of = |pod: Option<(&str, &str)>, namespace: Option<&str>| {
        let wanted = Wanted {
            pod: pod.map(|(a, b)| (a.to_owned(), b.to_owned())),
            namespace: namespace.map(ToOwned::to_owned),
            ..Wanted::default()
        };
        stage.telemetry.flows(&wanted, None, 2, None).flows.len()
    };
    assert_eq!(of(Some(("shop", "web-0")), None), 2, "the latest of three");
    assert_eq!(of(Some(("shop", "web-1")), None), 0);
    assert_eq!((of(None, Some("shop")), of(None, Some("bank"))), (2, 0));
}

/// Told with `--nocapture`; no assertion, as machines differ.
#[test]
fn what_a_connection_costs() {
    const COUNT: u32 = 100_000;
    let stage = Stage::new(shop());
    let connection = to_web(&stage.snapshot());
    let progress = Arc::new(Progress::default());
    let began = clock::now();
    for _ in 0..COUNT {
        let open = stage
            .telemetry
            .open(Arc::new(connection.clone()), progress.clone());
        open.close(None);
    }
    println!("{:?} for one connection", began.elapsed() / COUNT);
}

#[test]
fn the_map_has_what_is_open_and_the_last_refusal() {
    let stage = Stage::new(shop());
    let connection = to_web(&stage.snapshot());
    let progress = Arc::new(Progress::default());
    let open = stage
        .telemetry
        .open(Arc::new(connection.clone()), progress.clone());
    progress.add_sent(300);
    progress.add_received(7);
    let there = (ip("10.0.0.1"), ip("10.1.0.1"));
    let graph = stage.telemetry.graph(&RoundTrips::from([(there, 420)]));
    let ids: Vec<_> = graph.nodes.iter().map(|it| &*it.id).collect();
    assert_eq!(ids, ["shop/client-5d4f-x1", "shop/web-0"]);
    assert_eq!(
        (&*graph.nodes[0].workload, graph.nodes[0].local),
        ("client", true)
    );
    let edge = &graph.edges[0];
    assert_eq!(edge.service.as_deref(), Some("web.shop.svc.cluster.local"));
    assert_eq!(
        (edge.opened, edge.open, edge.sent, edge.received),
        (1, 1, 300, 7)
    );
    assert_eq!(edge.round_trip_us, Some(420));
    open.close(None);
    let failure = || Failure::new(Flag::Deny, "because");
    stage.telemetry.refuse(connection.clone(), failure());
    stage.telemetry.refuse(connection, failure());
    let graph = stage.telemetry.graph(&RoundTrips::new());
    let [edge] = &graph.edges[..] else {
        panic!("{:?}", graph.edges);
    };
    assert_eq!((edge.opened, edge.open, edge.sent), (1, 0, 300));
    assert_eq!((edge.refused, edge.failed), (2, 0));
    let last = edge.last_refusal.as_ref().unwrap();
    assert_eq!(last.reason.as_deref(), Some("because"));
}

#[test]
fn refusals_take_half_of_the_map_at_most() {
    let stage = Stage::new(shop());
    let target = to_web(&stage.snapshot());
    let refuse = |number: u32| {
        let service = Service {
            key: Key::new("shop", number.to_string().as_str()),
            ..(**target.service.as_ref().unwrap()).clone()
        };
        let connection = Connection {
            service: Some(Arc::new(service)),
            ..target.clone()
        };
        let failure = Failure::new(Flag::Deny, "because");
        stage.telemetry.refuse(connection, failure);
    };
    (0..5_000).for_each(refuse);
    let open = stage
        .telemetry
        .open(Arc::new(target.clone()), Arc::default());
    let graph = stage.telemetry.graph(&RoundTrips::new());
    assert_eq!((graph.edges.len(), graph.left_out), (4097, 904));
    assert!(graph.edges.iter().any(|it| it.open == 1));
    drop(open);
}
