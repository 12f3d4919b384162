//! What the agents tell of connections: metrics to the byte.

use std::net::SocketAddr;
use std::thread::sleep;

use anyhow::{Context, Result};
use mesh_tests::app::{App, Server, echoes, echoes_to_the_end};
use mesh_tests::flows::{AT_ONCE, flows};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::metrics::Metrics;
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

/// Connections, and bytes that each sends and gets back.
const CONNECTIONS: u64 = 20;
const BYTES: u64 = 10_007;

/// Connections opened, closed and open; bytes of requests and of responses.
fn counts(node: &Node, reporter: &str) -> Result<[u64; 5]> {
    let metrics = Metrics::of(node)?;
    let labels = [
        &*format!("reporter=\"{reporter}\""),
        "source_workload=\"client\"",
        "destination_workload=\"web\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
        "mesh_carriage=\"tunnel\"",
    ];
    Ok(COUNTS.map(|name| metrics.sum(name, &labels)))
}

const COUNTS: [&str; 5] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sockets_open",
    "istio_tcp_received_bytes_total",
    "istio_tcp_sent_bytes_total",
];

#[test]
fn metrics_are_exact_at_both_ends() -> Result<()> {
    scenario("telemetry", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let web = lab.pod("web").namespace("shop").on("n2").create()?;
        let _app = Server::start(&web, 8080, App::Echo)?;
        lab.settle()?;
        let to = web.at(Family::V4, 8080);
        let long = client.connect(to)?;
        echoes(&long, b"while it is open")?;
        let ends = [("n1", "source"), ("n2", "destination")];
        for (node, reporter) in ends {
            let counts = counts(lab.node(node), reporter)?;
            assert_eq!(counts, [1, 0, 1, 16, 16], "{reporter}");
        }
        for _ in 0..CONNECTIONS {
            echoes_to_the_end(&client, to, BYTES)?;
        }
        drop(long);
        let all = CONNECTIONS + 1;
        let bytes = CONNECTIONS * BYTES + 16;
        for (node, reporter) in ends {
            let node = lab.node(node);
            eventually("all have ended", SOON, || {
                Ok(counts(node, reporter)?[1] == all)
            })?;
            assert_eq!(counts(node, reporter)?, [all, all, 0, bytes, bytes]);
            let flows = flows(node, &["--pod", "shop/client", "--last", "5"])?;
            assert_eq!(flows.len(), 5, "{flows:?}");
            assert_eq!(
                flows[0]["source"]["identity"],
                "spiffe://cluster.local/ns/shop/sa/client"
            );
            assert_eq!(flows[0]["carriage"], "tunnel");
            assert_eq!(flows[0]["verdict"], "allowed");
        }
        let metrics = Metrics::of(lab.node("n1"))?;
        let outbound = ["direction=\"outbound\""];
        assert!(metrics.sum("mesh_tunnels_opened_total", &outbound) >= 1);
        assert!(metrics.sum("mesh_packets_total", &["hook=\"from_pod\""]) > CONNECTIONS);
        assert!(metrics.sum("mesh_certificate_expiry_timestamp_seconds", &[]) > 0);
        for own in [
            "process_open_fds",
            "process_max_fds",
            "process_resident_memory_bytes",
        ] {
            assert!(metrics.sum(own, &[]) > 0, "no {own}");
        }
        let adds = ["verb=\"ADD\"", "outcome=\"ok\""];
        assert_eq!(
            metrics.sum("mesh_cni_call_duration_seconds_count", &adds),
            1
        );
        log_is_switched(lab, &client, to)
    })
}

