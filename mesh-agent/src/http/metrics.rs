//! `/metrics`.

use std::sync::Arc;

use http::StatusCode;

use super::{Answer, Asked, Endpoints};

/// Metrics as text, and what kind of text it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposition {
    /// Its media type.
    pub content_type: String,
    /// The text.
    pub body: String,
}

/// The metrics, where Prometheus and Istio's dashboards look for them.
pub struct Metrics {
    tell: Arc<dyn Fn(&str) -> Exposition + Send + Sync>,
}

impl Metrics {
    /// Metrics that `tell` writes in a way that an `Accept` header asks for.
    pub fn new(tell: Arc<dyn Fn(&str) -> Exposition + Send + Sync>) -> Self {
        Self { tell }
    }

    /// Metrics that only tell which agent this is.
    pub fn of_build() -> Self {
        Self::new(Arc::new(|_| Exposition {
            content_type: "text/plain; version=0.0.4; charset=utf-8".to_owned(),
            body: format!(
                "# HELP mesh_build_info The agent that runs.\n# TYPE mesh_build_info gauge\nmesh_build_info{{version=\"{}\"}} 1\n",
                env!("CARGO_PKG_VERSION")
            ),
        }))
    }
}

impl Endpoints for Metrics {
    async fn answer(&self, asked: Asked) -> Answer {
        if !["/metrics", "/stats/prometheus"].contains(&asked.path.as_str()) {
            return Answer::not_found("/metrics, /stats/prometheus");
        }
        if !asked.is_get() {
            return Answer::not_so("GET, HEAD");
        }
        let tell = self.tell.clone();
        // Thousands of series take a moment, in which nobody is to wait.
        let told = tokio::task::spawn_blocking(move || tell(&asked.accept)).await;
        match told {
            Ok(Exposition { content_type, body }) => Answer {
                content_type,
                ..Answer::text(StatusCode::OK, body)
            },
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
