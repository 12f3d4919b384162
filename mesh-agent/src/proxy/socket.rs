//! EDGE: sockets that carry other machines' addresses.
//!
//! The agent's listeners accept what the kernel programs assign to them, whatever its destination, and its clients speak
//! with a pod's or a client's own address (`IP_TRANSPARENT`), except to endpoints that are no pods. Every socket carries the
//! agent's mark, by which `to_pod` knows its packets as judged.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mesh_common::names::MARK_AGENT;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// How long the other end may take to answer a SYN.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A listener for captured connections of one family, on any free port: only assigned packets are meant to reach it.
///
/// # Errors
///
/// The kernel's answer; the family is missing (`EAFNOSUPPORT`), or the agent lacks `CAP_NET_ADMIN`.
pub fn listener(v6: bool) -> io::Result<TcpListener> {
    let any: IpAddr = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = transparent(any)?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(any, 0).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whose address a connection of the agent carries.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The node's own, as its routes say.
    Node,
    /// A pod's, of this node or another.
    Pod(IpAddr),
}

/// Connects to `destination` with the source's address as the sender's, and any free port of it.
///
/// # Errors
///
/// The kernel's answer, or `TimedOut` after ten seconds of silence.
pub async fn connect(source: Source, destination: SocketAddr) -> io::Result<TcpStream> {
    let socket = match source {
        Source::Node => marked(destination.ip())?,
        Source::Pod(address) => bound(address)?,
    };
    let socket = TcpSocket::from_std_stream(socket.into());
    let stream = timeout(CONNECT_TIMEOUT, socket.connect(destination))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s"))??;
    prepare(&stream)?;
    Ok(stream)
}

fn bound(address: IpAddr) -> io::Result<Socket> {
    let socket = transparent(address)?;
    // The port is chosen at connect(), so that one port serves many destinations.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    Ok(socket)
}

/// Sets what every connection of the agent has: no delay, and a check every three minutes that the other end lives.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    let period = Duration::from_mins(3);
    let keepalive = TcpKeepalive::new()
        .with_time(period)
        .with_interval(period)
        .with_retries(9);
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive)
}

/// Closes a connection with a reset, so that the other end learns that its connection failed.
pub fn reset(stream: TcpStream) {
    // A socket that is beyond resetting is closed all the same.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// A socket that may have any address of a family.
fn transparent(family: IpAddr) -> io::Result<Socket> {
    let socket = marked(family)?;
    if family.is_ipv6() {
        socket.set_ip_transparent_v6(true)?;
    } else {
        socket.set_ip_transparent_v4(true)?;
    }
    Ok(socket)
}

/// A socket of a family with the agent's mark.
fn marked(family: IpAddr) -> io::Result<Socket> {
    let domain = if family.is_ipv6() {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_mark(MARK_AGENT)?;
    Ok(socket)
}
