//! EDGE: the kernel's nfnetlink.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SndBufForce};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::TABLE;
use super::batch::{Attributes, Batch, GETTABLE, INET, SUBSYSTEM, header, set_length};

/// How long the kernel may take to answer, in seconds; it answers before `send` returns.
const PATIENCE: i64 = 5;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// Carries out a transaction in the calling thread's network namespace.
///
/// # Errors
/// The kernel's answer to the first message that it refused; then nothing has changed.
pub(in crate::network) fn commit(batch: &Batch) -> io::Result<()> {
    let socket = open()?;
    setsockopt(&socket, SndBufForce, &(2 * batch.bytes.len() + (64 << 10)))?;
    send(socket.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
    let mut acknowledged = 0;
    let mut buffer = vec![0; 64 << 10];
    while acknowledged < batch.messages {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for error in errors(&buffer[..length]) {
            match error {
                0 => acknowledged += 1,
                code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
            }
        }
    }
    Ok(())
}

/// Whether the table is there.
///
/// # Errors
/// The kernel has no nftables, among others.
pub(in crate::network) fn has_table() -> io::Result<bool> {
    let socket = open()?;
    let mut request = Vec::new();
    let start = header(&mut request, SUBSYSTEM << 8 | GETTABLE, 0, INET, 0);
    Attributes(&mut request).text(1, TABLE);
    set_length(&mut request, start);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0; 8 << 10];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    match errors(&buffer[..length]).next() {
        None | Some(0) => Ok(true),
        Some(code) if code == -(Errno::ENOENT as i32) => Ok(false),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn open() -> io::Result<OwnedFd> {
    let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let socket = socket(
        AddressFamily::Netlink,
        kind.0,
        kind.1,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    Ok(socket)
}

/// The codes of the error messages in what was received, of which 0 is an acknowledgement.
fn errors(mut received: &[u8]) -> impl Iterator<Item = i32> {
    let mut codes = Vec::new();
    while let Some(header) = received.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if let (NLMSG_ERROR, Some(code)) = (kind, received[HEADER..].first_chunk::<4>()) {
            codes.push(i32::from_ne_bytes(*code));
        }
        received = received
            .get(length.max(HEADER).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    codes.into_iter()
}
