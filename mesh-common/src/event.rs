//! What the programs tell the agent of a packet that they refused.

use zerocopy::native_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::addr::{Addr, Port};

/// A record of the `EVENTS` ring buffer: one refused packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Refused {
    /// When: nanoseconds of the kernel's monotonic clock.
    pub at: U64,
    /// A number of [`Hook`](crate::verdict::Hook).
    pub hook: u32,
    /// A number of [`Outcome`](crate::verdict::Outcome).
    pub outcome: u32,
    /// The interface at which it was refused.
    pub ifindex: u32,
    /// IP protocol number; 0 when it is not IP.
    pub protocol: u32,
    /// Source address; [`Addr::NONE`] when it is not IP.
    pub src: Addr,
    /// Destination address; [`Addr::NONE`] when it is not IP.
    pub dst: Addr,
    /// Source port; 0 where there is none.
    pub src_port: Port,
    /// Destination port; 0 where there is none.
    pub dst_port: Port,
}
abi!(Refused, size = 60, align = 4);
