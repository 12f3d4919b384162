//! What has come from a tunnel and waits to be written to TCP.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;

use super::{Memory, TooMuch};

/// Bytes received and not yet written, at most a stream's window of them.
///
/// Everything is taken from h2 as it comes, because h2 bounds the number of small frames it holds, and ends the whole
/// tunnel beyond that. Small frames are joined, so that a flood of them costs no more than their bytes.
#[derive(Default)]
pub(super) struct Queue {
    chunks: VecDeque<Bytes>,
    /// Small frames that came after `chunks`.
    joined: BytesMut,
    /// What all of them come to.
    length: usize,
    /// Where that is counted.
    memory: Option<Memory>,
}

impl Queue {
    /// An empty one, whose bytes are counted.
    pub(super) fn counted(memory: Option<Memory>) -> Self {
        let mut queue = Self::default();
        queue.memory = memory;
        queue
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.joined.is_empty()
    }

    /// Fails when the bytes are one too many; the queue is to be dropped then.
    pub(super) fn push(&mut self, bytes: Bytes) -> Result<(), TooMuch> {
        self.length += bytes.len();
        let counted = self
            .memory
            .as_ref()
            .map_or(Ok(()), |it| it.take(bytes.len()));
        if bytes.len() < SMALL && !self.is_empty() {
            self.joined.extend_from_slice(&bytes);
            if self.joined.len() >= JOINED {
                self.seal();
            }
        } else if !bytes.is_empty() {
            self.seal();
            self.chunks.push_back(bytes);
        }
        counted
    }

    fn seal(&mut self) {
        if !self.joined.is_empty() {
            self.chunks
                .push_back(std::mem::take(&mut self.joined).freeze());
        }
    }

    /// Writes as much as one call takes, and forgets it.
    pub(super) fn write(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        self.seal();
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            used += 1;
        }
        let written = tcp.try_write_vectored(&slices[..used])?;
        self.forget(written);
        let mut left = written;
        while let Some(first) = self.chunks.front_mut() {
            if left < first.len() {
                first.advance(left);
                break;
            }
            left -= first.len();
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            // Idle connections hold no memory.
            self.chunks = VecDeque::new();
        }
        Ok(written)
    }

    fn forget(&mut self, bytes: usize) {
        self.length -= bytes;
        if let Some(memory) = &self.memory {
            memory.give_back(bytes);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.forget(self.length);
    }
}

/// Frames below this are joined into chunks of at least `JOINED`.
const SMALL: usize = 2 << 10;
const JOINED: usize = 16 << 10;
/// Chunks written by one call.
const SLICES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_frames_are_joined_once_something_waits() {
        let mut queue = Queue::default();
        let mut expect = Vec::new();
        for (length, count) in [(10, 1), (100, 500), (SMALL, 2), (0, 3), (1, 10)] {
            for _ in 0..count {
                let bytes = vec![u8::try_from(count % 251).unwrap(); length];
                expect.extend_from_slice(&bytes);
                queue.push(bytes.into()).unwrap();
            }
        }
        queue.seal();
        // The first, 50000 bytes in four, the two that are not small, the last ten in one.
        assert_eq!(queue.chunks.len(), 1 + 4 + 2 + 1);
        assert_eq!(queue.chunks.make_contiguous().concat(), expect);
        assert!(!queue.is_empty());
    }
}
