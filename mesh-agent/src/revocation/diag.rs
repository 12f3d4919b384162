//! `sock_diag(7)`: finds a TCP socket of the calling thread's network namespace, and ends its connection.
//!
//! A connection is ended by the cookie under which it was found: asked for by its addresses alone, the kernel would take a
//! listener where there is no connection (any more).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Error;
use crate::dataplane::Refused;

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Of `linux/netlink.h`.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

const TCP: u8 = 6;
/// `INET_DIAG_NOCOOKIE`.
const ANY: Cookie = [0xff; 8];
/// Socket states (`net/tcp_states.h`) in which there is nothing to end.
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
/// How long the kernel may take to answer, in seconds; it answers before `send` returns.
const PATIENCE: i64 = 1;

/// What tells a socket from a later one with the same addresses.
type Cookie = [u8; 8];

/// An open connection to the kernel's `tcp_diag`.
pub(super) struct SockDiag(OwnedFd);

impl SockDiag {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel has no `tcp_diag`.
    pub(super) fn open() -> Result<Self, Error> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        );
        let socket = match socket {
            Err(Errno::EPROTONOSUPPORT) => return Err(Error::Unsupported),
            other => other.map_err(|errno| Error::Netlink(errno.into()))?,
        };
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))
            .map_err(|errno| Error::Netlink(errno.into()))?;
        let diag = Self(socket);
        // Without tcp_diag no socket is found, which must not be taken for none being there. A dump of no states tells.
        let id = [0; 48];
        match diag.ask(&request(BY_FAMILY, NLM_F_DUMP, false, 0, &id)) {
            Ok(_) => Ok(diag),
            Err(error) if is(&error, Errno::ENOENT) => Err(Error::Unsupported),
            Err(error) => Err(Error::Netlink(error)),
        }
    }

    /// Ends a connection with a reset to its other end; `false` if there is none (any more).
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel has no `SOCK_DESTROY` (`CONFIG_INET_DIAG_DESTROY`).
    pub(super) fn end(&self, connection: &Refused) -> Result<bool, Error> {
        match self.find_and_destroy(connection) {
            Ok(ended) => Ok(ended),
            Err(error) if is(&error, Errno::ENOENT) => Ok(false),
            Err(error) if is(&error, Errno::EOPNOTSUPP) => Err(Error::Unsupported),
            Err(error) => Err(Error::Netlink(error)),
        }
    }

    fn find_and_destroy(&self, connection: &Refused) -> io::Result<bool> {
        let v6 = !connection.flow.peer.is_v4();
        let found = self.ask(&request(BY_FAMILY, 0, v6, u32::MAX, &id(connection, ANY)))?;
        // A `struct inet_diag_msg`: family, state, two timers, and the id, which ends with the cookie.
        let state = found.get(1).copied();
        let cookie = found.get(44..52).and_then(|it| Cookie::try_from(it).ok());
        let (Some(state), Some(cookie)) = (state, cookie) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if matches!(state, TIME_WAIT | CLOSE | LISTEN) {
            return Ok(false);
        }
        let id = id(connection, cookie);
        self.ask(&request(DESTROY, NLM_F_ACK, v6, u32::MAX, &id))?;
        Ok(true)
    }

    /// Sends a request and returns what follows the header of its answer.
    fn ask(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.0.as_raw_fd();
        send(socket, request, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(socket, &mut answer, MsgFlags::empty())?;
        let (header, body) = answer[..length]
            .split_first_chunk::<HEADER>()
            .ok_or(io::ErrorKind::InvalidData)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        match (kind, body.first_chunk::<4>()) {
            (NLMSG_ERROR | NLMSG_DONE, Some(code)) if i32::from_ne_bytes(*code) < 0 => {
                let code = i32::from_ne_bytes(*code);
                Err(io::Error::from_raw_os_error(code.saturating_neg()))
            }
            _ => Ok(body.to_vec()),
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// A netlink message with a `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, v6: bool, states: u32, id: &[u8; 48]) -> Vec<u8> {
    const LENGTH: u32 = 72;
    let family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and port number: one request is under way at a time, and the kernel knows the socket.
    message.extend([0; 8]);
    message.extend([family as u8, TCP, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    message
}

/// A `struct inet_diag_sockid`, as the pod's socket has it.
fn id(connection: &Refused, cookie: Cookie) -> [u8; 48] {
    let flow = &connection.flow;
    let mut id = [0; 48];
    id[0..2].copy_from_slice(&flow.pod_port.number().to_be_bytes());
    id[2..4].copy_from_slice(&flow.peer_port.number().to_be_bytes());
    for (at, address) in [(4, connection.own), (20, flow.peer)] {
        match IpAddr::from(address) {
            IpAddr::V4(it) => id[at..at + 4].copy_from_slice(&it.octets()),
            IpAddr::V6(it) => id[at..at + 16].copy_from_slice(&it.octets()),
        }
    }
    id[40..48].copy_from_slice(&cookie);
    id
}
