//! From an API server to events, whatever becomes of the server.

mod permissions;
mod scale;
mod server;
mod starts;
mod watches;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::server::Server;
use super::{Access, Options, Timing, run};
use crate::cluster::health::{Health, SourceState};
use crate::cluster::resource::Resource;
use crate::model::{Event, Object, Reference};

/// Nothing in these tests takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

fn timing() -> Timing {
    Timing {
        patience: Duration::from_millis(150),
        first_retry: Duration::from_millis(5),
        last_retry: Duration::from_millis(40),
        answer: Duration::from_secs(2),
        silence: Duration::from_secs(5),
        settled: Duration::from_secs(5),
        absence: Duration::from_millis(300),
        save: Duration::from_millis(20),
    }
}

/// A source that runs, and what it has told so far.
struct Run {
    events: mpsc::Receiver<Event>,
    health: watch::Receiver<Health>,
    /// What an agent would know.
    known: BTreeMap<Reference, Object>,
    left_out: BTreeMap<String, String>,
    _tasks: JoinSet<()>,
}

impl Run {
    fn start(server: &Server, state: &Path) -> Self {
        Self::with(server, state, timing())
    }

    fn with(server: &Server, state: &Path, timing: Timing) -> Self {
        let (told, events) = mpsc::channel(16);
        let (reports, health) = watch::channel(Health::starting("kubernetes", 0));
        let options = Options {
            access: Access::Kubeconfig(server.kubeconfig(state)),
            state: state.to_owned(),
            timing,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            run(options, told, reports, CancellationToken::new())
                .await
                .unwrap();
        });
        Self {
            events,
            health,
            known: BTreeMap::new(),
            left_out: BTreeMap::new(),
            _tasks: tasks,
        }
    }

    /// The next event, taken in.
    async fn next(&mut self) -> Event {
        let event = timeout(PATIENCE, self.events.recv()).await;
        let event = event.expect("an event").expect("a source that runs");
        match &event {
            Event::Upsert(object) => {
                self.known.insert(object.reference(), object.clone());
            }
            Event::Delete(reference) => {
                assert!(
                    self.known.remove(reference).is_some(),
                    "{reference:?} was not there"
                );
            }
            Event::LeftOut {
                part,
                reason: Some(reason),
            } => {
                self.left_out.insert(part.to_string(), reason.to_string());
            }
            Event::LeftOut { part, reason: None } => {
                assert!(self.left_out.remove(&**part).is_some());
            }
            other => assert_eq!(*other, Event::Synced),
        }
        event
    }

    /// Reads on to [`Event::Synced`] and returns the names of what was told until then, in order.
    async fn synced(&mut self) -> Vec<Reference> {
        let mut told = Vec::new();
        loop {
            match self.next().await {
                Event::Synced => return told,
                Event::Upsert(object) => told.push(object.reference()),
                other => assert!(
                    matches!(other, Event::LeftOut { .. }),
                    "{other:?} before all is told"
                ),
            }
        }
    }

    /// Reads on until what is known is so.
    async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            self.next().await;
        }
    }

    async fn until_has(&mut self, reference: &Reference) {
        self.until(|it| it.known.contains_key(reference)).await;
    }

    async fn until_not(&mut self, reference: &Reference) {
        self.until(|it| !it.known.contains_key(reference)).await;
    }

    /// Nothing more is told for a while.
    async fn is_quiet(&mut self) {
        let event = timeout(Duration::from_millis(150), self.events.recv()).await;
        assert!(event.is_err(), "{event:?}");
    }

    async fn until_health(&mut self, is_so: impl Fn(&Health) -> bool) -> Health {
        let found = timeout(PATIENCE, self.health.wait_for(is_so)).await;
        found.expect("it to be so").unwrap().clone()
    }

    fn names(&self) -> Vec<String> {
        self.known.keys().map(|it| format!("{it:?}")).collect()
    }
}

fn pod(name: &str) -> Reference {
    Resource::Pod.reference("shop", name)
}

fn put_pod(server: &Server, name: &str, address: &str) {
    server.put(
        Resource::Pod,
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "cart"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "x", "env": [{"name": "a", "value": "b"}]}]},
            "status": {"podIP": address, "phase": "Running"},
        }),
    );
}

fn named(namespace: &str, name: &str) -> Value {
    match namespace {
        "" => json!({"metadata": {"name": name}}),
        _ => json!({"metadata": {"name": name, "namespace": namespace}}),
    }
}

/// One object of each kind.
fn put_world(server: &Server) {
    put_pod(server, "a", "10.0.0.1");
    server.put(Resource::Namespace, named("", "shop"));
    server.put(Resource::Node, named("", "n1"));
    server.put(Resource::Service, named("shop", "web"));
    let mut slice = named("shop", "web-1");
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "web"});
    slice["addressType"] = "IPv4".into();
    slice["endpoints"] = json!([{"addresses": ["10.0.0.1"]}]);
    server.put(Resource::EndpointSlice, slice);
    for resource in [
        Resource::NetworkPolicy,
        Resource::AuthorizationPolicy,
        Resource::PeerAuthentication,
    ] {
        server.put(resource, named("shop", "one"));
    }
}

async fn world() -> (Server, TempDir) {
    let server = Server::start().await;
    put_world(&server);
    (server, tempfile::tempdir().unwrap())
}

/// Waits until the world on disk has, or no longer has, a text.
async fn stored(state: &Path, text: &str) {
    let file = state.join("kubernetes.json");
    let found = timeout(PATIENCE, async {
        loop {
            let now = std::fs::read_to_string(&file).unwrap_or_default();
            if now.contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    found
        .await
        .unwrap_or_else(|_| panic!("{text} is not stored"));
}

fn is_live(it: &Health) -> bool {
    it.state == SourceState::Live
}

fn is_stale(it: &Health) -> bool {
    it.state == SourceState::Stale
}
