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
use super::attributes::Attributes;
use super::batch::{
    Batch, DUMP, GETCHAIN, GETTABLE, INET, NEWCHAIN, SUBSYSTEM, header, set_length,
};

/// How long the kernel may take to answer, in seconds; it answers before `send` returns.
const PATIENCE: i64 = 5;
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `struct nfgenmsg`.
const NETFILTER_HEADER: usize = 4;
/// `NFTA_CHAIN_NAME`.
const CHAIN_NAME: u16 = 3;
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

/// The names of all chains, of all tables and families.
///
/// # Errors
/// The kernel has no nftables, among others.
pub(in crate::network) fn chains() -> io::Result<Vec<String>> {
    let socket = open()?;
    let mut request = Vec::new();
    let start = header(&mut request, SUBSYSTEM << 8 | GETCHAIN, DUMP, 0, 0);
    set_length(&mut request, start);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut names = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if let Some(code) = errors(&buffer[..length]).find(|code| *code != 0) {
            return Err(io::Error::from_raw_os_error(code.saturating_neg()));
        }
        for (kind, message) in messages(&buffer[..length]) {
            match kind {
                DONE => return Ok(names),
                kind if kind == SUBSYSTEM << 8 | NEWCHAIN => names.extend(chain_name(message)),
                _ => {}
            }
        }
    }
}

/// `NFTA_CHAIN_NAME` of a message without its header.
fn chain_name(message: &[u8]) -> Option<String> {
    let mut rest = message.get(NETFILTER_HEADER..)?;
    while let Some(&[low, high, kind, flags, ..]) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if u16::from_ne_bytes([kind, flags]) == CHAIN_NAME {
            let text = rest.get(4..length)?.strip_suffix(&[0])?;
            return String::from_utf8(text.to_vec()).ok();
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
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
fn errors(received: &[u8]) -> impl Iterator<Item = i32> {
    messages(received).filter_map(|(kind, message)| {
        let code = message.first_chunk::<4>().filter(|_| kind == NLMSG_ERROR);
        code.map(|code| i32::from_ne_bytes(*code))
    })
}

/// Kind and content of each message.
fn messages(mut received: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = received.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let message = received.get(HEADER..length).unwrap_or_default();
        received = received
            .get(length.max(HEADER).next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind, message))
    })
}
