//! EDGE: the one place that reads the clock.

use std::time::{Instant, SystemTime};

/// The current instant.
pub fn now() -> Instant {
    Instant::now()
}

/// The current time.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// The current time, in seconds since 1970.
pub fn unix_seconds() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    since.map_or(0, |it| it.as_secs())
}
