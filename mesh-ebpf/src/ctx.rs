//! The packet behind a TC context: reading it, marking it, giving it to a socket or to another device.

#![expect(
    unsafe_code,
    reason = "kernel helpers and context fields are raw pointers"
)]

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, TC_ACT_OK, TC_ACT_SHOT,
    bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_redirect, bpf_redirect_peer, bpf_sk_assign,
    bpf_sk_release, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, TcContext};
use mesh_common::addr::{Addr, Port};
use mesh_common::names::{MARK_AGENT, MARK_ANSWER, MARK_DELIVER, MARK_MASK, MARK_SERVICE};
use mesh_common::packet::{Bytes, Kind, Packet};
use mesh_common::reset;
use mesh_common::steer::Origin;
use mesh_common::verdict::Hook;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::maps::{LISTENERS, PACKET};

/// `sk_state` of a listening socket (`enum` in the kernel's `tcp_states.h`).
const TCP_LISTEN: u32 = 10;

const AF_INET6: u32 = 10;

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

    /// Its length in bytes.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.0.len()
    }

    /// The packet. A VLAN tag, also one that the driver took off, makes it [`Kind::NotIp`].
    ///
    /// In memory of this processor's, which the verifier takes for unknown: whatever way led to a packet, it follows the
    /// rest of the program once. No program that reads packets runs within another.
    #[inline(always)]
    pub(crate) fn packet(&self) -> Option<&'static Packet> {
        let place = PACKET.get_ptr_mut(0)?;
        let words = place.cast::<[u32; size_of::<Packet>() / 4]>();
        // SAFETY: a map's value, valid for the program's run; all zero is a malformed packet.
        for word in unsafe { &mut *words } {
            // Volatile, or LLVM calls a function that writes byte by byte.
            // SAFETY: as above.
            unsafe { ptr::write_volatile(word, 0) };
        }
        // SAFETY: as above; nobody else on this processor has it meanwhile.
        let packet = unsafe { &mut *place };
        // SAFETY: the context is valid for the program's run.
        if unsafe { (*self.0.skb.skb).vlan_present } != 0 {
            packet.kind = Kind::NotIp;
        } else {
            packet.read(self);
        }
        Some(packet)
    }

    /// Who sent a packet that leaves this node's stack.
    ///
    /// Packets of local sockets never had an input device. Marks do not survive the way out of a pod, and `from_pod` takes
    /// ours off all the same: whoever bears the agent's is the agent, or a reset that a program made.
    #[inline(always)]
    pub(crate) fn origin(&self) -> Origin {
        let mark = self.our_mark();
        if mark == MARK_AGENT || mark == MARK_ANSWER {
            return Origin::Agent;
        }
        let ingress = self.ingress_ifindex();
        if ingress == 0 {
            Origin::Node
        } else if ingress == self.ifindex() {
            Origin::Itself
        } else {
            Origin::Forwarded
        }
    }

    /// Interface of the pod that sent a packet to a service, which egress policy has not judged yet; 0 for any other packet.
    #[inline(always)]
    pub(crate) fn unjudged_client(&self) -> u32 {
        if self.our_mark() == MARK_SERVICE {
            self.ingress_ifindex()
        } else {
            0
        }
    }

    /// Whether this is a reset that a program built, on its way in by the device of the one that it speaks for.
    ///
    /// A packet that comes out of a pod has no mark: crossing into another network namespace takes it off.
    #[inline(always)]
    pub(crate) fn is_answer(&self) -> bool {
        self.our_mark() == MARK_ANSWER
    }

    /// Our bits of the mark.
    #[inline(always)]
    fn our_mark(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        unsafe { (*self.0.skb.skb).mark & MARK_MASK }
    }

    /// Interface the packet came in by; 0 when a local socket sent it.
    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        unsafe { (*self.0.skb.skb).ingress_ifindex }
    }

    /// Has the packet judged where it leaves the stack.
    #[inline(always)]
    pub(crate) fn mark_service(&self) {
        self.mark(MARK_SERVICE);
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

    /// Turns a TCP segment into a reset of its sender and sends it back; a reset is not answered.
    ///
    /// Out of a pod's device it goes back by that device. What was about to leave the stack by a device comes in by it
    /// instead, as if it had been answered there: so the stack translates it back where it had translated the segment.
    #[inline(always)]
    pub(crate) fn answer_reset(&self, packet: &Packet, hook: Hook) -> Action {
        let skb = self.0.skb.skb;
        let Some(segment) = self.load::<reset::Header>(packet.transport) else {
            return DROP;
        };
        let Some([dst_low, mid, src_high]) = self.load::<[u32; 3]>(0) else {
            return DROP;
        };
        let v6 = !packet.src.is_v4();
        let data = self.0.len().saturating_sub(packet.transport);
        let Some(answer) = reset::answer(packet, &segment, data) else {
            return DROP;
        };
        let ip = if v6 { 40 } else { 20 };
        // SAFETY: the helper checks the new length.
        if unsafe { bpf_skb_change_tail(skb.cast(), 14 + ip + 20, 0) } != 0 {
            return DROP;
        }
        // The two addresses of six bytes change places.
        let macs = [
            mid >> 16 | src_high << 16,
            src_high >> 16 | dst_low << 16,
            dst_low >> 16 | mid << 16,
        ];
        let written = self.store(0, &macs)
            && if v6 {
                self.store(14, &reset::ipv6(packet))
            } else {
                self.store(14, &reset::ipv4(packet))
            }
            && self.store(14 + ip, &answer);
        if !written {
            return DROP;
        }
        self.mark(MARK_ANSWER);
        let direction = match hook {
            Hook::FromPod => 0,
            _ => u64::from(BPF_F_INGRESS),
        };
        // SAFETY: no pointer is passed.
        (unsafe { bpf_redirect(self.ifindex(), direction) }) as Action
    }

    /// Writes words into the packet.
    #[inline(always)]
    fn store<T: IntoBytes + Immutable>(&self, offset: u32, value: &T) -> bool {
        let from = ptr::from_ref(value).cast();
        // SAFETY: the helper checks the packet's bounds; the source is a whole initialised value.
        let status = unsafe {
            bpf_skb_store_bytes(
                self.0.skb.skb.cast(),
                offset,
                from,
                size_of::<T>() as u32,
                BPF_F_RECOMPUTE_CSUM.into(),
            )
        };
        status == 0
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

/// What a process in some network namespace is about to send to.
pub(crate) struct Destination<'a>(pub(crate) &'a SockAddrContext);

impl Destination<'_> {
    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is valid for the program's run.
        unsafe { bpf_get_netns_cookie(self.0.sock_addr.cast()) }
    }

    /// The IPv4 address.
    #[inline(always)]
    pub(crate) fn v4(&self) -> Addr {
        Addr::v4(self.field(|it| &raw const it.user_ip4))
    }

    /// The IPv6 address, which may be an IPv4 address in IPv6 form.
    #[inline(always)]
    pub(crate) fn v6(&self) -> Addr {
        Addr([
            self.field(|it| &raw const it.user_ip6[0]),
            self.field(|it| &raw const it.user_ip6[1]),
            self.field(|it| &raw const it.user_ip6[2]),
            self.field(|it| &raw const it.user_ip6[3]),
        ])
    }

    /// The port.
    #[inline(always)]
    pub(crate) fn port(&self) -> Port {
        Port(self.field(|it| &raw const it.user_port) as u16)
    }

    /// IP protocol number.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        self.field(|it| &raw const it.protocol)
    }

    /// One word of the context, read volatile: LLVM otherwise merges neighbours, which the verifier refuses.
    #[inline(always)]
    fn field(&self, of: impl FnOnce(&bpf_sock_addr) -> *const u32) -> u32 {
        // SAFETY: the context is valid for the program's run.
        let context = unsafe { &*self.0.sock_addr };
        // SAFETY: the pointer is to a field of the context.
        unsafe { ptr::read_volatile(of(context)) }
    }
}

