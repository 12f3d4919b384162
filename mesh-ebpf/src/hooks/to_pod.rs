//! TC egress at the host end of a pod's veth: judges what is about to reach the pod and is not judged yet.
//!
//! Needs Linux 5.10.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::maps::flags;
use mesh_common::packet::Kind;
use mesh_common::steer::{self, Origin};
use mesh_common::traffic::End;
use mesh_common::verdict::{Hook, Outcome};

use super::{Of, pass_or_drop, refuse_translated, told};
use crate::ctx::{Action, DROP, Skb};
use crate::maps::{Maps, pod};
use crate::report::count;
use crate::traffic;

#[classifier]
fn to_pod(ctx: TcContext) -> Action {
    let skb = Skb(&ctx);
    let ifindex = skb.ifindex();
    let Some(pod) = pod(ifindex) else {
        count(Hook::ToPod, Outcome::UnknownPod as u32);
        return DROP;
    };
    let Some(packet) = skb.packet() else {
        return DROP;
    };
    if let Some(action) = refuse_translated(Hook::ToPod, &skb, packet) {
        return action;
    }
    let origin = skb.origin();
    let flow = packet.flow_of_destination(ifindex);
    let maps = Maps::new();
    let of = Of {
        key: &flow,
        end: End::Peer,
        maps: &maps,
    };
    // What the agent carries is told by the agent.
    if pod.flags & flags::ENROLLED != 0 && packet.kind == Kind::Tcp && origin != Origin::Agent {
        traffic::count(&skb, packet, &of);
    }
    let steer = steer::to_pod(&maps, ifindex, pod, packet, origin);
    let carried_out = pass_or_drop(Hook::ToPod, &skb, packet, &of, steer);
    told(Hook::ToPod, &skb, packet, carried_out)
}
