//! One reusable timer for hand-written polls.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Made on first use, moved afterwards: a link that never waits for time has none.
#[derive(Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Ready when `at` has come.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        let polled = sleep.as_mut().poll(cx);
        if polled.is_ready() {
            // A finished sleep must not be polled again.
            self.sleep = None;
        }
        polled
    }
}

/// The moment `nanos` after `epoch`; beyond the clock's end, far away.
pub(crate) fn instant_at(epoch: Instant, nanos: u64) -> Instant {
    epoch + Duration::from_nanos(nanos.min(FAR_NANOS))
}

/// Thirty years: tokio's clock takes no more.
const FAR_NANOS: u64 = 30 * 365 * 24 * 3_600 * 1_000_000_000;
