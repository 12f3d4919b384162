//! CORE: how long things took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds; one more takes what is above.
const BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Durations by size.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

/// What a histogram holds.
pub(super) struct Read {
    /// Upper bounds in seconds, the last of them infinite, and how many were no longer.
    pub(super) buckets: Vec<(f64, u64)>,
    /// Seconds in all.
    pub(super) sum: f64,
    /// How many in all.
    pub(super) count: u64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Read {
        let mut count = 0;
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets = bounds.zip(&self.buckets).map(|(bound, bucket)| {
            count += bucket.load(Ordering::Relaxed);
            (bound, count)
        });
        Read {
            buckets: buckets.collect(),
            sum: Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64(),
            count,
        }
    }
}
