//! The queues of one directory: the journal they share, and the driver of their shelves.
//!
//! Method      one lock over all shelves. Whatever changes a message's fate is appended under that lock, so the journal
//!             has the order in which it was decided; it takes effect in the completion that the journal calls, in the
//!             journal's order, once it is durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_journal::{AppendError, Appended, Journal, Position};
use quorate_protocols::Time;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::config::{QueueConfig, WhenFull};
use super::delivery::Delivery;
use super::error::{DeclareError, PutError, QueueError};
use super::face::{Queue, QueueStats, Settled};
use super::record::{Step, encode_names};
use super::shelf::{Lease, MessageId, Origin, Shelf};

/// Messages that are durable.
pub(super) struct Stored {
    /// Of the first one; the others follow.
    pub(super) first: MessageId,
    /// For a message that is watched.
    pub(super) settled: Option<oneshot::Receiver<Settled>>,
}

pub(super) struct Room {
    pub(super) journal: Journal,
    /// The zero of the shelves' time.
    pub(super) epoch: Instant,
    /// One new name at a time.
    pub(super) declaring: tokio::sync::Mutex<()>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) desks: BTreeMap<u32, Desk>,
    pub(super) names: BTreeMap<u32, String>,
    /// Where in the journal a message lies that is still needed: its first key is where the journal may be cut.
    pub(super) places: BTreeMap<u64, (u32, MessageId)>,
    /// Whose putters wait until they are settled; at most one for each message.
    pub(super) watched: BTreeMap<(u32, MessageId), oneshot::Sender<Settled>>,
    /// Old messages are being written again at the journal's end.
    pub(super) is_moving: bool,
    /// Bytes in the journal that nobody needs any more since it was cut the last time: of messages that went, and of
    /// repeated deliveries.
    pub(super) removed_bytes: u64,
    /// Why nothing works any more.
    pub(super) failure: Option<AppendError>,
}

/// One queue with what belongs to its driver.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) shelf: Shelf,
    pub(super) config: QueueConfig,
    /// The number of the queue for its dead letters.
    pub(super) dead: Option<u32>,
    /// Accepted and on their way to the disk.
    pub(super) coming_messages: usize,
    pub(super) coming_bytes: usize,
    pub(super) bells: Bells,
    pub(super) totals: QueueStats,
}

#[derive(Clone, Default)]
pub(super) struct Bells {
    /// Rung for each message that becomes ready, whenever a message may be due earlier than known, and by each consumer
    /// that leaves.
    pub(super) arrivals: Arc<Notify>,
    /// Rung once for each message that goes.
    pub(super) room: Arc<Notify>,
}

