//! What a consumer holds, and the handler that is called for each message.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quorate_journal::AppendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::books::Books;
use super::error::{PutError, QueueError, WorkError};
use super::face::Queue;
use super::message::{DeadReason, Durability, Message, MessageId};
use super::plan::Wish;
use super::room::{Room, moment_of};
use super::shelf::{Lease, Taken};

/// A message that was delivered and waits for its acknowledgement.
///
/// Dropped without one, it goes back to its place in the queue at once, to be delivered again; each delivery counts
/// towards [`deliveries_max`](super::QueueConfig::deliveries_max).
#[must_use = "a delivery that is dropped goes back to the queue"]
pub struct Delivery {
    queue: Queue,
    id: MessageId,
    lease: Lease,
    payload: Bytes,
    deliveries: u32,
    key: Option<Bytes>,
    name: Option<Bytes>,
    priority: u8,
    put_at: SystemTime,
    expires_at: Option<SystemTime>,
    durability: Durability,
    dead_letter: Option<DeadLetter>,
    is_done: bool,
    /// The place that it takes among those that its consumer has at a time.
    turn: Option<OwnedSemaphorePermit>,
}

/// What is known of a message that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The queue that gave it up.
    pub queue: String,
    /// Its id there.
    pub id: MessageId,
    /// How often it was delivered there.
    pub deliveries: u32,
    /// Why.
    pub reason: DeadReason,
}

impl Delivery {
    pub(super) fn new(queue: Queue, taken: &Taken, books: &Books) -> Option<Self> {
        let slip = books.desks.get(&queue.number)?.shelf.slip(taken.id)?;
        let dead_letter = slip.origin.and_then(|origin| {
            Some(DeadLetter {
                queue: books.names.get(&origin.queue)?.clone(),
                id: origin.id,
                deliveries: origin.deliveries,
                reason: origin.reason,
            })
        });
        let payload = books.bodies.get(queue.number, taken.id, slip.place).ok()?;
        Some(Self {
            queue,
            id: taken.id,
            lease: taken.lease,
            payload,
            deliveries: taken.deliveries,
            key: slip.label.key.clone(),
            name: slip.label.name.clone(),
            priority: slip.label.priority,
            put_at: moment_of(slip.label.put_at),
            expires_at: slip.label.expires.map(moment_of),
            durability: slip.class,
            dead_letter,
            is_done: false,
            turn: None,
        })
    }

    /// The message's name; the same in each of its deliveries.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The bytes that were put.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// How often the message was delivered, this time included. More than 1: an earlier consumer may have done the work.
    pub fn deliveries(&self) -> u32 {
        self.deliveries
    }

