//! Random histories: however the world came about, it is the one that its last state describes.

use std::collections::BTreeSet;

use super::*;
use crate::policy::{
    Action, AuthorizationPolicy, NetworkPolicy, Operator, PolicyKind, PolicyRef, Requirement,
    Selector,
};

/// Everything that look-ups can tell, without numbers and revision.
fn view(snapshot: &Snapshot) -> impl PartialEq + std::fmt::Debug + use<> {
    let plain = |it: &Arc<Workload>| Workload {
        id: WorkloadId(0),
        ..(**it).clone()
    };
    let workloads: Vec<_> = snapshot.workloads().map(plain).collect();
    let at: BTreeMap<_, _> = snapshot
        .workload_addresses()
        .map(|(at, it)| (at, it.key.clone()))
        .collect();
    let services: BTreeMap<_, _> = snapshot
        .service_addresses()
        .map(|(at, it)| (at, it.clone()))
        .collect();
    let on = |node| -> Vec<_> {
        snapshot
            .workloads_on(node)
            .map(|it| it.key.clone())
            .collect()
    };
    let nodes = [on("here"), on("far")];
    let endpoints: Vec<_> = snapshot
        .services
        .values()
        .flat_map(|service| {
            let of = service
                .ports
                .iter()
                .flat_map(|port| snapshot.endpoints(service, port));
            of.map(|it| (it.address, it.pod.cloned()))
                .collect::<Vec<_>>()
        })
        .collect();
    let policies: Vec<_> = snapshot
        .workloads()
        .map(|it| {
            let network = snapshot.network_policies_for(it).cloned();
            let authorization = snapshot.authorization_policies_for(it).cloned();
            (
                network.collect::<Vec<_>>(),
                authorization.collect::<Vec<_>>(),
            )
        })
        .collect();
    (workloads, at, services, nodes, endpoints, policies)
}

fn name(prefix: &'static str) -> impl Strategy<Value = String> {
    (0..3_u8).prop_map(move |it| format!("{prefix}{it}"))
}

fn space() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("shop"),
        Just("bank"),
        Just("istio-system"),
        Just("kube-system")
    ]
    .prop_map(str::to_owned)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1..5_u8).prop_map(|it| IpAddr::from([10, 0, 0, it])),
        (1..4_u16).prop_map(|it| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, it])),
    ]
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    prop::collection::btree_set(address(), 0..3).prop_map(|it| it.into_iter().collect())
}

fn any_labels() -> impl Strategy<Value = Labels> {
    let mode = prop_oneof![Just(None), Just(Some("ambient")), Just(Some("none"))];
    (mode, prop::option::of(name("app"))).prop_map(|(mode, app)| {
        let mode = mode.map(|it| ("istio.io/dataplane-mode".to_owned(), it.to_owned()));
        mode.into_iter()
            .chain(app.map(|it| ("app".to_owned(), it)))
            .collect()
    })
}

fn any_pod() -> impl Strategy<Value = Object> {
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    );
    let who = (
        space(),
        name("pod"),
        prop_oneof![Just(String::new()), name("uid")],
        0..3_i64,
    );
    (who, any_labels(), addresses(), flags).prop_map(|(who, labels, addresses, flags)| {
        let (namespace, name, uid, created) = who;
        let (here, host_network, sidecar, terminated) = flags;
        Object::Pod(Arc::new(Pod {
            uid: uid.into(),
            created,
            labels,
            addresses,
            host_network,
            sidecar,
            terminated,
            node: Some(if here { "here" } else { "far" }.into()),
            ..pod(&namespace, &name, &[])
        }))
    })
}

fn any_policy() -> impl Strategy<Value = Object> {
    let mode = prop_oneof![
        Just(MtlsMode::Unset),
        Just(MtlsMode::Permissive),
        Just(MtlsMode::Strict)
    ];
    let selector = prop_oneof![
        Just(Labels::new()),
        name("app").prop_map(|it| labels(&[("app", &it)])),
    ];
    (space(), name("policy"), 0..3_i64, selector, mode).prop_map(
        |(namespace, name, created, selector, mode)| {
            Object::PeerAuthentication(Arc::new(PeerAuthentication {
                key: Key::new(namespace, name),
                created,
                selector,
                mode,
                ports: BTreeMap::new(),
                caveats: Vec::new(),
            }))
        },
    )
}

fn any_selector() -> impl Strategy<Value = Selector> {
    let app = |operator| Selector {
        requirements: vec![Requirement {
            key: "app".to_owned(),
            operator,
        }],
    };
    prop_oneof![
        Just(Selector::everything()),
        name("app").prop_map(|it| Selector::of_labels(labels(&[("app", &it)]))),
        name("app").prop_map(move |it| app(Operator::NotIn([it].into()))),
        (name("app"), name("app")).prop_map(move |(a, b)| app(Operator::In([a, b].into()))),
    ]
}

