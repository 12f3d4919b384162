//! Routes through one small world.
//!
//! Node `here` (192.0.2.8, pods in 10.0.0.0/24) has the enrolled pods a (10.0.0.1, `fd00::1`) and b (10.0.0.2) and the
//! plain pod p (10.0.0.3); node `far` (192.0.2.9, pods in 10.1.0.0/24) the enrolled c (10.1.0.1, `fd01::1`) and d
//! (10.1.0.2), the plain q (10.1.0.3) and h in the host's network.

use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoints::by_affinity;
use super::*;
use crate::model::tests::{attached, ip, labels, namespace, pod, told, world};
use crate::model::{
    ContainerPort, Endpoint, EndpointPort, EndpointSlice, Event, Hints, Identity, Key, Node,
    Object, Pod, Snapshot, TargetPort,
};

fn small_world() -> Snapshot {
    let with = |name: &str, addresses: &[&str], edit: fn(&mut Pod)| {
        let mut it = pod("shop", name, addresses);
        edit(&mut it);
        told(it)
    };
    let plain = |it: &mut Pod| it.labels = labels(&[("istio.io/dataplane-mode", "none")]);
    let web = |it: &mut Pod| {
        it.ports = vec![ContainerPort {
            name: "web".to_owned(),
            port: 8081,
            protocol: Protocol::Tcp,
        }];
    };
    world([
        node("here", "192.0.2.8", "10.0.0.0/24"),
        node("far", "192.0.2.9", "10.1.0.0/24"),
        namespace("shop", &[("istio.io/dataplane-mode", "ambient")]),
        with("a", &[], |_| {}),
        with("b", &[], |_| {}),
        with("p", &[], plain),
        with("c", &["10.1.0.1", "fd01::1"], web),
        with("d", &["10.1.0.2"], |_| {}),
        with("q", &["10.1.0.3"], plain),
        with("h", &["192.0.2.9"], |it| it.host_network = true),
        with("unlisted", &[], |_| {}),
        with("plain", &[], plain),
        attached("ca", Some(("shop", "a")), &["10.0.0.1", "fd00::1"]),
        attached("cb", Some(("shop", "b")), &["10.0.0.2"]),
        attached("cp", Some(("shop", "p")), &["10.0.0.3"]),
        attached("alone", None, &["10.0.0.4"]),
    ])
}

fn node(name: &str, address: &str, range: &str) -> Event {
    Event::Upsert(Object::Node(Arc::new(Node {
        name: name.into(),
        addresses: vec![ip(address)],
        pod_cidrs: vec![range.parse().unwrap()],
        zone: None,
        region: None,
    })))
}

fn service(name: &str, addresses: &[&str], target: TargetPort) -> Service {
    Service {
        key: Key::new("shop", name),
        addresses: addresses.iter().map(|it| ip(it)).collect(),
        ports: vec![
            ServicePort {
                name: "dns".to_owned(),
                port: 53,
                protocol: Protocol::Udp,
                target: TargetPort::Number(53),
            },
            ServicePort {
                name: "http".to_owned(),
                port: 80,
                protocol: Protocol::Tcp,
                target,
            },
        ],
        headless: false,
        publish_not_ready: false,
        internal_local: false,
        client_affinity: false,
    }
}

fn endpoint(pod: Option<&str>, address: &str) -> Endpoint {
    Endpoint {
        addresses: vec![ip(address)],
        ready: true,
        serving: true,
        terminating: false,
        pod: pod.map(|it| Key::new("shop", it)),
        node: None,
        hints: Hints::default(),
    }
}

fn slice(name: &str, service: &str, port: Option<u16>, endpoints: Vec<Endpoint>) -> Event {
    let ports = port.map(|port| EndpointPort {
        name: "http".to_owned(),
        port,
        protocol: Protocol::Tcp,
    });
    Event::Upsert(Object::EndpointSlice(Arc::new(EndpointSlice {
        key: Key::new("shop", name),
        service: Key::new("shop", service),
        endpoints,
        ports: ports.into_iter().collect(),
    })))
}

