//! EDGE: agents of one node follow one another: one writes the kernel's side, one more may wait to succeed it.
//!
//! Two locks in the state directory say who is who. Whoever holds `lock` is the only one that writes; `next` is held by who
//! waits for it, until its listeners are in their slots. So an agent that is told to stop knows whether it has a
//! successor, and serves new connections until that one does.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::time::sleep;
use tracing::info;

use crate::clock;

/// How long an earlier agent may take to let go once it is told to stop.
const WAIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// The right to write the kernel's side and the state directory.
#[derive(Debug)]
pub struct Ownership {
    state: PathBuf,
    owner: Option<Flock<File>>,
    next: Option<Flock<File>>,
}

/// Who comes after an agent that is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// A successor, whose listeners are in their slots.
    BySuccessor,
    /// Nobody: what is in the slots is ours to take out.
    ByNobody,
}

impl Ownership {
    /// Takes the state directory; waits for an earlier agent to let it go.
    ///
    /// # Errors
    /// The directory cannot be written, or another agent does not let go in time.
    pub async fn take(state: &Path) -> io::Result<Self> {
        fs::create_dir_all(state)?;
        let end = clock::now() + WAIT;
        let next = wait_for(&state.join("next"), end).await?;
        let owner = wait_for(&state.join("lock"), end).await?;
        Ok(Self {
            state: state.to_owned(),
            owner: Some(owner),
            next: Some(next),
        })
    }

    /// Says that new connections are served from here on.
    pub fn established(&mut self) {
        self.next = None;
    }

    /// Gives up the right to write.
    pub fn let_go(&mut self) {
        self.owner = None;
    }

    /// Lets a successor have the kernel's side, and waits until it serves; at once if none waits.
    ///
    /// May be dropped and called again. Without a successor the right to write is still held.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub async fn followed(&mut self) -> io::Result<Followed> {
        self.established();
        while try_lock(&self.state.join("next"))?.is_none() {
            self.owner = None;
            sleep(PAUSE).await;
        }
        if self.owner.is_none() {
            self.owner = try_lock(&self.state.join("lock"))?;
        }
        Ok(match self.owner {
            Some(_) => Followed::ByNobody,
            None => Followed::BySuccessor,
        })
    }
}

/// Whether an agent, other than one that has let go, owns a state directory.
pub fn is_owned(state: &Path) -> bool {
    try_lock(&state.join("lock")).is_ok_and(|lock| lock.is_none())
}

async fn wait_for(path: &Path, end: std::time::Instant) -> io::Result<Flock<File>> {
    let mut told = false;
    loop {
        if let Some(lock) = try_lock(path)? {
            return Ok(lock);
        }
        if clock::now() > end {
            let told = format!("{}: another agent runs on this directory", path.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, told));
        }
        if !told {
            info!(lock = %path.display(), "waiting for another agent to let go");
            told = true;
        }
        sleep(PAUSE).await;
    }
}

fn try_lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::create(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    #[tokio::test]
    async fn without_a_successor_the_right_is_kept() {
        let state = tempfile::tempdir().unwrap();
        let mut only = Ownership::take(state.path()).await.unwrap();
        assert_eq!(only.followed().await.unwrap(), Followed::ByNobody);
        assert!(is_owned(state.path()));
        drop(only);
        assert!(!is_owned(state.path()));
    }

    /// An agent that serves, and the next, which waits for it.
    async fn one_waits_for_another(state: &Path) -> (Ownership, JoinHandle<Ownership>) {
        let mut old = Ownership::take(state).await.unwrap();
        old.established();
        let path = state.to_owned();
        let new = tokio::spawn(async move { Ownership::take(&path).await.unwrap() });
        sleep(3 * PAUSE).await;
        (old, new)
    }

    #[tokio::test]
    async fn a_successor_is_waited_for_until_it_serves() {
        let state = tempfile::tempdir().unwrap();
        let (mut old, new) = one_waits_for_another(state.path()).await;
        assert!(!new.is_finished(), "the old one has not let go");

        let early = tokio::time::timeout(10 * PAUSE, old.followed()).await;
        assert!(early.is_err(), "the new one does not serve yet");
        let mut new = new.await.unwrap();
        new.established();
        assert_eq!(old.followed().await.unwrap(), Followed::BySuccessor);
    }

    #[tokio::test]
    async fn a_successor_that_died_is_none() {
        let state = tempfile::tempdir().unwrap();
        let (mut old, new) = one_waits_for_another(state.path()).await;
        let _ = tokio::time::timeout(10 * PAUSE, old.followed()).await;
        drop(new.await.unwrap());
        assert_eq!(old.followed().await.unwrap(), Followed::ByNobody);
        assert!(is_owned(state.path()));
    }
}
