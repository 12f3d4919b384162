//! One file a hook, and the carrying out of what [`mesh_common::steer`] decides.

mod connect;
mod from_net;
mod from_pod;
mod listen;
mod to_net;
mod to_node;
mod to_pod;

use mesh_common::maps::{FlowKey, Opener, Slot};
use mesh_common::packet::Packet;
use mesh_common::steer::{self, Steer, Verb};
use mesh_common::verdict::{Hook, Outcome};

use crate::ctx::{Action, Assigned, DROP, PASS, Skb};
use crate::{maps, report};

/// Carries out a decision on a packet of `flow`, whose pod has `pod_flags`, and counts its outcome.
#[inline(always)]
fn act(
    hook: Hook,
    skb: &Skb<'_>,
    packet: &Packet,
    (flow, pod_flags): (&FlowKey, u32),
    steer: Steer,
) -> Action {
    let (outcome, action) = apply(hook, skb, packet, (flow, pod_flags), steer);
    report::count(hook, outcome);
    report::refused(hook, outcome, skb.ifindex(), packet);
    action
}

/// Returns the outcome's number and the return code.
#[inline(always)]
fn apply(
    hook: Hook,
    skb: &Skb<'_>,
    packet: &Packet,
    (flow, pod_flags): (&FlowKey, u32),
    steer: Steer,
) -> (u32, Action) {
    let pass = (Outcome::Pass as u32, PASS);
    match steer.verb {
        Verb::Pass | Verb::PassNew | Verb::PassRenew => {
            match steer.verb {
                Verb::PassNew if !maps::record(pod_flags, flow, 0, steer.argument) => {
                    return (Outcome::FlowsFull as u32, DROP);
                }
                Verb::PassRenew => maps::renew(flow),
                _ => {}
            }
            if steer.argument == Opener::PodToService as u32 {
                skb.mark_service();
            }
            pass
        }
        Verb::Drop => (steer.argument, DROP),
        Verb::PassAgent => {
            maps::forget(flow);
            pass
        }
        Verb::Local => local(skb, steer.argument),
        Verb::LocalRenew => {
            maps::renew(flow);
            local(skb, steer.argument)
        }
        Verb::Reset => {
            maps::forget(flow);
            (steer.argument, skb.answer_reset(packet, hook))
        }
        Verb::LocalNew => {
            let neighbour = steer.argument;
            let theirs = packet.flow_of_destination(neighbour);
            // Both are enrolled.
            let recorded = maps::record(pod_flags, flow, neighbour, Opener::Pod as u32)
                && maps::record(pod_flags, &theirs, flow.ifindex, Opener::Peer as u32);
            if recorded {
                local(skb, neighbour)
            } else {
                (Outcome::FlowsFull as u32, DROP)
            }
        }
        Verb::Capture | Verb::SocketOrListener | Verb::SocketOrLocal | Verb::SocketOrPass => {
            if matches!(steer.verb, Verb::Capture) {
                maps::forget(flow);
            }
            match skb.assign_socket(packet) {
                Assigned::Done => (Outcome::Socket as u32, PASS),
                Assigned::Refused => (Outcome::AssignFailed as u32, DROP),
                Assigned::Absent => match steer.verb {
                    Verb::SocketOrPass => pass,
                    Verb::SocketOrLocal => local(skb, steer.argument),
                    _ => listener(skb, packet, steer.argument),
                },
            }
        }
    }
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
    let steer = steer::translated(&maps::Maps, client, pod, packet);
    match steer.verb {
        Verb::Pass => None,
        Verb::PassRenew => {
            maps::renew(&flow);
            None
        }
        Verb::PassNew if maps::record(pod.flags, &flow, 0, steer.argument) => None,
        Verb::PassNew => {
            report::count(hook, Outcome::FlowsFull as u32);
            Some(DROP)
        }
        _ => Some(act(hook, skb, packet, (&flow, pod.flags), steer)),
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
