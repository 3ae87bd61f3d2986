//! What a server knows of one client: its slots, what executes in them and what is kept.

use std::collections::VecDeque;

use crate::rpc::message::{CallId, Verdict};
use crate::time::Time;

pub(super) struct Session {
    pub(super) id: u64,
    /// Where the completion records know the client; 0 when they do not.
    pub(super) seat: u64,
    pub(super) slots: Vec<Slot>,
    /// Kept replies, oldest first; an entry whose slot has moved on is void.
    pub(super) kept: VecDeque<CallId>,
    pub(super) kept_bytes: usize,
    /// The client has done with all calls below this number.
    pub(super) complete_below: u64,
    pub(super) executing: u32,
    pub(super) heard: Time,
    /// Since when its client is believed to be gone, and when it is asked next.
    pub(super) suspected: Option<(Time, Time)>,
}

pub(super) struct Slot {
    /// The newest call seen here; 0 before the first.
    pub(super) sequence: u64,
    pub(super) state: State,
}

pub(super) enum State {
    /// Nothing to repeat: no call yet, or its reply is not kept.
    Silent,
    Executing {
        /// Whether the reply will be kept.
        keep: bool,
        /// The client's seat, when it is to be executed exactly once; else 0.
        seat: u64,
        /// It counts among the executing requests: the service's code is not done with it.
        has_place: bool,
    },
    Ended(Verdict),
}

/// An execution that nobody waits for any more.
pub(super) struct Stopped {
    /// The client's seat, or 0.
    pub(super) seat: u64,
    /// The places that it leaves, of those who execute.
    pub(super) places: u32,
}

impl Session {
    pub(super) fn hear(&mut self, now: Time) {
        self.heard = now;
        self.suspected = None;
    }

    pub(super) fn slot(&mut self, index: u32) -> &mut Slot {
        let index = index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || Slot { sequence: 0, state: State::Silent });
        }
        &mut self.slots[index]
    }

    /// Ends whatever the slot holds; says what it was when it was executing.
    pub(super) fn stop(&mut self, index: u32) -> Option<Stopped> {
        let slot = self.slot(index);
        match std::mem::replace(&mut slot.state, State::Silent) {
            State::Executing { seat, has_place, .. } => {
                self.executing -= 1;
                return Some(Stopped { seat, places: u32::from(has_place) });
            }
            State::Ended(verdict) => self.kept_bytes -= cost(&verdict),
            State::Silent => {}
        }
        None
    }

    pub(super) fn keep(&mut self, call: CallId, verdict: Verdict) {
        let cost = cost(&verdict);
        self.kept_bytes += cost;
        self.slot(call.slot).state = State::Ended(verdict);
        if cost == 0 {
            return; // stays until its slot is used again
        }
        self.kept.push_back(call);
        // Void entries pile up behind one that is not acknowledged; twice the slots is all that can be in use.
        if self.kept.len() > 2 * self.slots.len() + KEPT_SLACK {
            let slots = &self.slots;
            self.kept.retain(|call| {
                slots.get(call.slot as usize).is_some_and(|slot| {
                    slot.sequence == call.sequence && matches!(slot.state, State::Ended(_))
                })
            });
        }
    }

    /// Drops the kept verdict of `call`; false when it was not kept.
    pub(super) fn release(&mut self, call: CallId) -> bool {
        let Some(slot) = self.slots.get_mut(call.slot as usize) else { return false };
        if slot.sequence != call.sequence {
            return false;
        }
        let State::Ended(verdict) = &slot.state else { return false };
        self.kept_bytes -= cost(verdict);
        slot.state = State::Silent;
        true
    }

    /// Drops the replies of calls that the client says are complete.
    pub(super) fn trim(&mut self, complete_below: u64) {
        self.complete_below = self.complete_below.max(complete_below);
        while let Some(oldest) = self.kept.front().copied().filter(|call| call.sequence < complete_below) {
            self.kept.pop_front();
            self.release(oldest);
        }
    }
}

/// What a kept verdict counts: its body and its place in the tables. A refusal needs no more than its slot and is never
/// dropped for want of room: a copy that comes later must not be executed, as the caller was told that it is not.
pub(super) fn cost(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Done(body) => body.len() + KEPT_OVERHEAD_BYTES,
        Verdict::Doubtful(_) => KEPT_OVERHEAD_BYTES,
        Verdict::Refused(_) => 0,
    }
}

/// A table entry and an entry in the list of kept replies.
const KEPT_OVERHEAD_BYTES: usize = 64;

/// Void entries that are not worth a walk over the list.
const KEPT_SLACK: usize = 64;
