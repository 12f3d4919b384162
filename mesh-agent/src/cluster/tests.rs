//! From text to objects, and from a directory to events.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::document::{Contents, Error, Syntax, read};
use super::files;
use crate::model::{
    Event, Hints, Key, MtlsMode, Object, Pod, Protocol, Reference, ServicePort, TargetPort,
};

fn yaml(text: &str) -> Result<Contents, Error> {
    read(text, Syntax::Yaml)
}

/// The only object of a text.
fn one(text: &str) -> Object {
    let contents = yaml(text).unwrap();
    assert!(contents.ignored.is_empty(), "{:?}", contents.ignored);
    let [object] = &*contents.objects else {
        panic!("{:?}", contents.objects)
    };
    object.clone()
}

#[test]
fn pod() {
    let Object::Pod(it) = one("
apiVersion: v1
kind: Pod
metadata:
  name: cart-0
  namespace: shop
  uid: 7d1c
  creationTimestamp: 1970-01-01T00:01:40Z
  labels: {app: cart}
  annotations: {sidecar.istio.io/status: injected}
spec:
  nodeName: n1
  serviceAccountName: carter
  hostNetwork: true
  initContainers:
  - name: proxy
    startupProbe: {tcpSocket: {port: 4000}}
  containers:
  - name: cart
    ports: [{name: web, containerPort: 8080}, {containerPort: 9}, {name: dns, containerPort: 53, protocol: UDP}]
    livenessProbe: {httpGet: {port: web}}
    readinessProbe: {httpGet: {port: 8081, host: elsewhere.example}}
    startupProbe: {grpc: {port: 8082}}
    lifecycle: {preStop: {httpGet: {port: '8083'}}, postStart: {httpGet: {port: nowhere}}}
status:
  phase: Failed
  podIP: 10.0.0.7
  podIPs: [{ip: 10.0.0.7}, {ip: 'fd00::7'}]
  conditions: [{type: Ready, status: 'True'}]
") else {
        panic!()
    };
    let Pod {
        key, uid, created, ..
    } = &*it;
    assert_eq!(
        (key, &**uid, *created),
        (&Key::new("shop", "cart-0"), "7d1c", 100)
    );
    assert_eq!(
        (&*it.service_account, it.node.as_deref()),
        ("carter", Some("n1"))
    );
    assert!(it.host_network && it.sidecar && it.ready && it.terminated);
    assert_eq!(
        it.addresses,
        ["10.0.0.7", "fd00::7"].map(|it| it.parse::<std::net::IpAddr>().unwrap())
    );
    let ports: Vec<_> = it
        .ports
        .iter()
        .map(|it| (&*it.name, it.port, it.protocol))
        .collect();
    assert_eq!(
        ports,
        [("web", 8080, Protocol::Tcp), ("dns", 53, Protocol::Udp)]
    );
    assert_eq!(it.probe_ports, [4000, 8080, 8082, 8083].into());
}

#[test]
fn what_made_a_pod() {
    let owner = |kind: &str, name: &str, labels: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, labels: {{{labels}}}, ownerReferences: [\
             {{apiVersion: x, uid: y, kind: {kind}, name: {name}, controller: true}}]}}}}"
        );
        let Object::Pod(it) = one(&text) else {
            panic!()
        };
        it.workload_name().to_owned()
    };
    let check = |kind, name, labels, expect| assert_eq!(owner(kind, name, labels), expect);
    check("ReplicaSet", "web-5d4f", "pod-template-hash: 5d4f", "web");
    check("ReplicaSet", "web-5d4f", "", "web-5d4f");
    check("ReplicaSet", "x5d4f", "pod-template-hash: 5d4f", "x5d4f");
    check("StatefulSet", "db", "", "db");
    check("Job", "backup-28934567", "", "backup");
    check("Job", "migrate-2", "", "migrate-2");
    check("Job", "'28934567'", "", "28934567");
    let Object::Pod(alone) = one("{apiVersion: v1, kind: Pod, metadata: {name: a}}") else {
        panic!()
    };
    assert_eq!(alone.workload_name(), "a");
}

#[test]
fn least_pod() {
    let Object::Pod(it) =
        one("{apiVersion: v1, kind: Pod, metadata: {name: a, creationTimestamp: null}}")
    else {
        panic!()
    };
    assert_eq!(it.key, Key::new("default", "a"));
    assert_eq!(&*it.service_account, "default");
    assert!(it.node.is_none() && it.addresses.is_empty() && !it.terminated);
}

#[test]
fn service_and_slice() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [192.0.2.1]
  publishNotReadyAddresses: true
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
  ports: [{name: http, port: 80, targetPort: web}, {name: raw, port: 81, targetPort: 8081}, {name: same, port: 82}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a}, nodeName: n1, hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}
