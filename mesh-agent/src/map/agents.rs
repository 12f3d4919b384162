//! Where agents answer, and asking them.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::admin::{self, ClientError};
use crate::cluster::kubernetes::{AgentPod, Agents, AgentsError};
use crate::telemetry::Graph;

/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// The port of agents' admin address, on their node's loopback.
pub(super) const PORT: u16 = 15000;

/// How an agent is asked.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// At a place of this machine, or that leads from there.
    Place(Place),
    /// In its pod.
    Pod(Arc<Agents>, AgentPod),
}

/// Where an agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its admin socket.
    Socket(PathBuf),
    /// Its admin address, or what leads to it: host and port.
    Http(String),
}

/// The text is no place of an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither the path of an admin socket nor http://HOST:PORT")]
pub struct Unreadable(String);

impl FromStr for Place {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let unreadable = || Unreadable(text.to_owned());
        if let Some(rest) = text.strip_prefix("http://") {
            let authority = rest.trim_end_matches('/');
            let (host, port) = authority.rsplit_once(':').ok_or_else(unreadable)?;
            if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
                return Err(unreadable());
            }
            return Ok(Self::Http(authority.to_owned()));
        }
        if text.is_empty() || text.contains("://") {
            return Err(unreadable());
        }
        Ok(Self::Socket(text.into()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// An agent did not tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of an admin socket.
    #[error(transparent)]
    Socket(#[from] ClientError),
    /// Nobody listens there.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// It broke off.
    #[error("it broke off")]
    Http(#[source] hyper::Error),
    /// It answered something else.
    #[error("it answered {0}; is it an agent's --admin-address?")]
    Status(StatusCode),
    /// The answer is too long, or broke off.
    #[error("its answer could not be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is of another version, or no agent.
    #[error("its answer is not understood; use the mesh-agent of the same version")]
    Unreadable(#[source] serde_json::Error),
    /// The API server does not lead there.
    #[error(transparent)]
    Cluster(#[from] AgentsError),
    /// Its pod does not run.
    #[error("{0}")]
    Absent(String),
    /// Its node cannot reach it in its pod.
    #[error(
        "nothing answers at 127.0.0.1:{PORT} of its node, where its --admin-address is to be: {0}"
    )]
    Unforwarded(String),
    /// It took too long.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
}

impl Way {
    /// Asks the agent for what it knows; takes 3 s at most.
    ///
    /// # Errors
    /// It does not answer, or not that.
    pub(super) async fn ask(&self) -> Result<Graph, Error> {
        let asked = async {
            match self {
                Self::Place(Place::Socket(path)) => {
                    let path = path.clone();
                    let asked = spawn_blocking(move || admin::ask(&path, &admin::Request::Graph));
                    match asked.await.map_err(|_| Error::Late)?? {
                        admin::Response::Graph(graph) => Ok(graph),
                        _ => Err(ClientError::Other.into()),
                    }
                }
                Self::Place(Place::Http(authority)) => {
                    let stream = TcpStream::connect(authority).await;
                    fetch(Box::new(stream.map_err(Error::Connect)?)).await
                }
                Self::Pod(agents, pod) => forwarded(agents, pod).await,
            }
        };
        timeout(PATIENCE, asked).await.unwrap_or(Err(Error::Late))
    }
}

async fn forwarded(agents: &Agents, pod: &AgentPod) -> Result<Graph, Error> {
    if let Some(absent) = &pod.absent {
        return Err(Error::Absent(absent.clone()));
    }
    let (stream, mut way) = agents.connect(&pod.name, PORT).await?;
    tokio::select! {
        // It comes before the connection's end, and says more.
        biased;
        Some(error) = &mut way.error => Err(Error::Unforwarded(error)),
        answer = fetch(Box::new(stream)) => answer,
    }
}

/// Bytes to an agent and back, however it is reached: so that there is one client, not one for each way.
trait Line: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

async fn fetch(stream: Box<dyn Line>) -> Result<Graph, Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Error::Http)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static("/map.json");
    // Whatever leads there, it ends at the agent's loopback.
    let host = http::HeaderValue::from_static("localhost");
    request.headers_mut().insert(HOST, host);
    let answer = async {
        let answer = sender.send_request(request).await.map_err(Error::Http)?;
        if answer.status() != StatusCode::OK {
            return Err(Error::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(Error::Body)?.to_bytes();
        serde_json::from_slice(&body).map_err(Error::Unreadable)
    };
    // The connection ends with the answer, or after it: it serves one request.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(Error::Http(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_sockets_or_addresses() {
        let read = |text: &str| text.parse::<Place>();
        let socket = Place::Socket("/run/mesh-cni/admin.sock".into());
        assert_eq!(read("/run/mesh-cni/admin.sock"), Ok(socket));
        for text in ["http://127.0.0.1:15000", "http://localhost:15000/"] {
            assert!(matches!(read(text), Ok(Place::Http(_))), "{text}");
        }
        for text in [
            "",
            "http://",
            "http://a",
            "http://a/b:1",
            "https://a:1",
            "http://a:x",
        ] {
            let told = read(text).unwrap_err().to_string();
            assert!(told.contains("http://HOST:PORT"), "{told}");
        }
    }
}
