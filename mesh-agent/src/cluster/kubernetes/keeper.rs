//! When the world goes to disk: some time after it has changed, one write at a time, and the larger it is the less often.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tracing::{error, warn};

use super::mirror::Listing;
use super::store::{self, Stored};
use crate::causes::causes;
use crate::clock;
use crate::cluster::resource::Resource;

/// Bytes a second that go to disk at most, on average.
const RATE: u64 = 1 << 20;

/// Reads the world of an earlier run; one that is damaged is told, put out of the way and never used.
pub(super) fn load(state: &Path) -> Option<Stored> {
    let error = match store::load(state) {
        Ok(stored) => return stored,
        Err(error) => causes(&error),
    };
    match store::set_aside(state) {
        Ok(aside) => {
            let file = aside.display();
            warn!(%file, error, "the stored world is not used and was set aside");
        }
        Err(cause) => {
            let state = state.display();
            warn!(%state, error, %cause, "the stored world is not used");
        }
    }
    None
}

/// The keeper of the world on disk. Changes of the last moments before the agent ends may be missing there.
pub(super) struct Keeper {
    state: PathBuf,
    /// The least time between two writes.
    pause: Duration,
    /// Whether the world on disk is another one.
    is_stale: bool,
    /// When it may be written next.
    next: Instant,
    /// The write that is going on, if one is.
    writes: JoinSet<io::Result<u64>>,
}

impl Keeper {
    pub(super) fn new(state: PathBuf, pause: Duration) -> Self {
        Self {
            state,
            pause,
            is_stale: false,
            next: clock::now(),
            writes: JoinSet::new(),
        }
    }

    pub(super) fn has_changed(&mut self) {
        self.is_stale = true;
    }

    /// Waits until the world is to be written. May be dropped at any time.
    pub(super) async fn turn(&mut self) {
        if let Some(written) = self.writes.join_next().await {
            self.written(written.unwrap_or_else(|panic| Err(io::Error::other(panic))));
        }
        if !self.is_stale {
            return pending().await;
        }
        sleep_until(self.next.into()).await;
    }

    /// Begins to write the world, which was so at `as_of` (seconds since 1970) at the latest.
    pub(super) fn save(&mut self, world: BTreeMap<Resource, Listing>, as_of: u64) {
        self.is_stale = false;
        let state = self.state.clone();
        self.writes
            .spawn_blocking(move || store::save(&state, &world, as_of));
    }

    fn written(&mut self, size: io::Result<u64>) {
        let size = size.unwrap_or_else(|error| {
            error!(
                state = %self.state.display(), %error,
                "the world cannot be stored: an agent that starts while the Kubernetes API is away will not know it",
            );
            self.is_stale = true;
            0
        });
        self.next = clock::now() + self.pause.max(Duration::from_secs(size / RATE));
    }
}
