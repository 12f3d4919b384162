//! What policy costs: a verdict among many policies, and compiling them for the kernel.
//!
//! `cargo bench -p mesh-agent --bench policy`

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::IpAddr;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_agent::cluster::document::{self, Syntax};
use mesh_agent::model::{Attached, Event, Settings, Snapshot};
use mesh_agent::policy::{
    Connection, Destination, Direction, IpProtocol, Source, compile, evaluate,
};
use mesh_common::cni::{Attachment, PodRef};

/// Pods of this node, in every world.
const LOCAL: usize = 100;

/// How policies select the pod that is asked about.
#[derive(Clone, Copy, Debug)]
enum Selecting {
    /// One of them alone, by a label of its own.
    One,
    /// All of them.
    All,
}

criterion_group!(benches, verdicts, compilation);
criterion_main!(benches);

fn verdicts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verdict");
    for selecting in [Selecting::One, Selecting::All] {
        for count in [10, 1_000, 10_000] {
            let world = world((LOCAL, LOCAL), &policies(count, selecting));
            let id = BenchmarkId::new(format!("{selecting:?} of"), count);
            group.bench_with_input(id, &world, |bencher, world| {
                bencher.iter(|| evaluate(world, black_box(&connection(world))));
            });
        }
    }
}

fn compilation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for (pods, apps, policies_about) in [
        (1_000, 100, 100),
        (20_000, 500, 100),
        (20_000, 500, 10_000),
        // The worst: no two pods are alike.
        (20_000, 20_000, 100),
    ] {
        let world = world((pods, apps), &policies(policies_about, Selecting::One));
        let id = BenchmarkId::new(
            format!("{policies_about} policies, {apps} apps, pods"),
            pods,
        );
        group.bench_with_input(id, &world, |bencher, world| {
            bencher.iter(|| compile(black_box(world)));
        });
    }
    let world = world((LOCAL, LOCAL), &blocks(5_000));
    group.bench_function("5000 blocks and as many holes", |bencher| {
        bencher.iter(|| compile(black_box(&world)));
    });
}

/// From the second pod to the first, at a port that no policy names.
fn connection(world: &Snapshot) -> Connection<'_> {
    let [to, from] = [0, 1].map(address);
    let of = |address| world.workload_by_addr(address).map(|it| &**it);
    Connection {
        direction: Direction::Ingress,
        protocol: IpProtocol::Tcp,
        source: Source {
            address: from,
            workload: of(from),
            identity: None,
        },
        destination: Destination {
            address: to,
            port: 65_000,
            workload: of(to),
        },
        from_node: false,
    }
}

fn address(pod: usize) -> IpAddr {
    let [.., a, b] = pod.to_be_bytes();
    [10, 1, a, b].into()
}

fn policies(count: usize, selecting: Selecting) -> String {
    (0..count).fold(String::new(), |mut text, i| {
        let selector = match selecting {
            Selecting::One => format!("matchLabels: {{app: app-{i}}}"),
            Selecting::All => {
                format!("matchExpressions: [{{key: no-{i}, operator: DoesNotExist}}]")
            }
        };
        let port = 1 + i % 60_000;
        let from = format!(
            "from: [{{podSelector: {{matchLabels: {{app: app-{}}}}}}}]",
            i + 1
        );
        let rule = format!("{{ports: [{{port: {port}}}], {from}}}");
        policy(&mut text, i, &selector, &rule);
        text
    })
}

/// A policy of blocks, and of one block with as many exceptions.
fn blocks(count: usize) -> String {
    let block = |net: u8, i: usize| format!("{net}.{}.{}.0/24", i / 250, i % 250);
    let blocks = (0..count).map(|i| format!("{{ipBlock: {{cidr: {}}}}}, ", block(100, i)));
    let holes: Vec<_> = (0..count).map(|i| block(101, i)).collect();
    let holes = holes.join(", ");
    let except = format!("{{ipBlock: {{cidr: 101.0.0.0/8, except: [{holes}]}}}}");
    let mut text = String::new();
    let rule = format!("{{from: [{}{except}]}}", blocks.collect::<String>());
    policy(&mut text, 0, "", &rule);
    text
}

fn policy(text: &mut String, i: usize, selector: &str, rule: &str) {
    let spec = format!("{{podSelector: {{{selector}}}, ingress: [{rule}]}}");
    let metadata = format!("{{namespace: x, name: p{i}}}");
    let kind = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy";
    let _ = write!(text, "{kind}\nmetadata: {metadata}\nspec: {spec}\n---\n");
}

/// Pods of some applications, of which the first [`LOCAL`] run on this node, and policies.
fn world((pods, apps): (usize, usize), policies: &str) -> Snapshot {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\n".to_owned();
    for i in 0..pods {
        let node = if i < LOCAL { "n1" } else { "n2" };
        let metadata = format!(
            "{{namespace: x, name: p{i}, labels: {{app: app-{}}}}}",
            i % apps
        );
        let status = format!("{{phase: Running, podIP: {}}}", address(i));
        let spec = format!("{{nodeName: {node}, containers: []}}");
        let kind = "apiVersion: v1\nkind: Pod";
        let _ = write!(
            text,
            "{kind}\nmetadata: {metadata}\nspec: {spec}\nstatus: {status}\n---\n"
        );
    }
    let mut snapshot = Snapshot::new(Settings::for_node("n1"));
    for text in [&text, policies] {
        let contents = document::read(text, Syntax::Yaml).expect("objects");
        for object in contents.objects {
            snapshot.apply(Event::Upsert(object));
        }
    }
    for i in 0..LOCAL.min(pods) {
        snapshot.apply(Event::Attached(Attached {
            attachment: Attachment {
                container: format!("c{i}"),
                ifname: "eth0".to_owned(),
            },
            pod: Some(PodRef {
                namespace: "x".to_owned(),
                name: format!("p{i}"),
                uid: None,
            }),
            addresses: vec![address(i)],
        }));
    }
    snapshot.apply(Event::Synced);
    snapshot
}
