//! Why a tunnel or a stream could not be opened.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;

use crate::pki;

/// Why no stream was opened; cheap to clone, as all who waited for a tunnel share its failure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// Our own identity has no certificate; not the peer's fault.
    #[error("no certificate to open a tunnel with")]
    Certificate(#[source] Arc<pki::Error>),
    /// The TCP connection failed.
    #[error("cannot connect to {destination}")]
    Dial {
        /// The peer's tunnel port.
        destination: SocketAddr,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The TLS handshake failed: the source is the peer's alert, or our own objection to its certificate.
    #[error("TLS with {destination} failed")]
    Tls {
        /// The peer's tunnel port.
        destination: SocketAddr,
        /// An alert received, or what was wrong with the certificate.
        #[source]
        source: Arc<rustls::Error>,
    },
    /// The peer closed before the tunnel stood; how peers without alerts refuse our certificate.
    #[error(
        "{destination} closed the connection during the handshake: it may not trust our certificate"
    )]
    Closed {
        /// The peer's tunnel port.
        destination: SocketAddr,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The tunnel did not stand in time.
    #[error("{destination} did not finish the {stage} in time")]
    Timeout {
        /// The peer's tunnel port.
        destination: SocketAddr,
        /// What it was about.
        stage: Stage,
    },
    /// The peer answered with something other than 200.
    #[error("the peer refused the connection with status {}", status.as_u16())]
    Refused {
        /// 400, 401 or 503 by contract, anything from others.
        status: StatusCode,
    },
    /// The tunnel broke, or the peer reset the stream, before it answered.
    #[error("the tunnel failed before the stream was open")]
    Http2(#[source] Arc<h2::Error>),
    /// The request holds text that HTTP cannot carry; the caller's fault.
    #[error("the request cannot be expressed in HTTP")]
    Request(#[source] Arc<http::Error>),
    /// The pool is draining, or has stopped.
    #[error("the agent is shutting down")]
    Draining,
}

/// The parts of setting up a tunnel, each of which may hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for our own certificate.
    Certificate,
    /// TCP.
    Connect,
    /// TLS, up to and including the peer's Finished.
    Tls,
    /// HTTP/2, up to the peer's SETTINGS.
    Http2,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate request",
            Self::Connect => "TCP handshake",
            Self::Tls => "TLS handshake",
            Self::Http2 => "HTTP/2 handshake",
        })
    }
}

/// Whether it is about a certificate that was revoked, ours or the peer's.
fn is_revoked(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription, CertificateError, Error};
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::Revoked)
            | Error::AlertReceived(AlertDescription::CertificateRevoked)
    )
}

impl OpenError {
    /// Whether TLS failed because a certificate was revoked.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Tls { source, .. } if is_revoked(source))
    }

    /// A failure of bytes under TLS, or in it.
    pub(super) fn from_tls(destination: SocketAddr, error: io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(tls) => Self::Tls {
                destination,
                source: Arc::new(tls.clone()),
            },
            None => Self::Closed {
                destination,
                source: Arc::new(error),
            },
        }
    }

    /// A failure of HTTP/2 before the peer's SETTINGS: in TLS 1.3 that is when it objects to our certificate.
    pub(super) fn from_http2(destination: SocketAddr, error: h2::Error) -> Self {
        if error.is_io() {
            let lost = || io::Error::from(io::ErrorKind::UnexpectedEof);
            return Self::from_tls(destination, error.into_io().unwrap_or_else(lost));
        }
        Self::Http2(Arc::new(error))
    }
}

/// Why a tunnel from a peer ended other than by closing.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket is broken already.
    #[error("the connection was lost before the handshake")]
    Socket(#[source] io::Error),
    /// The TLS handshake failed: the source names the alert, or what was wrong with the peer's certificate.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The peer did not finish its handshake in time.
    #[error("the peer did not finish the {0} in time")]
    Timeout(Stage),
    /// The peer's certificate names no workload.
    #[error("the peer's certificate names no workload")]
    NoIdentity,
    /// The tunnel broke, or the peer violated HTTP/2.
    #[error("the tunnel failed")]
    Http2(#[source] h2::Error),
    /// The peer stopped answering PINGs.
    #[error("the peer no longer answers")]
    Unresponsive,
}