fn upsert(service: Service) -> Event {
    Event::Upsert(Object::Service(Arc::new(service)))
}

fn with(events: impl IntoIterator<Item = Event>) -> Snapshot {
    let mut snapshot = small_world();
    for event in events {
        snapshot.apply(event);
    }
    snapshot
}

/// The route as one line.
fn route(snapshot: &Snapshot, source: &str, destination: &str, index: usize) -> String {
    let outbound = Outbound {
        source: ip(source),
        destination: destination.parse().unwrap(),
    };
    let pick = |count: usize| {
        assert!(count > 0);
        index
    };
    match decide(snapshot, &outbound, pick) {
        Route::Tunnel {
            authority,
            tunnel,
            identities,
            host,
        } => {
            assert_eq!(tunnel, SocketAddr::new(authority.ip(), 15008));
            let host = host.map(|it| format!(" for {it}")).unwrap_or_default();
            format!("tunnel {authority} {identities:?}{host}")
        }
        Route::Local { address } => format!("local {address}"),
        Route::Plain {
            address,
            source: Some(own),
        } => {
            assert_eq!(own, outbound.source);
            format!("plain {address}")
        }
        Route::Plain {
            address,
            source: None,
        } => format!("plain {address} from the node"),
        Route::Refuse { reason } => format!("refuse: {reason}"),
    }
}

const DEFAULT: &str = "[spiffe://cluster.local/ns/shop/sa/default]";

#[test]
fn to_addresses() {
    let snapshot = small_world();
    let check = |source: &str, destination: &str, expect: &str| {
        assert_eq!(
            route(&snapshot, source, destination, 0),
            expect,
            "{source} -> {destination}"
        );
    };
    check(
        "10.0.0.1",
        "10.1.0.1:7000",
        &format!("tunnel 10.1.0.1:7000 {DEFAULT}"),
    );
    check(
        "fd00::1",
        "[fd01::1]:7000",
        &format!("tunnel [fd01::1]:7000 {DEFAULT}"),
    );
    check("10.0.0.1", "10.0.0.2:7000", "local 10.0.0.2:7000");
    check("10.0.0.1", "10.0.0.1:7000", "local 10.0.0.1:7000");
    check("10.0.0.1", "10.0.0.3:7000", "plain 10.0.0.3:7000");
    check("10.0.0.1", "10.0.0.4:7000", "plain 10.0.0.4:7000");
    check("10.0.0.1", "10.1.0.3:7000", "plain 10.1.0.3:7000");
    // Nobody's, a node's, or of a pod that is not told yet: what was captured never becomes plaintext.
    let unknown = "refuse: no workload and no service has the destination address";
    for destination in ["10.1.0.77:7000", "192.0.2.9:7000", "198.51.100.1:443"] {
        check("10.0.0.1", destination, unknown);
    }
    check("fd00::1", "[fd01::77]:7000", unknown);
    for port in [15001, 15006, 15008] {
        let expect = format!("refuse: port {port} is reserved for the mesh");
        check("10.0.0.1", &format!("10.1.0.1:{port}"), &expect);
        check("10.0.0.1", &format!("198.51.100.1:{port}"), &expect);
    }
    // No longer enrolled, but it was when its connection was captured.
    check(
        "10.0.0.3",
        "10.1.0.1:7000",
        &format!("tunnel 10.1.0.1:7000 {DEFAULT}"),
    );
    check("10.0.0.3", "10.0.0.1:7000", "local 10.0.0.1:7000");
    check(
        "10.0.0.99",
        "10.1.0.1:7000",
        "refuse: no workload of this node has the source address",
    );
    check(
        "10.1.0.1",
        "10.1.0.2:7000",
        "refuse: no workload of this node has the source address",
    );
}

#[test]
fn own_addresses() {
    let snapshot = small_world();
    for (address, own) in [
        ("192.0.2.8", true),
        ("127.0.0.1", true),
        ("::1", true),
        ("192.0.2.9", false),
        ("10.0.0.1", false),
    ] {
        assert_eq!(is_own_address(&snapshot, ip(address)), own, "{address}");
    }
}

