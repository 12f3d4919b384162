//! CORE: bytes that have come from tunnels and wait for a reader, counted for each source of connections.
//!
//! A stream's window bounds what waits of it, and it is large, because a fast reader needs that. Thousands of streams to
//! readers that have stopped would together hold more than a node has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all sources hold, and may hold, in bytes.
#[derive(Debug)]
pub struct Total {
    held: AtomicUsize,
    per_source: usize,
    in_all: usize,
}

impl Total {
    /// Nothing yet, of so much for one source and for all.
    pub fn new(per_source: usize, in_all: usize) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            per_source,
            in_all,
        })
    }
}

/// What one source holds; clones are the same source.
#[derive(Clone, Debug)]
pub struct Memory {
    held: Arc<AtomicUsize>,
    total: Arc<Total>,
}

/// The source holds as much as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its source has {limit} bytes waiting to be read, which is its share of what is left")]
pub struct TooMuch {
    /// Its share, in bytes.
    pub limit: usize,
}

impl Memory {
    /// A source that holds nothing yet.
    pub fn of(total: &Arc<Total>) -> Self {
        Self {
            held: Arc::default(),
            total: total.clone(),
        }
    }

    /// Counts bytes that are there already: who may not have them is to let go of them.
    pub(super) fn take(&self, bytes: usize) -> Result<(), TooMuch> {
        let of_source = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let in_all = self.total.held.fetch_add(bytes, Ordering::Relaxed);
        // As with places: no source has more than there is left.
        let left = self.total.in_all.saturating_sub(in_all);
        let limit = self.total.per_source.min(left);
        if of_source > limit {
            return Err(TooMuch { limit });
        }
        Ok(())
    }

    /// Takes off the count what was put on it.
    pub(super) fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.total.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_share_and_leaves_as_much() {
        let total = Total::new(1000, 1200);
        let (first, second) = (Memory::of(&total), Memory::of(&total));
        first.take(600).unwrap();
        assert_eq!(first.clone().take(100), Err(TooMuch { limit: 600 }));
        first.give_back(100);
        second.take(600).unwrap();
        assert_eq!(second.take(1), Err(TooMuch { limit: 0 }));
        second.give_back(601);
        first.give_back(600);
        assert_eq!(total.held.load(Ordering::Relaxed), 0);
        let alone = Total::new(1000, usize::MAX);
        assert_eq!(Memory::of(&alone).take(1001), Err(TooMuch { limit: 1000 }));
    }
}
