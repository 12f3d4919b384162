//! Whether one end may talk to another: what a process in a pod gets to know of it, over TCP, UDP and ICMP.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::app::echoes;
use crate::netns::Netns;
use crate::pod::Pod;
use crate::wait::uninterrupted;

/// How long an answer may take; loopback and veths are faster by orders of magnitude.
const ANSWER: Duration = Duration::from_secs(3);

/// Within what a refusal has to come: before a segment that got no answer is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);

/// How long a datagram's answer is waited for where there may be none.
const SILENCE: Duration = Duration::from_millis(400);

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The other end answered.
    Open,
    /// Refused at once: `EPERM`, `ECONNREFUSED`, or `ECONNRESET`.
    Refused,
    /// Nothing came in time.
    Silent,
}

/// Opens a connection from a network namespace to an echoing application, and uses it.
///
/// # Errors
/// Any but those that a [`Reach`] tells.
pub fn tcp(from: &Netns, to: SocketAddr) -> io::Result<Reach> {
    let began = Instant::now();
    match from.run(|| converse(to)) {
        Ok(()) => Ok(Reach::Open),
        Err(error) => match error.kind() {
            ErrorKind::PermissionDenied
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
                if began.elapsed() < AT_ONCE =>
            {
                Ok(Reach::Refused)
            }
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(Reach::Silent),
            _ => Err(error),
        },
    }
}

fn converse(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    echoes(&stream, b"may I?")?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Sends a datagram from a network namespace to a [`UdpEcho`], from a port that was not used before.
///
/// # Errors
/// The socket's; that no one listens among them.
pub fn udp(from: &Netns, to: SocketAddr) -> io::Result<Reach> {
    from.run(|| {
        let any = match to {
            SocketAddr::V4(_) => "0.0.0.0:0",
            SocketAddr::V6(_) => "[::]:0",
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.send(b"may I?")?;
        heard(uninterrupted(|| socket.recv(&mut [0; 16])))
    })
}

/// Sends an ICMP echo request from a network namespace.
///
/// # Errors
/// The socket's.
pub fn ping(from: &Netns, to: IpAddr) -> io::Result<Reach> {
    from.run(|| {
        let (domain, protocol, request, reply) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
        };
        let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        socket.send(&echo_request(request))?;
        let deadline = Instant::now() + SILENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut packet = [0; 128];
            let received = uninterrupted(|| socket.read(&mut packet));
            // A raw IPv4 socket gets the IP header, too.
            let header = if to.is_ipv4() { 20 } else { 0 };
            if received.is_err() || packet[header] == reply {
                return heard(received);
            }
        }
    })
}

/// An echo request under an identifier that was not used before. Of `ICMPv6` the kernel writes the checksum.
fn echo_request(kind: u8) -> [u8; 8] {
    static LAST: AtomicU16 = AtomicU16::new(0x100);
    let identifier = LAST.fetch_add(1, Ordering::Relaxed);
    let checksum = !(u16::from(kind) << 8).wrapping_add(identifier);
    let ([a, b], [c, d]) = (checksum.to_be_bytes(), identifier.to_be_bytes());
    [kind, 0, a, b, c, d, 0, 0]
}

fn heard(received: io::Result<usize>) -> io::Result<Reach> {
    match received {
        Ok(_) => Ok(Reach::Open),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(Reach::Silent)
        }
        Err(error) => Err(error),
    }
}

/// An application that sends every datagram back. Dropping it ends it.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Starts it in a pod, for both families.
    pub fn start(pod: &Pod<'_>, port: u16) -> io::Result<Self> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let socket = pod.netns().run(|| UdpSocket::bind(any))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let worker = thread::spawn(move || {
            let mut datagram = [0; 1500];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut datagram) {
                    // What goes wrong shows at the client.
                    let _ = socket.send_to(&datagram[..length], from);
                }
            }
        });
        Ok(Self {
            stop,
            worker: Some(worker),
        })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
