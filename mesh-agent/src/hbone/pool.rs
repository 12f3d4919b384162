//! CORE: which tunnel a new stream goes on.
//!
//! Bookkeeping only: it is told of tunnels, streams and instants, and decides. `T` is a tunnel's handle, `W` whatever
//! callers wait on while a tunnel is dialled.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::Identity;

/// What streams must have in common to share a tunnel: a tunnel's certificate and its addresses speak for all of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    source: Identity,
    expected: Arc<[Identity]>,
    destination: SocketAddr,
    address: IpAddr,
}

impl Key {
    /// From `source`, out of its pod's own `address`, to `destination`, which must prove to be one of `expected`.
    pub fn new(
        source: Identity,
        address: IpAddr,
        destination: SocketAddr,
        expected: impl IntoIterator<Item = Identity>,
    ) -> Self {
        let mut expected: Vec<_> = expected.into_iter().collect();
        expected.sort_unstable();
        expected.dedup();
        Self {
            source,
            expected: expected.into(),
            destination,
            address,
        }
    }

    /// The identity that dials.
    pub fn source(&self) -> &Identity {
        &self.source
    }

    /// The address the tunnel comes from.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The address dialled.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The identities accepted of the other side, sorted.
    pub fn expected(&self) -> Arc<[Identity]> {
        self.expected.clone()
    }
}

/// The tunnels that take new streams.
pub(super) struct Tunnels<T, W> {
    entries: HashMap<Key, Entry<T, W>>,
    next: u64,
}

struct Entry<T, W> {
    tunnels: Vec<Tunnel<T>>,
    dialing: Option<W>,
}

struct Tunnel<T> {
    id: TunnelId,
    handle: T,
    streams: usize,
    idle_since: Instant,
}

/// Names a tunnel for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TunnelId(u64);

/// What whoever wants a stream has to do.
#[derive(Debug)]
pub(super) enum Claim<T, W> {
    /// Open it on this tunnel; the stream is already counted.
    Use(TunnelId, T),
    /// Wait for the tunnel that is being dialled, then claim again.
    Wait(W),
    /// Dial a tunnel: this caller's claim is the one that found none.
    Dial(W),
}

impl<T, W> Default for Tunnels<T, W> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            next: 0,
        }
    }
}

