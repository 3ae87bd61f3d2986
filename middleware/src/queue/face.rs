//! What a user holds: the queues of a directory, one queue, what a put gives.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
#[cfg(unix)]
use quorate_journal::FileStorage;
use quorate_journal::{AppendError, Config, Journal, Position, Storage};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::config::QueueConfig;
use super::delivery::Delivery;
use super::error::{DeclareError, PutError, QueueError, QueuesOpenError};
use super::record::{Step, decode_names};
use super::room::{Bells, Desk, NAMES, Room, State, Stored};
use super::shelf::MessageId;
#[cfg(unix)]
use crate::node::Node;

/// All queues of one directory. Clones are cheap and share it.
///
/// When the last handle, queue and delivery is gone, what was accepted is still written; [`close`](Self::close) waits
/// for it.
#[derive(Clone)]
pub struct Queues {
    room: Arc<Room>,
}

/// One queue. Clones are cheap and share it.
#[derive(Clone)]
pub struct Queue {
    pub(super) room: Arc<Room>,
    pub(super) number: u32,
    name: Arc<str>,
    bells: Bells,
}

/// What a put gives: the message is stored and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The message's name, which is also its place in the order of the queue.
    pub id: MessageId,
}

/// What became of a message whose putter waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled {
    /// A consumer has worked on it and acknowledged it.
    Acknowledged,
    /// It was delivered too often without that; it is a dead letter now.
    GivenUp,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Messages in it: ready, delayed and being delivered.
    pub messages: usize,
    /// Their payload bytes.
    pub bytes: usize,
    /// Those that a get would find.
    pub ready: usize,
    /// Messages that were put.
    pub put: u64,
    /// Deliveries, repeated ones included.
    pub delivered: u64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Messages that went to the dead letters.
    pub buried: u64,
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
        let (names, desks) = match restore(&journal, recovered.first) {
            Ok(restored) => restored,
            Err(error) => {
                // Or the directory would be locked a little longer than the caller knows.
                journal.close_blocking();
                return Err(error);
            }
        };
        let mut places = BTreeMap::new();
        for (number, desk) in &desks {
            places.extend(desk.shelf.ids().map(|(id, at)| (at, (*number, id))));
        }
        tracing::debug!(queues = desks.len(), messages = places.len(), "queues opened");
        let state = State {
            desks,
            names,
            places,
            watched: BTreeMap::new(),
            is_moving: false,
            removed_bytes: 0,
            failure: None,
        };
        let room = Room {
            journal,
            epoch: Instant::now(),
            declaring: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
        };
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

    /// The queue called `name` (1 to 128 of `a-z 0-9 - _ .`), created when there is none. `config` replaces the settings
    /// that it had.
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
        let number = self.room.declare(name).await?;
        let dead = match &dead_name {
            Some(dead) => Some(self.room.declare(dead).await?),
            None => None,
        };
        let mut state = self.room.lock();
        let desk = state.desks.entry(number).or_default();
        desk.config = config;
        desk.dead = dead.filter(|dead| *dead != number);
        Ok(Queue { room: self.room.clone(), number, name: name.into(), bells: desk.bells.clone() })
    }

    /// The names of all queues, dead letters included.
    pub fn names(&self) -> Vec<String> {
        self.room.lock().names.values().cloned().collect()
    }

    /// Stops all puts and gets, and returns when everything that was accepted is durable and the directory is unlocked.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn close(&self) -> Left {
        let messages = {
            let mut state = self.room.lock();
            state.fail(AppendError::Closed);
            state.places.len()
        };
        let closed = self.room.journal.close().await;
        Left { messages, failure: closed.failure.map(|failure| failure.to_string()) }
    }
}

impl Queue {
    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores a message; returns when it is durable. Waits for room, or fails, as [`QueueConfig::when_full`] says.
    ///
    /// Of two puts, the one that returned before the other began is delivered first.
    ///
    /// # Errors
    /// See [`PutError`].
    /// # Cancel safety
    /// Dropping the future may leave the message stored, once. Dropped while it waited for room, nothing is stored.
    pub async fn put(&self, payload: impl Into<Bytes>) -> Result<Receipt, PutError> {
        Ok(Receipt { id: self.store(&[payload.into()], false).await?.first })
    }

    /// Stores messages one behind the other, all of them or none also across a crash; returns when they are durable.
    /// They are delivered in this order, with nothing between them.
    ///
    /// # Errors
    /// See [`PutError`]; then none of them is in the queue, unless the variant says otherwise.
    /// # Cancel safety
    /// Dropping the future may leave them stored, once. Dropped while it waited for room, nothing is stored.
    pub async fn put_all<P>(&self, payloads: impl IntoIterator<Item = P>) -> Result<Vec<Receipt>, PutError>
    where
        P: Into<Bytes>,
    {
        let payloads: Vec<Bytes> = payloads.into_iter().map(Into::into).collect();
        if payloads.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.store(&payloads, false).await?.first.as_u64();
        let ids = (first..).map(MessageId::from_u64).take(payloads.len());
        Ok(ids.map(|id| Receipt { id }).collect())
    }

