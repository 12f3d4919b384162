//! Questions to one small world, written as users write it.
//!
//! Node `here` (192.0.2.8, pods in 10.0.0.0/24) has the enrolled pods a (10.0.0.1, `fd00::1`) and b (10.0.0.2) and the
//! plain pod p (10.0.0.3); node `far` (192.0.2.9, pods in 10.1.0.0/24) the enrolled c (10.1.0.1), the plain q (10.1.0.3)
//! and h in the host's network. All are of namespace `shop`, as are the services web (of b and c), mixed (of p and q),
//! `empty` and the headless `names` (of b and c).

use super::*;
use crate::cluster::document::{Syntax, read};
use crate::model::tests::{attached, ip};
use crate::model::{Event, Settings, Snapshot};

const WORLD: &str = "
{apiVersion: v1, kind: Node, metadata: {name: here}, spec: {podCIDRs: [10.0.0.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.8}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: far}, spec: {podCIDRs: [10.1.0.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.9}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}";

fn pod(name: &str, node: &str, address: &str, labels: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: shop, name: {name}, uid: uid-{name}, labels: {{app: {name}, {labels}}}}}, \
         spec: {{nodeName: {node}, {spec}}}, status: {{podIPs: [{{ip: '{address}'}}]}}}}"
    )
}

fn service(name: &str, address: &str, endpoints: &[(&str, &str)]) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(pod, address)| {
            format!("{{addresses: [{address}], conditions: {{ready: true}}, targetRef: {{kind: Pod, namespace: shop, name: {pod}}}}}")
        })
        .collect();
    let ports = "[{name: http, port: 80, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]";
    format!(
        "\n---\n{{apiVersion: v1, kind: Service, metadata: {{namespace: shop, name: {name}}}, spec: {{clusterIP: {address}, clusterIPs: [{address}], ports: {ports}}}}}\
         \n---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{namespace: shop, name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}, \
         endpoints: [{}], ports: {}}}",
        endpoints.join(", "),
        ports.replace("port: 80", "port: 8080")
    )
}

