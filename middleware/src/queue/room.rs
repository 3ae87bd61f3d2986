//! The queues of one directory: the journal they share, and the driver of their shelves.
//!
//! Method      one lock over all shelves. Whatever changes a message's fate is appended under that lock, so the journal
//!             has the order in which it was decided; it takes effect in the completion that the journal calls, in the
//!             journal's order, once it is durable.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
#[cfg(unix)]
use quorate_journal::FileStorage;
use quorate_journal::{AppendError, Appended, Config, Journal, Position, Storage};
use quorate_protocols::Time;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::config::{QueueConfig, WhenFull};
use super::delivery::Delivery;
use super::error::{DeclareError, PutError, QueueError, QueuesOpenError};
use super::record::{Step, decode_names, encode_names};
use super::shelf::{Lease, MessageId, Origin, Shelf};
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
        let names = match journal.load_snapshot(NAMES).map_err(QueuesOpenError::Read)? {
            Some(snapshot) => {
                decode_names(snapshot.blob).map_err(|reason| QueuesOpenError::Names { reason })?
            }
            None => BTreeMap::new(),
        };
        let mut desks: BTreeMap<u32, Desk> = names.keys().map(|number| (*number, Desk::default())).collect();
        for entry in journal.read(recovered.first) {
            let entry = entry.map_err(QueuesOpenError::Read)?;
            let wrong = |reason| QueuesOpenError::Record { position: entry.position, reason };
            let step = Step::decode(&entry).map_err(wrong)?;
            replay(&mut desks, entry.position.as_u64(), step).map_err(wrong)?;
        }
        let mut places = BTreeMap::new();
        for (number, desk) in &desks {
            places.extend(desk.shelf.ids().map(|(id, at)| (at, (*number, id))));
        }
        tracing::debug!(queues = desks.len(), messages = places.len(), "queues opened");
        let state = State { desks, names, places, is_moving: false, removed_bytes: 0, failure: None };
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
        let payload = payload.into();
        let stored = loop {
            let has_room = self.bells.room.notified();
            tokio::pin!(has_room);
            has_room.as_mut().enable();
            if let Some(stored) = self.room.try_put(self.number, &payload)? {
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

pub(super) struct Room {
    journal: Journal,
    /// The zero of the shelves' time.
    epoch: Instant,
    /// One new name at a time.
    declaring: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    desks: BTreeMap<u32, Desk>,
    names: BTreeMap<u32, String>,
    /// Where in the journal a message lies that is still needed: its first key is where the journal may be cut.
    places: BTreeMap<u64, (u32, MessageId)>,
    /// Old messages are being written again at the journal's end.
    is_moving: bool,
    /// Bytes in the journal that nobody needs any more since it was cut the last time: of messages that went, and of
    /// repeated deliveries.
    removed_bytes: u64,
    /// Why nothing works any more.
    failure: Option<AppendError>,
}

/// One queue with what belongs to its driver.
#[derive(Default)]
struct Desk {
    shelf: Shelf,
    config: QueueConfig,
    /// The number of the queue for its dead letters.
    dead: Option<u32>,
    /// Accepted and on their way to the disk.
    coming_messages: usize,
    coming_bytes: usize,
    bells: Bells,
    totals: QueueStats,
}

#[derive(Clone, Default)]
struct Bells {
    /// Rung for each message that becomes ready, whenever a message may be due earlier than known, and by each consumer
    /// that leaves.
    arrivals: Arc<Notify>,
    /// Rung once for each message that goes.
    room: Arc<Notify>,
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        let nanos = Instant::now().saturating_duration_since(self.epoch).as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The number of the queue called `name`, which is durable.
    async fn declare(&self, name: &str) -> Result<u32, DeclareError> {
        let _turn = self.declaring.lock().await;
        let (number, names) = {
            let state = self.lock();
            if let Some((number, _)) = state.names.iter().find(|(_, known)| *known == name) {
                return Ok(*number);
            }
            if state.names.len() >= QUEUES_MAX {
                return Err(DeclareError::TooMany { limit: QUEUES_MAX });
            }
            let number = state.names.last_key_value().map_or(0, |(last, _)| last + 1);
            let mut names = state.names.clone();
            names.insert(number, name.to_owned());
            (number, names)
        };
        // The journal must know the name before it has a record of the queue.
        let blob = encode_names(&names);
        self.journal.save_snapshot(NAMES, Position::ZERO, blob).await.map_err(DeclareError::Journal)?;
        let mut state = self.lock();
        state.names = names;
        // Nobody who opened it has said otherwise: a queue for dead letters is tried for ever.
        let config = QueueConfig::new().deliveries_max(None);
        state.desks.entry(number).or_insert_with(|| Desk { config, ..Desk::default() });
        Ok(number)
    }

    /// Hands a message to the journal if there is room; `None` when the caller should wait for some.
    fn try_put(
        self: &Arc<Self>,
        number: u32,
        payload: &Bytes,
    ) -> Result<Option<oneshot::Receiver<Result<Receipt, PutError>>>, PutError> {
        let mut state = self.lock();
        if let Some(error) = &state.failure {
            return Err(PutError::Journal(error.clone()));
        }
        let desk = state.desks.entry(number).or_default();
        let (size, limit) = (payload.len(), desk.config.message_bytes_max.min(desk.config.bytes_max));
        if size > limit {
            return Err(PutError::TooLarge { size, limit });
        }
        if !desk.has_room(size) {
            return match desk.config.when_full {
                WhenFull::Wait => Ok(None),
                WhenFull::Reject => Err(PutError::Full {
                    messages: desk.shelf.len() + desk.coming_messages,
                    bytes: desk.shelf.bytes() + desk.coming_bytes,
                }),
            };
        }
        let (send, receive) = oneshot::channel();
        let record = Step::Put { queue: number, payload: payload.clone() }.encode();
        let (room, payload) = (self.clone(), payload.clone());
        let then = move |outcome| {
            let outcome = room.on_put(number, payload, outcome);
            // Nobody may be waiting any more; the message is there all the same.
            let _ = send.send(outcome);
        };
        self.journal.append_then(vec![record], then).map_err(PutError::Journal)?;
        desk.coming_messages += 1;
        desk.coming_bytes += size;
        if desk.has_room(0) {
            desk.bells.room.notify_one();
        }
        Ok(Some(receive))
    }

    fn on_put(
        &self,
        number: u32,
        payload: Bytes,
        outcome: Result<Appended, AppendError>,
    ) -> Result<Receipt, PutError> {
        let mut state = self.lock();
        let size = payload.len();
        let desk = state.desks.entry(number).or_default();
        desk.coming_messages -= 1;
        desk.coming_bytes -= size;
        match outcome {
            Ok(appended) => {
                desk.totals.put += 1;
                let id = state.arrive(number, appended.first, payload, None);
                Ok(Receipt { id })
            }
            Err(error) => {
                desk.bells.room.notify_one();
                state.note(&error);
                Err(PutError::Journal(error))
            }
        }
    }

    /// The next message, or when it is worth while to look again.
    fn try_take(self: &Arc<Self>, queue: &Queue) -> Result<(Option<Delivery>, Option<Instant>), QueueError> {
        let now = self.now();
        let mut state = self.lock();
        state.check_open()?;
        let desk = state.desks.entry(queue.number).or_default();
        desk.shelf.expire(now, desk.deliveries_max());
        self.bury_doomed(&mut state, queue.number, now);
        let desk = state.desks.entry(queue.number).or_default();
        let lease = desk.config.lease;
        let Some(taken) = desk.shelf.take(now, lease) else {
            let due = desk.shelf.deadline().map(|due| self.epoch + Duration::from_nanos(due.as_nanos()));
            return Ok((None, due));
        };
        desk.totals.delivered += 1;
        let step = Step::Delivered { queue: queue.number, id: taken.id, deliveries: taken.deliveries };
        let origin = taken
            .origin
            .and_then(|origin| Some((state.names.get(&origin.queue)?.clone(), origin.id, origin.deliveries)));
        // Only a count: not worth waiting for, and left out when the journal is busy.
        drop(self.journal.submit(vec![step.encode()]));
        if taken.deliveries > 1 {
            // The first delivery is counted when the message goes.
            state.removed_bytes += DELIVERED_BYTES;
            self.tidy(&mut state);
        }
        Ok((Some(Delivery::new(queue.clone(), taken, origin)), None))
    }

    pub(super) fn renew(
        &self,
        number: u32,
        id: MessageId,
        lease: Lease,
        duration: Duration,
    ) -> Result<(), QueueError> {
        let now = self.now();
        let mut state = self.lock();
        state.check_open()?;
        let desk = state.desks.entry(number).or_default();
        if !desk.shelf.renew(now, id, lease, duration) {
            return Err(QueueError::LeaseLost);
        }
        // The new end may be earlier than the one that a waiting consumer knows.
        desk.bells.arrivals.notify_one();
        Ok(())
    }

    pub(super) fn give_back(
        self: &Arc<Self>,
        number: u32,
        id: MessageId,
        lease: Lease,
        delay: Duration,
    ) -> Result<(), QueueError> {
        let now = self.now();
        let mut state = self.lock();
        state.check_open()?;
        let desk = state.desks.entry(number).or_default();
        let deliveries_max = desk.deliveries_max();
        if !desk.shelf.give_back(now, id, lease, delay, deliveries_max) {
            return Err(QueueError::LeaseLost);
        }
        // Also after a delay: whoever waits must learn the new due time.
        desk.bells.arrivals.notify_one();
        self.bury_doomed(&mut state, number, now);
        Ok(())
    }

    /// Hands an acknowledgement to the journal.
    pub(super) fn acknowledge(
        self: &Arc<Self>,
        number: u32,
        id: MessageId,
        lease: Lease,
    ) -> Result<oneshot::Receiver<Result<(), QueueError>>, QueueError> {
        let now = self.now();
        let mut state = self.lock();
        state.check_open()?;
        let desk = state.desks.entry(number).or_default();
        if !desk.shelf.settle(id, lease) {
            return Err(QueueError::LeaseLost);
        }
        let (send, receive) = oneshot::channel();
        let room = self.clone();
        let then = move |outcome: Result<Appended, AppendError>| {
            let mut state = room.lock();
            let outcome = match outcome {
                Ok(_) => {
                    state.depart(number, id);
                    state.desks.entry(number).or_default().totals.acknowledged += 1;
                    room.tidy(&mut state);
                    Ok(())
                }
                Err(error) => {
                    state.bring_back(now, number, id, Duration::ZERO);
                    state.note(&error);
                    Err(QueueError::Journal(error))
                }
            };
            drop(state);
            let _ = send.send(outcome);
        };
        let record = Step::Acknowledged { queue: number, id }.encode();
        if let Err(error) = self.journal.append_then(vec![record], then) {
            state.bring_back(now, number, id, Duration::ZERO);
            return Err(QueueError::Journal(error));
        }
        Ok(receive)
    }

    /// Moves messages that were given up to the dead letters: one append, so that a crash leaves each in one place.
    fn bury_doomed(self: &Arc<Self>, state: &mut State, number: u32, now: Time) {
        loop {
            let desk = state.desks.entry(number).or_default();
            let Some(id) = desk.shelf.next_doomed() else { return };
            let (Some(dead), Some(message)) = (desk.dead, desk.shelf.message(id)) else {
                // The settings changed meanwhile.
                state.bring_back(now, number, id, Duration::ZERO);
                continue;
            };
            let origin = Origin { queue: number, id, deliveries: message.deliveries };
            let payload = message.payload.clone();
            let size = payload.len();
            if !state.desks.entry(dead).or_default().has_room(size) {
                state.bring_back(now, number, id, DEAD_LETTERS_FULL_RETRY);
                continue;
            }
            let records = vec![
                Step::Acknowledged { queue: number, id }.encode(),
                Step::Buried { queue: dead, origin, payload: payload.clone() }.encode(),
            ];
            let room = self.clone();
            let then = move |outcome: Result<Appended, AppendError>| {
                let mut state = room.lock();
                let desk = state.desks.entry(dead).or_default();
                desk.coming_messages -= 1;
                desk.coming_bytes -= size;
                match outcome {
                    Ok(appended) => {
                        state.depart(number, id);
                        state.desks.entry(number).or_default().totals.buried += 1;
                        tracing::info!(message = id.as_u64(), "dead letter");
                        state.arrive(dead, appended.first.plus(1), payload, Some(origin));
                    }
                    Err(error) => {
                        state.bring_back(now, number, id, DEAD_LETTERS_FULL_RETRY);
                        state.note(&error);
                    }
                }
            };
            if let Err(error) = self.journal.append_then(records, then) {
                state.bring_back(now, number, id, DEAD_LETTERS_FULL_RETRY);
                state.note(&error);
                return;
            }
            let desk = state.desks.entry(dead).or_default();
            desk.coming_messages += 1;
            desk.coming_bytes += size;
        }
    }

    /// Cuts the journal behind what is still needed, now and then; and when a few old messages keep a long journal
    /// alive, writes them again at its end.
    fn tidy(self: &Arc<Self>, state: &mut State) {
        let stats = self.journal.stats();
        if state.removed_bytes < stats.segment_bytes / 4 {
            return;
        }
        state.removed_bytes = 0;
        let end = self.journal.durable();
        let oldest = state.places.first_key_value().map_or(end, |(at, _)| Position::from_u64(*at));
        if self.journal.first() < oldest {
            // A failure shows in the next append.
            let _ = self.journal.truncate_soon(oldest);
        }
        let payloads: usize = state.desks.values().map(|desk| desk.shelf.bytes()).sum();
        let needed = payloads as u64 + state.places.len() as u64 * RECORDS_BYTES;
        let segments = SEGMENTS_MIN + SEGMENTS_PER_NEEDED * needed / stats.segment_bytes;
        if state.is_moving || stats.segments as u64 <= segments {
            return;
        }
        // Half of what went: so moving never writes more than the users do, and is done after a bounded time.
        let bytes_max = (stats.segment_bytes / 8).min(MOVED_BYTES_MAX);
        let mut bytes = 0;
        let mut records = Vec::new();
        let mut moved = Vec::new();
        for (at, (number, id)) in &state.places {
            let Some(message) = state.desks.get(number).and_then(|desk| desk.shelf.message(*id)) else {
                continue;
            };
            // An acknowledgement that lies before the copy in the journal would not remove it.
            if message.is_settling() {
                continue;
            }
            let step = Step::Moved {
                queue: *number,
                id: *id,
                deliveries: message.deliveries,
                origin: message.origin,
                payload: message.payload.clone(),
            };
            let record = step.encode();
            bytes += record.payload.len() as u64 + RECORDS_BYTES;
            if bytes > bytes_max && !moved.is_empty() {
                break;
            }
            records.push(record);
            moved.push((*at, *number, *id));
        }
        if moved.is_empty() {
            return;
        }
        let room = self.clone();
        let then = move |outcome: Result<Appended, AppendError>| {
            let mut state = room.lock();
            state.is_moving = false;
            match outcome {
                Ok(appended) => {
                    for (index, (old, number, id)) in moved.into_iter().enumerate() {
                        let at = appended.first.plus(index as u64).as_u64();
                        let desk = state.desks.entry(number).or_default();
                        if desk.shelf.relocate(id, at) {
                            desk.totals.moved += 1;
                            state.places.remove(&old);
                            state.places.insert(at, (number, id));
                        }
                    }
                }
                Err(error) => state.note(&error),
            }
        };
        match self.journal.append_then(records, then) {
            Ok(()) => state.is_moving = true,
            // Too large for one segment is a matter of odd settings, and only costs space.
            Err(error) => state.note(&error),
        }
    }
}

impl State {
    fn check_open(&self) -> Result<(), QueueError> {
        match &self.failure {
            None => Ok(()),
            Some(AppendError::Closed) => Err(QueueError::Closed),
            Some(error) => Err(QueueError::Journal(error.clone())),
        }
    }

    /// A durable message appears.
    fn arrive(&mut self, number: u32, at: Position, payload: Bytes, origin: Option<Origin>) -> MessageId {
        let id = MessageId::from_u64(at.as_u64());
        let desk = self.desks.entry(number).or_default();
        desk.shelf.insert(id, at.as_u64(), payload, 0, origin);
        desk.bells.arrivals.notify_one();
        self.places.insert(at.as_u64(), (number, id));
        id
    }

    /// A message is gone for good.
    fn depart(&mut self, number: u32, id: MessageId) {
        let desk = self.desks.entry(number).or_default();
        if let Some(message) = desk.shelf.remove(id) {
            self.places.remove(&message.at);
            self.removed_bytes += message.payload.len() as u64 + RECORDS_BYTES;
            desk.bells.room.notify_one();
        }
    }

    /// What was to be stored of a message could not be: it is ready again after `delay`.
    fn bring_back(&mut self, now: Time, number: u32, id: MessageId, delay: Duration) {
        let desk = self.desks.entry(number).or_default();
        desk.shelf.unsettle(now, id, delay);
        desk.bells.arrivals.notify_one();
    }

    /// Looks whether an error is the end.
    fn note(&mut self, error: &AppendError) {
        if matches!(error, AppendError::Poisoned(_) | AppendError::Closed) {
            self.fail(error.clone());
        }
    }

    /// Nothing works from now on: nobody may wait for what cannot come.
    fn fail(&mut self, error: AppendError) {
        if self.failure.is_none() {
            self.failure = Some(error);
            for desk in self.desks.values() {
                desk.bells.arrivals.notify_waiters();
                desk.bells.room.notify_waiters();
            }
        }
    }
}

impl Desk {
    fn has_room(&self, size: usize) -> bool {
        self.shelf.len() + self.coming_messages < self.config.messages_max
            && self.shelf.bytes() + self.coming_bytes + size <= self.config.bytes_max
    }

    /// After how many deliveries a message is given up; never without a place for dead letters.
    fn deliveries_max(&self) -> Option<u32> {
        self.dead.and(self.config.deliveries_max)
    }
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

/// The snapshot with the queues' names, and the queues' directory in a node's.
const NAMES: &str = "queues";
const DEAD_SUFFIX: &str = ".dead";
/// Each new name writes all of them again; beyond this many a service should shard.
const QUEUES_MAX: usize = 4096;
/// How long a dead letter waits when its queue is full.
const DEAD_LETTERS_FULL_RETRY: Duration = Duration::from_secs(1);
/// What the records of one message's life take in the journal beside its payload, roughly.
const RECORDS_BYTES: u64 = 128;
/// What the record of one delivery takes in the journal.
const DELIVERED_BYTES: u64 = 48;
/// The journal may have so many segments...
const SEGMENTS_MIN: u64 = 4;
/// ...and so many times the bytes that its messages need, before old ones are written again.
const SEGMENTS_PER_NEEDED: u64 = 3;
/// Written again at a time: more would delay the puts behind them.
const MOVED_BYTES_MAX: u64 = 1 << 20;
