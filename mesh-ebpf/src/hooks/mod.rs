//! One file a hook, and the carrying out of what [`mesh_common::steer`] decides.

mod connect;
mod from_net;
mod from_pod;
mod listen;
mod to_net;
mod to_node;
mod to_pod;

use mesh_common::maps::{Flow, FlowKey, Opener, Slot};
use mesh_common::packet::Packet;
use mesh_common::steer::{self, Steer, Verb};
use mesh_common::traffic::{End, Record};
use mesh_common::verdict::{Hook, Outcome};

use crate::ctx::{Action, Assigned, DROP, PASS, Skb};
use crate::maps::{Maps, judged};
use crate::{maps, report, traffic};

/// The flow that a packet is of, seen from one pod.
pub(crate) struct Of<'a> {
    pub(crate) key: &'a FlowKey,
    /// Which end of it has sent the packet.
    pub(crate) end: End,
    /// What steering has looked up.
    pub(crate) maps: &'a Maps,
}

/// Counts what became of a packet, and tells of it if it was refused.
#[inline(always)]
fn told(hook: Hook, skb: &Skb<'_>, packet: &Packet, (outcome, action): (u32, Action)) -> Action {
    report::count(hook, outcome);
    report::refused(hook, outcome, skb.ifindex(), packet);
    action
}

/// Carries out what every hook may decide; returns the outcome's number and the return code.
///
/// The verbs of one hook alone are carried out there, so that the verifier does not follow them for the others.
#[inline(always)]
fn pass_or_drop(
    hook: Hook,
    skb: &Skb<'_>,
    packet: &Packet,
    of: &Of<'_>,
    steer: Steer,
) -> (u32, Action) {
    match steer.verb {
        Verb::PassNew if !record(skb, packet, of, judged(0, steer.argument)) => {
            return (Outcome::FlowsFull as u32, DROP);
        }
        Verb::PassRenew => renew(of),
        Verb::PassAgent => maps::forget(of.key),
        Verb::Drop => return (steer.argument, DROP),
        Verb::Reset => {
            maps::forget(of.key);
            return (steer.argument, skb.answer_reset(packet, hook));
        }
        _ => {}
    }
    if steer.argument == Opener::PodToService as u32 {
        skb.mark_service();
    }
    (Outcome::Pass as u32, PASS)
}

/// Carries out [`Verb::SocketOrListener`], [`Verb::SocketOrLocal`] and [`Verb::SocketOrPass`].
#[inline(always)]
fn to_agent(skb: &Skb<'_>, packet: &Packet, steer: Steer) -> (u32, Action) {
    match skb.assign_socket(packet) {
        Assigned::Done => (Outcome::Socket as u32, PASS),
        Assigned::Refused => (Outcome::AssignFailed as u32, DROP),
        Assigned::Absent => match steer.verb {
            Verb::SocketOrPass => (Outcome::Pass as u32, PASS),
            Verb::SocketOrLocal => local(skb, steer.argument),
            _ => listener(skb, packet, steer.argument),
        },
    }
}

/// Records that a flow was judged again.
#[inline(always)]
fn renew(of: &Of<'_>) {
    if let Some(record) = of.maps.record(of.key) {
        record.flow.revision = maps::revision();
    }
}

/// Records the flow of its first packet; `false` when the kernel has no room.
#[inline(always)]
fn record(skb: &Skb<'_>, packet: &Packet, of: &Of<'_>, flow: Flow) -> bool {
    let mut record = Record::new(flow, traffic::now());
    record.take(of.end, packet, packet.data(skb.len()), || 0);
    maps::record(of.key, &mut record)
}

/// Judges a packet to a service by the egress policy of the pod that sent it, now that it is translated; `Some` ends it.
///
/// What passes is not counted here: it is at the hook that goes on with it.
#[inline(always)]
fn refuse_translated(hook: Hook, skb: &Skb<'_>, packet: &Packet) -> Option<Action> {
    let client = skb.unjudged_client();
    if client == 0 {
        return None;
    }
    let Some(pod) = maps::pod(client) else {
        report::count(hook, Outcome::UnknownPod as u32);
        return Some(DROP);
    };
    let flow = packet.flow_of_source(client);
    let maps = Maps::new();
    let steer = steer::translated(&maps, client, pod, packet);
    let of = Of {
        key: &flow,
        end: End::Pod,
        maps: &maps,
    };
    match steer.verb {
        Verb::Pass => None,
        Verb::PassRenew => {
            renew(&of);
            None
        }
        Verb::PassNew if record(skb, packet, &of, judged(0, steer.argument)) => None,
        Verb::PassNew => {
            report::count(hook, Outcome::FlowsFull as u32);
            Some(DROP)
        }
        _ => {
            let carried_out = pass_or_drop(hook, skb, packet, &of, steer);
            Some(told(hook, skb, packet, carried_out))
        }
    }
}

#[inline(always)]
fn local(skb: &Skb<'_>, ifindex: u32) -> (u32, Action) {
    match maps::pod(ifindex) {
        Some(pod) => (
            Outcome::Local as u32,
            skb.redirect_peer(ifindex, pod.mac, pod.host_mac),
        ),
        None => (Outcome::UnknownPod as u32, DROP),
    }
}

#[inline(always)]
fn listener(skb: &Skb<'_>, packet: &Packet, slot: u32) -> (u32, Action) {
    match skb.assign_listener(Slot::index(slot, !packet.dst.is_v4())) {
        Assigned::Done => (Outcome::Listener as u32, PASS),
        Assigned::Refused => (Outcome::AssignFailed as u32, DROP),
        Assigned::Absent => (Outcome::AgentAbsent as u32, DROP),
    }
}
