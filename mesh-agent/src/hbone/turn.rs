//! Taking turns: whoever carries much lets others on the thread run in between.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::task::yield_now;

/// What a task may still carry before it is others' turn.
#[derive(Debug)]
pub struct Turn {
    left: usize,
}

/// Bytes of a turn. A few bytes that somebody exchanges wait for one turn of each busy task on the thread.
///
/// In frames of one byte this is still within h2's limit on small frames: half the connection window over 255.
const TURN: usize = 64 << 10;

impl Default for Turn {
    fn default() -> Self {
        Self { left: TURN }
    }
}

impl Turn {
    /// Counts bytes that were carried.
    pub fn carried(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Waits, when the turn is over, until the kernel has been asked who else is ready.
    pub async fn next(&mut self) {
        poll_fn(|cx| self.poll_next(cx)).await;
    }

    /// As [`Self::next`].
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left > 0 {
            return Poll::Ready(());
        }
        *self = Self::default();
        // The runtime keeps the waker, not the future.
        pin!(yield_now()).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn others_run_after_each_turn_and_not_before() {
        let others = AtomicUsize::new(0);
        let busy = async {
            let mut turn = Turn::default();
            for _ in 0..8 {
                turn.next().await;
                turn.carried(TURN / 2);
            }
            others.load(Ordering::Relaxed)
        };
        let other = async {
            loop {
                others.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            seen = busy => assert_eq!(seen, 3, "one between two turns"),
            () = other => {}
        }
    }
}
