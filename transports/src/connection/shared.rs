//! What the handle of a connection and its driver share, under one short lock.
//!
//! Guarantee   no wake-up is lost: whoever queues under the lock finds the driver either awake, and then it looks again
//!             before it parks, or parked with its waker in the lock. Nobody holds anything back while the driver is parked.
//! Limits      the lanes' own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;

use super::end::End;
use super::lanes::{Lane, LaneQueues, LaneStats};
use crate::identity::Identity;

/// Totals of one connection; they only grow, but for the round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Messages handed to the link, as of the driver's last turn.
    pub messages_sent: u64,
    /// Frames handed to the link: a large message travels in several, and signs of life count too.
    pub frames_sent: u64,
    /// Frame bytes handed to the link.
    pub bytes_sent: u64,
    /// Messages that came in whole.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Frames that came in.
    pub frames_received: u64,
    /// Batches handed to the link: one write each, as far as the medium takes it.
    pub batches_sent: u64,
    /// Times that something came in; many messages in each when it is busy.
    pub batches_received: u64,
    /// Each lane, in the order of [`Lane`].
    pub lanes: [LaneStats; Lane::COUNT],
    /// The last round trip measured by a ping; the peer's backpressure counts.
    pub round_trip: Option<Duration>,
}

/// What had not been handed to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Messages of which a part was still here.
    pub messages: usize,
    /// Bytes still here, overhead included.
    pub bytes: usize,
}

/// Somebody who sends many small messages and holds some of them back for a moment, where that takes no lock of the
/// connection: see [`Batch::hold_back`](super::Batch::hold_back).
pub trait Source: Send + Sync {
    /// Hands over what it holds back under `stamp`, with [`Connection::batch_held`](super::Connection::batch_held), and holds
    /// nothing back any more unless it asks again. Called by the connection's task whenever it looks for something to write,
    /// without a lock.
    fn hand_over(&self, stamp: u64);
}

/// What handle and driver share.
pub(super) struct Shared {
    pub(super) peer: Identity,
    pub(super) message_bytes_max: usize,
    state: Mutex<State>,
    pub(super) room: [Notify; Lane::COUNT],
    /// Written under the lock of `state`.
    pub(super) is_crowded: AtomicBool,
}

impl Shared {
    /// Of a connection whose driver has not run yet.
    pub(super) fn new(
        peer: Identity,
        message_bytes_max: usize,
        lane_bytes_max: [usize; Lane::COUNT],
    ) -> Self {
        let state = State {
            queues: LaneQueues::new(message_bytes_max, lane_bytes_max),
            phase: Phase::Open,
            is_aborted: false,
            wants_sends: [false; Lane::COUNT],
            is_woken: true,
            waker: None,
            sources: Vec::new(),
            in_hand: Left::default(),
            stats: ConnectionStats::default(),
        };
        Self {
            peer,
            message_bytes_max,
            state: Mutex::new(state),
            room: Default::default(),
            is_crowded: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may have been queued; the waker to be woken for it.
    #[inline]
    pub(super) fn after_push(&self, state: &mut State, lane: Lane) -> Option<Waker> {
        if state.wants_sends[lane as usize] && !state.queues.is_empty() {
            state.wants_sends = [false; Lane::COUNT];
            state.is_woken = true;
            return state.waker.take();
        }
        if state.is_woken && state.queues.is_crowded(lane) {
            self.is_crowded.store(true, Ordering::Relaxed);
        }
        None
    }

    /// The driver runs; is there something to be written?
    pub(super) fn wake_up(&self) -> Result<bool, End> {
        let mut state = self.state();
        state.wants_sends = [false; Lane::COUNT];
        state.is_woken = false;
        state.waker = None;
        self.is_crowded.store(false, Ordering::Relaxed);
        if state.is_aborted {
            return Err(End::Aborted);
        }
        Ok(state.phase != Phase::Open || !state.queues.is_empty() || !state.sources.is_empty())
    }

    /// The state, after those who hold something back have handed it over.
    pub(super) fn collected(&self) -> MutexGuard<'_, State> {
        let state = self.state();
        if state.sources.is_empty() {
            return state;
        }
        drop(state);
        self.collect();
        self.state()
    }

    /// Lets those who hold something back hand it over. Some may begin anew meanwhile.
    pub(super) fn collect(&self) {
        let count = self.state().sources.len();
        for _ in 0..count {
            let Some((stamp, source)) = self.state().sources.first().cloned() else { return };
            match source.upgrade() {
                Some(source) => source.hand_over(stamp),
                None => self.state().release(stamp),
            }
        }
    }

    /// Refuses further sends and frees what waits.
    pub(super) fn end(&self) -> Left {
        // From now on nobody begins to hold anything back, and what is held back counts as left.
        self.state().begin_closing();
        self.collect();
        let left = {
            let mut state = self.state();
            state.phase = Phase::Ended;
            let left = state.left();
            state.queues.clear();
            state.in_hand = Left::default();
            left
        };
        self.wake_all_senders();
        left
    }

    pub(super) fn wake_all_senders(&self) {
        self.room.iter().for_each(Notify::notify_waiters);
    }
}

pub(super) struct State {
    pub(super) queues: LaneQueues,
    pub(super) phase: Phase,
    pub(super) is_aborted: bool,
    /// The lanes for which the parked driver has nothing to write.
    pub(super) wants_sends: [bool; Lane::COUNT],
    /// A sender has woken the driver, which has not run since; true before its first turn.
    pub(super) is_woken: bool,
    /// Present while the driver is parked.
    pub(super) waker: Option<Waker>,
    /// Who holds something back, under which stamp; nobody while the driver is parked.
    pub(super) sources: Vec<(u64, Weak<dyn Source>)>,
    /// What the driver has taken out and not written, as of its last look at the lock.
    pub(super) in_hand: Left,
    pub(super) stats: ConnectionStats,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    Closing,
    Ended,
}

impl State {
    /// What the driver said last, with the lanes as they are.
    pub(super) fn stats(&self) -> ConnectionStats {
        let mut stats = self.stats;
        for (lane, figures) in Lane::ALL.into_iter().zip(&mut stats.lanes) {
            let LaneStats { messages_received, bytes_received, .. } = *figures;
            *figures = LaneStats { messages_received, bytes_received, ..self.queues.stats(lane) };
        }
        stats
    }

    /// Whether somebody may hold something back for the lane, and how much: only if the driver will look before it parks.
    #[inline]
    pub(super) fn hold_back(&mut self, lane: Lane, stamp: u64, source: &Weak<dyn Source>) -> Option<usize> {
        let looks = self.waker.is_none() || self.wants_sends[lane as usize] && !self.queues.is_empty();
        if self.phase != Phase::Open || !looks {
            return None;
        }
        let bytes_max = self.queues.may_hold(lane)?;
        self.sources.push((stamp, source.clone()));
        Some(bytes_max)
    }

    /// Nothing is held back under this stamp any more.
    pub(super) fn release(&mut self, stamp: u64) {
        self.sources.retain(|(other, _)| *other != stamp);
    }

    pub(super) fn begin_closing(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
        }
    }

    pub(super) fn left(&self) -> Left {
        let lanes = Lane::ALL.iter();
        lanes.fold(self.in_hand, |left, &lane| Left {
            messages: left.messages + self.queues.messages(lane),
            bytes: left.bytes + self.queues.bytes(lane),
        })
    }
}

/// Wakes outside the lock: the waker may run the driver at once.
pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
