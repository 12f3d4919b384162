//! Joins a stream of a tunnel to a TCP connection, both ways, until both are done or one breaks.

use std::future::{pending, poll_fn};
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::queue::Queue;
use super::reads::Reads;
use super::turn::Turn;
use super::{Memory, Stream, TooMuch};

/// Bytes copied so far; readable while the copy runs.
#[derive(Debug, Default)]
pub struct Progress {
    sent: AtomicU64,
    received: AtomicU64,
    memory: Option<Memory>,
}

impl Progress {
    /// Nothing yet; what waits for a reader is counted.
    pub fn counted(memory: Memory) -> Self {
        Self {
            memory: Some(memory),
            ..Self::default()
        }
    }

    /// Counts bytes of the one copy that sends; others may only read.
    pub fn add_sent(&self, bytes: usize) {
        add(&self.sent, bytes);
    }

    /// Counts bytes of the one copy that receives; others may only read.
    pub fn add_received(&self, bytes: usize) {
        add(&self.received, bytes);
    }

    /// Bytes taken from TCP and given to the tunnel.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes taken from the tunnel and given to TCP.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// There is one writer, so that nothing has to be locked for it.
fn add(counter: &AtomicU64, bytes: usize) {
    let sum = counter.load(Ordering::Relaxed) + bytes as u64;
    counter.store(sum, Ordering::Relaxed);
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
    /// We ended it: nobody reads what comes, and there is no memory to keep it in.
    #[error("the reader is too slow")]
    Memory(#[source] TooMuch),
}

/// The two connections of a copy; reset when dropped before both directions have ended.
pub struct Pair {
    tcp: TcpStream,
    stream: Stream,
}

impl Pair {
    /// An application's connection and the stream that is to carry it.
    pub fn new(tcp: TcpStream, stream: Stream) -> Self {
        // Small writes must not wait for acknowledgements. A socket on which this fails will fail the copy, too.
        let _ = tcp.set_nodelay(true);
        Self { tcp, stream }
    }

    /// Copies both ways until both have ended, one breaks, or `revoked` is cancelled.
    ///
    /// FIN and `END_STREAM` become each other, each direction by itself. A failure resets the other side: `RST_STREAM`
    /// with `CONNECT_ERROR`, or a TCP RST. So does dropping the pair. Memory is bounded by the stream's window towards
    /// TCP, and by [`Limits::send_buffer`](super::Limits::send_buffer) towards the tunnel, for as long as that has room for
    /// it; an idle connection holds no buffer.
    pub async fn copy(&mut self, progress: &Progress, revoked: &CancellationToken) -> Transfer {
        let Self { tcp, stream } = self;
        let Stream { send, recv, .. } = stream;
        // Made where they are polled: a future that is moved into another has room in both.
        let both = async {
            tokio::try_join!(outgoing(tcp, send, progress), incoming(tcp, recv, progress))
        };
        let outcome = tokio::select! {
            both = both => both.map(|((), ())| ()),
            error = failure(tcp) => Err(Broken::Tcp(error)),
            () = revoked.cancelled() => Err(Broken::Revoked),
        };
        self.stream.ended = outcome.is_ok();
        Transfer {
            sent: progress.sent(),
            received: progress.received(),
            outcome,
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

/// TCP to tunnel. What the tunnel does not take yet stays in the kernel, and streams without bytes reserve no window.
async fn outgoing(
    tcp: &TcpStream,
    send: &mut SendStream<Bytes>,
    progress: &Progress,
) -> Result<(), Broken> {
    let mut reads = Reads::default();
    let mut turn = Turn::default();
    loop {
        turn.next().await;
        // Polled, as a future that waits for a socket is larger than all else here.
        let reset = poll_fn(|cx| match send.poll_reset(cx) {
            Poll::Ready(reset) => Poll::Ready(reset.map(Some).map_err(Broken::Tunnel)),
            Poll::Pending => tcp
                .poll_read_ready(cx)
                .map_ok(|()| None)
                .map_err(Broken::Tcp),
        });
        if let Some(reason) = reset.await? {
            return ended_by(reason);
        }
        let Some(room) = room(send, reads.size()).await? else {
            return Ok(());
        };
        let bytes = match reads.read(tcp, room) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                send.reserve_capacity(0);
                continue;
            }
            Err(error) => return Err(Broken::Tcp(error)),
        };
        turn.carried(bytes.len());
        progress.add_sent(bytes.len());
        if let Err(error) = send.send_data(bytes, false) {
            return why(send, error);
        }
        // What was reserved and not read.
        send.reserve_capacity(0);
    }
    send.send_data(Bytes::new(), true)
        .or_else(|error| why(send, error))
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
    let mut queue = Queue::counted(progress.memory.clone());
    let mut ended = false;
    let mut turn = Turn::default();
    while !ended || !queue.is_empty() {
        turn.next().await;
        poll_fn(|cx| {
            while !ended {
                match recv.poll_data(cx) {
                    Poll::Ready(Some(Ok(bytes))) => queue.push(bytes).map_err(Broken::Memory)?,
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
        turn.carried(written);
        progress.add_received(written);
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
