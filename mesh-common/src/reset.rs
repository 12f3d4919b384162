//! The TCP reset that answers a refused segment (RFC 9293, 3.5.2), ready for the wire.
//!
//! Headers are arrays of words whose bytes are in network order.

use crate::packet::Packet;

/// A TCP header without options.
pub type Header = [u32; 5];

const FIN: u32 = 0x01;
const SYN: u32 = 0x02;
const RST: u32 = 0x04;
const ACK: u32 = 0x10;
const TCP: u32 = 6;
const HOP_LIMIT: u32 = 64;
/// Length of a [`Header`] in bytes.
const LENGTH: u32 = 20;

/// The header of the reset for a segment: `header` as it came, `length` bytes from there to the packet's end.
///
/// `None` for a reset, which is never answered.
#[inline(always)]
pub fn answer(packet: &Packet, header: &Header, length: u32) -> Option<Header> {
    let word = u32::from_be(header[3]);
    let flags = word >> 16;
    if flags & RST != 0 {
        return None;
    }
    let (sequence, acknowledged, out) = if flags & ACK != 0 {
        (u32::from_be(header[2]), 0, RST)
    } else {
        let data = length.wrapping_sub((word >> 28) * 4);
        let controls = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = u32::from_be(header[1])
            .wrapping_add(data)
            .wrapping_add(controls);
        (0, next, RST | ACK)
    };
    let ports = u32::from(packet.dst_port.number()) << 16 | u32::from(packet.src_port.number());
    let control = 5 << 28 | out << 16;
    let sum =
        pseudo(packet) + halves(ports) + halves(sequence) + halves(acknowledged) + halves(control);
    let checksum = u32::from(fold(sum)) << 16;
    Some([
        ports.to_be(),
        sequence.to_be(),
        acknowledged.to_be(),
        control.to_be(),
        checksum.to_be(),
    ])
}

/// The IPv4 header before the reset.
#[inline(always)]
pub fn ipv4(packet: &Packet) -> [u32; 5] {
    let first = 0x4500_0000 | (20 + LENGTH);
    let dont_fragment = 0x4000;
    let protocol = HOP_LIMIT << 24 | TCP << 16;
    let (src, dst) = (packet.dst.0[3], packet.src.0[3]);
    let addresses = halves(u32::from_be(src)) + halves(u32::from_be(dst));
    let sum = halves(first) + halves(dont_fragment) + halves(protocol) + addresses;
    let protocol = protocol | u32::from(fold(sum));
    [
        first.to_be(),
        dont_fragment.to_be(),
        protocol.to_be(),
        src,
        dst,
    ]
}

/// The IPv6 header before the reset.
#[inline(always)]
pub fn ipv6(packet: &Packet) -> [u32; 10] {
    let second = LENGTH << 16 | TCP << 8 | HOP_LIMIT;
    let mut header = [0; 10];
    header[0] = 0x6000_0000_u32.to_be();
    header[1] = second.to_be();
    header[2..6].copy_from_slice(&packet.dst.0);
    header[6..].copy_from_slice(&packet.src.0);
    header
}

/// The sum of the pseudo header; that of the answer is the same as the segment's, but for the length.
#[inline(always)]
fn pseudo(packet: &Packet) -> u32 {
    let mut sum = TCP + LENGTH;
    let from = if packet.src.is_v4() { 3 } else { 0 };
    let mut index = from;
    while index < 4 {
        sum += halves(u32::from_be(packet.src.0[index]));
        sum += halves(u32::from_be(packet.dst.0[index]));
        index += 1;
    }
    sum
}

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// RFC 1071.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Addr, Port};
    use crate::packet::Kind;

    fn packet(src: Addr, dst: Addr) -> Packet {
        let (src_port, dst_port) = (Port::new(40_000), Port::new(80));
        Packet {
            src,
            dst,
            src_port,
            dst_port,
            ..Packet::without_ip(Kind::TcpOpening)
        }
    }

    fn v4() -> Packet {
        packet([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
    }

    fn segment(sequence: u32, acknowledged: u32, flags: u32) -> Header {
        [
            0,
            sequence.to_be(),
            acknowledged.to_be(),
            (5 << 28 | flags << 16).to_be(),
            0,
        ]
    }

    #[test]
    fn answers_as_the_standard_says() {
        let check = |flags, length, sequence, acknowledged, out| {
            let answer = answer(&v4(), &segment(1000, 77, flags), length)
                .unwrap()
                .map(u32::from_be);
            assert_eq!(answer[0], (80 << 16) + 40_000);
            assert_eq!(
                (answer[1], answer[2], answer[3] >> 16 & 0xff),
                (sequence, acknowledged, out)
            );
        };
        check(SYN, 20, 0, 1001, RST | ACK);
        check(SYN, 25, 0, 1006, RST | ACK);
        check(FIN, 20, 0, 1001, RST | ACK);
        check(0, 30, 0, 1010, RST | ACK);
        check(ACK, 120, 77, 0, RST);
        check(SYN | ACK, 20, 77, 0, RST);
        assert_eq!(answer(&v4(), &segment(1, 2, RST), 20), None);
        assert_eq!(answer(&v4(), &segment(1, 2, RST | ACK), 20), None);
    }

    #[test]
    fn checksums_add_up() {
        let total = |words: &[u32]| {
            words
                .iter()
                .map(|word| halves(u32::from_be(*word)))
                .sum::<u32>()
        };
        let v6 = packet(Addr([0x20, 1, 2, 3]), Addr([0x20, 4, 5, u32::MAX]));
        for packet in [v4(), v6] {
            let answer = answer(&packet, &segment(u32::MAX, 5, SYN), 20).unwrap();
            assert_eq!(fold(pseudo(&packet) + total(&answer)), 0);
        }
        assert_eq!(fold(total(&ipv4(&v4()))), 0);
    }
}
