//! Compiled policy, looked up as the kernel does, against the engine: case by case, on random worlds, and on large ones.

use std::collections::BTreeSet;
use std::time::Instant;

use mesh_common::addr::{Addr, Port};
use mesh_common::maps::{self, flags};
use mesh_common::policy as kernel;
use proptest::prelude::*;
use proptest::sample::select;

use super::random::{ADDRESSES, PORTS, any_objects, cases};
use super::*;
use crate::model::WorkloadKey;
use crate::policy::compile::{Compiled, compile};

/// What a snapshot's policies come to.
struct Tables(Compiled);

impl Tables {
    /// A local pod's interface as the kernel knows it.
    fn pod(&self, snapshot: &Snapshot, workload: &Workload, interface: usize) -> maps::Pod {
        let attached = snapshot
            .attachment(&workload.attachments[interface])
            .unwrap();
        let of = |v4: bool| attached.addresses.iter().find(|it| it.is_ipv4() == v4);
        let addr = |v4| of(v4).map_or(Addr::NONE, |it| Addr::from(*it));
        let subject = self.0.sets.get(&workload.key);
        maps::Pod {
            addr4: addr(true),
            addr6: addr(false),
            workload: workload.id.0,
            flags: subject.map_or(0, |it| it.flags),
            mac: [0; 6],
            host_mac: [0; 6],
            policy: subject.map_or(0, |it| it.set),
            generation: 0,
        }
    }
}

/// A flow of a local pod's interface, to or from whoever has an address.
#[derive(Clone, Copy, Debug)]
struct Flow {
    interface: usize,
    peer: IpAddr,
    direction: Direction,
    protocol: u8,
    port: u16,
    proved: bool,
    node: bool,
}

impl Flow {
    /// What the kernel says and what the engine says; none for what cannot be.
    fn judge(&self, snapshot: &Snapshot, tables: &Tables, me: &Workload) -> Option<(bool, bool)> {
        let ingress = self.direction == Direction::Ingress;
        let peer = snapshot.workload_by_addr(self.peer).map(|it| &**it);
        let peer = peer.filter(|_| !self.node);
        let is_local = peer.is_some_and(Workload::is_local);
        if self.proved && !(ingress && is_local) || self.node && !ingress {
            return None;
        }
        let attached = snapshot.attachment(&me.attachments[self.interface])?;
        let mut own = attached.addresses.iter();
        let own = *own.find(|it| it.is_ipv4() == self.peer.is_ipv4())?;
        let pod = tables.pod(snapshot, me, self.interface);
        let addr = Addr::from(self.peer);
        let (direction, other) = (
            if ingress {
                maps::Direction::Ingress
            } else {
                maps::Direction::Egress
            },
            if self.node {
                kernel::Peer::Node
            } else {
                kernel::Peer::Addr(&addr)
            },
        );
        let to = (u32::from(self.protocol), Port::new(self.port));
        let compiled = kernel::allows(&tables.0, &pod, direction, &other, self.proved, to);
        let identity = peer.and_then(|it| it.identity.as_ref());
        let ends = [(self.peer, peer), (own, Some(me))];
        let [from, into] = if ingress { ends } else { [ends[1], ends[0]] };
        let connection = Connection {
            direction: self.direction,
            protocol: self.protocol.into(),
            source: Source {
                address: from.0,
                workload: from.1,
                identity: identity.filter(|_| self.proved),
            },
            destination: Destination {
                address: into.0,
                port: self.port,
                workload: into.1,
            },
            from_node: self.node,
        };
        Some((compiled, evaluate(snapshot, &connection).allow))
    }
}

/// Every interface of a pod of this node, with its pod.
fn interfaces(snapshot: &Snapshot) -> Vec<(usize, &Workload)> {
    let local = snapshot.workloads_on("here").filter(|it| it.is_local());
    local
        .flat_map(|it| (0..it.attachments.len()).map(move |i| (i, &**it)))
        .collect()
}

