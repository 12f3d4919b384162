//! What a large cluster costs.

use std::fs;
use std::time::Instant;

use super::*;

const NODES: u32 = 1000;
const PODS: u32 = 20_000;
const SERVICES: u32 = 2000;

/// As much as the fields of a real pod that are of no use here.
fn ballast() -> Value {
    let env =
        |i: u32| json!({"name": format!("VARIABLE_{i}"), "value": "some value of some length"});
    let field = |i: u32| (format!("f:field{i}"), json!({"f:name": {}, "f:value": {}}));
    json!({
        "env": (0..25).map(env).collect::<Vec<_>>(),
        "managed": (0..60).map(field).collect::<serde_json::Map<_, _>>(),
    })
}

fn put_node(server: &Server, i: u32, ballast: &Value) {
    let address = format!("10.{}.{}.1", 128 + i / 256, i % 256);
    let addresses = json!([{"type": "InternalIP", "address": address}]);
    let mut node = named("", &format!("n{i}"));
    node["status"] = json!({"addresses": addresses, "images": ballast});
    server.put(Resource::Node, node);
}

fn put_large_pod(server: &Server, i: u32, ballast: &Value) {
    let app = format!("app{}", i % SERVICES);
    let mut pod = named("shop", &format!("{app}-{i}"));
    let meta = &mut pod["metadata"];
    meta["labels"] = json!({"app": app, "tier": "web", "hash": format!("{i:x}")});
    meta["uid"] = format!("0e31f1a8-4f6e-4b3c-9d3e-{i:012}").into();
    meta["annotations"] = ballast["managed"].clone();
    let containers = json!([{"name": "a", "env": ballast["env"]}]);
    pod["spec"] = json!({"nodeName": format!("n{}", i % NODES), "containers": containers});
    let address = format!("10.{}.{}.{}", i / 60_000, i / 250 % 250, i % 250 + 2);
    pod["status"] = json!({"podIP": address, "phase": "Running"});
    server.put(Resource::Pod, pod);
}

fn put_large_service(server: &Server, i: u32) {
    let name = format!("app{i}");
    let mut service = named("shop", &name);
    let address = format!("10.96.{}.{}", i / 256, i % 256);
    service["spec"] = json!({"clusterIP": address, "ports": [{"port": 80}]});
    server.put(Resource::Service, service);
    let mut slice = named("shop", &format!("{name}-1"));
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": name});
    let endpoint =
        |of: u32| json!({"addresses": [format!("10.0.{of}.{}", i % 250)], "nodeName": "n1"});
    slice["endpoints"] = (0..PODS / SERVICES).map(endpoint).collect();
    server.put(Resource::EndpointSlice, slice);
}

/// Memory of this process, in MiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints times and memory, asserts nothing about them"]
async fn time_to_sync() {
    let server = Server::start().await;
    let ballast = ballast();
    server.put(Resource::Namespace, named("", "shop"));
    (0..NODES).for_each(|i| put_node(&server, i, &ballast));
    (0..PODS).for_each(|i| put_large_pod(&server, i, &ballast));
    (0..SERVICES).for_each(|i| put_large_service(&server, i));
    server.forget();
    let state = tempfile::tempdir().unwrap();
    let pod = server.object(Resource::Pod, "shop/app1-1").to_string();
    let (before, begun) = (memory(), Instant::now());
    let mut run = Run::with(&server, state.path(), Timing::default());
    run.synced().await;
    let (took, more) = (begun.elapsed(), memory().saturating_sub(before));
    println!(
        "{} objects, a pod of {} bytes: {took:?}, {more} MiB more (this holds every object, too)",
        run.known.len(),
        pod.len(),
    );
    stored(state.path(), "crc32").await;
    let file = state.path().join("kubernetes.json").metadata().unwrap();
    println!(
        "stored: {} MiB after {:?}",
        file.len() >> 20,
        begun.elapsed()
    );
    drop(run);
    server.away(true);
    let begun = Instant::now();
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    let took = begun.elapsed().saturating_sub(timing().patience);
    println!("from the disk: {took:?}");
}
