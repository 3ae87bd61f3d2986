//! RabbitMQ by AMQP 0-9-1: a queue is a quorum queue of the same name.
//!
//! Guarantee   a put returns on the broker's confirmation, which it gives when a majority of the queue's members has synced
//!             the message. The protocol confirms no acknowledgement: one that gets lost with its connection lets the message
//!             come again.
//! Expiry      the broker's own, in milliseconds.
//! Leases      the protocol has none: a message is the consumer's while its connection stands. Here each has a task that
//!             gives it back when its lease has run out; that of a process that died the broker gives back at once.
//! Delays      of a nack are waited for here, the message being held meanwhile; a crash ends them early.
//! Limits      no keys, priorities, delays of puts or names. RabbitMQ 4 drops what came back more than 20 times, so
//!             [`deliveries_max`](super::EngineConfig::deliveries_max) must be less there.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
    BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Acker, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::message::Durability;
use super::{Abilities, Doing, Engine, EngineConfig, EngineError, EngineReceipt, Held, Letter, Taken};

pub(super) struct Amqp {
    url: String,
    /// One connection with one channel, made anew when it broke.
    line: tokio::sync::Mutex<Option<(Connection, Channel)>>,
    leases: Mutex<BTreeMap<String, Duration>>,
    /// Consumers are told apart by it.
    tags: AtomicU64,
}

impl Amqp {
    pub(super) async fn connect(url: &str) -> Result<Self, EngineError> {
        let amqp = Self {
            url: url.to_owned(),
            line: tokio::sync::Mutex::default(),
            leases: Mutex::default(),
            tags: AtomicU64::new(0),
        };
        amqp.channel().await?;
        Ok(amqp)
    }

    async fn channel(&self) -> Result<Channel, EngineError> {
        let mut line = self.line.lock().await;
        let standing = match line.take() {
            Some((connection, channel)) if channel.status().connected() => {
                *line = Some((connection, channel.clone()));
                return Ok(channel);
            }
            // An error ends a channel only, as when a queue was refused.
            Some((connection, _)) if connection.status().connected() => Some(connection),
            _ => None,
        };
        let connection = match standing {
            Some(connection) => connection,
            None => {
                let properties = ConnectionProperties::default().with_connection_name("quorate".into());
                let connecting = Connection::connect(&self.url, properties);
                match timeout(ANSWER, connecting).await {
                    Ok(connection) => connection.map_err(unreachable)?,
                    Err(late) => return Err(EngineError::Unreachable(Box::new(late))),
                }
            }
        };
        let channel = connection.create_channel().await.map_err(unreachable)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(unreachable)?;
        // A consumer gets the one message that it was made for.
        channel.basic_qos(1, BasicQosOptions::default()).await.map_err(unreachable)?;
        *line = Some((connection, channel.clone()));
        Ok(channel)
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<String, Duration>> {
        // Nothing panics while it is held.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a message pushed, by a consumer that ends with it.
    async fn wait(
        &self,
        channel: &Channel,
        queue: &str,
        within: Duration,
    ) -> Result<Option<Delivery>, EngineError> {
        let tag = format!("quorate-{}", self.tags.fetch_add(1, Ordering::Relaxed));
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), tag.as_str().into(), options, FieldTable::default());
        let mut consumer = consumer.await.map_err(unreachable)?;
        let mut next = async || poll_fn(|context| Pin::new(&mut consumer).poll_next(context)).await;
        let first = timeout(within, next()).await;
        let cancelled = channel.basic_cancel(tag.into(), BasicCancelOptions::default()).await;
        cancelled.map_err(unreachable)?;
        let delivery = match first {
            Ok(delivery) => delivery,
            // One may have come while it was cancelled; behind it the consumer says that it has ended.
            Err(_) => timeout(ANSWER, next()).await.unwrap_or(None),
        };
        delivery.transpose().map_err(unreachable)
    }
}

impl Engine for Amqp {
    fn abilities(&self) -> Abilities {
        Abilities { expiry: true, ..Abilities::none(Durability::Synced) }
    }