    /// Stores a message as [`put`](Self::put) does, and waits until a consumer has acknowledged it, or it was given up:
    /// *persistent synchronous* communication. The message outlives this process; the waiting does not.
    ///
    /// # Errors
    /// See [`PutError`].
    /// # Cancel safety
    /// As [`put`](Self::put): dropping the future ends the waiting, not the message.
    pub async fn put_and_wait(&self, payload: impl Into<Bytes>) -> Result<Settled, PutError> {
        let stored = self.store(&[payload.into()], true).await?;
        Ok(match stored.settled {
            // The sender goes with the message, or without a word when nothing works any more.
            Some(settled) => settled.await.unwrap_or(Settled::Closed),
            None => Settled::Closed,
        })
    }

    async fn store(&self, payloads: &[Bytes], is_watched: bool) -> Result<Stored, PutError> {
        let stored = loop {
            let has_room = self.bells.room.notified();
            tokio::pin!(has_room);
            has_room.as_mut().enable();
            if let Some(stored) = self.room.try_put(self.number, payloads, is_watched)? {
                break stored;
            }
            has_room.await;
        };
        // The sender goes only when the journal drops a completion, which it does when it is closed.
        stored.await.unwrap_or(Err(PutError::Journal(AppendError::Closed)))
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
        let until = Instant::now().checked_add(within);
        let _passed_on = PassedOn(&self.bells.arrivals);
        loop {
            let arrived = self.bells.arrivals.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let (delivery, due) = self.room.try_take(self)?;
            if delivery.is_some() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(delivery);
            }
            let wake = match (until, due) {
                (Some(until), Some(due)) => Some(until.min(due)),
                (until, due) => until.or(due),
            };
            match wake {
                Some(wake) => tokio::select! {
                    biased;
                    () = arrived => {}
                    () = tokio::time::sleep_until(wake) => {}
                },
                None => arrived.await,
            }
        }
    }

    /// The next message if there is one now.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn poll(&self) -> Result<Option<Delivery>, QueueError> {
        let _passed_on = PassedOn(&self.bells.arrivals);
        Ok(self.room.try_take(self)?.0)
    }

    /// Where the queue stands.
    pub fn stats(&self) -> QueueStats {
        let state = self.room.lock();
        state.desks.get(&self.number).map_or_else(QueueStats::default, |desk| QueueStats {
            messages: desk.shelf.len(),
            bytes: desk.shelf.bytes(),
            ready: desk.shelf.ready(),
            ..desk.totals.clone()
        })
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

type Names = BTreeMap<u32, String>;
type Desks = BTreeMap<u32, Desk>;

/// What the journal holds.
fn restore(journal: &Journal, first: Position) -> Result<(Names, Desks), QueuesOpenError> {
    let names = match journal.load_snapshot(NAMES).map_err(QueuesOpenError::Read)? {
        Some(snapshot) => decode_names(snapshot.blob).map_err(|reason| QueuesOpenError::Names { reason })?,
        None => BTreeMap::new(),
    };
    let mut desks: Desks = names.keys().map(|number| (*number, Desk::default())).collect();
    for entry in journal.read(first) {
        let entry = entry.map_err(QueuesOpenError::Read)?;
        let wrong = |reason| QueuesOpenError::Record { position: entry.position, reason };
        let step = Step::decode(&entry).map_err(wrong)?;
        replay(&mut desks, entry.position.as_u64(), step).map_err(wrong)?;
    }
    Ok((names, desks))
}

/// A copy of its own: what was read shares a large buffer with its neighbours, and one message would keep all of it.
fn own(payload: &Bytes) -> Bytes {
    Bytes::copy_from_slice(payload)
}

/// Does what a record says; the shelves then stand as they stood when it was written.
fn replay(desks: &mut BTreeMap<u32, Desk>, at: u64, step: Step) -> Result<(), &'static str> {
    let number = step.queue();
    let shelf = &mut desks.get_mut(&number).ok_or("queue without a name")?.shelf;
    let here = MessageId::from_u64(at);
    match step {
        Step::Put { payload, .. } => shelf.insert(here, at, own(&payload), 0, None),
        Step::Buried { origin, payload, .. } => shelf.insert(here, at, own(&payload), 0, Some(origin)),
        Step::Moved { id, deliveries, origin, payload, .. } => {
            shelf.insert(id, at, own(&payload), deliveries, origin);
        }
        Step::Delivered { id, deliveries, .. } => shelf.restore_deliveries(id, deliveries),
        Step::Acknowledged { id, .. } => drop(shelf.remove(id)),
    }
    Ok(())
}

const DEAD_SUFFIX: &str = ".dead";
