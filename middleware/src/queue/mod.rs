//! Durable queues on the journal: put, get, poll, notify, units of work; and queues of other nodes, by store-and-forward.
//!
//! Guarantee   a put that returned is as safe as it [asked](Durability) to be, synced by default: whatever crashes, the
//!             message is delivered until a consumer acknowledges it, with its exact bytes. An acknowledgement that returned
//!             is final. Messages are delivered by priority, then in the order of their puts; one that comes back (nack,
//!             expired lease, dropped delivery, restart) comes back at its old place, and none overtakes another of its
//!             [key](Message::key). Sender and receiver need not run at the same time.
//! At least once: a consumer that dies between its work and its acknowledgement sees the message again, with a count.
//! Exactly once: a consumer whose whole effect is in a [unit of work](Work), a put that has a [name](Message::name), and what
//!             is sent to [another node](RemoteQueue).
//! Method      all queues of a directory share one journal, and so one sync. A change is planned, stored, and done when it is
//!             stored; a restart does the stored records once more. The decisions are pure values that are told the time
//!             (`books.rs`, `shelf.rs`); `room.rs` drives them.
//! Opening     reads a checkpoint of the books (`checkpoint.rs`) and what was stored since: 64 MiB with the default settings, or
//!             four times the checkpoint's own bytes.
//! Space       the journal is cut behind the oldest place that is still needed; when a few old ones pin it, they are written
//!             again at its end.
//! Memory      a message that waits far behind takes some five bytes, whatever its size, and is read from the journal when
//!             its turn comes; one with a key, a delay or an end, and one that was delivered, some 300. Of the bytes that
//!             are wanted soon, 512 KiB of a queue and 8 MiB of all are kept beside the journal.
//! Limits      every queue is bounded in messages and in bytes ([`QueueConfig`]); the application's state is in memory, at most 64
//!             MiB. Deliveries are counted in the journal without waiting for the sync, so a power cut may forget the last
//!             ones; delays of nacks are forgotten by a restart. What is not in memory is read where it is asked for: a
//!             get may wait for the disk.
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::journal::{Config, MemoryStorage}; // `Queues::on(&node)` keeps them in the node's directory
//! use quorate::queue::Queues;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let queues = Queues::open(MemoryStorage::new(), Config::new(1))?;
//! let orders = queues.queue("orders").await?;
//! orders.put("three apples").await?; // stored and synced when this returns
//! if let Some(delivery) = orders.get(Duration::from_secs(1)).await? {
//!     assert_eq!(delivery.payload(), "three apples");
//!     delivery.ack().await?; // gone for good when this returns
//! }
//! # queues.close().await;
//! # Ok(())
//! # }
//! ```

mod apply;
mod bells;
mod bodies;
mod books;
#[cfg(feature = "broker")]
pub mod broker;
mod checkpoint;
mod config;
mod delivery;
pub mod engine;
mod error;
mod face;
mod far;
mod manager;
mod message;
mod meter;
mod near;
mod plan;
mod planted;
mod record;
mod room;
mod seen;
mod shelf;
#[cfg(test)]
mod tests;
mod upkeep;
mod view;
mod work;

pub use config::{QueueConfig, WhenExpired, WhenFull};
pub use delivery::{Consumer, DeadLetter, Delivery, NotifyGuard};
pub use error::{DeclareError, PutError, QueueError, QueuesOpenError, WorkError};
pub use face::{Left, Queue, QueueStats, Queues, Receipt, Settled};
pub use manager::{
    HOPS_MAX, LINES_MAX, ManagerError, NamedPutError, NamedQueue, QueueManager, RemoteQueue, UNDELIVERED,
};
pub use message::{DeadReason, Durability, Message, MessageId};
pub use view::{RecordView, Standing, Start, View};
pub use work::Work;
