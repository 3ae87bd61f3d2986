//! Looking into a queue without taking anything, and changing all of it at once.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use quorate_journal::Position;

use super::error::{QueueError, QueuesOpenError};
use super::face::{Queue, Queues};
use super::message::MessageId;
use super::record::{Put, Step, Why};
use super::room::{moment_of, time_of};
use super::shelf::{Shelf, Slip, Stand};

/// A message as it stands in its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct View {
    /// Its number.
    pub id: MessageId,
    /// The bytes that were put.
    pub payload: Bytes,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its priority.
    pub priority: u8,
    /// When it was put, on the machine's clock.
    pub put_at: SystemTime,
    /// When it expires.
    pub expires_at: Option<SystemTime>,
    /// How often it was delivered.
    pub deliveries: u32,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It is delivered to whoever comes, if no other of its key is before it.
    Ready,
    /// It waits for its time.
    Delayed,
    /// A consumer has it.
    Delivered,
    /// Its end is being stored.
    Leaving,
    /// It was acknowledged, and is [kept](super::QueueConfig::retain).
    Kept,
}

/// A place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The first message that is there, kept ones included.
    First,
    /// The message of this number, or the next one that is there.
    At(MessageId),
    /// The first message that was put at this moment of the machine's clock or later. Looks at every message before.
    Since(SystemTime),
    /// Behind the last one.
    End,
}

impl Queue {
    /// Messages as they stand now, from `start` on in the order of their puts, at most `most` of them; kept ones included.
    /// Nothing is taken. To go on, start behind the last one that was given.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::Journal`] after the journal failed.
    pub fn browse(&self, start: Start, most: usize) -> Result<Vec<View>, QueueError> {
        let state = self.room.lock();
        state.check_open()?;
        let books = &state.books;
        let Some(desk) = books.desks.get(&self.number) else { return Ok(Vec::new()) };
        let from = find(&desk.shelf, start, books.next);
        let view = |(id, slip): (&MessageId, &Slip), standing: Standing| View {
            id: *id,
            payload: books.bodies.get(*id),
            key: slip.label.key.clone(),
            priority: slip.label.priority,
            put_at: moment_of(slip.label.put_at),
            expires_at: slip.label.expires.map(moment_of),
            deliveries: slip.deliveries,
            standing,
        };
        let here = desk.shelf.messages().range(from..).take(most).map(|entry| {
            let standing = match entry.1.stand() {
                Stand::Ready => Standing::Ready,
                Stand::Delayed(_) => Standing::Delayed,
                Stand::Leased(_) => Standing::Delivered,
                Stand::Retry(_) | Stand::Settling => Standing::Leaving,
            };
            view(entry, standing)
        });
        let kept = desk.shelf.kept().range(from..).take(most).map(|entry| view(entry, Standing::Kept));
        let mut found: Vec<_> = here.chain(kept).collect();
        found.sort_by_key(|view| view.id);
        found.truncate(most);
        Ok(found)
    }

    /// Removes everything that was put before, delivered and kept messages included; returns when that is durable. Who has
    /// one of them has lost its lease.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::Journal`].
    /// # Cancel safety
    /// Dropping the future after its first poll leaves the purge under way.
    pub async fn purge(&self) -> Result<(), QueueError> {
        let purged = self.room.sweep(|books| books.plan_purge(self.number))?;
        purged.await.unwrap_or(Err(QueueError::Closed))
    }

    /// Goes back or forward, so that `start` is the next message; returns when that is durable. What lies before counts as
    /// acknowledged (and is kept, if the queue [keeps](super::QueueConfig::retain) messages); what lies behind, was
    /// acknowledged and is kept, is delivered once more. Who has a message from before `start` has lost its lease.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::Journal`].
    /// # Cancel safety
    /// Dropping the future after its first poll leaves the change under way.
    pub async fn seek(&self, start: Start) -> Result<(), QueueError> {
        let sought = self.room.sweep(|books| {
            let next = books.next;
            let to = find(&books.desk(self.number).shelf, start, next);
            books.plan_seek(self.number, to)
        })?;
        sought.await.unwrap_or(Err(QueueError::Closed))
    }
}

/// One record of the queues' journal, for whoever looks into it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordView {
    /// Where it lies.
    pub position: Position,
    /// What it says, in a word.
    pub what: &'static str,
    /// The queue that it is about.
    pub queue: Option<String>,
    /// The message that it is about.
    pub id: Option<MessageId>,
    /// Its bytes.
    pub bytes: usize,
}

impl Queues {
    /// What the journal says, from its beginning up to what is durable now. The iterator blocks on the disk; while it lives,
    /// the directory stays locked.
    pub fn records(&self) -> impl Iterator<Item = Result<RecordView, QueuesOpenError>> + use<> {
        let names = self.room.lock().books.names.clone();
        let journal = &self.room.journal;
        journal.read(journal.first()).map(move |entry| {
            let entry = entry.map_err(QueuesOpenError::Read)?;
            let wrong = |reason| QueuesOpenError::Record { position: entry.position, reason };
            let step = Step::decode(&entry).map_err(wrong)?;
            let (what, queue, id) = match &step {
                Step::Put(Put { again: Some(_), queue, id, .. }) => ("again", Some(queue), Some(id)),
                Step::Put(Put { origin: Some(_), queue, id, .. }) => ("dead letter", Some(queue), Some(id)),
                Step::Put(Put { queue, id, .. }) => ("put", Some(queue), Some(id)),
                Step::Gone { queue, id, why, .. } => match why {
                    Why::Acknowledged => ("acknowledged", Some(queue), Some(id)),
                    Why::Kept => ("kept", Some(queue), Some(id)),
                    Why::GivenUp => ("given up", Some(queue), Some(id)),
                    Why::Expired => ("expired", Some(queue), Some(id)),
                },
                Step::Delivered { queue, id, .. } => ("delivered", Some(queue), Some(id)),
                Step::Purged { queue, below } => ("purged before", Some(queue), Some(below)),
                Step::Sought { queue, to, .. } => ("sought", Some(queue), Some(to)),
                Step::Trimmed { queue, below } => ("trimmed before", Some(queue), Some(below)),
                Step::Cell { .. } => ("state", None, None),
                Step::Named { queue, .. } => ("names", Some(queue), None),
                Step::Floor { next } => ("floor", None, Some(next)),
            };
            Ok(RecordView {
                position: entry.position,
                what,
                queue: queue.and_then(|queue| names.get(queue).cloned()),
                id: id.copied(),
                bytes: entry.payload.len(),
            })
        })
    }
}

/// The id from which on a place begins.
fn find(shelf: &Shelf, start: Start, next: MessageId) -> MessageId {
    match start {
        Start::First => MessageId::from_u64(0),
        Start::At(id) => id,
        Start::End => next,
        Start::Since(moment) => {
            let time = time_of(moment);
            let first = |slips: &BTreeMap<MessageId, Slip>| {
                slips.iter().find(|(_, slip)| slip.label.put_at >= time).map(|(id, _)| *id)
            };
            [first(shelf.messages()), first(shelf.kept())].into_iter().flatten().min().unwrap_or(next)
        }
    }
}
