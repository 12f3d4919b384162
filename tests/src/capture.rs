//! Recording what passes a device, as tcpdump would.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_common::packet::{Kind, Packet};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Netns;

/// Frames that are kept, in bytes; what comes beyond is a failure of the test, not a silent gap.
const CAPACITY: usize = 256 << 20;

/// How long frames may still be on their way when the recording ends.
const LINGER: Duration = Duration::from_millis(100);

/// A running recording.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    recorded: Arc<Mutex<Recording>>,
    recorder: JoinHandle<Result<()>>,
}

/// What was recorded, both directions.
#[derive(Debug, Default)]
pub struct Recording {
    frames: Vec<Vec<u8>>,
    bytes: usize,
}

impl Capture {
    /// Starts recording at a device.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        let socket = netns.run(|| packet_socket(device))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let recorded = Arc::new(Mutex::default());
        let recording = recorded.clone();
        let recorder = thread::spawn(move || record(&socket, &told, &recording));
        Ok(Self {
            stop,
            recorded,
            recorder,
        })
    }

    /// What was recorded since the last time.
    pub fn take(&self) -> Recording {
        std::mem::take(&mut *lock(&self.recorded))
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// When it outgrew what is kept.
    ///
    /// # Panics
    /// When the recording thread did.
    pub fn stop(self) -> Result<Recording> {
        thread::sleep(LINGER);
        self.stop.store(true, Ordering::Relaxed);
        self.recorder.join().expect("the recorder does not panic")?;
        Ok(std::mem::take(&mut *lock(&self.recorded)))
    }
}

impl Recording {
    /// Adds another recording.
    pub fn extend(&mut self, other: Self) {
        self.frames.extend(other.frames);
        self.bytes += other.bytes;
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether bytes occur in any frame.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.with(bytes).next().is_some()
    }

    /// The packets in which bytes occur.
    pub fn with(&self, bytes: &[u8]) -> impl Iterator<Item = Packet> {
        let has = move |frame: &&Vec<u8>| frame.windows(bytes.len()).any(|window| window == bytes);
        let frames = self.frames.iter().filter(has);
        frames.map(|frame| Packet::parse(frame.as_slice()))
    }

    /// TCP packets from or to a port.
    pub fn tcp(&self, port: u16) -> usize {
        let meant = |packet: &Packet| {
            [packet.src_port, packet.dst_port]
                .iter()
                .any(|p| p.number() == port)
        };
        self.packets()
            .filter(|packet| matches!(packet.kind, Kind::Tcp | Kind::TcpOpening) && meant(packet))
            .count()
    }

    /// The packets, as the kernel programs see them.
    pub fn packets(&self) -> impl Iterator<Item = Packet> {
        self.frames
            .iter()
            .map(|frame| Packet::parse(frame.as_slice()))
    }
}

/// Sends a frame through a device, headers as they are.
pub fn inject(netns: &Netns, device: &str, frame: &[u8]) -> Result<()> {
    let socket = netns.run(|| packet_socket(device))?;
    send(socket.as_raw_fd(), frame, MsgFlags::empty())?;
    Ok(())
}

/// An `AF_PACKET` socket of a device in the calling thread's network namespace.
fn packet_socket(device: &str) -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    bind(socket.as_raw_fd(), &link_address(device)?)?;
    Ok(socket)
}

fn link_address(device: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .with_context(|| format!("there is no device {device}"))
}

fn lock(recording: &Mutex<Recording>) -> MutexGuard<'_, Recording> {
    recording.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(socket: &OwnedFd, stop: &AtomicBool, recording: &Mutex<Recording>) -> Result<()> {
    let mut buffer = vec![0; 1 << 17];
    let mut deadline = None;
    loop {
        if deadline.is_none() && stop.load(Ordering::Relaxed) {
            // What is queued now is still read.
            deadline = Some(Instant::now() + Duration::from_secs(1));
        }
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                let mut recording = lock(recording);
                recording.bytes += length;
                let fits = recording.bytes < CAPACITY;
                anyhow::ensure!(fits, "the capture outgrew {CAPACITY} bytes");
                recording.frames.push(buffer[..length].to_vec());
            }
            Err(Errno::EAGAIN) if deadline.is_some() => return Ok(()),
            // A device that goes down comes back.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => {}
            Err(error) => return Err(error).context("cannot record"),
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Ok(());
        }
    }
}
