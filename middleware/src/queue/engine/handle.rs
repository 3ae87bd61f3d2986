//! What a user holds, whichever engine is behind it.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::super::config::check_name;
use super::super::delivery::NotifyGuard;
use super::super::error::{DeclareError, PutError};
use super::super::message::{Message, PRIORITY};
use super::embedded::Embedded;
use super::fetch::Counter;
use super::{Abilities, Engine, EngineError, EngineReceipt, Held, Letter, Taken};

/// The queues of an engine. Clones are cheap and share it.
#[derive(Clone)]
pub struct EngineQueues {
    engine: Arc<dyn Engine>,
}

/// One queue of an engine. Clones are cheap and share it.
#[derive(Clone)]
pub struct EngineQueue {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) name: Arc<str>,
    pub(super) dead: Option<Arc<str>>,
    pub(super) config: EngineConfig,
    pub(super) counter: Arc<Counter>,
}

/// A message that was delivered and waits for its acknowledgement.
///
/// Dropped without one inside a tokio runtime, it goes back to the queue at once; outside, when its lease runs out. Each
/// delivery counts towards [`deliveries_max`](EngineConfig::deliveries_max).
#[must_use = "a delivery that is dropped goes back to the queue"]
pub struct EngineDelivery {
    queue: Arc<str>,
    payload: Bytes,
    key: Option<Bytes>,
    deliveries: u32,
    lease: Duration,
    /// None when it is settled.
    held: Option<Box<dyn Held>>,
}

/// How a queue of an engine behaves. Engines that keep settings keep those of who declared the queue first.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub(super) lease: Duration,
    pub(super) deliveries_max: Option<u32>,
    pub(super) message_bytes_max: usize,
}

