//! What both ends of a tunnel share: its limits, finding out that the peer is gone, and fair reading.

use std::future::pending;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, timeout};

use super::chatter::Chatter;
use super::turn::Turn;
use crate::clock;

/// The knobs of tunnels. The defaults are the contract's; tests shorten the times.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long certificate, TCP, TLS and HTTP/2 handshakes may take, together as a client, TLS and HTTP/2 as a server.
    pub handshake: Duration,
    /// How often a PING goes out.
    pub ping_interval: Duration,
    /// How long its answer may take before the tunnel is dropped.
    pub ping_timeout: Duration,
    /// How long a client's tunnel is kept without streams.
    pub idle: Duration,
    /// How many tunnels without streams a client keeps in the name of one address.
    pub idle_per_source: usize,
    /// How many streams a client puts on one tunnel, if the peer allows as many.
    pub streams_per_tunnel: usize,
    /// How many streams a server allows on one tunnel.
    pub max_concurrent_streams: u32,
    /// How many bytes of one stream wait in memory for the tunnel; what a slow tunnel costs.
    pub send_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle: Duration::from_mins(5),
            idle_per_source: 100,
            streams_per_tunnel: 100,
            max_concurrent_streams: 200,
            send_buffer: 512 * 1024,
        }
    }
}

impl Limits {
    /// HTTP/2 as a client. No stream may be opened before the peer's SETTINGS, so that they are never exceeded.
    pub(super) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(CLIENT_HEADER_LIST)
            .max_send_buffer_size(self.send_buffer)
            .initial_max_send_streams(0)
            .enable_push(false);
        builder
    }

    /// HTTP/2 as a server.
    pub(super) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(SERVER_HEADER_LIST)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_streams(self.max_concurrent_streams);
        builder
    }

    /// Sends PINGs and returns when one stays unanswered, or the tunnel is closed; never without `pings`.
    ///
    /// The connection has to be polled meanwhile.
    pub(super) async fn keepalive(&self, pings: Option<PingPong>) {
        let Some(mut pings) = pings else {
            return pending().await;
        };
        loop {
            sleep(self.ping_interval).await;
            match timeout(self.ping_timeout, pings.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// Takes turns with others: at what a tunnel's connection reads, and at what it writes.
///
/// h2 reads and writes for as long as it can. Left alone, that fills whole windows before any stream gets to write, by
/// when the bytes have left the caches; a burst of small frames ends the tunnel by h2's own limit on them; and whoever
/// else is on the thread waits.
///
/// And ends a tunnel whose peer wants [too many answers](Chatter).
pub(super) struct Paced<S> {
    inner: S,
    reads: Turn,
    writes: Turn,
    chatter: Chatter,
}

impl<S> Paced<S> {
    /// What a server says, from its first frame on.
    pub(super) fn server(inner: S) -> Self {
        Self::new(inner, 0)
    }

    /// What a client says, which begins with the preface of RFC 9113, 3.4.
    pub(super) fn client(inner: S) -> Self {
        Self::new(inner, 24)
    }

    fn new(inner: S, preface: usize) -> Self {
        Self {
            inner,
            reads: Turn::default(),
            writes: Turn::default(),
            chatter: Chatter::behind(preface),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.reads.poll_next(cx));
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if read.is_pending() {
            self.reads = Turn::default();
        }
        ready!(read)?;
        let bytes = &buffer.filled()[before..];
        self.reads.carried(bytes.len());
        let heard = self.chatter.hear(bytes, clock::now());
        Poll::Ready(heard.map_err(|it| io::Error::new(io::ErrorKind::InvalidData, it)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.writes.poll_next(cx));
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        match &written {
            Poll::Ready(Ok(written)) => self.writes.carried(*written),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.writes = Turn::default(),
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

const STREAM_WINDOW: u32 = 4 << 20;
/// More than all streams of a tunnel may have on the way, so that those whose readers have stopped hold up no other. What they
/// hold is bounded by [`Memory`](super::Memory); smaller windows for the time that much waits would bound it sooner, but h2
/// (0.4.20) does not announce again what was read of an open stream before its window was made smaller, and such a stream
/// would stand still.
const CONNECTION_WINDOW: u32 = 1 << 30;
const MAX_FRAME: u32 = 1 << 20;
const CLIENT_HEADER_LIST: u32 = 16 << 10;
const SERVER_HEADER_LIST: u32 = 64 << 10;
