//! Reading a TCP connection with a buffer that is there only while bytes are.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Reads of one connection, each into a buffer of its own, as large as what comes.
#[derive(Debug)]
pub struct Reads {
    /// Bytes of the next buffer.
    size: usize,
}

/// Buffers grow between these; the greatest makes one DATA frame of four TLS records, and is one turn
/// on a thread that others are on, too.
const MIN: usize = 4 << 10;
const MAX: usize = 64 << 10;

impl Default for Reads {
    fn default() -> Self {
        Self { size: MIN }
    }
}

impl Reads {
    /// How many bytes the next read is ready for.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Reads once, at most `room` bytes; nothing at the end.
    ///
    /// A short read has emptied the socket; telling tokio so saves the read that would find out.
    ///
    /// # Errors
    ///
    /// The kernel's answer; `WouldBlock` if there is nothing to read yet.
    pub fn read(&mut self, tcp: &TcpStream, room: usize) -> io::Result<Bytes> {
        let size = self.size.min(room);
        let mut buffer = BytesMut::with_capacity(size).limit(size);
        let mut short = None;
        let read = tcp.try_io(Interest::READABLE, || {
            let length = tcp.try_read_buf(&mut buffer)?;
            if length == 0 || length == size {
                return Ok(length);
            }
            short = Some(length);
            Err(io::ErrorKind::WouldBlock.into())
        });
        let length = short.map_or(read, Ok)?;
        // A read that was kept short says nothing of what there was.
        if size == self.size || length < size {
            self.size = next(self.size, length);
        }
        Ok(buffer.into_inner().freeze())
    }
}

/// What fills a buffer grows the next, what leaves most of it empty shrinks it.
fn next(size: usize, length: usize) -> usize {
    if length >= size {
        (size * 4).min(MAX)
    } else if length < size / 4 {
        (size / 2).max(MIN)
    } else {
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_while_they_are_filled_and_shrink_when_they_are_not() {
        let mut size = MIN;
        for _ in 0..5 {
            size = next(size, size);
        }
        assert_eq!(size, MAX);
        assert_eq!(next(size, size / 2), size);
        for _ in 0..9 {
            size = next(size, 1);
        }
        assert_eq!(size, MIN);
    }
}
