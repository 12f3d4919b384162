//! EDGE: the one place that reads the clock.

use std::time::Instant;

/// The current instant.
pub fn now() -> Instant {
    Instant::now()
}
