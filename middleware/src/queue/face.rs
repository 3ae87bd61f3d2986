//! What a user holds: the queues of a directory, one queue, what a put gives.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[cfg(unix)]
use quorate_journal::FileStorage;
use quorate_journal::{AppendError, Config, Journal, Position, Storage};
use quorate_protocols::Time;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::config::{QueueConfig, check_name};
use super::delivery::Delivery;
use super::error::{DeclareError, PutError, QueueError, QueuesOpenError, WorkError};
use super::record::{Step, decode_names};

use super::bells::{Bells, until_rung};
use super::books::Books;
use super::checkpoint::begin;
use super::message::{Durability, Message, MessageId};
use super::plan::Wish;
use super::room::{CHECKPOINT, NAMES, Room, Stored, moment_of, wall_now};
#[cfg(unix)]
use crate::node::Node;

/// All queues of one directory. Clones are cheap and share it.
///
/// When the last handle, queue and delivery is gone, what was accepted is still written; [`close`](Self::close) waits
/// for it.
#[derive(Clone)]
pub struct Queues {
    pub(super) room: Arc<Room>,
}

/// One queue. Clones are cheap and share it.
#[derive(Clone)]
pub struct Queue {
    pub(super) room: Arc<Room>,
    pub(super) number: u32,
    name: Arc<str>,
    bells: Bells,
}

/// What a put gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The message's number, which is also its place in the order of the queue.
    pub id: MessageId,
    /// How safe it is now; at least as safe as was asked.
    pub durability: Durability,
    /// Where its record lies in the queues' journal; none for what is only in memory, and for a repetition.
    pub position: Option<Position>,
    /// A message of this [name](Message::name) was put before, as `id`: this put stored nothing.
    pub is_repeated: bool,
}

/// What became of a message whose putter waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled {
    /// A consumer has worked on it and acknowledged it.
    Acknowledged,
    /// It was delivered too often without that; it is a dead letter now.
    GivenUp,
    /// Its time was over.
    Expired,
    /// The queue was [purged](Queue::purge).
    Purged,
    /// It was put before, under the same name, and has left the queue; how is not remembered.
    Unknown,
    /// The queues were closed, or failed, first. The message is stored, and unless its acknowledgement was on its way to
    /// the disk, it is delivered when they are opened again.
    Closed,
}

/// What [`Queues::close`] reports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// Messages in all queues; the next opening finds them.
    pub messages: usize,
    /// Why the journal had failed before, if it had.
    pub failure: Option<String>,
}

/// Where a queue stands, and totals since the queues were opened.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Messages in it: ready, delayed and being delivered.
    pub messages: usize,
    /// Their payload bytes.
    pub bytes: usize,
    /// Those that a get would find.
    pub ready: usize,
    /// Acknowledged messages that are [kept](QueueConfig::retain), not counted above.
    pub kept: usize,
    /// When the oldest one that has not left was put, on the machine's clock.
    pub oldest: Option<SystemTime>,
    /// How many were put a second, over the last ten.
    pub put_per_second: f64,
    /// How many were delivered a second, over the last ten.
    pub delivered_per_second: f64,
    /// How many were acknowledged a second, over the last ten.
    pub acknowledged_per_second: f64,
    /// Messages that were put.
    pub put: u64,
    /// Deliveries, repeated ones included.
    pub delivered: u64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Messages that went to the dead letters.
    pub buried: u64,
    /// Messages whose time was over.
    pub expired: u64,
    /// Messages that were purged.
    pub purged: u64,
    /// How often a message was written again, so that the journal could be cut behind its old place.
    pub moved: u64,
}

impl Queues {
    /// Opens the queues in `storage`, with all messages that were not acknowledged. Messages that were being delivered
    /// are ready again.
    ///
    /// Blocks on the disk: it reads what the journal holds.
    ///
    /// # Errors
    /// See [`QueuesOpenError`].
    pub fn open(storage: impl Storage, config: Config) -> Result<Self, QueuesOpenError> {
        let (journal, recovered) = Journal::open(storage, config).map_err(QueuesOpenError::Journal)?;
        let wall = wall_now();
        let books = match restore(&journal, recovered.first, wall) {
            Ok(restored) => restored,
            Err(error) => {
                // Or the directory would be locked a little longer than the caller knows.
                journal.close_blocking();
                return Err(error);
            }
        };
        tracing::debug!(queues = books.names.len(), "queues opened");
        let room = Room::new(journal, wall, books);
        Ok(Self { room: Arc::new(room) })
    }

    /// Opens the queues of a node: they live in `queues` in the node's directory and belong to its id.
    ///
    /// Blocks on the disk. Close them before the node is shut down, so that what was accepted is stored.
    ///
    /// # Errors
    /// [`QueuesOpenError::NoDirectory`]; else as [`open`](Self::open).
    #[cfg(unix)]
    pub fn on(node: &Node) -> Result<Self, QueuesOpenError> {
        let directory = node.directory().ok_or(QueuesOpenError::NoDirectory)?;
        let storage = FileStorage::open(directory.join(NAMES)).map_err(QueuesOpenError::Journal)?;
        Self::open(storage, Config::new(node.identity().node.0))
    }