impl EngineConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self { lease: Duration::from_secs(30), deliveries_max: Some(16), message_bytes_max: 1 << 20 }
    }

    /// How long a delivery belongs to its consumer. Default 30 s; at least 1 ms and at most 365 days.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// After how many deliveries without an acknowledgement a message goes to the dead letters, the queue with `.dead` behind
    /// the name. Default `Some(16)`; `None` means that it is tried for ever, as those of a queue whose name ends in `.dead`.
    pub fn deliveries_max(mut self, deliveries: Option<u32>) -> Self {
        self.deliveries_max = deliveries;
        self
    }

    /// Most bytes of one message. Default 1 MiB; an engine may have a limit of its own below it.
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// How long a delivery belongs to its consumer: for engines.
    pub fn lease_time(&self) -> Duration {
        self.lease
    }

    fn check(&self) -> Result<(), DeclareError> {
        let wrong = |field| Err(DeclareError::Config { field });
        if !(LEASE_MIN..=LEASE_MAX).contains(&self.lease) {
            return wrong("lease");
        }
        if self.deliveries_max == Some(0) {
            return wrong("deliveries_max");
        }
        if self.message_bytes_max == 0 {
            return wrong("message_bytes_max");
        }
        Ok(())
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl EngineQueues {
    /// Connects to the engine that `url` names:
    ///
    /// | URL | engine |
    /// | --- | --- |
    /// | `memory:` | this process, for tests: gone with the last handle |
    /// | `journal:///directory` | a directory of this machine, as [`Queues`](super::super::Queues) has it; `?node=7` says whose it is (default 1) |
    /// | `nats://user:password@host:4222` | NATS with JetStream, feature `nats`. `?sync=always` says that the server is set to sync each message, so that receipts say so, too |
    /// | `amqp://user:password@host:5672/vhost` | RabbitMQ, feature `amqp` |
    /// | `postgres://user:password@host:5432/database` | PostgreSQL, feature `postgres`. `?sslmode=require` is TLS with a server whose certificate is for that host and issued by one of the system's roots, or of `&sslrootcert=/file.pem` |
    ///
    /// # Errors
    /// [`EngineError::Url`], [`EngineError::NotBuilt`], [`EngineError::Unreachable`], [`EngineError::Refused`].
    /// # Cancel safety
    /// Dropping the future leaves nothing behind, but of `journal:`: there the opening goes on, and the directory is in use
    /// until it has ended.
    pub async fn open(url: &str) -> Result<Self, EngineError> {
        let (scheme, _) = url.split_once(':').ok_or(EngineError::Url { reason: "has no scheme" })?;
        let engine: Arc<dyn Engine> = match scheme {
            "memory" if url == "memory:" => Arc::new(Embedded::memory()?),
            "memory" => return Err(EngineError::Url { reason: "of memory is `memory:` alone" }),
            #[cfg(unix)]
            "journal" => Arc::new(Embedded::journal(url).await?),
            #[cfg(feature = "nats")]
            "nats" => Arc::new(super::nats::Nats::connect(url).await?),
            #[cfg(not(feature = "nats"))]
            "nats" => return Err(EngineError::NotBuilt { scheme: "nats", feature: "nats" }),
            #[cfg(feature = "amqp")]
            "amqp" => Arc::new(super::amqp::Amqp::connect(url).await?),
            #[cfg(not(feature = "amqp"))]
            "amqp" => return Err(EngineError::NotBuilt { scheme: "amqp", feature: "amqp" }),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => Arc::new(super::postgres::Postgres::connect(url).await?),
            #[cfg(not(feature = "postgres"))]
            "postgres" | "postgresql" => {
                return Err(EngineError::NotBuilt { scheme: "postgres", feature: "postgres" });
            }
            _ => return Err(EngineError::Url { reason: "has a scheme that no engine has" }),
        };
        Ok(Self { engine })
    }

    /// Queues over an engine of your own.
    pub fn over(engine: impl Engine) -> Self {
        Self { engine: Arc::new(engine) }
    }

    /// What the engine can do.
    pub fn abilities(&self) -> Abilities {
        self.engine.abilities()
    }

    /// The queue called `name`, created when there is none, with the default settings.
    ///
    /// # Errors
    /// As [`queue_with`](Self::queue_with).
    /// # Cancel safety
    /// Dropping the future may leave the queue created.
    pub async fn queue(&self, name: &str) -> Result<EngineQueue, EngineError> {
        self.queue_with(name, EngineConfig::new()).await
    }

    /// The queue called `name` (1 to 128 of `a-z 0-9 - _ .`), created when there is none, and that of its dead letters.
    ///
    /// # Errors
    /// [`EngineError::Declare`], [`EngineError::Unreachable`], [`EngineError::Refused`].
    /// # Cancel safety
    /// Dropping the future may leave the queue created.
    pub async fn queue_with(&self, name: &str, config: EngineConfig) -> Result<EngineQueue, EngineError> {
        check_name(name)?;
        config.check()?;
        let dead = (config.deliveries_max.is_some() && !name.ends_with(DEAD_SUFFIX))
            .then(|| format!("{name}{DEAD_SUFFIX}"));
        if let Some(dead) = &dead {
            check_name(dead)?;
            self.engine.declare(dead, &EngineConfig { deliveries_max: None, ..config.clone() }).await?;
        }
        self.engine.declare(name, &config).await?;
        let (engine, counter) = (self.engine.clone(), Arc::default());
        Ok(EngineQueue { engine, name: name.into(), dead: dead.map(Into::into), config, counter })
    }

    /// Lets go of connections and files; everything that is done with the queues from then on fails.
    ///
    /// # Errors
    /// What the engine says; it is closed all the same.
    pub async fn close(&self) -> Result<(), EngineError> {
        self.engine.close().await
    }
}

impl EngineQueue {
    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores a message; returns when the engine has confirmed it.
    ///
    /// Of two puts, the one that returned before the other began is delivered first, if neither has more priority.
    ///
    /// # Errors
    /// See [`EngineError`]; after [`EngineError::Unknown`] the message may or may not be in the queue.
    /// # Cancel safety
    /// Dropping the future may leave the message stored, once.
    pub async fn put(&self, message: impl Into<Message>) -> Result<EngineReceipt, EngineError> {
        let message = message.into();
        let limit = self.config.message_bytes_max;
        message.check().map_err(|error| match error {
            PutError::Label { field } => EngineError::Label { field },
            error => EngineError::Refused(Box::new(error)),
        })?;
        let letter = Letter::from(message);
        if letter.payload.len() > limit {
            return Err(EngineError::TooLarge { size: letter.payload.len(), limit });
        }
        let can = self.engine.abilities();
        let asked = [
            (letter.key.is_some() && !can.keys, "keys"),
            (letter.name.is_some() && !can.names, "names of messages"),
            (letter.priority != PRIORITY && !can.priorities, "priorities"),
            (!letter.delay.is_zero() && !can.delays, "delays"),
            (letter.expires_after.is_some() && !can.expiry, "expiry"),
        ];
        if let Some((_, what)) = asked.into_iter().find(|(is_missing, _)| *is_missing) {
            return Err(EngineError::Unsupported { what });
        }
        self.engine.put(&self.name, letter).await
    }

    /// The next message, waiting at most `within` for one; `None` when there was none. [`Duration::MAX`] waits for ever. An
    /// engine that is silent is given up ten seconds later. Must be called inside a tokio runtime.
    ///
    /// The message belongs to this consumer for [`EngineConfig::lease`]; acknowledge it when the work is done.
    ///
    /// # Errors
    /// See [`EngineError`].
    /// # Cancel safety
    /// Dropping the future loses no message; one that was just coming is for the next who asks this handle or a clone of it,
    /// within a second (or half of its lease). If nobody does it goes back, and that counts as a delivery.
    pub async fn get(&self, within: Duration) -> Result<Option<EngineDelivery>, EngineError> {
        self.fetched(within).await
    }

    /// The next message if there is one now. As [`get`](Self::get) in all else.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn poll(&self) -> Result<Option<EngineDelivery>, EngineError> {
        self.get(Duration::ZERO).await
    }

    /// Calls `handler` for each message, one after the other, until the guard is dropped or the queues are closed. While
    /// the engine cannot be reached, or refuses, it is tried again once a second, with a warning in the log.
    ///
    /// Must be called inside a tokio runtime. The handler acknowledges; a delivery that it drops comes back, also when its
    /// future panics, which is logged.
    pub fn notify<F, Work>(&self, mut handler: F) -> NotifyGuard
    where
        F: FnMut(EngineDelivery) -> Work + Send + 'static,
        Work: Future<Output = ()> + Send + 'static,
    {
        let queue = self.clone();
        NotifyGuard::new(tokio::spawn(async move {
            loop {
                match queue.get(Duration::MAX).await {
                    Ok(Some(delivery)) => {
                        // A task of its own, which ends with this one: its panic is nobody else's.
                        let mut call = JoinSet::new();
                        call.spawn(handler(delivery));
                        if let Some(Err(error)) = call.join_next().await {
                            tracing::error!(queue = queue.name(), %error, "a handler of notifications ended");
                        }
                    }
                    Ok(None) => {}
                    Err(EngineError::Closed) => return,
                    // What an engine refuses now it may do later: a queue that was deleted is declared again by somebody.
                    Err(error) => {
                        tracing::warn!(queue = queue.name(), %error, reason = ?error.source(), "notifications pause");
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                }
            }
        }))
    }
}

impl EngineDelivery {
    pub(super) fn new(queue: &EngineQueue, taken: Taken) -> Self {
        Self {
            queue: queue.name.clone(),
            payload: taken.payload,
            key: taken.key,
            deliveries: taken.deliveries,
            lease: queue.config.lease,
            held: Some(taken.held),
        }
    }

    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// The bytes that were put.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Its key, if it has one.
    pub fn key(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// How often the message was delivered, this time included. More than 1: an earlier consumer may have done the work.
    pub fn deliveries(&self) -> u32 {
        self.deliveries
    }

    /// The work is done: removes the message. How sure that is when this returns depends on the engine; a message whose
    /// acknowledgement got lost comes again.
    ///
    /// # Errors
    /// [`EngineError::LeaseLost`]; [`EngineError::Unknown`] when the connection broke: then it may come again.
    /// # Cancel safety
    /// Dropping the future may leave the message acknowledged; if not, it comes again when its lease runs out.
    pub async fn ack(mut self) -> Result<(), EngineError> {
        match self.held.take() {
            Some(held) => held.ack().await,
            None => Err(EngineError::LeaseLost),
        }
    }

    /// The work failed: the message comes again after `delay`.
    ///
    /// # Errors
    /// [`EngineError::LeaseLost`]; [`EngineError::Unknown`] when the connection broke: then it comes when the lease runs out.
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn nack(mut self, delay: Duration) -> Result<(), EngineError> {
        match self.held.take() {
            Some(held) => held.nack(delay.min(LEASE_MAX)).await,
            None => Err(EngineError::LeaseLost),
        }
    }

    /// The work takes longer: the lease begins anew.
    ///
    /// # Errors
    /// [`EngineError::LeaseLost`]; [`EngineError::Unknown`].
    pub async fn renew(&self) -> Result<(), EngineError> {
        match &self.held {
            Some(held) => held.renew().await,
            None => Err(EngineError::LeaseLost),
        }
    }
}

impl Drop for EngineDelivery {
    fn drop(&mut self) {
        if let (Some(held), Ok(runtime)) = (self.held.take(), Handle::try_current()) {
            // A failure shows when the lease runs out: it comes again then.
            runtime.spawn(async move { drop(held.nack(Duration::ZERO).await) });
        }
    }
}

impl fmt::Debug for EngineQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineQueues").field("abilities", &self.abilities()).finish_non_exhaustive()
    }
}

impl fmt::Debug for EngineQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineQueue").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for EngineDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineDelivery")
            .field("queue", &self.queue)
            .field("bytes", &self.payload.len())
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}

const DEAD_SUFFIX: &str = ".dead";
/// What engines count leases in.
const LEASE_MIN: Duration = Duration::from_millis(1);
/// Clocks have room for it.
const LEASE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long an engine that cannot be reached is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(1);
