//! `sk_lookup` in the node's network namespace: the listener for a captured tuple that is in TIME_WAIT at the agent.
//!
//! From Linux 6.1 on a SYN given straight to a listener is lost while its tuple is in TIME_WAIT; given to the TIME_WAIT
//! socket, the kernel revives the tuple and asks here for the listener. Needs Linux 5.9.

use aya_ebpf::bindings::sk_action;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::maps::Slot;
use mesh_common::steer;

use crate::ctx::Lookup;
use crate::maps::{LISTENERS, Maps};

const TCP: u32 = 6;

#[sk_lookup]
fn listen(ctx: SkLookupContext) -> u32 {
    let lookup = Lookup(&ctx);
    let (local, remote) = (lookup.local(), lookup.remote());
    if lookup.protocol() == TCP
        && let Some(slot) = steer::listen(&Maps::new(), &local, lookup.local_port(), &remote)
    {
        let index = Slot::index(slot as u32, lookup.is_v6());
        // An empty slot leaves the ordinary look-up, which finds nothing on a captured tuple.
        let _ = LISTENERS.redirect_sk_lookup(&ctx, index, 0);
    }
    sk_action::SK_PASS
}
