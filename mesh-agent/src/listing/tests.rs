//! Lists of one small world, and what Istio's tools would read of it.

use serde_json::json;

use super::*;
use crate::cluster::document::{Syntax, read};
use crate::inspect::{End, Problem};
use crate::model::tests::attached;
use crate::model::{Event, Settings, Snapshot};
use crate::pki;
use crate::policy::Direction;
use crate::proxy::Ends;

const WORLD: &str = "
{apiVersion: v1, kind: Node, metadata: {name: here, labels: {topology.kubernetes.io/zone: z1}}, spec: {podCIDRs: [10.0.0.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.8}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: plain}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: a, uid: uid-a, labels: {app: web}}, spec: {nodeName: here, serviceAccountName: web}, status: {podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: h, uid: uid-h}, spec: {nodeName: here, hostNetwork: true}, status: {podIPs: [{ip: 192.0.2.8}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: out, uid: uid-out, labels: {istio.io/dataplane-mode: none}}, spec: {nodeName: here}, status: {podIPs: [{ip: 10.0.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: plain, name: p, uid: uid-p}, spec: {nodeName: far}, status: {podIPs: [{ip: 10.1.0.1}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80, targetPort: 8080, protocol: TCP}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}, endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, namespace: shop, name: a}}, {addresses: [10.0.0.3], conditions: {ready: false}, targetRef: {kind: Pod, namespace: shop, name: out}}], ports: [{port: 8080, protocol: TCP}]}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: only-b}, spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/b]}}], to: [{operation: {ports: ['8080']}}]}]}}";

fn world() -> Snapshot {
    let mut snapshot = Snapshot::new(Settings::for_node("here"));
    for object in read(WORLD, Syntax::Yaml).unwrap().objects {
        snapshot.apply(Event::Upsert(object));
    }
    snapshot.apply(attached("ca", Some(("shop", "a")), &["10.0.0.1"]));
    snapshot.apply(Event::Synced);
    snapshot
}

#[test]
fn workloads_are_told_with_why_they_are_not_of_the_mesh() {
    let list = workloads(&world(), &[]).unwrap();
    let why = |name: &str| {
        let mut all = list.workloads.iter();
        let it = all.find(|it| it.name == name).unwrap();
        (it.protocol.as_str(), it.wired, it.not_enrolled.as_deref())
    };
    assert_eq!(why("a"), ("HBONE", true, None));
    assert_eq!(why("h"), ("TCP", false, Some("host network")));
    assert_eq!(why("out"), ("TCP", false, Some("opted out")));
    assert_eq!(why("p"), ("TCP", false, Some("namespace not labelled")));
    let text = render_workloads(&list);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(lines[0].starts_with("NAMESPACE  NAME"), "{text}");
    let at = lines[0].find("ADDRESSES").unwrap();
    assert_eq!(lines[2].find("10.0.0.1"), Some(at), "{text}");
}

#[test]
fn workloads_are_asked_for_by_name_and_address() {
    let ask = |text: &str| {
        let end: End = text.parse().unwrap();
        workloads(&world(), &[end]).map(|list| list.workloads[0].name.clone())
    };
    assert_eq!(ask("shop/a"), Ok("a".to_owned()));
    assert_eq!(ask("10.0.0.1"), Ok("a".to_owned()));
    let problem = ask("shop/nobody").unwrap_err();
    assert!(matches!(problem, Problem::UnknownPod { .. }), "{problem}");
    let problem = ask("192.0.2.8").unwrap_err();
    assert_eq!(
        problem.to_string(),
        "no pod at 192.0.2.8 is known to the agent of node here"
    );
    assert!(matches!(ask("svc/shop/web"), Err(Problem::NotAPod(_))));
}

#[test]
fn services_count_their_endpoints() {
    let list = services(&world()).unwrap();
    let it = &list.services[0];
    assert_eq!((it.ready, it.endpoints), (1, 2));
    assert_eq!(it.hostname, "web.shop.svc.cluster.local");
    assert!(
        render_services(&list).contains("10.96.0.1  80/TCP  1/2"),
        "{list:?}"
    );
}

#[test]
fn nothing_is_listed_of_half_a_world() {
    let snapshot = Snapshot::new(Settings::for_node("here"));
    assert!(matches!(
        workloads(&snapshot, &[]),
        Err(Problem::NotSynced(_))
    ));
    assert!(matches!(services(&snapshot), Err(Problem::NotSynced(_))));
}

