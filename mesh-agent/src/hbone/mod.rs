//! EDGE: tunnels. HTTP/2 CONNECT streams over mutual TLS to port 15008, both ends of them (HBONE).
//!
//! `connect`, `headers` and `pool` are CORE: what a CONNECT says, and which tunnel it goes on. `client` and `server` do
//! the I/O, `copy` joins a stream to the application's TCP connection. Invariant: bytes that were cut off never look
//! like a clean end to either application; whatever is not `END_STREAM` or FIN on one side is a reset on the other.

mod chatter;
mod client;
mod connect;
mod copy;
mod dial;
mod error;
mod headers;
mod memory;
mod open;
mod pool;
mod queue;
mod reads;
mod server;
mod stream;
mod tunnel;
mod turn;

#[cfg(test)]
mod tests;

pub use client::{Dialled, Observer, Opened, Pool};
pub use connect::{ConnectHead, ConnectRequest, Refusal};
pub use copy::{Broken, Pair, Progress, Transfer};
pub use dial::{Dial, Dialing};
pub use error::{OpenError, ServeError, Stage};
pub use headers::{Baggage, Forwarded, NotForwarded, WorkloadKind};
pub use memory::{Memory, TooMuch, Total};
pub use open::{Counted, Listed, Open, OpenTunnels, Opener, Seen, Streams};
pub use pool::Key;
pub use reads::Reads;
pub use server::{Accept, Peer, Upstream, authenticate, serve};
pub use stream::Stream;
pub use tunnel::Limits;
pub use turn::Turn;
