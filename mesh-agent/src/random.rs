//! EDGE: choices that need no secrecy.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// A random number.
pub(crate) fn number() -> u64 {
    // Every RandomState has keys of its own: one hash of one is as random as a choice needs.
    RandomState::new().hash_one(())
}

/// A random number below `count`, which is at least 1.
pub(crate) fn below(count: usize) -> usize {
    usize::try_from(number() % count as u64).expect("less than a usize")
}
