//! The engine against the naive evaluator on random worlds.
//!
//! Names, labels, prefixes and ports are drawn from few, so that they meet. `MESH_POLICY_CASES=100000 cargo test -p
//! mesh-agent --lib random` draws more worlds than a test run does; each is asked [`TRIES`] times at both ends.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option::{self, weighted};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::naive::Objects;
use super::*;

/// Connections tried in each world.
const TRIES: usize = 12;

const NAMESPACES: [&str; 3] = ["x", "y", "istio-system"];

/// Where connections start and end: those of pods come first.
pub(super) const ADDRESSES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "10.0.1.2",
    "fd00::1",
    "fd00::2",
    "203.0.113.7",
    "192.168.0.1",
    "fd00:1::1",
];

const PREFIXES: [&str; 13] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/23",
    "10.0.0.0/24",
    "10.0.1.0/24",
    "10.0.0.2/31",
    "10.0.0.2/32",
    "10.0.1.9/24",
    "203.0.113.0/24",
    "::/0",
    "fd00::/16",
    "fd00::/64",
    "fd00::2/128",
];

pub(super) const PORTS: [u16; 6] = [53, 80, 81, 8080, 8090, 15008];

/// An object of those fields that are there.
fn object(fields: Vec<(&str, Option<Value>)>) -> Value {
    let there = fields
        .into_iter()
        .filter_map(|(name, it)| Some((name.to_owned(), it?)));
    Value::Object(there.collect::<Map<_, _>>())
}

fn text(of: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    select(of).prop_map(str::to_owned)
}

fn texts(of: &'static [&'static str]) -> impl Strategy<Value = Value> {
    vec(select(of), 1..3).prop_map(|it| json!(it))
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let app = weighted(0.8, text(&["a", "b", "c"]));
    let tier = option::of(text(&["front", "back"]));
    (app, tier).prop_map(|(app, tier)| {
        let app = app.map(|it| ("app".to_owned(), it));
        app.into_iter()
            .chain(tier.map(|it| ("tier".to_owned(), it)))
            .collect()
    })
}

fn expression(keys: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let operator = select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
    let values = vec(select(vec!["a", "b", "front", "red", "x", "y"]), 1..3);
    (select(keys), operator, values).prop_map(|(key, operator, values)| {
        let values = operator.ends_with("In").then(|| json!(values));
        object(vec![
            ("key", Some(json!(key))),
            ("operator", Some(json!(operator))),
            ("values", values),
        ])
    })
}

fn selector() -> impl Strategy<Value = Value> {
    let labels = weighted(0.5, labels());
    let expressions = weighted(0.4, vec(expression(&["app", "tier"]), 1..3));
    (labels, expressions).prop_map(|(labels, expressions)| {
        object(vec![
            ("matchLabels", labels.map(|it| json!(it))),
            ("matchExpressions", expressions.map(|it| json!(it))),
        ])
    })
}

fn namespace_selector() -> impl Strategy<Value = Value> {
    const KEYS: &[&str] = &["team", "env", "kubernetes.io/metadata.name"];
    vec(expression(KEYS), 0..3).prop_map(|it| json!({ "matchExpressions": it }))
}

fn a_namespace(name: &'static str) -> impl Strategy<Value = Option<Value>> {
    let labels = (
        option::of(text(&["red", "blue"])),
        option::of(Just("prod")),
        weighted(0.7, Just("ambient")),
    );
    let it = labels.prop_map(move |(team, env, mode)| {
        let labels = object(vec![
            ("team", team.map(|it| json!(it))),
            ("env", env.map(|it| json!(it))),
            ("istio.io/dataplane-mode", mode.map(|it| json!(it))),
        ]);
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    });
    weighted(0.9, it)
}

fn a_pod(index: usize) -> impl Strategy<Value = Option<Value>> {
    let ports = vec(
        (
            select(vec!["web", "dns"]),
            select(PORTS.to_vec()),
            protocol(),
        ),
        0..3,
    );
    let rest = (
        select(NAMESPACES.to_vec()),
        labels(),
        text(&["default", "bob"]),
        prop::bool::weighted(0.1),
        ports,
    );
    let it = rest.prop_map(move |(namespace, labels, account, host, ports)| {
        let ports: Vec<_> = ports
            .iter()
            .map(|(name, port, protocol)| json!({"name": name, "containerPort": port, "protocol": protocol}))
            .collect();
        let probe = json!({"tcpSocket": {"port": 8090}});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": format!("pod-{index}"), "labels": labels},
            "spec": {
                "nodeName": "far", "serviceAccountName": account, "hostNetwork": host,
                "containers": [{"name": "c", "ports": ports, "readinessProbe": probe}],
            },
            "status": {"podIPs": [{"ip": ADDRESSES[index]}]},
        })
    });
    weighted(0.9, it)
}

fn protocol() -> impl Strategy<Value = Option<String>> {
    weighted(0.5, text(&["TCP", "UDP", "SCTP"]))
}

