//! Typed maps: what the kernel holds is mirrored, so that a write happens only where something changes.

use std::collections::HashMap as StdHashMap;
use std::hash::Hash;

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod};

use super::Error;
use super::plan::{Op, diff};

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

    /// What the kernel holds.
    pub(super) fn present(&self) -> &StdHashMap<K, V> {
        &self.present
    }

    /// Makes the kernel hold what is wanted; returns the number of writes.
    ///
    /// Additions and changes come before removals, so that an address that moves is never absent.
    pub(super) fn sync(&mut self, wanted: StdHashMap<K, V>) -> Result<usize, Error> {
        let ops = diff(&self.present, &wanted);
        for op in &ops {
            self.apply(op).map_err(|source| Error::Map {
                map: self.name,
                source: Box::new(source),
            })?;
        }
        Ok(ops.len())
    }

    fn apply(&mut self, op: &Op<K, V>) -> Result<(), MapError> {
        match *op {
            Op::Put(key, value) => {
                self.map.insert(key, value, 0)?;
                self.present.insert(key, value);
            }
            Op::Remove(key) => {
                match self.map.remove(&key) {
                    Ok(()) | Err(MapError::KeyNotFound) => {}
                    Err(error) => return Err(error),
                }
                self.present.remove(&key);
            }
        }
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
