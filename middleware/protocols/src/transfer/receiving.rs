//! The receiving end of a channel.

use super::{Event, Item, Message, Place, STORING_MAX, Transfer};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::{Plant, Planted};

/// What is known of one peer's messages.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Of the disk that they come from; zero before the first.
    birth: u64,
    /// Up to here they are durable.
    stored: u64,
    /// Up to here they are durable or being stored.
    accepted: u64,
    /// Batches that are being stored, of whatever birth: a new disk does not make room.
    storing: usize,
}

impl Receiving {
    pub(super) fn nothing() -> Self {
        Self { birth: 0, stored: 0, accepted: 0, storing: 0 }
    }

    pub(super) fn at(place: Place) -> Self {
        Self { birth: place.birth, stored: place.through, accepted: place.through, storing: 0 }
    }

    /// Where the peer goes on; for a disk that was replaced since, the birth of the later one.
    pub(super) fn open(&mut self, birth: u64, plant: Plant) -> Result<u64, u64> {
        if birth < self.birth {
            return Err(self.birth);
        }
        if birth > self.birth {
            let keeps = plant.has(Planted::TransferIgnoresBirth);
            let (stored, accepted) = if keeps { (self.stored, self.accepted) } else { (0, 0) };
            *self = Self { birth, stored, accepted, storing: self.storing };
        }
        Ok(if plant.has(Planted::TransferTellsUnstored) { self.accepted } else { self.stored })
    }

    pub(super) fn batch(
        &mut self,
        from: u64,
        birth: u64,
        previous: u64,
        mut items: Vec<Item>,
        plant: Plant,
        out: &mut Outputs<Transfer>,
    ) {
        let peer = ProcessId::any_life(from);
        if birth < self.birth {
            return;
        }
        if birth > self.birth || (previous > self.accepted && !plant.has(Planted::TransferSkipsGaps)) {
            out.send(peer, Lane::Ordinary, Message::Behind { birth });
            return;
        }
        if !plant.has(Planted::TransferStoresDuplicates) {
            items.retain(|item| item.number > self.accepted);
        }
        let Some(last) = items.last() else {
            out.send(peer, Lane::Ordinary, Message::Stored { birth, stored: self.stored });
            return;
        };
        if self.storing >= STORING_MAX {
            return;
        }
        self.storing += 1;
        self.accepted = self.accepted.max(last.number);
        if plant.has(Planted::TransferAcknowledgesUnstored) {
            out.send(peer, Lane::Ordinary, Message::Stored { birth, stored: self.accepted });
        }
        out.event(Event::Store { place: Place { from, birth, through: self.accepted }, items });
    }

    pub(super) fn stored(&mut self, place: Place, out: &mut Outputs<Transfer>) {
        self.storing = self.storing.saturating_sub(1);
        if place.birth != self.birth {
            return;
        }
        self.stored = self.stored.max(place.through);
        let message = Message::Stored { birth: self.birth, stored: self.stored };
        out.send(ProcessId::any_life(place.from), Lane::Ordinary, message);
    }
}
