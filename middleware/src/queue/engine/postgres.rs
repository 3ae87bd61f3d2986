//! PostgreSQL: all queues are one table; consumers pass each other's rows by (`SKIP LOCKED`) and are rung (`LISTEN`).
//!
//! Guarantee   a put, an acknowledgement and a nack are committed when they return, as safe as the server's
//!             `synchronous_commit` makes them (on by default). Priorities, keys, delays, expiry and names are kept by the
//!             statements in `postgres.sql`, which [declaring](Engine::declare) brings into the schema that comes first in the
//!             search path.
//! Leases      a column: whoever holds a message whose lease ran out may acknowledge it until somebody else has it.
//! Names       the last [`NAMES_MAX`] of a queue, and up to some hundreds more.
//! Limits      without TLS. One connection carries all; it is made anew when it broke.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, Statement};

use super::super::message::Durability;
use super::{Abilities, Doing, Engine, EngineConfig, EngineError, EngineReceipt, Held, Letter, Taken};

pub(super) struct Postgres {
    config: Config,
    line: tokio::sync::Mutex<Line>,
    leases: Mutex<BTreeMap<String, Duration>>,
    bells: Arc<Bells>,
}

enum Line {
    Broken,
    Stands(Arc<Session>),
    Closed,
}

/// A connection and what was prepared on it.
struct Session {
    client: Client,
    put: Statement,
    take: Statement,
    ack: Statement,
    due: Statement,
}

/// One for each queue: rung when something may be there.
#[derive(Default)]
struct Bells(Mutex<BTreeMap<String, Arc<Notify>>>);

impl Bells {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Notify>>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, queue: &str) -> Arc<Notify> {
        self.lock().entry(queue.to_owned()).or_default().clone()
    }
}

impl Postgres {
    pub(super) async fn connect(url: &str) -> Result<Self, EngineError> {
        // Its error would repeat parts of the URL.
        let wrong = |_| EngineError::Url { reason: "is none of postgres" };
        let mut config: Config = url.parse().map_err(wrong)?;
        config.application_name("quorate").connect_timeout(ANSWER);
        // One whose machine has gone says nothing at all.
        config.tcp_user_timeout(ANSWER).keepalives_idle(ANSWER);
        let postgres = Self {
            config,
            line: tokio::sync::Mutex::new(Line::Broken),
            leases: Mutex::default(),
            bells: Arc::default(),
        };
        postgres.session().await?;
        Ok(postgres)
    }

    async fn session(&self) -> Result<Arc<Session>, EngineError> {
        let mut line = self.line.lock().await;
        match &*line {
            Line::Stands(session) if !session.client.is_closed() => return Ok(session.clone()),
            Line::Closed => return Err(EngineError::Closed),
            Line::Stands(_) | Line::Broken => {}
        }
        let (client, mut connection) = self.config.connect(NoTls).await.map_err(failed)?;
        let bells = self.bells.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(rung) = message {
                    // All who wait look; those who find nothing wait again.
                    // Whoever takes has made one before it looked; others may invent any names.
                    if let Some(bell) = bells.lock().get(rung.payload()) {
                        bell.notify_waiters();
                    }
                }
            }
            // Whoever waits must find out.
            for bell in bells.lock().values() {
                bell.notify_waiters();
            }
        });
        // Creating what is there takes locks that whoever puts may be waiting for.
        let version = client.query_one(VERSION, &[]).await.map_err(failed)?;
        if version.try_get::<_, Option<String>>(0).map_err(failed)?.as_deref() != Some("quorate 2") {
            client.batch_execute(SCHEMA).await.map_err(failed)?;
        }
        client.batch_execute("LISTEN quorate").await.map_err(failed)?;
        let session = Session {
            put: client
                .prepare("SELECT * FROM quorate_put($1, $2, $3, $4, $5, $6, $7, $8)")
                .await
                .map_err(failed)?,
            take: client.prepare("SELECT * FROM quorate_take($1, $2)").await.map_err(failed)?,
            ack: client.prepare("SELECT quorate_ack($1, $2)").await.map_err(failed)?,
            due: client.prepare("SELECT quorate_due($1, $2, $3, $4)").await.map_err(failed)?,
            client,
        };
        let session = Arc::new(session);
        *line = Line::Stands(session.clone());
        Ok(session)
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<String, Duration>> {
        // Nothing panics while it is held.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Postgres {
    fn abilities(&self) -> Abilities {
        Abilities::all(Durability::Synced)
    }

    fn declare<'a>(&'a self, queue: &'a str, config: &'a EngineConfig) -> Doing<'a, ()> {
        Box::pin(async move {
            self.session().await?;
            self.leases().insert(queue.to_owned(), config.lease);
            Ok(())
        })
    }

    fn put<'a>(&'a self, queue: &'a str, letter: Letter) -> Doing<'a, EngineReceipt> {
        Box::pin(async move {
            let session = self.session().await?;
            let Letter { payload, key, name, priority, delay, expires_after, durability: _ } = &letter;
            let (payload, priority) = (&payload[..], i16::from(*priority));
            let (delay, expires) = (millis(*delay), expires_after.map(millis));
            let (key, name) = (key.as_deref(), name.as_deref());
            let row = session
                .client
                .query_one(
                    &session.put,
                    &[&queue, &payload, &priority, &key, &name, &delay, &expires, &NAMES_MAX],
                )
                .await
                .map_err(unknown)?;
            let id: i64 = row.try_get(0).map_err(failed)?;
            let is_repeated = row.try_get(1).map_err(failed)?;
            Ok(EngineReceipt { durability: Durability::Synced, id: u64::try_from(id).ok(), is_repeated })
        })
    }

    fn take<'a>(&'a self, queue: &'a str, within: Duration) -> Doing<'a, Option<Taken>> {
        Box::pin(async move {
            let lease = self.leases().get(queue).copied().ok_or(EngineError::Closed)?;
            let until = Instant::now() + within;
            let bell = self.bells.of(queue);
            loop {
                let rung = bell.notified();
                tokio::pin!(rung);
                // Before the look, so that nothing that comes after it is missed.
                rung.as_mut().enable();
                let session = self.session().await?;
                let row = session.client.query_one(&session.take, &[&queue, &millis(lease)]).await;
                let row = row.map_err(failed)?;
                if let Some(id) = row.try_get::<_, Option<i64>>(0).map_err(failed)? {
                    let key: Option<&[u8]> = row.try_get(1).map_err(failed)?;
                    let count: i32 = row.try_get(2).map_err(failed)?;
                    let payload: &[u8] = row.try_get(3).map_err(failed)?;
                    return Ok(Some(Taken {
                        payload: Bytes::copy_from_slice(payload),
                        key: key.map(Bytes::copy_from_slice),
                        deliveries: u32::try_from(count).unwrap_or(u32::MAX),
                        id: u64::try_from(id).ok(),
                        held: Box::new(InHand { session, id, count, lease }),
                    }));
                }
                let now = Instant::now();
                if now >= until {
                    return Ok(None);
                }
                let due: Option<i64> = row.try_get(4).map_err(failed)?;
                let due = due.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
                let pause = (until - now).min(due.unwrap_or(Duration::MAX));
                // Rung or not, it looks again.
                drop(timeout(pause, rung).await);
            }
        })
    }

    fn close(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            self.leases().clear();
            // The connection ends with the last delivery that is out.
            *self.line.lock().await = Line::Closed;
            Ok(())
        })
    }
}

