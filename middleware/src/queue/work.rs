//! A unit of work: messages taken, messages put and the application's own state, changed together or not at all.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

#[cfg(feature = "broker")]
use super::config::WhenFull;
use super::delivery::Delivery;
use super::error::{PutError, WorkError};
use super::face::{Queue, Queues, Receipt};
use super::manager::RemoteQueue;
use super::message::Message;
use super::plan::Wish;

/// What is to be done together. Nothing is seen of it before [`commit`](Self::commit); dropped without, its messages go
/// back to their queues.
///
/// ```
/// # use std::time::Duration;
/// # use quorate::journal::{Config, MemoryStorage};
/// # use quorate::queue::Queues;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let queues = Queues::open(MemoryStorage::new(), Config::new(1))?;
/// let (orders, parcels) = (queues.queue("orders").await?, queues.queue("parcels").await?);
/// orders.put("three apples").await?;
/// if let Some(order) = orders.get(Duration::from_secs(1)).await? {
///     let mut work = queues.work();
///     work.put(&parcels, order.payload().clone()).set("last", order.payload().clone()).ack(order);
///     work.commit().await?; // the order is gone, the parcel is there, the state is changed: with one sync
/// }
/// assert_eq!(queues.state("last").as_deref(), Some(&b"three apples"[..]));
/// # queues.close().await;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is done before it is committed"]
pub struct Work {
    queues: Queues,
    wish: Wish,
    taken: Vec<Delivery>,
    /// Something of other queues was handed in.
    is_foreign: bool,
    /// It may change the middleware's own entries.
    is_own: bool,
    /// What the first message for another node was refused for.
    refused: Option<PutError>,
}

impl Queues {
    /// An empty unit of work.
    pub fn work(&self) -> Work {
        Work {
            queues: self.clone(),
            wish: Wish::default(),
            taken: Vec::new(),
            is_foreign: false,
            is_own: false,
            refused: None,
        }
    }

    /// A unit of work that may change the middleware's own entries.
    pub(super) fn own_work(&self) -> Work {
        Work { is_own: true, ..self.work() }
    }

    /// The middleware's own entries whose keys begin so, without that beginning.
    pub(super) fn own_entries(&self, prefix: &str) -> Vec<(String, Bytes)> {
        let prefix = format!("{OWN_STATE}{prefix}");
        let state = self.room.lock();
        let from = state.books.cells.range(Bytes::copy_from_slice(prefix.as_bytes())..);
        from.map_while(|(key, cell)| {
            let rest = key.strip_prefix(prefix.as_bytes())?;
            Some((String::from_utf8_lossy(rest).into_owned(), cell.value.clone()))
        })
        .collect()
    }

    /// The number of a queue that is there.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        let state = self.room.lock();
        state.books.names.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
    }

    /// What [`Work::set`] stored under `key` last.
    pub fn state(&self, key: impl AsRef<[u8]>) -> Option<Bytes> {
        self.room.lock().books.cells.get(key.as_ref()).map(|cell| cell.value.clone())
    }
}

impl Work {
    /// Puts a message. `queue` belongs to the queues that the unit of work was made from.
    pub fn put(&mut self, queue: &Queue, message: impl Into<Message>) -> &mut Self {
        self.is_foreign |= !Arc::ptr_eq(&queue.room, &self.queues.room);
        self.wish.puts.push((queue.number, message.into()));
        self
    }

    /// Puts a message for a queue of another node: it waits here from then on, and is forwarded.
    pub fn send(&mut self, queue: &RemoteQueue, message: impl Into<Message>) -> &mut Self {
        match queue.outgoing(message.into()) {
            Ok((queue, message)) => self.put(queue, message),
            Err(error) => {
                self.refused.get_or_insert(error);
                self
            }
        }
    }

    /// Acknowledges a message, of any queue of those that the unit of work was made from.
    pub fn ack(&mut self, delivery: Delivery) -> &mut Self {
        self.is_foreign |= !delivery.is_of(&self.queues.room);
        self.wish.acks.push(delivery.claim());
        self.taken.push(delivery);
        self
    }

    /// Sets an entry of the application's own state: a key of 1 to 255 bytes that does not begin with `quorate.`, and all entries together at most 64 MiB. They
    /// are held in memory; [`Queues::state`] reads them.
    pub fn set(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Self {
        self.wish.cells.push((key.into(), Some(value.into())));
        self
    }

    /// Removes an entry of the application's own state.
    pub fn unset(&mut self, key: impl Into<Bytes>) -> &mut Self {
        self.wish.cells.push((key.into(), None));
        self
    }

    /// Does all of it, with one sync; returns when it is as durable as the most demanding part of it asks, with a receipt
    /// for each put. Waits while a queue is full whose policy is to wait; meanwhile leases run.
    ///
    /// What is only in memory (messages of [`Durability::Memory`](super::Durability::Memory)) is done with the rest, and is
    /// gone after a crash.
    ///
    /// # Errors
    /// See [`WorkError`].
    /// # Cancel safety
    /// Dropping the future may leave the work done, as a whole, once. Dropped while it waited for room, nothing is done.
    pub async fn commit(self) -> Result<Vec<Receipt>, WorkError> {
        if self.is_foreign {
            return Err(WorkError::Foreign);
        }
        if let Some(error) = self.refused {
            return Err(WorkError::Put(error));
        }
        let is_reserved = |(key, _): &(Bytes, _)| key.starts_with(OWN_STATE.as_bytes());
        if !self.is_own && self.wish.cells.iter().any(is_reserved) {
            return Err(WorkError::Put(PutError::Label { field: "state key" }));
        }
        let Self { queues, wish, taken, .. } = self;
        let stored = queues.room.carry_out(&wish, false).await?;
        for delivery in taken {
            delivery.let_go();
        }
        Ok(stored.receipts)
    }
}

#[cfg(feature = "broker")]
impl Work {
    /// What is done where a queue is full, whatever its policy is.
    pub(super) fn when_full(&mut self, policy: WhenFull) {
        self.wish.when_full = Some(policy);
    }

    /// As [`commit`](Self::commit), but what was taken stays taken when nothing is done.
    pub(super) async fn commit_or_back(self) -> Result<Vec<Receipt>, (WorkError, Vec<Delivery>)> {
        if let Some(error) = self.refused {
            return Err((WorkError::Put(error), self.taken));
        }
        match self.queues.room.carry_out(&self.wish, false).await {
            Ok(stored) => {
                self.taken.into_iter().for_each(Delivery::let_go);
                Ok(stored.receipts)
            }
            Err(error) => Err((error, self.taken)),
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("puts", &self.wish.puts.len())
            .field("acknowledgements", &self.wish.acks.len())
            .field("state", &self.wish.cells.len())
            .finish_non_exhaustive()
    }
}

/// Keys of the middleware's own entries begin so.
pub(super) const OWN_STATE: &str = "quorate.";
