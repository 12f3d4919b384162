//! Rows `world.*`: one agent in a large cluster, and how soon a change there is in its kernel.
//!
//! The world is a directory of a few large files, so that looking at files is no part of it; what changes has a file of
//! its own. Time to ready is thus mostly that of reading JSON, as it is from an API server.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_common::maps::flags::ENROLLED;
use mesh_tests::lab::Lab;
use mesh_tests::node::Node;
use mesh_tests::objects::{self, Labels, MODE};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::Plan;
use crate::cpu::seconds;
use crate::machine::kilobytes;
use crate::report::Report;
use crate::row::{Better, Row};

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "world";

/// The name of the lab.
pub(crate) const LAB: &str = "bench_world";

const NODES: u16 = 1_000;
const PODS_OF_A_NODE: u16 = 20;
const SERVICES: u16 = 2_000;
/// Pods behind each service.
const ENDPOINTS: u16 = 10;
/// Policies of the second half, each about the pods of one application.
const POLICIES: u16 = 100;
/// How long a change may take at most, in the largest of worlds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures all of them.
pub(crate) fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let all = u32::from(NODES) * u32::from(PODS_OF_A_NODE);
    eprintln!("bench: a world of {NODES} nodes, {all} pods, {SERVICES} services");
    let lab = Lab::without_agents(LAB, 1, &[])?;
    let source = lab.directory().join("source");
    write_world(&source)?;
    let node = &lab.nodes()[0];
    // All nodes are neighbours.
    node.netns().ip("address add 172.16.250.1/16 dev eth0")?;
    let start = Instant::now();
    node.agent().start()?;
    let ready = start.elapsed();
    let pid = node.agent().pid().context("the agent has ended")?;
    let mut row = |name: &str, unit, figures: Vec<f64>| {
        report.add(Row::new(format!("{KEY}.{name}"), unit, Better::Less).alone(figures));
    };
    row("ready", "s", vec![ready.as_secs_f64()]);
    row("cpu", "s", vec![seconds(clock_getcpuclockid(pid)?)?]);
    // What only the start needed is given back by then, or never.
    sleep(Duration::from_secs(2));
    row("rss", "MB", vec![resident(pid)?]);
    row("idle", "ms/s", vec![idle(pid)?]);
    // One pod of this node, so that there is somebody whom policies are about.
    wire_a_pod(&lab, node)?;
    row("label", "ms", labels(&lab, node, plan.pairs)?);
    row("pod", "ms", pods(&lab, node, plan.pairs)?);
    write(&source.join("policies.json"), (0..POLICIES).map(policy))?;
    sleep(Duration::from_secs(3));
    row("policy.label", "ms", labels(&lab, node, plan.pairs)?);
    row("policy.rss", "MB", vec![resident(pid)?]);
    Ok(())
}

fn wire_a_pod(lab: &Lab, node: &Node) -> Result<()> {
    let pod = objects::pod("app-0", "local", "app-0", node.name(), &labels_of(0));
    lab.objects().apply(pod)?;
    let (_, mut call) = lab.sandbox("local")?;
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=app-0;K8S_POD_NAME=local".clone_into(&mut call.args);
    let answer = node.cni().call(node.netns(), "ADD", &call)?;
    answer.success()?;
    Ok(())
}

/// Milliseconds until the kernel follows the label of a pod of another node.
fn labels(lab: &Lab, node: &Node, count: usize) -> Result<Vec<f64>> {
    let ip = IpAddr::from([10, 200, 0, 1]);
    let mut pod = remote_pod("changing", ip);
    lab.objects().apply(pod.clone())?;
    until(node, ip, Some(true))?;
    let change = |number: usize| {
        let enrolled = number % 2 == 1;
        pod["metadata"]["labels"][MODE] = if enrolled { "ambient" } else { "none" }.into();
        timed(lab, &pod, || until(node, ip, Some(enrolled)))
    };
    let times = (0..2 * count).map(change).collect();
    lab.objects().remove("Pod", "app-0", "changing");
    until(node, ip, None)?;
    times
}

/// Milliseconds until the kernel knows a new pod of another node.
fn pods(lab: &Lab, node: &Node, count: usize) -> Result<Vec<f64>> {
    let new = |number: usize| {
        let ip = IpAddr::from([10, 200, 1, u8::try_from(number)?]);
        let pod = remote_pod(&format!("new-{number}"), ip);
        timed(lab, &pod, || until(node, ip, Some(true)))
    };
    (0..2 * count).map(new).collect()
}

