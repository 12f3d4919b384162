//! `/config_dump`, `/logging` and the live map, on loopback.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Answer, Asked, Endpoints};
use crate::logging::Logging;
use crate::map;
use crate::telemetry::{Graph, merge};

/// What the agent knows, and what it logs.
pub struct Admin {
    dump: Arc<dyn Fn() -> Value + Send + Sync>,
    graph: Arc<dyn Fn() -> BoxFuture<'static, Graph> + Send + Sync>,
    logging: Logging,
}

impl Admin {
    /// What `dump` and `graph` tell, and `logging` to be changed.
    pub fn new(
        dump: Arc<dyn Fn() -> Value + Send + Sync>,
        graph: Arc<dyn Fn() -> BoxFuture<'static, Graph> + Send + Sync>,
        logging: Logging,
    ) -> Self {
        Self {
            dump,
            graph,
            logging,
        }
    }

    /// Each connection once, also those whose two ends are here.
    async fn graph(&self) -> Graph {
        merge(vec![(self.graph)().await])
    }

    async fn config_dump(&self) -> Answer {
        let dump = self.dump.clone();
        // A large cluster's takes a moment, in which nobody is to wait.
        let told = tokio::task::spawn_blocking(move || Answer::json(StatusCode::OK, &dump()));
        told.await.unwrap_or_else(|error| {
            Answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        })
    }

    fn logging(&self, asked: &Asked) -> Answer {
        let mut words = asked.query.split('&').filter(|it| !it.is_empty());
        let changed = words.try_for_each(|word| match word.split_once('=').unwrap_or((word, "")) {
            ("level", level) => self.logging.set(&decoded(level)),
            ("reset", _) => self.logging.reset(),
            _ => Err(format!(
                "{word:?} is neither level=LEVEL, level=TARGET:LEVEL nor reset"
            )),
        });
        match changed {
            Ok(()) => {
                let level = self.logging.level();
                Answer::text(StatusCode::OK, format!("current log level is {level}\n"))
            }
            Err(error) => Answer::text(StatusCode::BAD_REQUEST, error + "\n"),
        }
    }
}

impl Endpoints for Admin {
    async fn answer(&self, asked: Asked) -> Answer {
        if let Some(answer) = map::answer(&asked, async || self.graph().await).await {
            return answer;
        }
        match asked.path.as_str() {
            "/config_dump" if asked.is_get() => self.config_dump().await,
            "/config_dump" => Answer::not_so("GET, HEAD"),
            "/logging" if asked.method == Method::POST => self.logging(&asked),
            "/logging" => Answer::not_so("POST"),
            _ => Answer::not_found("/config_dump, POST /logging?level=LEVEL, /map, /map.json"),
        }
    }
}

/// A word of a query with its `%XX` as the bytes they stand for.
fn decoded(word: &str) -> String {
    let bytes = word.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| word.get(at + 1..at + 3))
            .flatten()
            .and_then(|it| u8::from_str_radix(it, 16).ok());
        decoded.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
