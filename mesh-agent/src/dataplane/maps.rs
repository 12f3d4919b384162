//! Typed maps: what the kernel holds is mirrored, so that a write happens only where something changes.

use std::borrow::Borrow;
use std::collections::HashMap as StdHashMap;
use std::hash::Hash;
use std::io::ErrorKind;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, IterableMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use mesh_common::verdict::{Hook, Outcome, counter};

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
        let error = Error::of_map(name);
        let map = HashMap::try_from(take(ebpf, name)?).map_err(&error)?;
        let present = map.iter().collect::<Result<_, _>>().map_err(&error)?;
        Ok(Self { name, map, present })
    }

    /// How full it is.
    pub(super) fn fill(&self) -> Fill {
        Fill::new(self.name, self.present.len(), room(self.map.map()))
    }

    /// What the kernel holds for a key.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.present.get(key)
    }

    /// Every key that the kernel holds.
    pub(super) fn keys(&self) -> Vec<K> {
        self.present.keys().copied().collect()
    }

    /// Removes every entry whose value is not kept; goes on after a failure and returns the first.
    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) -> Result<(), Error> {
        let gone: Vec<K> = self
            .present
            .iter()
            .filter(|(_, value)| !keep(value))
            .map(|(key, _)| *key)
            .collect();
        let mut first = Ok(());
        for key in gone {
            first = first.and(self.set(key, None));
        }
        first
    }

    /// Makes the kernel hold a value, or none; writes only what differs.
    pub(super) fn set(&mut self, key: K, value: Option<V>) -> Result<(), Error> {
        let written = match value {
            Some(value) if self.present.get(&key) == Some(&value) => Ok(()),
            Some(value) => self.map.insert(key, value, 0).map(|()| {
                self.present.insert(key, value);
            }),
            None if self.present.contains_key(&key) => removed_or_absent(self.map.remove(&key))
                .map(|()| {
                    self.present.remove(&key);
                }),
            None => Ok(()),
        };
        written.map_err(|source| Error::written(self.name, source))
    }
}

/// A longest-prefix-match trie of the kernel and its content, by length of the prefix in bits and data.
pub(super) struct Trie<K, V> {
    name: &'static str,
    map: LpmTrie<MapData, K, V>,
    present: StdHashMap<(u32, K), V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Trie<K, V> {
    /// Takes the map from the object and reads what an earlier agent left in it.
    pub(super) fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let error = Error::of_map(name);
        let map = LpmTrie::try_from(take(ebpf, name)?).map_err(&error)?;
        let entry = |entry: Result<(Key<K>, V), MapError>| {
            entry.map(|(key, value)| ((key.prefix_len(), key.data()), value))
        };
        let present = map
            .iter()
            .map(entry)
            .collect::<Result<_, _>>()
            .map_err(&error)?;
        Ok(Self { name, map, present })
    }

    /// Every key that the kernel holds.
    pub(super) fn keys(&self) -> impl Iterator<Item = &(u32, K)> {
        self.present.keys()
    }

    /// How full it is.
    pub(super) fn fill(&self) -> Fill {
        Fill::new(self.name, self.present.len(), room(self.map.map()))
    }

    /// Makes the kernel hold a value.
    pub(super) fn insert(&mut self, key: (u32, K), value: V) -> Result<(), Error> {
        if self.present.get(&key) == Some(&value) {
            return Ok(());
        }
        let written = self.map.insert(&Key::new(key.0, key.1), value, 0);
        written.map_err(|source| Error::written(self.name, source))?;
        self.present.insert(key, value);
        Ok(())
    }

    /// Removes every entry that is not kept; goes on after a failure and returns the first.
    pub(super) fn retain(&mut self, keep: impl Fn(&(u32, K)) -> bool) -> Result<(), Error> {
        let mut first = Ok(());
        let gone: Vec<_> = self
            .present
            .keys()
            .filter(|key| !keep(key))
            .copied()
            .collect();
        for key in gone {
            match removed_or_absent(self.map.remove(&Key::new(key.0, key.1))) {
                Ok(()) => {
                    self.present.remove(&key);
                }
                Err(source) => first = first.and(Err(Error::written(self.name, source))),
            }
        }
        first
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// Entries that it holds.
    pub held: usize,
    /// Entries that it has room for; 0 when the kernel does not tell.
    pub room: u32,
}

impl Fill {
    const fn new(name: &'static str, held: usize, room: u32) -> Self {
        Self {
            map: name,
            held,
            room,
        }
    }
}

/// Entries that a map has room for; 0 when the kernel does not tell.
fn room(map: &MapData) -> u32 {
    map.info().map_or(0, |info| info.max_entries())
}

/// Packets by what became of them, of all processors.
pub(super) fn packets(
    counters: &PerCpuArray<impl Borrow<MapData>, u64>,
) -> Result<Vec<(Hook, Outcome, u64)>, MapError> {
    let mut packets = Vec::new();
    for hook in Hook::ALL {
        for outcome in Outcome::ALL {
            let counted = counters.get(&counter(*hook, *outcome as u32), 0)?;
            packets.push((*hook, *outcome, counted.iter().sum()));
        }
    }
    Ok(packets)
}

/// Takes a map out of the object.
pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    let none = || MapError::InvalidName {
        name: name.to_owned(),
    };
    ebpf.take_map(name)
        .ok_or_else(none)
        .map_err(Error::of_map(name))
}

/// What a removal came to, for which nothing to remove is as good.
pub(super) fn removed_or_absent(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}
