//! What the programs tell of packets that they refused.

#![expect(
    unsafe_code,
    reason = "registering a descriptor with the runtime is unsafe"
)]

use std::io;

use aya::maps::{MapData, RingBuf};
use mesh_common::event::Refused;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes;

/// The reading end of the `EVENTS` ring buffer.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring buffer owns its descriptor, tells the same one each time, and stays in the registration.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        registered
            .map(Self)
            .map_err(|refused| refused.into_parts().1)
    }

    /// Waits until there is something to read, and reads what there is, at most `limit` events.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The runtime's; the ring buffer itself has none.
    pub async fn read(&mut self, limit: usize) -> io::Result<Vec<Refused>> {
        let mut events = Vec::new();
        let mut ready = self.0.readable_mut().await?;
        let ring = ready.get_inner_mut();
        while events.len() < limit {
            let Some(item) = ring.next() else {
                ready.clear_ready();
                break;
            };
            events.extend(Refused::read_from_bytes(&item).ok());
        }
        Ok(events)
    }
}
