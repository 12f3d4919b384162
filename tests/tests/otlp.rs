//! What a collector is told of connections: spans at both ends that belong together, refusals, and what happens when there is
//! no collector.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_tests::app::{App, Server, echoes, echoes_to_the_end, refused};
use mesh_tests::collector::{Attributes, Collector, Log, Span, Store};
use mesh_tests::foreign::Foreign;
use mesh_tests::lab::{Lab, scenario_with};
use mesh_tests::metrics::Metrics;
use mesh_tests::node::Node;
use mesh_tests::peer::{self, Client, Credentials};
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::{Value, json};

/// Agents that tell the collector of their node of everything.
const ALL: &[&str] = &["--otlp-endpoint=http://127.0.0.1:4317", "--otlp-sampling=1"];
/// Agents that tell it of refusals alone.
const NONE: &[&str] = &["--otlp-endpoint=http://127.0.0.1:4317", "--otlp-sampling=0"];
const AT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4317);
/// Connections, and bytes that each sends and gets back.
const CONNECTIONS: usize = 20;
const BYTES: u64 = 10_007;
/// More connections than wait to be told, and are on their way.
const TOO_MANY: usize = 2_048 + 512 + 40;
/// Until a collector that was away is told again.
const BACK: Duration = Duration::from_secs(45);

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const PEER: &str = "spiffe://cluster.local/ns/outside/sa/peer";

/// A collector on each node.
fn collectors(lab: &Lab, store: &Store) -> Result<Vec<Collector>> {
    let nodes = lab.nodes().iter();
    nodes
        .map(|node| Collector::start(node.netns(), AT, store))
        .collect()
}

/// The spans of a kind: 2 at the end that is called, 3 at the one that calls.
fn of_kind(spans: &[Span], kind: i32) -> Vec<&Span> {
    spans.iter().filter(|it| it.kind == kind).collect()
}

/// Whether attributes hold these, each with this part of its value.
fn holds(attributes: &Attributes, parts: &[(&str, &str)]) -> bool {
    parts.iter().all(|(key, part)| {
        let value = attributes.get(*key);
        value.is_some_and(|value| value.contains(part))
    })
}

/// The sum of a metric, as `name` or `name{label}`.
fn metric(node: &Node, series: &str) -> Result<usize> {
    let (name, label) = series.split_once('{').unwrap_or((series, ""));
    let sum = Metrics::of(node)?.sum(name, &[label.trim_end_matches('}')]);
    Ok(usize::try_from(sum)?)
}

#[test]
fn both_ends_are_spans_of_one_trace() -> Result<()> {
    scenario_with("otlp", ALL, |lab| {
        let store = Store::default();
        let _collectors = collectors(lab, &store)?;
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let web = lab.pod("web").namespace("shop").on("n2").create()?;
        let far = lab.pod("far").namespace("outside").on("n1").create()?;
        let _app = Server::start(&web, 8080, App::Echo)?;
        lab.settle()?;
        let to = web.at(Family::V4, 8080);
        for _ in 0..CONNECTIONS {
            echoes_to_the_end(&client, to, BYTES)?;
        }
        eventually("all are told", SOON, || {
            Ok(store.spans().len() == 2 * CONNECTIONS && store.logs().len() == 2 * CONNECTIONS)
        })?;
        belong_together(&store.spans(), to)?;
        are_logged(&store)?;
        for (node, signal) in [("n1", "spans"), ("n2", "logs")] {
            let series = format!("mesh_otlp_exported_total{{signal=\"{signal}\"}}");
            // Counted when the collector has answered.
            eventually("it is counted", SOON, || {
                Ok(metric(lab.node(node), &series)? == CONNECTIONS)
            })?;
        }
        parents_of_others(lab, &store, &far, to)?;
        refusals(lab, &store, &client, &web)?;
        // What was not told yet when the order to stop came.
        store.clear();
        echoes_to_the_end(&client, web.at(Family::V6, 8080), BYTES)?;
        lab.node("n1").agent().stop()?;
        let spans = store.spans();
        let of_last = [("network.type", "ipv6")];
        let outbound = of_kind(&spans, 3);
        let told = outbound.iter().any(|it| holds(&it.attributes, &of_last));
        ensure!(told, "{spans:?}");
        Ok(())
    })
}