ports: [{name: http, port: 8080}]
";
    let contents = yaml(text).unwrap();
    let [Object::Service(service), Object::EndpointSlice(slice)] = &*contents.objects else {
        panic!()
    };
    assert_eq!(service.addresses.len(), 2);
    assert!(service.publish_not_ready && !service.headless);
    assert!(service.internal_local && service.client_affinity);
    let Hints { zones, nodes } = &slice.endpoints[0].hints;
    assert_eq!((&*zones[0], &*nodes[0]), ("z1", "n1"));
    let target = |it: &ServicePort| it.target.clone();
    let targets: Vec<_> = service.ports.iter().map(target).collect();
    assert_eq!(
        targets,
        [
            TargetPort::Name("web".to_owned()),
            TargetPort::Number(8081),
            TargetPort::Number(82)
        ]
    );
    assert_eq!(slice.service, Key::new("shop", "web"));
    let states: Vec<_> = slice
        .endpoints
        .iter()
        .map(|it| (it.ready, it.serving, it.terminating))
        .collect();
    assert_eq!(states, [(true, true, false), (false, true, true)]);
    assert_eq!(slice.endpoints[0].pod, Some(Key::new("shop", "a")));
    assert_eq!(slice.ports[0].port, 8080);
}

#[test]
fn headless_and_external_services_have_no_address() {
    for spec in [
        "{clusterIP: None}",
        "{clusterIPs: [None]}",
        "{type: ExternalName, externalName: x.example}",
    ] {
        let text =
            format!("{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {spec}}}");
        let Object::Service(it) = one(&text) else {
            panic!()
        };
        assert!(it.addresses.is_empty(), "{spec}");
        assert_eq!(it.headless, spec.contains("None"));
    }
}

#[test]
fn node_and_policy() {
    let Object::Node(node) = one("
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}, spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd01::/64']},
 status: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 192.0.2.1}]}}") else {
        panic!()
    };
    assert_eq!((node.addresses.len(), node.pod_cidrs.len()), (1, 2));
    assert_eq!(node.zone.as_deref(), Some("z1"));
    let Object::PeerAuthentication(it) = one("
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}
") else {
        panic!()
    };
    assert_eq!(it.mode, MtlsMode::Strict);
    assert_eq!(it.ports, [(8080, MtlsMode::Permissive)].into());
    assert_eq!(it.selector["app"], "cart");
}

#[test]
fn lists_and_other_kinds() {
    let contents = yaml(
        "
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: x}}
---
# nothing
---
{apiVersion: v1, kind: NamespaceList, items: [{metadata: {name: b}}]}
",
    )
    .unwrap();
    let names: Vec<_> = contents.objects.iter().map(Object::reference).collect();
    assert_eq!(
        names,
        [
            Reference::Namespace("a".into()),
            Reference::Namespace("b".into())
        ]
    );
    assert_eq!(contents.ignored, ["apps/v1 Deployment"]);
    let json =
        "\t{\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n";
    assert_eq!(
        read(json, Syntax::Json).unwrap().objects,
        contents.objects[..1]
    );
}

#[test]
fn errors_name_document_field_and_remedy() {
    let good = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n";
    let check = |text: &str, expect: &str| {
        let error = yaml(&format!("{good}{text}")).unwrap_err();
        let cause = std::error::Error::source(&error).map(|it| format!(": {it}"));
        let got = format!("{error}{}", cause.unwrap_or_default());
        assert!(got.starts_with(expect), "{got}");
    };
    check("a: [", "document 2 is not valid YAML: ");
    check(
        "kind: Pod",
        "document 2 has no apiVersion; write what kind of object it is",
    );
    check(
        "apiVersion: v1",
        "document 2 has no kind; write what kind of object it is",
    );
    check(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: b, ports: [{containerPort: x}]}]}}",
        "document 2, Pod, field spec.containers[0].ports[0].containerPort cannot be read: invalid type: string \"x\", expected i32",
    );
    check(
        "{apiVersion: v1, kind: Pod, metadata: {namespace: b}}",
        "document 2, Pod, field metadata.name cannot be used: metadata.name is \"\"; write the name of the object",
    );
    check(
        "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDRs: [10.1/8]}}]}",
        "document 2, Node, field items[0].spec.podCIDRs[0] cannot be used: items[0].spec.podCIDRs[0] is \"10.1/8\"; write an IP prefix such as",
    );
    check(
        "{apiVersion: v1, kind: Service, metadata: {name: n}, spec: {ports: [{port: 70000}]}}",
        "document 2, Service, field spec.ports[0].port cannot be used: spec.ports[0].port is \"70000\"; write a port from 1 to 65535",
    );
}

