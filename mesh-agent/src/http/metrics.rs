//! `/metrics`.

use http::StatusCode;

use super::{Answer, Asked, Endpoints};
use crate::telemetry::{Exposition, Scraper};

/// The metrics, where Prometheus and Istio's dashboards look for them.
pub struct Metrics(pub Scraper);

impl Endpoints for Metrics {
    async fn answer(&self, asked: Asked) -> Answer {
        if !["/metrics", "/stats/prometheus"].contains(&asked.path.as_str()) {
            return Answer::not_found("/metrics, /stats/prometheus");
        }
        if !asked.is_get() {
            return Answer::not_so("GET, HEAD");
        }
        let exposition = Exposition::accepted(Some(&asked.accept));
        Answer {
            content_type: exposition.content_type().to_owned(),
            ..Answer::text(StatusCode::OK, self.0.scrape(exposition).await)
        }
    }
}
