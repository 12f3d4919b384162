//! EDGE: whether packets of full size reach another node, unfragmented.
//!
//! A datagram to a port where nobody listens is answered with an ICMP error, which the kernel turns into a refusal at the
//! socket: no right is needed to send it, and none on the other side to answer.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::sockopt::IpMtu;
use nix::sys::socket::{getsockopt, setsockopt};
use nix::{setsockopt_impl, sockopt_impl};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::reach::Passage;

/// Sends to a node, first a small packet, then one of `mtu` bytes. Takes three seconds at most.
pub(super) async fn passage(to: IpAddr, mtu: u32) -> Passage {
    let Ok(socket) = connect(to).await else {
        return Passage::Unknown("there is no way to it");
    };
    match send(&socket, to, SMALL).await {
        Sent::Arrived => {}
        Sent::TooLarge => return Passage::TooLarge(SMALL, largest(&socket, to)),
        Sent::Lost => return Passage::Unknown("it does not answer"),
        Sent::Unreachable => return Passage::Unknown("there is no way to it"),
    }
    match send(&socket, to, mtu).await {
        Sent::Arrived => Passage::Whole(mtu),
        Sent::TooLarge => Passage::TooLarge(mtu, largest(&socket, to)),
        Sent::Lost | Sent::Unreachable => Passage::TooLarge(mtu, None),
    }
}

/// What became of a packet.
enum Sent {
    Arrived,
    /// This node or another one on the way said so.
    TooLarge,
    Unreachable,
    Lost,
}

async fn connect(to: IpAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Never fragmented, and not kept from being sent by what was learnt before.
    match to {
        IpAddr::V4(_) => setsockopt(&socket.as_fd(), Discover, &libc::IP_PMTUDISC_PROBE)?,
        IpAddr::V6(_) => setsockopt(&socket.as_fd(), Discover6, &libc::IPV6_PMTUDISC_PROBE)?,
    }
    socket.connect(SocketAddr::new(to, PORT)).await?;
    Ok(socket)
}

/// Sends packets of a size, headers included, until there is word of one.
async fn send(socket: &UdpSocket, to: IpAddr, size: u32) -> Sent {
    let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let payload = vec![0; size.saturating_sub(headers) as usize];
    for _ in 0..ATTEMPTS {
        let word = match socket.send(&payload).await {
            // Word of the one before comes instead of sending.
            Err(error) => Err(error),
            Ok(_) => match timeout(PATIENCE, socket.recv(&mut [0; 64])).await {
                Err(_) => continue,
                Ok(word) => word,
            },
        };
        return match word {
            Ok(_) => Sent::Arrived,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Sent::Arrived,
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Sent::TooLarge,
            Err(_) => Sent::Unreachable,
        };
    }
    Sent::Lost
}

/// The largest packet that the way takes, if somebody on it told.
fn largest(socket: &UdpSocket, to: IpAddr) -> Option<u32> {
    // The library can ask for IPv4 only.
    let mtu = to
        .is_ipv4()
        .then(|| getsockopt(&socket.as_fd(), IpMtu).ok())?;
    u32::try_from(mtu?).ok()
}

sockopt_impl!(
    /// What is done with packets that are too large for the way.
    Discover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// The same for IPv6.
    Discover6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);

/// A port where nobody listens: ours is one of TCP.
const PORT: u16 = 15008;
/// Bytes that every way takes (RFC 8200 for IPv6).
const SMALL: u32 = 1280;
const ATTEMPTS: u32 = 3;
const PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_takes_all_that_fits() {
        for to in ["127.0.0.1", "::1"] {
            let to = to.parse().unwrap();
            assert_eq!(passage(to, 9000).await, Passage::Whole(9000), "{to}");
        }
        let too_large = passage("127.0.0.1".parse().unwrap(), 66_000).await;
        assert!(
            matches!(too_large, Passage::TooLarge(66_000, _)),
            "{too_large:?}"
        );
    }
}
