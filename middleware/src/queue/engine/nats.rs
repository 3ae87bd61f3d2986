//! NATS with JetStream: a queue is a stream with work-queue retention and one durable pull consumer that all share.
//!
//! Guarantee   a put is in the stream's file when it returns, and an acknowledgement is confirmed by the server. The server
//!             syncs its files now and then (every two minutes by default), so receipts say `Written`, unless the URL says
//!             `?sync=always`, which is the user's word for how the server was set.
//! Names       the header `Nats-Msg-Id`: known for [`NAMES_FOR`], by the server.
//! Expiry      a header of ours, looked at by the consumer that takes the message: older servers have none of their own.
//! Leases      the server's `ack_wait`. It takes late acknowledgements, so the end of a lease is watched here, too.
//! Limits      no keys, priorities or delays of puts. What is out and what waits for its delay is in the server's memory.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::{Acker, PublishMessage};
use async_nats::jetstream::stream::{self, ConsumerErrorKind, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, AckKind, Context};
use async_nats::{Client, ConnectOptions};
use futures_core::Stream;
use tokio::time::{Instant, timeout};

use super::super::message::Durability;
use super::{Abilities, Doing, Engine, EngineConfig, EngineError, EngineReceipt, Held, Letter, Taken};

pub(super) struct Nats {
    client: Client,
    context: Context,
    durability: Durability,
    /// None when it is closed: the client itself ends a while later.
    open: Mutex<Option<BTreeMap<String, Open>>>,
}

#[derive(Clone)]
struct Open {
    consumer: Consumer<pull::Config>,
    lease: Duration,
}

impl Nats {
    pub(super) async fn connect(url: &str) -> Result<Self, EngineError> {
        let (server, durability) = match url.split_once('?') {
            None => (url, Durability::Written),
            Some((server, "sync=always")) => (server, Durability::Synced),
            Some(_) => return Err(EngineError::Url { reason: "of nats has no option but `sync=always`" }),
        };
        let options = ConnectOptions::new().name("quorate").request_timeout(Some(ANSWER));
        let client =
            options.connect(server).await.map_err(|error| EngineError::Unreachable(Box::new(error)))?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ANSWER);
        Ok(Self { client, context, durability, open: Mutex::new(Some(BTreeMap::new())) })
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<String, Open>>> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, queue: &str) -> Result<Open, EngineError> {
        self.lock().as_ref().and_then(|open| open.get(queue).cloned()).ok_or(EngineError::Closed)
    }

    async fn next(&self, open: &Open, within: Duration) -> Result<Option<jetstream::Message>, EngineError> {
        let batch = match within {
            Duration::ZERO => open.consumer.fetch().max_messages(1).messages().await,
            within => open.consumer.batch().max_messages(1).expires(within).messages().await,
        };
        let mut batch = batch.map_err(|error| EngineError::Unreachable(Box::new(error)))?;
        // A question without a wait has no end of its own when its answer is lost.
        match timeout(within + ANSWER, poll_fn(|context| Pin::new(&mut batch).poll_next(context))).await {
            Ok(Some(message)) => message.map(Some).map_err(EngineError::Unreachable),
            Ok(None) => Ok(None),
            Err(late) => Err(EngineError::Unreachable(Box::new(late))),
        }
    }
}

impl Engine for Nats {
    fn abilities(&self) -> Abilities {
        Abilities { expiry: true, names: true, ..Abilities::none(self.durability) }
    }

