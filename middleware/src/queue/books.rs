//! The queues of a directory as one value: what is in them, and what must be stored before anything in them changes.
//!
//! Guarantee   a change is planned, stored, and only then done; a restart does what the stored records say, in their order,
//!             by the very same code. So the queues after a crash are those whose changes had been stored, and a change of
//!             several parts (a *unit*) is done as a whole or not at all.
//! Method      sans-IO: a wish and the time go in, a unit with its records comes out; whoever drives this stores the records
//!             in the order of the plans and says what became of them. Deterministic: no clock, no disk, no task.
//! Space       `needed` holds every place of the log that still tells something; `upkeep.rs` writes old ones again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate_journal::Record;
use quorate_protocols::Time;

use super::bodies::Bodies;
use super::config::{QueueConfig, WhenExpired};
use super::face::{QueueStats, Settled};
use super::message::{DeadReason, Durability, MessageId, Origin};
use super::meter::Meter;
use super::near::{Distance, NEAR_MAX};
use super::plan::cell_bytes;
use super::planted::Bug;
use super::record::{Put, Step, Why};
use super::seen::Seen;
use super::shelf::{Shelf, Taken};

pub(super) struct Books {
    pub(super) names: BTreeMap<u32, String>,
    pub(super) desks: BTreeMap<u32, Desk>,
    pub(super) bodies: Bodies,
    pub(super) cells: BTreeMap<Bytes, Cell>,
    pub(super) cell_bytes: usize,
    /// Changes of cells that are under way: meanwhile these are not written again.
    pub(super) coming_cells: BTreeMap<Bytes, usize>,
    /// And their bytes.
    pub(super) coming_cell_bytes: usize,
    /// Every place of the log that is still needed: its first is where the log may be cut.
    pub(super) needed: BTreeSet<(u64, Need)>,
    /// The id of the next message.
    pub(super) next: MessageId,
    /// Old places are being written again at the log's end.
    pub(super) is_moving: bool,
    /// What the log has before this place was done here.
    pub(super) done: u64,
    /// So many messages of a queue may be ready before others are far.
    pub(super) near_max: usize,
    /// Bytes in the log since the last checkpoint, and of that itself.
    pub(super) tail_bytes: u64,
    pub(super) checkpoint_bytes: u64,
    /// Bytes in the log that nobody needs any more since it was cut the last time.
    pub(super) idle_bytes: u64,
    #[cfg(test)]
    pub(super) planted: Option<Bug>,
}

/// What a place of the log tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    Message(u32, MessageId),
    Name(u32, MessageId),
    Cell(Bytes),
}

/// One entry of the application's own state.
pub(super) struct Cell {
    pub(super) value: Bytes,
    pub(super) place: u64,
}

/// One queue.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) shelf: Shelf,
    /// Those whose turn comes later.
    pub(super) distance: Distance,
    pub(super) seen: Seen,
    pub(super) config: QueueConfig,
    /// The settings are those that somebody has asked for in this life.
    pub(super) is_opened: bool,
    /// The number of the queue for its dead letters.
    pub(super) dead: Option<u32>,
    /// Accepted and on their way to the disk.
    pub(super) coming_messages: usize,
    pub(super) coming_bytes: usize,
    pub(super) coming_names: BTreeSet<Bytes>,
    /// Changes under way that concern many messages at once: meanwhile none of them is written again.
    pub(super) sweeping: usize,
    pub(super) totals: QueueStats,
    pub(super) put: Meter,
    pub(super) delivered: Meter,
    pub(super) acknowledged: Meter,
}

/// Changes that are stored and done together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) steps: Vec<Step>,
    /// It only writes again what is there.
    pub(super) is_move: bool,
}

impl Unit {
    pub(super) fn of(steps: Vec<Step>) -> Self {
        Self { steps, is_move: false }
    }

    /// What must be stored; nothing for what is only in memory.
    pub(super) fn records(&self) -> Vec<Record> {
        self.steps.iter().filter(|step| step.class() > Durability::Memory).map(Step::encode).collect()
    }

    /// How safe it must be.
    pub(super) fn class(&self) -> Durability {
        self.steps.iter().map(Step::class).max().unwrap_or(Durability::Memory)
    }
}

/// What whoever waits must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// A message of that queue may be ready, or due.
    Ready(u32),
    /// There is more room in that queue.
    Room(u32),
    /// A message has gone.
    Left(MessageId, Settled),
    /// Messages have gone, whichever were put before and are in no queue any more.
    Swept(MessageId, Settled),
}

