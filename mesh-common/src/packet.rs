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
    /// Source port; 0 when it is not a whole TCP segment.
    pub src_port: Port,
    /// Destination port; 0 when it is not a whole TCP segment.
    pub dst_port: Port,
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
        }
    }

    /// The flow as the pod sees it that sends the packet, at interface `ifindex`.
    #[inline(always)]
    pub const fn flow_of_source(&self, ifindex: u32) -> FlowKey {
        FlowKey {
            ifindex,
            peer: self.dst,
            pod_port: self.src_port,
            peer_port: self.dst_port,
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
        }
    }

    /// Reads a frame.
    #[inline(always)]
    pub fn parse<B: Bytes + ?Sized>(bytes: &B) -> Self {
        let Some(ethertype) = bytes.load::<u16>(12) else {
            return Self::without_ip(Kind::Malformed);
        };
        match u16::from_be(ethertype) {
            ETHERTYPE_IPV4 => Self::ipv4(bytes),
            ETHERTYPE_IPV6 => Self::ipv6(bytes),
            ETHERTYPE_ARP => Self::without_ip(Kind::Arp),
            _ => Self::without_ip(Kind::NotIp),
        }
    }

    /// RFC 791, with options.
    #[inline(always)]
    fn ipv4<B: Bytes + ?Sized>(bytes: &B) -> Self {
        let mut packet = Self::without_ip(Kind::Malformed);
        let Some(header) = bytes.load::<[u32; 5]>(ETHERNET) else {
            return packet;
        };
        let [version_length, _, _, _] = header[0].to_ne_bytes();
        let length = u32::from(version_length & 0x0f) * 4;
        if version_length >> 4 != 4 || length < 20 {
            return packet;
        }
        packet.src = Addr::v4(header[3]);
        packet.dst = Addr::v4(header[4]);
        // More-fragments flag or a fragment offset; "don't fragment" and the reserved bit do not matter.
        let fragment = u32::from_be(header[1]) & 0x3fff != 0;
        let [_, protocol, _, _] = header[2].to_ne_bytes();
        packet.transport(bytes, ETHERNET + length, protocol, fragment);
        packet
    }

    /// RFC 8200, with extension headers.
    #[inline(always)]
    fn ipv6<B: Bytes + ?Sized>(bytes: &B) -> Self {
        let mut packet = Self::without_ip(Kind::Malformed);
        let Some(header) = bytes.load::<[u32; 10]>(ETHERNET) else {
            return packet;
        };
        if u32::from_be(header[0]) >> 28 != 6 {
            return packet;
        }
        packet.src = Addr([header[2], header[3], header[4], header[5]]);
        packet.dst = Addr([header[6], header[7], header[8], header[9]]);
        // In the maps these stand for the IPv4 pod; no IPv6 packet has them (RFC 4942, 2.2).
        if packet.src.is_v4() || packet.dst.is_v4() {
            return packet;
        }

        let [_, _, mut protocol, _] = header[1].to_ne_bytes();
        let mut offset = ETHERNET + 40;
        let mut fragment = false;
        let mut followed = 0;
        while followed < MAX_EXTENSIONS && is_extension(protocol) && !fragment {
            let Some([next, units, high, low]) = bytes.load::<[u8; 4]>(offset) else {
                return packet;
            };
            if protocol == PROTOCOL_ROUTING && low != 0 {
                // Segments left: the destination is not the one that counts.
                return packet;
            }
            offset += match protocol {
                // An atomic fragment (offset 0, no more to come; RFC 6946) is a whole packet.
                PROTOCOL_FRAGMENT => {
                    fragment = u16::from_be_bytes([high, low]) & 0xfff9 != 0;
                    8
                }
                PROTOCOL_AUTHENTICATION => (u32::from(units) + 2) * 4,
                _ => (u32::from(units) + 1) * 8,
            };
            protocol = next;
            followed += 1;
        }
        packet.transport(bytes, offset, protocol, fragment);
        packet
    }

    /// Sets kind and ports from what stands behind the IP headers.
    #[inline(always)]
    fn transport<B: Bytes + ?Sized>(
        &mut self,
        bytes: &B,
        offset: u32,
        protocol: u8,
        fragment: bool,
    ) {
        if fragment {
            // What stands behind a fragment header may be data; extension headers in it may hide TCP until it is put
            // together again.
            let tcp = protocol == PROTOCOL_TCP || is_extension(protocol);
            self.kind = if tcp { Kind::TcpFragment } else { Kind::Ip };
            return;
        }
        match protocol {
            PROTOCOL_TCP => {
                let Some(header) = bytes.load::<[u16; 10]>(offset) else {
                    return;
                };
                self.src_port = Port(header[0]);
                self.dst_port = Port(header[1]);
                let opens = u16::from_be(header[6]) & (TCP_SYN | TCP_ACK) == TCP_SYN;
                self.kind = if opens { Kind::TcpOpening } else { Kind::Tcp };
            }
            PROTOCOL_ICMPV6 => {
                self.kind = match bytes.load::<u8>(offset) {
                    Some(133 | 135 | 136) => Kind::Neighbour,
                    Some(_) => Kind::Ip,
                    None => Kind::Malformed,
                };
            }
            // More extension headers than are followed.
            other if is_extension(other) => {}
            _ => self.kind = Kind::Ip,
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
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_AUTHENTICATION: u8 = 51;
const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are followed before a packet counts as malformed.
const MAX_EXTENSIONS: u32 = 6;

const TCP_SYN: u16 = 0x02;
const TCP_ACK: u16 = 0x10;