    /// The queue called `name`, created when there is none, with the default settings.
    ///
    /// # Errors
    /// See [`DeclareError`].
    /// # Cancel safety
    /// Dropping the future may leave the queue created.
    pub async fn queue(&self, name: &str) -> Result<Queue, DeclareError> {
        self.queue_with(name, QueueConfig::new()).await
    }

    /// The queue called `name` (1 to 128 of `a-z 0-9 - _ .`, and so many with `.dead` behind where that is the name of the
    /// queue for its dead letters), created when there is none. `config` replaces the settings that it had.
    ///
    /// # Errors
    /// See [`DeclareError`].
    /// # Cancel safety
    /// Dropping the future may leave the queue created.
    pub async fn queue_with(&self, name: &str, config: QueueConfig) -> Result<Queue, DeclareError> {
        config.check(name)?;
        let dead_name = match (&config.dead_letters, config.deliveries_max) {
            (_, None) => None,
            (Some(dead), _) => Some(dead.clone()),
            // Dead letters of dead letters help nobody.
            (None, _) if name.ends_with(DEAD_SUFFIX) => None,
            (None, _) => Some(format!("{name}{DEAD_SUFFIX}")),
        };
        if let Some(dead) = &dead_name {
            check_name(dead)?;
        }
        let number = self.room.declare(name).await?;
        let dead = match &dead_name {
            Some(dead) => Some(self.room.declare(dead).await?),
            None => None,
        };
        let (bells, has_given_up) = {
            let mut state = self.room.lock();
            let desk = state.books.desk(number);
            desk.config = config;
            desk.is_opened = true;
            desk.dead = dead.filter(|dead| *dead != number);
            // What was delivered too often before a restart, or is so by now, may be known only here.
            let deliveries_max = desk.deliveries_max();
            let has_given_up = desk.shelf.give_up(deliveries_max);
            state.books.trim_names(number);
            self.room.bury(&mut state, number, self.room.now());
            (state.bells(number), has_given_up)
        };
        // There may be more room, and leases may be shorter.
        bells.room.ring();
        bells.arrivals.notify_one();
        if has_given_up {
            // Whoever looks now finds it among the dead letters.
            self.room.journal.sync().await.map_err(DeclareError::Journal)?;
        }
        Ok(Queue { room: self.room.clone(), number, name: name.into(), bells })
    }

    /// The queue called `name` with the settings that it has, if there is one.
    pub(super) fn existing(&self, name: &str) -> Option<Queue> {
        let number = self.number(name)?;
        let bells = self.room.lock().bells(number);
        Some(Queue { room: self.room.clone(), number, name: name.into(), bells })
    }

    /// The names of all queues, dead letters included.
    pub fn names(&self) -> Vec<String> {
        self.room.lock().books.names.values().cloned().collect()
    }

    /// Stops all puts and gets, and returns when everything that was accepted is durable and the directory is unlocked.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn close(&self) -> Left {
        self.room.lock().fail(AppendError::Closed);
        let closed = self.room.journal.close().await;
        // What was under way has ended by now.
        let messages = self.room.lock().books.desks.values().map(|desk| desk.len()).sum();
        Left { messages, failure: closed.failure.map(|failure| failure.to_string()) }
    }
}

impl Queue {
    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores a message; returns when it is as safe as it [asks for](Message::durability), synced unless it says otherwise.
    /// Waits for room, or fails, as [`QueueConfig::when_full`] says.
    ///
    /// Of two puts, the one that returned before the other began is delivered first, if neither has more priority.
    ///
    /// # Errors
    /// See [`PutError`].
    /// # Cancel safety
    /// Dropping the future may leave the message stored, once. Dropped while it waited for room, nothing is stored.
    pub async fn put(&self, message: impl Into<Message>) -> Result<Receipt, PutError> {
        let stored = self.store(vec![message.into()], false).await?;
        stored.receipts.first().copied().ok_or(PutError::Journal(AppendError::Closed))
    }

