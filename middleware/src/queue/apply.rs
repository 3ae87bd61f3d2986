//! Doing what the log says, step by step: when it has just been stored, and again after a restart.

use bytes::Bytes;
use quorate_protocols::Time;

use super::books::{Books, Cell, Effect, Need, RECORDS_BYTES};
use super::face::Settled;
use super::far::Spot;
use super::message::MessageId;
use super::planted::Bug;
use super::record::{Put, Step, Why};
use super::shelf::Slip;

impl Books {
    /// What the log said at `place`.
    pub(super) fn replay(&mut self, now: Time, place: u64, step: Step) -> Result<(), &'static str> {
        let queue = match &step {
            Step::Put(put) => Some(put.queue),
            Step::Gone { queue, .. }
            | Step::Delivered { queue, .. }
            | Step::Purged { queue, .. }
            | Step::Sought { queue, .. }
            | Step::Trimmed { queue, .. }
            | Step::Named { queue, .. } => Some(*queue),
            Step::Cell { .. } | Step::Floor { .. } => None,
        };
        if queue.is_some_and(|queue| !self.desks.contains_key(&queue)) {
            return Err("queue without a name");
        }
        self.apply(now, Some(place), step, &mut Vec::new());
        self.done = place + 1;
        Ok(())
    }

    /// Does one step, in the order of the log: now that it is stored, or again after a restart.
    pub(super) fn apply(&mut self, now: Time, place: Option<u64>, step: Step, effects: &mut Vec<Effect>) {
        if place.is_some() {
            self.tail_bytes += step.log_bytes();
        }
        match step {
            Step::Put(put) => self.arrive(now, place, put, effects),
            Step::Gone { queue, id, why, class: _ } => {
                self.raise(id);
                self.depart(queue, id, why, effects);
            }
            Step::Delivered { queue, id, deliveries } => {
                self.raise(id);
                let desk = self.desk(queue);
                desk.shelf.restore_deliveries(id, deliveries);
                desk.distance.restore_deliveries(id, deliveries);
            }
            Step::Purged { queue, below } => {
                let shelf = &self.desk(queue).shelf;
                let gone: Vec<_> = shelf.messages().range(..below).map(|(id, _)| *id).collect();
                let kept: Vec<_> = shelf.kept().range(..below).map(|(id, _)| *id).collect();
                for id in gone {
                    if let Some(slip) = self.desk(queue).shelf.remove(id) {
                        self.forget(queue, id, &slip);
                        self.desk(queue).totals.purged += 1;
                    }
                }
                self.drop_kept(queue, kept);
                let far = self.pass_far(queue, below);
                self.desk(queue).totals.purged += far;
                effects.extend([
                    Effect::Swept(below, Settled::Purged),
                    Effect::Room(queue),
                    Effect::Ready(queue),
                ]);
            }
            Step::Sought { queue, to, is_kept } => {
                let shelf = &self.desk(queue).shelf;
                let passed: Vec<_> = shelf.messages().range(..to).map(|(id, _)| *id).collect();
                let back: Vec<_> = shelf.kept().range(to..).map(|(id, _)| *id).collect();
                for id in passed {
                    self.depart(queue, id, if is_kept { Why::Kept } else { Why::Acknowledged }, effects);
                }
                if is_kept {
                    while let Some(id) = self.desk(queue).distance.oldest_id().filter(|id| *id < to) {
                        self.depart(queue, id, Why::Kept, effects);
                    }
                }
                self.pass_far(queue, to);
                effects.push(Effect::Swept(to, Settled::Acknowledged));
                for id in back {
                    let shelf = &mut self.desk(queue).shelf;
                    if let Some(mut slip) = shelf.remove_kept(id) {
                        // It was worked on: what comes now is another round.
                        slip.deliveries = 0;
                        shelf.insert(now, id, slip);
                    }
                }
                effects.push(Effect::Ready(queue));
            }
            Step::Trimmed { queue, below } => {
                let kept = self.desk(queue).shelf.kept().range(..below).map(|(id, _)| *id).collect();
                self.drop_kept(queue, kept);
            }
            Step::Cell { key, value } => {
                if let Some(old) = self.cells.remove(&key) {
                    self.cell_bytes -= key.len() + old.value.len();
                    self.idle_bytes += old.value.len() as u64 + RECORDS_BYTES;
                    self.needed.remove(&(old.place, Need::Cell(key.clone())));
                }
                if let (Some(value), Some(place)) = (value, place) {
                    self.cell_bytes += key.len() + value.len();
                    if !self.has(Bug::CutsCells) {
                        self.needed.insert((place, Need::Cell(key.clone())));
                    }
                    self.cells.insert(key, Cell { value, place });
                }
            }
            Step::Named { queue, names } => {
                for (id, name) in names {
                    self.raise(id);
                    self.remember(queue, id, name, place);
                }
            }
            Step::Floor { next } => self.next = self.next.max(next),
        }
    }

    fn arrive(&mut self, now: Time, place: Option<u64>, put: Put, effects: &mut Vec<Effect>) {
        let Put { queue, id, label, origin, again, is_kept, class, payload } = put;
        self.raise(id);
        if let Some(name) = label.name.clone() {
            self.remember(queue, id, name, place);
        }
        let deliveries = again.unwrap_or(0);
        if self.put_far(queue, (id, &label), (place, payload.len()), again, is_kept) {
            effects.push(Effect::Ready(queue));
            return;
        }
        let is_cut = is_kept && self.has(Bug::CutsKept);
        if let Some(place) = place.filter(|_| !is_cut) {
            self.needed.insert((place, Need::Message(queue, id)));
        }
        let shelf = &mut self.desk(queue).shelf;
        if let Some(old) = shelf.relocate(id, place) {
            shelf.restore_deliveries(id, deliveries);
            if let Some(old) = old {
                self.needed.remove(&(old, Need::Message(queue, id)));
            }
            return;
        }
        let slip = Slip::new(place, payload.len(), label, origin, deliveries, class);
        if is_kept {
            shelf.insert_kept(id, slip);
        } else {
            shelf.insert(now, id, slip);
            effects.push(Effect::Ready(queue));
        }
        self.bodies.insert(queue, id, payload, place);
    }

    fn depart(&mut self, queue: u32, id: MessageId, why: Why, effects: &mut Vec<Effect>) {
        if let Some(spot) = self.desk(queue).distance.take(id) {
            self.depart_far(queue, spot, why, effects);
            return;
        }
        let cuts_kept = self.has(Bug::CutsKept);
        let Some(slip) = self.desk(queue).shelf.remove(id) else {
            // It was passed over meanwhile; what is a dead letter is not kept as well.
            if matches!(why, Why::GivenUp | Why::Expired) {
                self.drop_kept(queue, vec![id]);
            }
            return;
        };
        let how = match why {
            Why::Acknowledged | Why::Kept => Settled::Acknowledged,
            Why::GivenUp => Settled::GivenUp,
            Why::Expired => Settled::Expired,
        };
        effects.extend([Effect::Left(id, how), Effect::Room(queue)]);
        if slip.label.key.is_some() {
            // The next one of its key may be given now.
            effects.push(Effect::Ready(queue));
        }
        if why == Why::Kept {
            if let Some(place) = slip.place.filter(|_| cuts_kept) {
                self.needed.remove(&(place, Need::Message(queue, id)));
            }
            self.desk(queue).shelf.insert_kept(id, slip);
        } else {
            self.forget(queue, id, &slip);
        }
    }

    /// Only by a change of the whole queue, or after a restart, does a message go that was not brought near.
    fn depart_far(&mut self, queue: u32, spot: Spot, why: Why, effects: &mut Vec<Effect>) {
        let how = match why {
            Why::Acknowledged | Why::Kept => Settled::Acknowledged,
            Why::GivenUp => Settled::GivenUp,
            Why::Expired => Settled::Expired,
        };
        effects.extend([Effect::Left(spot.id, how), Effect::Room(queue)]);
        // What cannot be read cannot be kept.
        let kept = if why == Why::Kept { self.bodies.read(spot.place).ok() } else { None };
        match kept {
            Some(put) => {
                self.needed.insert((spot.place, Need::Message(queue, spot.id)));
                let slip = Slip::new(Some(spot.place), spot.size, put.label, put.origin, 0, put.class);
                self.desk(queue).shelf.insert_kept(spot.id, slip);
            }
            None => self.idle_bytes += spot.size as u64 + RECORDS_BYTES,
        }
    }

    /// What is far and was put before goes, as a whole; returns how many.
    fn pass_far(&mut self, queue: u32, below: MessageId) -> u64 {
        let (count, bytes) = self.desk(queue).distance.drop_below(below);
        self.idle_bytes += bytes as u64 + count as u64 * RECORDS_BYTES;
        count as u64
    }

    fn drop_kept(&mut self, queue: u32, ids: Vec<MessageId>) {
        for id in ids {
            if let Some(slip) = self.desk(queue).shelf.remove_kept(id) {
                self.forget(queue, id, &slip);
            }
        }
    }

    /// Nothing is left of a message but its name.
    fn forget(&mut self, queue: u32, id: MessageId, slip: &Slip) {
        self.bodies.remove(queue, id);
        if let Some(place) = slip.place {
            self.needed.remove(&(place, Need::Message(queue, id)));
            self.idle_bytes += slip.size as u64 + RECORDS_BYTES;
        }
    }

    pub(super) fn remember(&mut self, queue: u32, id: MessageId, name: Bytes, place: Option<u64>) {
        let desk = self.desks.entry(queue).or_default();
        if let Some(old) = desk.seen.remember(id, name, place) {
            self.needed.remove(&(old, Need::Name(queue, id)));
        }
        if !self.has(Bug::CutsNames)
            && let Some(place) = place
        {
            self.needed.insert((place, Need::Name(queue, id)));
        }
        self.trim_names(queue);
    }

    /// Forgets the names beyond the window.
    pub(super) fn trim_names(&mut self, queue: u32) {
        let desk = self.desks.entry(queue).or_default();
        while let Some((id, place)) = desk.seen.forget_oldest(desk.config.deduplicate) {
            if let Some(place) = place {
                self.needed.remove(&(place, Need::Name(queue, id)));
            }
        }
    }

    fn raise(&mut self, id: MessageId) {
        if !self.has(Bug::IdsStartAgain) {
            self.next = self.next.max(MessageId::from_u64(id.as_u64() + 1));
        }
    }
}
