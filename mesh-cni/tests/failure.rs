//! What is left when something fails: nothing. And DEL, which never does. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and its helpers with it"
)]

mod common;

use std::io::Read as _;
use std::os::unix::net::UnixListener;

use common::agent::{Agent, Mood, name_of};
use common::{Node, Space, attachment};
use mesh_common::cni::{Attachment, Reason};
use serde_json::json;

fn nothing_is_left(node: &Node, pod: &Space) {
    assert_eq!(node.space.devices(), ["lo"]);
    assert_eq!(pod.devices(), ["lo"]);
    assert_eq!(node.space.ip("neigh"), "");
}

#[test]
fn a_refused_attach_rolls_everything_back() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let add = node.call("ADD").of(&attachment()).netns(&pod);
    for (reason, code) in [
        (Reason::Kernel, 100),
        (Reason::Invalid, 7),
        (Reason::TryAgain, 11),
        (Reason::Unavailable, 11),
    ] {
        agent.set(Mood::Refuses("Attach", reason));
        let error = add.fails(code);
        assert_eq!(error["details"], "ask another one");
        nothing_is_left(&node, &pod);
    }
    agent.set(Mood::Fine);
    add.ok();
    let ledger = agent.stop();
    assert_eq!((ledger.attached.len(), ledger.reserved.len()), (1, 0));
}

#[test]
fn an_agent_that_closes_is_tried_again_later() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let add = node.call("ADD").of(&attachment()).netns(&pod);
    for request in ["Reserve", "Attach"] {
        agent.set(Mood::Closes(request));
        add.fails(11);
        nothing_is_left(&node, &pod);
    }
    agent.set(Mood::Future);
    let error = add.fails(100);
    assert!(
        error["msg"].as_str().unwrap().contains("version 2"),
        "{error}"
    );
    let ledger = agent.stop();
    assert_eq!((ledger.attached.len(), ledger.reserved.len()), (0, 0));
    // Whether the closed Attach was carried out is not known, so it was taken back.
    assert!(
        ledger
            .requests
            .iter()
            .any(|request| name_of(request) == "Release")
    );
}

#[test]
fn no_agent() {
    let node = Node::new();
    let pod = Space::new("pod");
    let add = || node.call("ADD").of(&attachment()).netns(&pod);
    add().fails(11);
    // A socket that nobody listens on any more.
    drop(UnixListener::bind(node.socket()).unwrap());
    add().fails(11);
    node.call("STATUS").fails(50);
    node.call("GC")
        .with("cni.dev/valid-attachments", json!([]))
        .fails(11);
    nothing_is_left(&node, &pod);
}

#[test]
fn an_interface_that_exists_is_left_alone() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let attachment = attachment();
    pod.ip("link add eth0 type veth peer name other");
    let error = node.call("ADD").of(&attachment).netns(&pod).fails(101);
    assert!(
        error["msg"].as_str().unwrap().contains("CNI_IFNAME eth0"),
        "{error}"
    );
    assert_eq!(node.space.devices(), ["lo"]);
    // Nor does the DEL that follows take what is not ours.
    node.call("DEL").of(&attachment).netns(&pod).ok();
    assert_eq!(pod.devices().len(), 3);
    assert!(agent.stop().reserved.is_empty());
}

#[test]
fn what_a_killed_add_left_is_replaced() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let attachment = attachment();
    let add = node.call("ADD").of(&attachment).netns(&pod);
    add.ok();
    // The agent forgets it, as it would a reservation whose connection ended.
    agent.ledger.lock().unwrap().attached.clear();
    add.ok();
    assert_eq!(pod.devices().len(), 2);
    // One that it knows stays.
    add.fails(7);
    assert_eq!(pod.devices().len(), 2);
}

#[test]
fn ipv6_that_a_pod_cannot_have_is_told() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    pod.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let error = node.call("ADD").of(&attachment()).netns(&pod).fails(100);
    assert!(
        error["msg"].as_str().unwrap().contains("disable_ipv6"),
        "{error}"
    );
    nothing_is_left(&node, &pod);
    assert!(agent.stop().reserved.is_empty());
}

#[test]
fn an_address_that_is_routed_elsewhere_rolls_back() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    node.space.ip("route add 10.98.0.1/32 dev lo");
    let error = node.call("ADD").of(&attachment()).netns(&pod).fails(100);
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .contains("route to 10.98.0.1"),
        "{error}"
    );
    nothing_is_left(&node, &pod);
    assert!(agent.stop().reserved.is_empty());
}

