//! Which source the world comes from.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::files;
use super::health::{Health, SourceState};
use super::kubernetes::{self, Access, Options, Timing};
use crate::clock;
use crate::model::Event;

/// Which source the world comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The API server of a cluster.
    Kubernetes,
    /// A directory of files.
    Files(PathBuf),
}

/// Why a source cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// That of files.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// That of the API server.
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
}

impl FromStr for Source {
    type Err = Infallible;

    /// `kubernetes`, or a directory; one of that name is written `./kubernetes`.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "kubernetes" => Self::Kubernetes,
            path => Self::Files(path.into()),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Files(path) => path.display().fmt(f),
        }
    }
}

impl Source {
    /// How a source is doing that has not begun yet, and where to read how it is doing from then on.
    pub fn health(&self) -> (watch::Sender<Health>, watch::Receiver<Health>) {
        watch::channel(Health::starting(self.to_string(), clock::unix_seconds()))
    }

    /// Tells all that the source knows, then [`Event::Synced`], then every change, until `shutdown` or until nobody
    /// listens. `access` and `state` are used by [`Source::Kubernetes`]; that of files says nothing of its health but that it
    /// has begun.
    ///
    /// # Errors
    /// The source cannot be used at all; that it is away for a while is no reason.
    pub async fn run(
        self,
        access: Access,
        state: PathBuf,
        events: mpsc::Sender<Event>,
        health: watch::Sender<Health>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        match self {
            Self::Files(path) => {
                let now = clock::unix_seconds();
                health.send_modify(|it| it.enter(SourceState::Live, now));
                Ok(files::run(path, events, shutdown).await?)
            }
            Self::Kubernetes => {
                let timing = Timing::default();
                let options = Options {
                    access,
                    state,
                    timing,
                };
                Ok(kubernetes::run(options, events, health, shutdown).await?)
            }
        }
    }
}
