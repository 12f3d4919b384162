//! The semantics case by case, a naive second evaluator against the first on random worlds, and hostile input.
//!
//! Worlds are written as users write them, so the way from text to rules is tested with the rules.

mod authorization;
mod compiled;
mod hostile;
mod naive;
mod network;
mod random;

use std::net::IpAddr;

use super::*;
use crate::cluster::document::{Syntax, read};
use crate::model::tests::{attached, ip};
use crate::model::{Event, Identity, Settings, Snapshot, Workload};

/// The world of some YAML, on a node named `here`.
fn world(texts: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::new(Settings::for_node("here"));
    for text in texts {
        for object in read(text, Syntax::Yaml).unwrap().objects {
            snapshot.apply(Event::Upsert(object));
        }
    }
    snapshot
}

fn tell(snapshot: &mut Snapshot, text: &str) {
    for object in read(text, Syntax::Yaml).unwrap().objects {
        snapshot.apply(Event::Upsert(object));
    }
}

fn forget(snapshot: &mut Snapshot, text: &str) {
    for object in read(text, Syntax::Yaml).unwrap().objects {
        snapshot.apply(Event::Delete(object.reference()));
    }
}

/// A connection by addresses; workloads are who is found there.
#[derive(Clone, Copy, Debug)]
struct Try {
    from: IpAddr,
    to: IpAddr,
    port: u16,
    protocol: IpProtocol,
    /// Whether the source proves to be who is found at its address.
    mtls: bool,
    node: bool,
}

/// `from -> to:port` over TCP in plaintext.
fn tcp(from: &str, to: &str, port: u16) -> Try {
    Try {
        from: ip(from),
        to: ip(to),
        port,
        protocol: IpProtocol::Tcp,
        mtls: false,
        node: false,
    }
}

impl Try {
    fn over(self, protocol: IpProtocol) -> Self {
        Self { protocol, ..self }
    }

    fn mtls(self) -> Self {
        Self { mtls: true, ..self }
    }

    fn by_node(self) -> Self {
        Self { node: true, ..self }
    }

    fn at(self, snapshot: &Snapshot, direction: Direction) -> Verdict {
        let workload = |address| snapshot.workload_by_addr(address).map(|it| &**it);
        let source = workload(self.from);
        let identity = source.and_then(|it| it.identity.as_ref());
        let identity = identity.filter(|_| self.mtls);
        self.with(snapshot, direction, source, identity)
    }

    fn with(
        self,
        snapshot: &Snapshot,
        direction: Direction,
        source: Option<&Workload>,
        identity: Option<&Identity>,
    ) -> Verdict {
        let connection = Connection {
            direction,
            protocol: self.protocol,
            source: Source {
                address: self.from,
                workload: source,
                identity,
            },
            destination: Destination {
                address: self.to,
                port: self.port,
                workload: snapshot.workload_by_addr(self.to).map(|it| &**it),
            },
            from_node: self.node,
        };
        let verdict = evaluate(snapshot, &connection);
        let layers = explain(snapshot, &connection);
        assert_eq!(
            verdict.allow,
            layers.iter().all(|it| it.allow),
            "{layers:?}"
        );
        assert!(layers.contains(&verdict));
        assert_eq!(verdict.allow, verdict.reason.allows());
        verdict
    }

    /// At both ends.
    fn passes(self, snapshot: &Snapshot) -> bool {
        [Direction::Egress, Direction::Ingress]
            .iter()
            .all(|it| self.at(snapshot, *it).allow)
    }
}

/// Asserts what becomes of connections.
#[track_caller]
fn check(snapshot: &Snapshot, expect: bool, tries: &[Try]) {
    for it in tries {
        let ends = [Direction::Egress, Direction::Ingress].map(|at| it.at(snapshot, at));
        let [out, into] = &ends;
        assert_eq!(it.passes(snapshot), expect, "{it:?}: {out}; {into}");
    }
}

/// A text that takes part in YAML as one line.
fn pod(namespace: &str, name: &str, address: &str, rest: &str) -> String {
    let (labels, spec) = rest.split_once('|').unwrap_or((rest, ""));
    format!(
        "\n---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: {name}, uid: {name}, labels: {{{labels}}}}}, \
         spec: {{nodeName: far, {spec}}}, status: {{podIPs: [{{ip: '{address}'}}]}}}}"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!(
        "\n---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}"
    )
}

fn network_policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: {namespace}, name: {name}}}, spec: {spec}}}"
    )
}

fn istio(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{namespace: {namespace}, name: {name}}}, spec: {spec}}}"
    )
}

/// Two namespaces of three pods each, and one in the host's network; `a` has named ports.
fn base() -> String {
    let ports = "app: a|containers: [{name: x, ports: [{name: web, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}, {name: y, ports: [{name: admin, containerPort: 9090}]}]";
    namespace("x", "team: red")
        + &namespace("y", "team: blue, env: prod")
        + &pod("x", "a", "10.0.0.1", ports)
        + &pod("x", "b", "10.0.0.2", "app: b, tier: back")
        + &pod("x", "c", "10.0.0.3", "app: c")
        + &pod(
            "y",
            "a",
            "10.0.1.1",
            "app: a|containers: [{name: x, ports: [{name: web, containerPort: 80}]}]",
        )
        + &pod("y", "b", "10.0.1.2", "app: b")
        + &pod("y", "six", "fd00::6", "app: six")
        + &pod("x", "host", "192.168.0.9", "app: b|hostNetwork: true")
}

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.0.3";
const YA: &str = "10.0.1.1";
const YB: &str = "10.0.1.2";
const SIX: &str = "fd00::6";
const OUTSIDE: &str = "203.0.113.7";
