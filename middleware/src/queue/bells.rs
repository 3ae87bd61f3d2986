//! Who waits for a queue: for a message, or for room.
//!
//! Guarantee   whoever finds room when it is rung takes it, and whoever does not lets the others look: a large message that
//!             waits keeps no room from a small one. There is no order among those who wait; what is small may go first again
//!             and again.
//! Method      a ring wakes one. Whoever goes wakes the next, and so does one that stays, unless it has looked since the last
//!             ring: those who came to wait after it have looked, too, and those before it are awake.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_journal::AppendError;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::error::{PutError, WorkError};
use super::plan::Wish;
use super::room::{Attempt, Room, Stored};

/// The bells of one queue.
#[derive(Clone, Default)]
pub(super) struct Bells {
    /// Rung for each message that becomes ready, whenever a message may be due earlier than known, and by each consumer
    /// that leaves.
    pub(super) arrivals: Arc<Notify>,
    /// Rung once for each message that goes.
    pub(super) room: Arc<RoomBell>,
}

/// Rung when a queue has more room.
#[derive(Default)]
pub(super) struct RoomBell {
    rings: AtomicU64,
    waiting: Notify,
}

impl RoomBell {
    /// There is more room.
    pub(super) fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.waiting.notify_one();
    }

    /// Nobody needs to wait any more.
    pub(super) fn ring_all(&self) {
        self.waiting.notify_waiters();
    }

    fn rings(&self) -> u64 {
        self.rings.load(Ordering::SeqCst)
    }

    /// From now on nothing that goes is missed.
    fn listen(&self) -> Notified<'_> {
        self.waiting.notified()
    }
}

/// The bell of a queue that had no room. A ring wakes one of those who wait: whoever goes, with room or without, or turns to
/// another queue, wakes the next one, as there may be room left.
struct Heard(Arc<RoomBell>);

impl Drop for Heard {
    fn drop(&mut self) {
        self.0.waiting.notify_one();
    }
}

impl Room {
    /// Does a wish, waiting for room where that is the policy.
    pub(super) async fn carry_out(
        self: &Arc<Self>,
        wish: &Wish,
        is_watched: bool,
    ) -> Result<Stored, WorkError> {
        let closed = || WorkError::Put(PutError::Journal(AppendError::Closed));
        let mut heard: Option<Heard> = None;
        // How often it had rung when this one came to wait last.
        let mut known = None;
        loop {
            // Before the attempt, so that nothing that goes meanwhile is missed.
            let bell = heard.as_ref().map(|heard| heard.0.clone());
            let rings = bell.as_ref().map(|bell| bell.rings());
            let rung = bell.as_ref().map(|bell| bell.listen());
            tokio::pin!(rung);
            if let Some(rung) = rung.as_mut().as_pin_mut() {
                rung.enable();
            }
            match self.attempt(wish, is_watched)? {
                // The sender goes only when the journal drops a completion, which it does when it is closed.
                Attempt::Begun(stored) => {
                    // Whoever waits for room behind this one need not wait for the disk, too.
                    drop(heard);
                    return stored.await.unwrap_or_else(|_| Err(closed()));
                }
                Attempt::After(known) => drop(known.await),
                Attempt::Full(full, due) => match rung.as_mut().as_pin_mut() {
                    Some(rung) if bell.as_ref().is_some_and(|bell| Arc::ptr_eq(bell, &full)) => {
                        if known.is_some() && known != rings {
                            // It rang for room that this one has no use for.
                            full.waiting.notify_one();
                        }
                        known = rings;
                        until_rung(rung, due).await;
                    }
                    _ => (heard, known) = (Some(Heard(full)), None),
                },
            }
        }
    }
}

/// Waits for a bell, or for a moment.
pub(super) async fn until_rung(rung: impl Future<Output = ()>, wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::select! {
            biased;
            () = rung => {}
            () = tokio::time::sleep_until(wake) => {}
        },
        None => rung.await,
    }
}
