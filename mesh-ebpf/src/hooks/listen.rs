//! `sk_lookup` in the node's network namespace: the listener for a captured tuple that is in TIME_WAIT at the agent.
//!
//! From Linux 6.1 on a SYN given straight to a listener is lost while its tuple is in TIME_WAIT; given to the TIME_WAIT
//! socket, the kernel revives the tuple and asks here for the listener. Needs Linux 5.9.

#![expect(
    unsafe_code,
    reason = "the context's fields are read through a raw pointer"
)]

use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sk_lookup, sk_action};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::addr::{Addr, Port};
use mesh_common::maps::Slot;
use mesh_common::steer;

use crate::maps::{LISTENERS, Maps};

const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

#[sk_lookup]
fn listen(ctx: SkLookupContext) -> u32 {
    let lookup: *const bpf_sk_lookup = ctx.as_ptr().cast();
    // SAFETY: the context is valid for the program's run.
    let lookup = unsafe { &*lookup };
    let v6 = lookup.family == AF_INET6;
    let local = addr(v6, &lookup.local_ip4, &lookup.local_ip6);
    let remote = addr(v6, &lookup.remote_ip4, &lookup.remote_ip6);
    let port = Port::new(lookup.local_port as u16);
    if lookup.protocol == IPPROTO_TCP
        && let Some(slot) = steer::listen(&Maps, &local, port, &remote)
    {
        // An empty slot leaves the ordinary look-up, which finds nothing on a captured tuple.
        let _ = LISTENERS.redirect_sk_lookup(&ctx, Slot::index(slot as u32, v6), 0);
    }
    sk_action::SK_PASS
}

/// An address of the context; the words of the other family read as zero.
///
/// All are read, whatever the family and one by one: left to itself LLVM loads through a pointer that it has selected, or
/// two words at once, and the verifier refuses both.
#[inline(always)]
fn addr(v6: bool, v4: &u32, words: &[u32; 4]) -> Addr {
    let v4 = Addr::v4(read(v4));
    let words = [
        read(&words[0]),
        read(&words[1]),
        read(&words[2]),
        read(&words[3]),
    ];
    if v6 { Addr(words) } else { v4 }
}

#[inline(always)]
fn read(field: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { ptr::read_volatile(field) }
}