/// Asserts that kernel and engine agree on everything, for some peers and ports.
#[track_caller]
fn agree(snapshot: &Snapshot, peers: &[&str], ports: &[u16]) -> Tables {
    let tables = Tables(compile(snapshot));
    let mut tried = 0;
    for (interface, me) in interfaces(snapshot) {
        for peer in peers {
            for (direction, proved, node) in [
                (Direction::Egress, false, false),
                (Direction::Ingress, false, false),
                (Direction::Ingress, true, false),
                (Direction::Ingress, false, true),
            ] {
                for protocol in [1, 6, 17, 58, 132, 47] {
                    for port in ports {
                        let flow = Flow {
                            interface,
                            peer: ip(peer),
                            direction,
                            protocol,
                            port: *port,
                            proved,
                            node,
                        };
                        if node && *peer != THE_NODE {
                            continue;
                        }
                        if let Some((kernel, engine)) = flow.judge(snapshot, &tables, me) {
                            assert_eq!(kernel, engine, "{} {flow:?}", me.key);
                            tried += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(tried > 0 || interfaces(snapshot).is_empty());
    tables
}

/// [`base`] with some of its pods on this node, and this node.
fn here(texts: &[&str]) -> Snapshot {
    let mut snapshot = world(&[&base(), NODE]);
    for text in texts {
        tell(&mut snapshot, text);
    }
    attach(&mut snapshot, "x", "a", &[A]);
    attach(&mut snapshot, "x", "b", &[B, "fd00::b"]);
    attach(&mut snapshot, "y", "b", &[YB]);
    snapshot
}

fn attach(snapshot: &mut Snapshot, namespace: &str, name: &str, addresses: &[&str]) {
    let pod = mesh_common::cni::PodRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: None,
    };
    snapshot.apply(Event::Attached(crate::model::Attached {
        attachment: crate::model::tests::attachment(&format!(
            "{namespace}-{name}-{}",
            addresses[0]
        )),
        pod: Some(pod),
        addresses: addresses.iter().map(|it| ip(it)).collect(),
    }));
}

const NODE: &str = "\n---\n{apiVersion: v1, kind: Node, metadata: {name: here}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}";
const THE_NODE: &str = "192.168.0.1";
const PEERS: [&str; 9] = [A, B, C, YA, YB, SIX, OUTSIDE, THE_NODE, "fd00:1::1"];
const SOME_PORTS: [u16; 10] = [0, 53, 79, 80, 81, 443, 8080, 8090, 9090, 65535];

fn ambient() -> String {
    namespace("x", "istio.io/dataplane-mode: ambient, team: red")
        + &namespace("y", "istio.io/dataplane-mode: ambient, env: prod")
}

fn subject(tables: &Tables, namespace: &str, name: &str) -> Option<(u32, u32)> {
    let key = WorkloadKey::Pod(crate::model::Key::new(namespace, name));
    tables.0.sets.get(&key).map(|it| (it.flags, it.set))
}

#[test]
fn without_policies_there_is_nothing() {
    let other = network_policy("x", "p", "{podSelector: {matchLabels: {app: c}}}");
    assert_eq!(
        agree(&here(&[&other, &ambient()]), &PEERS, &SOME_PORTS).0,
        Compiled::default()
    );
    let permissive = istio("PeerAuthentication", "x", "p", "{mtls: {mode: PERMISSIVE}}");
    assert_eq!(
        agree(&here(&[&permissive, &ambient()]), &PEERS, &SOME_PORTS).0,
        Compiled::default()
    );
}

#[test]
fn a_default_deny_needs_no_class_and_one_entry() {
    let deny = network_policy(
        "x",
        "p",
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
    );
    let tables = agree(&here(&[&deny]), &PEERS, &SOME_PORTS);
    assert!(tables.0.classes.is_empty());
    // For the node.
    assert_eq!(tables.0.entries.len(), 1);
    let both = flags::INGRESS | flags::EGRESS;
    assert_eq!(subject(&tables, "x", "a"), Some((both, 1)));
    assert_eq!(subject(&tables, "x", "b"), Some((both, 1)));
    assert_eq!(subject(&tables, "y", "b"), None);
}

#[test]
fn peers_and_ports() {
    let policy = network_policy(
        "x",
        "p",
        "{podSelector: {}, ingress: [
            {from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: web}, {port: 80, endPort: 443}]},
            {from: [{namespaceSelector: {matchLabels: {env: prod}}}]},
            {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24, 10.0.0.3/32]}}], ports: [{port: 53, protocol: UDP}]},
            {from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}], ports: [{port: 443}]},
            {from: [{ipBlock: {cidr: '::/0', except: ['fd00::/16']}}], ports: [{protocol: SCTP}]}],
          egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}, {to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
    );
    let mut snapshot = here(&[&policy]);
    let tables = agree(&snapshot, &PEERS, &SOME_PORTS);
    // `a` names the port, `b` does not.
    assert_ne!(subject(&tables, "x", "a"), subject(&tables, "x", "b"));
    forget(&mut snapshot, &pod("x", "a", A, ""));
    agree(&snapshot, &PEERS, &SOME_PORTS);
}

