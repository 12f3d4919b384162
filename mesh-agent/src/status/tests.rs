//! What is a problem, and what is told of it.

use super::*;
use crate::model::{Settings, Snapshot};

fn healthy() -> Node {
    let interface = |name: &str| Interface {
        name: name.to_owned(),
        missing: Vec::new(),
    };
    Node {
        uplinks: vec![interface("eth0")],
        pods: vec![interface("mesh1")],
        mtu: 1500,
        addresses: vec![Addresses {
            family: "IPv4".to_owned(),
            taken: 1,
            free: 252,
        }],
        ..Node::default()
    }
}

fn status(source: Option<Source>, network: Option<Node>, certificates: Vec<Certificate>) -> Status {
    let snapshot = Snapshot::new(Settings::for_node("n1"));
    let told = Told {
        source,
        network,
        certificates,
        ..Told::default()
    };
    Status::new(&snapshot, told)
}

/// Checks that there is one problem, whose text has these words, and that it is printed.
fn one(status: &Status, words: &[&str]) {
    let [problem] = &status.problems[..] else {
        panic!("{:?}", status.problems);
    };
    for word in words {
        assert!(problem.what.contains(word), "{word} in {problem:?}");
    }
    assert!(!problem.remedy.is_empty());
    let text = render(status);
    assert!(
        text.contains("1 problem") && text.contains(&problem.what),
        "{text}"
    );
}

#[test]
fn a_healthy_node_has_none() {
    let status = status(None, Some(healthy()), Vec::new());
    assert_eq!(status.problems, []);
    let text = render(&status);
    assert!(
        text.starts_with("node n1 (mesh-agent ") && text.contains("healthy"),
        "{text}"
    );
    assert!(text.contains("attached to 2 of 2 interfaces"), "{text}");
}

#[test]
fn a_map_that_makes_room_by_itself_is_never_the_fullest() {
    let map = |name: &str, held, room| Map {
        name: name.to_owned(),
        held,
        room,
    };
    let mut node = healthy();
    node.maps = vec![map("FLOWS", 45, 0), map("PODS", 5, 4096)];
    let text = render(&status(None, Some(node), Vec::new()));
    assert!(text.contains("fullest is PODS, 5 of 4096"), "{text}");
}

#[test]
fn each_problem_is_told() {
    one(&status(None, None, Vec::new()), &["stopping"]);
    let with = |change: fn(&mut Node)| {
        let mut node = healthy();
        change(&mut node);
        status(None, Some(node), Vec::new())
    };
    one(
        &with(|it| it.pods[0].missing = vec!["to_pod".to_owned()]),
        &["mesh1", "to_pod"],
    );
    one(&with(|it| it.addresses[0].free = 0), &["IPv4"]);
    let map = |held| Map {
        name: "FLOWS".to_owned(),
        held,
        room: 1000,
    };
    let mut nearly_full = healthy();
    nearly_full.maps = vec![map(900)];
    one(
        &status(None, Some(nearly_full.clone()), Vec::new()),
        &["FLOWS", "900", "1000"],
    );
    nearly_full.maps = vec![map(899)];
    assert_eq!(status(None, Some(nearly_full), Vec::new()).problems, []);
    let behind = with(|it| (it.is_behind, it.failures) = (true, 3));
    one(&behind, &["behind", "3"]);
    let source = Source {
        name: "kubernetes".to_owned(),
        is_current: false,
        detail: "no answer since noon".to_owned(),
    };
    one(
        &status(Some(source), Some(healthy()), Vec::new()),
        &["kubernetes", "noon"],
    );
    let mut certificate = Certificate {
        identity: "spiffe://x".to_owned(),
        not_before: None,
        not_after: Some("2030-01-01T00:00:00Z".to_owned()),
        error: None,
    };
    let of = |it: &Certificate| status(None, Some(healthy()), vec![it.clone()]);
    assert_eq!(of(&certificate).problems, []);
    certificate.error = Some("refused".to_owned());
    one(&of(&certificate), &["spiffe://x", "refused"]);
    (certificate.error, certificate.not_after) = (None, None);
    one(&of(&certificate), &["spiffe://x", "yet"]);
}
