//! Listens: TLS for agents, plain HTTP for the kubelet's probe.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::poll_fn;
use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::Server;
use tower::service_fn;
use tracing::{debug, warn};

use super::cluster::Cluster;
use super::keeper::CurrentReceiver;
use super::service::Service;

/// Serves agents on `listener` until `shutdown`, then ends what is open.
///
/// # Errors
/// The server ended by itself.
pub async fn serve<C: Cluster>(
    service: Arc<Service<C>>,
    listener: TcpListener,
    current: CurrentReceiver,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (ready, mut handshaken) = mpsc::channel(QUEUE);
    let incoming = poll_fn(move |context| {
        let next = handshaken.poll_recv(context);
        next.map(|stream: Option<TlsStream<TcpStream>>| stream.map(Ok::<_, io::Error>))
    });
    let answer = service_fn(move |request| service.clone().answer(request));
    let server = Server::builder()
        .timeout(DEADLINE)
        .max_concurrent_streams(STREAMS)
        // Agents spread over the replicas again now and then.
        .max_connection_age(CONNECTION_AGE)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .serve_with_incoming_shutdown(answer, incoming, shutdown.cancelled());
    tokio::select! {
        ended = server => ended,
        () = accept(listener, current, ready) => Ok(()),
    }
}

/// Accepts connections for ever; a handshake has its own task and a deadline.
async fn accept(
    listener: TcpListener,
    current: CurrentReceiver,
    ready: mpsc::Sender<TlsStream<TcpStream>>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES => match accepted {
                Ok((stream, peer)) => {
                    // Before the root is read there is nothing to show.
                    let Some(current) = current.borrow().clone() else { continue };
                    let (handshake, ready) = (current.acceptor.accept(stream), ready.clone());
                    handshakes.spawn(async move {
                        match timeout(DEADLINE, handshake).await {
                            Ok(Ok(stream)) => drop(ready.send(stream).await),
                            Ok(Err(error)) => debug!(%peer, %error, "handshake failed"),
                            Err(_) => debug!(%peer, "handshake took too long"),
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = handshakes.join_next() => {}
        }
    }
}

/// Answers `GET /healthz/ready` with 200 while `ready` says so, with 503 otherwise, until `shutdown`.
///
/// # Errors
/// The server ended by itself.
pub async fn health<C: Cluster>(
    service: Arc<Service<C>>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = poll_fn(move |context| {
        let accepted = listener.poll_accept(context);
        accepted.map(|it| Some(it.map(|(stream, _)| stream)))
    });
    let answer = service_fn(move |request: http::Request<Body>| {
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = match request.uri().path() {
            "/healthz/ready" if service.is_ready() => StatusCode::OK,
            "/healthz/ready" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::NOT_FOUND,
        };
        async move { Ok::<_, Infallible>(response) }
    });
    Server::builder()
        .accept_http1(true)
        .timeout(DEADLINE)
        .serve_with_incoming_shutdown(answer, incoming, shutdown.cancelled())
        .await
}

/// What a handshake, and a request, may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Handshaken connections that may wait.
const QUEUE: usize = 64;
/// Requests at once on one connection; an agent has eight.
const STREAMS: u32 = 32;
const CONNECTION_AGE: Duration = Duration::from_mins(30);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
