//! ADD, CHECK and DEL against real network namespaces. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and its helpers with it"
)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::agent::{Agent, Families, name_of};
use common::{Node, Space, VERSIONS, attachment};
use mesh_common::cni::Request;
use serde_json::{Value, json};

/// Connects from one namespace to an address of another, and passes a byte each way.
fn talk(from: &Space, to: &Space, address: IpAddr) {
    let listen = || TcpListener::bind(SocketAddr::new(address, 0)).unwrap();
    let listener = to.netns.inside(listen).unwrap();
    let target = listener.local_addr().unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
    });
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(3));
    let mut stream = from.netns.inside(connect).unwrap().unwrap();
    stream.write_all(&[7]).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    echo.join().unwrap();
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| {
        let (address, _) = ip["address"].as_str().unwrap().split_once('/').unwrap();
        address.parse().unwrap()
    })
    .collect()
}

#[test]
fn every_version_round_trips() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    for version in VERSIONS {
        let pod = Space::new("pod");
        let attachment = attachment();
        let call = |command| {
            node.call(command)
                .version(version)
                .of(&attachment)
                .netns(&pod)
        };
        let result = call("ADD").ok();
        assert_eq!(result["cniVersion"], version);
        let host = attachment.host_ifname();
        assert_eq!(result["interfaces"][0]["name"], host.as_str());
        assert_eq!(
            result["interfaces"][1]["sandbox"],
            pod.path().to_str().unwrap()
        );
        assert_eq!(result["ips"][0].get("version").is_some(), version < "1.0.0");
        assert_eq!(
            result["interfaces"][1].get("mtu").is_some(),
            version == "1.1.0"
        );
        let check = call("CHECK").with("prevResult", result);
        if version < "0.4.0" {
            let error = check.fails(1);
            assert_eq!(error["msg"], "config version does not allow CHECK");
        } else {
            check.ok();
        }
        call("DEL").ok();
        assert_eq!(pod.devices(), ["lo"]);
        assert_eq!(node.space.devices(), ["lo"]);
    }
    assert!(agent.stop().attached.is_empty());
}

#[test]
fn a_pod_speaks_with_its_node_and_with_another_pod_at_once() {
    let node = Node::new();
    let _agent = Agent::start(&node.socket());
    let pods = [Space::new("pod"), Space::new("pod")];
    let results = pods.each_ref().map(|pod| {
        let call = node.call("ADD").of(&attachment()).netns(pod);
        let result = call.ok();
        // At once, and without a chance to ask anybody's MAC address.
        for address in addresses(&result) {
            talk(&node.space, pod, address);
        }
        talk(pod, &node.space, "10.99.0.1".parse().unwrap());
        talk(pod, &node.space, "fd99::1".parse().unwrap());
        // The loopback device works.
        talk(pod, pod, "127.0.0.1".parse().unwrap());
        result
    });
    for address in addresses(&results[1]) {
        talk(&pods[0], &pods[1], address);
    }
}

#[test]
fn the_kernel_holds_what_the_plan_says() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let attachment = attachment();
    let result = node.call("ADD").of(&attachment).netns(&pod).ok();
    let (host, host_mac) = (attachment.host_ifname(), &result["interfaces"][0]["mac"]);
    let json =
        |space: &Space, args: &str| -> Value { serde_json::from_str(&space.ip(args)).unwrap() };
    let eth0 = json(&pod, "-j -d address show dev eth0");
    assert_eq!(eth0[0]["mtu"], 1400);
    assert_eq!(eth0[0]["address"], result["interfaces"][1]["mac"]);
    // Two addresses, so no link-local one; none tentative.
    let infos = eth0[0]["addr_info"].as_array().unwrap();
    assert_eq!(infos.len(), 2, "{infos:?}");
    assert_eq!(
        (&infos[0]["prefixlen"], &infos[1]["prefixlen"]),
        (&json!(32), &json!(128))
    );
    assert_eq!(infos[1].get("tentative"), None);
    let route = json(&pod, "-j route show default");
    assert_eq!(
        (&route[0]["gateway"], &route[0]["flags"][0]),
        (&json!("169.254.1.1"), &json!("onlink"))
    );
    let route = json(&pod, "-j -6 route show default");
    assert_eq!(route[0]["gateway"], "fe80::1");
    for neighbour in json(&pod, "-j neigh show dev eth0 nud permanent")
        .as_array()
        .unwrap()
    {
        assert_eq!(&neighbour["lladdr"], host_mac);
    }
    let veth = json(&node.space, &format!("-j -d address show dev {host}"));
    assert_eq!(&veth[0]["address"], host_mac);
    let link = json(&node.space, &format!("-j -d link show dev {host}"));
    assert_eq!(link[0]["inet6_addr_gen_mode"], "none");
    assert_eq!(veth[0]["addr_info"], json!([]));
    let path = format!("/proc/sys/net/ipv6/conf/{host}/accept_ra");
    let accept_ra = node
        .space
        .netns
        .inside(|| std::fs::read_to_string(path).unwrap());
    assert_eq!(accept_ra.unwrap(), "0\n");
    let neighbours = json(
        &node.space,
        &format!("-j neigh show dev {host} nud permanent"),
    );
    assert_eq!(neighbours.as_array().unwrap().len(), 2);
    let ledger = agent.stop();
    let Some(Request::Attach { host_ifindex, .. }) = ledger.requests.last() else {
        panic!("{ledger:?}");
    };
    assert_eq!(&json!(host_ifindex), &veth[0]["ifindex"]);
}

