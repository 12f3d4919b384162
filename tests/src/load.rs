//! Load on several paths at once: connections that stay, others that come and go, and what became of them.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::app::echoes;
use crate::pod::Pod;

/// A path under load: from a pod to an echo server.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    /// What it is called where it is reported.
    pub name: &'static str,
    /// Who connects.
    pub client: &'a Pod<'a>,
    /// To where.
    pub to: SocketAddr,
    /// What is said.
    pub words: &'static [u8],
}

/// How much of it, on each path.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Connections that stay open, each used several times a second.
    pub open: u32,
    /// New connections a second.
    pub rate: u32,
}

/// What a path's connections met.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Exchanges in connections that stay.
    pub exchanges: u32,
    /// Connections that stay and did not; each was opened again.
    pub cut: Vec<io::Error>,
    /// The longest that one of them waited for an answer.
    pub longest_exchange: Duration,
    /// New connections that worked, from the first packet to the answer.
    pub opened: u32,
    /// Those that did not.
    pub failed: Vec<io::Error>,
    /// The longest that one took which worked.
    pub longest_open: Duration,
}

/// Threads that open connections, for each path: one that waits for an agent does not hold up the others.
const OPENERS: u32 = 8;

/// Runs something under load on all paths; tells of each, in their order.
///
/// # Errors
/// Of the work, or of a path that does not work before it.
pub fn during(
    paths: &[Path<'_>],
    size: Size,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Outcome>> {
    let done = AtomicBool::new(false);
    let mut open = Vec::new();
    for path in paths {
        let streams = (0..size.open).map(|_| path.client.connect(path.to));
        open.push(streams.collect::<io::Result<Vec<_>>>()?);
    }
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (path, streams) in paths.iter().zip(open) {
            let mut of_path = vec![scope.spawn(|| path.stay(streams, &done))];
            let openers = (0..OPENERS).map(|_| scope.spawn(|| path.come_and_go(size.rate, &done)));
            of_path.extend(openers);
            threads.push(of_path);
        }
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let outcome = threads.into_iter().map(|of_path| {
            let parts = of_path
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            parts.fold(Outcome::default(), Outcome::and)
        });
        let outcomes = outcome.collect();
        worked.map(|()| outcomes)
    })
}

impl Path<'_> {
    fn stay(&self, mut streams: Vec<TcpStream>, done: &AtomicBool) -> Outcome {
        let mut outcome = Outcome::default();
        while !done.load(Ordering::Relaxed) {
            for stream in &mut streams {
                let began = Instant::now();
                match echoes(stream, self.words) {
                    Ok(()) => outcome.exchanges += 1,
                    Err(error) => {
                        outcome.cut.push(error);
                        if let Ok(again) = self.client.connect(self.to) {
                            *stream = again;
                        }
                        continue;
                    }
                }
                outcome.longest_exchange = outcome.longest_exchange.max(began.elapsed());
            }
            sleep(Duration::from_millis(20));
        }
        outcome
    }

    fn come_and_go(&self, rate: u32, done: &AtomicBool) -> Outcome {
        let pause = Duration::from_secs(1) * OPENERS / rate.max(1);
        let mut outcome = Outcome::default();
        while !done.load(Ordering::Relaxed) {
            let began = Instant::now();
            let connected = self.client.connect(self.to);
            match connected.and_then(|stream| echoes(&stream, self.words)) {
                Ok(()) => {
                    outcome.opened += 1;
                    outcome.longest_open = outcome.longest_open.max(began.elapsed());
                }
                Err(error) => outcome.failed.push(error),
            }
            sleep(pause.saturating_sub(began.elapsed()));
        }
        outcome
    }
}

impl Outcome {
    /// Both taken together.
    fn and(mut self, mut other: Self) -> Self {
        self.cut.append(&mut other.cut);
        self.failed.append(&mut other.failed);
        Self {
            exchanges: self.exchanges + other.exchanges,
            longest_exchange: self.longest_exchange.max(other.longest_exchange),
            opened: self.opened + other.opened,
            longest_open: self.longest_open.max(other.longest_open),
            ..self
        }
    }

    /// Whether nobody noticed anything.
    pub fn is_unharmed(&self) -> bool {
        self.cut.is_empty() && self.failed.is_empty() && self.exchanges > 50 && self.opened > 50
    }
}
