//! The packet behind a TC context: reading it, marking it, giving it to a socket or to another device.

#![expect(
    unsafe_code,
    reason = "kernel helpers and context fields are raw pointers"
)]

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, TC_ACT_OK, TC_ACT_SHOT, bpf_sock, bpf_sock_tuple,
    bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::{
    bpf_map_lookup_elem, bpf_redirect_peer, bpf_sk_assign, bpf_sk_release, bpf_skb_load_bytes,
    bpf_skb_store_bytes, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::TcContext;
use mesh_common::names::{MARK_AGENT, MARK_DELIVER, MARK_MASK};
use mesh_common::packet::{Bytes, Kind, Packet};
use mesh_common::steer::Origin;
use zerocopy::FromBytes;

use crate::maps::LISTENERS;

/// `sk_state` of a listening socket (`enum` in the kernel's `tcp_states.h`).
const TCP_LISTEN: u32 = 10;

/// A TC return code.
pub(crate) type Action = i32;
pub(crate) const PASS: Action = TC_ACT_OK as Action;
pub(crate) const DROP: Action = TC_ACT_SHOT as Action;

/// A packet at a TC hook.
pub(crate) struct Skb<'a>(pub(crate) &'a TcContext);

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn load<T: FromBytes>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let length = size_of::<T>() as u32;
        // SAFETY: the helper checks the packet's bounds and writes the whole value or reports failure.
        let status = unsafe {
            bpf_skb_load_bytes(
                self.0.skb.skb.cast(),
                offset,
                value.as_mut_ptr().cast(),
                length,
            )
        };
        if status != 0 {
            return None;
        }
        // SAFETY: the helper succeeded, so every byte is written, and any bytes are a valid `T`.
        Some(unsafe { value.assume_init() })
    }
}

impl Skb<'_> {
    /// Interface the hook is attached to.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// The packet. A VLAN tag, also one that the driver took off, makes it [`Kind::NotIp`].
    #[inline(always)]
    pub(crate) fn packet(&self) -> Packet {
        // SAFETY: the context is valid for the program's run.
        if unsafe { (*self.0.skb.skb).vlan_present } != 0 {
            return Packet::without_ip(Kind::NotIp);
        }
        Packet::parse(self)
    }

    /// Who sent a packet that leaves this node's stack.
    ///
    /// Packets of local sockets never had an input device; marks do not survive the way out of a pod.
    #[inline(always)]
    pub(crate) fn origin(&self) -> Origin {
        // SAFETY: the context is valid for the program's run.
        if unsafe { (*self.0.skb.skb).ingress_ifindex } != 0 {
            return Origin::Forwarded;
        }
        // SAFETY: as above.
        let mark = unsafe { (*self.0.skb.skb).mark };
        if mark & MARK_MASK == MARK_AGENT {
            Origin::Agent
        } else {
            Origin::Node
        }
    }

    /// Takes our bits out of the mark.
    #[inline(always)]
    pub(crate) fn clear_mark(&self) {
        self.mark(0);
    }

    #[inline(always)]
    fn mark(&self, bits: u32) {
        let skb = self.0.skb.skb;
        // SAFETY: the context is valid for the program's run.
        let mark = unsafe { (*skb).mark };
        // Volatile, or LLVM merges it with a neighbouring field into one store that the verifier refuses.
        // SAFETY: as above.
        let field = unsafe { &raw mut (*skb).mark };
        // SAFETY: as above; `mark` is writable at TC hooks.
        unsafe { ptr::write_volatile(field, mark & !MARK_MASK | bits) };
    }

    /// Gives the packet to the socket that has its tuple, whatever its state but LISTEN.
    ///
    /// TIME_WAIT is included: the kernel itself revives such a tuple for a SYN, and asks `listen` for the listener.
    #[inline(always)]
    pub(crate) fn assign_socket(&self, packet: &Packet) -> Assigned {
        let (tuple, length) = socket_tuple(packet);
        // SAFETY: the tuple is initialised for `length` bytes; the helper returns null or a referenced socket.
        let socket = unsafe {
            bpf_skc_lookup_tcp(
                self.0.skb.skb.cast(),
                (&raw const tuple).cast_mut(),
                length,
                BPF_F_CURRENT_NETNS as u64,
                0,
            )
        };
        if socket.is_null() {
            return Assigned::Absent;
        }
        // SAFETY: not null, and referenced until the release below.
        if unsafe { (*socket).state } == TCP_LISTEN {
            // SAFETY: the reference taken by the look-up is given back, once.
            unsafe { bpf_sk_release(socket.cast()) };
            return Assigned::Absent;
        }
        self.assign(socket)
    }

    /// Gives the packet to the listening socket in an entry of `LISTENERS`.
    #[inline(always)]
    pub(crate) fn assign_listener(&self, index: u32) -> Assigned {
        // SAFETY: the key is a `u32` as the map declares; for a socket map the helper returns null or a referenced socket.
        let socket: *mut bpf_sock = unsafe {
            bpf_map_lookup_elem(
                (&raw const LISTENERS).cast_mut().cast(),
                (&raw const index).cast(),
            )
        }
        .cast();
        if socket.is_null() {
            return Assigned::Absent;
        }
        self.assign(socket)
    }

    /// Assigns and releases a referenced socket, and marks the packet for local delivery.
    #[inline(always)]
    fn assign(&self, socket: *mut bpf_sock) -> Assigned {
        // SAFETY: both callers pass a socket that is not null and whose reference they own.
        let status = unsafe { bpf_sk_assign(self.0.skb.skb.cast(), socket.cast(), 0) };
        // SAFETY: the reference is given back, once.
        unsafe { bpf_sk_release(socket.cast()) };
        if status != 0 {
            return Assigned::Refused;
        }
        self.mark(MARK_DELIVER);
        Assigned::Done
    }

    /// Moves the packet into the network namespace behind the veth `ifindex`, addressed to the pod's MAC.
    #[inline(always)]
    pub(crate) fn redirect_peer(&self, ifindex: u32, dst_mac: [u8; 6], src_mac: [u8; 6]) -> Action {
        let mut macs = [0_u8; 12];
        macs[..6].copy_from_slice(&dst_mac);
        macs[6..].copy_from_slice(&src_mac);
        // SAFETY: the helper checks the packet's bounds; the source is 12 initialised bytes.
        let status =
            unsafe { bpf_skb_store_bytes(self.0.skb.skb.cast(), 0, macs.as_ptr().cast(), 12, 0) };
        if status != 0 {
            return DROP;
        }
        // SAFETY: no pointer is passed; a device that is gone makes the kernel drop the packet.
        (unsafe { bpf_redirect_peer(ifindex, 0) }) as Action
    }
}

/// What became of an attempt to give a packet to a socket.
pub(crate) enum Assigned {
    /// The socket has it.
    Done,
    /// There is no such socket.
    Absent,
    /// The kernel refused the assignment.
    Refused,
}

/// The tuple of a packet as its receiver looks it up, with its length in bytes (the length tells the family).
#[inline(always)]
fn socket_tuple(packet: &Packet) -> (bpf_sock_tuple, u32) {
    let sport = packet.src_port.0;
    let dport = packet.dst_port.0;
    let (saddr, daddr) = (packet.src.0, packet.dst.0);
    // All of the union is written, whichever part the helper reads.
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
            ipv6: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr,
                daddr,
                sport,
                dport,
            },
        },
    };
    if !packet.src.is_v4() {
        return (tuple, 36);
    }
    tuple.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: saddr[3],
        daddr: daddr[3],
        sport,
        dport,
    };
    (tuple, 12)
}
