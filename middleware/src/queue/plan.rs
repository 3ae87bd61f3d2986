//! What somebody wants done as a whole, looked through before anything is stored.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_journal::Appended;
use quorate_protocols::Time;

use super::books::{Books, Unit};
use super::config::WhenFull;
use super::error::PutError;
use super::face::Receipt;
use super::message::{DeadReason, Durability, LABEL_BYTES_MAX, Message, MessageId, Origin};
use super::planted::Bug;
use super::record::{Put, Step, Why};
use super::shelf::Lease;
use super::work::OWN_STATE;

/// Messages to put, messages to acknowledge, entries of the application's state to set or to remove.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub(super) puts: Vec<(u32, Message)>,
    pub(super) acks: Vec<(u32, MessageId, Lease)>,
    pub(super) cells: Vec<(Bytes, Option<Bytes>)>,
    /// What is done when a queue is full, whatever its own policy is.
    pub(super) when_full: Option<WhenFull>,
}

/// A wish that can be done, and is now under way.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) unit: Unit,
    /// For each put of the wish.
    pub(super) puts: Vec<Planned>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) id: MessageId,
    pub(super) durability: Durability,
    /// Its record among those of the unit; none for what is only in memory, and for a repetition.
    pub(super) record: Option<u64>,
    /// It was put before under its name.
    pub(super) is_repeated: bool,
}

/// Why a wish is not under way. Nothing has changed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// This queue has no room now, and its policy is to wait.
    Wait(u32),
    /// A message of the same name is on its way: what becomes of it must be known first.
    Coming,
    LeaseLost,
    /// The application's state would be too large.
    State {
        size: usize,
        limit: usize,
    },
    Put(PutError),
}

impl Planned {
    /// What whoever put it is told.
    pub(super) fn receipt(&self, appended: Option<Appended>) -> Receipt {
        let record = appended.zip(self.record);
        let position = record.map(|(appended, record)| appended.first.plus(record));
        let durability = match record {
            Some((appended, _)) if appended.durability == quorate_journal::Durability::Synced => {
                Durability::Synced
            }
            _ => self.durability,
        };
        Receipt { id: self.id, durability, position, is_repeated: self.is_repeated }
    }
}

impl From<PutError> for Refusal {
    fn from(error: PutError) -> Self {
        Self::Put(error)
    }
}

impl Books {
    /// Takes a wish up, or says why not. What comes out must be stored; until then nothing of it is seen.
    pub(super) fn plan(&mut self, now: Time, wish: &Wish) -> Result<Plan, Refusal> {
        let repeated = self.repetitions(wish)?;
        self.check_room(wish, &repeated)?;
        self.check_cells(&wish.cells)?;
        let mut steps = Vec::with_capacity(wish.puts.len() + wish.acks.len() + wish.cells.len());
        for (queue, id, lease) in &wish.acks {
            let desk = self.desk(*queue);
            let slip = desk.shelf.settleable(*id, *lease).ok_or(Refusal::LeaseLost)?;
            let why = if desk.config.retain_messages > 0 { Why::Kept } else { Why::Acknowledged };
            steps.push(Step::Gone { queue: *queue, id: *id, why, class: slip.class });
        }
        // From here on nothing is refused.
        let mut own: BTreeMap<(u32, &Bytes), usize> = BTreeMap::new();
        let mut puts: Vec<Planned> = Vec::with_capacity(wish.puts.len());
        let mut record = steps.iter().filter(|step| step.class() > Durability::Memory).count() as u64;
        for (index, ((queue, message), repeated)) in wish.puts.iter().zip(repeated).enumerate() {
            if let Some(id) = repeated {
                let durability = message.durability;
                puts.push(Planned { id, durability, record: None, is_repeated: true });
                continue;
            }
            if let Some(name) = &message.name
                && let Some(first) = own.insert((*queue, name), index)
            {
                own.insert((*queue, name), first);
                puts.push(Planned { is_repeated: true, record: None, ..puts[first] });
                continue;
            }
            let id = self.give_id();
            let class = message.durability;
            let is_recorded = class > Durability::Memory;
            puts.push(Planned {
                id,
                durability: class,
                record: is_recorded.then_some(record),
                is_repeated: false,
            });
            record += u64::from(is_recorded);
            steps.push(Step::Put(Put {
                queue: *queue,
                id,
                label: message.label(now),
                origin: None,
                again: None,
                is_kept: false,
                class,
                payload: message.payload.clone(),
            }));
        }
        for (key, value) in &wish.cells {
            steps.push(Step::Cell { key: key.clone(), value: value.clone() });
        }
        for step in &steps {
            self.reserve(step);
        }
        Ok(Plan { unit: Unit::of(steps), puts })
    }

    /// Which of the messages were put before, and as what.
    fn repetitions(&self, wish: &Wish) -> Result<Vec<Option<MessageId>>, Refusal> {
        let find = |(queue, message): &(u32, Message)| {
            message.check()?;
            let (Some(desk), Some(name)) = (self.desks.get(queue), &message.name) else { return Ok(None) };
            if desk.coming_names.contains(name) && !self.has(Bug::NamesUnderWayAreForgotten) {
                return Err(Refusal::Coming);
            }
            let first = desk.seen.find(name);
            // What is in memory only is not made safer by being told that it was put before.
            let class = first.and_then(|id| desk.shelf.messages().get(&id)).map(|slip| slip.class);
            match (first, class) {
                (Some(id), Some(Durability::Memory)) if message.durability > Durability::Memory => {
                    Err(PutError::InMemory { id }.into())
                }
                _ => Ok(first),
            }
        };
        wish.puts.iter().map(find).collect()
    }

