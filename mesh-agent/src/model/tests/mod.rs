//! Tests of the world as a whole: the rules one by one, then random histories against a rebuild.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::cni::{Attachment, PodRef};
use proptest::prelude::*;

use super::*;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(owned).collect()
}

pub(crate) fn namespace(name: &str, pairs: &[(&str, &str)]) -> Event {
    Event::Upsert(Object::Namespace(Arc::new(Namespace {
        name: name.into(),
        labels: labels(pairs),
    })))
}

pub(crate) fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Pod {
    Pod {
        key: Key::new(namespace, name),
        uid: format!("uid-{name}").into(),
        created: 100,
        labels: Labels::new(),
        owner: None,
        service_account: "default".into(),
        node: Some("far".into()),
        addresses: addresses.iter().map(|it| ip(it)).collect(),
        host_network: false,
        sidecar: false,
        ready: true,
        terminated: false,
        ports: Vec::new(),
        probe_ports: [].into(),
    }
}

pub(crate) fn told(pod: Pod) -> Event {
    Event::Upsert(Object::Pod(Arc::new(pod)))
}

pub(crate) fn attached(container: &str, pod: Option<(&str, &str)>, addresses: &[&str]) -> Event {
    Event::Attached(Attached {
        attachment: attachment(container),
        pod: pod.map(|(namespace, name)| PodRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: Some(format!("uid-{name}")),
        }),
        addresses: addresses.iter().map(|it| ip(it)).collect(),
    })
}

pub(crate) fn attachment(container: &str) -> Attachment {
    Attachment {
        container: container.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

pub(crate) fn world(events: impl IntoIterator<Item = Event>) -> Snapshot {
    let mut snapshot = Snapshot::new(Settings::for_node("here"));
    for event in events {
        snapshot.apply(event);
    }
    snapshot
}

fn policy(
    namespace: &str,
    name: &str,
    created: i64,
    selector: &[(&str, &str)],
    mode: MtlsMode,
) -> Event {
    Event::Upsert(Object::PeerAuthentication(Arc::new(PeerAuthentication {
        key: Key::new(namespace, name),
        created,
        selector: labels(selector),
        mode,
        ports: BTreeMap::new(),
        caveats: Vec::new(),
    })))
}

fn found<'a>(snapshot: &'a Snapshot, address: &str) -> Option<&'a Workload> {
    snapshot.workload_by_addr(ip(address)).map(|it| &**it)
}

fn name_at(snapshot: &Snapshot, address: &str) -> Option<String> {
    found(snapshot, address).map(|it| it.key.to_string())
}

#[test]
fn enrolment() {
    let check =
        |namespace_mode: Option<&str>, pod_mode: Option<&str>, edit: fn(&mut Pod), expect| {
            let mode = |mode: Option<&'static str>| mode.map(|it| ("istio.io/dataplane-mode", it));
            let leak = |it: &str| -> &'static str { Box::leak(it.to_owned().into()) };
            let of = |it: Option<&str>| mode(it.map(leak)).into_iter().collect::<Vec<_>>();
            let mut it = pod("shop", "cart", &["10.0.0.1"]);
            it.labels = labels(&of(pod_mode));
            edit(&mut it);
            let key = WorkloadKey::Pod(it.key.clone());
            let namespace = namespace(&it.key.namespace.clone(), &of(namespace_mode));
            // Either order.
            for events in [[namespace.clone(), told(it.clone())], [told(it), namespace]] {
                let snapshot = world(events);
                let enrolled = snapshot.workload(&key).unwrap().enrolled;
                assert_eq!(enrolled, expect, "{namespace_mode:?} {pod_mode:?}");
            }
        };
    let as_is = |_: &mut Pod| {};
    check(None, None, as_is, false);
    check(Some("ambient"), None, as_is, true);
    check(Some("ambient"), Some("none"), as_is, false);
    check(Some("ambient"), Some("other"), as_is, true);
    check(Some("none"), Some("ambient"), as_is, true);
    check(Some("other"), None, as_is, false);
    check(None, Some("ambient"), as_is, true);
    check(Some("ambient"), None, |it| it.host_network = true, false);
    check(
        Some("ambient"),
        Some("ambient"),
        |it| it.sidecar = true,
        false,
    );
    check(Some("ambient"), None, |it| it.terminated = true, false);
    check(
        Some("ambient"),
        Some("ambient"),
        |it| it.key = Key::new("kube-system", "dns"),
        false,
    );
}