    /// Its key, if it has one.
    pub fn key(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// The name under which it was put, if it had one.
    pub fn name(&self) -> Option<&Bytes> {
        self.name.as_ref()
    }

    /// Its priority.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// When it was put, on the machine's clock.
    pub fn put_at(&self) -> SystemTime {
        self.put_at
    }

    /// When it expires, on the machine's clock.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// A message like this one, for another queue: bytes, key, name, priority, what is left of its time, durability.
    pub fn to_message(&self) -> Message {
        // On the clock of the queues: the machine's may have been set since.
        let now = moment_of(self.queue.room.now());
        let left = |moment: SystemTime| moment.duration_since(now).unwrap_or_default();
        Message {
            payload: self.payload.clone(),
            key: self.key.clone(),
            priority: self.priority,
            delay: Duration::ZERO,
            expires_after: self.expires_at.map(left),
            name: self.name.clone(),
            durability: self.durability,
        }
    }

    /// Where the message comes from if it is a dead letter.
    pub fn dead_letter(&self) -> Option<&DeadLetter> {
        self.dead_letter.as_ref()
    }

    /// The work is done: removes the message; returns when that is durable.
    ///
    /// # Errors
    /// [`QueueError::LeaseLost`] when the lease ran out and someone else got the message;
    /// [`QueueError::Journal`], [`QueueError::Closed`].
    /// # Cancel safety
    /// Dropping the future after its first poll leaves the acknowledgement under way.
    pub async fn ack(mut self) -> Result<(), QueueError> {
        let wish = Wish { acks: vec![self.claim()], ..Wish::default() };
        self.is_done = true;
        match self.queue.room.carry_out(&wish, false).await {
            Ok(_) => Ok(()),
            Err(WorkError::Put(PutError::Journal(AppendError::Closed))) => Err(QueueError::Closed),
            Err(WorkError::Put(PutError::Journal(error))) => Err(QueueError::Journal(error)),
            Err(_) => Err(QueueError::LeaseLost),
        }
    }

    /// The work failed: puts the message back at its place, to be delivered again after `delay`.
    ///
    /// # Errors
    /// [`QueueError::LeaseLost`] when the lease ran out before; [`QueueError::Closed`].
    pub fn nack(mut self, delay: Duration) -> Result<(), QueueError> {
        self.is_done = true;
        self.queue.room.give_back(self.queue.number, self.id, self.lease, delay)
    }

    /// The work takes longer: the lease ends `lease` from now.
    ///
    /// # Errors
    /// [`QueueError::LeaseLost`] when it ran out before; [`QueueError::Closed`].
    pub fn renew(&self, lease: Duration) -> Result<(), QueueError> {
        self.queue.room.renew(self.queue.number, self.id, self.lease, lease)
    }

    /// For a unit of work, which takes it over.
    pub(super) fn claim(&self) -> (u32, MessageId, Lease) {
        (self.queue.number, self.id, self.lease)
    }

    pub(super) fn is_of(&self, room: &Arc<Room>) -> bool {
        Arc::ptr_eq(&self.queue.room, room)
    }

    /// The unit of work that took it over is on its way.
    pub(super) fn let_go(mut self) {
        self.is_done = true;
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_done {
            // Lost or closed: then the message is not ours to give back.
            let _ = self.queue.room.give_back(self.queue.number, self.id, self.lease, Duration::ZERO);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("queue", &self.queue.name())
            .field("id", &self.id)
            .field("bytes", &self.payload.len())
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Calls `handler` for each message, one after the other, until the guard is dropped or the queues are closed.
    ///
    /// Must be called inside a tokio runtime. The handler acknowledges; a delivery that it drops comes back.
    pub fn notify<F, Work>(&self, mut handler: F) -> NotifyGuard
    where
        F: FnMut(Delivery) -> Work + Send + 'static,
        Work: Future<Output = ()> + Send + 'static,
    {
        let queue = self.clone();
        NotifyGuard::new(tokio::spawn(async move {
            loop {
                match queue.get(Duration::MAX).await {
                    Ok(Some(delivery)) => handler(delivery).await,
                    Ok(None) => {}
                    // What cannot be read now may be later.
                    Err(QueueError::Read(error)) => {
                        tracing::error!(queue = queue.name(), %error, "notifications pause");
                        tokio::time::sleep(READ_AGAIN).await;
                    }
                    Err(error) => {
                        tracing::debug!(queue = queue.name(), %error, "no more notifications");
                        return;
                    }
                }
            }
        }))
    }
}

/// A consumer that has a number of messages at a time; see [`Queue::consumer`].
#[derive(Debug)]
pub struct Consumer {
    queue: Queue,
    turns: Arc<Semaphore>,
    ahead: VecDeque<Delivery>,
}

impl Queue {
    /// A consumer that has at most `prefetch` messages at a time (at least 1): those that it got and neither acknowledged
    /// nor gave back. Those beyond the one that it works on are fetched together, and wait here, their leases running.
    pub fn consumer(&self, prefetch: usize) -> Consumer {
        let turns = Arc::new(Semaphore::new(prefetch.clamp(1, Semaphore::MAX_PERMITS)));
        Consumer { queue: self.clone(), turns, ahead: VecDeque::new() }
    }
}

impl Consumer {
    /// The next message, waiting at most `within` for one, and while as many as may be are out; `None` when there was none.
    ///
    /// # Errors
    /// As [`Queue::get`].
    /// # Cancel safety
    /// Dropping the future takes no message.
    pub async fn next(&mut self, within: Duration) -> Result<Option<Delivery>, QueueError> {
        if let Some(delivery) = self.ahead.pop_front() {
            return Ok(Some(delivery));
        }
        let until = Instant::now().checked_add(within);
        let turn = match until {
            Some(until) => match timeout_at(until, self.turns.clone().acquire_owned()).await {
                Ok(turn) => turn,
                Err(_) => return Ok(None),
            },
            None => self.turns.clone().acquire_owned().await,
        };
        // Nobody closes the semaphore.
        let Ok(turn) = turn else { return Err(QueueError::Closed) };
        let free = self.turns.available_permits();
        let within = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        let mut turn = Some(turn);
        for mut delivery in self.queue.get_many(1 + free, within).await? {
            delivery.turn = turn.take().or_else(|| self.turns.clone().try_acquire_owned().ok());
            self.ahead.push_back(delivery);
        }
        Ok(self.ahead.pop_front())
    }
}

/// Stops the notifications of a handler when it is dropped; a message that the handler was working on comes back.
#[derive(Debug)]
#[must_use = "dropping the guard stops the notifications"]
pub struct NotifyGuard(JoinHandle<()>);

impl NotifyGuard {
    pub(super) fn new(task: JoinHandle<()>) -> Self {
        Self(task)
    }
}

impl Drop for NotifyGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How long a message that cannot be read is left alone.
const READ_AGAIN: Duration = Duration::from_secs(1);
