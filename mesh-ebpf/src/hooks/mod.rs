//! One file a hook, and the carrying out of what [`mesh_common::steer`] decides.

mod from_net;
mod from_pod;
mod listen;
mod to_pod;

use mesh_common::maps::Flow;
use mesh_common::packet::Frame;
use mesh_common::steer::{NoSocket, Steer};
use mesh_common::verdict::{Hook, Outcome};

use crate::ctx::{Action, Assigned, DROP, PASS, Skb};
use crate::{maps, report};

/// Carries out a decision and counts its outcome.
#[inline(always)]
fn act(hook: Hook, skb: &Skb<'_>, frame: &Frame, steer: &Steer) -> Action {
    let (outcome, action) = apply(skb, frame, steer);
    report::count(hook, outcome);
    action
}

#[inline(always)]
fn apply(skb: &Skb<'_>, frame: &Frame, steer: &Steer) -> (Outcome, Action) {
    match steer {
        Steer::Pass => (Outcome::Pass, PASS),
        Steer::Drop(outcome) => (*outcome, DROP),
        Steer::PassNew(flow) => {
            if maps::record(flow, Flow::PLAIN) {
                (Outcome::Pass, PASS)
            } else {
                (Outcome::FlowsFull, DROP)
            }
        }
        Steer::PassAgent(flow) => {
            maps::forget(flow);
            (Outcome::Pass, PASS)
        }
        Steer::Local(ifindex) => local(skb, *ifindex),
        Steer::LocalNew(ifindex, flow) => {
            if maps::record(flow, Flow::LOCAL) && maps::record(&flow.reversed(), Flow::LOCAL) {
                local(skb, *ifindex)
            } else {
                (Outcome::FlowsFull, DROP)
            }
        }
        Steer::Capture(slot, flow) => {
            maps::forget(flow);
            socket(skb, frame, NoSocket::Listener(*slot))
        }
        Steer::Socket(otherwise) => socket(skb, frame, *otherwise),
    }
}

#[inline(always)]
fn local(skb: &Skb<'_>, ifindex: u32) -> (Outcome, Action) {
    match maps::pod(ifindex) {
        Some(pod) => (
            Outcome::Local,
            skb.redirect_peer(ifindex, pod.mac, pod.host_mac),
        ),
        None => (Outcome::UnknownPod, DROP),
    }
}

#[inline(always)]
fn socket(skb: &Skb<'_>, frame: &Frame, otherwise: NoSocket) -> (Outcome, Action) {
    // Only TCP packets are steered to sockets.
    let packet = &frame.packet;
    match skb.assign_socket(packet) {
        Assigned::Done => return (Outcome::Socket, PASS),
        Assigned::Refused => return (Outcome::AssignFailed, DROP),
        Assigned::Absent => {}
    }
    match otherwise {
        NoSocket::Pass => (Outcome::Pass, PASS),
        NoSocket::Local(ifindex) => local(skb, ifindex),
        NoSocket::Listener(slot) => match skb.assign_listener(slot.index(!packet.dst.is_v4())) {
            Assigned::Done => (Outcome::Listener, PASS),
            Assigned::Refused => (Outcome::AssignFailed, DROP),
            Assigned::Absent => (Outcome::AgentAbsent, DROP),
        },
    }
}
