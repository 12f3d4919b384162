//! TC egress at an uplink: egress policy on what pods send to services, now that the node's stack has translated it.
//!
//! Everything else costs a look at the mark. Needs Linux 5.10.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::verdict::{Hook, Outcome};

use super::refuse_translated;
use crate::ctx::{Action, DROP, PASS, Skb};
use crate::report::count;

#[classifier]
fn to_net(ctx: TcContext) -> Action {
    let skb = Skb(&ctx);
    if skb.unjudged_client() == 0 {
        return PASS;
    }
    let Some(packet) = skb.packet() else {
        return DROP;
    };
    if let Some(action) = refuse_translated(Hook::ToNet, &skb, packet) {
        return action;
    }
    count(Hook::ToNet, Outcome::Pass as u32);
    PASS
}
