//! EDGE: the threads that carry connections.
//!
//! A connection, its stream and the tunnel under it stay on one thread: handed from thread to thread, every few bytes would
//! cost a futex and a wake-up.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::confine;

/// How many tasks run until the kernel is asked who else is ready.
///
/// A task that carries bulk takes hundreds of microseconds and is ready again at once; whoever exchanges a few bytes would
/// wait for as many of them as this, at every hop.
const EVENT_INTERVAL: u32 = 2;

/// Threads with a runtime each; dropping them ends what still runs there.
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Workers {
    /// Starts so many threads.
    ///
    /// # Errors
    ///
    /// The kernel's answer: no thread or no descriptor is to be had.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let mut workers = Self {
            handles: Vec::new(),
            threads: Vec::new(),
            stop: CancellationToken::new(),
        };
        for index in 0..count.get() {
            workers.add(index)?;
        }
        Ok(workers)
    }

    fn add(&mut self, index: usize) -> io::Result<()> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .build()?;
        let stop = self.stop.clone();
        self.handles.push(runtime.handle().clone());
        let thread = thread::Builder::new()
            .name(format!("carry-{index}"))
            .spawn(move || {
                if let Err(error) = confine::carrying() {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "a thread keeps what it has no use for"
                    );
                }
                runtime.block_on(stop.cancelled());
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// The runtimes, in the order of the workers' indices.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// How many connections of one kind each worker carries.
#[derive(Clone)]
pub(super) struct Loads(Arc<[AtomicUsize]>);

/// A connection's share of its worker's load, given back when dropped.
pub(super) struct Load {
    loads: Loads,
    /// The worker.
    pub(super) worker: usize,
}

impl Loads {
    /// No load yet, on so many workers.
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| AtomicUsize::default()).collect())
    }

    /// Gives a connection to the worker with the fewest; to `here`, which needs no waking, if it is one of those.
    pub(super) fn claim(&self, here: usize) -> Load {
        let load = |worker: usize| self.0[worker].load(Ordering::Relaxed);
        let others = (0..self.0.len()).filter(|it| *it != here);
        let worker = std::iter::once(here)
            .chain(others)
            .min_by_key(|it| load(*it))
            .expect("there is one here");
        self.0[worker].fetch_add(1, Ordering::Relaxed);
        Load {
            loads: self.clone(),
            worker,
        }
    }
}

impl Load {
    /// Readies a connection that was accepted on the worker `here` for its own.
    pub(super) fn hand(&self, here: usize, stream: TcpStream) -> io::Result<Handed> {
        if self.worker == here {
            Ok(Handed::Stays(stream))
        } else {
            stream.into_std().map(Handed::Moves)
        }
    }
}

/// A connection on its way to its worker.
pub(super) enum Handed {
    Stays(TcpStream),
    Moves(std::net::TcpStream),
}

impl Handed {
    /// Takes it, on the worker that is to carry it.
    pub(super) fn take(self) -> io::Result<TcpStream> {
        match self {
            Self::Stays(stream) => Ok(stream),
            Self::Moves(stream) => TcpStream::from_std(stream),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.loads.0[self.worker].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_is_chosen_and_here_before_others() {
        let loads = Loads::new(3);
        let claimed: Vec<_> = (0..5).map(|_| loads.claim(1)).collect();
        let workers: Vec<_> = claimed.iter().map(|it| it.worker).collect();
        assert_eq!(workers, [1, 0, 2, 1, 0]);
        drop(claimed);
        assert_eq!(loads.claim(2).worker, 2);
    }

    #[test]
    fn dropped_workers_end_what_runs() {
        struct Flag(Arc<AtomicUsize>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let ended = Arc::new(AtomicUsize::new(0));
        let workers = Workers::start(NonZeroUsize::new(2).unwrap()).unwrap();
        for handle in workers.handles() {
            let flag = Flag(ended.clone());
            handle.spawn(async move {
                let _flag = flag;
                std::future::pending::<()>().await;
            });
        }
        drop(workers);
        assert_eq!(ended.load(Ordering::SeqCst), 2);
    }
}