#[test]
fn identity() {
    let mut it = pod("shop", "cart", &["10.0.0.1"]);
    it.service_account = "carter".into();
    let snapshot = world([told(it), attached("c", None, &["10.0.0.2"])]);
    let text = |address| {
        found(&snapshot, address)
            .unwrap()
            .identity
            .as_ref()
            .map(ToString::to_string)
    };
    let expect = "spiffe://cluster.local/ns/shop/sa/carter".to_owned();
    assert_eq!(text("10.0.0.1"), Some(expect));
    assert_eq!(text("10.0.0.2"), None);
}

#[test]
fn strictness() {
    use MtlsMode::{Permissive, Strict, Unset};
    let check = |policies: &[Event], expect: bool| {
        let mut it = pod("shop", "cart", &["10.0.0.1"]);
        it.labels = labels(&[("app", "cart"), ("tier", "back")]);
        let mut events = policies.to_vec();
        events.push(told(it));
        for turn in 0..events.len() {
            events.rotate_left(1);
            let snapshot = world(events.clone());
            assert_eq!(
                found(&snapshot, "10.0.0.1").unwrap().strict,
                expect,
                "turn {turn} of {policies:?}"
            );
        }
    };
    let app = &[("app", "cart")][..];
    check(&[], false);
    check(&[policy("istio-system", "mesh", 1, &[], Strict)], true);
    check(&[policy("other", "ns", 1, &[], Strict)], false);
    check(&[policy("shop", "ns", 1, &[], Strict)], true);
    check(&[policy("shop", "app", 1, app, Strict)], true);
    check(
        &[policy(
            "shop",
            "app",
            1,
            &[("app", "cart"), ("tier", "front")],
            Strict,
        )],
        false,
    );
    let mesh = policy("istio-system", "mesh", 1, &[], Strict);
    check(
        &[mesh.clone(), policy("shop", "ns", 9, &[], Permissive)],
        false,
    );
    check(&[mesh.clone(), policy("shop", "ns", 9, &[], Unset)], true);
    check(&[mesh.clone(), policy("shop", "app", 9, app, Unset)], true);
    check(
        &[
            mesh.clone(),
            policy("shop", "ns", 1, &[], Strict),
            policy("shop", "app", 9, app, Permissive),
        ],
        false,
    );
    // The oldest decides, its name when they are of an age.
    check(
        &[
            policy("shop", "a", 2, &[], Permissive),
            policy("shop", "b", 1, &[], Strict),
        ],
        true,
    );
    check(
        &[
            policy("shop", "a", 1, &[], Permissive),
            policy("shop", "b", 1, &[], Strict),
        ],
        false,
    );
    // A selector in the root namespace is about that namespace's pods.
    check(&[policy("istio-system", "app", 1, app, Strict)], false);
}

#[test]
fn addresses_of_a_pod() {
    let far = pod("shop", "cart", &["10.0.0.1", "fd00::1"]);
    let mut snapshot = world([told(far.clone())]);
    assert_eq!(name_at(&snapshot, "fd00::1").as_deref(), Some("shop/cart"));
    assert!(!found(&snapshot, "10.0.0.1").unwrap().is_local());

    // What is wired here counts, not what the object tells.
    snapshot.apply(attached("c1", Some(("shop", "cart")), &["10.0.9.9"]));
    assert_eq!(name_at(&snapshot, "10.0.9.9").as_deref(), Some("shop/cart"));
    assert_eq!(name_at(&snapshot, "10.0.0.1"), None);
    let names = |node: &str| -> Vec<_> {
        snapshot
            .workloads_on(node)
            .map(|it| it.key.to_string())
            .collect()
    };
    assert_eq!(names("here"), ["shop/cart"]);
    assert!(names("far").is_empty());

    snapshot.apply(Event::Detached(attachment("c1")));
    assert_eq!(name_at(&snapshot, "10.0.0.1").as_deref(), Some("shop/cart"));

    for edit in [
        |it: &mut Pod| it.terminated = true,
        |it: &mut Pod| it.host_network = true,
    ] {
        let mut it = far.clone();
        edit(&mut it);
        let snapshot = world([
            told(it),
            attached("c1", Some(("shop", "cart")), &["10.0.9.9"]),
        ]);
        assert_eq!(name_at(&snapshot, "10.0.0.1"), None);
        assert_eq!(name_at(&snapshot, "10.0.9.9"), None);
    }
}