/// What CHECK must name, where the harm is done, and the `ip` command that does it.
const HARMS: [(&str, Place, &str); 9] = [
    ("eth0", Place::Pod, "link set eth0 name eth9"),
    ("state of eth0", Place::Pod, "link set eth0 down"),
    ("MTU of eth0", Place::Pod, "link set eth0 mtu 1300"),
    (
        "MAC address",
        Place::Pod,
        "link set eth0 address 02:00:00:00:00:01",
    ),
    (
        "addresses of eth0",
        Place::Pod,
        "address flush dev eth0 scope global",
    ),
    ("default route", Place::Pod, "-6 route delete default"),
    (
        "neighbour",
        Place::Pod,
        "neigh flush dev eth0 nud permanent",
    ),
    ("state of mesh", Place::Node, "link set HOST down"),
    ("node's route", Place::Node, "route flush dev HOST"),
];

#[derive(Clone, Copy)]
enum Place {
    Node,
    Pod,
}

#[test]
fn check_finds_every_difference() {
    let node = Node::new();
    let _agent = Agent::start(&node.socket());
    for (named, place, harm) in HARMS {
        let pod = Space::new("pod");
        let attachment = attachment();
        let result = node.call("ADD").of(&attachment).netns(&pod).ok();
        let check = node.call("CHECK").of(&attachment).netns(&pod);
        let check = check.with("prevResult", result);
        check.ok();
        let harm = harm.replace("HOST", &attachment.host_ifname());
        match place {
            Place::Node => node.space.ip(&harm),
            Place::Pod => pod.ip(&harm),
        };
        let error = check.fails(102);
        let message = error["msg"].as_str().unwrap();
        assert!(message.contains(named), "{named}: {message}");
        node.call("DEL").of(&attachment).netns(&pod).ok();
    }
}

#[test]
fn check_asks_the_agent() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let check = node.call("CHECK").of(&attachment()).netns(&pod);
    check.fails(7);
    let check = check.with("prevResult", json!({}));
    check.fails(3);
    drop(agent);
    check.fails(11);
}

#[test]
fn check_tolerates_what_a_later_plugin_tells_of() {
    let node = Node::new();
    let _agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let attachment = attachment();
    let mut result = node.call("ADD").of(&attachment).netns(&pod).ok();
    pod.ip("link set eth0 mtu 1300");
    pod.ip("address add 10.97.0.1/32 dev eth0");
    pod.ip("route add 10.96.0.0/16 via 169.254.1.1 dev eth0 onlink");
    result["interfaces"][1]["mtu"] = json!(1300);
    result["routes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"dst": "10.96.0.0/16"}));
    let check = node.call("CHECK").of(&attachment).netns(&pod);
    check.with("prevResult", result).ok();
}

#[test]
fn an_ipv4_pod_stays_silent_on_ipv6() {
    let node = Node::new();
    let _agent = Agent::start_with(&node.socket(), Families::V4);
    let pod = Space::new("pod");
    pod.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let result = node.call("ADD").of(&attachment()).netns(&pod).ok();
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}])
    );
    talk(&pod, &node.space, "10.99.0.1".parse().unwrap());
}

#[test]
fn fifty_at_once() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pods: Vec<_> = (0..50).map(|_| (Space::new("pod"), attachment())).collect();
    let both = |command: &'static str| {
        let started = Instant::now();
        thread::scope(|scope| {
            for (pod, attachment) in &pods {
                let call = node.call(command).of(attachment).netns(pod);
                scope.spawn(move || call.ok());
            }
        });
        println!("50 parallel {command}: {:?}", started.elapsed());
    };
    both("ADD");
    assert_eq!(node.space.devices().len(), 51);
    for (pod, _) in &pods {
        talk(pod, &node.space, "fd99::1".parse().unwrap());
    }
    both("DEL");
    assert_eq!(node.space.devices(), ["lo"]);
    let ledger = agent.stop();
    assert!(ledger.attached.is_empty() && ledger.reserved.is_empty());
    let releases = ledger.requests.iter().filter(|r| name_of(r) == "Release");
    assert_eq!(releases.count(), 50);
}

#[test]
fn one_after_another_for_the_clock() {
    let node = Node::new();
    let _agent = Agent::start(&node.socket());
    let mut times = Vec::new();
    for _ in 0..20 {
        let (pod, attachment) = (Space::new("pod"), attachment());
        let add = node.call("ADD").of(&attachment).netns(&pod);
        let started = Instant::now();
        add.ok();
        times.push(started.elapsed());
    }
    times.sort();
    println!(
        "ADD: least {:?}, median {:?}, most {:?}",
        times[0], times[10], times[19]
    );
}