#[test]
fn what_is_not_understood_of_a_peer_authentication_accepts_the_mesh_alone() {
    let check = |spec: &str, mode: MtlsMode, selects: usize, field: &str| {
        let Object::PeerAuthentication(it) = one(&format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: n}}, spec: {spec}}}"
        )) else {
            panic!("another kind");
        };
        assert_eq!((it.mode, it.selector.len()), (mode, selects), "{spec}");
        let fields: Vec<_> = it.caveats.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields.join(" "), field, "{spec}");
        assert!(it.caveats.is_empty() || it.ports.is_empty(), "{spec}");
    };
    let one = "selector: {matchLabels: {app: a}}";
    check(
        &format!("{{{one}, mtls: {{mode: PERMISSIVE}}}}"),
        MtlsMode::Permissive,
        1,
        "",
    );
    check("null", MtlsMode::Unset, 0, "");
    check("[]", MtlsMode::Strict, 0, "spec");
    check(
        &format!("{{{one}, mtls: {{mode: STRIKT}}}}"),
        MtlsMode::Strict,
        1,
        "spec.mtls.mode",
    );
    check(
        &format!("{{{one}, mtl: {{mode: PERMISSIVE}}}}"),
        MtlsMode::Strict,
        1,
        "spec.mtl",
    );
    check(
        &format!("{{{one}, portLevelMtls: {{http: {{mode: STRICT}}}}}}"),
        MtlsMode::Strict,
        1,
        "spec.portLevelMtls",
    );
    check(
        "{portLevelMtls: {80: {mode: LAX}}}",
        MtlsMode::Strict,
        0,
        "spec.portLevelMtls.80.mode",
    );
    check(
        "{selector: {matchLabel: {app: a}}, mtls: {mode: PERMISSIVE}}",
        MtlsMode::Strict,
        0,
        "spec.selector.matchLabel",
    );
}

/// The source over a directory, and what it tells.
struct Source {
    events: mpsc::Receiver<Event>,
    shutdown: CancellationToken,
    run: JoinHandle<Result<(), files::Error>>,
}

impl Source {
    fn start(directory: &Path) -> Self {
        let (sender, events) = mpsc::channel(8);
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(files::run(directory.to_owned(), sender, shutdown.clone()));
        Self {
            events,
            shutdown,
            run,
        }
    }

    async fn next(&mut self) -> String {
        let event = timeout(Duration::from_secs(10), self.events.recv()).await;
        match event.expect("an event in time").expect("a running source") {
            Event::Upsert(object) => format!("+{:?}", object.reference()),
            Event::Delete(reference) => format!("-{reference:?}"),
            Event::LeftOut { part, reason } => format!("{part} left out: {}", reason.is_some()),
            Event::Synced => "synced".to_owned(),
            other => panic!("{other:?}"),
        }
    }

    async fn expect(&mut self, expect: &[&str]) {
        for expect in expect {
            assert_eq!(self.next().await, *expect);
        }
    }

    async fn quiet(&mut self) {
        // Longer than settling, shorter than the next look without notification.
        let event = timeout(Duration::from_millis(300), self.events.recv()).await;
        assert!(event.is_err(), "{event:?}");
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.run.await.unwrap().unwrap();
    }
}

fn namespaces(names: &[&str]) -> String {
    let each = |name: &&str| {
        format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n")
    };
    names.iter().map(each).collect()
}

#[tokio::test]
async fn edits_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), namespaces(&["a1", "a2"])).unwrap();
    fs::write(at("b.yml"), namespaces(&["b"])).unwrap();
    fs::write(at("notes.txt"), "not ours").unwrap();
    fs::write(at(".hidden.yaml"), "a: [").unwrap();
    let mut source = Source::start(dir.path());
    source
        .expect(&[
            "+Namespace(\"a1\")",
            "+Namespace(\"a2\")",
            "+Namespace(\"b\")",
            "synced",
        ])
        .await;

    let edited = namespaces(&["a1"])
        + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: a2, labels: {x: y}}}\n";
    fs::write(at("a.yaml"), &edited).unwrap();
    source.expect(&["+Namespace(\"a2\")"]).await;
    fs::write(at("new"), namespaces(&["c"])).unwrap();
    fs::rename(at("new"), at("c.yaml")).unwrap();
    source.expect(&["+Namespace(\"c\")"]).await;
    fs::remove_file(at("b.yml")).unwrap();
    source.expect(&["-Namespace(\"b\")"]).await;

    // As one that is being written in place.
    fs::write(at("c.yaml"), "").unwrap();
    source.expect(&["c.yaml left out: true"]).await;
    fs::write(at("c.yaml"), namespaces(&["c"])).unwrap();
    source.expect(&["c.yaml left out: false"]).await;

    // A broken file keeps what it said and does not disturb the others.
    fs::write(at("a.yaml"), "a: [").unwrap();
    source.expect(&["a.yaml left out: true"]).await;
    fs::write(at("c.yaml"), namespaces(&["d"])).unwrap();
    source
        .expect(&["+Namespace(\"d\")", "-Namespace(\"c\")"])
        .await;
    fs::write(at("a.yaml"), edited + &namespaces(&["a3"])).unwrap();
    source
        .expect(&["+Namespace(\"a3\")", "a.yaml left out: false"])
        .await;

    // Defined twice: the first file's holds until it no longer does.
    fs::write(at("b.yaml"), namespaces(&["a1"])).unwrap();
    source.quiet().await;
    fs::remove_file(at("a.yaml")).unwrap();
    source
        .expect(&["-Namespace(\"a3\")", "-Namespace(\"a2\")"])
        .await;
    source.stop().await;
}

