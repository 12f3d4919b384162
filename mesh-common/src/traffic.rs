//! What a TCP connection has carried, counted in its record as its segments pass.
//!
//! Bytes are told from sequence numbers, not added up from packets: a segment that is sent twice counts once, one that was
//! missed is made good by the next, and what stands at the end is exact.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::addr::Addr;
use crate::maps::{Flow, Opener};
use crate::packet::Packet;

/// A table in `FLOWS`: a flow's record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Record {
    /// How it travels.
    pub flow: Flow,
    /// Bits of [`state`].
    pub state: u32,
    /// Sequence number of the first byte of the pod, and of its peer; valid with [`state::POD`] and [`state::PEER`].
    pub first: [u32; 2],
    /// When it was recorded: microseconds of the kernel's monotonic clock, which wrap around.
    pub recorded: u32,
    /// From the first packet to the one that completed the handshake, in microseconds; 0 until that one.
    pub handshake: u32,
    /// When an end was done last, or the connection was reset, as [`Record::recorded`]; 0 until then.
    pub ended: u32,
    /// Zero.
    pub zero: u32,
    /// Bytes that the pod has sent, and its peer. Of a flow between two pods of this node, each record has its pod's alone.
    pub bytes: [u64; 2],
}
abi!(Record, size = 56, align = 8);

/// Bits of [`Record::state`].
pub mod state {
    /// The pod has sent something.
    pub const POD: u32 = 1;
    /// The peer has sent something.
    pub const PEER: u32 = 2;
    /// The pod has sent all it will.
    pub const POD_DONE: u32 = 4;
    /// The peer has sent all it will.
    pub const PEER_DONE: u32 = 8;
    /// The handshake is complete, and the connection counts as opened.
    pub const OPENED: u32 = 16;
    /// The connection was reset.
    pub const CLOSED: u32 = 32;
}

/// Which end of a flow has sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The pod whose record it is.
    Pod = 0,
    /// The other one.
    Peer = 1,
}

impl End {
    /// Its bit of [`Record::state`] once it has sent all it will.
    #[inline(always)]
    pub const fn done(self) -> u32 {
        match self {
            Self::Pod => state::POD_DONE,
            Self::Peer => state::PEER_DONE,
        }
    }
}

/// What a segment has brought about: bits of [`Record::take`]'s answer.
pub mod news {
    /// The connection is open from here on.
    pub const OPENED: u32 = 1;
    /// The end that sent it has sent all it will.
    pub const DONE: u32 = 2;
    /// The connection is over.
    pub const RESET: u32 = 4;
}

impl Record {
    /// The record of a flow without packets.
    #[inline(always)]
    pub const fn new(flow: Flow, recorded: u32) -> Self {
        Self {
            flow,
            state: 0,
            first: [0; 2],
            recorded,
            handshake: 0,
            ended: 0,
            zero: 0,
            bytes: [0; 2],
        }
    }

    /// Counts a segment with `length` bytes of data, and tells what it has brought about.
    #[inline(always)]
    pub fn take(&mut self, end: End, packet: &Packet, length: u32, now: impl Fn() -> u32) -> u32 {
        if self.state & state::CLOSED != 0 {
            return 0;
        }
        let (started, opener) = match end {
            End::Pod => (state::POD, Opener::Pod),
            End::Peer => (state::PEER, Opener::Peer),
        };
        let done = end.done();
        let opens = packet.has(Packet::SYN);
        let from = packet.sequence.wrapping_add(u32::from(opens));
        if self.state & started == 0 {
            self.state |= started;
            self.first[end as usize] = from;
        }
        if length > 0 {
            let reaches = from.wrapping_add(length);
            let counted = self.bytes[end as usize];
            let offset = reaches.wrapping_sub(self.first[end as usize]);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "sequence numbers wrap around"
            )]
            let more = offset.wrapping_sub(counted as u32).cast_signed();
            if more > 0 {
                self.bytes[end as usize] = counted + u64::from(more.cast_unsigned());
            }
        }
        if packet.has(Packet::RST) {
            self.ended = now() | 1;
            return news::RESET;
        }
        let mut brought = 0;
        if !opens && self.flow.opener == opener as u32 && self.state & state::OPENED == 0 {
            self.state |= state::OPENED;
            // Never 0, which stands for unknown.
            self.handshake = now().wrapping_sub(self.recorded) | 1;
            brought |= news::OPENED;
        }
        if packet.has(Packet::FIN) && self.state & done == 0 {
            self.state |= done;
            self.ended = now() | 1;
            brought |= news::DONE;
        }
        brought
    }
}