#[test]
fn what_the_kernel_carries_is_exact() -> Result<()> {
    scenario("telemetry_kernel", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let web = lab.pod("web").namespace("shop").on("n1").create()?;
        let plain = lab.pod("plain").on("n2").create()?;
        let _app = Server::start(&web, 8080, App::Echo)?;
        let _plain = Server::start(&plain, 8080, App::Echo)?;
        lab.settle()?;
        let node = lab.node("n1");
        for family in Family::BOTH {
            // Within the node; out of the mesh; into it.
            let ways = [
                (&client, &web, "same_node"),
                (&client, &plain, "plain"),
                (&plain, &web, "plain"),
            ];
            for (from, to, way) in ways {
                is_exact(node, from, (to, to.at(family, 8080)), way)
                    .with_context(|| format!("{way} to {}, {family:?}", to.name()))?;
            }
        }
        // Nobody listens there.
        let nobody = web.at(Family::V4, 81);
        assert!(client.connect(nobody).is_err(), "{nobody} answers");
        let failed = "istio_tcp_connections_failed_total";
        let labels = ["mesh_carriage=\"same_node\"", "response_flags=\"CONNECT\""];
        eventually("it is told", SOON, || {
            Ok(Metrics::of(node)?.sum(failed, &labels) == 2)
        })?;
        let told = flows(node, &["--pod", "shop/client", "--last", "500"])?;
        let closed = told.iter().filter(|it| {
            it["carriage"] == "same_node" && it["event"] == "closed" && it["sent"] == BYTES
        });
        assert_eq!(closed.count() as u64, 2 * CONNECTIONS, "{told:?}");
        // What a pod has carried is told once more when it is gone.
        let labels = ["mesh_carriage=\"same_node\"", "reporter=\"source\""];
        echoes_to_the_end(&client, web.at(Family::V4, 8080), BYTES)?;
        let expected = 2 * (CONNECTIONS * BYTES + 16) + BYTES;
        client.delete()?;
        let sum = Metrics::of(node)?.sum("istio_tcp_received_bytes_total", &labels);
        assert_eq!(sum, expected, "of a pod that is gone");
        Ok(())
    })
}

/// Connections of a pod with another by a way, one of which stays open for a while, are told as they are.
fn is_exact(
    node: &Node,
    from: &Pod<'_>,
    (to, address): (&Pod<'_>, SocketAddr),
    way: &str,
) -> Result<()> {
    let labels = [
        format!("source_workload=\"{}\"", from.name()),
        format!("destination_workload=\"{}\"", to.name()),
        format!("mesh_carriage=\"{way}\""),
    ];
    let labels = labels.each_ref().map(String::as_str);
    // Both ends of a short cut are of this node.
    let reporters = if way == "same_node" { 2 } else { 1 };
    let counts = || -> Result<[u64; 5]> {
        let metrics = Metrics::of(node)?;
        Ok(COUNTS.map(|name| metrics.sum(name, &labels) / reporters))
    };
    let before = counts()?;
    let since = || -> Result<[u64; 5]> {
        let mut now = counts()?;
        now.iter_mut()
            .zip(before)
            .for_each(|(it, before)| *it -= before);
        Ok(now)
    };
    let long = from.connect(address)?;
    echoes(&long, b"while it is open")?;
    assert_eq!(since()?, [1, 0, 1, 16, 16]);
    for _ in 0..CONNECTIONS {
        echoes_to_the_end(from, address, BYTES)?;
    }
    drop(long);
    let all = CONNECTIONS + 1;
    let bytes = CONNECTIONS * BYTES + 16;
    eventually("all have ended", SOON, || Ok(since()?[1] == all))?;
    assert_eq!(since()?, [all, all, 0, bytes, bytes]);
    Ok(())
}

/// The access log tells of nothing, then of another namespace alone, then of all.
fn log_is_switched(lab: &Lab, client: &Pod<'_>, to: SocketAddr) -> Result<()> {
    let node = lab.node("n1");
    let lines = || node.agent().log().matches("connection complete").count();
    eventually(
        "a line each",
        SOON,
        || Ok(lines() as u64 == CONNECTIONS + 1),
    )?;
    for words in [&["log", "--off"][..], &["log", "--namespace", "bank"]] {
        node.netns().output(&mut node.command(words))?;
        let closed = counts(node, "source")?[1];
        echoes_to_the_end(client, to, BYTES)?;
        eventually("it has ended", SOON, || {
            Ok(counts(node, "source")?[1] == closed + 1)
        })?;
        // The log's writer follows within moments.
        sleep(AT_ONCE / 10);
    }
    node.netns().output(&mut node.command(&["log", "--all"]))?;
    echoes_to_the_end(client, to, BYTES)?;
    eventually("one more line", SOON, || {
        Ok(lines() as u64 == CONNECTIONS + 2)
    })
}
