//! The page's files, and the graph it draws.

use http::StatusCode;

use crate::http::{Answer, Asked};
use crate::telemetry::Graph;

/// The paths that [`answer`] answers, for who is lost.
pub const PATHS: &str = "/map, /map.json";

/// The files by path, and what they are.
const FILES: [(&str, &str, &str); 4] = [
    (
        "/map",
        "text/html; charset=utf-8",
        include_str!("page/map.html"),
    ),
    (
        "/map.css",
        "text/css; charset=utf-8",
        include_str!("page/map.css"),
    ),
    (
        "/map.js",
        "text/javascript; charset=utf-8",
        include_str!("page/map.js"),
    ),
    ("/map.svg", "image/svg+xml", include_str!("page/map.svg")),
];

/// Answers what is asked of the map, if it is; `graph` is made only when it is asked for.
pub async fn answer(asked: &Asked, graph: impl AsyncFnOnce() -> Graph) -> Option<Answer> {
    let path = asked.path.as_str();
    let file = FILES.iter().find(|(it, ..)| *it == path);
    if file.is_none() && path != "/map.json" {
        return None;
    }
    if !asked.is_get() {
        return Some(Answer::not_so("GET, HEAD"));
    }
    if !asked.is_for_loopback() {
        let text = "ask for it as localhost, or by a loopback address\n";
        return Some(Answer::text(StatusCode::FORBIDDEN, text));
    }
    let Some((_, content_type, text)) = file else {
        return Some(json(&graph().await));
    };
    Some(Answer {
        content_type: (*content_type).to_owned(),
        ..Answer::text(StatusCode::OK, *text)
    })
}

/// As short as it gets: it is asked for every second.
fn json(graph: &Graph) -> Answer {
    match serde_json::to_string(graph) {
        Ok(text) => Answer {
            content_type: "application/json".to_owned(),
            ..Answer::text(StatusCode::OK, text)
        },
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