#[test]
fn to_services() {
    let number = TargetPort::Number(8080);
    let mut not_ready = endpoint(Some("d"), "10.1.0.2");
    not_ready.ready = false;
    let snapshot = with([
        upsert(service("web", &["10.96.0.1", "fd96::1"], number.clone())),
        slice(
            "web-4",
            "web",
            Some(8080),
            vec![endpoint(Some("c"), "10.1.0.1"), not_ready.clone()],
        ),
        slice(
            "web-4b",
            "web",
            Some(9090),
            vec![endpoint(Some("b"), "10.0.0.2")],
        ),
        slice(
            "web-6",
            "web",
            Some(8080),
            vec![endpoint(Some("c"), "fd01::1")],
        ),
        upsert(service("empty", &["10.96.0.2"], number.clone())),
        slice("empty-4", "empty", Some(8080), vec![not_ready]),
        upsert(service("outside", &["10.96.0.3"], number.clone())),
        slice(
            "outside-4",
            "outside",
            Some(443),
            vec![endpoint(None, "198.51.100.7")],
        ),
        upsert(service("host", &["10.96.0.4"], number.clone())),
        slice(
            "host-4",
            "host",
            Some(6443),
            vec![
                endpoint(Some("h"), "192.0.2.9"),
                endpoint(None, "192.0.2.8"),
                endpoint(Some("q"), "10.1.0.3"),
            ],
        ),
        upsert(service("loop", &["10.96.0.5"], TargetPort::Number(15008))),
        slice(
            "loop-4",
            "loop",
            None,
            vec![endpoint(Some("c"), "10.1.0.1")],
        ),
    ]);
    let check = |destination: &str, index: usize, expect: &str| {
        let expect = expect.replace("ID", DEFAULT);
        assert_eq!(
            route(&snapshot, "10.0.0.1", destination, index),
            expect,
            "{destination} {index}"
        );
    };
    let host = "for web.shop.svc.cluster.local";
    check(
        "10.96.0.1:80",
        0,
        &format!("tunnel 10.1.0.1:8080 ID {host}"),
    );
    check("10.96.0.1:80", 1, "local 10.0.0.2:9090");
    check(
        "10.96.0.1:80",
        2,
        &format!("tunnel 10.1.0.1:8080 ID {host}"),
    );
    check(
        "[fd96::1]:80",
        0,
        &format!("tunnel [fd01::1]:8080 ID {host}"),
    );
    check(
        "10.96.0.1:81",
        0,
        "refuse: service shop/web has no TCP port 81",
    );
    check(
        "10.96.0.1:53",
        0,
        "refuse: service shop/web has no TCP port 53",
    );
    check(
        "10.96.0.2:80",
        0,
        "refuse: service shop/empty has no ready endpoint for port 80",
    );
    check("10.96.0.3:80", 0, "plain 198.51.100.7:443 from the node");
    check("10.96.0.4:80", 0, "plain 192.0.2.9:6443 from the node");
    check("10.96.0.4:80", 1, "plain 192.0.2.8:6443 from the node");
    check("10.96.0.4:80", 2, "plain 10.1.0.3:6443");
    check(
        "10.96.0.5:80",
        0,
        "refuse: port 15008 is reserved for the mesh",
    );
}