    fn check_room(&mut self, wish: &Wish, repeated: &[Option<MessageId>]) -> Result<(), Refusal> {
        let mut wanted: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        // What leaves in the same step makes room for what comes.
        let mut freed: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for (queue, id, lease) in &wish.acks {
            if let Some(slip) = self.desk(*queue).shelf.settleable(*id, *lease) {
                let (count, bytes) = freed.entry(*queue).or_default();
                (*count, *bytes) = (*count + 1, *bytes + slip.size);
            }
        }
        for ((queue, message), repeated) in wish.puts.iter().zip(repeated) {
            let (desk, size) = (self.desk(*queue), message.payload.len());
            let limit = desk.config.message_bytes_max.min(desk.config.bytes_max);
            if size > limit {
                return Err(PutError::TooLarge { size, limit }.into());
            }
            if repeated.is_none() {
                let (count, bytes) = wanted.entry(*queue).or_default();
                (*count, *bytes) = (*count + 1, *bytes + size);
            }
        }
        for (queue, (count, size)) in wanted {
            let desk = self.desk(queue);
            let (messages, bytes) = (desk.config.messages_max, desk.config.bytes_max);
            if count > messages || size > bytes {
                return Err(PutError::TooMany { count, size, messages, bytes }.into());
            }
            let (gone, gone_bytes) = freed.get(&queue).copied().unwrap_or_default();
            let is_there_room = desk.len() + desk.coming_messages + count <= messages.saturating_add(gone)
                && desk.bytes() + desk.coming_bytes + size <= bytes.saturating_add(gone_bytes);
            if !is_there_room {
                return Err(if wish.when_full.unwrap_or(desk.config.when_full) == WhenFull::Wait {
                    Refusal::Wait(queue)
                } else {
                    let messages = desk.len() + desk.coming_messages;
                    PutError::Full { messages, bytes: desk.bytes() + desk.coming_bytes }.into()
                });
            }
        }
        Ok(())
    }

    /// A message that nobody has goes from one queue to another, as a dead letter; where it can never fit in, it only goes.
    pub(super) fn plan_aside(
        &mut self,
        now: Time,
        (queue, id): (u32, MessageId),
        (dead, message): (u32, &Message),
        reason: DeadReason,
    ) -> Result<Unit, PutError> {
        let (desk, size) = (self.desk(dead), message.payload.len());
        let class = message.durability;
        let mut steps = vec![Step::Gone { queue, id, why: Why::GivenUp, class }];
        if size <= desk.config.bytes_max {
            if !desk.has_room(1, size) {
                let messages = desk.len() + desk.coming_messages;
                return Err(PutError::Full { messages, bytes: desk.bytes() + desk.coming_bytes });
            }
            let origin = Some(Origin { queue, id, deliveries: 0, reason });
            let (id, label) = (self.give_id(), message.label(now));
            let (again, is_kept, payload) = (None, false, message.payload.clone());
            steps.push(Step::Put(Put { queue: dead, id, label, origin, again, is_kept, class, payload }));
        }
        for step in &steps {
            self.reserve(step);
        }
        Ok(Unit::of(steps))
    }

    /// Everything that is in a queue goes.
    pub(super) fn plan_purge(&mut self, queue: u32) -> Unit {
        self.plan_sweep(Step::Purged { queue, below: self.next })
    }

    /// The next message of a queue shall be the first from `to` on: what is before counts as acknowledged, what was
    /// acknowledged from there on and is kept comes back.
    pub(super) fn plan_seek(&mut self, queue: u32, to: MessageId) -> Unit {
        let is_kept = self.desk(queue).config.retain_messages > 0;
        self.plan_sweep(Step::Sought { queue, to, is_kept })
    }

    fn plan_sweep(&mut self, step: Step) -> Unit {
        self.reserve(&step);
        Unit::of(vec![step])
    }

    fn check_cells(&self, cells: &[(Bytes, Option<Bytes>)]) -> Result<(), Refusal> {
        if cells.iter().any(|(key, _)| key.is_empty() || key.len() > LABEL_BYTES_MAX) {
            return Err(PutError::Label { field: "state key" }.into());
        }
        // The middleware's own entries are few and small, and must not fail because the application has many.
        let of_users = |(key, value): &&(Bytes, Option<Bytes>)| value.is_some() && !is_own(key);
        if !cells.iter().any(|cell| of_users(&cell)) {
            return Ok(());
        }
        // What is replaced is not counted off: simple, and only stricter near the limit.
        let coming: usize = cells.iter().map(|(key, value)| cell_bytes(key, value)).sum();
        let size = self.cell_bytes + self.coming_cell_bytes + coming;
        if size > STATE_BYTES_MAX {
            return Err(Refusal::State { size, limit: STATE_BYTES_MAX });
        }
        Ok(())
    }
}

fn is_own(key: &[u8]) -> bool {
    key.starts_with(OWN_STATE.as_bytes())
}

/// What an entry counts.
pub(super) fn cell_bytes(key: &Bytes, value: &Option<Bytes>) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len)
}

/// The application's own state is in memory; who has more has a database.
pub(super) const STATE_BYTES_MAX: usize = 64 << 20;
