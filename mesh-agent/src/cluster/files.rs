//! `--source files`: objects from a directory of YAML and JSON files, which is watched.
//!
//! An edit takes effect within some tens of milliseconds. Every two seconds the directory is looked at again whatever the
//! kernel told, which finds what no notification tells: files behind symbolic links, a directory that was replaced, a watch
//! that could not be had. Files are taken as written when they are closed or renamed into place.
//!
//! At start there is nothing that a file said last: the world is not told to be whole before every file is understood, so
//! that an agent does not give up what the one before knew, be it a policy or that a namespace is enrolled.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::directory::Directory;
use crate::model::Event;

/// How long writes may go on after the first before they are read.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the directory is looked at without any notification.
const RESCAN: Duration = Duration::from_secs(2);

/// Why the source cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be listed at start.
    #[error("cannot read the source directory {}; create it, or name another one with --source", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The thread that reads the files has panicked.
    #[error("the thread that reads the source files has ended")]
    Reader(#[source] tokio::task::JoinError),
}

/// Tells what the files of a directory say, once all are understood [`Event::Synced`], and every change, until `shutdown` or until nobody
/// listens.
///
/// # Errors
/// The directory cannot be listed at start. When it vanishes later, what it said last stays.
pub async fn run(
    path: PathBuf,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let told = tell(&path, &events);
    shutdown.run_until_cancelled(told).await.unwrap_or(Ok(()))
}

async fn tell(path: &Path, events: &mpsc::Sender<Event>) -> Result<(), Error> {
    let mut watch = Watch::new(path.to_owned());
    watch.renew();
    let (mut directory, first) = scan(Directory::new(path.to_owned())).await?;
    let first = first.map_err(|source| Error::Directory {
        path: path.to_owned(),
        source,
    })?;
    let objects = first.iter().filter(|it| matches!(it, Event::Upsert(_)));
    info!(directory = %path.display(), objects = objects.count(), "source files read");
    let mut news = first;
    let mut is_whole = false;
    let mut rescan = interval(RESCAN);
    rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_gone = false;
    loop {
        if !is_whole && directory.is_understood() {
            is_whole = true;
            news.push(Event::Synced);
        }
        for event in news {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = watch.changed.notified() => sleep(SETTLE).await,
            _ = rescan.tick() => {}
        }
        watch.renew();
        let (scanned, changes) = scan(directory).await?;
        directory = scanned;
        if let Err(error) = &changes
            && !is_gone
        {
            warn!(
                directory = %path.display(), %error,
                "cannot read the source directory; what it said last stays in force until it is back",
            );
        }
        is_gone = changes.is_err();
        news = changes.unwrap_or_default();
    }
}

/// Scans on a thread that may block; parsing a large world takes seconds.
async fn scan(mut directory: Directory) -> Result<(Directory, io::Result<Vec<Event>>), Error> {
    let scan = move || {
        let events = directory.scan();
        (directory, events)
    };
    tokio::task::spawn_blocking(scan)
        .await
        .map_err(Error::Reader)
}

/// The kernel's notifications about a directory.
struct Watch {
    path: PathBuf,
    changed: Arc<Notify>,
    /// The watcher, and what it watches.
    watched: Option<(RecommendedWatcher, Inode)>,
    has_failed: bool,
}

impl Watch {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            changed: Arc::new(Notify::new()),
            watched: None,
            has_failed: false,
        }
    }

    /// Watches the directory that stands at the path now; to be called before it is scanned.
    fn renew(&mut self) {
        let Ok(now) = std::fs::metadata(&self.path).map(|it| Inode::of(&it)) else {
            self.watched = None;
            return;
        };
        if self.watched.as_ref().is_some_and(|(_, then)| *then == now) {
            return;
        }
        match self.watch() {
            Ok(watcher) => {
                self.watched = Some((watcher, now));
                self.has_failed = false;
            }
            Err(error) => {
                if !self.has_failed {
                    warn!(
                        directory = %self.path.display(), %error,
                        "cannot watch the source directory, edits take seconds to be seen; \
                         raise fs.inotify.max_user_instances and fs.inotify.max_user_watches",
                    );
                }
                self.has_failed = true;
            }
        }
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let changed = self.changed.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // An error is a reason to look, too.
                if event.is_ok_and(|it| !it.need_rescan() && !is_change(it.kind)) {
                    return;
                }
                changed.notify_one();
            })?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

/// A directory itself, whatever its path: numbers are used again, with another time of birth.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
    born: Option<SystemTime>,
}

impl Inode {
    fn of(it: &std::fs::Metadata) -> Self {
        Self {
            device: it.dev(),
            number: it.ino(),
            born: it.created().ok(),
        }
    }
}

/// Whether a file may say something else now; half-written and merely read ones do not count.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(kind) => !matches!(kind, ModifyKind::Data(_)),
        EventKind::Any | EventKind::Create(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}
