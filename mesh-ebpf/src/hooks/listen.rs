//! `sk_lookup` in the node's network namespace: the listener for a captured tuple that is in TIME_WAIT at the agent.
//!
//! From Linux 6.1 on a SYN given straight to a listener is lost while its tuple is in TIME_WAIT; given to the TIME_WAIT
//! socket, the kernel revives the tuple and asks here for the listener. Needs Linux 5.9.

#![expect(
    unsafe_code,
    reason = "the context's fields are read through a raw pointer"
)]

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
    if lookup.protocol == IPPROTO_TCP {
        let v6 = lookup.family == AF_INET6;
        let (local, remote) = if v6 {
            (Addr(lookup.local_ip6), Addr(lookup.remote_ip6))
        } else {
            (Addr::v4(lookup.local_ip4), Addr::v4(lookup.remote_ip4))
        };
        let port = Port::new(lookup.local_port as u16);
        if let Some(slot) = steer::listen(&Maps, &local, port, &remote) {
            // An empty slot leaves the ordinary look-up, which finds nothing on a captured tuple.
            let _ = LISTENERS.redirect_sk_lookup(&ctx, Slot::index(slot as u32, v6), 0);
        }
    }
    sk_action::SK_PASS
}