#[test]
fn to_endpoints_that_are_not_quite_there() {
    let web = || upsert(service("web", &["10.96.0.1"], TargetPort::Number(8080)));
    let check = |endpoints: Vec<Endpoint>, edit: fn(&mut Service), expect: &str| {
        let mut it = service("web", &["10.96.0.1"], TargetPort::Number(8080));
        edit(&mut it);
        let snapshot = with([
            web(),
            upsert(it),
            slice("web-4", "web", Some(8080), endpoints),
        ]);
        let got = route(&snapshot, "10.0.0.1", "10.96.0.1:80", 0);
        assert!(got.starts_with(expect), "{got}");
    };
    let state = |mut it: Endpoint, ready: bool, serving: bool, terminating: bool| {
        (it.ready, it.serving, it.terminating) = (ready, serving, terminating);
        it
    };
    let (b, c) = (
        endpoint(Some("b"), "10.0.0.2"),
        endpoint(Some("c"), "10.1.0.1"),
    );
    let none = "refuse: service shop/web has no ready endpoint";
    let as_is = |_: &mut Service| {};
    let leaving = state(b.clone(), false, true, true);
    check(vec![leaving.clone()], as_is, "local 10.0.0.2:8080");
    check(vec![leaving, c.clone()], as_is, "tunnel 10.1.0.1:8080");
    check(vec![state(b.clone(), false, false, true)], as_is, none);
    check(vec![state(b.clone(), false, true, false)], as_is, none);
    check(
        vec![state(b, false, false, false)],
        |it| it.publish_not_ready = true,
        "local 10.0.0.2:8080",
    );
    // Plain, and its address is not told yet.
    check(
        vec![endpoint(Some("plain"), "10.1.0.78")],
        as_is,
        "plain 10.1.0.78:8080",
    );
    // The address is another pod's by now, or the pod is not known: whatever is there is not what was meant.
    let moved = endpoint(Some("c"), "10.0.0.2");
    check(vec![moved.clone()], as_is, none);
    check(vec![moved, c], as_is, "tunnel 10.1.0.1:8080");
    check(vec![endpoint(Some("unheard-of"), "10.1.0.77")], as_is, none);
    check(vec![endpoint(Some("b"), "10.0.0.77")], as_is, none);
    // It names no pod, but no other can be there.
    check(vec![endpoint(None, "10.1.0.77")], as_is, none);
    check(
        vec![endpoint(None, "10.1.0.1")],
        as_is,
        "tunnel 10.1.0.1:8080",
    );
    // Enrolled, but its address is not told yet: never plain.
    check(
        vec![endpoint(Some("unlisted"), "10.1.0.77")],
        as_is,
        "tunnel 10.1.0.77:8080",
    );
}

/// Endpoints b on node here (zone z1), c and d on node far (zone z2).
fn spread(edit: impl Fn(&mut Endpoint)) -> Vec<Endpoint> {
    [
        ("b", "10.0.0.2", "here"),
        ("c", "10.1.0.1", "far"),
        ("d", "10.1.0.2", "far"),
    ]
    .map(|(name, address, node)| {
        let mut it = endpoint(Some(name), address);
        it.node = Some(node.into());
        edit(&mut it);
        it
    })
    .into()
}

