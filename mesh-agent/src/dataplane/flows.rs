//! The records of flows: the programs write them, the agent reads them and takes away those of no more use.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::{io, thread};

use aya::Ebpf;
use aya::maps::{HashMap, HashOfMaps, IterableMap, Map, MapData, MapError};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LRU_HASH;
use mesh_common::addr::{Addr, Port};
use mesh_common::maps::{ALL_FLOWS, Flow, FlowKey, OWN_FLOWS, SHARED_FLOWS};
use mesh_common::names::MAP_FLOWS;
use mesh_common::traffic::{Record, state};
use tracing::warn;

use super::Error;
use super::maps::{removed_or_absent, take};
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

/// What the map of tables is to hold for a pod: a table, or none any more.
type Change = (u32, Option<OwnedFd>);

/// The tables of flows.
pub(super) struct Flows {
    tables: BTreeMap<u32, Table>,
    /// The kernel waits for the programs that run whenever the map of tables changes, ten milliseconds or more, so a thread
    /// changes it. Until a pod's table is in it the pod has that of all; what is lost with the agent is made up for by the next.
    changes: Sender<Change>,
}

impl Flows {
    /// Takes the map from the object, with the tables that an earlier agent made; the one of all pods is always there.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let error = Error::of_map(MAP_FLOWS);
        let mut map: HashOfMaps<_, u32, Table> =
            HashOfMaps::try_from(take(ebpf, MAP_FLOWS)?).map_err(&error)?;
        let mut tables = BTreeMap::new();
        for index in map.keys() {
            let index = index.map_err(&error)?;
            tables.insert(index, map.get(&index, 0).map_err(&error)?);
        }
        if let Entry::Vacant(vacant) = tables.entry(ALL_FLOWS) {
            let all = table(SHARED_FLOWS).map_err(&error)?;
            map.insert(ALL_FLOWS, &all, 0).map_err(&error)?;
            vacant.insert(all);
        }
        let (changes, told) = channel();
        thread::Builder::new()
            .name("flow-tables".to_owned())
            .spawn(|| change(map, told))
            .map_err(Error::Flows)?;
        Ok(Self { tables, changes })
    }

    /// Gives a pod a table of its own, unless it has one.
    pub(super) fn add(&mut self, index: u32) -> Result<(), Error> {
        if self.tables.contains_key(&index) {
            return Ok(());
        }
        let table = table(OWN_FLOWS).map_err(Error::of_map(MAP_FLOWS))?;
        let descriptor = table.map().fd().as_fd().try_clone_to_owned();
        self.change(index, Some(descriptor.map_err(Error::Flows)?))?;
        self.tables.insert(index, table);
        Ok(())
    }

    /// Takes a pod's table away, and its records.
    pub(super) fn remove(&mut self, index: u32) -> Result<(), Error> {
        let Some(own) = self.tables.remove(&index) else {
            return Ok(());
        };
        self.change(index, None)?;
        // What the own one has lost stays in that of all until that makes room: nobody has the interface any more.
        let mut keys = Vec::new();
        read(&own, &mut buffers(), |key, _| keys.push(*key))?;
        self.forget(&keys, |_| true)
    }

    fn change(&self, index: u32, table: Option<OwnedFd>) -> Result<(), Error> {
        let ended = |_| Error::Flows(io::ErrorKind::BrokenPipe.into());
        self.changes.send((index, table)).map_err(ended)
    }

    /// Reads every flow's record, once.
    pub(super) fn read(&self, each: impl FnMut(&FlowKey, &Record)) -> Result<(), Error> {
        self.read_those(|_| true, each)
    }

    /// Reads the records, once, of connections that segments were counted of: few among all. Nothing was counted in a copy that
    /// says no more than that it is one.
    pub(super) fn read_counted(&self, each: impl FnMut(&FlowKey, &Record)) -> Result<(), Error> {
        self.read_those(|it| it.state & !state::OPENED != 0, each)
    }

    fn read_those(
        &self,
        which: impl Fn(&Record) -> bool,
        mut each: impl FnMut(&FlowKey, &Record),
    ) -> Result<(), Error> {
        let (mut seen, mut buffers) = (HashSet::new(), buffers());
        for (index, table) in self.tables.iter().rev() {
            // That of all comes last, and holds what the others have lost.
            read(table, &mut buffers, |key, record| {
                if !which(record) {
                    return;
                }
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

    /// Reads the records that pods' own tables hold, of one pod or of all.
    pub(super) fn read_own(
        &self,
        of: Option<u32>,
        mut each: impl FnMut(&FlowKey, &Record),
    ) -> Result<(), Error> {
        let mut buffers = buffers();
        let own = self.tables.iter().filter(|(index, _)| match of {
            Some(of) => **index == of,
            None => **index != ALL_FLOWS,
        });
        for (_, table) in own {
            read(table, &mut buffers, &mut each)?;
        }
        Ok(())
    }

    /// A flow's record, as the programs find it.
    pub(super) fn get(&self, key: &FlowKey) -> Option<Record> {
        let tables = [key.ifindex, ALL_FLOWS].map(|index| self.tables.get(&index));
        let mut found = tables.into_iter().flatten();
        found.find_map(|table| table.get(key, 0).ok())
    }

    /// Removes the tables and records of interfaces that are not kept.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        let keep = |index| index == ALL_FLOWS || keep(index);
        let left = self.tables.keys().copied();
        let left: Vec<_> = left.filter(|index| !keep(*index)).collect();
        for index in left {
            self.remove(index)?;
        }
        let mut gone = Vec::new();
        if let Some(table) = self.tables.get(&ALL_FLOWS) {
            read(table, &mut buffers(), |key, _| {
                if !keep(key.ifindex) {
                    gone.push(*key);
                }
            })?;
        }
        self.forget(&gone, |_| true)
    }

    /// Removes records that were last judged before a revision.
    pub(super) fn forget_older(&mut self, keys: &[FlowKey], revision: u32) -> Result<(), Error> {
        self.forget(keys, |it| it.flow.revision != revision)
    }

    fn forget(&mut self, keys: &[FlowKey], which: impl Fn(&Record) -> bool) -> Result<(), Error> {
        for key in keys {
            for index in [key.ifindex, ALL_FLOWS] {
                let Some(table) = self.tables.get_mut(&index) else {
                    continue;
                };
                if table.get(key, 0).is_ok_and(|it| which(&it)) {
                    removed_or_absent(table.remove(key)).map_err(Error::of_map(MAP_FLOWS))?;
                }
            }
        }
        Ok(())
    }
}

/// Changes the map of tables as it is told, until whoever tells is gone.
fn change(mut map: HashOfMaps<MapData, u32, Table>, told: Receiver<Change>) {
    for (index, table) in told {
        let changed = match table {
            Some(table) => opened(table).and_then(|table| map.insert(index, &table, 0)),
            None => removed_or_absent(map.remove(&index)),
        };
        if let Err(error) = changed {
            warn!(
                interface = index,
                error = &error as &dyn std::error::Error,
                "a pod has no table of flows of its own, or keeps one after its end"
            );
        }
    }
}

fn opened(table: OwnedFd) -> Result<Table, MapError> {
    HashMap::try_from(Map::LruHashMap(MapData::from_fd(table)?))
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