#[test]
fn interfaces_belong_to_the_very_pod_they_were_made_for() {
    let mut snapshot = world([attached("c1", Some(("shop", "cart")), &["10.0.0.5"])]);
    let alone = found(&snapshot, "10.0.0.5").unwrap().clone();
    assert_eq!(alone.key, WorkloadKey::Attachment(attachment("c1")));
    assert!(alone.is_local() && !alone.enrolled && alone.identity.is_none());

    snapshot.apply(told(pod("shop", "cart", &[])));
    assert_eq!(name_at(&snapshot, "10.0.0.5").as_deref(), Some("shop/cart"));
    assert!(snapshot.workload(&alone.key).is_none());
    let first_id = found(&snapshot, "10.0.0.5").unwrap().id;
    assert_eq!(
        snapshot.workload_by_id(first_id).unwrap().key.to_string(),
        "shop/cart"
    );

    // A later pod of the name is another one: it does not get the address, nor the number.
    let mut later = pod("shop", "cart", &["10.0.0.6"]);
    later.uid = "later".into();
    snapshot.apply(told(later));
    assert_eq!(found(&snapshot, "10.0.0.5").unwrap().key, alone.key);
    let later = found(&snapshot, "10.0.0.6").unwrap();
    assert!(!later.is_local());
    assert_ne!(later.id, first_id);
    assert!(snapshot.workload_by_id(first_id).is_none());
    assert_eq!(
        snapshot
            .workload_by_attachment(&attachment("c1"))
            .unwrap()
            .key,
        alone.key
    );
}

#[test]
fn address_claimed_twice() {
    let mut old = pod("shop", "old", &["10.0.0.1"]);
    old.created = 50;
    let new = pod("shop", "new", &["10.0.0.1"]);
    let mut snapshot = world([told(new.clone()), told(old.clone())]);
    assert_eq!(name_at(&snapshot, "10.0.0.1").as_deref(), Some("shop/new"));
    snapshot.apply(attached("c", Some(("shop", "old")), &["10.0.0.1"]));
    assert_eq!(name_at(&snapshot, "10.0.0.1").as_deref(), Some("shop/old"));
    snapshot.apply(Event::Detached(attachment("c")));
    snapshot.apply(Event::Delete(Reference::Pod(new.key)));
    assert_eq!(name_at(&snapshot, "10.0.0.1").as_deref(), Some("shop/old"));
    snapshot.apply(Event::Delete(Reference::Pod(old.key)));
    assert_eq!(name_at(&snapshot, "10.0.0.1"), None);
}

#[test]
fn changes_name_what_is_touched_and_nothing_else() {
    let ambient = [("istio.io/dataplane-mode", "ambient")];
    let mut snapshot = world([
        told(pod("shop", "a", &["10.0.0.1"])),
        told(pod("shop", "b", &["10.0.0.2"])),
        told(pod("bank", "c", &["10.0.0.3"])),
    ]);
    let revision = snapshot.revision();
    assert!(
        snapshot
            .apply(told(pod("shop", "a", &["10.0.0.1"])))
            .is_empty()
    );
    assert!(
        snapshot
            .apply(Event::Delete(Reference::Pod(Key::new("no", "pod"))))
            .is_empty()
    );
    assert!(
        snapshot
            .apply(Event::Detached(attachment("none")))
            .is_empty()
    );
    assert_eq!(snapshot.revision(), revision);

    let change = snapshot.apply(namespace("shop", &ambient));
    assert_eq!(change.workloads.len(), 2);
    assert_eq!(change.addresses, [ip("10.0.0.1"), ip("10.0.0.2")].into());
    let change = snapshot.apply(policy("shop", "b", 1, &[("app", "b")], MtlsMode::Strict));
    assert!(change.is_empty(), "{change:?}");
    let change = snapshot.apply(told(pod("shop", "a", &["10.0.0.9"])));
    assert_eq!(change.addresses, [ip("10.0.0.1"), ip("10.0.0.9")].into());
    assert_eq!(change.workloads.len(), 1);
    assert!(snapshot.apply(Event::Synced).synced);
    assert!(snapshot.apply(Event::Synced).is_empty());
}

mod histories;
