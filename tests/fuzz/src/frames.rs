//! HTTP/2 behind the TLS handshake: what a peer with a good certificate can send.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::clock;
use mesh_agent::hbone::{Accept, ConnectRequest, Limits, Peer, Refusal, Transfer, Upstream, serve};
use mesh_agent::model::{Authority, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, sink, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// What a peer says after a preface and SETTINGS, and then nothing more.
pub fn frames(input: &[u8]) {
    RUNTIME.with(|runtime| runtime.block_on(serves(input)));
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Nothing that is waited for takes longer; a peer that has left is done with at once.
const PATIENCE: Duration = Duration::from_secs(5);

async fn serves(input: &[u8]) {
    let (near, far) = duplex(64 << 10);
    let address = SocketAddr::from(([127, 0, 0, 1], 15008));
    let peer = Peer {
        identity: Identity::new("cluster.local", "default", "peer"),
        local: address,
        remote: address,
    };
    let limits = Limits::default();
    let deadline = clock::now() + limits.handshake;
    let shutdown = CancellationToken::new();
    let serving = serve(near, peer, Arc::new(App), &limits, deadline, shutdown);
    let (mut read, mut write) = split(far);
    let peer = async {
        // Fails when the server has had enough, which is its right.
        let _ = write.write_all(PREFACE).await;
        let _ = write.write_all(input).await;
        let _ = write.shutdown().await;
        tokio::io::copy(&mut read, &mut sink()).await
    };
    let both = async { tokio::join!(serving, peer) };
    let ended = timeout(PATIENCE, both).await;
    assert!(ended.is_ok(), "a peer that has left is still served");
}

/// One application that says something and reads everything, one that never accepts, and the rest is not there.
struct App;

impl Accept for App {
    /// The application, which ends with its stream.
    type Connection = JoinSet<()>;

    async fn connect(
        &self,
        request: &ConnectRequest,
    ) -> Result<Upstream<Self::Connection>, Refusal> {
        let connection = match &request.head.authority {
            Authority::Address(address) if address.port() == 80 => application().await,
            Authority::Address(address) if address.port() == 81 => pending().await,
            Authority::Address(_) => return Err(Refusal::Denied),
            Authority::Host { .. } => return Err(Refusal::Unreachable),
        };
        let (tcp, connection) = connection.map_err(|_| Refusal::Unreachable)?;
        Ok(Upstream {
            tcp,
            baggage: request.head.baggage.clone(),
            progress: Arc::default(),
            revoked: CancellationToken::new(),
            connection,
        })
    }

    fn finished(&self, _: Self::Connection, _: Transfer) {}
}

async fn application() -> io::Result<(TcpStream, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let tcp = TcpStream::connect(listener.local_addr()?).await?;
    let (mut app, _) = listener.accept().await?;
    let mut talks = JoinSet::new();
    talks.spawn(async move {
        let _ = app.write_all(&[b'x'; 4096]).await;
        let mut bytes = Vec::new();
        let _ = app.read_to_end(&mut bytes).await;
    });
    Ok((tcp, talks))
}
