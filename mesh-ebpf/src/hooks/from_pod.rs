//! TC ingress at the host end of a pod's veth: source check, capture by the agent, the short cut to a neighbour.
//!
//! Needs Linux 5.10 (`bpf_redirect_peer`).

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::steer;
use mesh_common::verdict::{Hook, Outcome};

use super::act;
use crate::ctx::{Action, DROP, PASS, Skb};
use crate::maps::{Maps, pod};
use crate::report::count;

#[classifier]
fn from_pod(ctx: TcContext) -> Action {
    let skb = Skb(&ctx);
    if skb.is_answer() {
        count(Hook::FromPod, Outcome::Pass as u32);
        return PASS;
    }
    skb.clear_mark();
    let ifindex = skb.ifindex();
    let Some(pod) = pod(ifindex) else {
        count(Hook::FromPod, Outcome::UnknownPod as u32);
        return DROP;
    };
    let packet = skb.packet();
    let flow = packet.flow_of_source(ifindex);
    let steer = steer::from_pod(&Maps, ifindex, pod, &packet);
    act(Hook::FromPod, &skb, &packet, (&flow, pod.flags), steer)
}
