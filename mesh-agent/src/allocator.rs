//! EDGE: memory that the allocator keeps for later, given back to the system.
//!
//! What a start takes (the kernel's types, the programs, the whole source as text) is freed in pieces, between what stays.
//! glibc gives back by itself only what is at the end of a heap.

#![expect(unsafe_code, reason = "the allocator is asked by a call of C")]

use std::time::Duration;

use nix::libc;
use tokio::sync::watch;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::model::Snapshot;

/// How long after the world is known its texts are free.
const SETTLED: Duration = Duration::from_secs(1);
/// How often from then on: connections come and go, and a source may be read again.
const INTERVAL: Duration = Duration::from_mins(1);

/// Gives back what is free once the world is known, and from then on again and again, until shutdown.
pub(crate) async fn run(mut world: watch::Receiver<Snapshot>, shutdown: CancellationToken) {
    let giving_back = async {
        if world.wait_for(Snapshot::is_synced).await.is_err() {
            return;
        }
        sleep(SETTLED).await;
        let mut ticks = interval(INTERVAL);
        loop {
            ticks.tick().await;
            give_back();
        }
    };
    shutdown.run_until_cancelled(giving_back).await;
}

/// Takes half a millisecond, in a world of 20,000 pods a whole one; who allocates meanwhile waits for a part of that.
fn give_back() {
    // SAFETY: may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}
