//! `/healthz/ready` and `/healthz/live`.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Answer, Asked, Endpoints};
use crate::status::{Problem, Source};
use crate::world::Command;

/// Whether the agent serves its node.
pub struct Health {
    node: String,
    world: mpsc::Sender<Command>,
    source: Arc<dyn Fn() -> Option<Source> + Send + Sync>,
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
        let Ok(Ok(mut pending)) = timeout(PATIENCE, told).await else {
            return vec![Problem {
                what: "the agent is busy".to_owned(),
                remedy: "ask again; if it stays so, see its log".to_owned(),
            }];
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
        pending
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

/// How long the owner of the world may take: the kubelet's probes wait a second.
const PATIENCE: Duration = Duration::from_millis(900);
