//! Round trips of TCP connections, as the kernel has measured them: `sock_diag(7)` tells all sockets of the namespace.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`, and the flags of a dump.
const BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// A `struct inet_diag_msg` (`linux/inet_diag.h`).
const MESSAGE: usize = 72;
const TCP: u8 = 6;
/// Sockets in `TCP_ESTABLISHED`, with their `INET_DIAG_INFO`.
const ESTABLISHED: u32 = 1 << 1;
const INFO: u16 = 2;
const WITH_INFO: u8 = 1 << (INFO - 1);
/// Where `tcpi_rtt` is in a `struct tcp_info` (`linux/tcp.h`).
const RTT: usize = 68;
/// How long the kernel may take to answer, in seconds.
const PATIENCE: i64 = 1;

/// The shortest smoothed round trip between two addresses, ours first, in microseconds; of connections with a port at either
/// end.
///
/// # Errors
/// The kernel cannot tell.
pub fn round_trips(port: u16) -> io::Result<HashMap<(IpAddr, IpAddr), u32>> {
    let mut known = HashMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        dump(family, |message| {
            let Some((ports, ends, round_trip)) = read(message) else {
                return;
            };
            if ports.contains(&port) && round_trip > 0 {
                let least: &mut u32 = known.entry(ends).or_insert(round_trip);
                *least = round_trip.min(*least);
            }
        })?;
    }
    Ok(known)
}

/// Gives each message of a dump of sockets to `each`, without its header.
fn dump(family: AddressFamily, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    let descriptor = socket.as_raw_fd();
    send(descriptor, &request(family), MsgFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = recv(descriptor, &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let Some(message) = rest.get(HEADER..length) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(io::Error::other("the kernel refuses to list sockets")),
                _ => each(message),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A netlink message with a `struct inet_diag_req_v2` for all sockets of a family.
fn request(family: AddressFamily) -> Vec<u8> {
    const LENGTH: u32 = 72;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, TCP, WITH_INFO, 0]);
    message.extend(ESTABLISHED.to_ne_bytes());
    message.extend([0; 48]);
    message
}

/// Ports, addresses and round trip of a `struct inet_diag_msg` and the attributes behind it; ours first.
fn read(message: &[u8]) -> Option<([u16; 2], (IpAddr, IpAddr), u32)> {
    let port = |at: usize| {
        Some(u16::from_be_bytes([
            *message.get(at)?,
            *message.get(at + 1)?,
        ]))
    };
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = message.get(at..at + 16)?;
        Some(match i32::from(*message.first()?) {
            nix::libc::AF_INET => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
            _ => Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_canonical(),
        })
    };
    let mut rest = message.get(MESSAGE..)?;
    loop {
        let head = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let body = rest.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == INFO {
            let round_trip = body.get(RTT..)?.first_chunk::<4>()?;
            let round_trip = u32::from_ne_bytes(*round_trip);
            return Some((
                [port(4)?, port(6)?],
                (address(8)?, address(24)?),
                round_trip,
            ));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_has_a_round_trip() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue;
            };
            let to = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(to).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
            let known = round_trips(to.port()).unwrap();
            let round_trip = known.get(&(to.ip(), to.ip()));
            assert!(round_trip.is_some_and(|it| *it < 1_000_000), "{known:?}");
        }
    }
}