fn a_port() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        1 => Just((None, None)),
        4 => select(PORTS.to_vec()).prop_map(|it| (Some(json!(it)), None)),
        3 => (select(PORTS.to_vec()), select(PORTS.to_vec()))
            .prop_map(|(a, b)| (Some(json!(a.min(b))), Some(json!(a.max(b))))),
        3 => text(&["web", "dns"]).prop_map(|it| (Some(json!(it)), None)),
    ];
    (port, protocol()).prop_map(|((port, end), protocol)| {
        let protocol = protocol.map(|it| json!(it));
        object(vec![
            ("port", port),
            ("endPort", end),
            ("protocol", protocol),
        ])
    })
}

fn a_peer() -> impl Strategy<Value = Value> {
    let block = (
        select(PREFIXES.to_vec()),
        vec(select(PREFIXES.to_vec()), 0..3),
    )
        .prop_map(|(cidr, except)| {
            // Only what lies within may be left out.
            let net: ipnet::IpNet = cidr.parse().unwrap();
            let within = |it: &&str| net.trunc().contains(&it.parse::<ipnet::IpNet>().unwrap());
            let except: Vec<_> = except.into_iter().filter(within).collect();
            json!({"ipBlock": {"cidr": cidr, "except": except}})
        });
    prop_oneof![
        3 => block,
        2 => selector().prop_map(|it| json!({"podSelector": it})),
        2 => namespace_selector().prop_map(|it| json!({"namespaceSelector": it})),
        2 => (namespace_selector(), selector())
            .prop_map(|(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})),
    ]
}

fn a_rule(end: &'static str) -> impl Strategy<Value = Value> {
    let peers = weighted(0.8, vec(a_peer(), 0..3).prop_map(|it| json!(it)));
    let ports = weighted(0.7, vec(a_port(), 0..3).prop_map(|it| json!(it)));
    (peers, ports).prop_map(move |(peers, ports)| object(vec![(end, peers), ("ports", ports)]))
}

fn a_network_policy(index: usize) -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        Just(None),
        Just(Some(json!([]))),
        Just(Some(json!(["Ingress"]))),
        Just(Some(json!(["Egress"]))),
        Just(Some(json!(["Ingress", "Egress"]))),
    ];
    let rules = |end| weighted(0.7, vec(a_rule(end), 0..3).prop_map(|it| json!(it)));
    let parts = (
        select(NAMESPACES.to_vec()),
        selector(),
        types,
        rules("from"),
        rules("to"),
    );
    parts.prop_map(move |(namespace, selector, types, ingress, egress)| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": format!("np-{index}")},
            "spec": object(vec![
                ("podSelector", Some(selector)), ("policyTypes", types), ("ingress", ingress), ("egress", egress),
            ]),
        })
    })
}

/// Some fields of those given, at least one.
fn some_of(fields: Vec<(&'static str, &'static [&'static str])>) -> impl Strategy<Value = Value> {
    let one = |(name, of)| texts(of).prop_map(move |it| (name, it)).boxed();
    let fields: Vec<_> = fields.into_iter().map(one).collect();
    let count = fields.len();
    let chosen = prop::sample::subsequence(fields, 1..=count.min(3));
    chosen.prop_flat_map(|it| it).prop_map(|it| {
        let fields = it.into_iter().map(|(name, it)| (name.to_owned(), it));
        Value::Object(fields.collect())
    })
}

const PRINCIPALS: &[&str] = &[
    "*",
    "cluster.local/ns/x/sa/bob",
    "cluster.local/ns/y/*",
    "*/sa/default",
    "cluster.local/ns/x/sa/none",
];
const SPACES: &[&str] = &["x", "y", "*", "i*", "*-system"];
const ACCOUNTS: &[&str] = &["bob", "x/default", "y/bob", "default"];
const NUMBERS: &[&str] = &["53", "80", "81", "8080", "8090"];
const BLOCKS: &[&str] = &[
    "10.0.0.2",
    "10.0.0.0/24",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "fd00::1",
    "203.0.113.7/32",
];

fn a_source() -> impl Strategy<Value = Value> {
    some_of(vec![
        ("principals", PRINCIPALS),
        ("notPrincipals", PRINCIPALS),
        ("namespaces", SPACES),
        ("notNamespaces", SPACES),
        ("serviceAccounts", ACCOUNTS),
        ("notServiceAccounts", ACCOUNTS),
        ("ipBlocks", BLOCKS),
        ("notIpBlocks", BLOCKS),
        ("requestPrincipals", &["*"]),
    ])
    .prop_map(|it| json!({ "source": it }))
}

fn an_operation() -> impl Strategy<Value = Value> {
    some_of(vec![
        ("ports", NUMBERS),
        ("notPorts", NUMBERS),
        ("methods", &["GET"]),
    ])
    .prop_map(|it| json!({ "operation": it }))
}

fn a_condition() -> impl Strategy<Value = Value> {
    let of = |key: &'static str, values| {
        some_of(vec![("values", values), ("notValues", values)]).prop_map(move |mut it| {
            it["key"] = json!(key);
            it
        })
    };
    prop_oneof![
        of("source.ip", BLOCKS),
        of("source.namespace", SPACES),
        of("source.principal", PRINCIPALS),
        of("destination.ip", BLOCKS),
        of("destination.port", NUMBERS),
        of("request.headers[x]", &["y"]),
    ]
}

fn an_authorization_policy(index: usize) -> impl Strategy<Value = Value> {
    let some = |it: BoxedStrategy<Value>| weighted(0.4, vec(it, 1..3).prop_map(|it| json!(it)));
    let rule = (
        some(a_source().boxed()),
        some(an_operation().boxed()),
        some(a_condition().boxed()),
    );
    let rule =
        rule.prop_map(|(from, to, when)| object(vec![("from", from), ("to", to), ("when", when)]));
    let selector = weighted(0.5, labels().prop_map(|it| json!({ "matchLabels": it })));
    let action = select(vec![None, Some(json!("ALLOW")), Some(json!("DENY"))]);
    let parts = (
        select(NAMESPACES.to_vec()),
        selector,
        action,
        weighted(0.9, vec(rule, 0..3)),
    );
    parts.prop_map(move |(namespace, selector, action, rules)| {
        let rules = rules.map(|it| json!(it));
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": namespace, "name": format!("ap-{index}")},
            "spec": object(vec![("selector", selector), ("action", action), ("rules", rules)]),
        })
    })
}