#[tokio::test]
async fn the_world_is_whole_once_every_file_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), namespaces(&["a"])).unwrap();
    fs::write(dir.path().join("b.yaml"), "a: [").unwrap();
    let mut source = Source::start(dir.path());
    source
        .expect(&["+Namespace(\"a\")", "b.yaml left out: true"])
        .await;
    fs::write(dir.path().join("c.yaml"), namespaces(&["c"])).unwrap();
    source.expect(&["+Namespace(\"c\")"]).await;
    source.quiet().await;
    fs::write(dir.path().join("b.yaml"), namespaces(&["b"])).unwrap();
    source
        .expect(&["+Namespace(\"b\")", "b.yaml left out: false", "synced"])
        .await;
    source.stop().await;
}

#[tokio::test]
async fn a_directory_may_vanish_and_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("world"), dir.path().join("new"));
    for (path, name) in [(&old, "a"), (&new, "b")] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("x.yaml"), namespaces(&[name])).unwrap();
    }
    let mut source = Source::start(&old);
    source.expect(&["+Namespace(\"a\")", "synced"]).await;
    fs::remove_dir_all(&old).unwrap();
    // Removing the file before the directory may be seen as such; what is left is told again below in any case.
    if let Ok(event) = timeout(Duration::from_millis(500), source.events.recv()).await {
        assert_eq!(event, Some(Event::Delete(Reference::Namespace("a".into()))));
    }
    fs::rename(&new, &old).unwrap();
    assert_eq!(source.next().await, "+Namespace(\"b\")");
    fs::write(old.join("y.yaml"), namespaces(&["c"])).unwrap();
    loop {
        match &*source.next().await {
            "-Namespace(\"a\")" => {}
            other => break assert_eq!(other, "+Namespace(\"c\")"),
        }
    }
    source.stop().await;
}

#[tokio::test]
async fn a_vanished_directory_says_what_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("world"), dir.path().join("away"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("x.yaml"), namespaces(&["a"])).unwrap();
    let mut source = Source::start(&path);
    source.expect(&["+Namespace(\"a\")", "synced"]).await;
    fs::rename(&path, &away).unwrap();
    source.quiet().await;
    fs::write(away.join("x.yaml"), namespaces(&["b"])).unwrap();
    source.quiet().await;
    fs::rename(&away, &path).unwrap();
    source
        .expect(&["+Namespace(\"b\")", "-Namespace(\"a\")"])
        .await;
    source.stop().await;
}

/// How a mounted `ConfigMap` changes: files are links through a link that is swapped.
#[tokio::test]
async fn links_are_followed() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (version, name) in [("..v1", "a"), ("..v2", "b")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("x.yaml"), namespaces(&[name])).unwrap();
    }
    symlink("..v1", at("..data")).unwrap();
    symlink("..data/x.yaml", at("x.yaml")).unwrap();
    let mut source = Source::start(dir.path());
    source.expect(&["+Namespace(\"a\")", "synced"]).await;
    symlink("..v2", at("..tmp")).unwrap();
    fs::rename(at("..tmp"), at("..data")).unwrap();
    source
        .expect(&["+Namespace(\"b\")", "-Namespace(\"a\")"])
        .await;
    source.stop().await;
}

#[tokio::test]
async fn a_missing_directory_is_an_error_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let source = Source::start(&missing);
    let error = source.run.await.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("missing; create it, or name another one with --source"),
        "{error}"
    );
}

#[tokio::test]
async fn ends_when_nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), namespaces(&["a"])).unwrap();
    let Source { events, run, .. } = Source::start(dir.path());
    drop(events);
    timeout(Duration::from_secs(5), run)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
