//! Counts what connections of enrolled pods carry, for telemetry alone: nothing is decided by it.

#![expect(unsafe_code, reason = "totals are written through raw kernel pointers")]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use mesh_common::addr::Addr;
use mesh_common::maps::Opener;
use mesh_common::packet::Packet;
use mesh_common::traffic::{End, Record, Traffic, TrafficKey, Way, news, state};

use crate::ctx::Skb;
use crate::hooks::Of;
use crate::maps::{self, TRAFFIC, WORKLOADS};

/// Microseconds of the kernel's monotonic clock, which wrap around.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: the helper takes nothing.
    (unsafe { bpf_ktime_get_ns() } / 1_000) as u32
}

/// Counts a segment of a flow of an enrolled pod, if it is recorded.
#[inline(always)]
pub(crate) fn count(skb: &Skb<'_>, packet: &Packet, of: &Of<'_>) {
    let Some(record) = of.maps.record(of.key) else {
        return;
    };
    let brought = record.take(of.end, packet, packet.data(skb.len()), now);
    // The node's own connections are its probes, and those to services are told by what they are translated to.
    let by_pod = record.flow.opener == Opener::Pod as u32;
    if brought == 0 || !(by_pod || record.flow.opener == Opener::Peer as u32) {
        return;
    }
    let neighbour = record.flow.neighbour;
    let (ifindex, way, peer) = match (neighbour != 0, by_pod) {
        (true, true) => (of.key.ifindex, Way::Local, &packet.dst),
        // The opener is the neighbour, and the pod its peer.
        (true, false) => (neighbour, Way::Local, &packet.src),
        (false, true) => (of.key.ifindex, Way::PlainFromPod, &of.key.peer),
        (false, false) => (of.key.ifindex, Way::PlainToPod, &of.key.peer),
    };
    // All that are no workloads are one, or there would be no end of them.
    let known = u32::from(WORKLOADS.get_ptr(peer).is_some()).wrapping_neg();
    let key = TrafficKey {
        ifindex,
        way: way as u32,
        peer: Addr(peer.0.map(|word| word & known)),
    };
    let Some(totals) = totals(&key) else {
        return;
    };
    if brought & news::OPENED != 0 {
        add(&raw mut totals.opened, 1);
        add(&raw mut totals.handshakes, record.handshake.into());
    }
    let own_is_sent = of.end == End::Pod && by_pod || of.end == End::Peer && !by_pod;
    if brought & news::DONE != 0 {
        tell(totals, own_is_sent, record.bytes[of.end as usize]);
    }
    if brought & news::RESET != 0 {
        reset(totals, record, packet, of, own_is_sent);
    }
}

/// Tells the bytes of ends that were not done when one of them reset the connection.
#[inline(always)]
fn reset(
    totals: &mut Traffic,
    record: &mut Record,
    packet: &Packet,
    of: &Of<'_>,
    own_is_sent: bool,
) {
    let (own, other) = match of.end {
        End::Pod => (End::Pod, End::Peer),
        End::Peer => (End::Peer, End::Pod),
    };
    let mut before = record.state;
    record.state = before | state::CLOSED;
    if before & own.done() == 0 {
        tell(totals, own_is_sent, record.bytes[own as usize]);
    }
    let neighbour = record.flow.neighbour;
    if neighbour == 0 {
        if before & other.done() == 0 {
            tell(totals, !own_is_sent, record.bytes[other as usize]);
        }
    } else if let Some(theirs) = maps::find(&packet.flow_of_destination(neighbour)) {
        // SAFETY: a value of a map, valid for the program's run; not `record`, whose key is another.
        let theirs = unsafe { &mut *theirs };
        if theirs.state & state::POD_DONE == 0 {
            tell(totals, !own_is_sent, theirs.bytes[0]);
        }
        before |= theirs.state;
        theirs.state |= state::CLOSED;
        theirs.ended = record.ended;
    }
    if before & state::OPENED == 0 {
        add(&raw mut totals.failed, 1);
    }
}

/// Tells all bytes of an end; `sent`: it is the opener.
#[inline(always)]
fn tell(totals: &mut Traffic, sent: bool, bytes: u64) {
    if sent {
        add(&raw mut totals.sent, bytes);
    } else {
        add(&raw mut totals.received, bytes);
    }
}

/// The totals of a key, from zero if there are none; none when the kernel has no room.
#[inline(always)]
fn totals(key: &TrafficKey) -> Option<&'static mut Traffic> {
    let found = TRAFFIC.get_ptr_mut(key).or_else(|| {
        // Another processor may be first.
        let _ = TRAFFIC.insert(key, Traffic::default(), BPF_NOEXIST.into());
        TRAFFIC.get_ptr_mut(key)
    })?;
    // SAFETY: the map is not preallocated, so an entry is freed only after an RCU grace period: not while a program runs.
    // It is written by `add` alone.
    Some(unsafe { &mut *found })
}

/// Adds to a total that other processors may add to as well.
#[inline(always)]
fn add(total: *mut u64, more: u64) {
    // The target has additions that are atomic, but not all that `AtomicU64` promises.
    // SAFETY: a field of a map's value, which is aligned to 8 bytes and valid for the program's run.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(total, more) };
}
