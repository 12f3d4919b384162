//! A stream of bytes that shows any loss, repetition or exchange: blocks that begin with their number.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use crate::wait::uninterrupted;

/// Size of a block in bytes.
const BLOCK: usize = 64 << 10;

/// Sends so many bytes of the pattern and ends that side, while expecting as many and the end of the other.
///
/// # Errors
/// Of the connection; `InvalidData` when what comes is not the pattern.
pub fn exchange(stream: &TcpStream, bytes: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, bytes));
        let received = expect(stream, bytes);
        let sent = sender
            .join()
            .map_err(|_| io::Error::other("the sender panicked"))?;
        received.and(sent)
    })
}

fn send(mut stream: &TcpStream, bytes: u64) -> io::Result<()> {
    let mut block = template();
    for (number, length) in blocks(bytes) {
        block[..8].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&block[..length])?;
    }
    stream.shutdown(Shutdown::Write)
}

fn expect(mut stream: &TcpStream, bytes: u64) -> io::Result<()> {
    let mut wanted = template();
    let mut block = vec![0; BLOCK];
    for (number, length) in blocks(bytes) {
        wanted[..8].copy_from_slice(&number.to_be_bytes());
        stream.read_exact(&mut block[..length])?;
        if block[..length] != wanted[..length] {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("block {number} is damaged"),
            ));
        }
    }
    match uninterrupted(|| stream.read(&mut block))? {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more than was sent",
        )),
    }
}

/// Number and length of every block.
fn blocks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    let full = BLOCK as u64;
    let rest = usize::try_from(bytes % full).expect("less than a block");
    let last = (rest != 0).then_some((bytes / full, rest));
    (0..bytes / full).map(|number| (number, BLOCK)).chain(last)
}

fn template() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_be_bytes());
    }
    bytes
}
