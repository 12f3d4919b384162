//! Both ends in one process, over loopback, with real TLS and HTTP/2.

mod ends;
mod failures;
mod hostile;
mod interop;
mod pooling;
mod stress;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Accept, ConnectHead, ConnectRequest, Dial, Dialing, Key, Limits, OpenError, Pair, Pool,
    Progress, Refusal, ServeError, Stream, Transfer, Upstream, authenticate, serve,
};
use crate::model::{Authority, Identity};
use crate::pki::{Certificates, DirectoryCa, TrustDomains};

const DOMAIN: &str = "cluster.local";
/// Longer than anything here takes on a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A root, and the tasks of a test; all end with it.
struct World {
    root: TempDir,
    shutdown: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

impl World {
    fn new() -> Self {
        Self {
            root: TempDir::new().unwrap(),
            shutdown: CancellationToken::new(),
            tasks: Mutex::default(),
        }
    }

    fn spawn<F>(&self, future: F) -> oneshot::Receiver<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.tasks.lock().unwrap().spawn(async move {
            let _ = sender.send(future.await);
        });
        receiver
    }

    /// A certificate store of `domain` under this world's root, whose servers also accept `others`.
    fn certificates(&self, domain: &str, others: &[&str]) -> Arc<Certificates> {
        let ca = DirectoryCa::open(self.root.path(), domain).unwrap();
        let domains = TrustDomains::new(domain, others.iter().map(ToString::to_string));
        let store = Arc::new(Certificates::new(Arc::new(ca), domains));
        self.spawn(store.clone().run(self.shutdown.clone()));
        store
    }

    async fn server(&self) -> Server {
        self.server_with(self.certificates(DOMAIN, &[]), Limits::default())
            .await
    }

    /// A server of the identity `server`, which connects to whatever address it is asked for.
    async fn server_with(&self, certificates: Arc<Certificates>, limits: Limits) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let certificate = certificates.certificate(&id("server")).await.unwrap();
        let (ended, transfers) = mpsc::unbounded_channel();
        let (tunnel_ended, outcomes) = mpsc::unbounded_channel();
        let app = Arc::new(App {
            ended,
            revoked: CancellationToken::new(),
            requests: Mutex::default(),
        });
        let server = Server {
            address,
            tunnels: Arc::default(),
            transfers,
            outcomes,
            drain: CancellationToken::new(),
            app: app.clone(),
        };
        let (tunnels, drain) = (server.tunnels.clone(), server.drain.clone());
        self.spawn(async move {
            let mut running = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                tunnels.fetch_add(1, Ordering::Relaxed);
                let (certificate, app) = (certificate.clone(), app.clone());
                let (drain, tunnel_ended) = (drain.clone(), tunnel_ended.clone());
                running.spawn(async move {
                    let deadline = crate::clock::now() + limits.handshake;
                    let outcome = match authenticate(tcp, &certificate, deadline).await {
                        Ok((peer, tls)) => serve(tls, peer, app, &limits, deadline, drain).await,
                        Err(error) => Err(error),
                    };
                    let _ = tunnel_ended.send(outcome);
                });
            }
        });
        server
    }

    fn pool(&self) -> Arc<Pool> {
        self.pool_with(self.certificates(DOMAIN, &[]), Limits::default())
    }

    fn pool_with(&self, certificates: Arc<Certificates>, limits: Limits) -> Arc<Pool> {
        let shutdown = self.shutdown.clone();
        let open = Arc::default();
        Arc::new(Pool::new(
            certificates,
            Arc::new(Direct),
            limits,
            open,
            shutdown,
            Box::new(|_| {}),
        ))
    }

    /// A connection from one application to another, through a tunnel.
    async fn link(&self, pool: &Pool, server: &Server) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let head = ConnectHead::new(listener.local_addr().unwrap());
        let opened = pool.open(&server.key(), &head).await.unwrap();
        let (app, _) = listener.accept().await.unwrap();
        let (client, agent) = pair().await;
        let (progress, revoked) = (Arc::new(Progress::default()), CancellationToken::new());
        let transfer = self.spawn({
            let (progress, revoked) = (progress.clone(), revoked.clone());
            async move { copy(agent, opened.stream, &progress, &revoked).await }
        });
        Link {
            client,
            app,
            transfer,
            progress,
            revoked,
        }
    }
}

struct Server {
    address: SocketAddr,
    tunnels: Arc<AtomicUsize>,
    transfers: mpsc::UnboundedReceiver<Transfer>,
    outcomes: mpsc::UnboundedReceiver<Result<(), ServeError>>,
    drain: CancellationToken,
    app: Arc<App>,
}

impl Server {
    fn key(&self) -> Key {
        self.key_expecting("server")
    }

    fn key_expecting(&self, server: &str) -> Key {
        let address = IpAddr::from([127, 0, 0, 1]);
        Key::new(id("client"), address, self.address, [id(server)])
    }

    fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// How the next tunnel to end has ended.
    async fn outcome(&mut self) -> Result<(), ServeError> {
        within(self.outcomes.recv()).await.unwrap()
    }

    async fn transfer(&mut self) -> Transfer {
        within(self.transfers.recv()).await.unwrap()
    }
}

struct Link {
    client: TcpStream,
    app: TcpStream,
    transfer: oneshot::Receiver<Transfer>,
    progress: Arc<Progress>,
    revoked: CancellationToken,
}

/// Connects to whatever is asked for; three names stand for refusals.
struct App {
    ended: mpsc::UnboundedSender<Transfer>,
    revoked: CancellationToken,
    requests: Mutex<Vec<ConnectRequest>>,
}

impl Accept for App {
    type Connection = ();

    async fn connect(&self, request: &ConnectRequest) -> Result<Upstream<()>, Refusal> {
        self.requests.lock().unwrap().push(request.clone());
        let address = match &request.head.authority {
            Authority::Address(address) => *address,
            Authority::Host { name, .. } if name == "denied" => return Err(Refusal::Denied),
            Authority::Host { name, .. } if name == "mismatch" => {
                return Err(Refusal::AddressMismatch);
            }
            Authority::Host { .. } => return Err(Refusal::Unreachable),
        };
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|_| Refusal::Unreachable)?;
        Ok(Upstream {
            tcp,
            baggage: Some(super::Baggage::parse("service.name=app")),
            progress: Arc::default(),
            revoked: self.revoked.clone(),
            connection: (),
        })
    }

    fn finished(&self, (): (), transfer: Transfer) {
        let _ = self.ended.send(transfer);
    }
}

struct Direct;

impl Dial for Direct {
    fn dial(&self, _source: IpAddr, destination: SocketAddr) -> Dialing<'_> {
        Box::pin(TcpStream::connect(destination))
    }
}

fn id(account: &str) -> Identity {
    Identity::new(DOMAIN, "default", account)
}

/// As [`Pair::copy`], of a pair that is nobody else's.
async fn copy(
    tcp: TcpStream,
    stream: Stream,
    progress: &Progress,
    revoked: &CancellationToken,
) -> Transfer {
    Pair::new(tcp, stream).copy(progress, revoked).await
}

/// Two ends of one TCP connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}

/// Waits for what other tasks bring about.
async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
