//! EDGE: bytes between two TCP connections.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

use super::socket;

/// Bytes read from the kernel at once.
const BUFFER: usize = 64 << 10;

/// What a copy came to.
pub(super) struct Spliced {
    /// Bytes given to `b`.
    pub(super) sent: u64,
    /// Bytes given to `a`.
    pub(super) received: u64,
    /// Whether both directions ended cleanly.
    pub(super) outcome: io::Result<()>,
}

/// Copies both ways until both ends are done; half-close travels as half-close, a failure as a reset of both.
pub(super) async fn splice(a: TcpStream, b: TcpStream) -> Spliced {
    let (mut a, mut b) = (Counted::new(a), Counted::new(b));
    let copied = copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER).await;
    let (sent, received) = (b.written, a.written);
    if copied.is_err() {
        socket::reset(a.stream);
        socket::reset(b.stream);
    }
    Spliced {
        sent,
        received,
        outcome: copied.map(|_| ()),
    }
}

/// A connection that counts what is written to it, whatever becomes of it.
struct Counted {
    stream: TcpStream,
    written: u64,
}

impl Counted {
    fn new(stream: TcpStream) -> Self {
        Self { stream, written: 0 }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written += written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connect, listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn a_failed_copy_tells_what_it_carried() {
        let ((mut client, a), (b, mut server)) = (pair().await, pair().await);
        let talk = async {
            client.write_all(b"question").await.unwrap();
            let mut question = [0; 8];
            server.read_exact(&mut question).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            let mut answer = [0; 6];
            client.read_exact(&mut answer).await.unwrap();
            socket::reset(server);
            client
        };
        let (spliced, mut client) = tokio::join!(splice(a, b), talk);
        assert_eq!((spliced.sent, spliced.received), (8, 6));
        assert!(spliced.outcome.is_err());
        let end = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    }
}
