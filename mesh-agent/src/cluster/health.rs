//! CORE: how the source is doing, for whoever asks the agent.

use std::collections::BTreeMap;

use serde::Serialize;

/// How a source is doing. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Which source: `kubernetes`, or the directory.
    pub source: String,
    /// Whether what was told is how things are.
    pub state: SourceState,
    /// Since when it is in this state.
    pub since: u64,
    /// When what was told was last known to be how things are; none before anything was told.
    pub as_of: Option<u64>,
    /// What went wrong last, and when; stays when it is over.
    pub last_error: Option<Failure>,
    /// When the source last told something.
    pub last_event: Option<u64>,
    /// Number of objects by their kind.
    pub objects: BTreeMap<&'static str, usize>,
    /// Kinds that the API server does not serve, such as those of Istio without its resource definitions.
    pub absent: Vec<&'static str>,
    /// Number of objects or files that cannot be understood.
    pub left_out: usize,
}

/// Whether what a source told is how things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceState {
    /// Nothing was told yet.
    Starting,
    /// It is, but for what is on its way.
    Live,
    /// It was; the source cannot be asked in part or at all.
    Stale,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// When, in seconds since 1970.
    pub at: u64,
    /// What.
    pub error: String,
}

impl Health {
    /// A source of which nothing is known yet.
    pub fn starting(source: impl Into<String>, now: u64) -> Self {
        Self {
            source: source.into(),
            state: SourceState::Starting,
            since: now,
            as_of: None,
            last_error: None,
            last_event: None,
            objects: BTreeMap::new(),
            absent: Vec::new(),
            left_out: 0,
        }
    }

    /// Goes over to another state.
    pub(super) fn enter(&mut self, state: SourceState, now: u64) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}
