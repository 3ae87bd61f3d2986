//! What is known of one client's exactly-once requests.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::rpc::message::CallId;
use crate::time::Time;

pub(super) struct Seat {
    pub(super) id: u64,
    pub(super) slots: BTreeMap<u32, Slot>,
    /// The client has done with all calls below this number.
    pub(super) floor: u64,
    pub(super) kept_bytes: usize,
    pub(super) running: u32,
    pub(super) heard: Time,
}

pub(super) struct Slot {
    pub(super) sequence: u64,
    pub(super) state: State,
}

pub(super) enum State {
    Running,
    /// It was begun, and nothing came of it.
    Void,
    Done {
        reply: Bytes,
        /// How many records must be durable before this is one of them.
        stable: u64,
    },
}

impl Seat {
    pub(super) fn set(&mut self, call: CallId, state: State) {
        let (bytes, running) = weight(&state);
        let slot = Slot { sequence: call.sequence, state };
        let before = self.slots.insert(call.slot, slot).map_or((0, 0), |old| weight(&old.state));
        self.kept_bytes = self.kept_bytes + bytes - before.0;
        self.running = self.running + running - before.1;
    }

    pub(super) fn is_running(&self, call: CallId) -> bool {
        let slot = self.slots.get(&call.slot);
        slot.is_some_and(|slot| slot.sequence == call.sequence && matches!(slot.state, State::Running))
    }

    /// Lets go of the answers to calls that the client has done with.
    pub(super) fn trim(&mut self, acknowledged: u64) {
        if acknowledged > self.floor {
            self.floor = acknowledged;
            self.slots.retain(|_, slot| slot.sequence >= acknowledged);
            self.recount();
        }
    }

    pub(super) fn recount(&mut self) {
        (self.kept_bytes, self.running) = self.count();
    }

    pub(super) fn count(&self) -> (usize, u32) {
        self.slots
            .values()
            .map(|slot| weight(&slot.state))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

/// Bytes kept for a slot, and whether it runs.
pub(super) fn weight(state: &State) -> (usize, u32) {
    match state {
        State::Running => (0, 1),
        State::Void => (0, 0),
        State::Done { reply, .. } => (reply.len() + SLOT_OVERHEAD_BYTES, 0),
    }
}

/// A slot in its tree.
const SLOT_OVERHEAD_BYTES: usize = 64;