struct InHand {
    session: Arc<Session>,
    id: i64,
    count: i32,
    lease: Duration,
}

impl InHand {
    async fn settle(&self, statement: &Statement, due: Option<(Duration, bool)>) -> Result<(), EngineError> {
        let client = &self.session.client;
        let row = match due {
            None => client.query_one(statement, &[&self.id, &self.count]).await,
            Some((after, is_given_back)) => {
                client.query_one(statement, &[&self.id, &self.count, &millis(after), &is_given_back]).await
            }
        };
        if row.map_err(unknown)?.try_get(0).map_err(failed)? { Ok(()) } else { Err(EngineError::LeaseLost) }
    }
}

impl Held for InHand {
    fn ack(self: Box<Self>) -> Doing<'static, ()> {
        Box::pin(async move { self.settle(&self.session.ack, None).await })
    }

    fn nack(self: Box<Self>, delay: Duration) -> Doing<'static, ()> {
        Box::pin(async move { self.settle(&self.session.due, Some((delay, true))).await })
    }

    fn renew(&self) -> Doing<'_, ()> {
        Box::pin(async move { self.settle(&self.session.due, Some((self.lease, false))).await })
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).min(MILLIS_MAX)
}

/// What the server says no to, told apart from that it says nothing.
fn failed(error: Error) -> EngineError {
    match error.as_db_error() {
        Some(told) if !passes(told) => EngineError::Refused(Box::new(error)),
        _ => EngineError::Unreachable(Box::new(error)),
    }
}

fn unknown(error: Error) -> EngineError {
    match error.as_db_error() {
        // The statement was rolled back, unless the server was stopped while it committed.
        Some(told) if told.code().code().starts_with(OPERATOR) => EngineError::Unknown(Box::new(error)),
        Some(_) => failed(error),
        None => EngineError::Unknown(Box::new(error)),
    }
}

/// What the server says no to now, and may not later.
fn passes(told: &DbError) -> bool {
    PASSING.iter().any(|class| told.code().code().starts_with(class))
}

const SCHEMA: &str = include_str!("postgres.sql");
/// Which schema the database has; null for none.
const VERSION: &str = "SELECT obj_description(to_regclass('quorate_messages'), 'pg_class')";
/// Error codes of these classes pass: connections, transactions that met others, a server that only reads for now, what it has
/// too little of, what others hold, what its operator does.
const PASSING: [&str; 6] = ["08", "25", "40", "53", "55", OPERATOR];
/// Error codes of this class are an operator's doing, a shutdown above all.
const OPERATOR: &str = "57";
/// Names that are remembered for each queue.
const NAMES_MAX: i64 = 10_000;
/// A hundred years: a timestamp must have room for it.
const MILLIS_MAX: i64 = 100 * 365 * 24 * 3_600_000;
/// A server that cannot be connected to for so long is not there.
const ANSWER: Duration = Duration::from_secs(10);
