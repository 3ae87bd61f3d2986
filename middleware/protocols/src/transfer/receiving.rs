//! The receiving end of a channel.

use super::{Config, Event, Item, Message, Place, Question, STORING_MAX, Transfer};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::{Plant, Planted};

/// Messages of a peer.
pub(super) struct Batch {
    pub(super) from: u64,
    pub(super) birth: u64,
    pub(super) life: u64,
    pub(super) mark: u64,
    pub(super) previous: u64,
    pub(super) items: Vec<Item>,
}

/// What is known of one peer's messages.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Of the disk that they come from; zero before the first.
    birth: u64,
    /// Up to here they are durable.
    stored: u64,
    /// The life of the peer's disk that gave the last of these numbers.
    mark: u64,
    /// The life of the peer that has asked last; zero before the first.
    life: u64,
    /// What it has asked, while it is not answered.
    asked: Option<Question>,
    /// Up to here they are durable or being stored.
    accepted: u64,
    /// Batches that are being stored, of whatever birth: a new disk does not make room.
    storing: usize,
}

impl Receiving {
    pub(super) fn nothing() -> Self {
        Self { birth: 0, stored: 0, mark: 0, life: 0, asked: None, accepted: 0, storing: 0 }
    }

    pub(super) fn at(place: Place) -> Self {
        let Place { birth, through, mark, .. } = place;
        Self { birth, stored: through, mark, accepted: through, ..Self::nothing() }
    }

    /// The peer asks where to go on. For a disk that was replaced since, the birth of the later one.
    pub(super) fn open(
        &mut self,
        birth: u64,
        question: Question,
        config: &Config,
        from: u64,
        out: &mut Outputs<Transfer>,
    ) -> Result<(), u64> {
        if birth < self.birth {
            return Err(self.birth);
        }
        if birth > self.birth {
            let keeps = config.plant.has(Planted::TransferIgnoresBirth);
            let (stored, accepted) = if keeps { (self.stored, self.accepted) } else { (0, 0) };
            *self = Self { birth, stored, accepted, storing: self.storing, ..Self::nothing() };
        }
        (self.life, self.asked) = (question.life, Some(question));
        self.answer(from, config, out);
        Ok(())
    }

    /// Answers the last question when nothing is being stored any more: what an earlier life of the peer has sent is then in
    /// the answer, or will not be taken.
    fn answer(&mut self, from: u64, config: &Config, out: &mut Outputs<Transfer>) {
        let tells_unstored = config.plant.has(Planted::TransferTellsUnstored);
        if self.storing > 0 && !tells_unstored {
            return;
        }
        let Some(question) = self.asked.take() else { return };
        let (stored, mark) = if tells_unstored { (self.accepted, 0) } else { (self.stored, self.mark) };
        let bytes_max = config.message_bytes_max as u64;
        let message = Message::Opened { birth: self.birth, question, stored, mark, bytes_max };
        out.send(ProcessId::any_life(from), Lane::Ordinary, message);
    }

    pub(super) fn batch(
        &mut self,
        Batch { from, birth, life, mark, previous, mut items }: Batch,
        plant: Plant,
        out: &mut Outputs<Transfer>,
    ) {
        let peer = ProcessId::any_life(from);
        if birth < self.birth {
            return;
        }
        let is_strange = birth > self.birth || life != self.life;
        if is_strange || (previous > self.accepted && !plant.has(Planted::TransferSkipsGaps)) {
            out.send(peer, Lane::Ordinary, Message::Behind { birth });
            return;
        }
        if !plant.has(Planted::TransferStoresDuplicates) {
            items.retain(|item| item.number > self.accepted);
        }
        let Some(last) = items.last() else {
            out.send(peer, Lane::Ordinary, Message::Stored { birth, stored: self.stored, mark: self.mark });
            return;
        };
        if self.storing >= STORING_MAX {
            return;
        }
        self.storing += 1;
        self.accepted = self.accepted.max(last.number);
        if plant.has(Planted::TransferAcknowledgesUnstored) {
            out.send(peer, Lane::Ordinary, Message::Stored { birth, stored: self.accepted, mark });
        }
        out.event(Event::Store { place: Place { from, birth, through: self.accepted, mark }, items });
    }

    pub(super) fn stored(&mut self, place: Place, config: &Config, out: &mut Outputs<Transfer>) {
        self.storing = self.storing.saturating_sub(1);
        if place.birth != self.birth {
            return self.answer(place.from, config, out);
        }
        if place.through > self.stored {
            (self.stored, self.mark) = (place.through, place.mark);
        }
        let message = Message::Stored { birth: self.birth, stored: self.stored, mark: self.mark };
        out.send(ProcessId::any_life(place.from), Lane::Ordinary, message);
        self.answer(place.from, config, out);
    }
}
