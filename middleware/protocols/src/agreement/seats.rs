//! Who has had what delivered: the filter that makes a repeated proposal take effect once.
//!
//! Guarantee   equal on all replicas at the same place in the log, for it changes only with what is delivered, and it is
//!             part of snapshots.
//! Limits      one row for each node that ever proposed; in a row, as many numbers as an origin may have under way.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use super::message::Proposal;
use crate::machine::ProcessId;
use crate::wire::{Wire, WireError, put_count, take_count, take_u64};

/// What was delivered, by origin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seats(BTreeMap<u64, Seat>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Seat {
    incarnation: u64,
    /// Every proposal before this one is over.
    next: u64,
    /// Those behind it that are over.
    beyond: BTreeSet<u64>,
}

impl Seats {
    /// True when the proposal comes for the first time; from then on it does not.
    pub(super) fn take(&mut self, proposal: &Proposal) -> bool {
        let ProcessId { node, incarnation } = proposal.origin;
        let seat = self.0.entry(node).or_default();
        if incarnation < seat.incarnation {
            return false; // an earlier life: nobody waits for it any more
        }
        if incarnation > seat.incarnation {
            *seat = Seat { incarnation, ..Seat::default() };
        }
        let sequence = proposal.sequence;
        let floor = sequence.saturating_sub(proposal.behind.into());
        if floor > seat.next {
            seat.next = floor;
            seat.beyond = seat.beyond.split_off(&floor);
            seat.close_up();
        }
        if sequence < seat.next || seat.beyond.contains(&sequence) {
            return false;
        }
        if sequence == seat.next {
            seat.next = seat.next.saturating_add(1);
            seat.close_up();
        } else {
            seat.beyond.insert(sequence);
        }
        true
    }

    /// True when the proposal of that name is over.
    pub(super) fn has(&self, origin: ProcessId, sequence: u64) -> bool {
        self.0.get(&origin.node).is_some_and(|seat| {
            seat.incarnation > origin.incarnation
                || (seat.incarnation == origin.incarnation
                    && (sequence < seat.next || seat.beyond.contains(&sequence)))
        })
    }
}

impl Seat {
    fn close_up(&mut self) {
        while self.beyond.remove(&self.next) {
            self.next = self.next.saturating_add(1);
        }
    }
}

impl Wire for Seats {
    fn encode(&self, out: &mut BytesMut) {
        put_count(out, self.0.len());
        for (node, seat) in &self.0 {
            out.put_u64_le(*node);
            out.put_u64_le(seat.incarnation);
            out.put_u64_le(seat.next);
            put_count(out, seat.beyond.len());
            for sequence in &seat.beyond {
                out.put_u64_le(*sequence);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let mut seats = BTreeMap::new();
        for _ in 0..take_count(input, 28, "seats")? {
            let node = take_u64(input, "seat's node")?;
            let incarnation = take_u64(input, "seat's incarnation")?;
            let next = take_u64(input, "seat's next")?;
            let count = take_count(input, 8, "seat's numbers")?;
            let beyond = (0..count).map(|_| take_u64(input, "seat's number")).collect::<Result<_, _>>()?;
            seats.insert(node, Seat { incarnation, next, beyond });
        }
        Ok(Self(seats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(incarnation: u64, sequence: u64, behind: u32) -> Proposal {
        let origin = ProcessId { node: 1, incarnation };
        Proposal { origin, sequence, behind, fence: 0, payload: Bytes::new() }
    }

    #[test]
    fn each_name_is_taken_once_in_any_order() {
        let mut seats = Seats::default();
        for (sequence, is_new) in [(0, true), (2, true), (0, false), (1, true), (2, false), (3, true)] {
            assert_eq!(seats.take(&proposal(1, sequence, 3)), is_new, "{sequence}");
        }
        assert!(seats.take(&proposal(1, 9, 2)), "what lies before the floor is over");
        assert!(!seats.take(&proposal(1, 5, 0)));
        assert!(seats.has(proposal(1, 5, 0).origin, 5) && !seats.has(proposal(1, 8, 0).origin, 8));
        assert!(seats.take(&proposal(2, 0, 0)) && !seats.take(&proposal(1, 8, 0)), "lives follow each other");
        assert_eq!(Seats::from_bytes(seats.to_bytes()), Ok(seats));
    }
}
