//! Objects, as whoever may write some in the cluster can write them.

use std::net::IpAddr;

use mesh_agent::cluster::document::{Syntax, read};
use mesh_agent::model::{Attached, Event, Object, Settings, Snapshot};
use mesh_agent::policy::{
    Connection, Destination, Direction, IpProtocol, Source, compile, evaluate, explain,
};
use mesh_common::cni::{Attachment, PodRef};

/// A file, read as YAML and as JSON; its objects change a small world, in which everybody then talks to everybody.
pub fn documents(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    for syntax in [Syntax::Yaml, Syntax::Json] {
        if let Ok(contents) = read(text, syntax) {
            changes_a_world(contents.objects);
        }
    }
}

/// Objects come, are judged by, and go.
pub(crate) fn changes_a_world(objects: Vec<Object>) {
    let mut world = world();
    let references: Vec<_> = objects.iter().map(Object::reference).collect();
    for object in objects {
        world.apply(Event::Upsert(object));
    }
    judges(&world);
    compile(&world);
    for reference in references {
        world.apply(Event::Delete(reference));
    }
    judges(&world);
}

const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank}}
---
{apiVersion: v1, kind: Node, metadata: {name: here}, spec: {podCIDRs: [10.1.0.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: a, labels: {app: a}}, spec: {nodeName: here, serviceAccountName: a}, status: {podIPs: [{ip: 10.1.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: bank, name: b, labels: {app: b}}, spec: {nodeName: here}, status: {podIPs: [{ip: 10.1.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: c, labels: {app: c}}, spec: {nodeName: there, containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}, status: {podIPs: [{ip: 10.1.1.2}]}}
";

/// Two pods of this node, one of another.
fn world() -> Snapshot {
    let mut world = Snapshot::new(Settings::for_node("here"));
    let contents = read(WORLD, Syntax::Yaml).expect("it is right");
    for object in contents.objects {
        world.apply(Event::Upsert(object));
    }
    for (namespace, name, address) in [("shop", "a", [10, 1, 0, 2]), ("bank", "b", [10, 1, 0, 3])] {
        world.apply(Event::Attached(Attached {
            attachment: Attachment {
                container: name.to_owned(),
                ifname: "eth0".to_owned(),
            },
            pod: Some(PodRef {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: None,
            }),
            addresses: vec![address.into()],
        }));
    }
    world.apply(Event::Synced);
    world
}

/// What the layers say together is what each says.
fn judges(world: &Snapshot) {
    let addresses = world.workload_addresses().map(|(address, _)| address);
    let addresses: Vec<_> = addresses.chain([[192, 0, 2, 9].into()]).take(6).collect();
    for from in &addresses {
        for to in &addresses {
            for direction in [Direction::Ingress, Direction::Egress] {
                judge(world, direction, *from, *to);
            }
        }
    }
}

fn judge(world: &Snapshot, direction: Direction, from: IpAddr, to: IpAddr) {
    let source = world.workload_by_addr(from).map(|it| &**it);
    for (protocol, port) in [(IpProtocol::Tcp, 80), (IpProtocol::Icmp, 0)] {
        let connection = Connection {
            direction,
            protocol,
            source: Source {
                address: from,
                workload: source,
                identity: source.and_then(|it| it.identity.as_ref()),
            },
            destination: Destination {
                address: to,
                port,
                workload: world.workload_by_addr(to).map(|it| &**it),
            },
            from_node: false,
        };
        let verdict = evaluate(world, &connection);
        let layers = explain(world, &connection);
        assert_eq!(verdict.allow, layers.iter().all(|it| it.allow));
        assert_eq!(verdict.allow, verdict.reason.allows());
    }
}
