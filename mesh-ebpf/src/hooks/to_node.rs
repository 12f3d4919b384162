//! `sk_lookup` in the node's network namespace: egress policy on what pods send to services whose endpoint is a process of
//! this node.
//!
//! What is dropped here finds no socket: the kernel answers it as a closed port. Needs Linux 5.17 (`ingress_ifindex`).

use aya_ebpf::bindings::sk_action;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::packet::{Kind, Packet};
use mesh_common::steer;
use mesh_common::verdict::{Hook, Outcome};

use crate::ctx::Lookup;
use crate::maps::{Maps, pod};
use crate::report::{count, refused};

#[sk_lookup]
fn to_node(ctx: SkLookupContext) -> u32 {
    let lookup = Lookup(&ctx);
    let ifindex = lookup.ingress_ifindex();
    let Some(pod) = pod(ifindex) else {
        return sk_action::SK_PASS;
    };
    let packet = Packet {
        src: lookup.remote(),
        dst: lookup.local(),
        src_port: lookup.remote_port(),
        dst_port: lookup.local_port(),
        protocol: lookup.protocol(),
        ..Packet::without_ip(Kind::Ip)
    };
    if steer::to_node(&Maps::new(), ifindex, pod, &packet) {
        return sk_action::SK_PASS;
    }
    count(Hook::ToNode, Outcome::Policy as u32);
    refused(Hook::ToNode, Outcome::Policy as u32, ifindex, &packet);
    sk_action::SK_DROP
}
