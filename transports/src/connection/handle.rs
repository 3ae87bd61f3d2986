//! The handle that users of a connection send with.
//!
//! Guarantee   a send never waits, and encodes into its lane under the lock that handle and driver share; the driver is
//!             woken only when it is parked. Who has a lock anyway may hold small messages back under it and save this one;
//!             the driver asks for them before it sleeps, so they wait no longer than in the lane.
//! Limits      the lanes' own: [`SendError::Full`].

use std::fmt;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, Weak};

use bytes::Bytes;

use super::lanes::{Lane, SendError};
use super::shared::{ConnectionStats, Left, Phase, Shared, Source, State, wake};
use crate::identity::Identity;

/// The sending handle of a connection. Cheap to clone; dropping it does not close.
#[derive(Clone)]
pub struct Connection {
    pub(super) shared: Arc<Shared>,
}

impl Connection {
    /// Queues one message made of `parts`, which are copied, and `body`, which is not copied when it is large.
    /// Never blocks.
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued.
    pub fn send(&self, lane: Lane, parts: &[&[u8]], body: Bytes) -> Result<(), SendError> {
        self.batch(lane)?.push(parts, body)
    }

    /// Begins to queue messages in a lane. It holds the connection's lock until it is dropped: be quick.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    #[inline]
    pub fn batch(&self, lane: Lane) -> Result<Batch<'_>, SendError> {
        let state = self.shared.state();
        if state.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        Ok(Batch { shared: &self.shared, state: Some(state), lane })
    }

    /// Begins to hand over what was held back under `stamp`, which is over with that. It holds the connection's lock until it
    /// is dropped: be quick.
    ///
    /// # Errors
    /// [`SendError::Closed`]: the connection has ended, and what was held back is lost with it.
    pub fn batch_held(&self, lane: Lane, stamp: u64) -> Result<Batch<'_>, SendError> {
        let mut state = self.shared.state();
        state.release(stamp);
        // While it closes, what was taken before still leaves.
        if state.phase == Phase::Ended {
            return Err(SendError::Closed);
        }
        Ok(Batch { shared: &self.shared, state: Some(state), lane })
    }

    /// True while a lane is crowded (`LaneQueues::is_crowded`) and the driver has been woken and has not run yet. A task
    /// that sends without a pause should then let others run: where the driver has the same thread, it would
    /// otherwise write nothing before a limit is reached, long after all of it has left the processor's cache.
    #[inline]
    pub fn is_crowded(&self) -> bool {
        self.shared.is_crowded.load(Ordering::Relaxed)
    }

    /// Waits until the lane takes a message of any permitted size. Others may be faster: send may still say
    /// [`SendError::Full`].
    ///
    /// # Errors
    /// [`SendError::Closed`].
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn ready(&self, lane: Lane) -> Result<(), SendError> {
        loop {
            let mut room = pin!(self.shared.room[lane as usize].notified());
            // Registers before looking, so that room made in between is not missed.
            room.as_mut().enable();
            {
                let mut state = self.shared.state();
                if state.phase != Phase::Open {
                    return Err(SendError::Closed);
                }
                if state.queues.has_room(lane) {
                    return Ok(());
                }
                state.queues.want_room(lane);
            }
            room.await;
        }
    }

    /// Begins a graceful close: no further sends, what waits is flushed, then goodbye. The driver ends when the peer
    /// has said goodbye too. Bound the wait and then [`abort`](Self::abort).
    pub fn close(&self) {
        let waker = {
            let mut state = self.shared.state();
            state.begin_closing();
            state.waker.take()
        };
        self.shared.wake_all_senders();
        wake(waker);
    }

    /// Ends the connection now; what waits is left.
    pub fn abort(&self) {
        let waker = {
            let mut state = self.shared.state();
            state.begin_closing();
            state.is_aborted = true;
            state.waker.take()
        };
        self.shared.wake_all_senders();
        wake(waker);
    }

    /// True while sends are taken.
    pub fn is_open(&self) -> bool {
        self.shared.state().phase == Phase::Open
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Identity {
        self.shared.peer
    }

    /// The largest message in bytes, as agreed.
    pub fn message_bytes_max(&self) -> usize {
        self.shared.message_bytes_max
    }

    /// What waits to be written.
    pub fn left(&self) -> Left {
        self.shared.state().left()
    }

    /// Totals since the connection began.
    pub fn stats(&self) -> ConnectionStats {
        self.shared.state().stats()
    }
}

/// Messages for one lane of a connection, queued under one lock; the driver is woken when it is dropped.
pub struct Batch<'a> {
    shared: &'a Shared,
    /// Present until it is dropped.
    state: Option<MutexGuard<'a, State>>,
    lane: Lane,
}

impl Batch<'_> {
    /// As [`Connection::send`].
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued.
    #[inline]
    pub fn push(&mut self, parts: &[&[u8]], body: Bytes) -> Result<(), SendError> {
        let state = self.state.as_mut().ok_or(SendError::Closed)?;
        state.queues.push(self.lane, parts, body)
    }

    /// See `LaneQueues::join`.
    #[inline]
    pub fn join(&mut self, stamp: u64, item: &[&[u8]]) -> bool {
        self.state.as_mut().is_some_and(|state| state.queues.join(self.lane, stamp, item))
    }

    /// See `LaneQueues::push_joinable`.
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued.
    pub fn push_joinable(&mut self, stamp: u64, parts: &[&[u8]]) -> Result<(), SendError> {
        let state = self.state.as_mut().ok_or(SendError::Closed)?;
        state.queues.push_joinable(self.lane, stamp, parts)
    }

    /// Asks to hold items of the lane back that would be joined under `stamp`, and how many bytes of them, until `source` is
    /// told to hand them over; `None` when they had better be queued one by one. It is granted only while the connection's
    /// task is about to write, which then asks: so nothing waits longer for it. What is held back is in no figure
    /// of the connection until that moment.
    #[inline]
    pub fn hold_back(&mut self, stamp: u64, source: &Weak<dyn Source>) -> Option<usize> {
        self.state.as_mut()?.hold_back(self.lane, stamp, source)
    }

    /// Queues items that were held back. See `LaneQueues::push_held`.
    pub fn push_held(&mut self, stamp: u64, head: &[&[u8]], items: &[u8]) {
        if let Some(state) = &mut self.state {
            state.queues.push_held(self.lane, stamp, head, items);
        }
    }
}

impl Drop for Batch<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(mut state) = self.state.take() {
            let waker = self.shared.after_push(&mut state, self.lane);
            drop(state);
            wake(waker);
        }
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch for {} in lane {}", self.shared.peer, self.lane)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection with {}", self.shared.peer)
    }
}
