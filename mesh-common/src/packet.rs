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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Address resolution: never leaves the link.
    Arp,
    /// An IP packet.
    Ip(Packet),
    /// Any other EtherType.
    Other,
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
}

/// The transport header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A whole TCP header.
    Tcp(Tcp),
    /// A fragment of a TCP segment, or of something that may turn out to be one; the first one included.
    TcpFragment,
    /// `ICMPv6`, with its type (RFC 4443).
    Icmp6(u8),
    /// Anything else, by protocol number.
    Other(u8),
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
    /// The flow as the sending pod sees it.
    #[inline(always)]
    pub fn flow_of_source(&self, tcp: &Tcp) -> FlowKey {
        FlowKey {
            pod: self.src,
            peer: self.dst,
            pod_port: tcp.src_port,
            peer_port: tcp.dst_port,
        }
    }

    /// The flow as the receiving pod sees it.
    #[inline(always)]
    pub fn flow_of_destination(&self, tcp: &Tcp) -> FlowKey {
        self.flow_of_source(tcp).reversed()
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

/// Reads an Ethernet frame; `None` when its headers are cut short or contradict themselves.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B) -> Option<Frame> {
    match u16::from_be_bytes(bytes.load(12)?) {
        ETHERTYPE_IPV4 => ipv4(bytes).map(Frame::Ip),
        ETHERTYPE_IPV6 => ipv6(bytes).map(Frame::Ip),
        ETHERTYPE_ARP => Some(Frame::Arp),
        _ => Some(Frame::Other),
    }
}

/// RFC 791, with options.
#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(bytes: &B) -> Option<Packet> {
    let header: [u8; 20] = bytes.load(ETHERNET)?;
    let length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < 20 {
        return None;
    }
    let src = Addr::v4([header[12], header[13], header[14], header[15]]);
    let dst = Addr::v4([header[16], header[17], header[18], header[19]]);
    let protocol = header[9];
    // More-fragments flag or a fragment offset; "don't fragment" and the reserved bit do not matter.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let transport = transport(bytes, ETHERNET + length, protocol, fragment)?;
    Some(Packet {
        src,
        dst,
        transport,
    })
}

/// RFC 8200, with extension headers.
#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(bytes: &B) -> Option<Packet> {
    let header: [u8; 40] = bytes.load(ETHERNET)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut src = [0; 16];
    src.copy_from_slice(&header[8..24]);
    let mut dst = [0; 16];
    dst.copy_from_slice(&header[24..40]);
    // In the maps these stand for the IPv4 pod; no IPv6 packet has them (RFC 4942, 2.2).
    if Addr(src).is_v4() || Addr(dst).is_v4() {
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
    let transport = transport(bytes, offset, protocol, fragment)?;
    Some(Packet {
        src: Addr(src),
        dst: Addr(dst),
        transport,
    })
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
) -> Option<Transport> {
    if fragment {
        // Extension headers in the fragmented part may hide TCP until it is put together again.
        return Some(if protocol == PROTOCOL_TCP || is_extension(protocol) {
            Transport::TcpFragment
        } else {
            Transport::Other(protocol)
        });
    }
    match protocol {
        PROTOCOL_TCP => {
            let header: [u8; 20] = bytes.load(offset)?;
            Some(Transport::Tcp(Tcp {
                src_port: [header[0], header[1]],
                dst_port: [header[2], header[3]],
                opens: header[13] & (TCP_SYN | TCP_ACK) == TCP_SYN,
            }))
        }
        PROTOCOL_ICMPV6 => bytes.load(offset).map(|[kind]| Transport::Icmp6(kind)),
        other => Some(Transport::Other(other)),
    }
}
