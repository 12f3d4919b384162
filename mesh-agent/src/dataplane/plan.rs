//! CORE: what the maps are to hold, and the writes that lead there.

use std::collections::HashMap;
use std::hash::Hash;

use mesh_common::addr::Addr;
use mesh_common::maps::{Pod, Service, Workload};

/// The content of the maps that the world determines.
#[derive(Debug, Default, PartialEq)]
pub struct Wanted {
    /// Local pods by host-side interface index.
    pub pods: HashMap<u32, Pod>,
    /// Workloads by address.
    pub workloads: HashMap<Addr, Workload>,
    /// Services by address.
    pub services: HashMap<Addr, Service>,
}

/// A write to a map.
#[derive(Debug, PartialEq)]
pub enum Op<K, V> {
    /// Insert or replace.
    Put(K, V),
    /// Remove.
    Remove(K),
}

/// The writes that turn `present` into `wanted`, additions and changes first.
pub fn diff<K: Copy + Eq + Hash, V: Copy + PartialEq>(
    present: &HashMap<K, V>,
    wanted: &HashMap<K, V>,
) -> Vec<Op<K, V>> {
    let puts = wanted
        .iter()
        .filter(|(key, value)| present.get(key) != Some(value))
        .map(|(key, value)| Op::Put(*key, *value));
    let removals = present
        .keys()
        .filter(|key| !wanted.contains_key(key))
        .map(|key| Op::Remove(*key));
    puts.chain(removals).collect()
}
