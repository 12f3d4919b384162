//! Counts what became of packets.

#![expect(
    unsafe_code,
    reason = "a counter is written through a raw kernel pointer"
)]

use mesh_common::verdict::{Hook, counter};

use crate::maps::COUNTERS;

/// Counts a packet's outcome, given by its number.
#[inline(always)]
pub(crate) fn count(hook: Hook, outcome: u32) {
    if let Some(packets) = COUNTERS.get_ptr_mut(counter(hook, outcome)) {
        // SAFETY: the pointer is to this CPU's own slot, valid for the program's run.
        unsafe { *packets += 1 };
    }
}