#[test]
fn namespaces_that_are_none() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let attachment = attachment();
    let file = node.directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (path, code) in [
        (node.directory.path().join("absent"), 4),
        (file.clone(), 4),
        (node.space.path(), 8),
    ] {
        let call = |command| {
            let call = node.call(command).of(&attachment);
            call.env("CNI_NETNS", path.to_str().unwrap())
        };
        let error = call("ADD").fails(code);
        assert!(
            error["msg"].as_str().unwrap().contains("CNI_NETNS"),
            "{error}"
        );
        call("DEL").ok();
    }
    assert!(agent.stop().reserved.is_empty());
}

#[test]
fn del_succeeds_whatever_is_gone() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let attachment = attachment();
    let del = || node.call("DEL").of(&attachment);
    // Never added.
    let pod = Space::new("pod");
    del().netns(&pod).ok();
    let add = || node.call("ADD").of(&attachment).netns(&pod);
    // Twice, and without the namespace.
    add().ok();
    del().netns(&pod).ok();
    del().netns(&pod).ok();
    add().ok();
    del().env("CNI_NETNS", "").ok();
    nothing_is_left(&node, &pod);
    // The namespace is there and cannot be entered.
    add().ok();
    let file = node.directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    del().env("CNI_NETNS", file.to_str().unwrap()).ok();
    nothing_is_left(&node, &pod);
    // The host's end has another name, so that only the pod's leads to it.
    add().ok();
    let host = attachment.host_ifname();
    node.space.ip(&format!("link set {host} name renamed"));
    del().netns(&pod).ok();
    nothing_is_left(&node, &pod);
    // The namespace is deleted under it.
    add().ok();
    let path = pod.path();
    drop(pod);
    del().env("CNI_NETNS", path.to_str().unwrap()).ok();
    assert_eq!(node.space.devices(), ["lo"]);
    assert!(agent.stop().attached.is_empty());
    assert!(!node.released().exists());
}

#[test]
fn del_without_an_agent_leaves_word() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pod = Space::new("pod");
    let attachment = attachment();
    node.call("ADD").of(&attachment).netns(&pod).ok();
    agent.set(Mood::Refuses("Release", Reason::Kernel));
    let word = node.released().join(attachment.file_name());
    let left = || {
        let files = std::fs::read_dir(node.released()).unwrap();
        assert_eq!(files.count(), 1);
        let text = std::fs::read(&word).unwrap();
        let read: Attachment = serde_json::from_slice(&text).unwrap();
        assert_eq!(read, attachment);
        std::fs::remove_file(&word).unwrap();
    };
    let del = node.call("DEL").of(&attachment).netns(&pod);
    del.ok();
    nothing_is_left(&node, &pod);
    left();
    agent.set(Mood::Closes("Release"));
    del.ok();
    left();
    drop(agent);
    del.ok();
    left();
    // Unusable input is the one thing that DEL fails for.
    node.call("DEL").fails(4);
    node.call("DEL")
        .of(&attachment)
        .with("socket", json!(7))
        .fails(6);
}

#[test]
fn gc_and_status_and_version() {
    let node = Node::new();
    let agent = Agent::start(&node.socket());
    let pods = [
        (Space::new("pod"), attachment()),
        (Space::new("pod"), attachment()),
    ];
    for (pod, attachment) in &pods {
        node.call("ADD").of(attachment).netns(pod).ok();
    }
    let (_, kept) = &pods[0];
    let valid = json!([{"containerID": kept.container, "ifname": kept.ifname}]);
    node.call("GC")
        .with("cni.dev/valid-attachments", valid)
        .ok();
    let left: Vec<_> = agent
        .ledger
        .lock()
        .unwrap()
        .attached
        .keys()
        .cloned()
        .collect();
    assert_eq!(left, std::slice::from_ref(kept));
    node.call("GC").version("1.0.0").fails(1);
    node.call("STATUS").ok();
    node.call("STATUS").version("0.4.0").fails(1);
    for reason in [Reason::TryAgain, Reason::Unavailable] {
        agent.set(Mood::Refuses("Status", reason));
        node.call("STATUS").fails(50);
    }
    let versions = node.call("VERSION").version("0.2.0").ok();
    assert_eq!(
        versions,
        json!({"cniVersion": "0.2.0", "supportedVersions": common::VERSIONS})
    );
    node.call("ADD")
        .version("0.2.0")
        .of(kept)
        .netns(&pods[0].0)
        .fails(1);
    let mut nothing = String::new();
    node.call("add")
        .output()
        .stderr
        .as_slice()
        .read_to_string(&mut nothing)
        .unwrap();
    assert_eq!(nothing, "");
    node.call("add").fails(4);
}
