//! What of the kernel the programs need, asked by really making one of each.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

/// A feature of the kernel, and whether it is there; an error is that this process may not ask.
pub type Feature = (&'static str, Result<bool, String>);

/// Every kind of program and map that the agent loads.
pub fn features() -> Vec<Feature> {
    let programs = [
        ("programs at interfaces", ProgramType::SchedClassifier),
        ("programs at socket look-up", ProgramType::SkLookup),
    ];
    let maps = [
        ("longest prefix maps", MapType::LpmTrie),
        ("least recently used maps", MapType::LruHash),
        ("ring buffers", MapType::RingBuf),
        ("socket maps", MapType::SockMap),
    ];
    let programs = programs.map(|(name, kind)| {
        (
            name,
            is_program_supported(kind).map_err(|it| it.to_string()),
        )
    });
    let maps = maps.map(|(name, kind)| (name, is_map_supported(kind).map_err(|it| it.to_string())));
    programs.into_iter().chain(maps).collect()
}
