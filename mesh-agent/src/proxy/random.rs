//! EDGE: choices that need no secrecy.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// A random number below `count`, which is at least 1.
pub(super) fn below(count: usize) -> usize {
    // Every RandomState has keys of its own: one hash of one is as random as a choice needs.
    let random = RandomState::new().hash_one(());
    usize::try_from(random % count as u64).expect("less than a usize")
}
