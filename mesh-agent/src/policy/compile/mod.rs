//! From policies to the tables that the kernel's programs judge by.
//!
//! The programs find the class of the peer's address, and then an entry for the class (`mesh_common::policy`). What is
//! compiled here answers as [`evaluate`](super::evaluate) does, because it is made of its answers: local pods of which
//! policies say the same are one [view](view::View); addresses in which all views see the same [marks](mark::Mark) are
//! asked about once; and those that all views treat alike become one class.
//!
//! The work is in proportion to the addresses of the cluster and, for each view and each set of marks it can tell apart,
//! to the ports that policies name for it times the rules about the pod. Policies that select no local pod cost
//! nothing, and neither do pods that no policy selects.
//!
//! What the kernel cannot tell apart is judged as the strictest: the addresses of the node, and those of a pod that has
//! several of one family. What is not judged here: that a pod reaches itself, which needs no entry.

mod census;
mod mark;
mod peers;
mod ports;
mod regions;
mod residents;
mod row;
mod tables;
mod view;

use std::collections::BTreeMap;

use mesh_common::addr::Addr;
use mesh_common::maps::{CLASS_NODE, PolicyEntry, PolicyKey};

use self::census::Census;
use self::peers::Peers;
use self::row::{Line, Question, Someone};
use self::view::View;
use crate::model::{Snapshot, WorkloadKey};

/// The tables that a snapshot's policies come to on this node; equal for equal worlds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Length in bits and first address of a prefix -> class; the longest prefix counts, without any the class is 0.
    pub classes: BTreeMap<(u32, Addr), u32>,
    /// The local pods that policies are about; flows of the others are not judged.
    pub sets: BTreeMap<WorkloadKey, Subject>,
    /// Length in bits and first key of a prefix -> entry.
    pub entries: BTreeMap<(u32, PolicyKey), PolicyEntry>,
}

/// How a local pod is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Bits of [`mesh_common::maps::flags`]: `INGRESS`, `EGRESS` and `STRICT`.
    pub flags: u32,
    /// Its policy set, from 1; pods that are judged alike share one.
    pub set: u32,
}

/// Compiles the policies about the pods of this node.
pub fn compile(snapshot: &Snapshot) -> Compiled {
    let (views, members) = views(snapshot);
    if views.is_empty() {
        return Compiled::default();
    }
    let peers = Peers::of(&views);
    let mut census = Census::new(snapshot, &views, &peers);
    let classes = census.count();
    let (mut sets, mut next) = (BTreeMap::<Vec<(u32, usize)>, u32>::new(), 1);
    let mut subjects = BTreeMap::new();
    for (index, keys) in members.into_iter().enumerate() {
        let mut table = census.table(index);
        table.push((CLASS_NODE, census.node(index)));
        let set = *sets.entry(table).or_insert(next);
        next += u32::from(set == next);
        let flags = views[index].flags;
        subjects.extend(keys.into_iter().map(|it| (it, Subject { flags, set })));
    }
    let mut entries = BTreeMap::new();
    for (table, set) in sets {
        for (class, row) in table {
            let lines = census.row(row).iter();
            entries.extend(lines.map(|it| {
                let allow = u32::from(it.allow);
                (it.key(set, class), PolicyEntry { allow })
            }));
        }
    }
    Compiled {
        classes,
        sets: subjects,
        entries,
    }
}

/// What policies say about the pods of this node, and about which each.
fn views(snapshot: &Snapshot) -> (Vec<View<'_>>, Vec<Vec<WorkloadKey>>) {
    let (mut views, mut members) = (Vec::<View<'_>>::new(), Vec::<Vec<_>>::new());
    let node = &snapshot.settings().node;
    for workload in snapshot.workloads_on(node).filter(|it| it.is_local()) {
        let Some(view) = View::of(snapshot, workload) else {
            continue;
        };
        let key = workload.key.clone();
        if let Some(index) = views.iter().position(|it| it.is_like(&view)) {
            members[index].push(key);
        } else {
            views.push(view);
            members.push(vec![key]);
        }
    }
    (views, members)
}
