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
    let fields = unsafe { &*lookup };
    let v6 = word(&fields.family) == AF_INET6;
    let local = addr(v6, &fields.local_ip4, &fields.local_ip6);
    let remote = addr(v6, &fields.remote_ip4, &fields.remote_ip6);
    let port = Port::new(word(&fields.local_port) as u16);
    if word(&fields.protocol) == IPPROTO_TCP
        && let Some(slot) = steer::listen(&Maps, &local, port, &remote)
    {
        // An empty slot leaves the ordinary look-up, which finds nothing on a captured tuple.
        let _ = LISTENERS.redirect_sk_lookup(&ctx, Slot::index(slot as u32, v6), 0);
    }
    sk_action::SK_PASS
}

/// An address of the context; the fields of the other family read as zero.
#[inline(always)]
fn addr(v6: bool, word4: &u32, words6: &[u32; 4]) -> Addr {
    // Read word by word whatever the family: LLVM would load through a pointer that it selects, or two words at once, and
    // the verifier refuses both.
    let words = [
        word(&words6[0]),
        word(&words6[1]),
        word(&words6[2]),
        word(&words6[3]),
    ];
    let mapped = Addr::v4(word(word4));
    if v6 { Addr(words) } else { mapped }
}

#[inline(always)]
fn word(field: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { ptr::read_volatile(field) }
}
