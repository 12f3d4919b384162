//! TC ingress at an uplink: tunnels for local pods, and replies to the agent's pod-addressed sockets.
//!
//! Node traffic costs one look-up. Malformed packets are the stack's: `to_pod` stands before every pod.
//! Needs Linux 5.10.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::steer;
use mesh_common::verdict::Hook;

use super::act;
use crate::ctx::{Action, Skb};
use crate::maps::Maps;

#[classifier]
fn from_net(ctx: TcContext) -> Action {
    let skb = Skb(&ctx);
    let packet = skb.packet();
    let steer = steer::from_net(&Maps, &packet);
    // Nothing is recorded at an uplink.
    let flow = packet.flow_of_destination(0);
    act(Hook::FromNet, &skb, &packet, (&flow, 0), steer)
}
