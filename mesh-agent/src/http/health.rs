//! `/healthz/ready` and `/healthz/live`.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Answer, Asked, Endpoints};
use crate::clock;
use crate::status::{Problem, Source};
use crate::world::Command;

/// Whether the agent serves its node.
pub struct Health {
    node: String,
    world: mpsc::Sender<Command>,
    source: Arc<dyn Fn() -> Option<Source> + Send + Sync>,
    /// What kept it from serving when the owner of the world was asked last, and when that was.
    last: Mutex<Option<(Instant, Vec<Problem>)>>,
}

/// The answer for programs.
#[derive(Serialize)]
struct Readiness<'a> {
    node: &'a str,
    ready: bool,
    pending: &'a [Problem],
}

impl Health {
    /// The health of a node's agent, as the owner of its `world` knows it, and its `source`.
    pub fn new(
        node: &str,
        world: mpsc::Sender<Command>,
        source: Arc<dyn Fn() -> Option<Source> + Send + Sync>,
    ) -> Self {
        Self {
            node: node.to_owned(),
            world,
            source,
            last: Mutex::default(),
        }
    }

    /// What keeps the agent from serving.
    async fn pending(&self) -> Vec<Problem> {
        let (reply, told) = oneshot::channel();
        // An agent that stops no longer takes commands.
        if self.world.send(Command::Pending(reply)).await.is_err() {
            return vec![Problem {
                what: "the agent is stopping".to_owned(),
                remedy: "wait for the next one".to_owned(),
            }];
        }
        let now = clock::now();
        let Ok(Ok(mut pending)) = timeout(PATIENCE, told).await else {
            // While it compiles policy, say, it serves as it did.
            let last = self.last().clone();
            let last = last.filter(|(at, _)| now.saturating_duration_since(*at) < BUSY);
            return last.map_or_else(busy, |(_, pending)| pending);
        };
        // A world that cannot be told is what all else waits for.
        if !pending.is_empty()
            && let Some(source) = (self.source)()
        {
            pending.push(Problem {
                what: format!("source {}: {}", source.name, source.detail),
                remedy: "mend what it says, if anything".to_owned(),
            });
        }
        *self.last() = Some((now, pending.clone()));
        pending
    }

    fn last(&self) -> MutexGuard<'_, Option<(Instant, Vec<Problem>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ready(&self, asked: &Asked) -> Answer {
        let pending = self.pending().await;
        let status = if pending.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        if asked.wants_json() {
            let readiness = Readiness {
                node: &self.node,
                ready: pending.is_empty(),
                pending: &pending,
            };
            return Answer::json(status, &readiness);
        }
        let mut text = String::new();
        for Problem { what, remedy } in &pending {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{what}; {remedy}");
        }
        if text.is_empty() {
            text.push_str("ready\n");
        }
        Answer::text(status, text)
    }
}

impl Endpoints for Health {
    async fn answer(&self, asked: Asked) -> Answer {
        match asked.path.as_str() {
            "/healthz/ready" | "/healthz/live" if !asked.is_get() => Answer::not_so("GET, HEAD"),
            "/healthz/ready" => self.ready(&asked).await,
            "/healthz/live" => Answer::text(StatusCode::OK, "alive\n"),
            _ => Answer::not_found("/healthz/ready, /healthz/live"),
        }
    }
}

fn busy() -> Vec<Problem> {
    vec![Problem {
        what: "the agent is busy".to_owned(),
        remedy: "ask again; if it stays so, see its log".to_owned(),
    }]
}

/// How long the owner of the world may take: the kubelet's probes wait a second.
const PATIENCE: Duration = Duration::from_millis(900);
/// How long it may be busy before it is held to serve no more.
const BUSY: Duration = Duration::from_mins(1);
