//! EDGE: answers from the latest world.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::HBONE_PORT;
use mesh_common::cni::Envelope;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::protocol::{MAX_REQUEST, Process, Refusal, Request, Response, VERSION};
use crate::clock;
use crate::hbone::OpenTunnels;
use crate::inspect::{policies, trace};
use crate::listing::{self, About, Tunnels};
use crate::model::Snapshot;
use crate::network::round_trips;
use crate::pki::Report;
use crate::proxy::Allowed;
use crate::status::{self, Status};
use crate::telemetry::{Graph, Scraper};
use crate::unix_socket;
use crate::world::Command;

/// How long a caller may take, to ask and to read.
const PATIENCE: Duration = Duration::from_secs(10);
/// Calls that are served at a time; others wait.
const MAX_CALLS: usize = 16;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("--admin-socket {path}")]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is asked for the answers.
#[derive(Clone)]
pub struct Sources {
    /// The world as it is.
    pub snapshots: watch::Receiver<Snapshot>,
    /// Its owner.
    pub world: mpsc::Sender<Command>,
    /// Tells where the world comes from and how that is doing.
    pub source: Tell<Option<status::Source>>,
    /// What is counted and told of connections.
    pub scraper: Scraper,
    /// Tells of the certificates of this node.
    pub certificates: Tell<Vec<Report>>,
    /// The tunnels that are open.
    pub tunnels: Arc<OpenTunnels>,
    /// The connections that are open.
    pub connections: Arc<Allowed>,
    /// Tells which HTTP servers serve.
    pub ports: Tell<Vec<status::Port>>,
    /// Tells what was logged last.
    pub log: Tell<Vec<String>>,
    /// Name of the cluster.
    pub cluster: String,
    /// The flags in force.
    pub flags: BTreeMap<String, String>,
}

/// A part of the agent that tells how it is doing.
pub type Tell<T> = Arc<dyn Fn() -> T + Send + Sync>;

impl Sources {
    async fn answer(&self, request: &Request) -> Response {
        let snapshot = self.snapshots.borrow().clone();
        match request {
            Request::Trace(question) => trace(&snapshot, question).map(Response::Trace).into(),
            Request::Policies(of) => policies(&snapshot, of.as_ref())
                .map(Response::Policies)
                .into(),
            Request::Metrics(exposition) => {
                Response::Metrics(self.scraper.scrape(*exposition).await)
            }
            Request::Flows {
                wanted,
                since,
                most,
            } => Response::Flows(self.scraper.flows(wanted, *since, *most).await),
            Request::Log(filter) => {
                let telemetry = &self.scraper.telemetry;
                if let Some(filter) = filter {
                    telemetry.set_log_filter(filter.clone());
                }
                Response::Log(telemetry.log_filter())
            }
            Request::Status => {
                let (reply, told) = oneshot::channel();
                // An agent that stops has let go of its network.
                let network = match self.world.send(Command::Describe(reply)).await {
                    Ok(()) => told.await.ok(),
                    Err(_) => None,
                };
                let certificates = (self.certificates)().into_iter();
                let told = status::Told {
                    source: (self.source)(),
                    network,
                    certificates: certificates.map(status::Certificate::from).collect(),
                    tunnels: self.tunnels.count(),
                    http: (self.ports)(),
                };
                Response::Status(Status::new(&snapshot, told).into())
            }
            Request::Workloads(named) => listing::workloads(&snapshot, named)
                .map(Response::Workloads)
                .into(),
            Request::Services => listing::services(&snapshot).map(Response::Services).into(),
            Request::Graph => Response::Graph(self.graph().await),
            Request::Tunnels => Response::Tunnels(Tunnels::new(self.tunnels.seen(), clock::now())),
            Request::Certificates => Response::Certificates((self.certificates)()),
            Request::Process => {
                let told = self.clone();
                // A large cluster's dump takes a moment, in which nobody is to wait.
                let dump = spawn_blocking(move || told.config_dump()).await;
                Response::Process(Process {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    flags: self.flags.clone(),
                    config_dump: dump.unwrap_or_default(),
                    log: (self.log)(),
                })
            }
        }
    }

    /// Who speaks with whom.
    pub async fn graph(&self) -> Graph {
        // The map is also of use without.
        let round_trips = spawn_blocking(|| round_trips(HBONE_PORT)).await;
        let round_trips = round_trips.map_err(io::Error::other).flatten();
        let round_trips = round_trips.inspect_err(|error| debug!(%error, "no round trips"));
        self.scraper.graph(round_trips.unwrap_or_default()).await
    }

    /// What the agent knows, as Istio's tools read it.
    pub fn config_dump(&self) -> Value {
        let about = About {
            cluster: self.cluster.clone(),
            flags: self.flags.clone(),
            certificates: (self.certificates)(),
            connections: self.connections.open_now(),
        };
        let snapshot = self.snapshots.borrow().clone();
        listing::config_dump(&snapshot, &about)
    }
}

/// The server of questions about the world.
pub struct AdminServer {
    listener: unix_socket::Listener,
    sources: Sources,
}