#[test]
fn many_blocks_of_one_rule_are_one_class() {
    let blocks: Vec<_> = (0..200)
        .map(|i| format!("{{ipBlock: {{cidr: 100.64.{i}.0/25}}}}"))
        .collect();
    let policy = |name, half: &str| {
        let spec =
            format!("{{podSelector: {{}}, ingress: [{{from: [{half}], ports: [{{port: 80}}]}}]}}");
        network_policy("x", name, &spec)
    };
    let apart = policy("q", "{ipBlock: {cidr: 100.65.0.0/16}}");
    let snapshot = here(&[&policy("p", &blocks.join(", ")), &apart]);
    let tables = agree(
        &snapshot,
        &["100.64.7.1", "100.64.7.200", "100.65.1.1", "100.66.0.1"],
        &[80, 81],
    );
    assert_eq!(tables.0.classes.len(), 201);
    assert_eq!(tables.0.classes.values().collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(tables.0.entries.len(), 2);
}

#[test]
fn the_strict_flag_is_for_every_port() {
    let strict = istio(
        "PeerAuthentication",
        "istio-system",
        "p",
        "{mtls: {mode: STRICT}}",
    );
    let tables = agree(&here(&[&ambient(), &strict]), &PEERS, &SOME_PORTS);
    assert_eq!(
        subject(&tables, "x", "a"),
        Some((flags::INGRESS | flags::STRICT, 1))
    );
    let except = "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}";
    let except = istio("PeerAuthentication", "x", "q", except);
    let tables = agree(&here(&[&ambient(), &strict, &except]), &PEERS, &SOME_PORTS);
    assert_eq!(subject(&tables, "x", "a").unwrap().0, flags::INGRESS);
    assert_eq!(
        subject(&tables, "x", "b").unwrap().0,
        flags::INGRESS | flags::STRICT
    );
    let only = "{selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: STRICT}}}";
    let only = istio("PeerAuthentication", "x", "q", only);
    let tables = agree(&here(&[&ambient(), &only]), &PEERS, &SOME_PORTS);
    assert_eq!(subject(&tables, "x", "a").unwrap().0, flags::INGRESS);
    assert_eq!(subject(&tables, "x", "b"), None);
}

#[test]
fn identities_count_for_pods_of_this_node_only() {
    let allow = "{rules: [{from: [{source: {principals: ['cluster.local/ns/x/sa/default']}}], to: [{operation: {ports: ['80']}}]}]}";
    let allow = istio("AuthorizationPolicy", "y", "p", allow);
    let deny = "{action: DENY, rules: [{from: [{source: {ipBlocks: ['10.0.0.2', '203.0.113.0/24']}}]}, {from: [{source: {notIpBlocks: ['192.168.0.0/16', '10.0.0.0/8', '::/0']}}]}]}";
    let deny = istio("AuthorizationPolicy", "y", "q", deny);
    let tables = agree(&here(&[&ambient(), &allow]), &PEERS, &SOME_PORTS);
    // Of the three pods here two have the identity; nobody else is told apart.
    assert_eq!(tables.0.classes.len(), 4);
    agree(&here(&[&ambient(), &allow, &deny]), &PEERS, &SOME_PORTS);
}

#[test]
fn the_destination_may_depend_on_the_family() {
    let rule = "{rules: [{when: [{key: destination.ip, values: ['fd00::/16']}]}]}";
    let policy = istio("AuthorizationPolicy", "x", "p", rule);
    agree(&here(&[&ambient(), &policy]), &PEERS, &SOME_PORTS);
}

#[test]
fn a_pod_of_which_nothing_is_told_is_isolated_by_what_could_select_it() {
    let policy = network_policy(
        "x",
        "p",
        "{podSelector: {matchLabels: {app: a}}, ingress: [{}]}",
    );
    let mut snapshot = here(&[&policy]);
    attach(&mut snapshot, "x", "ghost", &["10.0.0.9"]);
    let tables = agree(&snapshot, &PEERS, &SOME_PORTS);
    assert_eq!(tables.0.sets.len(), 2);
}

#[test]
fn a_pod_of_two_interfaces_reaches_itself() {
    let deny = network_policy(
        "x",
        "p",
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
    );
    let mut snapshot = here(&[&deny]);
    attach(&mut snapshot, "x", "a", &["10.0.2.1"]);
    agree(&snapshot, &[A, B, C, "10.0.2.1", OUTSIDE], &SOME_PORTS);
    // Also when no pod judges ingress.
    forget(&mut snapshot, &deny);
    let out = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{protocol: TCP}]}]}";
    tell(&mut snapshot, &network_policy("x", "q", out));
    agree(&snapshot, &[A, B, C, "10.0.2.1", OUTSIDE], &SOME_PORTS);
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let peers: Vec<_> = ADDRESSES.into_iter().chain(EXTRA).collect();
    let ports: Vec<_> = PORTS.into_iter().chain([0, 79, 82, 8091, 65535]).collect();
    let direction = select(vec![Direction::Ingress, Direction::Egress]);
    let protocol = select(vec![6, 6, 6, 17, 132, 1, 58, 47, 0]);
    let flags = (any::<bool>(), prop::bool::weighted(0.1));
    (select(peers), direction, protocol, select(ports), flags).prop_map(
        |(peer, direction, protocol, port, (proved, node))| Flow {
            interface: 0,
            peer: ip(if node { THE_NODE } else { peer }),
            direction,
            protocol,
            port,
            proved,
            node,
        },
    )
}

