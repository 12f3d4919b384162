//! TC ingress at the host end of a pod's veth: source check, capture by the agent, the short cut to a neighbour.
//!
//! Needs Linux 5.10 (`bpf_redirect_peer`).

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::maps::{Opener, flags};
use mesh_common::packet::{Kind, Packet};
use mesh_common::steer::{self, Steer, Verb};
use mesh_common::traffic::{End, Record};
use mesh_common::verdict::{Hook, Outcome};

use super::{Of, local, pass_or_drop, record, renew, to_agent, told};
use crate::ctx::{Action, DROP, PASS, Skb};
use crate::maps::{self, Maps, judged, pod};
use crate::report::count;
use crate::traffic;

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
    let Some(packet) = skb.packet() else {
        return DROP;
    };
    let flow = packet.flow_of_source(ifindex);
    let maps = Maps::new();
    let of = Of {
        key: &flow,
        end: End::Pod,
        maps: &maps,
    };
    if pod.flags & flags::ENROLLED != 0 && packet.kind == Kind::Tcp {
        traffic::count(&skb, packet, &of);
    }
    let steer = steer::from_pod(&maps, ifindex, pod, packet);
    let carried_out = apply(&skb, packet, &of, steer);
    told(Hook::FromPod, &skb, packet, carried_out)
}

#[inline(always)]
fn apply(skb: &Skb<'_>, packet: &Packet, of: &Of<'_>, steer: Steer) -> (u32, Action) {
    match steer.verb {
        Verb::Local => local(skb, steer.argument),
        Verb::LocalRenew => {
            renew(of);
            local(skb, steer.argument)
        }
        Verb::LocalNew => {
            let neighbour = steer.argument;
            let theirs = packet.flow_of_destination(neighbour);
            let mut their_record = Record::new(judged(of.key.ifindex, Opener::Peer as u32), 0);
            let recorded = record(skb, packet, of, judged(neighbour, Opener::Pod as u32))
                && maps::record(&theirs, &mut their_record);
            if recorded {
                local(skb, neighbour)
            } else {
                (Outcome::FlowsFull as u32, DROP)
            }
        }
        Verb::Capture | Verb::SocketOrListener | Verb::SocketOrLocal | Verb::SocketOrPass => {
            if matches!(steer.verb, Verb::Capture) {
                maps::forget(of.key);
            }
            to_agent(skb, packet, steer)
        }
        _ => pass_or_drop(Hook::FromPod, skb, packet, of, steer),
    }
}
