//! The server's end: one tunnel from a peer, and the streams in it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::connect::{accepted, refused};
use super::copy::Pair;
use super::tunnel::Paced;
use super::{
    Baggage, Broken, ConnectHead, ConnectRequest, Limits, Progress, Refusal, ServeError, Stage,
    Stream, Transfer,
};
use crate::model::Identity;
use crate::pki::{Certificate, peer_identity};

/// Decides on streams and connects them.
pub trait Accept: Send + Sync + 'static {
    /// What is kept for a stream while it is open. Dropped without [`finished`](Self::finished) when the tunnel is
    /// aborted.
    type Connection: Send + 'static;

    /// Judges a request and connects to the application. 200 goes out only after this has returned `Ok`.
    ///
    /// Dropped when the client gives up first.
    fn connect(
        &self,
        request: &ConnectRequest,
    ) -> impl Future<Output = Result<Upstream<Self::Connection>, Refusal>> + Send;

    /// A stream that was accepted has ended.
    fn finished(&self, connection: Self::Connection, transfer: Transfer);
}

/// An application that has accepted.
pub struct Upstream<C> {
    /// The connection to the application.
    pub tcp: TcpStream,
    /// What the client is told about the destination.
    pub baggage: Option<Baggage>,
    /// Counts the bytes.
    pub progress: Arc<Progress>,
    /// Cancelled when the stream is no longer allowed.
    pub revoked: CancellationToken,
    /// Comes back in [`Accept::finished`].
    pub connection: C,
}

/// Who is at the other end of a tunnel.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Proved by its certificate.
    pub identity: Identity,
    /// [`ConnectRequest::local`].
    pub local: SocketAddr,
    /// [`ConnectRequest::remote`].
    pub remote: SocketAddr,
}

/// Finds out who has connected: TLS, with an identity on both sides, which has to stand by `deadline`.
///
/// Whoever has connected may be anybody until this has returned `Ok`.
pub async fn authenticate(
    tcp: TcpStream,
    certificate: &Certificate,
    deadline: Instant,
) -> Result<(Peer, TlsStream<TcpStream>), ServeError> {
    let local = canonical(tcp.local_addr().map_err(ServeError::Socket)?);
    let remote = canonical(tcp.peer_addr().map_err(ServeError::Socket)?);
    tcp.set_nodelay(true).map_err(ServeError::Socket)?;
    let accepting = Box::pin(TlsAcceptor::from(certificate.server_config()).accept(tcp));
    let tls = timeout_at(deadline.into(), accepting)
        .await
        .map_err(|_| ServeError::Timeout(Stage::Tls))?
        .map_err(ServeError::Tls)?;
    let identity = peer_identity(tls.get_ref().1).ok_or(ServeError::NoIdentity)?;
    let peer = Peer {
        identity,
        local,
        remote,
    };
    Ok((peer, tls))
}

/// IPv4 as such, also on a socket that takes both families.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Serves one tunnel of a peer that was [authenticated](authenticate), whose HTTP/2 has to begin by `deadline`, until it
/// has closed: the peer did so, it broke, or `shutdown` was cancelled and its last stream has ended.
///
/// Dropping the future resets what is still open.
pub async fn serve<A: Accept>(
    transport: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    handler: Arc<A>,
    limits: &Limits,
    deadline: Instant,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let preface = limits.server().handshake(Paced::client(transport));
    let connection = timeout_at(deadline.into(), preface)
        .await
        .map_err(|_| ServeError::Timeout(Stage::Http2))?
        .map_err(ServeError::Http2)?;
    let tunnel = Tunnel {
        peer,
        handler,
        streams: JoinSet::new(),
    };
    tunnel.run(connection, limits, shutdown).await
}

struct Tunnel<A> {
    peer: Peer,
    handler: Arc<A>,
    streams: JoinSet<()>,
}

