//! What is known of one client's exactly-once requests.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::rpc::message::CallId;
use crate::time::Time;

pub(super) struct Seat {
    pub(super) id: u64,
    pub(super) slots: BTreeMap<u32, Slot>,
    /// The slots by the numbers of their calls: what goes first is found without a look at the others.
    order: BTreeMap<u64, u32>,
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
    pub(super) const fn new(id: u64, heard: Time) -> Self {
        Self {
            id,
            slots: BTreeMap::new(),
            order: BTreeMap::new(),
            floor: 0,
            kept_bytes: 0,
            running: 0,
            heard,
        }
    }

    pub(super) fn set(&mut self, call: CallId, state: State) {
        let (bytes, running) = weight(&state);
        let slot = Slot { sequence: call.sequence, state };
        self.kept_bytes += bytes;
        self.running += running;
        if let Some(before) = self.slots.insert(call.slot, slot) {
            self.count_out(&before);
            if before.sequence == call.sequence {
                return;
            }
            self.order.remove(&before.sequence);
        }
        // A number belongs to one slot; what a damaged record says otherwise must not leave the other one behind.
        if let Some(other) = self.order.insert(call.sequence, call.slot)
            && let Some(before) = self.slots.remove(&other)
        {
            self.count_out(&before);
        }
    }

    fn count_out(&mut self, slot: &Slot) {
        let (bytes, running) = weight(&slot.state);
        self.kept_bytes -= bytes;
        self.running -= running;
    }

    pub(super) fn is_running(&self, call: CallId) -> bool {
        let slot = self.slots.get(&call.slot);
        slot.is_some_and(|slot| slot.sequence == call.sequence && matches!(slot.state, State::Running))
    }

    /// Lets go of the answers to calls that the client has done with.
    pub(super) fn trim(&mut self, acknowledged: u64) {
        self.floor = self.floor.max(acknowledged);
        self.let_go_below(acknowledged);
    }

    pub(super) fn let_go_below(&mut self, sequence: u64) {
        while let Some(first) = self.order.first_entry().filter(|first| *first.key() < sequence) {
            if let Some(slot) = self.slots.remove(&first.remove()) {
                self.count_out(&slot);
            }
        }
    }

    /// As counted anew, for checks.
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
