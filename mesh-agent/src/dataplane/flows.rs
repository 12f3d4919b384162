//! The records of flows: the programs write them, the agent reads them and takes away those of no more use.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{HashMap, HashOfMaps, IterableMap, Map, MapData, MapError};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LRU_HASH;
use mesh_common::addr::{Addr, Port};
use mesh_common::maps::{ALL_FLOWS, Flow, FlowKey, OWN_FLOWS, SHARED_FLOWS};
use mesh_common::names::MAP_FLOWS;
use mesh_common::traffic::Record;

use super::Error;
use super::maps::{Fill, removed_or_absent, take};
use super::sys::{self, Buffers};

const NO_KEY: FlowKey = FlowKey {
    ifindex: 0,
    peer: Addr::NONE,
    pod_port: Port(0),
    peer_port: Port(0),
    protocol: 0,
};
const NO_RECORD: Record = Record::new(
    Flow {
        neighbour: 0,
        opener: 0,
        revision: 0,
    },
    0,
);

type Table = HashMap<MapData, FlowKey, Record>;

/// The tables of flows.
pub(super) struct Flows {
    map: HashOfMaps<MapData, u32, Table>,
    /// What it holds.
    tables: BTreeMap<u32, Table>,
}

impl Flows {
    /// Takes the map from the object, with the tables that an earlier agent made; the one of all pods is always there.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let map: HashOfMaps<_, u32, Table> =
            HashOfMaps::try_from(take(ebpf, MAP_FLOWS)?).map_err(Error::of_map(MAP_FLOWS))?;
        let mut tables = BTreeMap::new();
        for index in map.keys() {
            let index = index.map_err(Error::of_map(MAP_FLOWS))?;
            tables.insert(index, map.get(&index, 0).map_err(Error::of_map(MAP_FLOWS))?);
        }
        let mut flows = Self { map, tables };
        flows.add(ALL_FLOWS)?;
        Ok(flows)
    }

    /// Gives a pod a table of its own, unless it has one.
    pub(super) fn add(&mut self, index: u32) -> Result<(), Error> {
        if self.tables.contains_key(&index) {
            return Ok(());
        }
        let room = if index == ALL_FLOWS {
            SHARED_FLOWS
        } else {
            OWN_FLOWS
        };
        let table = table(room).map_err(Error::of_map(MAP_FLOWS))?;
        self.map
            .insert(index, &table, 0)
            .map_err(Error::of_map(MAP_FLOWS))?;
        self.tables.insert(index, table);
        Ok(())
    }

    /// Reads every flow's record, once.
    pub(super) fn read(&self, mut each: impl FnMut(&FlowKey, &Record)) -> Result<(), Error> {
        let (mut seen, mut buffers) = (HashSet::new(), buffers());
        for (index, table) in self.tables.iter().rev() {
            // That of all comes last, and holds what the others have lost.
            read(table, &mut buffers, |key, record| {
                if *index != ALL_FLOWS {
                    seen.insert(*key);
                } else if seen.contains(key) {
                    return;
                }
                each(key, record);
            })?;
        }
        Ok(())
    }

    /// What the table of all pods holds, which never is full: the oldest make room. As [`Self::read`].
    pub(super) fn fill(&self) -> Result<Fill, Error> {
        let mut held = 0;
        if let Some(table) = self.tables.get(&ALL_FLOWS) {
            read(table, &mut buffers(), |_, _| held += 1)?;
        }
        Ok(Fill::new(MAP_FLOWS, held, 0))
    }

    /// Removes the records of interfaces that are not kept.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        let left = self.tables.keys().copied();
        let left: Vec<_> = left.filter(|it| *it != ALL_FLOWS && !keep(*it)).collect();
        for index in left {
            removed_or_absent(self.map.remove(&index)).map_err(Error::of_map(MAP_FLOWS))?;
            self.tables.remove(&index);
        }
        let Some(table) = self.tables.get_mut(&ALL_FLOWS) else {
            return Ok(());
        };
        let mut gone = Vec::new();
        read(table, &mut buffers(), |key, _| {
            if !keep(key.ifindex) {
                gone.push(*key);
            }
        })?;
        for key in &gone {
            removed_or_absent(table.remove(key)).map_err(Error::of_map(MAP_FLOWS))?;
        }
        Ok(())
    }

    /// Removes records that were last judged before a revision.
    pub(super) fn forget_older(&mut self, keys: &[FlowKey], revision: u32) -> Result<(), Error> {
        for key in keys {
            for index in [key.ifindex, ALL_FLOWS] {
                let Some(table) = self.tables.get_mut(&index) else {
                    continue;
                };
                let record = table.get(key, 0);
                if record.is_ok_and(|it| it.flow.revision != revision) {
                    removed_or_absent(table.remove(key)).map_err(Error::of_map(MAP_FLOWS))?;
                }
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "some dozen bytes")]
const fn bytes<T>() -> u32 {
    size_of::<T>() as u32
}

/// A table, as the object declares it but for its size.
fn table(room: u32) -> Result<Table, MapError> {
    let declared = aya_obj::Map::new_from_params(
        BPF_MAP_TYPE_LRU_HASH as u32,
        bytes::<FlowKey>(),
        bytes::<Record>(),
        room,
        0,
    );
    let map = MapData::create(declared, MAP_FLOWS, None)?;
    HashMap::try_from(Map::LruHashMap(map))
}

fn buffers() -> Buffers<FlowKey, Record> {
    Buffers::new(NO_KEY, NO_RECORD)
}

fn read(
    table: &Table,
    buffers: &mut Buffers<FlowKey, Record>,
    each: impl FnMut(&FlowKey, &Record),
) -> Result<(), Error> {
    let map = table.map().fd().as_fd();
    sys::read_all(map, buffers, each).map_err(Error::Flows)
}
