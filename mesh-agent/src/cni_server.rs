//! EDGE: the Unix socket on which `mesh-cni` asks for pods to be attached; messages in `mesh_common::cni`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::cni::{
    Attachment, Envelope, MAX_LINE, PodRef, Reason, Refusal, Request, Response, VERSION,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::attachments::Record;
use crate::clock;
use crate::model::{Key, Snapshot};
use crate::telemetry::{Counters, Verb};
use crate::unix_socket;
use crate::world::{Command, Reply, Wired, doubts, refusal};

/// How long an ADD waits for the source to tell its pod: the runtime may know it first.
const POD_WAIT: Duration = Duration::from_secs(10);
/// How long a caller may be silent between its messages.
const IDLE: Duration = Duration::from_mins(1);

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("--cni-socket {path}")]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The server of CNI requests.
pub struct CniServer {
    listener: unix_socket::Listener,
    /// Where the binary leaves releases that found no agent.
    queue: PathBuf,
    commands: mpsc::Sender<Command>,
    world: watch::Receiver<Snapshot>,
    counters: Arc<Counters>,
}

impl CniServer {
    /// Takes the socket over from an agent that is gone; only root may speak to it.
    pub fn bind(
        path: &Path,
        commands: mpsc::Sender<Command>,
        world: watch::Receiver<Snapshot>,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        let listener = unix_socket::bind(path).map_err(|source| Error {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            queue: path.with_file_name("released"),
            commands,
            world,
            counters,
        })
    }

    /// Serves until shutdown; requests that have begun are finished.
    pub async fn run(self, shutdown: CancellationToken) {
        replay(&self.queue, &self.commands).await;
        let calls = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let call = Call {
                        queue: self.queue.clone(),
                        commands: self.commands.clone(),
                        world: self.world.clone(),
                        counters: self.counters.clone(),
                        began: clock::now(),
                    };
                    calls.spawn(async move {
                        if let Err(error) = call.serve(stream).await {
                            debug!(
                                error = &error as &dyn std::error::Error,
                                "a CNI call broke off"
                            );
                        }
                    });
                }
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot accept a CNI call"
                    );
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        calls.close();
        calls.wait().await;
    }
}

fn verb(request: &Request) -> Verb {
    match request {
        Request::Reserve { .. } | Request::Attach { .. } => Verb::Add,
        Request::Release { .. } => Verb::Del,
        Request::Check { .. } => Verb::Check,
        Request::Collect { .. } => Verb::Gc,
        Request::Status => Verb::Status,
    }
}

/// Carries out the DELs that found no agent: the binary leaves each as a file beside the socket.
///
/// Called with the socket bound, so that a DEL that comes now either finds the agent or has left its file already.
async fn replay(queue: &Path, commands: &mpsc::Sender<Command>) {
    for entry in fs::read_dir(queue).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with('.') {
            // Being written.
            continue;
        }
        let path = entry.path();
        let queued = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(attachment) = queued {
            if ask(commands, |reply| Command::Release(attachment, reply))
                .await
                .is_err()
            {
                // Stopping; the next agent finds it.
                return;
            }
        } else {
            warn!(path = %path.display(), "not a queued release; GC or DEL has to come again");
        }
        if let Err(error) = fs::remove_file(&path) {
            warn!(path = %path.display(), error = &error as &dyn std::error::Error, "cannot remove");
        }
    }
}

/// One connection of the binary.
struct Call {
    queue: PathBuf,
    commands: mpsc::Sender<Command>,
    world: watch::Receiver<Snapshot>,
    counters: Arc<Counters>,
    began: Instant,
}

impl Call {
    async fn serve(self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let Some(request) = receive(&mut reader, &mut writer).await? else {
            return Ok(());
        };
        let verb = verb(&request);
        let response = match request {
            Request::Reserve {
                attachment,
                pod,
                netns,
                network,
            } => {
                return self
                    .add(attachment, pod, netns, network, reader, writer)
                    .await;
            }
            Request::Attach { .. } => Err(refusal(
                Reason::Invalid,
                "Attach without Reserve on the same connection".to_owned(),
                "update mesh-cni and mesh-agent together",
            )),
            Request::Release { attachment } => {
                self.done(|reply| Command::Release(attachment, reply)).await
            }
            Request::Check { attachment } => {
                ask(&self.commands, |it| Command::Check(attachment, it))
                    .await
                    .map(Response::Reserved)
            }
            Request::Collect { network, keep } => {
                replay(&self.queue, &self.commands).await;
                self.done(|reply| Command::Collect(network, keep, reply))
                    .await
            }
            Request::Status => self.done(Command::Status).await,
        };
        self.answer(verb, &mut writer, response).await
    }

    /// Answers a call, which it ends, and counts it.
    async fn answer(
        &self,
        verb: Verb,
        writer: &mut OwnedWriteHalf,
        response: Result<Response, Refusal>,
    ) -> io::Result<()> {
        self.counters
            .called(verb, response.is_ok(), self.began.elapsed());
        send(writer, response).await
    }