impl<T: Clone, W: Clone> Tunnels<T, W> {
    /// Finds room for one stream: on the oldest tunnel that has some, so that later ones empty and fall idle.
    ///
    /// `limit` says how many streams a tunnel takes, or none if it takes no new ones ever again; such tunnels leave.
    pub(super) fn claim(
        &mut self,
        key: &Key,
        limit: impl Fn(&T) -> Option<usize>,
        dialing: impl FnOnce() -> W,
    ) -> Claim<T, W> {
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            tunnels: Vec::new(),
            dialing: None,
        });
        entry
            .tunnels
            .retain(|tunnel| limit(&tunnel.handle).is_some());
        let free = entry
            .tunnels
            .iter_mut()
            .find(|tunnel| limit(&tunnel.handle).is_some_and(|limit| tunnel.streams < limit));
        if let Some(tunnel) = free {
            tunnel.streams += 1;
            return Claim::Use(tunnel.id, tunnel.handle.clone());
        }
        match &entry.dialing {
            Some(waiting) => Claim::Wait(waiting.clone()),
            None => Claim::Dial(entry.dialing.insert(dialing()).clone()),
        }
    }

    /// The dial succeeded: the tunnel takes streams from now on.
    pub(super) fn dialled(&mut self, key: &Key, handle: T, now: Instant) -> TunnelId {
        let id = TunnelId(self.next);
        self.next += 1;
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            tunnels: Vec::new(),
            dialing: None,
        });
        entry.dialing = None;
        entry.tunnels.push(Tunnel {
            id,
            handle,
            streams: 0,
            idle_since: now,
        });
        id
    }

    /// The dial failed: the next claim dials anew.
    pub(super) fn dial_failed(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.dialing = None;
        }
        self.tidy(key);
    }

    /// A stream ended. Of the tunnels from its address that are without one now, no more than `idle` stay.
    pub(super) fn release(&mut self, key: &Key, id: TunnelId, now: Instant, idle: usize) {
        let tunnels = self.entries.get_mut(key).map(|entry| &mut entry.tunnels);
        if let Some(tunnel) = tunnels.and_then(|all| all.iter_mut().find(|t| t.id == id)) {
            tunnel.streams = tunnel.streams.saturating_sub(1);
            tunnel.idle_since = now;
            if tunnel.streams == 0 {
                self.shed(key.address, idle);
            }
        }
    }

    /// Takes out the tunnels from an address that have been idle for longest, all but `most`.
    fn shed(&mut self, address: IpAddr, most: usize) {
        let of_address = self
            .entries
            .iter()
            .filter(|(key, _)| key.address == address);
        let mut idle: Vec<_> = of_address
            .flat_map(|(key, entry)| entry.tunnels.iter().map(move |it| (key, it)))
            .filter(|(_, tunnel)| tunnel.streams == 0)
            .map(|(key, tunnel)| (tunnel.idle_since, tunnel.id, key))
            .collect();
        if idle.len() <= most {
            return;
        }
        idle.sort_unstable_by_key(|(since, TunnelId(id), _)| (*since, *id));
        let surplus = idle.len() - most;
        let surplus: Vec<_> = idle[..surplus]
            .iter()
            .map(|(_, id, key)| ((*key).clone(), *id))
            .collect();
        for (key, id) in surplus {
            self.retire(&key, id);
        }
    }

    /// Takes a tunnel out; its streams run on.
    pub(super) fn retire(&mut self, key: &Key, id: TunnelId) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.tunnels.retain(|tunnel| tunnel.id != id);
        }
        self.tidy(key);
    }

    /// Takes a tunnel out that has had no stream for `idle`.
    pub(super) fn retire_idle(&mut self, key: &Key, id: TunnelId, now: Instant, idle: Duration) {
        let expired = |tunnel: &Tunnel<T>| {
            tunnel.id == id && tunnel.streams == 0 && now >= tunnel.idle_since + idle
        };
        if let Some(entry) = self.entries.get_mut(key) {
            entry.tunnels.retain(|tunnel| !expired(tunnel));
        }
        self.tidy(key);
    }

    /// Takes out every tunnel whose key `keep` refuses; streams run on, dials go on.
    pub(super) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.entries.retain(|key, entry| {
            if !keep(key) {
                entry.tunnels.clear();
            }
            !entry.is_empty()
        });
    }

    /// How many tunnels take streams, and how many streams they carry.
    pub(super) fn census(&self) -> (usize, usize) {
        self.entries
            .values()
            .flat_map(|entry| &entry.tunnels)
            .fold((0, 0), |(tunnels, streams), tunnel| {
                (tunnels + 1, streams + tunnel.streams)
            })
    }

    /// Entries live only as long as there is something in them.
    fn tidy(&mut self, key: &Key) {
        if self.entries.get(key).is_some_and(Entry::is_empty) {
            self.entries.remove(key);
        }
    }
}

impl<T, W> Entry<T, W> {
    fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.dialing.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_mins(5);

    fn key(port: u16) -> Key {
        let id = |account| Identity::new("cluster.local", "default", account);
        let address = "10.0.0.1".parse().unwrap();
        Key::new(id("a"), address, ([10, 0, 0, 2], port).into(), [id("b")])
    }

    /// Handles are the limits themselves; none means gone.
    type Book = Tunnels<Option<usize>, &'static str>;