/// The pods that a connection from a pod to service web may reach, by their letters.
fn reached(edit: impl Fn(&mut Service), zone: Option<&str>, endpoints: Vec<Endpoint>) -> String {
    let mut it = service("web", &["10.96.0.1"], TargetPort::Number(8080));
    edit(&mut it);
    let here = Node {
        name: "here".into(),
        addresses: vec![ip("192.0.2.8")],
        pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
        zone: zone.map(Into::into),
        region: None,
    };
    let snapshot = with([
        Event::Upsert(Object::Node(Arc::new(here))),
        upsert(it),
        slice("web-4", "web", Some(8080), endpoints),
    ]);
    let mut found: Vec<_> = (0..12)
        .map(|index| {
            let route = route(&snapshot, "10.0.0.1", "10.96.0.1:80", index);
            let pods = [("10.0.0.2:", "b"), ("10.1.0.1:", "c"), ("10.1.0.2:", "d")];
            let found = pods.iter().find(|(address, _)| route.contains(address));
            found.map_or("-", |(_, name)| name)
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.concat()
}

#[test]
fn to_endpoints_of_this_node_only() {
    let check = |edit: fn(&mut Endpoint), expect: &str| {
        let got = reached(|it| it.internal_local = true, Some("z1"), spread(edit));
        assert_eq!(got, expect);
    };
    check(|_| {}, "b");
    check(|it| it.node = Some("far".into()), "-");
    check(|it| it.node = None, "-");
    // Rather one that is shutting down than one elsewhere.
    let leaves = |it: &mut Endpoint| {
        if it.node.as_deref() == Some("here") {
            (it.ready, it.terminating) = (false, true);
        }
    };
    check(leaves, "b");
    let fails = |it: &mut Endpoint| {
        if it.node.as_deref() == Some("here") {
            (it.ready, it.serving) = (false, false);
        }
    };
    check(fails, "-");
    // And no hint leads elsewhere.
    check(|it| it.hints.nodes = vec!["here".into()], "b");
    assert_eq!(reached(|_| {}, Some("z1"), spread(leaves)), "cd");
}

#[test]
fn to_endpoints_that_hint_at_this_node_or_zone() {
    let check = |zone: Option<&str>, hints: &[(&str, &str, &str)], expect: &str| {
        let endpoints = spread(|it| {
            let name = &*it.pod.as_ref().unwrap().name;
            for (of, zones, nodes) in hints.iter().filter(|(of, ..)| of.contains(name)) {
                assert!(!of.is_empty());
                let list = |text: &str| text.split_whitespace().map(Into::into).collect();
                it.hints = Hints {
                    zones: list(zones),
                    nodes: list(nodes),
                };
            }
        });
        assert_eq!(
            reached(|_| {}, zone, endpoints),
            expect,
            "{zone:?} {hints:?}"
        );
    };
    let zones = [("b", "z1", ""), ("c", "z1 z2", ""), ("d", "z2", "")];
    check(Some("z1"), &zones, "bc");
    check(Some("z2"), &zones, "cd");
    check(None, &zones, "bcd");
    check(Some("z3"), &zones, "bcd");
    // One without hints: they are being changed.
    check(Some("z1"), &[("b", "z1", ""), ("c", "z1", "")], "bcd");
    let nodes = [("b", "z1", "here"), ("c", "z1", "far"), ("d", "z2", "far")];
    check(Some("z2"), &nodes, "b");
    // No endpoint of this node: its zone.
    let nodes = [("bc", "z1", "far"), ("d", "z2", "far")];
    check(Some("z2"), &nodes, "d");
}

#[test]
fn hints_yield_to_what_can_be_used() {
    let hinted = |edit: fn(&mut Endpoint)| {
        spread(|it| {
            let zone = if it.node.as_deref() == Some("here") {
                "z1"
            } else {
                "z2"
            };
            it.hints.zones = vec![zone.into()];
            edit(it);
        })
    };
    let as_is = |_: &mut Service| {};
    assert_eq!(reached(as_is, Some("z1"), hinted(|_| {})), "b");
    // Not ready: no reason to go there.
    let not_ready = |it: &mut Endpoint| it.ready &= it.node.as_deref() != Some("here");
    assert_eq!(reached(as_is, Some("z1"), hinted(not_ready)), "cd");
    // Its address is another pod's by now.
    let stale = |it: &mut Endpoint| {
        if it.node.as_deref() == Some("here") {
            it.addresses = vec![ip("10.0.0.3")];
        }
    };
    assert_eq!(reached(as_is, Some("z1"), hinted(stale)), "cd");
}

#[test]
fn a_client_stays_with_its_endpoint() {
    let sticky = |it: &mut Service| it.client_affinity = true;
    let all = spread(|_| {});
    let chosen = reached(sticky, None, all.clone());
    assert_eq!(chosen.len(), 1, "{chosen}");
    // Whatever else comes and goes, in whatever order.
    let name = |it: &Endpoint| it.pod.as_ref().unwrap().name.to_string();
    for other in all.iter().map(name).filter(|it| *it != chosen) {
        let mut fewer = all.clone();
        fewer.retain(|it| name(it) != other);
        fewer.reverse();
        assert_eq!(reached(sticky, None, fewer), chosen);
    }
    let mut others = all;
    others.retain(|it| name(it) != chosen);
    assert_eq!(reached(sticky, None, others).len(), 1);
}

#[test]
fn clients_are_spread() {
    let it = service("web", &["10.96.0.1"], TargetPort::Number(8080));
    let snapshot = with([slice("web-4", "web", Some(8080), spread(|_| {}))]);
    let mut count = std::collections::BTreeMap::<_, u32>::new();
    for last in 0..=255 {
        let mut groups = candidates(&snapshot, "here", &it, &it.ports[1], true);
        by_affinity(&mut groups[0], ip(&format!("10.0.7.{last}")));
        *count.entry(groups[0][0].address).or_default() += 1;
    }
    assert_eq!(count.len(), 3);
    assert!(count.values().all(|it| (50..120).contains(it)), "{count:?}");
}

#[test]
fn to_named_ports() {
    let snapshot = with([
        upsert(service(
            "web",
            &["10.96.0.1"],
            TargetPort::Name("web".to_owned()),
        )),
        slice(
            "web-4",
            "web",
            None,
            vec![
                endpoint(Some("d"), "10.1.0.2"),
                endpoint(Some("c"), "10.1.0.1"),
            ],
        ),
    ]);
    // Only c has a port of that name.
    for index in 0..3 {
        let got = route(&snapshot, "10.0.0.1", "10.96.0.1:80", index);
        assert!(got.starts_with("tunnel 10.1.0.1:8081"), "{got}");
    }
}

#[test]
fn inbound_streams() {
    let snapshot = with([
        upsert(service("web", &["10.96.0.1"], TargetPort::Number(8080))),
        slice(
            "web-4",
            "web",
            Some(9090),
            vec![endpoint(Some("b"), "10.0.0.2")],
        ),
    ]);
    let check = |local: &str, authority: &str, expect: Result<&str, u16>| {
        let owner = Identity::new("cluster.local", "shop", "default");
        let got = inbound(&snapshot, ip(local), &owner, &authority.parse().unwrap());
        let got = got.map(|it| it.to_string()).map_err(|it| match it {
            Rejection::AddressMismatch { .. } => 400,
            _ => 503,
        });
        assert_eq!(got, expect.map(str::to_owned), "{authority} at {local}");
    };
    check("10.0.0.1", "10.0.0.1:7000", Ok("10.0.0.1:7000"));
    check("fd00::1", "[fd00::1]:7000", Ok("[fd00::1]:7000"));
    check("10.0.0.1", "10.0.0.2:7000", Err(400));
    check("10.0.0.1", "[fd00::1]:7000", Err(400));
    for port in [15001, 15006, 15008] {
        check("10.0.0.1", &format!("10.0.0.1:{port}"), Err(503));
    }
    // No longer enrolled, but it was when the tunnel was made.
    check("10.0.0.3", "10.0.0.3:7000", Ok("10.0.0.3:7000"));
    // Remote, unknown.
    check("10.1.0.1", "10.1.0.1:7000", Err(503));
    check("10.0.0.99", "10.0.0.99:7000", Err(503));
    // The address is another pod's by now.
    let before = Identity::new("cluster.local", "shop", "before");
    let authority = "10.0.0.1:7000".parse().unwrap();
    assert_eq!(
        inbound(&snapshot, ip("10.0.0.1"), &before, &authority),
        Err(Rejection::UnknownWorkload(ip("10.0.0.1")))
    );
    // By name: the port of the endpoint, or of the service while the endpoint is not known.
    check(
        "10.0.0.2",
        "web.shop.svc.cluster.local:80",
        Ok("10.0.0.2:9090"),
    );
    check(
        "10.0.0.1",
        "web.shop.svc.cluster.local:80",
        Ok("10.0.0.1:8080"),
    );
    check("10.0.0.1", "web.shop.svc.cluster.local:81", Err(503));
    check("10.0.0.1", "web.shop.svc.cluster.local:53", Err(503));
    check("10.0.0.1", "none.shop.svc.cluster.local:80", Err(503));
    check("10.0.0.1", "web.shop.svc.elsewhere:80", Err(503));
    check("10.0.0.1", "example.org:80", Err(503));
}