fn timed(lab: &Lab, object: &Value, follows: impl FnOnce() -> Result<()>) -> Result<f64> {
    // Not always at the same moment of the agent's own rhythm.
    sleep(Duration::from_millis(337));
    let start = Instant::now();
    lab.objects().apply(object.clone())?;
    follows()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Waits until the kernel says of an address that it is enrolled, that it is not, or nothing.
fn until(node: &Node, ip: IpAddr, enrolled: Option<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while node.workload(ip)?.map(|it| it.flags & ENROLLED != 0) != enrolled {
        ensure!(
            Instant::now() < deadline,
            "the kernel does not know within {PATIENCE:?} that {ip} is enrolled: {enrolled:?}"
        );
        sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn resident(pid: Pid) -> Result<f64> {
    Ok(kilobytes(&format!("/proc/{pid}/status"), "VmRSS")? * 1.024 / 1e3)
}

/// Milliseconds of CPU a second of an agent that has nothing to do.
fn idle(pid: Pid) -> Result<f64> {
    let clock = clock_getcpuclockid(pid)?;
    let (before, start) = (seconds(clock)?, Instant::now());
    sleep(Duration::from_secs(5));
    Ok((seconds(clock)? - before) * 1e3 / start.elapsed().as_secs_f64())
}

fn write_world(source: &Path) -> Result<()> {
    // The first node is the lab's own, and has its objects.
    let numbers = 2..NODES + 2;
    let namespace = |number| objects::namespace(&format!("app-{number}"), &ambient());
    write(&source.join("namespaces.json"), (0..100).map(namespace))?;
    let node = |number: u16| {
        let [a, b] = number.to_be_bytes();
        let cidr = format!("10.{}.{b}.0/24", 100 + a);
        objects::node(&format!("w{number}"), &[[172, 16, a, b].into()], &[cidr])
    };
    write(&source.join("nodes.json"), numbers.clone().map(node))?;
    let pods = numbers.flat_map(|node| (1..=PODS_OF_A_NODE).map(move |pod| pod_of(node, pod)));
    write(&source.join("pods.json"), pods)?;
    let services = (0..SERVICES).flat_map(service);
    write(&source.join("services.json"), services)
}

/// A pod of a node; its application is one of as many as there are services.
fn pod_of(node: u16, pod: u16) -> Value {
    let [a, b] = node.to_be_bytes();
    let ip = IpAddr::from([10, 100 + a, b, pod.to_be_bytes()[1]]);
    let app = app_of(node, pod);
    let mut object = objects::pod(
        &format!("app-{}", app % 100),
        &format!("app-{app}-{node}-{pod}"),
        &format!("app-{app}"),
        &format!("w{node}"),
        &labels_of(app),
    );
    objects::set_ready(&mut object, &[ip]);
    object
}

fn app_of(node: u16, pod: u16) -> u32 {
    let number = u32::from(node - 2) * u32::from(PODS_OF_A_NODE) + u32::from(pod - 1);
    number % u32::from(SERVICES)
}

/// A Service, and the slice of its pods: every [`SERVICES`]th of all pods is one of them.
fn service(number: u16) -> [Value; 2] {
    let [a, b] = number.to_be_bytes();
    let ips = [[172, 20 + a, b, 1].into()];
    let namespace = format!("app-{}", number % 100);
    let name = format!("app-{number}");
    let service = objects::service(&namespace, &name, &labels_of(number.into()), &ips, 80, 8080);
    let step = SERVICES / PODS_OF_A_NODE;
    let node = 2 + number / PODS_OF_A_NODE;
    let pods = (0..ENDPOINTS).map(|i| pod_of(node + i * step, 1 + number % PODS_OF_A_NODE));
    let pods: Vec<_> = pods.collect();
    let [slice, _] = <[Value; 2]>::try_from(objects::endpoint_slices(&service, &pods))
        .expect("a slice for each family");
    [service, slice]
}

fn policy(number: u16) -> Value {
    let peers =
        json!([{ "podSelector": { "matchLabels": { "app": format!("app-{}", number + 100) } } }]);
    let spec = json!({
        "podSelector": {},
        "ingress": [{ "from": peers, "ports": [{ "port": 8000 + number }] }],
    });
    objects::policy("NetworkPolicy", "app-0", &format!("policy-{number}"), &spec)
}

fn remote_pod(name: &str, ip: IpAddr) -> Value {
    let mut pod = objects::pod("app-0", name, "app-0", "w2", &labels_of(0));
    objects::set_ready(&mut pod, &[ip]);
    pod
}

fn ambient() -> Labels {
    Labels::from([(MODE.to_owned(), "ambient".to_owned())])
}

fn labels_of(app: u32) -> Labels {
    Labels::from([("app".to_owned(), format!("app-{app}"))])
}

/// Writes objects into one file, whole at once.
fn write(path: &Path, objects: impl Iterator<Item = Value>) -> Result<()> {
    let temporary = path.with_extension("new");
    let mut file = BufWriter::new(File::create(&temporary)?);
    for object in objects {
        writeln!(file, "{object}")?;
    }
    file.into_inner()?;
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}
