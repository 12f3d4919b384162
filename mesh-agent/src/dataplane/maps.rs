//! Typed maps: what the kernel holds is mirrored, so that a write happens only where something changes.

use std::collections::{HashMap as StdHashMap, HashSet};
use std::hash::Hash;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod};
use mesh_common::addr::Addr;

use super::Error;

/// A hash map of the kernel and its content.
pub(super) struct Mirror<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    present: StdHashMap<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Mirror<K, V> {
    /// Takes the map from the object and reads what an earlier agent left in it.
    pub(super) fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let error = |source| Error::Map {
            map: name,
            source: Box::new(source),
        };
        let map = HashMap::try_from(take(ebpf, name)?).map_err(error)?;
        let present = map.iter().collect::<Result<_, _>>().map_err(error)?;
        Ok(Self { name, map, present })
    }

    /// What the kernel holds for a key.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.present.get(key)
    }

    /// Every key that the kernel holds.
    pub(super) fn keys(&self) -> Vec<K> {
        self.present.keys().copied().collect()
    }

    /// Makes the kernel hold a value, or none; writes only what differs.
    pub(super) fn set(&mut self, key: K, value: Option<V>) -> Result<(), Error> {
        let written = match value {
            Some(value) if self.present.get(&key) == Some(&value) => Ok(()),
            Some(value) => self.map.insert(key, value, 0).map(|()| {
                self.present.insert(key, value);
            }),
            None if self.present.contains_key(&key) => match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {
                    self.present.remove(&key);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            None => Ok(()),
        };
        written.map_err(|source| Error::Map {
            map: self.name,
            source: Box::new(source),
        })
    }
}

/// A set of address prefixes in the kernel.
pub(super) struct Prefixes {
    name: &'static str,
    map: LpmTrie<MapData, Addr, u32>,
    present: HashSet<(u32, Addr)>,
}

impl Prefixes {
    /// Takes the map from the object and reads what an earlier agent left in it.
    pub(super) fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let error = |source| Error::Map {
            map: name,
            source: Box::new(source),
        };
        let map = LpmTrie::try_from(take(ebpf, name)?).map_err(error)?;
        let key = |key: Result<Key<Addr>, MapError>| key.map(|key| (key.prefix_len(), key.data()));
        let present = map
            .keys()
            .map(key)
            .collect::<Result<_, _>>()
            .map_err(error)?;
        Ok(Self { name, map, present })
    }

    /// Makes the kernel hold these; additions come before removals.
    pub(super) fn replace(&mut self, wanted: HashSet<(u32, Addr)>) -> Result<(), Error> {
        let error = |source| Error::Map {
            map: self.name,
            source: Box::new(source),
        };
        for (length, addr) in wanted.difference(&self.present) {
            self.map
                .insert(&Key::new(*length, *addr), 0, 0)
                .map_err(error)?;
        }
        for (length, addr) in self.present.difference(&wanted) {
            match self.map.remove(&Key::new(*length, *addr)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(error(source)),
            }
        }
        self.present = wanted;
        Ok(())
    }
}

/// Takes a map out of the object.
pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| Error::Map {
        map: name,
        source: Box::new(MapError::InvalidName {
            name: name.to_owned(),
        }),
    })
}
