//! Settings of the source.

use std::path::PathBuf;
use std::time::Duration;

use super::Access;

/// Settings of the source.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the API server is reached.
    pub access: Access,
    /// Directory in which the world is kept for the next start.
    pub state: PathBuf,
    /// When things are done.
    pub timing: Timing,
}

/// When things are done.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long the API server is waited for at start before the world of an earlier run is told.
    pub patience: Duration,
    /// The first pause before something is tried again.
    pub first_retry: Duration,
    /// The longest.
    pub last_retry: Duration,
    /// How long the beginning of an answer, or a page of a list, may take.
    pub answer: Duration,
    /// How long a watch may be silent before it is taken up anew; servers send something about every minute.
    pub silence: Duration,
    /// How long a watch must have lasted for pauses to begin again with the first.
    pub settled: Duration,
    /// How long a server must deny that it knows a kind whose objects were told: one that starts may not know it yet.
    pub absence: Duration,
    /// The least time between two writes of the world.
    pub save: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(5),
            first_retry: Duration::from_millis(200),
            last_retry: Duration::from_secs(30),
            answer: Duration::from_mins(1),
            silence: Duration::from_secs(90),
            settled: Duration::from_secs(5),
            absence: Duration::from_mins(1),
            save: Duration::from_secs(5),
        }
    }
}
