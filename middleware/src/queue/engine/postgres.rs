//! PostgreSQL: all queues are one table; consumers pass each other's rows by (`SKIP LOCKED`) and are rung (`LISTEN`).
//!
//! Guarantee   a put, an acknowledgement and a nack are committed when they return, as safe as the server's
//!             `synchronous_commit` makes them (on by default). Priorities, keys, delays, expiry and names are kept by the
//!             statements in `postgres.sql`, which connecting brings into the schema that comes first in the search path where
//!             they are not there in this version.
//! Leases      a column: whoever holds a message whose lease ran out may acknowledge it until somebody else has it.
//! Names       the last [`NAMES_MAX`] of a queue, and up to some hundreds more.
//! Silence     whoever the server does not answer for [`ANSWER`] is told so. What it takes afterwards nobody gets before the
//!             lease has run out.
//! Secrecy     TLS where the URL says `sslmode=require`; else none, whatever the server offers.
//! Limits      one connection carries all; it is made anew when it broke.

mod tls;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::config::SslMode;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Error, NoTls, Socket, Statement};

use super::super::message::Durability;
use super::{Abilities, Doing, Engine, EngineConfig, EngineError, EngineReceipt, Held, Letter, Taken};
use tls::Tls;

pub(super) struct Postgres {
    config: Config,
    tls: Option<Tls>,
    line: tokio::sync::Mutex<Line>,
    leases: Mutex<BTreeMap<String, Duration>>,
    bells: Arc<Bells>,
    durability: Durability,
}

enum Line {
    Broken,
    Stands(Arc<Session>),
    Closed,
}