    /// Stores messages one behind the other, all of them or none also across a crash; returns when they are durable.
    /// They are delivered in this order, with nothing between them that has not more priority.
    ///
    /// # Errors
    /// See [`PutError`]; then none of them is in the queue, unless the variant says otherwise.
    /// # Cancel safety
    /// Dropping the future may leave them stored, once. Dropped while it waited for room, nothing is stored.
    pub async fn put_all<M>(&self, messages: impl IntoIterator<Item = M>) -> Result<Vec<Receipt>, PutError>
    where
        M: Into<Message>,
    {
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.store(messages, false).await?.receipts)
    }

    /// Stores a message as [`put`](Self::put) does, and waits until a consumer has acknowledged it, or it was given up:
    /// *persistent synchronous* communication. The message outlives this process; the waiting does not.
    ///
    /// # Errors
    /// See [`PutError`].
    /// # Cancel safety
    /// As [`put`](Self::put): dropping the future ends the waiting, not the message.
    pub async fn put_and_wait(&self, message: impl Into<Message>) -> Result<Settled, PutError> {
        let stored = self.store(vec![message.into()], true).await?;
        Ok(match stored.settled {
            // The sender goes with the message, or without a word when nothing works any more.
            Some(settled) => settled.await.unwrap_or(Settled::Closed),
            None => Settled::Closed,
        })
    }

    async fn store(&self, messages: Vec<Message>, is_watched: bool) -> Result<Stored, PutError> {
        let puts = messages.into_iter().map(|message| (self.number, message)).collect();
        let wish = Wish { puts, ..Wish::default() };
        self.room.carry_out(&wish, is_watched).await.map_err(|error| match error {
            WorkError::Put(error) => error,
            // Only units of work have leases and state.
            _ => PutError::Journal(AppendError::Closed),
        })
    }

    /// The next message, waiting at most `within` for one; `None` when there was none. [`Duration::MAX`] waits for ever.
    ///
    /// The message belongs to this consumer for [`QueueConfig::lease`]; acknowledge it when the work is done.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::Journal`] after the journal failed.
    /// # Cancel safety
    /// Dropping the future takes no message.
    pub async fn get(&self, within: Duration) -> Result<Option<Delivery>, QueueError> {
        Ok(self.get_many(1, within).await?.pop())
    }

    /// The next messages, at most `most` of them, waiting at most `within` for the first; empty when there was none.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    /// # Cancel safety
    /// Dropping the future takes no message.
    pub async fn get_many(&self, most: usize, within: Duration) -> Result<Vec<Delivery>, QueueError> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let until = Instant::now().checked_add(within);
        let _passed_on = PassedOn(&self.bells.arrivals);
        loop {
            let arrived = self.bells.arrivals.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let (deliveries, due) = self.room.try_take(self, most)?;
            if !deliveries.is_empty() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(deliveries);
            }
            let wake = match (until, due) {
                (Some(until), Some(due)) => Some(until.min(due)),
                (until, due) => until.or(due),
            };
            until_rung(arrived, wake).await;
        }
    }

    /// The next message if there is one now.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn poll(&self) -> Result<Option<Delivery>, QueueError> {
        let _passed_on = PassedOn(&self.bells.arrivals);
        Ok(self.room.try_take(self, 1)?.0.pop())
    }

    /// Something has arrived, perhaps; only for a queue that nobody gets from.
    pub(super) async fn arrivals(&self) {
        self.bells.arrivals.notified().await;
    }

    /// Where the queue stands. When the oldest message was put may have to be read from the disk.
    pub fn stats(&self) -> QueueStats {
        let now = self.room.now();
        let mut state = self.room.lock();
        let desk = state.books.desk(self.number);
        let near = desk.shelf.messages().iter().next().map(|(id, slip)| (*id, slip.label.put_at));
        let far = desk.distance.oldest().filter(|spot| near.is_none_or(|(id, _)| spot.id < id));
        let far = far.and_then(|spot| state.books.put_at(spot));
        let oldest = far.or(near.map(|(_, put_at)| put_at)).map(moment_of);
        let desk = state.books.desk(self.number);
        QueueStats {
            messages: desk.len(),
            bytes: desk.bytes(),
            ready: desk.ready(),
            kept: desk.shelf.kept().len(),
            oldest,
            put_per_second: desk.put.per_second(now),
            delivered_per_second: desk.delivered.per_second(now),
            acknowledged_per_second: desk.acknowledged.per_second(now),
            ..desk.totals.clone()
        }
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whoever leaves, with a message or without, wakes one of those who wait: it finds what else is ready, and it learns
/// when the next lease ends. So at any time one of them at least knows when to look again.
struct PassedOn<'a>(&'a Notify);

impl Drop for PassedOn<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// What the journal holds.
fn restore(journal: &Journal, first: Position, now: Time) -> Result<Books, QueuesOpenError> {
    let names = match journal.load_snapshot(NAMES).map_err(QueuesOpenError::Read)? {
        Some(snapshot) => decode_names(snapshot.blob).map_err(|reason| QueuesOpenError::Names { reason })?,
        None => BTreeMap::new(),
    };
    let new = || {
        let mut books = Books::new(names.clone());
        books.bodies.read_from(journal.read_written(first));
        books
    };
    let newest = journal.load_snapshot(CHECKPOINT);
    let (mut books, from, is_wrong) = begin(new, now, first, newest).map_err(QueuesOpenError::Read)?;
    for entry in journal.read(from) {
        let entry = entry.map_err(QueuesOpenError::Read)?;
        let wrong = |reason| QueuesOpenError::Record { position: entry.position, reason };
        let step = Step::decode(&entry).map_err(wrong)?;
        books.replay(now, entry.position.as_u64(), step).map_err(wrong)?;
    }
    if is_wrong {
        let (place, blob) = books.checkpoint();
        let saved = journal.save_snapshot_blocking(CHECKPOINT, Position::from_u64(place), blob);
        saved.map_err(QueuesOpenError::Checkpoint)?;
    }
    Ok(books)
}

const DEAD_SUFFIX: &str = ".dead";