impl Room {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        let nanos = Instant::now().saturating_duration_since(self.epoch).as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The number of the queue called `name`, which is durable.
    pub(super) async fn declare(&self, name: &str) -> Result<u32, DeclareError> {
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
    pub(super) fn try_put(
        self: &Arc<Self>,
        number: u32,
        payloads: &[Bytes],
        is_watched: bool,
    ) -> Result<Option<oneshot::Receiver<Result<Stored, PutError>>>, PutError> {
        let mut state = self.lock();
        if let Some(error) = &state.failure {
            return Err(PutError::Journal(error.clone()));
        }
        let desk = state.desks.entry(number).or_default();
        let limit = desk.config.message_bytes_max.min(desk.config.bytes_max);
        if let Some(size) = payloads.iter().map(Bytes::len).find(|size| *size > limit) {
            return Err(PutError::TooLarge { size, limit });
        }
        let (count, size) = (payloads.len(), payloads.iter().map(Bytes::len).sum());
        if count > desk.config.messages_max || size > desk.config.bytes_max {
            let (messages, bytes) = (desk.config.messages_max, desk.config.bytes_max);
            return Err(PutError::TooMany { count, size, messages, bytes });
        }
        if !desk.has_room(count, size) {
            return match desk.config.when_full {
                WhenFull::Wait => Ok(None),
                WhenFull::Reject => Err(PutError::Full {
                    messages: desk.shelf.len() + desk.coming_messages,
                    bytes: desk.shelf.bytes() + desk.coming_bytes,
                }),
            };
        }
        let (send, receive) = oneshot::channel();
        let record = |payload: &Bytes| Step::Put { queue: number, payload: payload.clone() }.encode();
        let records = payloads.iter().map(record).collect();
        let (room, payloads) = (self.clone(), payloads.to_vec());
        let then = move |outcome| {
            let outcome = room.on_put(number, payloads, is_watched, outcome);
            // Nobody may be waiting any more; the messages are there all the same.
            let _ = send.send(outcome);
        };
        self.journal.append_then(records, then).map_err(PutError::Journal)?;
        desk.coming_messages += count;
        desk.coming_bytes += size;
        if desk.has_room(1, 0) {
            desk.bells.room.notify_one();
        }
        Ok(Some(receive))
    }

    fn on_put(
        &self,
        number: u32,
        payloads: Vec<Bytes>,
        is_watched: bool,
        outcome: Result<Appended, AppendError>,
    ) -> Result<Stored, PutError> {
        let mut state = self.lock();
        let desk = state.desks.entry(number).or_default();
        desk.coming_messages -= payloads.len();
        desk.coming_bytes -= payloads.iter().map(Bytes::len).sum::<usize>();
        match outcome {
            Ok(appended) => {
                desk.totals.put += payloads.len() as u64;
                let first = MessageId::from_u64(appended.first.as_u64());
                for (index, payload) in payloads.into_iter().enumerate() {
                    state.arrive(number, appended.first.plus(index as u64), payload, None);
                }
                let settled = (is_watched && state.failure.is_none()).then(|| {
                    let (send, receive) = oneshot::channel();
                    // In the same step as its arrival: nobody can have acknowledged it yet.
                    state.watched.insert((number, first), send);
                    receive
                });
                Ok(Stored { first, settled })
            }
            Err(error) => {
                desk.bells.room.notify_one();
                state.note(&error);
                Err(PutError::Journal(error))
            }
        }
    }

    /// The next message, or when it is worth while to look again.
    pub(super) fn try_take(
        self: &Arc<Self>,
        queue: &Queue,
    ) -> Result<(Option<Delivery>, Option<Instant>), QueueError> {
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
                    state.depart(number, id, Settled::Acknowledged);
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
            if !state.desks.entry(dead).or_default().has_room(1, size) {
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
                        state.depart(number, id, Settled::GivenUp);
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
    fn depart(&mut self, number: u32, id: MessageId, how: Settled) {
        if let Some(watcher) = self.watched.remove(&(number, id)) {
            // Whoever waited may have gone.
            let _ = watcher.send(how);
        }
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
    pub(super) fn note(&mut self, error: &AppendError) {
        if matches!(error, AppendError::Poisoned(_) | AppendError::Closed) {
            self.fail(error.clone());
        }
    }

    /// Nothing works from now on: nobody may wait for what cannot come.
    pub(super) fn fail(&mut self, error: AppendError) {
        if self.failure.is_none() {
            self.failure = Some(error);
            self.watched.clear();
            for desk in self.desks.values() {
                desk.bells.arrivals.notify_waiters();
                desk.bells.room.notify_waiters();
            }
        }
    }
}

impl Desk {
    fn has_room(&self, messages: usize, size: usize) -> bool {
        self.shelf.len() + self.coming_messages + messages <= self.config.messages_max
            && self.shelf.bytes() + self.coming_bytes + size <= self.config.bytes_max
    }

    /// After how many deliveries a message is given up; never without a place for dead letters.
    fn deliveries_max(&self) -> Option<u32> {
        self.dead.and(self.config.deliveries_max)
    }
}

/// The snapshot with the queues' names, and the queues' directory in a node's.
pub(super) const NAMES: &str = "queues";
/// Each new name writes all of them again; beyond this many a service should shard.
const QUEUES_MAX: usize = 4096;
/// How long a dead letter waits when its queue is full.
const DEAD_LETTERS_FULL_RETRY: Duration = Duration::from_secs(1);
/// What the records of one message's life take in the journal beside its payload, roughly.
pub(super) const RECORDS_BYTES: u64 = 128;
/// What the record of one delivery takes in the journal.
const DELIVERED_BYTES: u64 = 48;
