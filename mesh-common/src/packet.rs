//! Bounds-checked reading of Ethernet, IPv4, IPv6 and TCP headers.

use zerocopy::FromBytes;

use crate::addr::{Addr, Port};
use crate::maps::FlowKey;

/// Bytes of a frame from its Ethernet header on, wherever they are kept.
pub trait Bytes {
    /// Copies a value from `offset`, or `None` when the frame ends before.
    fn load<T: FromBytes>(&self, offset: u32) -> Option<T>;
}

impl Bytes for [u8] {
    fn load<T: FromBytes>(&self, offset: u32) -> Option<T> {
        T::read_from_prefix(self.get(offset as usize..)?)
            .ok()
            .map(|(value, _)| value)
    }
}

/// A frame as far as steering cares.
///
/// Flat, and every field has a value whatever the kind: the verifier refuses programs that copy what was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Source address; [`Addr::NONE`] when it is not IP.
    pub src: Addr,
    /// Destination address; [`Addr::NONE`] when it is not IP.
    pub dst: Addr,
    /// Source port, or an ICMP echo's identifier; 0 where there is none.
    pub src_port: Port,
    /// Destination port, or an ICMP echo's identifier; 0 where there is none.
    pub dst_port: Port,
    /// IP protocol number of the transport, past all extension headers; 0 when it is not IP.
    pub protocol: u32,
    /// Where the transport's header begins, in bytes from the Ethernet header; 0 when it is not IP.
    pub transport: u32,
    /// Sequence number of a whole TCP segment, in host order; otherwise 0.
    pub sequence: u32,
    /// Flags of a whole TCP segment and, above them, the length of its header in words; otherwise 0.
    pub tcp: u32,
}

/// What a frame carries.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its headers are cut short, contradict themselves, or are more than the parser follows.
    Malformed,
    /// Address resolution: never leaves the link.
    Arp,
    /// Neither IP nor ARP.
    NotIp,
    /// TCP with SYN and without ACK: the first packet of a connection.
    TcpOpening,
    /// Any other whole TCP segment.
    Tcp,
    /// A fragment of a TCP segment, or of something that may turn out to be one; the first one included.
    TcpFragment,
    /// `ICMPv6` router solicitation, neighbour solicitation or neighbour advertisement (RFC 4861); no router's messages.
    Neighbour,
    /// An ICMP error: it belongs to a flow that somebody was allowed to open.
    IcmpError,
    /// A later fragment of anything but TCP: of no use without the first one, which is judged.
    LaterFragment,
    /// Any other IP packet.
    Ip,
}

impl Packet {
    /// A frame without addresses.
    #[inline(always)]
    pub const fn without_ip(kind: Kind) -> Self {
        Self {
            kind,
            src: Addr::NONE,
            dst: Addr::NONE,
            src_port: Port(0),
            dst_port: Port(0),
            protocol: 0,
            transport: 0,
            sequence: 0,
            tcp: 0,
        }
    }

    /// Flags of a TCP segment.
    pub const FIN: u32 = 0x01;
    /// The same.
    pub const SYN: u32 = 0x02;
    /// The same.
    pub const RST: u32 = 0x04;
    /// The same.
    pub const ACK: u32 = 0x10;