fn any_rules() -> impl Strategy<Value = Object> {
    let parts = (space(), name("rules"), any_selector(), any::<bool>());
    parts.prop_map(|(namespace, name, selector, is_network)| {
        let key = Key::new(namespace, name);
        if is_network {
            Object::NetworkPolicy(Arc::new(NetworkPolicy {
                key,
                selector,
                ingress: Some(Vec::new()),
                egress: None,
                caveats: Vec::new(),
            }))
        } else {
            Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
                key,
                selector,
                action: Action::Allow,
                rules: Vec::new(),
                caveats: Vec::new(),
            }))
        }
    })
}

fn any_service() -> impl Strategy<Value = Object> {
    (space(), name("svc"), addresses()).prop_map(|(namespace, name, addresses)| {
        Object::Service(Arc::new(Service {
            key: Key::new(namespace, name),
            headless: addresses.is_empty(),
            addresses,
            ports: vec![ServicePort {
                name: String::new(),
                port: 80,
                protocol: Protocol::Tcp,
                target: TargetPort::Number(8080),
            }],
            publish_not_ready: false,
            internal_local: false,
            client_affinity: false,
        }))
    })
}

fn any_slice() -> impl Strategy<Value = Object> {
    (
        space(),
        name("slice"),
        name("svc"),
        addresses(),
        name("pod"),
    )
        .prop_map(|(namespace, name, service, addresses, pod)| {
            Object::EndpointSlice(Arc::new(EndpointSlice {
                key: Key::new(namespace.as_str(), name),
                service: Key::new(namespace.as_str(), service),
                endpoints: vec![Endpoint {
                    addresses,
                    ready: true,
                    serving: true,
                    terminating: false,
                    pod: Some(Key::new(namespace, pod)),
                    node: None,
                    hints: Hints::default(),
                }],
                ports: Vec::new(),
            }))
        })
}

fn any_object() -> impl Strategy<Value = Object> {
    let namespace = (space(), any_labels()).prop_map(|(name, labels)| {
        Object::Namespace(Arc::new(Namespace {
            name: name.into(),
            labels,
        }))
    });
    let node = (name("node"), addresses()).prop_map(|(name, addresses)| {
        Object::Node(Arc::new(Node {
            name: name.into(),
            addresses,
            pod_cidrs: Vec::new(),
            zone: None,
            region: None,
        }))
    });
    prop_oneof![
        1 => namespace,
        1 => node,
        2 => any_policy(),
        3 => any_rules(),
        1 => any_service(),
        2 => any_slice(),
        6 => any_pod(),
    ]
}

