//! Ethernet frames made by hand, right or wrong as a test wants them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Flags of a TCP header (RFC 9293, 3.1).
pub mod flag {
    /// Ends one direction.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends both directions.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// Protocol numbers (IANA "protocol-numbers").
pub mod protocol {
    #![expect(missing_docs, reason = "the names are the registry's")]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;

    /// That of ICMP for the family of an address.
    pub fn icmp(address: std::net::IpAddr) -> u8 {
        if address.is_ipv4() { ICMP } else { ICMPV6 }
    }
}

const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A frame that carries one IP packet.
#[derive(Clone, Debug)]
pub struct Frame {
    src: IpAddr,
    dst: IpAddr,
    macs: [u8; 12],
    protocol: u8,
    transport: Vec<u8>,
    /// IPv4 options, a multiple of four bytes.
    options: Vec<u8>,
    /// IPv6 extension headers: number, and bytes with a first byte that is overwritten by the next number.
    extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4: flags and offset of the fragment.
    fragment: u16,
}

impl Frame {
    /// A TCP segment with the flags of [`flag`] and no payload.
    ///
    /// # Panics
    /// When the two addresses are not of one family.
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        let mut header = vec![0; 20];
        header[..2].copy_from_slice(&src.port().to_be_bytes());
        header[2..4].copy_from_slice(&dst.port().to_be_bytes());
        header[4..8].copy_from_slice(&0x1000_0000_u32.to_be_bytes());
        header[8..12].copy_from_slice(&0x2000_0001_u32.to_be_bytes());
        header[12] = 5 << 4;
        header[13] = flags;
        header[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
        Self::ip(src.ip(), dst.ip(), protocol::TCP, header)
    }

    /// A UDP datagram.
    ///
    /// # Panics
    /// When the two addresses are not of one family.
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        let mut header = vec![0; 8];
        header[..2].copy_from_slice(&src.port().to_be_bytes());
        header[2..4].copy_from_slice(&dst.port().to_be_bytes());
        header[5] = 8;
        Self::ip(src.ip(), dst.ip(), protocol::UDP, header)
    }

    /// An SCTP packet without chunks, and without a checksum.
    ///
    /// # Panics
    /// When the two addresses are not of one family.
    pub fn sctp(src: SocketAddr, dst: SocketAddr) -> Self {
        let mut header = vec![0; 12];
        header[..2].copy_from_slice(&src.port().to_be_bytes());
        header[2..4].copy_from_slice(&dst.port().to_be_bytes());
        Self::ip(src.ip(), dst.ip(), protocol::SCTP, header)
    }

