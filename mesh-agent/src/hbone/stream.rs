//! An open stream, as both ends hold it.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::client::Lease;

/// An open stream of a tunnel; dropped before its end, it is reset, so that the peer sees a failure and not an end.
pub struct Stream {
    pub(super) send: SendStream<Bytes>,
    pub(super) recv: RecvStream,
    /// Both directions have ended by themselves.
    pub(super) ended: bool,
    /// A client's place on its tunnel.
    _lease: Option<Lease>,
}

impl Stream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, lease: Option<Lease>) -> Self {
        Self {
            send,
            recv,
            ended: false,
            _lease: lease,
        }
    }
}

#[cfg(test)]
impl Stream {
    /// Sends one DATA frame of just these bytes, within the window.
    pub(super) async fn send_frame(&mut self, bytes: Bytes) {
        while self.send.capacity() < bytes.len() {
            self.send.reserve_capacity(bytes.len());
            if self.send.capacity() < bytes.len() {
                std::future::poll_fn(|cx| self.send.poll_capacity(cx))
                    .await
                    .expect("open")
                    .expect("open");
            }
        }
        self.send.send_data(bytes, false).expect("open");
    }

    /// Ends the sending direction.
    pub(super) fn finish(&mut self) {
        self.send.send_data(Bytes::new(), true).expect("open");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            // RFC 9113, 8.5. CANCEL, which h2 would send, means a clean end by the contract.
            self.send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}