/// A connection and what was prepared on it.
struct Session {
    client: Client,
    durability: Durability,
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
        let (url, roots) = without_roots(url);
        let mut config: Config = url.parse().map_err(wrong)?;
        let tls = match config.get_ssl_mode() {
            SslMode::Require => Some(Tls::new(roots)?),
            _ if roots.is_some() => {
                return Err(EngineError::Url { reason: "has `sslrootcert` without `sslmode=require`" });
            }
            _ => None,
        };
        config.application_name("quorate").connect_timeout(ANSWER);
        // One whose machine has gone says nothing at all.
        config.tcp_user_timeout(ANSWER).keepalives_idle(ANSWER);
        let mut postgres = Self {
            config,
            tls,
            line: tokio::sync::Mutex::new(Line::Broken),
            leases: Mutex::default(),
            bells: Arc::default(),
            durability: Durability::Synced,
        };
        postgres.durability = postgres.session().await?.durability;
        Ok(postgres)
    }

    async fn session(&self) -> Result<Arc<Session>, EngineError> {
        let mut line = answer(self.line.lock(), EngineError::Unreachable).await?;
        match &*line {
            Line::Stands(session) if !session.client.is_closed() => return Ok(session.clone()),
            Line::Closed => return Err(EngineError::Closed),
            Line::Stands(_) | Line::Broken => {}
        }
        let session = Arc::new(answer(self.connected(), EngineError::Unreachable).await??);
        *line = Line::Stands(session.clone());
        Ok(session)
    }

    /// Has the connection work until it ends.
    fn serve<S>(&self, mut connection: Connection<Socket, S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let bells = self.bells.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(rung) = message {
                    // All who wait look; those who find nothing wait again.
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
    }

    async fn connected(&self) -> Result<Session, EngineError> {
        let client = match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await.map_err(failed)?;
                self.serve(connection);
                client
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await.map_err(failed)?;
                self.serve(connection);
                client
            }
        };
        let version = version();
        let known = "SELECT to_regproc('quorate_version') IS NOT NULL, current_setting('synchronous_commit')";
        let known = client.query_one(known, &[]).await.map_err(failed)?;
        let mut is_there = known.try_get(0).map_err(failed)?;
        if is_there {
            let told = client.query_one("SELECT quorate_version()", &[]).await.map_err(failed)?;
            is_there = told.try_get::<_, &str>(0).map_err(failed)? == version;
        }
        if !is_there {
            let named = format!("{SCHEMA}\n{VERSION} AS $$ SELECT text '{version}' $$");
            client.batch_execute(&named).await.map_err(failed)?;
        }
        let is_synced = known.try_get::<_, &str>(1).map_err(failed)? != "off";
        client.batch_execute("LISTEN quorate").await.map_err(failed)?;
        Ok(Session {
            durability: if is_synced { Durability::Synced } else { Durability::Memory },
            put: client
                .prepare("SELECT * FROM quorate_put($1, $2, $3, $4, $5, $6, $7, $8)")
                .await
                .map_err(failed)?,
            take: client.prepare("SELECT * FROM quorate_take($1, $2)").await.map_err(failed)?,
            ack: client.prepare("SELECT quorate_ack($1, $2)").await.map_err(failed)?,
            due: client.prepare("SELECT quorate_due($1, $2, $3, $4)").await.map_err(failed)?,
            client,
        })
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<String, Duration>> {
        // Nothing panics while it is held.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Postgres {
    fn abilities(&self) -> Abilities {
        Abilities::all(self.durability)
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
            let values: [&(dyn ToSql + Sync); 8] =
                [&queue, &payload, &priority, &key, &name, &delay, &expires, &NAMES_MAX];
            let put = session.client.query_one(&session.put, &values);
            let row = answer(put, EngineError::Unknown).await?.map_err(unknown)?;
            let id: i64 = row.try_get(0).map_err(failed)?;
            let is_repeated = row.try_get(1).map_err(failed)?;
            Ok(EngineReceipt { durability: session.durability, id: u64::try_from(id).ok(), is_repeated })
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
                let lease_ms = millis(lease);
                let values: [&(dyn ToSql + Sync); 2] = [&queue, &lease_ms];
                let taken = session.client.query_one(&session.take, &values);
                let row = answer(taken, EngineError::Unreachable).await?.map_err(failed)?;
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
        let (after, is_given_back) = due.map_or((0, false), |(after, is_back)| (millis(after), is_back));
        let values: [&(dyn ToSql + Sync); 4] = [&self.id, &self.count, &after, &is_given_back];
        let values = if due.is_some() { &values[..] } else { &values[..2] };
        let row = answer(client.query_one(statement, values), EngineError::Unknown).await?;
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

/// The URL without its `sslrootcert`, which the client does not know, and that.
fn without_roots(url: &str) -> (String, Option<&str>) {
    let Some((place, options)) = url.split_once('?') else { return (url.to_owned(), None) };
    let roots = options.split('&').find_map(|option| option.strip_prefix("sslrootcert="));
    let options: Vec<&str> =
        options.split('&').filter(|option| !option.starts_with("sslrootcert=")).collect();
    (format!("{place}?{}", options.join("&")), roots)
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).min(MILLIS_MAX)
}

/// What the server says, unless it is silent for too long.
async fn answer<T>(
    told: impl Future<Output = T>,
    silence: fn(Box<dyn std::error::Error + Send + Sync>) -> EngineError,
) -> Result<T, EngineError> {
    timeout(ANSWER, told).await.map_err(|late| silence(Box::new(late)))
}

/// Why nothing was done: what the server says no to, told apart from that it says nothing, or cannot now.
fn failed(error: Error) -> EngineError {
    match error.as_db_error() {
        Some(told) if !PASSING.iter().any(|class| told.code().code().starts_with(class)) => {
            EngineError::Refused(Box::new(error))
        }
        _ => EngineError::Unreachable(Box::new(error)),
    }
}

/// Why nothing was done, or perhaps it was.
fn unknown(error: Error) -> EngineError {
    match error.as_db_error() {
        // The statement was rolled back, unless the server was stopped while it committed.
        Some(told) if !DOUBTFUL.iter().any(|class| told.code().code().starts_with(class)) => failed(error),
        _ => EngineError::Unknown(Box::new(error)),
    }
}

/// Of the statements: another text has another one. (FNV-1a, 64 bits.)
fn version() -> String {
    let hash = SCHEMA.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

const SCHEMA: &str = include_str!("postgres.sql");
const VERSION: &str = "CREATE OR REPLACE FUNCTION quorate_version() RETURNS text LANGUAGE sql";
/// Error codes that begin so pass: of the connection, a deadlock, no room, a lock, a server that was made read-only by a failover,
/// and an operator's doing, a shutdown above all.
const PASSING: [&str; 6] = ["08", "25006", "40", "53", "55", "57"];
/// Of these, those after which nobody knows whether the statement was committed.
const DOUBTFUL: [&str; 3] = ["08", "40003", "57"];
/// Names that are remembered for each queue.
const NAMES_MAX: i64 = 10_000;
/// A hundred years: a timestamp must have room for it.
const MILLIS_MAX: i64 = 100 * 365 * 24 * 3_600_000;
/// A server that is silent for so long is not there.
const ANSWER: Duration = Duration::from_secs(10);