impl AdminServer {
    /// Takes the socket over from an agent that is gone; only root may speak to it.
    pub fn bind(path: &Path, sources: Sources) -> Result<Self, Error> {
        let listener = unix_socket::bind(path).map_err(|source| Error {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { listener, sources })
    }

    /// Serves until shutdown, which cuts calls short.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut calls = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = calls.join_next() => continue,
                accepted = self.listener.accept(), if calls.len() < MAX_CALLS => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let sources = self.sources.clone();
                    calls.spawn(async move {
                        let served = timeout(PATIENCE, serve(stream, &sources)).await;
                        if let Err(error) = served.unwrap_or_else(|late| Err(late.into())) {
                            let error = &error as &dyn std::error::Error;
                            debug!(error, "an admin call broke off");
                        }
                    });
                }
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot accept an admin call"
                    );
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(stream: UnixStream, sources: &Sources) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    reader.read_until(b'\n', &mut line).await?;
    let message = match read(&line) {
        Ok(request) => sources.answer(&request).await,
        Err(refusal) => Response::Refused(refusal),
    };
    let mut answer = serde_json::to_vec(&Envelope {
        version: VERSION,
        message,
    })?;
    answer.push(b'\n');
    writer.write_all(&answer).await
}

fn read(line: &[u8]) -> Result<Request, Refusal> {
    let refusal = |message| Refusal {
        message,
        remedy: "ask with the mesh-agent of the same version as the running agent".to_owned(),
    };
    let unreadable = |error: serde_json::Error| refusal(format!("unreadable request: {error}"));
    let envelope: Envelope<serde_json::Value> = serde_json::from_slice(line).map_err(unreadable)?;
    if envelope.version != VERSION {
        let version = envelope.version;
        let message = format!("message version {version}, this agent speaks {VERSION}");
        return Err(refusal(message));
    }
    serde_json::from_value(envelope.message).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Health;
    use crate::inspect::Problem;
    use crate::model::{Event, Settings};
    use crate::telemetry::{Filter, Telemetry};

    /// The answer to one line.
    async fn ask(line: &str) -> Response {
        let mut snapshot = Snapshot::new(Settings::for_node("here"));
        snapshot.apply(Event::Synced);
        let (_publish, snapshots) = watch::channel(snapshot);
        let world = mpsc::channel(1).0;
        let telemetry = Telemetry::new(snapshots.clone(), "Kubernetes", Arc::default(), None);
        let connections = Allowed::new(snapshots.clone(), telemetry.counters.clone());
        let connections = Arc::new(connections);
        let scraper = Scraper {
            telemetry,
            snapshots: snapshots.clone(),
            world: world.clone(),
            health: watch::channel(Health::starting("test", 0)).1,
            certificates: Arc::new(Vec::new),
        };
        let sources = Sources {
            connections,
            snapshots,
            world,
            scraper,
            source: Arc::new(|| None),
            certificates: Arc::new(Vec::new),
            tunnels: Arc::default(),
            ports: Arc::new(Vec::new),
            log: Arc::new(Vec::new),
            cluster: "Kubernetes".to_owned(),
            flags: BTreeMap::new(),
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = ours.into_split();
        let asked = async {
            writer.write_all(line.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let mut reader = BufReader::new(reader);
            reader.read_line(&mut answer).await.unwrap();
            let envelope: Envelope<Response> = serde_json::from_str(&answer).unwrap();
            assert_eq!(envelope.version, VERSION);
            envelope.message
        };
        let (served, answer) = tokio::join!(serve(theirs, &sources), asked);
        served.unwrap();
        answer
    }

    #[tokio::test]
    async fn every_line_gets_an_answer() {
        let refused = |answer| match answer {
            Response::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        };
        let answer = ask("{\"version\":1,\"message\":{\"policies\":null}}\n").await;
        assert!(matches!(answer, Response::Policies(_)), "{answer:?}");
        let Response::Status(status) = ask("{\"version\":1,\"message\":\"status\"}\n").await else {
            panic!("a status is asked for");
        };
        assert_eq!(
            (status.node.as_str(), status.network),
            ("here", None),
            "its world is gone"
        );
        let metrics = ask("{\"version\":1,\"message\":{\"metrics\":\"openmetrics\"}}\n").await;
        assert!(matches!(metrics, Response::Metrics(text) if text.ends_with("# EOF\n")));
        let flows = "{\"version\":1,\"message\":{\"flows\":{\"wanted\":{\"denied\":true,\"opened\":false},\"most\":9}}}\n";
        assert!(matches!(ask(flows).await, Response::Flows(batch) if batch.flows.is_empty()));
        let log = ask("{\"version\":1,\"message\":{\"log\":null}}\n").await;
        assert_eq!(log, Response::Log(Filter::default()));
        let unknown = "{\"version\":1,\"message\":{\"policies\":{\"pod\":{\"namespace\":\"shop\",\"name\":\"a\"}}}}\n";
        let problem = Problem::UnknownPod {
            pod: crate::model::Key::new("shop", "a"),
            node: "here".to_owned(),
        };
        assert_eq!(refused(ask(unknown).await), problem.into());
        let other = ask("{\"version\":2,\"message\":{\"future\":1}}\n").await;
        assert!(refused(other).message.contains("version 2"));
        for line in ["\n", "x\n", "{\"version\":1,\"message\":{}}\n"] {
            let message = refused(ask(line).await).message;
            assert!(message.starts_with("unreadable request"), "{message}");
        }
    }
}