fn a_peer_authentication(index: usize) -> impl Strategy<Value = Value> {
    let mode =
        || text(&["UNSET", "PERMISSIVE", "STRICT", "DISABLE"]).prop_map(|it| json!({ "mode": it }));
    let ports = weighted(
        0.4,
        prop::collection::btree_map(text(NUMBERS), mode(), 1..3),
    );
    let selector = weighted(0.4, labels().prop_map(|it| json!({ "matchLabels": it })));
    let parts = (
        select(NAMESPACES.to_vec()),
        1..4_u8,
        selector,
        weighted(0.8, mode()),
        ports,
    );
    parts.prop_map(move |(namespace, day, selector, mtls, ports)| {
        let created = format!("2026-01-0{day}T00:00:00Z");
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"namespace": namespace, "name": format!("pa-{index}"), "creationTimestamp": created},
            "spec": object(vec![
                ("selector", selector), ("mtls", mtls), ("portLevelMtls", ports.map(|it| json!(it))),
            ]),
        })
    })
}

/// Up to `most` objects, each with a number.
fn some<S: Strategy<Value = Value> + 'static>(
    most: usize,
    each: impl Fn(usize) -> S,
) -> impl Strategy<Value = Vec<Value>> {
    let all: Vec<_> = (0..most).map(|i| weighted(0.5, each(i))).collect();
    all.prop_map(|it| it.into_iter().flatten().collect())
}

pub(super) fn any_objects() -> impl Strategy<Value = Vec<Value>> {
    let namespaces: Vec<_> = NAMESPACES.map(a_namespace).into_iter().collect();
    let pods: Vec<_> = (0..7).map(a_pod).collect();
    let policies = (
        some(6, a_network_policy),
        some(3, an_authorization_policy),
        some(3, a_peer_authentication),
    );
    (namespaces, pods, policies).prop_map(|(namespaces, pods, (network, authorization, peers))| {
        let told = namespaces.into_iter().chain(pods).flatten();
        told.chain(network)
            .chain(authorization)
            .chain(peers)
            .collect()
    })
}

fn any_try() -> impl Strategy<Value = Try> {
    let protocol = select(vec![
        IpProtocol::Tcp,
        IpProtocol::Tcp,
        IpProtocol::Udp,
        IpProtocol::Sctp,
        IpProtocol::Icmp,
    ]);
    let (from, to) = (select(ADDRESSES.to_vec()), select(ADDRESSES.to_vec()));
    let flags = (any::<bool>(), prop::bool::weighted(0.1));
    (from, to, select(PORTS.to_vec()), protocol, flags).prop_map(
        |(from, to, port, protocol, (mtls, node))| Try {
            protocol,
            mtls,
            node,
            ..tcp(from, to, port)
        },
    )
}

pub(super) fn cases() -> u32 {
    let told = std::env::var("MESH_POLICY_CASES").ok();
    told.map_or(2000, |it| {
        it.parse().expect("MESH_POLICY_CASES is a number")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn engine_and_naive_evaluator_agree(objects in any_objects(), tries in vec(any_try(), TRIES)) {
        let text: String = objects.iter().map(Value::to_string).collect();
        let mut snapshot = Snapshot::new(Settings::for_node("here"));
        for object in read(&text, Syntax::Json).unwrap().objects {
            snapshot.apply(Event::Upsert(object));
        }
        let naive = Objects(objects);
        for it in &tries {
            for direction in [Direction::Egress, Direction::Ingress] {
                let verdict = it.at(&snapshot, direction);
                prop_assert_eq!(verdict.allow, naive.allow(it, direction), "{:?} {:?}: {}", it, direction, verdict);
            }
        }
    }
}