fn world(more: &str) -> Snapshot {
    let plain = "istio.io/dataplane-mode: none";
    let port = "containers: [{name: x, ports: [{name: web, containerPort: 8080}]}]";
    let text = WORLD.to_owned()
        + &pod("a", "here", "10.0.0.1", "", "")
        + &pod("b", "here", "10.0.0.2", "", port)
        + &pod("p", "here", "10.0.0.3", plain, "")
        + &pod("c", "far", "10.1.0.1", "", "")
        + &pod("q", "far", "10.1.0.3", plain, "")
        + &pod("h", "far", "192.0.2.9", "", "hostNetwork: true")
        + &service("web", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.1.0.1")])
        + &service(
            "mixed",
            "10.96.0.2",
            &[("p", "10.0.0.3"), ("q", "10.1.0.3")],
        )
        + &service("empty", "10.96.0.3", &[])
        + &service("names", "None", &[("b", "10.0.0.2"), ("c", "10.1.0.1")])
        + more;
    let mut snapshot = Snapshot::new(Settings::for_node("here"));
    for object in read(&text, Syntax::Yaml).unwrap().objects {
        snapshot.apply(Event::Upsert(object));
    }
    for (name, addresses) in [
        ("a", &["10.0.0.1", "fd00::1"][..]),
        ("b", &["10.0.0.2"]),
        ("p", &["10.0.0.3"]),
    ] {
        snapshot.apply(attached(name, Some(("shop", name)), addresses));
    }
    snapshot.apply(Event::Synced);
    snapshot
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    let group = match kind {
        "NetworkPolicy" => "networking.k8s.io",
        _ => "security.istio.io",
    };
    format!(
        "\n---\n{{apiVersion: {group}/v1, kind: {kind}, metadata: {{namespace: shop, name: {name}}}, spec: {spec}}}"
    )
}

fn ask(
    snapshot: &Snapshot,
    source: &str,
    destination: &str,
    protocol: Transport,
) -> Result<Trace, Problem> {
    let to: Destination = destination.parse().unwrap();
    let question = Question {
        source: source.parse().unwrap(),
        destination: to.end,
        port: to.port,
        protocol,
    };
    trace(snapshot, &question)
}

/// A step as a word or two: who judges what, and how it goes on.
fn word(step: &Step) -> String {
    match step {
        Step::Verdict(it) => {
            let who = if it.by.contains("agent") {
                "agent"
            } else {
                "kernel"
            };
            let sign = if it.allow { '+' } else { '-' };
            let layer: String = it.layer.chars().filter(|c| c.is_uppercase()).collect();
            format!("{who}:{}{sign}{layer}", &it.direction[..2])
        }
        Step::Service { endpoints, .. } => format!("service:{}", endpoints.len()),
        Step::Route { carriage, .. } => format!("{carriage:?}"),
    }
}

/// All steps: those before an endpoint is chosen, then each way after a bar.
fn words(trace: &Trace) -> String {
    let line = |steps: &[Step]| steps.iter().map(word).collect::<Vec<_>>().join(" ");
    let mut parts = vec![line(&trace.steps)];
    parts.extend(trace.paths.iter().map(|it| line(&it.steps)));
    parts.join(" | ")
}

#[track_caller]
fn check(
    snapshot: &Snapshot,
    (source, destination, protocol): (&str, &str, Transport),
    steps: &str,
    conclusion: &str,
) {
    let trace = ask(snapshot, source, destination, protocol).unwrap();
    assert_eq!(words(&trace), steps);
    assert_eq!(trace.conclusion, conclusion);
    let denied = trace.paths.iter().filter(|it| !it.denied_by.is_empty());
    let outcome = match denied.count() {
        0 => Outcome::Allowed,
        count if count == trace.paths.len() => Outcome::Denied,
        _ => Outcome::Partly,
    };
    assert_eq!(trace.outcome, outcome);
}

use Transport::{Icmp, Sctp, Tcp, Udp};

#[test]
fn ways_without_policy() {
    let snapshot = world("");
    let far = "kernel:eg+NP Tunnel agent:in+NP agent:in+PA agent:in+AP";
    let here = "kernel:eg+NP SameNode kernel:in+NP kernel:in+PA kernel:in+AP";
    let plain = "kernel:eg+NP Plain kernel:in+NP kernel:in+PA kernel:in+AP";
    let by_agent = "agent:eg+NP Agent agent:in+NP agent:in+PA agent:in+AP";
    let check = |question: (&str, &str, Transport), steps: &str| {
        check(&snapshot, question, steps, "allowed");
    };
    check(("shop/a", "shop/c:80", Tcp), &format!(" | {far}"));
    check(("10.0.0.1", "10.1.0.1:80", Tcp), &format!(" | {far}"));
    check(("shop/a", "shop/b:80", Tcp), &format!(" | {here}"));
    // The only port that the pod names.
    check(("shop/a", "shop/b", Tcp), &format!(" | {here}"));
    check(("shop/a", "shop/p:80", Tcp), &format!(" | {plain}"));
    check(("shop/a", "shop/q:80", Tcp), &format!(" | {plain}"));
    check(("shop/p", "shop/b:80", Tcp), &format!(" | {plain}"));
    check(("shop/a", "shop/c:53", Udp), &format!(" | {plain}"));
    check(("shop/a", "shop/b:53", Sctp), &format!(" | {plain}"));
    check(("shop/a", "shop/b", Icmp), &format!(" | {plain}"));
    // Opened elsewhere.
    check(("shop/c", "shop/a:80", Tcp), &format!(" | {far}"));
    check(("shop/q", "shop/a:80", Tcp), &format!(" | {plain}"));
    check(("shop/c", "shop/q:80", Tcp), &format!(" | {plain}"));
    let from_outside = " | Plain kernel:in+NP kernel:in+PA kernel:in+AP";
    check(("203.0.113.7", "shop/a:80", Tcp), from_outside);
    check(("192.0.2.8", "shop/a:80", Tcp), from_outside);
    check(("shop/h", "shop/a:80", Tcp), from_outside);
    // To what is no pod.
    check(("shop/a", "203.0.113.7:443", Tcp), " | kernel:eg+NP Plain");
    check(("shop/a", "shop/h:80", Tcp), " | kernel:eg+NP Plain");
    check(("shop/p", "10.1.0.77:80", Tcp), " | kernel:eg+NP Plain");
    let itself = " | kernel:eg+NP Itself kernel:in+NP kernel:in+PA kernel:in+AP";
    check(("shop/a", "shop/a:80", Tcp), itself);
    // Services: the agent's, or kube-proxy's.
    let agent_far = far.replace("kernel:eg", "agent:eg");
    let both = format!("service:2 | {by_agent} | {agent_far}");
    check(("shop/a", "svc/shop/web:80", Tcp), &both);
    check(("shop/a", "web.shop.svc.cluster.local", Tcp), &both);
    check(("shop/a", "10.96.0.1:80", Tcp), &both);
    let each = "Plain kernel:in+NP kernel:in+PA kernel:in+AP";
    let proxied = format!("kernel:eg+NP service:2 | {each} | {each}");
    check(("shop/p", "svc/shop/web:80", Tcp), &proxied);
    check(("shop/a", "svc/shop/web:53", Udp), &proxied);
    let mixed = "agent:eg+NP Plain kernel:in+NP kernel:in+PA kernel:in+AP";
    let here = mixed.replace("kernel", "agent");
    check(
        ("shop/a", "svc/shop/mixed:80", Tcp),
        &format!("service:2 | {here} | {mixed}"),
    );
    let far_opener = format!("service:2 | {agent_far} | {by_agent}");
    check(("shop/c", "svc/shop/web:80", Tcp), &far_opener);
    // A headless service is what DNS tells of it.
    check(
        ("shop/a", "svc/shop/names:80", Tcp),
        " | kernel:eg+NP SameNode kernel:in+NP kernel:in+PA kernel:in+AP | kernel:eg+NP Tunnel agent:in+NP agent:in+PA agent:in+AP",
    );
}

#[test]
fn refusals_of_the_route() {
    let snapshot = world("");
    let check = |question: (&str, &str, Transport), steps: &str, conclusion: &str| {
        check(&snapshot, question, steps, conclusion);
    };
    let agent = "denied by the agent of node here";
    check(
        ("shop/a", "shop/c:15008", Tcp),
        " | Refused",
        &format!("{agent}: port 15008 is reserved for the mesh"),
    );
    check(
        ("shop/a", "10.1.0.77:80", Tcp),
        " | Refused",
        &format!("{agent}: no workload and no service has the destination address"),
    );
    check(
        ("shop/a", "svc/shop/empty:80", Tcp),
        "service:0 | Refused",
        &format!("{agent}: service shop/empty has no ready endpoint for port 80"),
    );
    check(
        ("shop/a", "svc/shop/web:81", Tcp),
        "service:0 | Refused",
        &format!("{agent}: service shop/web has no TCP port 81"),
    );
    check(
        ("shop/p", "svc/shop/empty:80", Tcp),
        "kernel:eg+NP service:0 | Refused",
        "denied by the kernel of node here: service shop/empty has no ready endpoint for port 80",
    );
    check(
        ("shop/c", "shop/a:15008", Tcp),
        " | Refused",
        "denied by the agent of node far: port 15008 is reserved for the mesh",
    );
}

#[test]
fn who_denies_is_named() {
    let policies = policy(
        "NetworkPolicy",
        "only-b",
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}]}",
    ) + &policy("PeerAuthentication", "strict", "{mtls: {mode: STRICT}}")
        + &policy(
            "AuthorizationPolicy",
            "no-8081",
            "{action: DENY, rules: [{to: [{operation: {ports: ['9999']}}]}, {to: [{operation: {ports: ['8081']}}]}]}",
        );
    let snapshot = world(&policies);
    let check = |question: (&str, &str, Transport), steps: &str, conclusion: &str| {
        check(&snapshot, question, steps, conclusion);
    };
    let only_b = "NetworkPolicy shop/only-b at egress: default deny by 1 policy";
    check(
        ("shop/a", "shop/b:80", Tcp),
        " | kernel:eg+NP SameNode kernel:in+NP kernel:in+PA kernel:in+AP",
        "allowed",
    );
    check(
        ("shop/a", "shop/c:80", Tcp),
        " | kernel:eg-NP Tunnel agent:in+NP agent:in+PA agent:in+AP",
        &format!("denied by {only_b}"),
    );
    let no_8081 = "AuthorizationPolicy shop/no-8081 at ingress: a rule denies it";
    check(
        ("shop/a", "shop/c:8081", Tcp),
        " | kernel:eg-NP Tunnel agent:in+NP agent:in+PA agent:in-AP",
        &format!("denied by {only_b}; and by {no_8081}"),
    );
    let strict = "PeerAuthentication shop/strict at ingress: plaintext is not taken";
    check(
        ("shop/p", "shop/b:80", Tcp),
        " | kernel:eg+NP Plain kernel:in+NP kernel:in-PA kernel:in+AP",
        &format!("denied by {strict}"),
    );
    // Of a service, the agent judges each endpoint.
    check(
        ("shop/a", "svc/shop/web:80", Tcp),
        "service:2 | agent:eg+NP Agent agent:in+NP agent:in+PA agent:in+AP | agent:eg-NP Tunnel agent:in+NP agent:in+PA agent:in+AP",
        &format!("allowed to 1 of 2 endpoints; to 10.1.0.1 denied by {only_b}"),
    );
    // The kernel judges the service's address, which is no pod's.
    let trace = ask(&snapshot, "shop/a", "svc/shop/web:53", Udp).unwrap();
    assert_eq!(word(&trace.steps[0]), "kernel:eg-NP");
    assert_eq!(trace.outcome, Outcome::Denied);
}

