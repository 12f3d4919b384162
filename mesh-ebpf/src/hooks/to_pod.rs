//! TC egress at the host end of a pod's veth: judges what is about to reach the pod and is not judged yet.
//!
//! Needs Linux 5.10.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::steer;
use mesh_common::verdict::{Hook, Outcome};

use super::{act, refuse_translated};
use crate::ctx::{Action, DROP, Skb};
use crate::maps::{Maps, pod};
use crate::report::count;

#[classifier]
fn to_pod(ctx: TcContext) -> Action {
    let skb = Skb(&ctx);
    let ifindex = skb.ifindex();
    let Some(pod) = pod(ifindex) else {
        count(Hook::ToPod, Outcome::UnknownPod as u32);
        return DROP;
    };
    let packet = skb.packet();
    if let Some(action) = refuse_translated(Hook::ToPod, &skb, &packet) {
        return action;
    }
    let flow = packet.flow_of_destination(ifindex);
    let steer = steer::to_pod(&Maps, ifindex, pod, &packet, skb.origin());
    act(Hook::ToPod, &skb, &packet, (&flow, pod.flags), steer)
}
