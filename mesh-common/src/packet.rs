//! Bounds-checked views of Ethernet, IPv4, IPv6 and TCP headers.

use crate::addr::Addr;
use crate::maps::FlowKey;

/// Bytes of a packet from the Ethernet header on, wherever they are kept.
pub trait Bytes {
    /// Copies `N` bytes from `offset`, or `None` when the packet ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..)?.first_chunk().copied()
    }
}

/// What a frame carries, as far as steering cares.
///
/// Every field has a value whatever the class: an enum with fields would leave some undefined, LLVM copies those too, and
/// the verifier refuses to read a register that was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub class: Class,
    /// The packet of [`Class::Ip`], otherwise [`Packet::EMPTY`].
    pub packet: Packet,
}

/// Classes of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// An IP packet.
    Ip,
    /// Address resolution: never leaves the link.
    Arp,
    /// Any other `EtherType`, or a VLAN tag.
    Other,
    /// Headers that are cut short or contradict themselves.
    Malformed,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// The transport.
    pub transport: Transport,
    /// The header of [`Transport::Tcp`].
    pub tcp: Tcp,
    /// The type of [`Transport::Icmp6`] (RFC 4443).
    pub icmp6_type: u8,
}

/// The transport of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A whole TCP header.
    Tcp,
    /// A fragment of a TCP segment, or of something that may turn out to be one; the first one included.
    TcpFragment,
    /// `ICMPv6`.
    Icmp6,
    /// Anything else.
    Other,
}

/// The part of a TCP header that steering reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port, big-endian.
    pub src_port: [u8; 2],
    /// Destination port, big-endian.
    pub dst_port: [u8; 2],
    /// Whether SYN is set and ACK is not: the first packet of a connection.
    pub opens: bool,
}

impl Packet {
    /// No packet.
    pub const EMPTY: Self = Self {
        src: Addr::NONE,
        dst: Addr::NONE,
        transport: Transport::Other,
        tcp: Tcp {
            src_port: [0; 2],
            dst_port: [0; 2],
            opens: false,
        },
        icmp6_type: 0,
    };

    /// The flow of a TCP packet as the sending pod sees it.
    #[inline(always)]
    pub fn flow_of_source(&self) -> FlowKey {
        FlowKey {
            pod: self.src,
            peer: self.dst,
            pod_port: self.tcp.src_port,
            peer_port: self.tcp.dst_port,
        }
    }

    /// The flow of a TCP packet as the receiving pod sees it.
    #[inline(always)]
    pub fn flow_of_destination(&self) -> FlowKey {
        self.flow_of_source().reversed()
    }
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

const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// Reads an Ethernet frame.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B) -> Frame {
    let mut packet = Packet::EMPTY;
    let class = match bytes.load(12).map(u16::from_be_bytes) {
        Some(ETHERTYPE_IPV4) => ipv4(bytes, &mut packet),
        Some(ETHERTYPE_IPV6) => ipv6(bytes, &mut packet),
        Some(ETHERTYPE_ARP) => Some(Class::Arp),
        Some(_) => Some(Class::Other),
        None => None,
    };
    match class {
        Some(class) => Frame { class, packet },
        None => Frame {
            class: Class::Malformed,
            packet: Packet::EMPTY,
        },
    }
}

/// RFC 791, with options.
#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Option<Class> {
    let header: [u8; 20] = bytes.load(ETHERNET)?;
    let length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < 20 {
        return None;
    }
    packet.src = Addr::v4([header[12], header[13], header[14], header[15]]);
    packet.dst = Addr::v4([header[16], header[17], header[18], header[19]]);
    let protocol = header[9];
    // More-fragments flag or a fragment offset; "don't fragment" and the reserved bit do not matter.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    transport(bytes, ETHERNET + length, protocol, fragment, packet)
}

/// RFC 8200, with extension headers.
#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Option<Class> {
    let header: [u8; 40] = bytes.load(ETHERNET)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    packet.src.0.copy_from_slice(&header[8..24]);
    packet.dst.0.copy_from_slice(&header[24..40]);
    // In the maps these stand for the IPv4 pod; no IPv6 packet has them (RFC 4942, 2.2).
    if packet.src.is_v4() || packet.dst.is_v4() {
        return None;
    }

    let mut protocol = header[6];
    let mut offset = ETHERNET + 40;
    let mut fragment = false;
    let mut followed = 0;
    while followed < MAX_EXTENSIONS {
        let length = match protocol {
            PROTOCOL_HOP_BY_HOP | PROTOCOL_ROUTING | PROTOCOL_DESTINATION_OPTIONS => {
                let [next, units]: [u8; 2] = bytes.load(offset)?;
                protocol = next;
                (u32::from(units) + 1) * 8
            }
            PROTOCOL_AUTHENTICATION => {
                let [next, units]: [u8; 2] = bytes.load(offset)?;
                protocol = next;
                (u32::from(units) + 2) * 4
            }
            PROTOCOL_FRAGMENT => {
                let [next, _, high, low]: [u8; 4] = bytes.load(offset)?;
                protocol = next;
                // An atomic fragment (offset 0, no more to come; RFC 6946) is a whole packet.
                fragment = u16::from_be_bytes([high, low]) & 0xfff9 != 0;
                8
            }
            _ => break,
        };
        // What stands behind a fragment header may be data, whatever its bytes say.
        if fragment {
            break;
        }
        offset += length;
        followed += 1;
    }
    if is_extension(protocol) && !fragment {
        return None;
    }
    transport(bytes, offset, protocol, fragment, packet)
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        PROTOCOL_HOP_BY_HOP
            | PROTOCOL_ROUTING
            | PROTOCOL_DESTINATION_OPTIONS
            | PROTOCOL_AUTHENTICATION
            | PROTOCOL_FRAGMENT
    )
}

#[inline(always)]
fn transport<B: Bytes + ?Sized>(
    bytes: &B,
    offset: u32,
    protocol: u8,
    fragment: bool,
    packet: &mut Packet,
) -> Option<Class> {
    if fragment {
        // Extension headers in the fragmented part may hide TCP until it is put together again.
        if protocol == PROTOCOL_TCP || is_extension(protocol) {
            packet.transport = Transport::TcpFragment;
        }
        return Some(Class::Ip);
    }
    match protocol {
        PROTOCOL_TCP => {
            let header: [u8; 20] = bytes.load(offset)?;
            packet.transport = Transport::Tcp;
            packet.tcp = Tcp {
                src_port: [header[0], header[1]],
                dst_port: [header[2], header[3]],
                opens: header[13] & (TCP_SYN | TCP_ACK) == TCP_SYN,
            };
        }
        PROTOCOL_ICMPV6 => {
            [packet.icmp6_type] = bytes.load(offset)?;
            packet.transport = Transport::Icmp6;
        }
        _ => {}
    }
    Some(Class::Ip)
}
