//! What a consumer holds, and the handler that is called for each message.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::error::QueueError;
use super::face::Queue;
use super::shelf::{Lease, MessageId, Taken};

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
    dead_letter: Option<DeadLetter>,
    is_done: bool,
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
}

impl Delivery {
    pub(super) fn new(queue: Queue, taken: Taken, origin: Option<(String, MessageId, u32)>) -> Self {
        let Taken { id, lease, payload, deliveries, origin: _ } = taken;
        let dead_letter = origin.map(|(queue, id, deliveries)| DeadLetter { queue, id, deliveries });
        Self { queue, id, lease, payload, deliveries, dead_letter, is_done: false }
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
        self.is_done = true;
        let stored = self.queue.room.acknowledge(self.queue.number, self.id, self.lease)?;
        stored.await.unwrap_or(Err(QueueError::Closed))
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
        NotifyGuard(tokio::spawn(async move {
            loop {
                match queue.get(Duration::MAX).await {
                    Ok(Some(delivery)) => handler(delivery).await,
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(queue = queue.name(), %error, "no more notifications");
                        return;
                    }
                }
            }
        }))
    }
}

/// Stops the notifications of a handler when it is dropped; a message that the handler was working on comes back.
#[derive(Debug)]
#[must_use = "dropping the guard stops the notifications"]
pub struct NotifyGuard(JoinHandle<()>);

impl Drop for NotifyGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}
