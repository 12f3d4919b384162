//! EDGE: sockets that carry other machines' addresses.
//!
//! The agent's listeners accept what the kernel programs assign to them, whatever its destination, and its clients speak
//! with a pod's or a client's own address (`IP_TRANSPARENT`), except to endpoints that are no pods. Every socket carries the
//! agent's mark, by which `to_pod` knows its packets as judged.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::time::Duration;

use mesh_common::names::MARK_AGENT;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::random;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// How long the other end may take to answer a SYN.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports of the agent's sockets in the name of pods of its node.
///
/// The kernels of the pods, and of clients elsewhere, choose theirs from 32768 on (`ip_local_port_range`), so a connection
/// of the agent's never is one that such a kernel has already. Neither is one that the agent of the client's node has opened
/// to a pod before that was enrolled. 15001, 15006 and 15008 are the mesh's.
pub const POD_PORTS: RangeInclusive<u16> = 4096..=14_999;
/// The same in the name of tunnels' clients.
pub const CLIENT_PORTS: RangeInclusive<u16> = 16_384..=32_767;
/// How many ports are tried before none counts as free.
const PORT_ATTEMPTS: usize = 64;

/// A listener for captured connections of one family, on any free port of the loopback address.
///
/// The kernel programs assign packets to it whatever their destination. Listening on all addresses, it would also answer
/// pods that connect to the node at its port, and take its own connections on their behalf for new ones.
///
/// # Errors
///
/// The kernel's answer; the family is missing (`EAFNOSUPPORT`), or the agent lacks `CAP_NET_ADMIN`.
pub fn listener(v6: bool) -> io::Result<TcpListener> {
    let loopback: IpAddr = if v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    let socket = transparent(loopback)?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(loopback, 0).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whose address a connection of the agent carries.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The node's own, as its routes say.
    Node,
    /// That of a pod of this node, which has opened the connection.
    Pod(IpAddr),
    /// That of a tunnel's client, for its connection to a pod of this node.
    Client(IpAddr),
}

/// Connects to `destination` with the source's address as the sender's.
///
/// # Errors
///
/// The kernel's answer; `AddrInUse` when no port was found free, `TimedOut` after ten seconds of silence.
pub async fn connect(source: Source, destination: SocketAddr) -> io::Result<TcpStream> {
    let connecting = async {
        match source {
            Source::Node => attempt(marked(destination.ip())?, destination).await,
            Source::Pod(address) => connect_from(address, POD_PORTS, destination).await,
            Source::Client(address) => connect_from(address, CLIENT_PORTS, destination).await,
        }
    };
    let stream = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s"))??;
    prepare(&stream)?;
    Ok(stream)
}

/// Connects from an address and a random port of a range.
///
/// The kernel chooses no port outside of `ip_local_port_range`, not even by `IP_LOCAL_PORT_RANGE`. So the port is bound,
/// and shared with sockets that have another destination.
async fn connect_from(
    address: IpAddr,
    ports: RangeInclusive<u16>,
    destination: SocketAddr,
) -> io::Result<TcpStream> {
    for _ in 0..PORT_ATTEMPTS {
        let port = ports.start() + u16::try_from(random::below(ports.len())).expect("a port");
        let socket = transparent(address)?;
        socket.set_reuse_address(true)?;
        let bound = socket.bind(&SocketAddr::new(address, port).into());
        let connected = match bound {
            Ok(()) => attempt(socket, destination).await,
            Err(error) => Err(error),
        };
        match connected.as_ref().map_err(io::Error::kind) {
            // A process of the node listens at the port, or the connection exists already.
            Err(io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            _ => return connected,
        }
    }
    let message = format!("no port of {address} is free towards {destination}");
    Err(io::Error::new(io::ErrorKind::AddrInUse, message))
}

async fn attempt(socket: Socket, destination: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(socket.into())
        .connect(destination)
        .await
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
