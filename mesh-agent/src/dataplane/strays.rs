//! Links of an earlier agent whose pins are lost, because their BPF file system was emptied or is mounted over.
//!
//! They would go on with maps that nobody writes any more. Programs of ours in this network namespace that are pinned nowhere
//! tell which maps those are; whatever uses them is a stray, at whichever hook. So other agents of the machine are left alone.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::programs::links::{FdLink, LinkType, PinnedLink};
use aya::programs::{loaded_links, loaded_programs};
use mesh_common::names::{
    PROGRAM_FROM_NET, PROGRAM_FROM_POD, PROGRAM_LISTEN, PROGRAM_TO_NET, PROGRAM_TO_NODE,
    PROGRAM_TO_POD, PROGRAMS_CONNECT,
};

use super::sys;

/// A link of a program that is named like ours.
struct Found {
    id: u32,
    program: u32,
    is_in_netns: bool,
}

/// Detaches them; returns how many there were.
///
/// To be called once this agent's own programs are attached, of which there is then no moment without.
///
/// # Errors
/// The kernel's answer.
pub(super) fn detach(bpffs: &Path) -> io::Result<usize> {
    let maps = maps_by_program();
    let pinned = pinned(&bpffs.join("links"))?;
    let unpinned: Vec<_> = loaded_links()
        .filter_map(Result::ok)
        .filter(|link| maps.contains_key(&link.program_id()) && !pinned.contains(&link.id()))
        .map(|link| Found {
            id: link.id(),
            program: link.program_id(),
            is_in_netns: matches!(link.link_type(), Ok(LinkType::Netns)),
        })
        .collect();
    let here = fs::metadata("/proc/thread-self/ns/net")?.ino();
    let mut lost: HashSet<u32> = HashSet::new();
    for found in unpinned.iter().filter(|it| it.is_in_netns) {
        if sys::link_netns(&sys::link(found.id)?)? == here {
            lost.extend(&maps[&found.program]);
        }
    }
    let is_stray = |found: &&Found| maps[&found.program].iter().any(|map| lost.contains(map));
    let strays: Vec<_> = unpinned.iter().filter(is_stray).collect();
    for stray in &strays {
        sys::detach(&sys::link(stray.id)?)?;
    }
    Ok(strays.len())
}

/// Whether one of our programs has this name.
pub(super) fn is_ours(name: &str) -> bool {
    const OURS: [&str; 6] = [
        PROGRAM_FROM_NET,
        PROGRAM_FROM_POD,
        PROGRAM_TO_NET,
        PROGRAM_TO_POD,
        PROGRAM_LISTEN,
        PROGRAM_TO_NODE,
    ];
    OURS.contains(&name) || PROGRAMS_CONNECT.contains(&name)
}

/// The maps of every program that is named like one of ours.
fn maps_by_program() -> HashMap<u32, Vec<u32>> {
    let programs = loaded_programs().filter_map(Result::ok);
    let named = programs.filter(|program| program.name_as_str().is_some_and(is_ours));
    // One that is gone by now has none.
    let maps = named.map(|it| (it.id(), it.map_ids().ok().flatten().unwrap_or_default()));
    maps.collect()
}

/// The links that are pinned in a directory.
fn pinned(directory: &Path) -> io::Result<HashSet<u32>> {
    let mut links = HashSet::new();
    for entry in fs::read_dir(directory)? {
        let link = PinnedLink::from_pin(entry?.path()).map(FdLink::from);
        let info = link.and_then(|link| link.info());
        links.insert(info.map_err(io::Error::other)?.id());
    }
    Ok(links)
}