/// Second addresses of pods, of a pod that is not told, and of nobody.
const EXTRA: [&str; 6] = [
    "fd00::a0",
    "fd00::a2",
    "10.0.1.9",
    "10.0.2.1",
    "10.200.0.1",
    "::1",
];

/// Where the pods of a random world run: elsewhere, here, here with a second address, here with two interfaces.
fn place(snapshot: &mut Snapshot, places: &[u8], namespaces: &[(String, String)]) {
    tell(snapshot, NODE);
    attach(snapshot, "x", "ghost", &["10.0.1.9"]);
    for (namespace, name) in namespaces {
        let index: usize = name.trim_start_matches("pod-").parse().unwrap();
        let six = format!("fd00::a{index}");
        match places[index] {
            1 => attach(snapshot, namespace, name, &[ADDRESSES[index]]),
            2 if index < 5 => attach(snapshot, namespace, name, &[ADDRESSES[index], &six]),
            3 if index == 0 => {
                attach(snapshot, namespace, name, &[ADDRESSES[index]]);
                attach(snapshot, namespace, name, &["10.0.2.1"]);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn kernel_and_engine_agree(
        objects in any_objects(),
        places in prop::collection::vec(0_u8..4, 7),
        flows in prop::collection::vec(any_flow(), 24),
    ) {
        let text: String = objects.iter().map(serde_json::Value::to_string).collect();
        let mut snapshot = Snapshot::new(Settings::for_node("here"));
        for object in read(&text, Syntax::Json).unwrap().objects {
            snapshot.apply(Event::Upsert(object));
        }
        let name = |it: &serde_json::Value| it.as_str().unwrap().to_owned();
        let pods = objects.iter().filter(|it| it["kind"] == "Pod").map(|it| &it["metadata"]);
        let pods: Vec<_> = pods.map(|it| (name(&it["namespace"]), name(&it["name"]))).collect();
        place(&mut snapshot, &places, &pods);
        let tables = Tables(compile(&snapshot));
        for (interface, me) in interfaces(&snapshot) {
            for flow in &flows {
                let flow = Flow { interface, ..*flow };
                let Some((kernel, engine)) = flow.judge(&snapshot, &tables, me) else { continue };
                // Of several own addresses the kernel does not know which: the strictest counts.
                let known = me.attachments.len() == 1;
                prop_assert!(kernel == engine || !known && !kernel, "{} {:?}: {:#?}", me.key, flow, tables.0);
            }
        }
    }
}

/// A world of this many pods, 100 of them here, in 100 namespaces of 20 applications.
fn large(pods: usize) -> Snapshot {
    let mut text = String::from(NODE);
    for i in 0..100 {
        text += &namespace(
            &format!("n{i}"),
            &format!("team: t{}, istio.io/dataplane-mode: ambient", i % 10),
        );
    }
    for i in 0..pods {
        let labels = format!("app: a{}, pod-template-hash: h{i}", i / 100 % 20);
        let address = format!("10.{}.{}.{}", i >> 16, i >> 8 & 255, i & 255);
        text += &pod(
            &format!("n{}", i % 100),
            &format!("p{i}"),
            &address,
            &labels,
        );
    }
    let mut snapshot = world(&[&text]);
    for i in 0..100 {
        let address = format!("10.0.0.{i}");
        attach(
            &mut snapshot,
            &format!("n{i}"),
            &format!("p{i}"),
            &[&address],
        );
    }
    snapshot
}

#[track_caller]
fn time(name: &str, snapshot: &Snapshot) {
    let start = Instant::now();
    let Compiled {
        classes,
        sets,
        entries,
    } = compile(snapshot);
    let took = start.elapsed();
    let distinct = classes.values().collect::<BTreeSet<_>>().len();
    let number = sets
        .values()
        .map(|it| it.set)
        .collect::<BTreeSet<_>>()
        .len();
    eprintln!(
        "{name}: {took:?}; {} prefixes of {distinct} classes, {} pods with {number} sets, {} entries",
        classes.len(),
        sets.len(),
        entries.len(),
    );
}

#[test]
#[ignore = "prints times, asserts nothing about them"]
fn time_to_compile() {
    let mut snapshot = large(20_000);
    time("20,000 pods, no policy", &snapshot);
    for i in 0..100 {
        let spec = format!(
            "{{podSelector: {{}}, ingress: [
                {{from: [{{podSelector: {{matchLabels: {{app: a{}}}}}}}], ports: [{{port: 80}}, {{port: 8000, endPort: 8999}}]}},
                {{from: [{{namespaceSelector: {{matchLabels: {{team: t{}}}}}}}]}}],
              egress: [{{to: [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: a{}}}}}}}]}}]}}",
            i % 20, i % 10, i % 7
        );
        tell(&mut snapshot, &network_policy(&format!("n{i}"), "p", &spec));
    }
    time("20,000 pods, 100 network policies", &snapshot);
    for i in 0..100 {
        let spec = format!(
            "{{rules: [{{from: [{{source: {{namespaces: [n{}, n{i}]}}}}], to: [{{operation: {{ports: ['80']}}}}]}}]}}",
            (i + 1) % 100
        );
        tell(
            &mut snapshot,
            &istio("AuthorizationPolicy", &format!("n{i}"), "p", &spec),
        );
    }
    time("and 100 authorization policies", &snapshot);

    let blocks = |each: &dyn Fn(usize) -> String| (0..5_000).map(each).collect::<Vec<_>>();
    let block = |i: usize| format!("{{ipBlock: {{cidr: 100.{}.{}.0/25}}}}", i >> 8, i & 255);
    let from = |peers: &str, ports: &str| {
        format!("{{podSelector: {{}}, ingress: [{{from: [{peers}], ports: [{ports}]}}]}}")
    };
    let all = blocks(&block).join(", ");
    let mut snapshot = large(20_000);
    for i in 0..100 {
        tell(
            &mut snapshot,
            &network_policy(&format!("n{i}"), "p", &from(&all, "{port: 80}")),
        );
    }
    time(
        "20,000 pods, 5,000 blocks in one rule, 100 times",
        &snapshot,
    );
    let mut snapshot = large(20_000);
    for (i, it) in blocks(&block).iter().enumerate() {
        tell(
            &mut snapshot,
            &network_policy("n1", &format!("p{i}"), &from(it, "{port: 80}")),
        );
    }
    time(
        "20,000 pods, 5,000 policies of one block for one pod",
        &snapshot,
    );
    let mut snapshot = large(20_000);
    for (i, it) in blocks(&block).iter().enumerate() {
        let ports = format!("{{port: {}}}", 1000 + i % 100);
        tell(
            &mut snapshot,
            &network_policy("n1", &format!("p{i}"), &from(it, &ports)),
        );
    }
    time("20,000 pods, the same with 100 ports", &snapshot);
    let mut snapshot = large(20_000);
    for i in 0..10_000 {
        let spec = from(
            &format!("{{podSelector: {{matchLabels: {{app: a{}}}}}}}", i % 20),
            "{port: 80}",
        );
        tell(
            &mut snapshot,
            &network_policy(&format!("n{}", i % 100), &format!("p{i}"), &spec),
        );
    }
    time("20,000 pods, 10,000 policies", &snapshot);
}
