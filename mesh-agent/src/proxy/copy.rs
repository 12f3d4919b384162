//! EDGE: bytes between two TCP connections.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;

use bytes::Buf;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::socket;
use crate::hbone::{Broken, Progress, Reads, Turn};

/// Copies both ways until both ends are done or `revoked` is cancelled; half-close travels as half-close, a failure as a
/// reset of both. An idle connection holds no buffer. `progress` tells what was given to `b`, as sent, and to `a`.
///
/// # Errors
/// [`Broken::Tcp`] or [`Broken::Revoked`].
pub(super) async fn splice(
    a: TcpStream,
    b: TcpStream,
    progress: &Progress,
    revoked: &CancellationToken,
) -> Result<(), Broken> {
    let copying = async {
        tokio::try_join!(
            forward(&a, &b, |it| progress.add_sent(it)),
            forward(&b, &a, |it| progress.add_received(it))
        )
    };
    let copied = match revoked.run_until_cancelled(copying).await {
        Some(copied) => copied.map(drop).map_err(Broken::Tcp),
        None => Err(Broken::Revoked),
    };
    if copied.is_err() {
        socket::reset(a);
        socket::reset(b);
    }
    copied
}

/// Copies one way until the end, and counts what is written, whatever becomes of it.
async fn forward(from: &TcpStream, to: &TcpStream, written: impl Fn(usize)) -> io::Result<()> {
    let mut reads = Reads::default();
    let mut turn = Turn::default();
    loop {
        turn.next().await;
        // Polled, as a future that waits for a socket is larger than all else here.
        poll_fn(|cx| from.poll_read_ready(cx)).await?;
        let mut rest = match reads.read(from, usize::MAX) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        while !rest.is_empty() {
            poll_fn(|cx| to.poll_write_ready(cx)).await?;
            match to.try_write(&rest) {
                Ok(length) => {
                    rest.advance(length);
                    written(length);
                    turn.carried(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    SockRef::from(to).shutdown(Shutdown::Write)
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
        let progress = Progress::default();
        let (spliced, mut client) = {
            let never = CancellationToken::new();
            tokio::join!(splice(a, b, &progress, &never), talk)
        };
        assert_eq!((progress.sent(), progress.received()), (8, 6));
        assert!(matches!(spliced, Err(Broken::Tcp(_))), "{spliced:?}");
        let end = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    }
}