    /// Reserve, wait for the binary to wire the pod, attach; whatever ends it early gives the reservation back.
    async fn add(
        mut self,
        attachment: Attachment,
        pod: Option<PodRef>,
        netns: String,
        network: String,
        mut reader: impl AsyncBufReadExt + Unpin,
        mut writer: OwnedWriteHalf,
    ) -> io::Result<()> {
        if let Some(pod) = &pod
            && let Err(refusal) = self.wait_for(pod).await
        {
            return self.answer(Verb::Add, &mut writer, Err(refusal)).await;
        }
        let reserved = attachment.clone();
        let wiring = match ask(&self.commands, |reply| Command::Reserve(reserved, reply)).await {
            Ok(wiring) => wiring,
            Err(refusal) => return self.answer(Verb::Add, &mut writer, Err(refusal)).await,
        };
        let addresses = wiring.addresses.clone();
        let sent = send(&mut writer, Ok(Response::Reserved(wiring))).await;
        let next = match sent {
            Ok(()) => receive(&mut reader, &mut writer).await,
            Err(error) => Err(error),
        };
        let Ok(Some(Request::Attach {
            host_ifindex,
            host_mac,
            mac,
        })) = next
        else {
            self.counters.called(Verb::Add, false, self.began.elapsed());
            let cancel = Command::Cancel(attachment, addresses);
            let _ = self.commands.send(cancel).await;
            return next.map(|_| ());
        };
        let host_ifname = attachment.host_ifname();
        let record = Record {
            attachment: attachment.clone(),
            pod,
            netns,
            network,
            addresses: addresses.clone(),
            host_ifname,
            mac,
            host_mac,
            sequence: 0,
        };
        let wired = Box::new(Wired {
            record,
            host_ifindex,
        });
        let attached = self.done(|reply| Command::Attach(wired, reply)).await;
        if attached.is_err() {
            let cancel = Command::Cancel(attachment, addresses);
            let _ = self.commands.send(cancel).await;
        }
        self.answer(Verb::Add, &mut writer, attached).await
    }

    async fn done(&self, command: impl FnOnce(Reply<()>) -> Command) -> Result<Response, Refusal> {
        ask(&self.commands, command).await.map(|()| Response::Done)
    }

    /// Waits until the source has told the pod: it must not start before it is known whether it is enrolled.
    async fn wait_for(&mut self, pod: &PodRef) -> Result<(), Refusal> {
        let key = Key::new(pod.namespace.as_str(), pod.name.as_str());
        let uid = pod.uid.as_deref();
        let known = |snapshot: &Snapshot| {
            // The namespace's labels decide, too, and sources tell kinds in no order.
            let pod = snapshot.namespace(&key.namespace).and(snapshot.pod(&key));
            pod.is_some_and(|pod| uid.is_none_or(|uid| pod.uid.is_empty() || *pod.uid == *uid))
        };
        let waited = timeout(POD_WAIT, self.world.wait_for(known)).await;
        match waited.map(|it| it.map(drop)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(refusal(
                Reason::TryAgain,
                format!(
                    "the source has not told pod {key} and its namespace within {} s{}",
                    POD_WAIT.as_secs(),
                    doubts(&self.world.borrow())
                ),
                "check K8S_POD_NAMESPACE, K8S_POD_NAME and K8S_POD_UID in CNI_ARGS against the Pod object",
            )),
        }
    }
}

/// Reads one request; `None` when the caller has closed. A message that is not one is answered and ends the call.
async fn receive(
    reader: &mut (impl AsyncBufReadExt + Unpin),
    writer: &mut OwnedWriteHalf,
) -> io::Result<Option<Request>> {
    let mut line = Vec::new();
    let mut limited = reader.take(MAX_LINE as u64);
    let read = timeout(IDLE, limited.read_until(b'\n', &mut line)).await;
    if read.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
        return Ok(None);
    }
    match parse(&line) {
        Ok(request) => Ok(Some(request)),
        Err(refusal) => {
            send(writer, Err(refusal)).await?;
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

/// Reads a request.
///
/// # Errors
/// What its sender is told: it is of another version, or none at all.
pub fn parse(line: &[u8]) -> Result<Request, Refusal> {
    let refused =
        |reason, message| refusal(reason, message, "update mesh-cni and mesh-agent together");
    let invalid = |error: serde_json::Error| refused(Reason::Invalid, error.to_string());
    // The version first, as the rest may be of another shape in another version.
    let Envelope { version, message } =
        serde_json::from_slice::<Envelope<serde_json::Value>>(line).map_err(invalid)?;
    if version != VERSION {
        let message = format!("message version {version}, this agent speaks {VERSION}");
        return Err(refused(Reason::Version, message));
    }
    serde_json::from_value(message).map_err(invalid)
}

async fn send(writer: &mut OwnedWriteHalf, response: Result<Response, Refusal>) -> io::Result<()> {
    let message = response.unwrap_or_else(Response::Refused);
    let mut line = serde_json::to_vec(&Envelope {
        version: VERSION,
        message,
    })?;
    line.push(b'\n');
    writer.write_all(&line).await
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    commands
        .send(command(reply))
        .await
        .map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())?
}

fn stopping() -> Refusal {
    refusal(
        Reason::TryAgain,
        "the agent is stopping".to_owned(),
        "try again",
    )
}
