//! Pauses between attempts.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Pauses that double up to a limit. Each is shortened by chance to something between its half and its whole, so that the
/// agents of a cluster do not come back to its API server all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, last: Duration) -> Self {
        let next = first;
        Self { first, last, next }
    }

    /// The pause before the next attempt.
    pub(super) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.last);
        whole / 2 + whole * below(1000) / 2000
    }

    /// Starts over, once something has succeeded.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A random number below `count`, which is at least 1.
pub(super) fn below(count: u32) -> u32 {
    // Every RandomState has keys of its own: one hash of one is as random as a pause needs.
    let random = RandomState::new().hash_one(()) % u64::from(count);
    u32::try_from(random).expect("less than a u32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        let mut it = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for whole in [1, 2, 4, 5, 5] {
            let (whole, pause) = (Duration::from_secs(whole), it.pause());
            assert!(
                whole / 2 <= pause && pause <= whole,
                "{pause:?} of {whole:?}"
            );
        }
        it.reset();
        assert!(it.pause() <= Duration::from_secs(1));
    }
}