/// A certificate as a report tells it.
fn report() -> pki::Report {
    let shown = |serial_number: &str| pki::Shown {
        serial_number: serial_number.to_owned(),
        not_before: "2026-01-01T00:00:00Z".to_owned(),
        not_after: "2026-01-02T00:00:00Z".to_owned(),
        pem: "-----BEGIN CERTIFICATE-----\n".to_owned(),
    };
    pki::Report {
        issued: 1,
        identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        certificate: Some(pki::Issued {
            serial: "0a".to_owned(),
            not_before: "2026-01-01T00:00:00Z".to_owned(),
            not_after: "2026-01-02T00:00:00Z".to_owned(),
            roots: Vec::new(),
            chain: vec![shown("10")],
            trusted: vec![shown("1")],
        }),
        next_request: None,
        last_error: None,
    }
}

#[test]
fn istios_tools_find_what_they_look_for() {
    let about = About {
        cluster: "Kubernetes".to_owned(),
        certificates: vec![report()],
        connections: vec![Ends {
            source: "10.0.0.1:40000".parse().unwrap(),
            asked: "10.96.0.9:80".parse().unwrap(),
            identity: None,
            destination: "10.1.0.1:8080".parse().unwrap(),
            directions: &[Direction::Egress],
            is_tunnelled: true,
        }],
        ..About::default()
    };
    let dump = config_dump(&world(), &about);
    let all = dump["workloads"].as_array().unwrap();
    let web = all.iter().find(|it| it["name"] == "a").unwrap();
    assert_eq!(web["uid"], "Kubernetes//Pod/shop/a");
    assert_eq!(web["workloadIps"], json!(["10.0.0.1"]));
    assert_eq!(
        (&web["protocol"], &web["status"]),
        (&json!("HBONE"), &json!("Healthy"))
    );
    assert_eq!(
        (&web["canonicalName"], &web["serviceAccount"]),
        (&json!("web"), &json!("web"))
    );
    assert_eq!(web["locality"]["zone"], "z1");
    assert_eq!(web["authorizationPolicies"], json!(["shop/only-b"]));
    let service = &dump["services"][0];
    assert_eq!(
        (&service["vips"], &service["ports"]),
        (&json!(["/10.96.0.1"]), &json!({"80": 8080}))
    );
    let endpoint = &service["endpoints"]["Kubernetes//Pod/shop/a"];
    assert_eq!(endpoint["port"], json!({"80": 8080}));
    let policy = &dump["policies"][0];
    assert_eq!(
        (&policy["scope"], &policy["action"]),
        (&json!("WorkloadSelector"), &json!("Allow"))
    );
    // Rules, of which one; clauses, which all hold; matches, of which one does.
    let principals = json!([{"Exact": "cluster.local/ns/shop/sa/b"}]);
    let clauses = policy["rules"][0].as_array().unwrap();
    let of = |field: &str| {
        let mut matches = clauses.iter().flat_map(|it| it.as_array().unwrap());
        matches
            .find(|it| it[field] != json!([]))
            .map(|it| it[field].clone())
    };
    assert_eq!(of("principals"), Some(principals), "{policy:#}");
    assert_eq!(of("destinationPorts"), Some(json!([8080])), "{policy:#}");
    let certificate = &dump["certificates"][0];
    assert_eq!(certificate["state"], "Available");
    assert_eq!(certificate["certChain"][0]["serialNumber"], "10");
    let state = &dump["workloadState"]["Kubernetes//Pod/shop/a"];
    assert_eq!(
        (&state["state"], &state["info"]["name"]),
        (&json!("Up"), &json!("a"))
    );
    let outbound = json!([{
        "src": "10.0.0.1:40000", "originalDst": "10.96.0.9:80", "actualDst": "10.1.0.1:8080", "protocol": "HBONE",
    }]);
    let connections = json!({ "inbound": [], "outbound": outbound });
    assert_eq!(state["connections"], connections);
    assert!(!dump.to_string().contains("PRIVATE KEY"));
}

#[test]
fn certificates_have_a_line_each() {
    let text = certificates(&[report()]);
    let line = text.lines().nth(1).unwrap();
    for word in [
        "spiffe://cluster.local/ns/shop/sa/web",
        "0a",
        "2026-01-02",
        "under way",
    ] {
        assert!(line.contains(word), "{word} in {line}");
    }
}
