//! Looking into a queue without taking anything, and changing all of it at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use quorate_journal::{Position, ReadError};

use super::books::Books;
use super::error::{QueueError, QueuesOpenError};
use super::face::{Queue, Queues};
use super::far::Spot;
use super::message::MessageId;
use super::record::{Put, Step, Why};
use super::room::{moment_of, time_of};
use super::shelf::{Slip, Stand};

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
    /// The first message that was put at this moment of the machine's clock or later. Looks at every message before, on the disk if it is not in memory.
    Since(SystemTime),
    /// Behind the last one.
    End,
}

impl Queue {
    /// Messages as they stand now, from `start` on in the order of their puts, at most `most` of them; kept ones included.
    /// Nothing is taken. What is not in memory is read from the disk, and all queues wait meanwhile: ask for few at a time.
    /// To go on, start behind the last one that was given.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::Journal`] after the journal failed, [`QueueError::Read`].
    pub fn browse(&self, start: Start, most: usize) -> Result<Vec<View>, QueueError> {
        let state = self.room.lock();
        state.check_open()?;
        let books = &state.books;
        let Some(desk) = books.desks.get(&self.number) else { return Ok(Vec::new()) };
        let from = find(books, self.number, start);
        let here = desk.shelf.messages().range(from..).take(most).map(|(id, slip)| {
            let standing = match slip.stand() {
                Stand::Ready => Standing::Ready,
                Stand::Delayed(_) => Standing::Delayed,
                Stand::Leased(_) => Standing::Delivered,
                Stand::Retry(_) | Stand::Settling => Standing::Leaving,
            };
            (*id, Some(slip), slip.place, standing)
        });
        let kept = desk.shelf.kept().range(from..).take(most);
        let kept = kept.map(|(id, slip)| (*id, Some(slip), slip.place, Standing::Kept));
        let far = desk.distance.ranges(from).flat_map(|range| range.take(most));
        let far = far.map(|spot| (spot.id, None, Some(spot.place), Standing::Ready));
        let mut found: Vec<_> = here.chain(kept).chain(far).collect();
        found.sort_by_key(|(id, ..)| *id);
        found.truncate(most);
        let views = found.into_iter().map(|(id, slip, place, standing)| {
            let (label, deliveries, payload) = match (slip, place) {
                (Some(slip), _) => {
                    let payload = books.bodies.get(self.number, id, place)?;
                    (slip.label.clone(), slip.deliveries, payload)
                }
                // What is far is known by its record only.
                (None, place) => {
                    let put = books.bodies.read(place.unwrap_or_default())?;
                    (put.label, desk.distance.deliveries(id).or(put.again).unwrap_or(0), put.payload)
                }
            };
            Ok(View {
                id,
                payload,
                key: label.key,
                priority: label.priority,
                put_at: moment_of(label.put_at),
                expires_at: label.expires.map(moment_of),
                deliveries,
                standing,
            })
        });
        let views: Result<Vec<View>, ReadError> = views.collect();
        views.map_err(|error| QueueError::Read(Arc::new(error)))
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
            let to = find(books, self.number, start);
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
fn find(books: &Books, queue: u32, start: Start) -> MessageId {
    match start {
        Start::First => MessageId::from_u64(0),
        Start::At(id) => id,
        Start::End => books.next,
        Start::Since(moment) => {
            let time = time_of(moment);
            let first = |slips: &BTreeMap<MessageId, Slip>| {
                slips.iter().find(|(_, slip)| slip.label.put_at >= time).map(|(id, _)| *id)
            };
            let Some(desk) = books.desks.get(&queue) else { return books.next };
            let is_later = |spot: &Spot| books.put_at(*spot).is_some_and(|put_at| put_at >= time);
            let ranges = desk.distance.ranges(MessageId::from_u64(0));
            let far = ranges.filter_map(|mut range| range.find(is_later).map(|spot| spot.id));
            let near = [first(desk.shelf.messages()), first(desk.shelf.kept())].into_iter().flatten();
            near.chain(far).min().unwrap_or(books.next)
        }
    }
}
