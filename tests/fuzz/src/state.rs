//! The agent's own files, as a crash, a full disk or a bad one may leave them.

use std::fs;

use mesh_agent::attachments::{Record, Store};
use mesh_agent::cluster::kubernetes::store;
use mesh_agent::ipam::Ipam;
use mesh_agent::model::{Attached, Event, Object, Settings, Snapshot};
use mesh_common::cni::Attachment;
use serde_json::json;

use crate::documents::changes_a_world;

/// A byte that says which file, then its content.
pub fn state(input: &[u8]) {
    let Some((kind, content)) = input.split_first() else {
        return;
    };
    match kind % 3 {
        0 => attachment(content),
        1 => world(content),
        _ => world(&[content, &end(content)].concat()),
    }
}

const NAME: &str = "c1@eth0";

/// A record is the attachment's or set aside, and the node goes on with the next pod either way.
fn attachment(content: &[u8]) {
    let state = tempfile::tempdir().expect("there is room");
    let directory = state.path().join("attachments");
    fs::create_dir(&directory).expect("there is room");
    fs::write(directory.join(NAME), content).expect("there is room");
    let mut store = Store::open(state.path()).expect("the directory is as it should be");
    let records: Vec<_> = store.in_order().into_iter().cloned().collect();
    assert!(records.iter().all(|it| it.attachment.file_name() == NAME));
    assert_eq!(records.is_empty(), !directory.join(NAME).exists());
    has_addresses(&records);
    let next = store.put(another()).expect("there is room").clone();
    let last = store.in_order().pop().cloned();
    assert_eq!(last, Some(next));
    let again = Store::open(state.path()).expect("the directory is as it should be");
    assert_eq!(again.in_order(), store.in_order());
}

/// What a new agent makes of records: addresses that are taken, and interfaces of its model.
fn has_addresses(records: &[Record]) {
    let mut ipam = Ipam::new();
    ipam.set_ranges(&["10.0.0.0/24".parse().expect("a prefix")]);
    let mut snapshot = Snapshot::new(Settings::for_node("here"));
    for record in records {
        for address in &record.addresses {
            ipam.take(*address);
        }
        snapshot.apply(Event::Attached(Attached {
            attachment: record.attachment.clone(),
            pod: record.pod.clone(),
            addresses: record.addresses.clone(),
        }));
    }
    let fresh = ipam.allocate().expect("one record takes few of 253");
    let mut taken = records.iter().flat_map(|it| &it.addresses);
    assert!(!taken.any(|it| fresh.contains(it)));
}

fn another() -> Record {
    Record {
        attachment: Attachment {
            container: "c2".to_owned(),
            ifname: "eth0".to_owned(),
        },
        pod: None,
        netns: "/run/netns/c2".to_owned(),
        network: "mesh".to_owned(),
        addresses: vec![[10, 0, 0, 9].into()],
        host_ifname: "meshc2".to_owned(),
        host_mac: [2; 6],
        mac: [2; 6],
        sequence: 0,
    }
}

/// The last line that makes `body` a whole file.
fn end(body: &[u8]) -> Vec<u8> {
    let crc32 = crc32fast::hash(body);
    let end = json!({"format": 1, "asOf": 1, "objects": 0, "crc32": crc32});
    format!("{end}\n").into_bytes()
}

fn world(file: &[u8]) {
    let Ok(events) = store::events(file) else {
        return;
    };
    let told = |event| match event {
        Event::Upsert(object) => Some(object),
        Event::LeftOut { .. } => None,
        other => panic!("{other:?} from a file"),
    };
    let objects: Vec<Object> = events.into_iter().filter_map(told).collect();
    changes_a_world(objects);
}
