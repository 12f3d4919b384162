//! Joins a stream of a tunnel to a TCP connection, both ways, until both are done or one breaks.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::{collections::VecDeque, future::pending, future::poll_fn};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::client::Lease;

/// An open stream of a tunnel; dropped before its end, it is reset, so that the peer sees a failure and not an end.
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Both directions have ended by themselves.
    ended: bool,
    /// A client's place on its tunnel.
    _lease: Option<Lease>,
}

impl Stream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, lease: Option<Lease>) -> Self {
        Self {
            send,
            recv,
            ended: false,
            _lease: lease,
        }
    }
}

#[cfg(test)]
impl Stream {
    /// Sends one DATA frame of just these bytes, within the window.
    pub(super) async fn send_frame(&mut self, bytes: Bytes) {
        while self.send.capacity() < bytes.len() {
            self.send.reserve_capacity(bytes.len());
            if self.send.capacity() < bytes.len() {
                poll_fn(|cx| self.send.poll_capacity(cx))
                    .await
                    .expect("open")
                    .expect("open");
            }
        }
        self.send.send_data(bytes, false).expect("open");
    }

    /// Ends the sending direction.
    pub(super) fn finish(&mut self) {
        self.send.send_data(Bytes::new(), true).expect("open");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            // RFC 9113, 8.5. CANCEL, which h2 would send, means a clean end by the contract.
            self.send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

/// Bytes copied so far; readable while the copy runs.
#[derive(Debug, Default)]
pub struct Progress {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Progress {
    /// Bytes taken from TCP and given to the tunnel.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes taken from the tunnel and given to TCP.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// What a copy came to.
#[derive(Debug)]
pub struct Transfer {
    /// Bytes taken from TCP and given to the tunnel.
    pub sent: u64,
    /// Bytes taken from the tunnel and given to TCP.
    pub received: u64,
    /// Whether both directions ended cleanly.
    pub outcome: Result<(), Broken>,
}

impl Transfer {
    /// A stream that failed before a byte was copied.
    pub(super) fn failed(error: h2::Error) -> Self {
        Self {
            sent: 0,
            received: 0,
            outcome: Err(Broken::Tunnel(error)),
        }
    }
}

/// What broke a connection; the side that did not break has been reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The TCP connection failed or was reset.
    #[error("the TCP connection failed")]
    Tcp(#[source] io::Error),
    /// The peer reset the stream: its own TCP connection failed, or its policy changed.
    #[error("the peer reset the stream with {0}")]
    Reset(Reason),
    /// The tunnel under the stream failed.
    #[error("the tunnel failed")]
    Tunnel(#[source] h2::Error),
    /// We ended it: what was allowed is no longer.
    #[error("the connection is no longer allowed")]
    Revoked,
}

/// Copies both ways until both have ended, one breaks, or `revoked` is cancelled.
///
/// FIN and `END_STREAM` become each other, each direction by itself. A failure resets the other side: `RST_STREAM`
/// with `CONNECT_ERROR`, or a TCP RST. So does dropping the future. Memory is bounded by the stream's window towards
/// TCP, and by [`Limits::send_buffer`](super::Limits::send_buffer) towards the tunnel; an idle connection holds no buffer.
pub async fn copy(
    tcp: TcpStream,
    stream: Stream,
    progress: &Progress,
    revoked: &CancellationToken,
) -> Transfer {
    // Small writes must not wait for acknowledgements. A socket on which this fails fails the copy, too.
    let _ = tcp.set_nodelay(true);
    let mut pair = Pair { tcp, stream };
    let outcome = pair.run(progress, revoked).await;
    pair.stream.ended = outcome.is_ok();
    Transfer {
        sent: progress.sent(),
        received: progress.received(),
        outcome,
    }
}

struct Pair {
    tcp: TcpStream,
    stream: Stream,
}

impl Pair {
    async fn run(
        &mut self,
        progress: &Progress,
        revoked: &CancellationToken,
    ) -> Result<(), Broken> {
        let Self { tcp, stream } = self;
        let outgoing = outgoing(tcp, &mut stream.send, progress);
        let incoming = incoming(tcp, &mut stream.recv, progress);
        tokio::select! {
            both = async { tokio::try_join!(outgoing, incoming) } => both.map(|((), ())| ()),
            error = failure(tcp) => Err(Broken::Tcp(error)),
            () = revoked.cancelled() => Err(Broken::Revoked),
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.stream.ended {
            // Fails only if the socket is gone already.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

/// Waits for a reset that neither direction would notice: both may be waiting for the tunnel.
async fn failure(tcp: &TcpStream) -> io::Error {
    match tcp
        .ready(Interest::ERROR)
        .await
        .and_then(|_| tcp.take_error())
    {
        Ok(Some(error)) | Err(error) => error,
        // A read or write has got the error first, and will tell.
        Ok(None) => pending().await,
    }
}

/// TCP to tunnel. Reads first and asks the tunnel for room then, so that idle streams reserve none of its window.
async fn outgoing(
    tcp: &TcpStream,
    send: &mut SendStream<Bytes>,
    progress: &Progress,
) -> Result<(), Broken> {
    let mut size = MIN_READ;
    loop {
        tokio::select! {
            biased;
            reset = poll_fn(|cx| send.poll_reset(cx)) => return reset.map_err(Broken::Tunnel).and_then(ended_by),
            ready = tcp.readable() => ready.map_err(Broken::Tcp)?,
        }
        let mut buffer = BytesMut::with_capacity(size);
        let length = match read(tcp, &mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Broken::Tcp(error)),
        };
        size = next_size(size, length);
        let mut rest = buffer.freeze();
        while !rest.is_empty() {
            let Some(room) = room(send, rest.len()).await? else {
                return Ok(());
            };
            let part = rest.split_to(room.min(rest.len()));
            progress
                .sent
                .fetch_add(part.len() as u64, Ordering::Relaxed);
            if let Err(error) = send.send_data(part, false) {
                return why(send, error);
            }
        }
    }
    send.send_data(Bytes::new(), true)
        .or_else(|error| why(send, error))
}

/// Reads once, into the buffer's spare room.
///
/// A short read has emptied the socket; telling tokio so saves the read that would find out.
fn read(tcp: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    let mut short = None;
    let read = tcp.try_io(Interest::READABLE, || {
        let length = tcp.try_read_buf(buffer)?;
        if length == 0 || buffer.len() == buffer.capacity() {
            return Ok(length);
        }
        short = Some(length);
        Err(io::ErrorKind::WouldBlock.into())
    });
    short.map_or(read, Ok)
}

/// The buffer for the next read: what fills it grows it, what leaves most of it empty shrinks it.
fn next_size(size: usize, length: usize) -> usize {
    if length >= size {
        (size * 4).min(MAX_READ)
    } else if length < size / 4 {
        (size / 2).max(MIN_READ)
    } else {
        size
    }
}

/// Waits until the tunnel takes some of `want` bytes; none if the peer wants no more.
async fn room(send: &mut SendStream<Bytes>, want: usize) -> Result<Option<usize>, Broken> {
    send.reserve_capacity(want);
    loop {
        match send.capacity() {
            0 => {}
            room => return Ok(Some(room)),
        }
        match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return why(send, error).map(|()| None),
            None => return why(send, Reason::STREAM_CLOSED.into()).map(|()| None),
        }
    }
}

/// Why sending failed: the peer's reset if there was one, `error` otherwise.
fn why(send: &mut SendStream<Bytes>, error: h2::Error) -> Result<(), Broken> {
    match send.poll_reset(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(Ok(reason)) => ended_by(reason),
        Poll::Ready(Err(error)) => Err(Broken::Tunnel(error)),
        Poll::Pending => Err(Broken::Tunnel(error)),
    }
}

/// By contract a reset with `NO_ERROR` or `CANCEL` is an end, any other is a failure.
fn ended_by(reason: Reason) -> Result<(), Broken> {
    match reason {
        Reason::NO_ERROR | Reason::CANCEL => Ok(()),
        reason => Err(Broken::Reset(reason)),
    }
}

/// Tunnel to TCP. The window is given back as bytes are written, so a slow reader stops its sender.
async fn incoming(
    tcp: &TcpStream,
    recv: &mut RecvStream,
    progress: &Progress,
) -> Result<(), Broken> {
    let mut queue = Queue::default();
    let mut ended = false;
    while !ended || !queue.is_empty() {
        poll_fn(|cx| {
            while !ended {
                match recv.poll_data(cx) {
                    Poll::Ready(Some(Ok(bytes))) => queue.push(bytes),
                    Poll::Ready(Some(Err(error))) => {
                        end(error)?;
                        ended = true;
                    }
                    Poll::Ready(None) => ended = true,
                    Poll::Pending if queue.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            if queue.is_empty() {
                return Poll::Ready(Ok(()));
            }
            tcp.poll_write_ready(cx).map_err(Broken::Tcp)
        })
        .await?;
        if queue.is_empty() {
            break;
        }
        let written = match queue.write(tcp) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Broken::Tcp(error)),
        };
        progress
            .received
            .fetch_add(written as u64, Ordering::Relaxed);
        // Fails only once the stream is closed, when there is no window to care for.
        let _ = recv.flow_control().release_capacity(written);
    }
    SockRef::from(tcp)
        .shutdown(Shutdown::Write)
        .map_err(Broken::Tcp)
}

/// An error from the receiving half: a reset that means an end, or a failure.
fn end(error: h2::Error) -> Result<(), Broken> {
    match error.reason() {
        Some(reason) if error.is_reset() && error.is_remote() => ended_by(reason),
        _ => Err(Broken::Tunnel(error)),
    }
}

/// Bytes received and not yet written, at most a stream's window of them.
///
/// Everything is taken from h2 as it comes, because h2 bounds the number of small frames it holds, and ends the whole
/// tunnel beyond that. Small frames are joined, so that a flood of them costs no more than their bytes.
#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Small frames that came after `chunks`.
    joined: BytesMut,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.joined.is_empty()
    }

    fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL && !self.is_empty() {
            self.joined.extend_from_slice(&bytes);
            if self.joined.len() >= JOINED {
                self.seal();
            }
        } else if !bytes.is_empty() {
            self.seal();
            self.chunks.push_back(bytes);
        }
    }

    fn seal(&mut self) {
        if !self.joined.is_empty() {
            self.chunks
                .push_back(std::mem::take(&mut self.joined).freeze());
        }
    }

    /// Writes as much as one call takes, and forgets it.
    fn write(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        self.seal();
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            used += 1;
        }
        let written = tcp.try_write_vectored(&slices[..used])?;
        let mut left = written;
        while let Some(first) = self.chunks.front_mut() {
            if left < first.len() {
                first.advance(left);
                break;
            }
            left -= first.len();
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            // Idle connections hold no memory.
            self.chunks = VecDeque::new();
        }
        Ok(written)
    }
}

/// Reads grow between these; the greatest makes one DATA frame of 16 TLS records.
const MIN_READ: usize = 4 << 10;
const MAX_READ: usize = 256 << 10;
/// Frames below this are joined into chunks of at least `JOINED`.
const SMALL: usize = 2 << 10;
const JOINED: usize = 16 << 10;
/// Chunks written by one call.
const SLICES: usize = 32;