impl<A: Accept> Tunnel<A> {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        mut connection: Connection<Paced<S>, Bytes>,
        limits: &Limits,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let keepalive = limits.keepalive(connection.ping_pong());
        let mut keepalive = pin!(keepalive);
        let mut draining = false;
        let outcome = loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => self.accept(request, respond),
                    // Without streams, a peer that just leaves does no harm.
                    Some(Err(error)) if is_leave(&error) && self.is_idle() => break Ok(()),
                    Some(Err(error)) => break Err(ServeError::Http2(error)),
                    None => break Ok(()),
                },
                Some(ended) = self.streams.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a stream's task panicked");
                    }
                }
                () = shutdown.cancelled(), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = &mut keepalive => break Err(ServeError::Unresponsive),
            }
        };
        // Whatever still runs now fails on its own, and gets to say so.
        drop(connection);
        while self.streams.join_next().await.is_some() {}
        outcome
    }

    fn is_idle(&mut self) -> bool {
        while self.streams.try_join_next().is_some() {}
        self.streams.is_empty()
    }

    fn accept(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        match ConnectHead::from_http(&request) {
            Ok(head) => {
                let body = request.into_body();
                let request = ConnectRequest {
                    head,
                    peer: self.peer.identity.clone(),
                    local: self.peer.local,
                    remote: self.peer.remote,
                };
                let handler = self.handler.clone();
                // Boxed, as an open stream must not go on paying for what opening it took.
                let opening = Box::pin(open(handler, request, body, respond));
                self.streams.spawn(stream(opening));
            }
            Err(refusal) => {
                tracing::debug!(peer = %self.peer.identity, remote = %self.peer.remote, %refusal, "request refused");
                refuse(&mut respond, &refusal);
            }
        }
    }
}

/// Whether the connection broke, other than by what came on it.
fn is_leave(error: &h2::Error) -> bool {
    let io = error.get_io();
    io.is_some_and(|it| it.kind() != io::ErrorKind::InvalidData)
}

/// One stream, from its request to the end of its bytes.
async fn stream<A: Accept>(opening: Pin<Box<impl Future<Output = Option<Box<Open<A>>>>>>) {
    if let Some(mut open) = opening.await {
        let transfer = open.pair.copy(&open.progress, &open.revoked).await;
        open.handler.finished(open.connection, transfer);
    }
}

/// A stream whose application has accepted and whose client has been told.
struct Open<A: Accept> {
    handler: Arc<A>,
    connection: A::Connection,
    progress: Arc<Progress>,
    revoked: CancellationToken,
    pair: Pair,
}

/// Asks the handler and answers the client; none if nothing came of it.
async fn open<A: Accept>(
    handler: Arc<A>,
    request: ConnectRequest,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Option<Box<Open<A>>> {
    let connected = tokio::select! {
        biased;
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return None,
        connected = handler.connect(&request) => connected,
    };
    let upstream = match connected {
        Ok(upstream) => upstream,
        Err(refusal) => {
            refuse(&mut respond, &refusal);
            return None;
        }
    };
    match respond.send_response(accepted(upstream.baggage.as_ref()), false) {
        Ok(send) => Some(Box::new(Open {
            handler,
            connection: upstream.connection,
            progress: upstream.progress,
            revoked: upstream.revoked,
            pair: Pair::new(upstream.tcp, Stream::new(send, body, None)),
        })),
        Err(error) => {
            // Lost at the last moment; fails only if the socket is gone already.
            let _ = upstream.tcp.set_zero_linger();
            let transfer = Transfer {
                sent: 0,
                received: 0,
                outcome: Err(Broken::Tunnel(error)),
            };
            handler.finished(upstream.connection, transfer);
            None
        }
    }
}

/// Answers with a status and the end of the stream; a client that has left meanwhile needs no answer.
fn refuse(respond: &mut SendResponse<Bytes>, refusal: &Refusal) {
    if respond.send_response(refused(refusal), true).is_err() {
        respond.send_reset(Reason::CANCEL);
    }
}