#[test]
fn rules_and_identities_are_named() {
    let rules = "{podSelector: {}, ingress: [{ports: [{port: 1}]}, {ports: [{port: 80}]}]}";
    let allow = "{rules: [{from: [{source: {principals: ['cluster.local/ns/shop/sa/default']}}]}]}";
    let snapshot = world(
        &(policy("NetworkPolicy", "web", rules) + &policy("AuthorizationPolicy", "us", allow)),
    );
    let trace = ask(&snapshot, "shop/a", "shop/c:80", Tcp).unwrap();
    let steps = &trace.paths[0].steps;
    let [_, route, network, _, authorization] = &steps[..] else {
        panic!("{steps:?}")
    };
    let Step::Route {
        tunnel, identities, ..
    } = route
    else {
        panic!("{route:?}")
    };
    assert_eq!(*tunnel, Some("10.1.0.1:15008".parse().unwrap()));
    assert_eq!(
        identities[..],
        ["spiffe://cluster.local/ns/shop/sa/default"]
    );
    let named = |step: &Step| match step {
        Step::Verdict(it) => {
            let policy = it.policy.clone().unwrap();
            let rule = it.rule.clone().unwrap();
            format!(
                "{} {}/{} {rule}",
                policy.kind, policy.namespace, policy.name
            )
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(named(network), "NetworkPolicy shop/web spec.ingress[1]");
    assert_eq!(
        named(authorization),
        "AuthorizationPolicy shop/us spec.rules[0]"
    );
    assert!(
        trace.notes[0].contains("agent of node far"),
        "{:?}",
        trace.notes
    );
    // Without the tunnel nothing is proved.
    let trace = ask(&snapshot, "shop/q", "shop/b:80", Tcp).unwrap();
    assert_eq!(
        words(&trace),
        " | kernel:eg+NP Plain kernel:in+NP kernel:in+PA kernel:in-AP"
    );
    // The node reaches its pods as far as NetworkPolicy goes, another node does not.
    let of = |node| words(&ask(&snapshot, node, "shop/p:81", Tcp).unwrap());
    assert_eq!(
        of("192.0.2.8"),
        " | Plain kernel:in+NP kernel:in+PA kernel:in+AP"
    );
    assert_eq!(
        of("192.0.2.9"),
        " | Plain kernel:in-NP kernel:in+PA kernel:in+AP"
    );
}

#[test]
fn what_cannot_be_answered() {
    let snapshot = world("");
    let problem = |source, destination, protocol| {
        let problem = ask(&snapshot, source, destination, protocol).unwrap_err();
        assert!(!problem.remedy().is_empty());
        problem.to_string()
    };
    let unknown = "no pod shop/x is known to the agent of node here";
    assert_eq!(problem("shop/x", "shop/a:80", Tcp), unknown);
    assert_eq!(problem("shop/a", "shop/x:80", Tcp), unknown);
    assert_eq!(
        problem("a", "shop/b:80", Tcp),
        "no pod default/a is known to the agent of node here"
    );
    assert_eq!(
        problem("shop/a", "svc/shop/x:80", Tcp),
        "no service shop/x is known to the agent of node here"
    );
    assert_eq!(
        problem("svc/shop/web", "shop/a:80", Tcp),
        "shop/web is a service, where a pod is asked for"
    );
    assert_eq!(
        problem("shop/b", "fd00::1", Icmp),
        "the ends have no address family in common"
    );
    assert_eq!(
        problem("shop/a", "shop/c", Tcp),
        "the destination needs a port"
    );
    assert_eq!(
        problem("shop/a", "shop/b", Udp),
        "the destination needs a port"
    );
    assert_eq!(
        problem("shop/a", "shop/c:1", Icmp),
        "ICMP has no ports, and the destination names one"
    );
    let unsynced = Snapshot::new(Settings::for_node("here"));
    let asked = ask(&unsynced, "shop/a", "shop/b:80", Tcp);
    assert_eq!(asked, Err(Problem::NotSynced("here".to_owned())));
    let asked = policies(&unsynced, None);
    assert_eq!(asked, Err(Problem::NotSynced("here".to_owned())));
}

#[test]
fn ends_as_they_are_written() {
    let pod = |namespace: &str, name: &str| End::Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let service = |namespace: &str, name: &str| End::Service {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let check = |text: &str, end: End, port: Option<u16>| {
        assert_eq!(text.parse(), Ok(Destination { end, port }), "{text}");
    };
    check("a", pod("default", "a"), None);
    check("a:80", pod("default", "a"), Some(80));
    check("shop/a:80", pod("shop", "a"), Some(80));
    check("shop/a.b", pod("shop", "a.b"), None);
    check("pod/svc/a", pod("svc", "a"), None);
    check("svc/web:80", service("default", "web"), Some(80));
    check("svc/shop/web", service("shop", "web"), None);
    check("web.shop:80", service("shop", "web"), Some(80));
    check(
        "web.shop.svc.cluster.local:80",
        service("shop", "web"),
        Some(80),
    );
    check("10.0.0.1", End::Address(ip("10.0.0.1")), None);
    check("10.0.0.1:80", End::Address(ip("10.0.0.1")), Some(80));
    check("fd00::1", End::Address(ip("fd00::1")), None);
    check("[fd00::1]", End::Address(ip("fd00::1")), None);
    check("[fd00::1]:80", End::Address(ip("fd00::1")), Some(80));
    check("::ffff:10.0.0.1", End::Address(ip("10.0.0.1")), None);
    let port = [
        "a:0",
        "a:x",
        "a:65536",
        "a:",
        "[fd00::1]x",
        "[fd00::1]:",
        "a:1:2",
    ];
    for text in port {
        let wrong = text.parse::<Destination>();
        assert_eq!(wrong, Err(Unreadable::Port(text.to_owned())), "{text}");
    }
    for text in [
        "", "/", "a/", "a/b/c", "a b", "a.b.c", "[x]:1", "..", "x/y/z/w",
    ] {
        let wrong = text.parse::<Destination>();
        assert!(
            matches!(wrong, Err(Unreadable::End(_))),
            "{text}: {wrong:?}"
        );
    }
}

#[test]
fn policies_in_force() {
    let texts = policy(
        "NetworkPolicy",
        "of-a",
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}",
    ) + &policy(
        "NetworkPolicy",
        "of-all",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}",
    ) + &policy(
        "NetworkPolicy",
        "of-none",
        "{podSelector: {matchLabels: {app: x}}}",
    ) + &policy(
        "PeerAuthentication",
        "strict",
        "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
    ) + &policy(
        "AuthorizationPolicy",
        "http",
        "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
    );
    let mut snapshot = world(&texts);
    snapshot.apply(Event::LeftOut {
        part: "x.yaml".into(),
        reason: Some("no YAML".into()),
    });
    let report = policies(&snapshot, None).unwrap();
    let Found::All(all) = &report.found else {
        panic!("{report:?}")
    };
    let line = |it: &Listed| {
        let (policy, caveats) = (&it.policy, it.not_as_written);
        format!(
            "{}: {}, {} pods, {caveats} caveats",
            policy.name, it.does, it.local_pods
        )
    };
    assert_eq!(
        all.iter().map(line).collect::<Vec<_>>(),
        [
            "of-a: isolates egress, 1 pods, 0 caveats",
            "of-all: isolates ingress, 3 pods, 1 caveats",
            "of-none: isolates ingress, 0 pods, 0 caveats",
            "strict: STRICT, PERMISSIVE at port 8080, 1 pods, 0 caveats",
            "http: ALLOW, 2 pods, 1 caveats",
        ]
    );
    let fields = report
        .not_as_written
        .iter()
        .map(|it| (&*it.policy.name, &*it.field));
    let fields: Vec<_> = fields.collect();
    let from = "spec.ingress[0].from[0].ipBlock.cidr";
    let methods = "spec.rules[0].to[0].operation.methods";
    assert_eq!(fields, [("of-all", from), ("http", methods)]);
    assert_eq!(report.left_out[0].part, "x.yaml");
    assert_eq!(report.left_out[0].reason, "no YAML");

    let of = |pod: &str| {
        let report = policies(&snapshot, Some(&pod.parse().unwrap())).unwrap();
        let Found::Pod { layers, .. } = report.found else {
            panic!("{pod}")
        };
        let line = |it: &InForce| {
            let policies = it.policies.iter().map(|it| &*it.policy.name);
            let policies = policies.collect::<Vec<_>>().join(",");
            format!(
                "{} {} {} [{policies}]",
                it.layer, it.direction, it.restricts
            )
        };
        layers.iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(
        of("shop/a"),
        [
            "NetworkPolicy egress true [of-a]",
            "NetworkPolicy ingress true [of-all]",
            "PeerAuthentication ingress true [strict]",
            "AuthorizationPolicy ingress true [http]",
        ]
    );
    assert_eq!(
        of("10.0.0.3"),
        [
            "NetworkPolicy egress false []",
            "NetworkPolicy ingress true [of-all]",
            "PeerAuthentication ingress false []",
            "AuthorizationPolicy ingress false []",
        ]
    );
    assert!(of("shop/h").is_empty());
    let of_p = policies(&snapshot, Some(&"shop/p".parse().unwrap())).unwrap();
    assert_eq!(of_p.not_as_written.len(), 1);
    let unknown = policies(&snapshot, Some(&"shop/x".parse().unwrap()));
    assert!(matches!(unknown, Err(Problem::UnknownPod { .. })));
}
