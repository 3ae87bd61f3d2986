//! Queues of other makers behind one handle: an engine is chosen by a URL, and the program stays as it is.
//!
//! Guarantee   a put that returned is in the engine, as safe as its [receipt](EngineReceipt::durability) says; it is delivered
//!             until a consumer acknowledges it, at least once, and in the order of the puts. What a message asks for and the
//!             engine cannot do is refused ([`EngineError::Unsupported`]) and never left out in silence.
//! Engines     `memory:` and `journal:///directory` are [this crate's own](super); with the feature of their name
//!             `nats://` (JetStream), `amqp://` (RabbitMQ's quorum queues) and `postgres://` (a table). What each of them
//!             keeps says [`Abilities`], and the table in the guide. Others are added by the trait [`Engine`].
//! Method      everything that is the same for all of them (leases in the caller's hand, dead letters, waiting that may be
//!             given up) is in `handle.rs` and `fetch.rs`; an engine only puts, takes and settles.
//! Limits      dead letters go to the queue with `.dead` behind its name, by a put and then an acknowledgement: a crash between
//!             the two may leave the message in both, where the engine does not know names.
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::queue::engine::EngineQueues;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let queues = EngineQueues::open("memory:").await?; // or nats://10.0.0.5:4222, postgres://shop@db/shop, ...
//! let orders = queues.queue("orders").await?;
//! orders.put("three apples").await?;
//! if let Some(delivery) = orders.get(Duration::from_secs(1)).await? {
//!     assert_eq!(delivery.payload(), "three apples");
//!     delivery.ack().await?;
//! }
//! # queues.close().await?;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "amqp")]
mod amqp;
mod embedded;
mod error;
mod fetch;
mod handle;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "postgres")]
mod postgres;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

pub use error::EngineError;
pub use handle::{EngineConfig, EngineDelivery, EngineQueue, EngineQueues};

use super::message::{Durability, Message};

/// What an engine is doing.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send + 'a>>;

/// Something that keeps queues.
///
/// What [`take`](Self::take) begins it carries out: the handles above do not drop it half-way. All other futures are dropped
/// when whoever waits for them is.
pub trait Engine: Send + Sync + 'static {
    /// What it can do; always the same.
    fn abilities(&self) -> Abilities;

    /// Creates the queue called `queue` (1 to 128 of `a-z 0-9 - _ .`) where there is none.
    fn declare<'a>(&'a self, queue: &'a str, config: &'a EngineConfig) -> Doing<'a, ()>;

    /// Puts a letter that asks for nothing beyond the [abilities](Self::abilities), into a queue that was declared.
    fn put<'a>(&'a self, queue: &'a str, letter: Letter) -> Doing<'a, EngineReceipt>;

    /// Takes the next message, waiting at most `within` for one; zero does not wait. It is this consumer's for
    /// [`EngineConfig::lease`] as it was declared.
    fn take<'a>(&'a self, queue: &'a str, within: Duration) -> Doing<'a, Option<Taken>>;

    /// Lets go of connections and files. What was put is kept.
    fn close(&self) -> Doing<'_, ()>;
}

/// A message in the hand of a consumer, as its engine knows it.
pub trait Held: Send + Sync + 'static {
    /// It is done, and goes for good.
    fn ack(self: Box<Self>) -> Doing<'static, ()>;

    /// It is not done, and comes again after `delay`.
    fn nack(self: Box<Self>, delay: Duration) -> Doing<'static, ()>;

    /// The lease begins anew.
    fn renew(&self) -> Doing<'_, ()>;
}

/// What an engine took out of a queue.
#[non_exhaustive]
pub struct Taken {
    /// The bytes that were put.
    pub payload: Bytes,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    /// What it is known by in its queue, where the engine numbers messages.
    pub id: Option<u64>,
    /// To settle it.
    pub held: Box<dyn Held>,
}

impl Taken {
    /// A message that is delivered for the first time, without a key.
    pub fn new(payload: Bytes, held: Box<dyn Held>) -> Self {
        Self { payload, key: None, deliveries: 1, id: None, held }
    }
}

/// A message on its way into an engine; what it asks for is within the engine's abilities.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Letter {
    /// Its bytes.
    pub payload: Bytes,
    /// Its key, at most 255 bytes.
    pub key: Option<Bytes>,
    /// Its name, at most 255 bytes: a repetition is to be known by it.
    pub name: Option<Bytes>,
    /// A higher one is delivered first; 4 where nothing else is asked for.
    pub priority: u8,
    /// Not to be delivered before.
    pub delay: Duration,
    /// Not to be delivered after.
    pub expires_after: Option<Duration>,
    /// How safe it should be before the put returns.
    pub durability: Durability,
}

impl From<Message> for Letter {
    fn from(message: Message) -> Self {
        let Message { payload, key, priority, delay, expires_after, name, durability } = message;
        Self { payload, key, name, priority, delay, expires_after, durability }
    }
}

/// What a put gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineReceipt {
    /// How safe the message is, as far as the engine tells: not more than it, and perhaps less than was asked.
    pub durability: Durability,
    /// Its place among the messages of its queue, where the engine numbers them: larger ones were put later.
    pub id: Option<u64>,
    /// A message of this name was put before: this put stored nothing.
    pub is_repeated: bool,
}

impl EngineReceipt {
    /// Of a message that was not put before.
    pub fn new(durability: Durability, id: Option<u64>) -> Self {
        Self { durability, id, is_repeated: false }
    }
}

/// What an engine does for a message that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abilities {
    /// How safe messages are when their puts return.
    pub durability: Durability,
    /// [`Message::key`]: one message of a key at a time, in order.
    pub keys: bool,
    /// [`Message::priority`].
    pub priorities: bool,
    /// [`Message::delay`].
    pub delays: bool,
    /// [`Message::expires_after`].
    pub expiry: bool,
    /// [`Message::name`]: repetitions are known.
    pub names: bool,
}

impl Abilities {
    /// Nothing beyond putting and taking.
    pub fn none(durability: Durability) -> Self {
        Self { durability, keys: false, priorities: false, delays: false, expiry: false, names: false }
    }

    /// All of it.
    pub fn all(durability: Durability) -> Self {
        Self { durability, keys: true, priorities: true, delays: true, expiry: true, names: true }
    }
}
