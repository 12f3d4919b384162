//! Light traffic of every class: streams that stay open, connections that are opened all the time, and attempts at what
//! policy denies.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, sleep};
use std::time::{Duration, Instant};

use mesh_tests::app::echoes;
use mesh_tests::pod::{PATIENCE, Pod};
use mesh_tests::world::Family;

use crate::stage::{DENIED, OPEN, Stage};

/// What enrolled pods say to each other, and nobody on the wire may read.
pub(crate) const SECRET: &[u8] = b"nobody on the wire may read this";

/// What plain pods say, which shows that the wire is read.
pub(crate) const PLAIN: &[u8] = b"for all to read, whoever listens";

/// How long a SYN waits for its answer; one that was dropped is as good as a new attempt.
const ANSWER: Duration = Duration::from_millis(250);
/// How long a new connection may be silent.
const SILENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(60);

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Plain pods of two nodes.
    Plain,
    /// Enrolled pods of one node.
    Near,
    /// Enrolled pods of two nodes.
    Far,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Near, Self::Far];
}

/// A client that speaks to a server in one family.
pub(crate) struct Pair<'a> {
    pub(crate) class: Class,
    pub(crate) family: Family,
    client: &'a Pod<'a>,
    server: &'a Pod<'a>,
    seen: Mutex<Seen>,
}

/// What became of a pair's connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// When the last exchange began that went well, over a stream that is open.
    exchanged: Option<Instant>,
    /// When the last attempt began at a new connection that went well.
    opened: Option<Instant>,
    /// How open streams ended.
    broken: Vec<String>,
    /// How often the denied port answered.
    trespassed: usize,
    /// What became of the last new connection that failed.
    failed: Option<String>,
}

/// All pairs.
pub(crate) struct Traffic<'a> {
    pub(crate) pairs: Vec<Pair<'a>>,
    done: AtomicBool,
}

impl<'a> Traffic<'a> {
    /// The pairs of the stage; nobody speaks yet.
    pub(crate) fn of(stage: &'a Stage<'a>) -> Self {
        let ends = |class| match class {
            Class::Plain => (&stage.plain, &stage.plain_far),
            Class::Near => (&stage.client, &stage.near),
            Class::Far => (&stage.client, &stage.far),
        };
        let pair = |class, family| {
            let (client, server) = ends(class);
            let seen = Mutex::default();
            Pair {
                class,
                family,
                client,
                server,
                seen,
            }
        };
        let both = |class| Family::BOTH.map(|family| pair(class, family));
        Self {
            pairs: Class::ALL.into_iter().flat_map(both).collect(),
            done: AtomicBool::new(false),
        }
    }

    /// Has everybody speak until [`Self::end`].
    pub(crate) fn begin<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        for pair in &self.pairs {
            scope.spawn(|| self.hold(pair));
            scope.spawn(|| self.repeat(|| pair.open()));
            scope.spawn(|| self.repeat(|| pair.trespass()));
        }
    }

    /// Has everybody stop.
    pub(crate) fn end(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    fn repeat(&self, turn: impl Fn()) {
        while !self.done.load(Ordering::Relaxed) {
            turn();
            sleep(PAUSE);
        }
    }

    fn hold(&self, pair: &Pair<'_>) {
        let held = Mutex::new(None);
        self.repeat(|| {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            pair.exchange(&mut held);
        });
    }
}

impl Pair<'_> {
    /// What was seen.
    pub(crate) fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// What was seen since the last time of that which must not be.
    pub(crate) fn take(&self) -> (Vec<String>, usize) {
        let mut seen = self.lock();
        (
            std::mem::take(&mut seen.broken),
            std::mem::take(&mut seen.trespassed),
        )
    }

    /// How long after an instant attempts began that went well: at an exchange over the open stream, at a new connection.
    pub(crate) fn recovered(&self, since: Instant) -> Option<Duration> {
        let seen = self.lock();
        let last = seen.exchanged?.min(seen.opened?);
        last.checked_duration_since(since)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Twice more than a packet, of enrolled pods with the secret throughout.
    fn words(&self) -> Vec<u8> {
        let words: &[u8] = match self.class {
            Class::Plain => PLAIN,
            Class::Near | Class::Far => SECRET,
        };
        words.repeat(100)
    }

    fn connect(&self, port: u16, silence: Duration) -> io::Result<TcpStream> {
        let to = SocketAddr::new(self.server.ip(self.family), port);
        let connect = || TcpStream::connect_timeout(&to, ANSWER);
        let stream = self.client.netns().run(connect)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        Ok(stream)
    }

    fn exchange(&self, held: &mut Option<TcpStream>) {
        let began = Instant::now();
        if held.is_none() {
            *held = self.connect(OPEN, PATIENCE).ok();
        }
        let Some(stream) = held else { return };
        match echoes(stream, &self.words()) {
            Ok(()) => self.lock().exchanged = Some(began),
            Err(error) => {
                self.lock().broken.push(error.to_string());
                *held = None;
            }
        }
    }

    fn open(&self) {
        let began = Instant::now();
        let opened = self.connect(OPEN, SILENCE);
        let done = opened.and_then(|stream| echoes(&stream, &self.words()));
        let mut seen = self.lock();
        match done {
            Ok(()) => seen.opened = Some(began),
            Err(error) => seen.failed = Some(error.to_string()),
        }
    }

    fn trespass(&self) {
        let opened = self.connect(DENIED, ANSWER);
        if opened.is_ok_and(|stream| echoes(&stream, SECRET).is_ok()) {
            self.lock().trespassed += 1;
        }
    }
}
