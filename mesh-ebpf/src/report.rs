//! Counts what became of packets, and tells the agent of those that were refused.

#![expect(
    unsafe_code,
    reason = "a counter is written through a raw kernel pointer, the clock is a helper"
)]

use aya_ebpf::helpers::bpf_ktime_get_ns;
use mesh_common::event::Refused;
use mesh_common::packet::Packet;
use mesh_common::verdict::{Hook, Outcome, counter};

use crate::maps::{COUNTERS, EVENTS};

/// Counts a packet's outcome, given by its number.
#[inline(always)]
pub(crate) fn count(hook: Hook, outcome: u32) {
    if let Some(packets) = COUNTERS.get_ptr_mut(counter(hook, outcome)) {
        // SAFETY: the pointer is to this CPU's own slot, valid for the program's run.
        unsafe { *packets += 1 };
    }
}

/// Tells the agent of a refused packet; without room for it, the counter alone does.
#[inline(always)]
pub(crate) fn refused(hook: Hook, outcome: u32, ifindex: u32, packet: &Packet) {
    if outcome < Outcome::UnknownPod as u32 {
        return;
    }
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let event = Refused {
        at: now.into(),
        hook: hook as u32,
        outcome,
        ifindex,
        protocol: packet.protocol,
        src: packet.src,
        dst: packet.dst,
        src_port: packet.src_port,
        dst_port: packet.dst_port,
    };
    let _ = EVENTS.output::<Refused>(&event, 0);
}
