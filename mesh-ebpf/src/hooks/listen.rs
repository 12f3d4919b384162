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
use mesh_common::addr::Addr;
use mesh_common::steer;

use crate::maps::{LISTENERS, Maps};

const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

#[sk_lookup]
fn listen(ctx: SkLookupContext) -> u32 {
    let lookup: *const bpf_sk_lookup = ctx.as_ptr().cast();
    // SAFETY: the context is valid for the program's run.
    let fields = unsafe { &*lookup };
    let local = addr(fields.family, &fields.local_ip4, &fields.local_ip6);
    let remote = addr(fields.family, &fields.remote_ip4, &fields.remote_ip6);
    if fields.protocol == IPPROTO_TCP
        && let Some(slot) = steer::listen(&Maps, &local, fields.local_port as u16, &remote)
    {
        let index = slot.index(fields.family == AF_INET6);
        // An empty slot leaves the ordinary look-up, which finds nothing on a captured tuple.
        let _ = LISTENERS.redirect_sk_lookup(&ctx, index, 0);
    }
    sk_action::SK_PASS
}

/// An address of the context, each word in network order; those of the other family read as zero.
#[inline(always)]
fn addr(family: u32, v4: &u32, v6: &[u32; 4]) -> Addr {
    // Read word by word whatever the family: LLVM would load through a pointer that it selects, or two words at once, and
    // the verifier refuses both.
    let words = [word(&v6[0]), word(&v6[1]), word(&v6[2]), word(&v6[3])];
    let v4 = Addr::v4(word(v4).to_ne_bytes());
    if family != AF_INET6 {
        return v4;
    }
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&words[0].to_ne_bytes());
    bytes[4..8].copy_from_slice(&words[1].to_ne_bytes());
    bytes[8..12].copy_from_slice(&words[2].to_ne_bytes());
    bytes[12..].copy_from_slice(&words[3].to_ne_bytes());
    Addr(bytes)
}

#[inline(always)]
fn word(field: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { ptr::read_volatile(field) }
}