fn any_attached() -> impl Strategy<Value = Attached> {
    let uid = prop::option::of(name("uid"));
    let pod = prop::option::of((space(), name("pod"), uid));
    (name("container"), pod, addresses()).prop_map(|(container, pod, addresses)| Attached {
        attachment: attachment(&container),
        pod: pod.map(|(namespace, name, uid)| PodRef {
            namespace,
            name,
            uid,
        }),
        addresses,
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => any_object().prop_map(Event::Upsert),
        3 => any_object().prop_map(|it| Event::Delete(it.reference())),
        3 => any_attached().prop_map(Event::Attached),
        1 => name("container").prop_map(|it| Event::Detached(attachment(&it))),
    ]
}

/// The events that tell what a world holds, and nothing of how it came about.
fn retold(snapshot: &Snapshot) -> Vec<Event> {
    let mut events = Vec::new();
    let mut tell = |object| events.push(Event::Upsert(object));
    snapshot
        .namespaces
        .values()
        .cloned()
        .map(Object::Namespace)
        .for_each(&mut tell);
    snapshot
        .nodes
        .values()
        .cloned()
        .map(Object::Node)
        .for_each(&mut tell);
    snapshot
        .services
        .values()
        .cloned()
        .map(Object::Service)
        .for_each(&mut tell);
    snapshot
        .slices
        .values()
        .cloned()
        .map(Object::EndpointSlice)
        .for_each(&mut tell);
    snapshot
        .pods
        .values()
        .cloned()
        .map(Object::Pod)
        .for_each(&mut tell);
    let policies = snapshot.peer_authentications.values().cloned();
    policies.map(Object::PeerAuthentication).for_each(&mut tell);
    let policies = snapshot.network_policies().cloned();
    policies.map(Object::NetworkPolicy).for_each(&mut tell);
    let policies = snapshot.authorization_policies().cloned();
    policies
        .map(Object::AuthorizationPolicy)
        .for_each(&mut tell);
    events.extend(
        snapshot
            .attachments
            .values()
            .map(|it| Event::Attached((**it).clone())),
    );
    events
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A world equals one that was told its last state in another order.
    #[test]
    fn any_history_equals_a_rebuild(
        events in prop::collection::vec(any_event(), 1..60),
        seed in any::<prop::sample::Selector>(),
    ) {
        let snapshot = world(events);
        let mut retold = retold(&snapshot);
        let order: Vec<_> = (0..retold.len()).collect();
        let mut shuffled = Vec::new();
        let mut left: BTreeSet<_> = order.into_iter().collect();
        while !left.is_empty() {
            let next = *seed.select(&left);
            left.remove(&next);
            shuffled.push(retold[next].clone());
        }
        prop_assert_eq!(view(&world(shuffled)), view(&snapshot));
        retold.reverse();
        prop_assert_eq!(view(&world(retold)), view(&snapshot));
    }

    /// Whoever mirrors look-ups by following changes has what whoever looks everything up has.
    #[test]
    fn changes_keep_mirrors_exact(events in prop::collection::vec(any_event(), 1..60)) {
        let mut snapshot = world([]);
        let mut workloads: BTreeMap<WorkloadKey, Arc<Workload>> = BTreeMap::new();
        let mut at: BTreeMap<IpAddr, Arc<Workload>> = BTreeMap::new();
        let mut services: BTreeMap<IpAddr, Arc<Service>> = BTreeMap::new();
        let mut policies: BTreeMap<PolicyRef, Object> = BTreeMap::new();
        for event in events {
            let before = snapshot.revision();
            let change = snapshot.apply(event);
            prop_assert_eq!(snapshot.revision() > before, !change.is_empty());
            for of in change.policies {
                let object = match of.kind {
                    PolicyKind::NetworkPolicy => {
                        snapshot.network_policy(&of.key).cloned().map(Object::NetworkPolicy)
                    }
                    PolicyKind::AuthorizationPolicy => {
                        let policy = snapshot.authorization_policy(&of.key).cloned();
                        policy.map(Object::AuthorizationPolicy)
                    }
                    PolicyKind::PeerAuthentication => panic!("shows in workloads"),
                };
                mirror(&mut policies, &of, object.as_ref());
            }
            for key in change.workloads {
                mirror(&mut workloads, &key, snapshot.workload(&key));
            }
            for address in change.addresses {
                mirror(&mut at, &address, snapshot.workload_by_addr(address));
            }
            for address in change.service_addresses {
                mirror(&mut services, &address, snapshot.service_by_addr(address));
            }
            let network = snapshot.network_policies().cloned().map(Object::NetworkPolicy);
            let authorization = snapshot.authorization_policies().cloned();
            let authorization = authorization.map(Object::AuthorizationPolicy);
            prop_assert!(policies.values().cloned().eq(network.chain(authorization)));
            prop_assert!(workloads.values().eq(snapshot.workloads()));
            prop_assert_eq!(&at, &snapshot.workload_addresses().map(|(k, v)| (k, v.clone())).collect());
            prop_assert_eq!(&services, &snapshot.service_addresses().map(|(k, v)| (k, v.clone())).collect());
            let ids: BTreeSet<_> = workloads.values().map(|it| it.id).collect();
            prop_assert_eq!(ids.len(), workloads.len());
            for id in ids {
                prop_assert_eq!(snapshot.workload_by_id(id).map(|it| it.id), Some(id));
            }
        }
    }
}

fn mirror<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: Option<&V>) {
    match value {
        Some(value) => map.insert(key.clone(), value.clone()),
        None => map.remove(key),
    };
}

/// `cargo test -p mesh-agent --lib time_of_a_change -- --ignored --nocapture`
#[test]
#[ignore = "prints times, asserts nothing about them"]
fn time_of_a_change() {
    let mut snapshot = world([namespace("shop", &[("istio.io/dataplane-mode", "ambient")])]);
    let address = |i: u32| IpAddr::from((0x0a00_0000 + i).to_be_bytes());
    let make = |i: u32, ready| {
        let mut it = pod("shop", &format!("pod-{i}"), &[]);
        it.addresses = vec![address(i)];
        it.ready = ready;
        it
    };
    let start = std::time::Instant::now();
    for i in 0..20_000 {
        snapshot.apply(told(make(i, false)));
    }
    println!("20,000 pods told in {:?}", start.elapsed());
    let start = std::time::Instant::now();
    for i in 0..1000 {
        let published = snapshot.clone();
        snapshot.apply(told(make(i * 20, true)));
        drop(published);
    }
    println!(
        "one pod changed and published in {:?}",
        start.elapsed() / 1000
    );
    let start = std::time::Instant::now();
    let change = snapshot.apply(policy("istio-system", "mesh", 1, &[], MtlsMode::Strict));
    println!(
        "{} pods turned strict in {:?}",
        change.workloads.len(),
        start.elapsed()
    );
}