/// Each connection is a span where it was opened, and a child of that where it ended.
fn belong_together(spans: &[Span], to: SocketAddr) -> Result<()> {
    let (opened, ended) = (of_kind(spans, 3), of_kind(spans, 2));
    assert_eq!((opened.len(), ended.len()), (CONNECTIONS, CONNECTIONS));
    let traces: BTreeSet<_> = opened.iter().map(|it| &it.trace).collect();
    assert_eq!(traces.len(), CONNECTIONS, "each is a trace of its own");
    let bytes = BYTES.to_string();
    for inbound in ended {
        let outbound = opened.iter().find(|it| it.id == inbound.parent);
        let outbound = outbound.with_context(|| format!("no parent of {inbound:?}"))?;
        assert_eq!(outbound.trace, inbound.trace);
        assert_eq!(outbound.parent, "");
        assert!(outbound.duration >= inbound.duration, "{outbound:?}");
        let source = &outbound.attributes["source.port"];
        for (span, node, direction) in [(*outbound, "n1", "outbound"), (inbound, "n2", "inbound")] {
            let attributes = &span.attributes;
            assert_eq!(span.error, None);
            assert_eq!(span.resource["service.name"], "mesh-agent");
            assert_eq!(span.resource["k8s.node.name"], node);
            assert_eq!(span.resource["k8s.cluster.name"], "Kubernetes");
            assert_eq!(attributes["mesh.bytes.sent"], bytes);
            assert_eq!(attributes["mesh.bytes.received"], bytes);
            let parts = [
                ("network.transport", "tcp"),
                ("source.k8s.namespace.name", "shop"),
                ("source.k8s.pod.name", "client"),
                ("mesh.source.identity", CLIENT),
                ("destination.k8s.pod.name", "web"),
                ("mesh.destination.identity", WEB),
                ("destination.address", &*to.ip().to_string()),
                ("server.address", &*to.ip().to_string()),
                ("mesh.carriage", "tunnel"),
                ("mesh.verdict", "allowed"),
                ("mesh.direction", direction),
            ];
            assert!(holds(attributes, &parts), "{attributes:#?}");
        }
        assert_eq!(outbound.attributes["server.port"], "8080");
        assert!(source.parse::<u16>()? > 0);
    }
    Ok(())
}

/// Each span has a log record with the same words.
fn are_logged(store: &Store) -> Result<()> {
    let spans = store.spans();
    for log in store.logs() {
        let span = spans.iter().find(|it| it.id == log.span);
        let span = span.with_context(|| format!("no span of {log:?}"))?;
        assert_eq!((&span.trace, &span.resource), (&log.trace, &log.resource));
        assert_eq!(
            (&*log.event, &*log.severity),
            ("mesh.connection.closed", "INFO")
        );
        let mut attributes = log.attributes;
        assert!(attributes.remove("mesh.duration_ms").is_some());
        assert_eq!(attributes, span.attributes);
    }
    Ok(())
}

/// A peer that shares no code with the mesh tells of its trace.
fn parents_of_others(lab: &Lab, store: &Store, far: &Pod<'_>, to: SocketAddr) -> Result<()> {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";
    let credentials = Credentials::issue(lab, &lab.ca(), PEER)?;
    let peer = Client::new(lab, far.netns(), Some(credentials));
    let tunnel = SocketAddr::new(to.ip(), HBONE_PORT).to_string();
    let asks = |traceparent: &str| -> Result<()> {
        let traceparent = format!("traceparent={traceparent}");
        let authority = to.to_string();
        let mut arguments = vec!["--connect", &tunnel, "--authority", &authority];
        arguments.extend(["--header", &traceparent]);
        arguments.extend(["--header", "tracestate=rojo=00f067aa0ba902b7,congo=t61"]);
        let (good, events) = peer.call(&arguments)?;
        ensure!(good, "{events:#?}");
        Ok(())
    };
    store.clear();
    // One that is not to be told, one that is, and what is no parent, of which the node itself decides.
    asks(&format!("00-{TRACE}-{PARENT}-00"))?;
    asks(&format!("00-{TRACE}-{PARENT}-01"))?;
    asks(&format!("00-{TRACE}-{PARENT}-01").to_uppercase())?;
    asks("00-00000000000000000000000000000000-b7ad6b7169203331-01")?;
    eventually("three of four are told", SOON, || {
        Ok(store.spans().len() == 3)
    })?;
    let spans = store.spans();
    let of_trace: Vec<_> = spans.iter().filter(|it| it.trace == TRACE).collect();
    let [child] = &of_trace[..] else {
        panic!("{spans:#?}");
    };
    assert_eq!(child.parent, PARENT);
    assert_eq!(child.state, "rojo=00f067aa0ba902b7,congo=t61");
    assert_eq!(child.attributes["mesh.source.identity"], PEER);
    let others = spans.iter().filter(|it| it.trace != TRACE);
    let is_root = |it: &Span| it.parent.is_empty() && it.state.is_empty();
    assert_eq!(others.filter(|it| is_root(it)).count(), 2, "{spans:#?}");
    Ok(())
}

