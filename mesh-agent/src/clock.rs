//! EDGE: the one place that reads the clock.

use std::time::{Duration, Instant, SystemTime};

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime};

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

/// The time of a moment that is told in nanoseconds of `CLOCK_MONOTONIC`.
pub fn wall_at(nanos: u64) -> SystemTime {
    let now = monotonic().map_or(0, |it| it.num_nanoseconds().cast_unsigned());
    let ago = Duration::from_nanos(now.saturating_sub(nanos));
    wall().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The clock of the kernel's records: microseconds of `CLOCK_MONOTONIC`, which wrap around.
pub fn kernel_micros() -> u32 {
    let micros = monotonic().map_or(0, |it| it.num_microseconds());
    #[expect(clippy::cast_possible_truncation, reason = "it wraps around")]
    #[expect(clippy::cast_sign_loss, reason = "never before the boot")]
    let micros = micros as u32;
    micros
}

fn monotonic() -> Option<TimeSpec> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok()
}
