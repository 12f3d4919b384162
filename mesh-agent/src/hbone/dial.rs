//! A client's tunnel, from nothing to the peer's SETTINGS.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tunnel::Paced;
use super::{Key, Limits, Open, OpenError, Opener, Stage};
use crate::pki::{Certificates, peer_identity};

/// A TCP connection being made.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// Makes the TCP connections of tunnels.
pub trait Dial: Send + Sync {
    /// Connects to `destination` from the address `source`, a pod's own, on any port.
    fn dial(&self, source: IpAddr, destination: SocketAddr) -> Dialing<'_>;
}

/// Opens streams on a tunnel.
pub(super) type Handle = SendRequest<Bytes>;
/// Has to be polled for the tunnel to live.
pub(super) type Http2 = Connection<Paced<TlsStream<TcpStream>>, Bytes>;

/// A tunnel whose peer has accepted our certificate and sent its SETTINGS, and who is at its ends.
pub(super) async fn establish(
    certificates: &Certificates,
    dial: &dyn Dial,
    limits: &Limits,
    key: &Key,
) -> Result<(Handle, Http2, Option<Open>), OpenError> {
    let destination = key.destination();
    let mut stage = Stage::Certificate;
    let steps = async {
        let certificate = certificates
            .certificate(key.source())
            .await
            .map_err(OpenError::Certificate)?;
        stage = Stage::Connect;
        let tcp = dial.dial(key.address(), destination).await;
        let tcp = tcp
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|source| OpenError::Dial {
                destination,
                source: Arc::new(source),
            })?;
        stage = Stage::Tls;
        // The name is not sent (an address never is), nor verified: identities are.
        let name = ServerName::IpAddress(destination.ip().into());
        let tls = TlsConnector::from(certificate.client_config(key.expected()))
            .connect(name, tcp)
            .await
            .map_err(|error| OpenError::from_tls(destination, error))?;
        let open = ends(key, &tls);
        stage = Stage::Http2;
        let http2 = |error| OpenError::from_http2(destination, error);
        let (handle, mut connection) = limits
            .client()
            .handshake(Paced::server(tls))
            .await
            .map_err(http2)?;
        settings(destination, &mut connection).await?;
        Ok((handle, connection, open))
    };
    timeout(limits.handshake, steps)
        .await
        .unwrap_or(Err(OpenError::Timeout { destination, stage }))
}

/// Who is at the ends of a tunnel of ours; none if its socket is broken already.
fn ends(key: &Key, tls: &TlsStream<TcpStream>) -> Option<Open> {
    let (tcp, session) = tls.get_ref();
    Some(Open {
        opener: Opener::We,
        ours: tcp.local_addr().ok()?,
        identity: key.source().clone(),
        theirs: key.destination(),
        peer: peer_identity(session)?,
    })
}

/// Polls until the peer's SETTINGS have arrived, which is when streams are allowed.
async fn settings(destination: SocketAddr, connection: &mut Http2) -> Result<(), OpenError> {
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(Ok(())) => {
            let closed = io::ErrorKind::UnexpectedEof.into();
            Poll::Ready(Err(OpenError::from_tls(destination, closed)))
        }
        Poll::Ready(Err(error)) => Poll::Ready(Err(OpenError::from_http2(destination, error))),
        Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await
}