/// The look-up of a socket for a packet that reaches the node.
pub(crate) struct Lookup<'a>(pub(crate) &'a SkLookupContext);

impl Lookup<'_> {
    /// Whether the packet is of IPv6.
    #[inline(always)]
    pub(crate) fn is_v6(&self) -> bool {
        self.field(|it| &raw const it.family) == AF_INET6
    }

    /// IP protocol number.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        self.field(|it| &raw const it.protocol)
    }

    /// The packet's destination.
    #[inline(always)]
    pub(crate) fn local(&self) -> Addr {
        self.addr(|it| &raw const it.local_ip4, |it| &it.local_ip6)
    }

    /// The packet's destination port.
    #[inline(always)]
    pub(crate) fn local_port(&self) -> Port {
        Port::new(self.field(|it| &raw const it.local_port) as u16)
    }

    /// The packet's source.
    #[inline(always)]
    pub(crate) fn remote(&self) -> Addr {
        self.addr(|it| &raw const it.remote_ip4, |it| &it.remote_ip6)
    }

    /// The packet's source port.
    #[inline(always)]
    pub(crate) fn remote_port(&self) -> Port {
        // SAFETY: the context is valid for the program's run.
        let port = unsafe { &raw const (*self.0.lookup).remote_port };
        // SAFETY: the pointer is to a field of the context.
        Port(unsafe { ptr::read_volatile(port) })
    }

    /// Interface that the packet came in by. Needs Linux 5.17.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(&self) -> u32 {
        self.field(|it| &raw const it.ingress_ifindex)
    }

    /// An address; the fields of the other family read as zero.
    #[inline(always)]
    fn addr(
        &self,
        word4: impl Fn(&bpf_sk_lookup) -> *const u32,
        words6: impl Fn(&bpf_sk_lookup) -> &[u32; 4],
    ) -> Addr {
        // Read word by word whatever the family: LLVM would load through a pointer that it selects, or two words at once,
        // and the verifier refuses both.
        let words = [
            self.field(|it| &raw const words6(it)[0]),
            self.field(|it| &raw const words6(it)[1]),
            self.field(|it| &raw const words6(it)[2]),
            self.field(|it| &raw const words6(it)[3]),
        ];
        let mapped = Addr::v4(self.field(word4));
        if self.is_v6() { Addr(words) } else { mapped }
    }

    #[inline(always)]
    fn field(&self, of: impl FnOnce(&bpf_sk_lookup) -> *const u32) -> u32 {
        // SAFETY: the context is valid for the program's run.
        let context = unsafe { &*self.0.lookup };
        // SAFETY: the pointer is to a field of the context.
        unsafe { ptr::read_volatile(of(context)) }
    }
}