/// Refusals at the other end, and by the kernel.
fn refusals(lab: &Lab, store: &Store, client: &Pod<'_>, web: &Pod<'_>) -> Result<()> {
    let near = lab.pod("near").namespace("shop").on("n1").create()?;
    let denied = lab.pod("denied").namespace("shop").on("n2").create()?;
    let _denied = Server::start(&denied, 8080, App::Echo)?;
    let of = |app: &str| json!({"matchLabels": {"app": app}});
    lab.policy(
        "AuthorizationPolicy",
        "shop",
        "denied-nobody",
        json!({"selector": of("denied"), "action": "DENY", "rules": [{}]}),
    )?;
    lab.policy(
        "NetworkPolicy",
        "shop",
        "near-nobody",
        json!({"podSelector": of("near"), "policyTypes": ["Ingress"]}),
    )?;
    lab.settle()?;
    store.clear();
    refused(client, denied.at(Family::V4, 8080));
    refused(client, near.at(Family::V4, 8080));
    let by_policy = [
        ("destination.k8s.pod.name", "denied"),
        ("mesh.policy", "AuthorizationPolicy shop/denied-nobody"),
        ("mesh.source.identity", CLIENT),
        ("mesh.verdict", "denied"),
        ("error.type", "DENY"),
    ];
    let by_kernel = [
        ("destination.k8s.pod.name", "near"),
        ("mesh.policy", "NetworkPolicy shop/near-nobody"),
        ("mesh.reason", ""),
        ("mesh.hook", ""),
        ("mesh.verdict", "denied"),
    ];
    let is_refusal = |it: &Log, parts: &[(&str, &str)]| {
        it.event == "mesh.connection.refused"
            && it.severity == "WARN"
            && holds(&it.attributes, parts)
    };
    eventually("they are told", SOON, || {
        let logs = store.logs();
        let told = |parts: &[(&str, &str)]| {
            let of = logs.iter().filter(|it| is_refusal(it, parts));
            of.count()
        };
        Ok(told(&by_policy) == 2 && told(&by_kernel) >= 1 && store.spans().len() >= 2)
    })
    .with_context(|| format!("{:#?}", store.logs()))?;
    let spans = store.spans();
    let [outbound, inbound] = [3, 2].map(|kind| of_kind(&spans, kind)[0]);
    for span in [outbound, inbound] {
        let reason = span.error.as_deref().context("no error")?;
        assert!(holds(&span.attributes, &by_policy), "{span:#?}");
        assert!(span.attributes["mesh.reason"].contains(reason), "{span:#?}");
    }
    assert_eq!(
        (&inbound.trace, &inbound.parent),
        (&outbound.trace, &outbound.id)
    );
    let of_kernel = store.logs();
    let of_kernel = of_kernel.iter().find(|it| is_refusal(it, &by_kernel));
    assert!(of_kernel.is_some_and(|it| it.trace.is_empty()));
    // The others go on.
    let stream = client.connect(web.at(Family::V4, 8080))?;
    Ok(echoes(&stream, b"still here")?)
}

