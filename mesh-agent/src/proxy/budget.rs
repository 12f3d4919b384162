//! CORE: how many connections are carried at once, and how much memory their unread bytes may take, for each pod and in all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::hbone::{Memory, Total};

/// Connections of one source address that are carried at once. A pod has about 28000 ports for all it connects to; one with
/// as many connections as this leaks them, or means harm.
const PER_SOURCE: usize = 10_000;
/// Connections that are carried in one direction, in shares of the descriptors a process may have. Each has two: both
/// directions together leave an eighth to tunnels, maps and whatever else the agent has open.
const SHARE: (usize, usize) = (7, 32);
/// Connections of one source address at once of which it is not known yet who has opened them. A node's agent that starts
/// opens as many tunnels in the name of a pod as that has open connections, divided by those that share one.
const STRANGERS_PER_SOURCE: usize = 1000;
/// The same of all sources, in shares of the descriptors: they are anybody's, so they never cost a place of the others.
const STRANGERS: (usize, usize) = (1, 32);
/// At most so many warnings are given in a time: whoever causes them does not get to fill the disk.
const WARNINGS: (u32, Duration) = (10, Duration::from_secs(10));

/// Bytes that wait for readers, of one source and of all in one direction. A stream to a reader that has stopped has four
/// megabytes at most.
const MEMORY: (usize, usize) = (512 << 20, 1 << 30);

/// Places for the connections of one direction.
pub(super) struct Budget {
    in_all: usize,
    per_source: usize,
    memory: Arc<Total>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    in_all: usize,
    by_source: HashMap<IpAddr, Source>,
    warnings: Warnings,
}

struct Source {
    places: usize,
    memory: Memory,
}

/// Warnings of the last while.
#[derive(Default)]
struct Warnings {
    since: Option<Instant>,
    given: u32,
    withheld: u64,
}

/// The place of a connection, given back when dropped.
pub(super) struct Place {
    budget: Arc<Budget>,
    source: IpAddr,
    /// What is counted for its source.
    pub(super) memory: Memory,
}

/// There is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Exhausted {
    /// The source has its share.
    #[error(
        "{source_address} has {limit} connections open already, which is its share of what is left"
    )]
    Source {
        /// The source.
        source_address: IpAddr,
        /// Its share.
        limit: usize,
    },
    /// All sources together have what there is.
    #[error("{limit} connections are open already; raise the limit on open files")]
    InAll {
        /// What there is.
        limit: usize,
    },
}

impl Budget {
    /// A budget for a process that may have so many descriptors open.
    pub(super) fn for_descriptors(limit: u64) -> Arc<Self> {
        Self::new(limit, SHARE, PER_SOURCE)
    }

    /// The same for connections of which it is not known yet who has opened them.
    pub(super) fn for_strangers(limit: u64) -> Arc<Self> {
        Self::new(limit, STRANGERS, STRANGERS_PER_SOURCE)
    }

    fn new(limit: u64, share: (usize, usize), per_source: usize) -> Arc<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let in_all = limit / share.1 * share.0;
        Arc::new(Self {
            in_all,
            per_source,
            memory: Total::new(MEMORY.0, MEMORY.1),
            open: Mutex::default(),
        })
    }

    /// Takes a place for a connection from a source.
    pub(super) fn claim(self: &Arc<Self>, source: IpAddr) -> Result<Place, Exhausted> {
        let mut open = self.open();
        if open.in_all >= self.in_all {
            return Err(Exhausted::InAll { limit: self.in_all });
        }
        // No source has more than there is left: one that takes all it can leaves half, two a third, and so on.
        let limit = self.per_source.min(self.in_all - open.in_all);
        let of_source = open.by_source.get(&source).map_or(0, |it| it.places);
        if of_source >= limit {
            return Err(Exhausted::Source {
                source_address: source,
                limit,
            });
        }
        open.in_all += 1;
        let new = || Source {
            places: 0,
            memory: Memory::of(&self.memory),
        };
        let of_source = open.by_source.entry(source).or_insert_with(new);
        of_source.places += 1;
        let memory = of_source.memory.clone();
        Ok(Place {
            budget: self.clone(),
            source,
            memory,
        })
    }

    /// Whether a warning may be given at an instant, which it then counts as; how many were not since the last one.
    pub(super) fn may_warn(&self, now: Instant) -> Option<u64> {
        let (most, within) = WARNINGS;
        let warnings = &mut self.open().warnings;
        if warnings.since.is_none_or(|it| now >= it + within) {
            (warnings.since, warnings.given) = (Some(now), 0);
        }
        if warnings.given == most {
            warnings.withheld += 1;
            return None;
        }
        warnings.given += 1;
        Some(std::mem::take(&mut warnings.withheld))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.budget.open();
        open.in_all -= 1;
        if let Some(of_source) = open.by_source.get_mut(&self.source) {
            of_source.places -= 1;
            if of_source.places == 0 {
                open.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_source_has_its_share_and_gives_it_back() {
        // 28 places in all.
        let budget = Budget::for_descriptors(128);
        let all =
            |last| -> Vec<_> { std::iter::from_fn(|| budget.claim(source(last)).ok()).collect() };
        let mut first = all(1);
        assert_eq!(first.len(), 14);
        let exhausted = Exhausted::Source {
            source_address: source(1),
            limit: 14,
        };
        assert_eq!(budget.claim(source(1)).err(), Some(exhausted));
        // However many are greedy, the next one gets as much as is left to any.
        let (second, third) = (all(2), all(3));
        assert_eq!((second.len(), third.len()), (7, 4));
        first.truncate(9);
        assert_eq!(all(4).len(), 4);
        assert_eq!(all(1).len(), 0);
        drop((first, second, third));
        let open = budget.open();
        assert_eq!((open.in_all, open.by_source.len()), (0, 0));
    }

    #[test]
    fn all_places_can_be_taken_by_many() {
        let budget = Budget::for_descriptors(128);
        let places: Vec<_> = (0..28)
            .map(|it| budget.claim(source(it)).unwrap())
            .collect();
        let exhausted = Exhausted::InAll { limit: 28 };
        assert_eq!(budget.claim(source(99)).err(), Some(exhausted));
        drop(places);
    }

    #[test]
    fn many_descriptors_make_no_share_greater() {
        assert_eq!(Budget::for_descriptors(1 << 20).per_source, PER_SOURCE);
        assert_eq!(Budget::for_descriptors(u64::MAX).per_source, PER_SOURCE);
    }

    #[test]
    fn strangers_have_places_of_their_own() {
        let budget = Budget::for_strangers(128);
        let places: Vec<_> = (0..2).map(|_| budget.claim(source(1)).unwrap()).collect();
        assert!(budget.claim(source(1)).is_err());
        assert!(budget.claim(source(2)).is_ok());
        drop(places);
        assert_eq!(
            Budget::for_strangers(u64::MAX).per_source,
            STRANGERS_PER_SOURCE
        );
    }

    #[test]
    fn warnings_are_few_and_the_next_tells_how_many_were_not_given() {
        let (budget, now) = (Budget::for_descriptors(128), crate::clock::now());
        for _ in 0..WARNINGS.0 {
            assert_eq!(budget.may_warn(now), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(budget.may_warn(now + WARNINGS.1 / 2), None);
        }
        assert_eq!(budget.may_warn(now + WARNINGS.1), Some(3));
        assert_eq!(budget.may_warn(now + WARNINGS.1), Some(0));
    }
}