    fn claim(book: &mut Book, port: u16) -> Claim<Option<usize>, &'static str> {
        book.claim(&key(port), |limit| *limit, || "dialing")
    }

    #[test]
    fn expected_identities_are_a_set() {
        let id = |account| Identity::new("cluster.local", "default", account);
        let address = "10.0.0.1".parse().unwrap();
        let to = |expected: Vec<_>| Key::new(id("a"), address, ([10, 0, 0, 2], 1).into(), expected);
        assert_eq!(
            to(vec![id("x"), id("y")]),
            to(vec![id("y"), id("x"), id("y")])
        );
        assert_ne!(to(vec![id("x")]), to(vec![id("y")]));
    }

    #[test]
    fn one_dial_then_full_then_another() {
        let (mut book, now) = (Book::default(), Instant::now());
        assert!(matches!(claim(&mut book, 1), Claim::Dial(_)));
        assert!(matches!(claim(&mut book, 1), Claim::Wait("dialing")));
        assert!(matches!(claim(&mut book, 2), Claim::Dial(_)));
        let first = book.dialled(&key(1), Some(2), now);
        for _ in 0..2 {
            assert!(matches!(claim(&mut book, 1), Claim::Use(id, _) if id == first));
        }
        assert!(matches!(claim(&mut book, 1), Claim::Dial(_)));
        let second = book.dialled(&key(1), Some(2), now);
        assert!(matches!(claim(&mut book, 1), Claim::Use(id, _) if id == second));
        book.release(&key(1), first, now, 9);
        assert!(matches!(claim(&mut book, 1), Claim::Use(id, _) if id == first));
        assert_eq!(book.census(), (2, 3));
    }

    #[test]
    fn a_failed_dial_is_dialled_again() {
        let mut book = Book::default();
        assert!(matches!(claim(&mut book, 1), Claim::Dial(_)));
        book.dial_failed(&key(1));
        assert!(book.entries.is_empty());
        assert!(matches!(claim(&mut book, 1), Claim::Dial(_)));
    }

    #[test]
    fn tunnels_that_are_gone_leave_and_their_streams_may_still_end() {
        let (mut book, now) = (Book::default(), Instant::now());
        let gone = book.dialled(&key(1), None, now);
        assert!(matches!(claim(&mut book, 1), Claim::Dial(_)));
        book.release(&key(1), gone, now, 9);
        book.retire(&key(1), gone);
        assert_eq!(book.census(), (0, 0));
    }

    #[test]
    fn of_many_idle_tunnels_the_last_to_fall_idle_stay() {
        let (mut book, start) = (Book::default(), Instant::now());
        let ids: Vec<_> = (1..=5)
            .map(|port| {
                let id = book.dialled(&key(port), Some(1), start);
                claim(&mut book, port);
                id
            })
            .collect();
        // The first has a stream yet, and falls idle last.
        for (port, id) in (1..=5).zip(&ids).skip(1) {
            let now = start + Duration::from_secs(port.into());
            book.release(&key(port), *id, now, 2);
        }
        assert_eq!(book.census(), (3, 1));
        book.release(&key(1), ids[0], start + IDLE, 2);
        assert_eq!(book.census(), (2, 0));
        assert!(matches!(claim(&mut book, 1), Claim::Use(..)));
        assert!(matches!(claim(&mut book, 5), Claim::Use(..)));
    }

    #[test]
    fn only_the_idle_are_released_and_only_in_time() {
        let (mut book, start) = (Book::default(), Instant::now());
        let id = book.dialled(&key(1), Some(1), start);
        claim(&mut book, 1);
        book.retire_idle(&key(1), id, start + 2 * IDLE, IDLE);
        assert_eq!(book.census(), (1, 1));
        let end = start + 2 * IDLE;
        book.release(&key(1), id, end, 9);
        book.retire_idle(&key(1), id, end + IDLE / 2, IDLE);
        assert_eq!(book.census(), (1, 0));
        book.retire_idle(&key(1), id, end + IDLE, IDLE);
        assert!(book.entries.is_empty());
    }

    #[test]
    fn retain_by_key() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.dialled(&key(1), Some(1), now);
        book.dialled(&key(2), Some(1), now);
        book.retain(|key| key.destination().port() == 2);
        assert_eq!(book.census(), (1, 0));
    }
}
