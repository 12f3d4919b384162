//! TC ingress at an uplink: tunnels for local pods, and replies to the agent's pod-addressed sockets.
//!
//! Node traffic costs one look-up. Malformed packets are the stack's: `to_pod` stands before every pod.
//! Needs Linux 5.10.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::steer::{self, Verb};
use mesh_common::verdict::{Hook, Outcome};

use super::{to_agent, told};
use crate::ctx::{Action, DROP, PASS, Skb};
use crate::maps::Maps;

#[classifier]
fn from_net(ctx: TcContext) -> Action {
    let skb = Skb(&ctx);
    let Some(packet) = skb.packet() else {
        return DROP;
    };
    let steer = steer::from_net(&Maps::new(), packet);
    let carried_out = match steer.verb {
        Verb::Pass => (Outcome::Pass as u32, PASS),
        Verb::Drop => (steer.argument, DROP),
        _ => to_agent(&skb, packet, steer),
    };
    told(Hook::FromNet, &skb, packet, carried_out)
}
