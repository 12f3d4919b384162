//! The tunnels that are open, for whoever asks; nothing is done with them here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::clock;
use crate::model::Identity;

/// Who has opened a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// We, for a local pod.
    We,
    /// The other side, to reach a local pod.
    They,
}

/// A tunnel that is open. Ours is the local pod's end.
#[derive(Clone, Debug)]
pub struct Open {
    /// Who has opened it.
    pub opener: Opener,
    /// Address of our end: the pod's own.
    pub ours: SocketAddr,
    /// Whose certificate we have shown.
    pub identity: Identity,
    /// Address of the other end.
    pub theirs: SocketAddr,
    /// Who the other end has proved to be.
    pub peer: Identity,
}

/// A tunnel that is open, as it is at a moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its ends.
    pub open: Open,
    /// Since when.
    pub since: Instant,
    /// How many streams are open on it.
    pub streams: usize,
}

/// All tunnels of an agent that are open.
#[derive(Debug, Default)]
pub struct OpenTunnels(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    last: u64,
    by_number: BTreeMap<u64, (Open, Instant, Streams)>,
}

/// A tunnel's place among those that are open; dropped with it.
#[derive(Debug)]
pub struct Listed {
    among: Arc<OpenTunnels>,
    number: u64,
    /// Of which each open stream keeps a [`Counted`].
    pub streams: Streams,
}

/// How many streams a tunnel has.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<AtomicUsize>);

/// A stream that counts until it is dropped.
#[derive(Debug)]
pub struct Counted(Streams);

impl OpenTunnels {
    /// Takes up a tunnel that has opened, until what is returned is dropped.
    pub fn enter(self: &Arc<Self>, open: Open) -> Listed {
        let streams = Streams::default();
        let mut entries = self.entries();
        entries.last += 1;
        let number = entries.last;
        let entry = (open, clock::now(), streams.clone());
        entries.by_number.insert(number, entry);
        Listed {
            among: self.clone(),
            number,
            streams,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries().by_number.len()
    }

    /// All of them, the oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        let entries = self.entries();
        let seen = |(open, since, streams): &(Open, Instant, Streams)| Seen {
            open: open.clone(),
            since: *since,
            streams: streams.0.load(Ordering::Relaxed),
        };
        entries.by_number.values().map(seen).collect()
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.among.entries().by_number.remove(&self.number);
    }
}

impl Streams {
    /// Counts one more.
    pub fn count(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_listed_while_they_and_their_streams_live() {
        let id = |name| Identity::new("cluster.local", "shop", name);
        let open = Open {
            opener: Opener::We,
            ours: "10.0.0.1:4096".parse().unwrap(),
            identity: id("a"),
            theirs: "10.0.1.1:15008".parse().unwrap(),
            peer: id("b"),
        };
        let tunnels = Arc::new(OpenTunnels::default());
        let first = tunnels.enter(open.clone());
        let second = tunnels.enter(open);
        let stream = first.streams.count();
        let streams = || {
            tunnels
                .seen()
                .iter()
                .map(|it| it.streams)
                .collect::<Vec<_>>()
        };
        assert_eq!(streams(), [1, 0]);
        drop(second);
        assert_eq!(streams(), [1]);
        drop(stream);
        assert_eq!(streams(), [0]);
        drop(first);
        assert_eq!(tunnels.count(), 0);
    }
}