    /// Whether it is a whole TCP segment with a flag.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.tcp & flag != 0
    }

    /// Bytes of data of a whole TCP segment, by the length of its frame.
    #[inline(always)]
    pub const fn data(&self, frame: u32) -> u32 {
        frame.saturating_sub(self.transport + (self.tcp >> 12) * 4)
    }

    /// The flow as the pod sees it that sends the packet, at interface `ifindex`.
    #[inline(always)]
    pub const fn flow_of_source(&self, ifindex: u32) -> FlowKey {
        FlowKey {
            ifindex,
            peer: self.dst,
            pod_port: self.src_port,
            peer_port: self.dst_port,
            protocol: self.protocol,
        }
    }

    /// The flow as the pod sees it that the packet is for, at interface `ifindex`.
    #[inline(always)]
    pub const fn flow_of_destination(&self, ifindex: u32) -> FlowKey {
        FlowKey {
            ifindex,
            peer: self.src,
            pod_port: self.dst_port,
            peer_port: self.src_port,
            protocol: self.protocol,
        }
    }

    /// Reads a frame.
    #[inline(always)]
    pub fn parse<B: Bytes + ?Sized>(bytes: &B) -> Self {
        let mut packet = Self::without_ip(Kind::Malformed);
        packet.read(bytes);
        packet
    }

    /// As [`Self::parse`], in a place that holds [`Self::without_ip`] of a malformed frame.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(&mut self, bytes: &B) {
        let Some(ethertype) = bytes.load::<u16>(12) else {
            return;
        };
        match u16::from_be(ethertype) {
            ETHERTYPE_IPV4 => self.ipv4(bytes),
            ETHERTYPE_IPV6 => self.ipv6(bytes),
            ETHERTYPE_ARP => self.kind = Kind::Arp,
            _ => self.kind = Kind::NotIp,
        }
    }

    /// RFC 791, with options.
    #[inline(always)]
    fn ipv4<B: Bytes + ?Sized>(&mut self, bytes: &B) {
        let Some(header) = bytes.load::<[u32; 5]>(ETHERNET) else {
            return;
        };
        let [version_length, _, _, _] = header[0].to_ne_bytes();
        let length = u32::from(version_length & 0x0f) * 4;
        if version_length >> 4 != 4 || length < 20 {
            return;
        }
        self.src = Addr::v4(header[3]);
        self.dst = Addr::v4(header[4]);
        // "Don't fragment" and the reserved bit do not matter.
        let fragment = u32::from_be(header[1]);
        let part = Part::of(fragment & 0x1fff != 0, fragment & 0x2000 != 0);
        let [_, protocol, _, _] = header[2].to_ne_bytes();
        self.transport(bytes, ETHERNET + length, protocol, part);
    }

    /// RFC 8200, with extension headers.
    #[inline(always)]
    fn ipv6<B: Bytes + ?Sized>(&mut self, bytes: &B) {
        let Some(header) = bytes.load::<[u32; 10]>(ETHERNET) else {
            return;
        };
        if u32::from_be(header[0]) >> 28 != 6 {
            return;
        }
        self.src = Addr([header[2], header[3], header[4], header[5]]);
        self.dst = Addr([header[6], header[7], header[8], header[9]]);
        // In the maps these stand for the IPv4 pod; no IPv6 packet has them (RFC 4942, 2.2).
        if self.src.is_v4() || self.dst.is_v4() {
            return;
        }

        let [_, _, mut protocol, _] = header[1].to_ne_bytes();
        let mut offset = ETHERNET + 40;
        let mut part = Part::Whole;
        let mut followed = 0;
        while followed < MAX_EXTENSIONS && is_extension(protocol) && part == Part::Whole {
            let Some([next, units, high, low]) = bytes.load::<[u8; 4]>(offset) else {
                return;
            };
            if protocol == PROTOCOL_ROUTING && low != 0 {
                // Segments left: the destination is not the one that counts.
                return;
            }
            offset += match protocol {
                // An atomic fragment (offset 0, no more to come; RFC 6946) is a whole packet.
                PROTOCOL_FRAGMENT => {
                    part = Part::of(high != 0 || low & 0xf8 != 0, low & 1 != 0);
                    8
                }
                PROTOCOL_AUTHENTICATION => (u32::from(units) + 2) * 4,
                _ => (u32::from(units) + 1) * 8,
            };
            protocol = next;
            followed += 1;
        }
        self.transport(bytes, offset, protocol, part);
    }

    /// Sets kind and ports from what stands behind the IP headers.
    #[inline(always)]
    fn transport<B: Bytes + ?Sized>(&mut self, bytes: &B, offset: u32, protocol: u8, part: Part) {
        self.protocol = u32::from(protocol);
        self.transport = offset;
        if part != Part::Whole && (protocol == PROTOCOL_TCP || is_extension(protocol)) {
            // What stands behind a fragment header may be data; extension headers in it may hide TCP until it is put
            // together again.
            self.kind = Kind::TcpFragment;
            return;
        }
        if part == Part::Later {
            self.kind = Kind::LaterFragment;
            return;
        }
        match protocol {
            PROTOCOL_TCP => {
                let Some(header) = bytes.load::<[u16; 10]>(offset) else {
                    return;
                };
                self.src_port = Port(header[0]);
                self.dst_port = Port(header[1]);
                self.sequence =
                    u32::from(u16::from_be(header[2])) << 16 | u32::from(u16::from_be(header[3]));
                self.tcp = u32::from(u16::from_be(header[6]));
                let opens = self.tcp & (Self::SYN | Self::ACK) == Self::SYN;
                self.kind = if opens { Kind::TcpOpening } else { Kind::Tcp };
            }
            PROTOCOL_UDP | PROTOCOL_SCTP => {
                let Some(ports) = bytes.load::<[u16; 2]>(offset) else {
                    return;
                };
                self.src_port = Port(ports[0]);
                self.dst_port = Port(ports[1]);
                self.kind = Kind::Ip;
            }
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => self.icmp(bytes, offset, protocol),
            // More extension headers than are followed.
            other if is_extension(other) => {}
            _ => self.kind = Kind::Ip,
        }
    }

    /// RFC 792 and RFC 4443: type, code, checksum, and an echo's identifier.
    #[inline(always)]
    fn icmp<B: Bytes + ?Sized>(&mut self, bytes: &B, offset: u32, protocol: u8) {
        let Some(header) = bytes.load::<[u16; 3]>(offset) else {
            return;
        };
        let [kind, _] = header[0].to_ne_bytes();
        self.kind = Kind::Ip;
        match (protocol, kind) {
            (PROTOCOL_ICMP, 0 | 8) | (PROTOCOL_ICMPV6, 128 | 129) => {
                self.src_port = Port(header[2]);
                self.dst_port = Port(header[2]);
            }
            (PROTOCOL_ICMP, 3 | 11 | 12) | (PROTOCOL_ICMPV6, 1..=4) => self.kind = Kind::IcmpError,
            (PROTOCOL_ICMPV6, 133 | 135 | 136) => self.kind = Kind::Neighbour,
            _ => {}
        }
    }
}

/// How much of a packet a frame carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Later,
}

impl Part {
    #[inline(always)]
    const fn of(has_offset: bool, has_more: bool) -> Self {
        match (has_offset, has_more) {
            (true, _) => Self::Later,
            (false, true) => Self::First,
            (false, false) => Self::Whole,
        }
    }
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        PROTOCOL_HOP_BY_HOP
            | PROTOCOL_ROUTING
            | PROTOCOL_FRAGMENT
            | PROTOCOL_AUTHENTICATION
            | PROTOCOL_DESTINATION_OPTIONS
    )
}

const ETHERNET: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_AUTHENTICATION: u8 = 51;
const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;
const PROTOCOL_SCTP: u8 = 132;

/// Extension headers that are followed before a packet counts as malformed.
const MAX_EXTENSIONS: u32 = 6;
