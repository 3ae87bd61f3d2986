//! RabbitMQ by AMQP 0-9-1: a queue is a quorum queue of the same name.
//!
//! Guarantee   a put returns on the broker's confirmation, which it gives when a majority of the queue's members has synced
//!             the message. The protocol confirms no acknowledgement: one that gets lost with its connection lets the message
//!             come again.
//! Expiry      the broker's own, in milliseconds.
//! Leases      the protocol has none: a message is the consumer's while its connection stands. Here each has a task that
//!             gives it back when its lease has run out; that of a process that died the broker gives back at once.
//! Delays      of a nack are waited for here, the message being held meanwhile; a crash ends them early.
//! Limits      no keys, priorities, delays of puts or names. The broker closes the channel of whoever has held a message for
//!             longer than its `consumer_timeout` (30 minutes if it is not set otherwise), so leases and delays of a nack must be
//!             shorter. A queue that was declared otherwise, for one without a limit of returns, is refused.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
use lapin::uri::AMQPUri;
use lapin::{Acker, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::message::Durability;
use super::{Abilities, Doing, Engine, EngineConfig, EngineError, EngineReceipt, Held, Letter, Taken};

pub(super) struct Amqp {
    uri: AMQPUri,
    /// Two connections: one that puts is stopped as a whole by a broker that is short of memory or disk.
    putting: tokio::sync::Mutex<Line>,
    taking: tokio::sync::Mutex<Line>,
    is_closed: AtomicBool,
    leases: Mutex<BTreeMap<String, Duration>>,
    /// Consumers are told apart by it.
    tags: AtomicU64,
}

/// A connection and its channels, each made anew when it broke.
#[derive(Default)]
struct Line {
    connection: Option<Connection>,
    /// By what they are for: an error ends a channel, and must not end what others do.
    channels: BTreeMap<String, Channel>,
}

impl Line {
    async fn channel(&mut self, uri: &AMQPUri, what: &str) -> lapin::Result<Channel> {
        if let Some(channel) = self.channels.get(what).filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        self.channels.remove(what);
        let connection = match self.connection.take_if(|connection| connection.status().connected()) {
            Some(connection) => self.connection.insert(connection),
            None => {
                self.channels.clear();
                let properties = ConnectionProperties::default().with_connection_name("quorate".into());
                self.connection.insert(Connection::connect_uri(uri.clone(), properties).await?)
            }
        };
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        // A consumer gets the one message that it was made for.
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        self.channels.insert(what.to_owned(), channel.clone());
        Ok(channel)
    }
}

impl Amqp {
    pub(super) async fn connect(url: &str) -> Result<Self, EngineError> {
        // Its error would repeat parts of the URL.
        let uri = url.parse().map_err(|_| EngineError::Url { reason: "is none of amqp" })?;
        let amqp = Self {
            uri,
            putting: tokio::sync::Mutex::default(),
            taking: tokio::sync::Mutex::default(),
            is_closed: AtomicBool::new(false),
            leases: Mutex::default(),
            tags: AtomicU64::new(0),
        };
        amqp.channel(&amqp.taking, DECLARES).await?;
        Ok(amqp)
    }

    /// A channel that stands.
    async fn channel(&self, line: &tokio::sync::Mutex<Line>, what: &str) -> Result<Channel, EngineError> {
        let mut line = line.lock().await;
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(EngineError::Closed);
        }
        match timeout(ANSWER, line.channel(&self.uri, what)).await {
            Ok(channel) => channel.map_err(unreachable),
            Err(late) => {
                // Nobody may be there, and the connection has not noticed.
                *line = Line::default();
                Err(EngineError::Unreachable(Box::new(late)))
            }
        }
    }

    /// Waits for an answer; without one the connection is not used any more.
    async fn answered<T>(
        &self,
        line: &tokio::sync::Mutex<Line>,
        answer: impl Future<Output = lapin::Result<T>>,
        failed: fn(lapin::Error) -> EngineError,
    ) -> Result<T, EngineError> {
        match timeout(ANSWER, answer).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => {
                *line.lock().await = Line::default();
                Err(failed(lapin::ErrorKind::MissingHeartbeatError.into()))
            }
        }
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
        let mut consumer = self.answered(&self.taking, consumer, refused).await?;
        let mut next = async || poll_fn(|context| Pin::new(&mut consumer).poll_next(context)).await;
        let first = timeout(within, next()).await;
        let cancelled = channel.basic_cancel(tag.into(), BasicCancelOptions::default());
        self.answered(&self.taking, cancelled, unreachable).await?;
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
            // Without it, RabbitMQ 4 drops what came back 20 times.
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(RETURNS_MAX));
            let channel = self.channel(&self.taking, DECLARES).await?;
            let declared = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
            self.answered(&self.taking, declared, refused).await?;
            self.leases().insert(queue.to_owned(), config.lease);
            Ok(())
        })
    }

    fn put<'a>(&'a self, queue: &'a str, letter: Letter) -> Doing<'a, EngineReceipt> {
        Box::pin(async move {
            let channel = self.channel(&self.putting, PUTS).await?;
            let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
            if let Some(time) = letter.expires_after {
                let millis = time.as_millis().clamp(1, EXPIRY_MS_MAX);
                properties = properties.with_expiration(millis.to_string().into());
            }
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let sent = channel.basic_publish("".into(), queue.into(), options, &letter.payload, properties);
            let confirmed = async { sent.await?.await };
            let unknown = |error| EngineError::Unknown(Box::new(error));
            match self.answered(&self.putting, confirmed, unknown).await? {
                Confirmation::Ack(None) => Ok(EngineReceipt::new(Durability::Synced, None)),
                Confirmation::Ack(Some(_)) => Err(EngineError::Refused("there is no such queue".into())),
                _ => Err(EngineError::Refused("the broker did not take the message".into())),
            }
        })
    }

    fn take<'a>(&'a self, queue: &'a str, within: Duration) -> Doing<'a, Option<Taken>> {
        Box::pin(async move {
            let lease = self.leases().get(queue).copied().ok_or(EngineError::Closed)?;
            // No queue's name begins so.
            let channel = self.channel(&self.taking, &format!("take {queue}")).await?;
            let there = channel.basic_get(queue.into(), BasicGetOptions::default());
            let delivery = match self.answered(&self.taking, there, refused).await? {
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
            self.is_closed.store(true, Ordering::Relaxed);
            let mut outcome = Ok(());
            for line in [&self.putting, &self.taking] {
                if let Some(connection) = std::mem::take(&mut *line.lock().await).connection {
                    let closed = timeout(ANSWER, connection.close(GOODBYE, "closed".into())).await;
                    outcome = match closed {
                        Ok(closed) => outcome.and(closed.map_err(unreachable)),
                        Err(late) => Err(EngineError::Unreachable(Box::new(late))),
                    };
                }
            }
            outcome
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
    settled: Notify,
}

impl Shared {
    fn settle(&self) -> Option<Acker> {
        self.settled.notify_one();
        self.acker.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InHand {
    fn new(acker: Acker, lease: Duration) -> Self {
        let until = Instant::now() + lease;
        let (acker, settled) = (Mutex::new(Some(acker)), Notify::new());
        let shared = Arc::new(Shared { acker, until: Mutex::new(until), settled });
        // Also when nobody holds it any more, and nobody has told the broker.
        let watched = shared.clone();
        tokio::spawn(async move {
            let mut until = until;
            loop {
                tokio::select! {
                    () = sleep_until(until) => {}
                    () = watched.settled.notified() => return,
                }
                let shared = &watched;
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

/// What the channels are for that are not for taking from one queue.
const DECLARES: &str = "declare";
const PUTS: &str = "put";
/// As good as never: how often a message may come back is counted above.
const RETURNS_MAX: i32 = i32::MAX;
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
