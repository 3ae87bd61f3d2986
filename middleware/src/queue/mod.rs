//! Local durable queues: put, get, poll, notify, on the journal.
//!
//! Guarantee   a put that returned is stored: whatever crashes, the message is delivered until a consumer acknowledges
//!             it, with its exact bytes. An acknowledgement that returned is final. Messages are delivered in the order
//!             in which they were stored; one that comes back (nack, expired lease, dropped delivery, restart) comes
//!             back at its old place. Sender and receiver need not run at the same time.
//! At least once: a consumer that dies between its work and its acknowledgement sees the message again, with a count.
//! Method      all queues of a process share one journal, and so one sync. A message's id is its position there. What
//!             is visible follows the log: a message appears when it is durable, also if nobody waits for its put any
//!             more. The decisions are a pure value that is told the time (`shelf.rs`); this module drives it.
//! Space       the journal is cut behind the oldest message that is still needed; when a few old ones pin it, they are
//!             written again at its end.
//! Limits      every queue is bounded in messages and in bytes ([`QueueConfig`]). Messages are kept in memory beside
//!             the journal. Deliveries are counted in the journal without waiting for the sync, so a power cut may
//!             forget the last ones.
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

mod config;
mod delivery;
mod error;
mod face;
mod record;
mod room;
mod shelf;
mod tidy;

pub use config::{QueueConfig, WhenFull};
pub use delivery::{DeadLetter, Delivery, NotifyGuard};
pub use error::{DeclareError, PutError, QueueError, QueuesOpenError};
pub use face::{Left, Queue, QueueStats, Queues, Receipt, Settled};
pub use shelf::MessageId;