#[test]
fn a_collector_that_is_away_costs_what_it_is_not_told() -> Result<()> {
    scenario_with("otlp_away", ALL, |lab| {
        let store = Store::default();
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let web = lab.pod("web").namespace("shop").on("n2").create()?;
        let _app = Server::start(&web, 8080, App::Echo)?;
        lab.settle()?;
        let to = web.at(Family::V4, 8080);
        let node = lab.node("n1");
        let exported = "mesh_otlp_exported_total{signal=\"spans\"}";
        let lost = "mesh_otlp_lost_total{signal=\"spans\"}";
        // It comes, is told, and is killed.
        let first = collectors(lab, &store)?;
        echoes_to_the_end(&client, to, BYTES)?;
        eventually("it is told", SOON, || Ok(metric(node, exported)? == 1))?;
        drop(first);
        let began = Instant::now();
        for _ in 0..TOO_MANY {
            echoes_to_the_end(&client, to, 1)?;
        }
        eventually("some find no place", SOON, || Ok(metric(node, lost)? > 0))?;
        ensure!(metric(node, "mesh_otlp_failed_total")? > 1);
        let warned = node.agent().log().matches("does not take").count();
        let minutes = began.elapsed().as_secs() / 60;
        assert!((1..=1 + minutes).contains(&(warned as u64)), "{warned}");
        // It is back.
        let _again = collectors(lab, &store)?;
        eventually("the others are told", BACK, || {
            Ok(metric(node, exported)? + metric(node, lost)? == 1 + TOO_MANY)
        })?;
        let from_here = |it: &&Span| it.resource["k8s.node.name"] == "n1";
        let told = store.spans().iter().filter(from_here).count();
        assert_eq!(told, metric(node, exported)?);
        assert!(told > 512, "{told}");
        // It takes no logs, which is nothing to spans.
        let lost_logs = "mesh_otlp_lost_total{signal=\"logs\"}";
        let (exported_before, lost_before) = (metric(node, exported)?, metric(node, lost_logs)?);
        store.refuse_logs(true);
        echoes_to_the_end(&client, to, BYTES)?;
        eventually("a span alone is told", SOON, || {
            Ok(metric(node, exported)? == exported_before + 1
                && metric(node, lost_logs)? == lost_before + 1)
        })
    })
}

/// The value of a header of the latest request that a peer saw.
fn header(peer: &peer::Server, name: &str) -> Result<Option<String>> {
    let events = peer.events()?;
    let requests = events.all("request");
    let headers = requests.last().and_then(|it| it["headers"].as_array());
    let headers = headers.context("no request")?;
    let value = headers.iter().find(|it| it[0] == name).map(|it| &it[1]);
    Ok(value.and_then(Value::as_str).map(ToOwned::to_owned))
}

/// An enrolled pod speaks to a peer that shares no code with the mesh; what that sees of the trace.
fn seen_by_a_peer(lab: &Lab, client: &Pod<'_>) -> Result<Option<String>> {
    let foreign = Foreign::create(lab)?;
    let [ip, _] = foreign.pod("shop", "web")?;
    let listen = SocketAddr::new(ip, HBONE_PORT).to_string();
    let credentials = Credentials::issue(lab, &lab.ca(), WEB)?;
    let peer = peer::Server::start(lab, foreign.netns(), &listen, &credentials, &[])?;
    let stream = client.connect(SocketAddr::new(ip, 8080))?;
    echoes(&stream, b"who is this?")?;
    assert_eq!(header(&peer, "tracestate")?, None);
    header(&peer, "traceparent")
}

#[test]
fn a_peer_sees_the_span_that_calls() -> Result<()> {
    scenario_with("otlp_peer", ALL, |lab| {
        let store = Store::default();
        let _collectors = collectors(lab, &store)?;
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let seen = seen_by_a_peer(lab, &client)?.context("no traceparent")?;
        eventually("it is told", SOON, || Ok(!store.spans().is_empty()))?;
        let span = &store.spans()[0];
        assert_eq!(seen, format!("00-{}-{}-01", span.trace, span.id));
        Ok(())
    })
}

#[test]
fn without_a_share_refusals_alone_are_told() -> Result<()> {
    scenario_with("otlp_none", NONE, |lab| {
        let store = Store::default();
        let _collectors = collectors(lab, &store)?;
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let near = lab.pod("near").namespace("shop").on("n2").create()?;
        let _app = Server::start(&near, 8080, App::Echo)?;
        lab.settle()?;
        assert_eq!(seen_by_a_peer(lab, &client)?, None);
        echoes_to_the_end(&client, near.at(Family::V4, 8080), BYTES)?;
        // Nobody listens there.
        refused(&client, near.at(Family::V4, 81));
        eventually("both ends tell of it", SOON, || Ok(store.logs().len() == 2))
            .with_context(|| format!("{:#?}", store.logs()))?;
        for log in store.logs() {
            assert_eq!(log.event, "mesh.connection.refused");
            assert_eq!(log.trace, "");
            assert_eq!(log.attributes["error.type"], "CONNECT");
        }
        assert!(store.spans().is_empty(), "{:?}", store.spans());
        Ok(())
    })
}