    fn declare<'a>(&'a self, queue: &'a str, config: &'a EngineConfig) -> Doing<'a, ()> {
        Box::pin(async move {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
            let channel = self.channel().await?;
            let declared = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
            declared.await.map_err(refused)?;
            self.leases().insert(queue.to_owned(), config.lease);
            Ok(())
        })
    }

    fn put<'a>(&'a self, queue: &'a str, letter: Letter) -> Doing<'a, EngineReceipt> {
        Box::pin(async move {
            let channel = self.channel().await?;
            let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
            if let Some(time) = letter.expires_after {
                let millis = time.as_millis().clamp(1, EXPIRY_MS_MAX);
                properties = properties.with_expiration(millis.to_string().into());
            }
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let sent = channel.basic_publish("".into(), queue.into(), options, &letter.payload, properties);
            let unknown = |error| EngineError::Unknown(Box::new(error));
            match sent.await.map_err(unknown)?.await.map_err(unknown)? {
                Confirmation::Ack(None) => Ok(EngineReceipt::new(Durability::Synced, None)),
                Confirmation::Ack(Some(_)) => Err(EngineError::Refused("there is no such queue".into())),
                _ => Err(EngineError::Refused("the broker did not take the message".into())),
            }
        })
    }

    fn take<'a>(&'a self, queue: &'a str, within: Duration) -> Doing<'a, Option<Taken>> {
        Box::pin(async move {
            let lease = self.leases().get(queue).copied().ok_or(EngineError::Closed)?;
            let channel = self.channel().await?;
            let there = channel.basic_get(queue.into(), BasicGetOptions::default()).await;
            let delivery = match there.map_err(unreachable)? {
                Some(message) => Some(message.delivery),
                None if within.is_zero() => None,
                None => self.wait(&channel, queue, within).await?,
            };
            Ok(delivery.map(|delivery| Taken {
                deliveries: 1 + returns(&delivery),
                payload: Bytes::from(delivery.data),
                key: None,
                id: None,
                held: Box::new(InHand::new(delivery.acker, lease)),
            }))
        })
    }

    fn close(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            self.leases().clear();
            match self.line.lock().await.take() {
                Some((connection, _)) => {
                    connection.close(GOODBYE, "closed".into()).await.map_err(unreachable)
                }
                None => Ok(()),
            }
        })
    }
}

/// A message whose lease is watched by a task.
struct InHand {
    shared: Arc<Shared>,
    lease: Duration,
}

struct Shared {
    /// None when it is settled.
    acker: Mutex<Option<Acker>>,
    until: Mutex<Instant>,
}

impl Shared {
    fn settle(&self) -> Option<Acker> {
        self.acker.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InHand {
    fn new(acker: Acker, lease: Duration) -> Self {
        let until = Instant::now() + lease;
        let shared = Arc::new(Shared { acker: Mutex::new(Some(acker)), until: Mutex::new(until) });
        let watched = Arc::downgrade(&shared);
        tokio::spawn(async move {
            let mut until = until;
            loop {
                sleep_until(until).await;
                let Some(shared) = watched.upgrade() else { return };
                let end = *shared.until();
                if end <= Instant::now() {
                    if let Some(acker) = shared.settle() {
                        // A connection that broke has given it back.
                        drop(acker.nack(AGAIN).await);
                    }
                    return;
                }
                until = end;
            }
        });
        Self { shared, lease }
    }
}

impl Held for InHand {
    fn ack(self: Box<Self>) -> Doing<'static, ()> {
        Box::pin(async move {
            let acker = self.shared.settle().ok_or(EngineError::LeaseLost)?;
            is_settled(acker.ack(BasicAckOptions::default()).await)
        })
    }

    fn nack(self: Box<Self>, delay: Duration) -> Doing<'static, ()> {
        Box::pin(async move {
            let acker = self.shared.settle().ok_or(EngineError::LeaseLost)?;
            if delay.is_zero() {
                return is_settled(acker.nack(AGAIN).await);
            }
            tokio::spawn(async move {
                sleep(delay).await;
                // A connection that broke has given it back.
                drop(acker.nack(AGAIN).await);
            });
            Ok(())
        })
    }

    fn renew(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            let acker = self.shared.acker.lock().unwrap_or_else(PoisonError::into_inner);
            if acker.as_ref().is_none_or(|acker| !acker.usable()) {
                return Err(EngineError::LeaseLost);
            }
            *self.shared.until() = Instant::now() + self.lease;
            Ok(())
        })
    }
}

/// A channel that has ended has given its messages back.
fn is_settled(outcome: lapin::Result<bool>) -> Result<(), EngineError> {
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => Err(EngineError::LeaseLost),
        Err(error) => Err(EngineError::Unknown(Box::new(error))),
    }
}

/// How often the message came back, as its queue has counted.
fn returns(delivery: &Delivery) -> u32 {
    let headers = delivery.properties.headers().as_ref();
    let count = match headers.and_then(|headers| headers.inner().get(COUNT)) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::LongUInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortUInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortUInt(count)) => i64::from(*count),
        _ => i64::from(delivery.redelivered),
    };
    u32::try_from(count).unwrap_or(u32::MAX - 1).min(u32::MAX - 1)
}

fn unreachable(error: lapin::Error) -> EngineError {
    EngineError::Unreachable(Box::new(error))
}

/// What the broker says no to, told apart from that it says nothing.
fn refused(error: lapin::Error) -> EngineError {
    match error.kind() {
        ErrorKind::ProtocolError(_) => EngineError::Refused(Box::new(error)),
        _ => unreachable(error),
    }
}

/// Back to its queue.
const AGAIN: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };
/// The header in which quorum queues count.
const COUNT: &str = "x-delivery-count";
/// The delivery mode of what is to be kept.
const PERSISTENT: u8 = 2;
/// The code for an end in peace.
const GOODBYE: u16 = 200;
/// The broker takes 32 bits.
const EXPIRY_MS_MAX: u128 = u32::MAX as u128;
/// A broker that is silent for so long is not there.
const ANSWER: Duration = Duration::from_secs(10);