impl Books {
    /// The books of a directory without messages.
    pub(super) fn new(names: BTreeMap<u32, String>) -> Self {
        let desks = names.keys().map(|number| (*number, Desk::unopened())).collect();
        Self {
            names,
            desks,
            bodies: Bodies::default(),
            cells: BTreeMap::new(),
            cell_bytes: 0,
            coming_cells: BTreeMap::new(),
            coming_cell_bytes: 0,
            needed: BTreeSet::new(),
            // Zero is before all of them.
            next: MessageId::from_u64(1),
            is_moving: false,
            done: 0,
            near_max: NEAR_MAX,
            tail_bytes: 0,
            checkpoint_bytes: 0,
            idle_bytes: 0,
            #[cfg(test)]
            planted: None,
        }
    }

    pub(super) fn has(&self, bug: Bug) -> bool {
        #[cfg(test)]
        let is_planted = self.planted == Some(bug);
        #[cfg(not(test))]
        let is_planted = {
            let _ = bug;
            false
        };
        is_planted
    }

    pub(super) fn desk(&mut self, queue: u32) -> &mut Desk {
        self.desks.entry(queue).or_default()
    }

    /// A unit is stored, from `first` on: does it.
    pub(super) fn commit(&mut self, now: Time, unit: Unit, first: Option<u64>, effects: &mut Vec<Effect>) {
        let mut place = first;
        self.is_moving &= !unit.is_move;
        for step in unit.steps {
            self.release(&step);
            let here = if step.class() > Durability::Memory { place } else { None };
            if here.is_some() {
                place = place.map(|place| place + 1);
            }
            self.count(now, &step);
            self.apply(now, here, step, effects);
        }
        if let Some(place) = place {
            self.done = self.done.max(place);
        }
    }

    /// A unit could not be stored: nothing of it is done.
    pub(super) fn abandon(&mut self, now: Time, unit: &Unit, effects: &mut Vec<Effect>) {
        self.is_moving &= !unit.is_move;
        for step in &unit.steps {
            self.release(step);
            match step {
                Step::Gone { queue, id, why, .. } => {
                    let is_wanted = matches!(why, Why::Acknowledged | Why::Kept);
                    let delay = if is_wanted { Duration::ZERO } else { BURIAL_RETRY };
                    self.desk(*queue).shelf.unsettle(now, *id, delay);
                    effects.push(Effect::Ready(*queue));
                }
                Step::Put(put) => effects.push(Effect::Room(put.queue)),
                _ => {}
            }
        }
    }

    /// Holds what a step needs while it is under way.
    pub(super) fn reserve(&mut self, step: &Step) {
        match step {
            Step::Put(Put { again: Some(_), .. }) => {}
            Step::Put(put) => {
                let desk = self.desk(put.queue);
                desk.coming_messages += 1;
                desk.coming_bytes += put.payload.len();
                desk.coming_names.extend(put.label.name.clone());
            }
            Step::Gone { queue, id, .. } => {
                #[cfg(test)]
                if self.has(Bug::KeyOpensBeforeTheAcknowledgementIsStored) {
                    self.desk(*queue).shelf.open_key(*id);
                }
                self.desk(*queue).shelf.settle(*id);
            }
            Step::Purged { queue, .. } | Step::Sought { queue, .. } | Step::Trimmed { queue, .. } => {
                self.desk(*queue).sweeping += 1;
            }
            Step::Cell { key, value } => {
                *self.coming_cells.entry(key.clone()).or_default() += 1;
                self.coming_cell_bytes += cell_bytes(key, value);
            }
            Step::Delivered { .. } | Step::Named { .. } | Step::Floor { .. } => {}
        }
    }

    fn release(&mut self, step: &Step) {
        match step {
            Step::Put(Put { again: Some(_), .. }) => {}
            Step::Put(put) => {
                let desk = self.desk(put.queue);
                desk.coming_messages -= 1;
                desk.coming_bytes -= put.payload.len();
                if let Some(name) = &put.label.name {
                    desk.coming_names.remove(name);
                }
            }
            Step::Purged { queue, .. } | Step::Sought { queue, .. } | Step::Trimmed { queue, .. } => {
                self.desk(*queue).sweeping -= 1;
            }
            Step::Cell { key, value } => {
                self.coming_cell_bytes -= cell_bytes(key, value);
                if let Some(count) = self.coming_cells.get_mut(key) {
                    *count -= 1;
                    if *count == 0 {
                        self.coming_cells.remove(key);
                    }
                }
            }
            Step::Gone { .. } | Step::Delivered { .. } | Step::Named { .. } | Step::Floor { .. } => {}
        }
    }

    fn count(&mut self, now: Time, step: &Step) {
        match step {
            Step::Put(put) => {
                let desk = self.desk(put.queue);
                match (put.again, put.origin) {
                    (Some(_), _) => desk.totals.moved += 1,
                    (None, None) => {
                        desk.totals.put += 1;
                        desk.put.add(now);
                    }
                    (None, Some(_)) => {}
                }
            }
            Step::Gone { queue, why, .. } => {
                let desk = self.desk(*queue);
                match why {
                    Why::Acknowledged | Why::Kept => {
                        desk.totals.acknowledged += 1;
                        desk.acknowledged.add(now);
                    }
                    Why::GivenUp => desk.totals.buried += 1,
                    Why::Expired => desk.totals.expired += 1,
                }
            }
            _ => {}
        }
    }

