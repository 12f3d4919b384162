//! What of ours is in the kernel, by its pins and names: told also where no agent runs. Nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::loaded_programs;
use mesh_common::addr::Addr;
use mesh_common::maps;
use mesh_common::names::{
    MAP_COUNTERS, MAP_NAMESPACES, MAP_POD_CIDRS, MAP_PODS, MAP_SERVICES, MAP_TRAFFIC,
    MAP_WORKLOADS, MAPS,
};
use mesh_common::traffic::{Traffic, TrafficKey};

use super::maps::packets;
use super::strays::is_ours;
use crate::causes::causes;

/// Programs that are named as ours, one a line; those of all agents of the machine.
pub fn programs() -> Vec<String> {
    let loaded = loaded_programs().filter_map(Result::ok);
    let ours = loaded.filter(|it| it.name_as_str().is_some_and(is_ours));
    let line = |it: aya::programs::ProgramInfo| {
        let name = it.name_as_str().unwrap_or_default();
        let maps = it.map_ids().ok().flatten().unwrap_or_default();
        let (id, tag, size) = (it.id(), it.tag(), it.size_translated().unwrap_or(0));
        format!("{id} {name} tag {tag:016x}, {size} bytes, maps {maps:?}")
    };
    ours.map(line).collect()
}

/// The names of what is pinned, below the directory.
pub fn pins(bpffs: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for directory in [bpffs.to_owned(), bpffs.join("links")] {
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let entries = entries.map(|it| it.path()).filter(|it| !it.is_dir());
        let below = entries.filter_map(|it| Some(it.strip_prefix(bpffs).ok()?.to_owned()));
        names.extend(below.map(|it| it.display().to_string()));
    }
    names.sort();
    names
}

/// How full each pinned map is, one a line.
pub fn maps(bpffs: &Path) -> Vec<String> {
    let line = |name: &&str| match fill(bpffs, name) {
        Ok((Some(held), room)) => format!("{name} holds {held} of {room}"),
        Ok((None, room)) => format!("{name} has room for {room}"),
        Err(error) => format!("{name}: {}", causes(&error)),
    };
    MAPS.iter().map(line).collect()
}

/// The packets counted, by hook and outcome, of all pairs that are not zero.
///
/// # Errors
/// The map is not pinned, or not as this agent knows it.
pub fn counters(bpffs: &Path) -> Result<BTreeMap<String, u64>, MapError> {
    let map: PerCpuArray<_, u64> = open(bpffs, MAP_COUNTERS)?.try_into()?;
    let mut packets = packets(&map)?;
    packets.retain(|(_, _, count)| *count != 0);
    let named = packets
        .into_iter()
        .map(|(hook, outcome, count)| (format!("{}/{}", hook.name(), outcome.name()), count));
    Ok(named.collect())
}

/// How many entries a map holds, if they can be counted, and has room for.
fn fill(bpffs: &Path, name: &str) -> Result<(Option<usize>, u32), MapError> {
    let room = MapData::from_pin(bpffs.join(name))?.info()?.max_entries();
    let map = || open(bpffs, name);
    let held = match name {
        MAP_PODS => Some(entries::<u32, maps::Pod>(map()?, room)?),
        MAP_NAMESPACES => Some(entries::<u64, u32>(map()?, room)?),
        MAP_WORKLOADS => Some(entries::<Addr, maps::Workload>(map()?, room)?),
        MAP_SERVICES => Some(entries::<Addr, maps::Service>(map()?, room)?),
        MAP_TRAFFIC => Some(entries::<TrafficKey, Traffic>(map()?, room)?),
        MAP_POD_CIDRS => {
            let trie: LpmTrie<_, maps::PodCidr, u32> = map()?.try_into()?;
            Some(trie.keys().count())
        }
        _ => None,
    };
    Ok((held, room))
}

/// Counted no further than there is room: programs write meanwhile, and a reading may begin again.
fn entries<K: Pod, V: Pod>(map: Map, room: u32) -> Result<usize, MapError> {
    let map: HashMap<_, K, V> = map.try_into()?;
    Ok(map.keys().take(room as usize).count())
}

fn open(bpffs: &Path, name: &str) -> Result<Map, MapError> {
    Map::from_map_data(MapData::from_pin(bpffs.join(name))?)
}
