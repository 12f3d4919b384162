//! Cgroup `connect`: tells a process in a pod at once, by `EPERM`, what the packet hooks would refuse.
//!
//! Of TCP alone: over UDP, an answer may be connected as well.
//! Nothing depends on it: a packet that was sent all the same meets `from_pod` and `to_pod`. Needs Linux 5.7.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::addr::Addr;
use mesh_common::packet::{Kind, Packet};
use mesh_common::steer;
use mesh_common::verdict::{Hook, Outcome};

use crate::ctx::Destination;
use crate::maps::{Maps, interface_of, pod};
use crate::report::{count, refused};

/// Return codes of the hook (`CGROUP_BPF_SOCK_ADDR` programs): the system call goes on, or fails with `EPERM`.
const GO_ON: i32 = 1;
const EPERM: i32 = 0;

const TCP: u32 = 6;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    let to = Destination(&ctx);
    judge(&to, to.v4())
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    let to = Destination(&ctx);
    judge(&to, to.v6())
}

#[inline(always)]
fn judge(to: &Destination<'_>, dst: Addr) -> i32 {
    if to.protocol() != TCP {
        return GO_ON;
    }
    let Some(ifindex) = interface_of(to.netns_cookie()) else {
        return GO_ON;
    };
    let Some(pod) = pod(ifindex) else {
        return GO_ON;
    };
    let port = to.port();
    let outcome = steer::connect(&Maps::new(), pod, &dst, port) as u32;
    if outcome == Outcome::Pass as u32 {
        return GO_ON;
    }
    let packet = Packet {
        src: if dst.is_v4() { pod.addr4 } else { pod.addr6 },
        dst,
        dst_port: port,
        protocol: TCP,
        ..Packet::without_ip(Kind::TcpOpening)
    };
    count(Hook::Connect, outcome);
    refused(Hook::Connect, outcome, ifindex, &packet);
    EPERM
}