/// `TRAFFIC`: connections of a local pod with one peer, that travelled alike.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable,
)]
pub struct TrafficKey {
    /// Host-side interface index of the pod's veth: the client's, of connections between two pods of this node.
    pub ifindex: u32,
    /// A number of [`Way`].
    pub way: u32,
    /// The peer's address; [`Addr::NONE`] of all that are no workloads.
    pub peer: Addr,
}
abi!(TrafficKey, size = 24, align = 4);

/// How connections travelled, and who opened them.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the short cut to a pod of this node, opened by the pod of the key.
    Local = 1,
    /// Through the node's stack in plaintext, opened by the pod.
    PlainFromPod = 2,
    /// The same, opened by the peer.
    PlainToPod = 3,
}

/// Value of `TRAFFIC`: totals, bytes as the opener sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Traffic {
    /// Connections whose handshake was completed.
    pub opened: u64,
    /// Connections that were reset before.
    pub failed: u64,
    /// Bytes of openers that are done; what others have sent so far stands in their records.
    pub sent: u64,
    /// Bytes of the other ends that are done.
    pub received: u64,
    /// Sum of [`Record::handshake`] over the opened ones.
    pub handshakes: u64,
}
abi!(Traffic, size = 40, align = 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Kind;

    fn record(opener: Opener) -> Record {
        let flow = Flow {
            neighbour: 0,
            opener: opener as u32,
            revision: 1,
        };
        Record::new(flow, 1_000)
    }

    fn segment(sequence: u32, flags: u32) -> Packet {
        Packet {
            sequence,
            tcp: flags,
            ..Packet::without_ip(Kind::Tcp)
        }
    }

    #[test]
    fn a_connection_is_opened_by_its_opener_and_counted_from_sequence_numbers() {
        let mut it = record(Opener::Pod);
        let syn = segment(u32::MAX - 4, Packet::SYN);
        assert_eq!(it.take(End::Pod, &syn, 0, || 0), 0);
        assert_eq!(it.take(End::Peer, &segment(7, Packet::SYN), 0, || 0), 0);
        let ack = segment(u32::MAX - 3, 0);
        assert_eq!(it.take(End::Pod, &ack, 0, || 1_040), news::OPENED);
        assert_eq!(it.handshake, 41);
        // Over the end of the numbers; twice; out of order.
        for (offset, length) in [(0, 100), (0, 100), (300, 50), (100, 200)] {
            let data = segment((u32::MAX - 3).wrapping_add(offset), 0);
            assert_eq!(it.take(End::Pod, &data, length, || 0), 0);
        }
        assert_eq!(it.bytes, [350, 0]);
        it.take(End::Peer, &segment(8, 0), 5, || 0);
        // A probe of what was acknowledged already.
        it.take(End::Peer, &segment(12, 0), 1, || 0);
        assert_eq!(it.bytes, [350, 5]);
        let fin = segment((u32::MAX - 3).wrapping_add(350), Packet::FIN);
        assert_eq!(it.take(End::Pod, &fin, 10, || 0), news::DONE);
        assert_eq!(it.take(End::Pod, &fin, 10, || 0), 0, "told once");
        assert_eq!(it.bytes, [360, 5]);
    }

    #[test]
    fn more_than_sequence_numbers_can_tell_is_counted() {
        let mut it = record(Opener::Peer);
        it.take(End::Peer, &segment(99, Packet::SYN), 0, || 0);
        let (mut at, length) = (100_u32, 1 << 20);
        for _ in 0..5 << 10 {
            it.take(End::Peer, &segment(at, 0), length, || 0);
            at = at.wrapping_add(length);
        }
        assert_eq!(it.bytes, [0, 5 << 30]);
    }

    #[test]
    fn a_refused_connection_never_opens() {
        let mut it = record(Opener::Pod);
        it.take(End::Pod, &segment(1, Packet::SYN), 0, || 0);
        assert_eq!(
            it.take(End::Peer, &segment(0, Packet::RST), 0, || 0),
            news::RESET
        );
        assert_eq!(it.state & state::OPENED, 0);
        it.state |= state::CLOSED;
        assert_eq!(it.take(End::Pod, &segment(2, 0), 9, || 0), 0);
        assert_eq!(it.bytes, [0, 0]);
    }
}