    /// An ICMP message of the addresses' family, of a type and with an echo's identifier.
    ///
    /// # Panics
    /// When the two addresses are not of one family.
    pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, identifier: u16) -> Self {
        let [high, low] = identifier.to_be_bytes();
        let number = protocol::icmp(src);
        Self::ip(src, dst, number, vec![kind, 0, 0, 0, high, low, 0, 1])
    }

    /// An `ICMPv6` message of a type, with an empty body.
    pub fn icmp6(src: Ipv6Addr, dst: Ipv6Addr, kind: u8) -> Self {
        let message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        Self::ip(src.into(), dst.into(), protocol::ICMPV6, message)
    }

    /// An IP packet with any transport.
    ///
    /// # Panics
    /// When the two addresses are not of one family.
    pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, transport: Vec<u8>) -> Self {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "one family a packet");
        Self {
            src,
            dst,
            macs: [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1],
            protocol,
            transport,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0,
        }
    }

    /// Sets destination and source MAC addresses.
    #[must_use]
    pub fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.macs[..6].copy_from_slice(&dst);
        self.macs[6..].copy_from_slice(&src);
        self
    }

    /// Adds data behind the transport header.
    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.transport.extend(bytes);
        self
    }

    /// Adds TCP options: `words` times four no-operation bytes. To be called before there is data.
    #[must_use]
    pub fn tcp_options(mut self, words: usize) -> Self {
        self.transport.extend(vec![1; words * 4]);
        self.transport[12] = low_byte(self.transport.len() / 4) << 4;
        self
    }

    /// Adds IPv4 options: `words` times four no-operation bytes.
    #[must_use]
    pub fn options(mut self, words: usize) -> Self {
        self.options = vec![1; words * 4];
        self
    }

    /// Adds an IPv6 extension header of the smallest size behind those already there.
    #[must_use]
    pub fn extension(self, number: u8) -> Self {
        // The length field counts units of eight bytes beyond the first; for AH, of four bytes less two.
        let (size, units) = if number == protocol::AUTHENTICATION {
            (12, 1)
        } else {
            (8, 0)
        };
        let mut header = vec![0; size];
        header[1] = units;
        self.extension_bytes(number, header)
    }

    /// Makes the packet a fragment: `offset` in bytes, a multiple of eight.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        if self.src.is_ipv4() {
            self.fragment = (offset / 8) | (u16::from(more) << 13);
            return self;
        }
        let mut header = vec![0; 8];
        header[2..4].copy_from_slice(&(offset | u16::from(more)).to_be_bytes());
        self.extension_bytes(protocol::FRAGMENT, header)
    }

    fn extension_bytes(mut self, number: u8, header: Vec<u8>) -> Self {
        self.extensions.push((number, header));
        self
    }

    /// Number of the transport.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The bytes, with right checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = self.macs.to_vec();
        let transport = self.checked_transport();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                frame.extend(self.ipv4(src, dst, transport.len()));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend(self.ipv6(src, dst, transport.len()));
            }
            _ => unreachable!("one family a packet"),
        }
        frame.extend(transport);
        frame
    }

    /// The bytes with an 802.1Q tag.
    pub fn tagged(&self, vlan: u16) -> Vec<u8> {
        let mut frame = self.bytes();
        let [high, low] = vlan.to_be_bytes();
        frame.splice(12..12, [0x81, 0x00, high, low]);
        frame
    }

    /// The bytes without the last `missing`.
    ///
    /// # Panics
    /// When the frame is not that long.
    pub fn cut(&self, missing: usize) -> Vec<u8> {
        let mut frame = self.bytes();
        frame.truncate(frame.len().checked_sub(missing).expect("shorter"));
        frame
    }

    fn ipv4(&self, src: Ipv4Addr, dst: Ipv4Addr, payload: usize) -> Vec<u8> {
        let mut header = vec![0; 20];
        let length = header.len() + self.options.len();
        header[0] = 4 << 4 | low_byte(length / 4);
        header[2..4].copy_from_slice(&word(length + payload).to_be_bytes());
        header[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        header[8] = 64;
        header[9] = self.protocol;
        header[12..16].copy_from_slice(&src.octets());
        header[16..20].copy_from_slice(&dst.octets());
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        header
    }

    fn ipv6(&self, src: Ipv6Addr, dst: Ipv6Addr, payload: usize) -> Vec<u8> {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut header = vec![0; 40];
        header[0] = 6 << 4;
        header[4..6].copy_from_slice(&word(extensions + payload).to_be_bytes());
        header[7] = 64;
        header[8..24].copy_from_slice(&src.octets());
        header[24..40].copy_from_slice(&dst.octets());
        let numbers = self.extensions.iter().map(|(number, _)| *number);
        let mut numbers = numbers.chain([self.protocol]);
        header[6] = numbers.next().unwrap_or(self.protocol);
        for (_, bytes) in &self.extensions {
            let start = header.len();
            header.extend(bytes);
            header[start] = numbers.next().unwrap_or(self.protocol);
        }
        header
    }

    /// The transport with its checksum, which covers addresses, length and protocol (RFC 9293, 3.1; RFC 8200, 8.1).
    fn checked_transport(&self) -> Vec<u8> {
        let mut bytes = self.transport.clone();
        let at = match self.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            protocol::ICMPV6 => 2,
            _ => return bytes,
        };
        if bytes.len() < at + 2 {
            return bytes;
        }
        let mut covered = Vec::new();
        for address in [self.src, self.dst] {
            match address {
                IpAddr::V4(v4) => covered.extend(v4.octets()),
                IpAddr::V6(v6) => covered.extend(v6.octets()),
            }
        }
        covered.extend(word(bytes.len()).to_be_bytes());
        covered.extend([0, self.protocol]);
        covered.extend(&bytes);
        let sum = checksum(&covered);
        bytes[at..at + 2].copy_from_slice(&sum);
        bytes
    }
}

/// A frame of another `EtherType` with nothing in it.
pub fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut frame = vec![0xff; ETHERNET + 46];
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

/// Asserts the checksums of a TCP segment without options or extension headers.
///
/// # Panics
/// When one is wrong, or a length is not what the frame has.
#[track_caller]
pub fn assert_checksums(frame: &[u8]) {
    let packet = &frame[ETHERNET..];
    let (addresses, length, transport) = if packet[0] >> 4 == 4 {
        assert_eq!(checksum(&packet[..20]), [0, 0], "the IPv4 header's");
        assert_eq!(&packet[2..4], word(packet.len()).to_be_bytes());
        (&packet[12..20], packet.len() - 20, &packet[20..])
    } else {
        let length = packet.len() - 40;
        assert_eq!(&packet[4..6], word(length).to_be_bytes());
        (&packet[8..40], length, &packet[40..])
    };
    let mut covered = addresses.to_vec();
    covered.extend(word(length).to_be_bytes());
    covered.extend([0, protocol::TCP]);
    covered.extend(transport);
    assert_eq!(checksum(&covered), [0, 0], "the TCP header's");
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!word(sum as usize)).to_be_bytes()
}

fn word(length: usize) -> u16 {
    u16::try_from(length).expect("test packets are short")
}

fn low_byte(value: usize) -> u8 {
    u8::try_from(value).expect("an IPv4 header has at most 15 words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_rfc_1071() {
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&example), (!0xddf2_u16).to_be_bytes());
    }

    #[test]
    fn a_header_with_its_checksum_sums_to_nothing() {
        let [src, dst] = ["10.0.0.1:1", "10.0.0.2:2"].map(|a| a.parse().unwrap());
        let frame = Frame::tcp(src, dst, flag::SYN).options(3).bytes();
        assert_eq!(checksum(&frame[ETHERNET..ETHERNET + 32]), [0, 0]);
        assert_eq!(frame.len(), ETHERNET + 32 + 20);
    }
}
