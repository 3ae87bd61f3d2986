//! RabbitMQ by AMQP 0-9-1: a queue is a quorum queue of the same name.
//!
//! Guarantee   a put returns on the broker's confirmation, which it gives when a majority of the queue's members has synced
//!             the message. The protocol confirms no acknowledgement: one that gets lost with its connection lets the message
//!             come again.
//! Expiry      the broker's own, in milliseconds.
//! Leases      the protocol has none: a message is the consumer's while its channel stands. Here each has a task that gives it
//!             back when its lease has run out; that of a process that died the broker gives back at once. Renewals and the
//!             delay of a nack included, a message is held for [`HELD_MAX`], since the broker closes the channel of whoever
//!             holds one for half an hour.
//! Delays      of a nack are waited for here, the message being held meanwhile; a crash ends them early.
//! Lines       puts have a connection of their own, as the broker stops reading from those that put when its memory or disk
//!             runs short, and what is taken and acknowledged there makes room. Each queue that is taken from has a channel
//!             of its own, as an error of one ends its channel and gives back all that was taken on it.
//! Limits      no keys, priorities, delays of puts or names; as many queues taken from as the broker allows channels.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
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
use lapin::uri::AMQPUri;
use lapin::{Acker, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::message::Durability;
use super::{Abilities, Doing, Engine, EngineConfig, EngineError, EngineReceipt, Held, Letter, Taken};

pub(super) struct Amqp {
    uri: AMQPUri,
    puts: tokio::sync::Mutex<Line>,
    takes: tokio::sync::Mutex<Line>,
    leases: Mutex<BTreeMap<String, Duration>>,
    /// Consumers are told apart by it.
    tags: AtomicU64,
}

/// One connection and its channels, each made anew when it broke.
#[derive(Default)]
struct Line {
    connection: Option<Connection>,
    /// By the queue that is taken from; the one for puts has no name.
    channels: BTreeMap<String, Channel>,
    is_closed: bool,
}

impl Line {
    /// The connection, if need be a new one.
    async fn connection(&mut self, uri: &AMQPUri) -> Result<&Connection, EngineError> {
        if self.is_closed {
            return Err(EngineError::Closed);
        }
        match self.connection.take() {
            Some(connection) if connection.status().connected() => {
                return Ok(self.connection.insert(connection));
            }
            _ => self.channels.clear(),
        }
        let properties = ConnectionProperties::default().with_connection_name("quorate".into());
        let connection = answer(Connection::connect_uri(uri.clone(), properties)).await?;
        Ok(self.connection.insert(connection.map_err(unreachable)?))
    }

    /// A new channel.
    async fn open(&mut self, uri: &AMQPUri, is_for_puts: bool) -> Result<Channel, EngineError> {
        let connection = self.connection(uri).await?;
        let set_up = async {
            let channel = connection.create_channel().await?;
            if is_for_puts {
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
            } else {
                // A consumer gets the one message that it was made for.
                channel.basic_qos(1, BasicQosOptions::default()).await?;
            }
            Ok(channel)
        };
        let outcome = answer(set_up).await;
        if outcome.is_err() {
            // It does not answer: the next one connects anew.
            self.connection = None;
        }
        outcome?.map_err(unreachable)
    }

    /// The channel called `name`, if need be a new one.
    async fn channel(&mut self, uri: &AMQPUri, name: &str) -> Result<Channel, EngineError> {
        self.connection(uri).await?;
        if let Some(channel) = self.channels.get(name).filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.open(uri, name == PUTS).await?;
        self.channels.insert(name.to_owned(), channel.clone());
        Ok(channel)
    }
}

impl Amqp {
    pub(super) async fn connect(url: &str) -> Result<Self, EngineError> {
        // Its error would repeat the URL.
        let mut uri: AMQPUri = url.parse().map_err(|_| EngineError::Url { reason: "is none of amqp" })?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let amqp = Self {
            uri,
            puts: tokio::sync::Mutex::default(),
            takes: tokio::sync::Mutex::default(),
            leases: Mutex::default(),
            tags: AtomicU64::new(0),
        };
        amqp.puts.lock().await.channel(&amqp.uri, PUTS).await?;
        Ok(amqp)
    }

    async fn channel(&self, line: &tokio::sync::Mutex<Line>, name: &str) -> Result<Channel, EngineError> {
        // Others may be waiting for a broker that does not answer.
        answer(line.lock()).await?.channel(&self.uri, name).await
    }

    /// What a broker that does not answer does with a channel nobody can know: what was taken on it goes back.
    async fn forget(&self, line: &tokio::sync::Mutex<Line>, name: &str, channel: Channel) {
        if let Ok(mut line) = answer(line.lock()).await
            && line.channels.get(name).is_some_and(|known| known.id() == channel.id())
        {
            line.channels.remove(name);
        }
        tokio::spawn(async move { drop(answer(channel.close(GOODBYE, "silence".into())).await) });
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<String, Duration>> {
        // Nothing panics while it is held.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn next(
        &self,
        channel: &Channel,
        queue: &str,
        within: Duration,
    ) -> Result<Option<Delivery>, EngineError> {
        let there = answer(channel.basic_get(queue.into(), BasicGetOptions::default())).await?;
        match there.map_err(refused)? {
            Some(message) => Ok(Some(message.delivery)),
            None if within.is_zero() => Ok(None),
            None => self.wait(channel, queue, within).await,
        }
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
        let mut consumer = answer(consumer).await?.map_err(refused)?;
        let mut next = async || poll_fn(|context| Pin::new(&mut consumer).poll_next(context)).await;
        let first = timeout(within, next()).await;
        let cancelled = channel.basic_cancel(tag.into(), BasicCancelOptions::default());
        answer(cancelled).await?.map_err(unreachable)?;
        let delivery = match first {
            Ok(delivery) => delivery,
            // One may have come while it was cancelled; behind it the consumer says that it has ended.
            Err(_) => answer(next()).await?,
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
            if config.lease > HELD_MAX {
                return Err(EngineError::Unsupported { what: "leases above 25 minutes" });
            }
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
            // From version 4 on the broker drops what came back 20 times, if it is not told otherwise.
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
            // A refusal ends the channel.
            let channel = answer(self.takes.lock()).await?.open(&self.uri, false).await?;
            let declared = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
            let declared = answer(declared).await;
            tokio::spawn(async move { drop(answer(channel.close(GOODBYE, "declared".into())).await) });
            declared?.map_err(refused)?;
            self.leases().insert(queue.to_owned(), config.lease);
            Ok(())
        })
    }

    fn put<'a>(&'a self, queue: &'a str, letter: Letter) -> Doing<'a, EngineReceipt> {
        Box::pin(async move {
            let channel = self.channel(&self.puts, PUTS).await?;
            let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
            if let Some(time) = letter.expires_after {
                let millis = time.as_millis().clamp(1, EXPIRY_MS_MAX);
                properties = properties.with_expiration(millis.to_string().into());
            }
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let outcome = answer(async {
                let sent =
                    channel.basic_publish("".into(), queue.into(), options, &letter.payload, properties);
                sent.await?.await
            });
            let outcome = match outcome.await {
                Ok(outcome) => outcome.map_err(|error| EngineError::Unknown(Box::new(error)))?,
                Err(_) => {
                    self.forget(&self.puts, PUTS, channel).await;
                    return Err(EngineError::Unknown("the broker did not confirm the message".into()));
                }
            };
            match outcome {
                Confirmation::Ack(None) => Ok(EngineReceipt::new(Durability::Synced, None)),
                Confirmation::Ack(Some(_)) => Err(EngineError::Refused("there is no such queue".into())),
                _ => Err(EngineError::Refused("the broker did not take the message".into())),
            }
        })
    }

    fn take<'a>(&'a self, queue: &'a str, within: Duration) -> Doing<'a, Option<Taken>> {
        Box::pin(async move {
            let lease = self.leases().get(queue).copied().ok_or(EngineError::Closed)?;
            let channel = self.channel(&self.takes, queue).await?;
            let outcome = self.next(&channel, queue, within).await;
            if matches!(outcome, Err(EngineError::Unreachable(_))) {
                // A message may be on its way to one who has given up.
                self.forget(&self.takes, queue, channel).await;
            }
            let delivery = outcome?;
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
            let mut outcome = Ok(());
            for line in [&self.puts, &self.takes] {
                let mut line = answer(line.lock()).await?;
                let broken = std::mem::replace(&mut *line, Line { is_closed: true, ..Line::default() });
                // One that broke has nothing to say goodbye to.
                if let Some(connection) = broken.connection.filter(|it| it.status().connected()) {
                    let closed = answer(connection.close(GOODBYE, "closed".into())).await;
                    outcome = outcome.and(closed.and_then(|closed| closed.map_err(unreachable)));
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
    /// It is not held any longer, whatever is renewed.
    end: Instant,
    /// What gives it back when it is let go of without a word, too.
    watch: AbortHandle,
}

struct Shared {
    /// None when it is settled.
    acker: Mutex<Option<Acker>>,
    until: Mutex<Instant>,
}

impl Shared {
    fn acker(&self) -> MutexGuard<'_, Option<Acker>> {
        self.acker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watch(self: Arc<Self>) {
        loop {
            let until = *self.until();
            if until <= Instant::now() {
                break;
            }
            sleep_until(until).await;
        }
        let acker = self.acker().take();
        if let Some(acker) = acker {
            // A connection that broke has given it back.
            drop(acker.nack(AGAIN).await);
        }
    }
}

impl InHand {
    fn new(acker: Acker, lease: Duration) -> Self {
        let now = Instant::now();
        let shared = Arc::new(Shared { acker: Mutex::new(Some(acker)), until: Mutex::new(now + lease) });
        let watch = tokio::spawn(shared.clone().watch()).abort_handle();
        Self { shared, lease, end: now + HELD_MAX, watch }
    }

    fn settle(&self) -> Result<Acker, EngineError> {
        let acker = self.shared.acker().take().ok_or(EngineError::LeaseLost)?;
        self.watch.abort();
        Ok(acker)
    }
}

impl Held for InHand {
    fn ack(self: Box<Self>) -> Doing<'static, ()> {
        Box::pin(async move { is_settled(self.settle()?.ack(BasicAckOptions::default())).await })
    }

    fn nack(self: Box<Self>, delay: Duration) -> Doing<'static, ()> {
        Box::pin(async move {
            let acker = self.settle()?;
            if delay.is_zero() {
                return is_settled(acker.nack(AGAIN)).await;
            }
            let until = Instant::now().checked_add(delay).map_or(self.end, |until| until.min(self.end));
            tokio::spawn(async move {
                sleep_until(until).await;
                // A connection that broke has given it back.
                drop(acker.nack(AGAIN).await);
            });
            Ok(())
        })
    }

    fn renew(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            let acker = self.shared.acker();
            if acker.as_ref().is_none_or(|acker| !acker.usable()) {
                return Err(EngineError::LeaseLost);
            }
            *self.shared.until() = self.end.min(Instant::now() + self.lease);
            Ok(())
        })
    }
}

/// A channel that has ended has given its messages back.
async fn is_settled(told: impl Future<Output = lapin::Result<bool>>) -> Result<(), EngineError> {
    match timeout(ANSWER, told).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(EngineError::LeaseLost),
        Ok(Err(error)) => Err(EngineError::Unknown(Box::new(error))),
        Err(late) => Err(EngineError::Unknown(Box::new(late))),
    }
}

/// What the broker says, unless it is silent for too long.
async fn answer<T>(told: impl Future<Output = T>) -> Result<T, EngineError> {
    timeout(ANSWER, told).await.map_err(|late| EngineError::Unreachable(Box::new(late)))
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

/// What the broker says no to, told apart from that it says nothing, or that it ends.
fn refused(error: lapin::Error) -> EngineError {
    if error.is_amqp_soft_error() { EngineError::Refused(Box::new(error)) } else { unreachable(error) }
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
/// In seconds: a broker that is silent for twice as long has its connection ended, where the URL has no `heartbeat`.
const HEARTBEAT: u16 = 10;
/// How long a message is held at most: the broker's `consumer_timeout` is 30 minutes by default.
const HELD_MAX: Duration = Duration::from_secs(25 * 60);
/// The name of the channel for puts, which no queue has.
const PUTS: &str = "";
