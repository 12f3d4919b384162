//! The records of flows: the programs write them, the agent reads them and takes away those of no more use.

use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{HashMap, IterableMap, MapData, MapError};
use mesh_common::addr::{Addr, Port};
use mesh_common::maps::{Flow, FlowKey};
use mesh_common::names::{MAP_FLOWS, MAP_PLAIN_FLOWS};

use super::Error;
use super::maps::{Fill, removed_or_absent, take};
use super::sys::{self, Read};

/// Entries read by one system call.
const BATCH: usize = 8192;

const NO_KEY: FlowKey = FlowKey {
    ifindex: 0,
    peer: Addr::NONE,
    pod_port: Port(0),
    peer_port: Port(0),
    protocol: 0,
};
const NO_FLOW: Flow = Flow {
    neighbour: 0,
    opener: 0,
    revision: 0,
};

/// The maps that hold records of flows.
pub(super) struct Flows([(&'static str, HashMap<MapData, FlowKey, Flow>); 2]);

impl Flows {
    /// Takes the maps from the object.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut open = |name| {
            let map = HashMap::try_from(take(ebpf, name)?).map_err(failed(name))?;
            Ok((name, map))
        };
        Ok(Self([open(MAP_FLOWS)?, open(MAP_PLAIN_FLOWS)?]))
    }

    /// Reads every record.
    pub(super) fn read(&self, mut each: impl FnMut(&FlowKey, &Flow)) -> Result<(), Error> {
        (0..self.0.len()).try_for_each(|index| self.read_one(index, &mut each))
    }

    fn read_one(&self, index: usize, each: &mut impl FnMut(&FlowKey, &Flow)) -> Result<(), Error> {
        let (name, map) = &self.0[index];
        let map = map.map().fd().as_fd();
        let mut keys = vec![NO_KEY; BATCH];
        let mut values = vec![NO_FLOW; BATCH];
        let mut from = None;
        loop {
            let read = sys::lookup_batch(map, from, &mut keys, &mut values);
            let Read { count, next } = read.map_err(|source| Error::Flows { map: name, source })?;
            keys[..count]
                .iter()
                .zip(&values)
                .for_each(|(key, flow)| each(key, flow));
            if next.is_none() {
                return Ok(());
            }
            from = next;
        }
    }

    /// How full the maps are; as [`Self::read`].
    pub(super) fn fill(&self) -> Result<[Fill; 2], Error> {
        let mut held = [0; 2];
        for (index, count) in held.iter_mut().enumerate() {
            self.read_one(index, &mut |_, _| *count += 1)?;
        }
        let [flows, plain] = &self.0;
        Ok([
            Fill::new(flows.0, held[0], flows.1.map()),
            Fill::new(plain.0, held[1], plain.1.map()),
        ])
    }

    /// Removes the records of interfaces that are not kept.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        let mut gone = Vec::new();
        self.read(|key, _| {
            if !keep(key.ifindex) {
                gone.push(*key);
            }
        })?;
        for (name, map) in &mut self.0 {
            for key in &gone {
                removed_or_absent(map.remove(key)).map_err(failed(name))?;
            }
        }
        Ok(())
    }

    /// Removes records that were last judged before a revision.
    pub(super) fn forget_older(&mut self, keys: &[FlowKey], revision: u32) -> Result<(), Error> {
        for (name, map) in &mut self.0 {
            for key in keys {
                if map.get(key, 0).is_ok_and(|it| it.revision != revision) {
                    removed_or_absent(map.remove(key)).map_err(failed(name))?;
                }
            }
        }
        Ok(())
    }
}

fn failed(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map {
        map,
        source: Box::new(source),
    }
}