    fn declare<'a>(&'a self, queue: &'a str, config: &'a EngineConfig) -> Doing<'a, ()> {
        Box::pin(async move {
            if self.lock().is_none() {
                return Err(EngineError::Closed);
            }
            let stream = stream::Config {
                name: stream_name(queue),
                subjects: vec![subject(queue)],
                retention: RetentionPolicy::WorkQueue,
                storage: StorageType::File,
                duplicate_window: NAMES_FOR,
                num_replicas: 1,
                ..stream::Config::default()
            };
            let stream =
                self.context.get_or_create_stream(stream).await.map_err(|error| match error.kind() {
                    CreateStreamErrorKind::TimedOut
                    | CreateStreamErrorKind::JetStreamUnavailable
                    | CreateStreamErrorKind::Response => EngineError::Unreachable(Box::new(error)),
                    _ => EngineError::Refused(Box::new(error)),
                })?;
            let consumer = pull::Config {
                durable_name: Some(CONSUMER.to_owned()),
                ack_policy: AckPolicy::Explicit,
                ack_wait: config.lease,
                max_ack_pending: OUT_MAX,
                ..pull::Config::default()
            };
            let consumer = stream.get_or_create_consumer(CONSUMER, consumer).await.map_err(|error| {
                match error.kind() {
                    ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => {
                        EngineError::Unreachable(Box::new(error))
                    }
                    _ => EngineError::Refused(Box::new(error)),
                }
            })?;
            let lease = consumer.cached_info().config.ack_wait;
            let mut open = self.lock();
            open.as_mut().ok_or(EngineError::Closed)?.insert(queue.to_owned(), Open { consumer, lease });
            Ok(())
        })
    }

    fn put<'a>(&'a self, queue: &'a str, letter: Letter) -> Doing<'a, EngineReceipt> {
        Box::pin(async move {
            // The client takes messages still while it drains.
            self.open(queue)?;
            let mut message = PublishMessage::build().payload(letter.payload);
            if let Some(name) = &letter.name {
                message = message.message_id(hex(name));
            }
            if let Some(time) = letter.expires_after {
                let until = millis_now().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                message = message.header(EXPIRES, until.to_string());
            }
            let failed = |error: jetstream::context::PublishError| match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => EngineError::Refused(Box::new(error)),
                // Nobody answers for the stream: it was deleted, or its server is not ready yet.
                PublishErrorKind::StreamNotFound => EngineError::Unreachable(Box::new(error)),
                // What the server answered otherwise is not told apart from that it did not answer.
                _ => EngineError::Unknown(Box::new(error)),
            };
            let stored = self.context.send_publish(subject(queue), message).await.map_err(failed)?;
            let stored = stored.await.map_err(failed)?;
            Ok(EngineReceipt {
                durability: self.durability,
                id: Some(stored.sequence),
                is_repeated: stored.duplicate,
            })
        })
    }

    fn take<'a>(&'a self, queue: &'a str, within: Duration) -> Doing<'a, Option<Taken>> {
        Box::pin(async move {
            let open = self.open(queue)?;
            let until = Instant::now() + within;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let asked = Instant::now();
                let Some(message) = self.next(&open, left).await? else { return Ok(None) };
                let (deliveries, id) = match message.info() {
                    Ok(info) => (u32::try_from(info.delivered).unwrap_or(u32::MAX), info.stream_sequence),
                    Err(error) => return Err(EngineError::Refused(error)),
                };
                let (message, acker) = message.split();
                let expires = message.headers.as_ref().and_then(|headers| headers.get(EXPIRES));
                let expires: Option<u64> = expires.and_then(|moment| moment.as_str().parse().ok());
                if expires.is_some_and(|moment| moment <= millis_now()) {
                    acker.double_ack_with(AckKind::Term).await.map_err(EngineError::Unknown)?;
                    continue;
                }
                // A wait may be long, and the lease begins at its end; for one that was there it began after the question.
                let taken = if left.is_zero() { asked } else { Instant::now() };
                let held = InHand { acker, lease: open.lease, until: Mutex::new(taken + open.lease) };
                let taken = Taken {
                    payload: message.payload,
                    key: None,
                    deliveries,
                    id: Some(id),
                    held: Box::new(held),
                };
                return Ok(Some(taken));
            }
        })
    }

    fn close(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            *self.lock() = None;
            self.client.drain().await.map_err(|error| EngineError::Unreachable(Box::new(error)))
        })
    }
}

struct InHand {
    acker: Acker,
    lease: Duration,
    until: Mutex<Instant>,
}

impl InHand {
    fn check(&self) -> Result<(), EngineError> {
        // Nothing panics while it is held.
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < until { Ok(()) } else { Err(EngineError::LeaseLost) }
    }
}

impl Held for InHand {
    fn ack(self: Box<Self>) -> Doing<'static, ()> {
        Box::pin(async move {
            self.check()?;
            self.acker.double_ack().await.map_err(EngineError::Unknown)
        })
    }

    fn nack(self: Box<Self>, delay: Duration) -> Doing<'static, ()> {
        Box::pin(async move {
            self.check()?;
            let kind = AckKind::Nak((!delay.is_zero()).then_some(delay));
            self.acker.double_ack_with(kind).await.map_err(EngineError::Unknown)
        })
    }

    fn renew(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            self.check()?;
            let asked = Instant::now();
            self.acker.double_ack_with(AckKind::Progress).await.map_err(EngineError::Unknown)?;
            *self.until.lock().unwrap_or_else(PoisonError::into_inner) = asked + self.lease;
            Ok(())
        })
    }
}

fn stream_name(queue: &str) -> String {
    format!("quorate-{}", plain(queue))
}

fn subject(queue: &str) -> String {
    format!("quorate.queue.{}", plain(queue))
}

/// Dots part the words of subjects, and no stream has them in its name.
fn plain(queue: &str) -> String {
    queue.replace('.', "=")
}

/// Names are bytes, headers are text.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn millis_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The consumer that all takers of a queue share.
const CONSUMER: &str = "quorate";
/// When a message expires, in milliseconds since 1970.
const EXPIRES: &str = "Quorate-Expires";
/// How long the server knows a name; it keeps them in memory.
const NAMES_FOR: Duration = Duration::from_secs(120);
/// As many messages of a queue as there are may be out: those that wait for the delay of a nack are, too.
const OUT_MAX: i64 = -1;
/// A server that is silent for so long did not do it, or did it and cannot say so.
const ANSWER: Duration = Duration::from_secs(10);