    /// Does what is due in a queue; then look for [burials](Self::next_burial).
    pub(super) fn look(&mut self, now: Time, queue: u32) {
        if self.has(Bug::ExpiredIsDelivered) {
            return;
        }
        let desk = self.desks.entry(queue).or_default();
        desk.shelf.expire(now, desk.deliveries_max());
    }

    /// The next message for a consumer, and what is to be recorded of it.
    pub(super) fn take(&mut self, now: Time, queue: u32) -> Option<(Taken, Option<Step>)> {
        let desk = self.desks.entry(queue).or_default();
        let taken = desk.shelf.take(now, desk.config.lease)?;
        desk.totals.delivered += 1;
        desk.delivered.add(now);
        let class = desk.shelf.slip(taken.id).map_or(Durability::Memory, |slip| slip.class);
        let step = Step::Delivered { queue, id: taken.id, deliveries: taken.deliveries };
        self.tail_bytes += DELIVERED_BYTES;
        if taken.deliveries > 1 {
            // The first delivery is counted when the message goes.
            self.idle_bytes += DELIVERED_BYTES;
        }
        Some((taken, (class > Durability::Memory).then_some(step)))
    }

    /// Takes the next message that was given up or has expired out of its queue, in one step with its burial.
    pub(super) fn next_burial(&mut self, now: Time, queue: u32) -> Option<Unit> {
        loop {
            let desk = self.desks.entry(queue).or_default();
            let (id, reason) = desk.shelf.next_doomed()?;
            let Some(slip) = desk.shelf.slip(id) else { continue };
            let class = slip.class;
            let is_dropped = reason == DeadReason::Expired && desk.config.when_expired == WhenExpired::Drop;
            let why = if reason == DeadReason::Expired { Why::Expired } else { Why::GivenUp };
            let gone = Step::Gone { queue, id, why, class };
            let Some(dead) = desk.dead.filter(|_| !is_dropped) else {
                if why == Why::Expired {
                    return Some(Unit::of(vec![gone]));
                }
                // The settings changed meanwhile.
                desk.shelf.unsettle(now, id, Duration::ZERO);
                continue;
            };
            let Ok(payload) = self.bodies.get(queue, id, slip.place) else {
                desk.shelf.unsettle(now, id, BURIAL_RETRY);
                continue;
            };
            let mut label = slip.label.clone();
            // There it waits for whoever looks into it.
            (label.due, label.expires, label.name) = (None, None, None);
            let origin = Some(Origin { queue, id, deliveries: slip.deliveries, reason });
            let size = slip.size;
            if !self.desk(dead).has_room(1, size) {
                self.desk(queue).shelf.unsettle(now, id, BURIAL_RETRY);
                continue;
            }
            let put = Put {
                queue: dead,
                id: self.give_id(),
                label,
                origin,
                again: None,
                is_kept: false,
                class,
                payload,
            };
            let unit = Unit::of(vec![gone, Step::Put(put)]);
            for step in &unit.steps {
                self.reserve(step);
            }
            return Some(unit);
        }
    }

    pub(super) fn give_id(&mut self) -> MessageId {
        let id = self.next;
        self.next = MessageId::from_u64(id.as_u64() + 1);
        id
    }
}

impl Desk {
    /// One that nobody has opened yet: its dead letters, if it has some, are not known, and neither is how many names it
    /// remembers.
    pub(super) fn unopened() -> Self {
        let config = QueueConfig::new().deliveries_max(None).deduplicate(DEDUPLICATE_MAX);
        Self { config, ..Self::default() }
    }

    pub(super) fn has_room(&self, messages: usize, size: usize) -> bool {
        self.len() + self.coming_messages + messages <= self.config.messages_max
            && self.bytes() + self.coming_bytes + size <= self.config.bytes_max
    }

    /// After how many deliveries a message is given up; never without a place for dead letters.
    pub(super) fn deliveries_max(&self) -> Option<u32> {
        self.dead.and(self.config.deliveries_max)
    }
}

/// How long a message waits that is to be taken out when that is not possible: the queue of dead letters is full, for one.
const BURIAL_RETRY: Duration = Duration::from_secs(1);
/// What the records of one message's life take in the journal beside its payload, roughly.
pub(super) const RECORDS_BYTES: u64 = 128;
/// What the record of one delivery takes in the journal.
pub(super) const DELIVERED_BYTES: u64 = 48;
/// Names that one queue may remember: at some 150 bytes each, 150 MB.
pub(super) const DEDUPLICATE_MAX: usize = 1_000_000;
