//! Session state that a server keeps for its clients, as long as they use it.
//!
//! Purpose     a *stateful* server remembers something of a client between its calls. Here it does so as *soft state*: a
//!             session is a lease that every use renews, and that ends when the client is silent for too long, when the
//!             server starts anew, or when there is no room. The client is told which of them it was, and begins again.
//!             A *stateless* server needs none of this: all that it needs comes with the call; what the client holds for
//!             it, authenticated, is a cookie (`rpc::cookies`, a feature).
//! Guarantee   a session that is given is the one that was opened: ids are never used twice, also over restarts, and
//!             cannot be guessed. What a lost session of this table is answered with is true; when it was lost so long ago
//!             that the reason is not kept any more, the answer is [`SessionLost::Forgotten`]. Ids of other tables cannot
//!             be told apart from those of the table's own earlier life: [`SessionLost::ServerRestarted`].
//! Limits      [`SessionsOptions`]: sessions, bytes, and what to do without room; the reasons of four times as many lost
//!             sessions as may be open are kept. What has run out is dropped when the table is used next.
//! Source      van Steen & Tanenbaum, stateless and stateful servers, soft state; leases: Gray & Cheriton 1989.
//!
//! ```
//! use quorate::rpc::{SessionLost, Sessions, SessionsOptions};
//!
//! let carts: Sessions<Vec<String>> = Sessions::new(SessionsOptions::default(), |cart: &Vec<String>| {
//!     cart.iter().map(String::len).sum()
//! });
//! let cart = carts.open(Vec::new())?;
//! carts.with(cart, |cart| cart.push("pen".to_owned()))?;
//! assert_eq!(carts.close(cart)?, ["pen"]);
//! assert_eq!(carts.with(cart, |cart| cart.len()), Err(SessionLost::Closed));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What a client holds of its session, and gives with each call: an argument like any other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId {
    /// Drawn when the table was made.
    life: u64,
    number: u64,
    /// So that nobody uses the session of another one by counting.
    secret: u64,
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} of {:016x}", self.number, self.life)
    }
}

/// The limits of a table of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionsOptions {
    /// How long a session outlives its last use. Default 60 s. Shorter frees memory sooner, and loses the sessions of
    /// clients that pause.
    pub lease: Duration,
    /// Sessions at the same time. Default 10,000.
    pub sessions_max: usize,
    /// Bytes of all their states, as measured by the table's owner. Default 64 MiB.
    pub bytes_max: usize,
    /// What to do when either would be exceeded. Default: the sessions that were not used for longest go.
    pub when_full: NoRoom,
}

impl Default for SessionsOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            sessions_max: 10_000,
            bytes_max: 64 * 1024 * 1024,
            when_full: NoRoom::Evict,
        }
    }
}

/// What a full table does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoRoom {
    /// The sessions that were not used for longest make room; never the one that is being used, unless it alone is too
    /// large.
    #[default]
    Evict,
    /// A new session is refused; one that grows beyond the limit loses its state.
    Refuse,
}

/// There is no room for another session. Nothing was opened; try again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("no room for a session: {sessions} are open, with {bytes} bytes")]
pub struct SessionsFull {
    /// Open sessions.
    pub sessions: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Why a session is not there. It is an error of the application's: let an error of a method hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SessionLost {
    /// It was not used for as long as its lease.
    #[error("the session was not used for {lease:?}")]
    Expired {
        /// The lease.
        lease: Duration,
    },
    /// The id is not of this life of the table. As a rule the server has started anew since; an id of another table, and one
    /// that somebody made up, may say so, too.
    #[error("the server restarted, and its sessions are lost")]
    ServerRestarted,
    /// The server needed the room for others, or it had grown too large.
    #[error("the server needed the room of the session")]
    Evicted,
    /// It was closed.
    #[error("the session is closed")]
    Closed,
    /// It is gone for so long that the reason is not kept any more.
    #[error("the session is gone, and the server does not know any more why")]
    Forgotten,
    /// It claims to be of this life of the table, which never gave such an id.
    #[error("there never was such a session")]
    Unknown,
}

/// What a table has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SessionsStats {
    /// Sessions that are open now.
    pub open: usize,
    /// Bytes of their states now.
    pub bytes: usize,
    /// Sessions opened.
    pub opened: u64,
    /// Sessions that were not opened for want of room.
    pub refused: u64,
    /// Sessions closed.
    pub closed: u64,
    /// Sessions that ran out.
    pub expired: u64,
    /// Sessions that went for want of room.
    pub evicted: u64,
    /// Uses of sessions that were lost, for whatever reason.
    pub missed: u64,
}

/// A table of sessions. Made once in a life of a service, and shared by its handlers.
pub struct Sessions<T> {
    options: SessionsOptions,
    measure: Box<dyn Fn(&T) -> usize + Send + Sync>,
    life: u64,
    secrets: RandomState,
    table: Mutex<Table<T>>,
}

struct Table<T> {
    open: BTreeMap<u64, Session<T>>,
    /// When each was last used: leases are equal, so the order of use is the order of their ends.
    used: BTreeSet<(Instant, u64)>,
    /// Why the latest lost ones are, in the order of their ends.
    lost: BTreeMap<u64, SessionLost>,
    lost_order: VecDeque<u64>,
    next: u64,
    stats: SessionsStats,
}

/// The table, and the states that went while it was held. They are dropped in this order: first the lock, then what users do
/// when a state is dropped.
struct Held<'a, T> {
    table: MutexGuard<'a, Table<T>>,
    gone: Vec<T>,
}

impl<T> Deref for Held<'_, T> {
    type Target = Table<T>;

    fn deref(&self) -> &Table<T> {
        &self.table
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut Table<T> {
        &mut self.table
    }
}

struct Session<T> {
    state: T,
    bytes: usize,
    used: Instant,
}

impl<T> Sessions<T> {
    /// An empty table; `measure` tells how many bytes a state takes, and is asked after every use.
    pub fn new(options: SessionsOptions, measure: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        let table = Table {
            open: BTreeMap::new(),
            used: BTreeSet::new(),
            lost: BTreeMap::new(),
            lost_order: VecDeque::new(),
            next: 1,
            stats: SessionsStats::default(),
        };
        let life = RandomState::new().hash_one("a life of a table");
        let (measure, secrets) = (Box::new(measure), RandomState::new());
        Self { options, measure, life, secrets, table: Mutex::new(table) }
    }

    /// Opens a session. A state that is not taken is dropped.
    ///
    /// # Errors
    /// [`SessionsFull`]: with [`NoRoom::Evict`] only when the state alone exceeds the limit.
    pub fn open(&self, state: T) -> Result<SessionId, SessionsFull> {
        let now = Instant::now();
        let bytes = (self.measure)(&state);
        let mut table = self.lock(now);
        let Table { open, stats, .. } = &*table;
        let is_full = open.len() >= self.options.sessions_max
            || stats.bytes.saturating_add(bytes) > self.options.bytes_max;
        let can_evict = self.options.when_full == NoRoom::Evict
            && bytes <= self.options.bytes_max
            && self.options.sessions_max > 0;
        if is_full && !can_evict {
            let full = SessionsFull { sessions: open.len(), bytes: stats.bytes };
            table.stats.refused += 1;
            return Err(full);
        }
        let number = table.next;
        table.next += 1;
        table.open.insert(number, Session { state, bytes, used: now });
        table.used.insert((now, number));
        table.stats.bytes += bytes;
        table.stats.opened += 1;
        let evicted = table.make_room(number, &self.options);
        table.gone.extend(evicted);
        Ok(SessionId { life: self.life, number, secret: self.secrets.hash_one(number) })
    }

    /// Uses a session and renews its lease. Others wait meanwhile: do not block in `with`.
    ///
    /// # Errors
    /// [`SessionLost`]; `with` has not run, unless it made the state so large that the session is
    /// [evicted](SessionLost::Evicted) for it.
    pub fn with<R>(&self, id: SessionId, with: impl FnOnce(&mut T) -> R) -> Result<R, SessionLost> {
        let now = Instant::now();
        let mut table = self.lock(now);
        let number = self.find(&mut table, id)?;
        let Table { open, used, stats, .. } = &mut *table;
        let Some(session) = open.get_mut(&number) else { return Err(SessionLost::Forgotten) };
        used.remove(&(session.used, number));
        session.used = now;
        used.insert((now, number));
        let result = with(&mut session.state);
        let bytes = (self.measure)(&session.state);
        stats.bytes = stats.bytes - session.bytes + bytes;
        session.bytes = bytes;
        let evicted = table.make_room(number, &self.options);
        table.gone.extend(evicted);
        if table.open.contains_key(&number) { Ok(result) } else { Err(SessionLost::Evicted) }
    }

    /// Renews a lease and does nothing else.
    ///
    /// # Errors
    /// [`SessionLost`].
    pub fn renew(&self, id: SessionId) -> Result<(), SessionLost> {
        self.with(id, |_| ())
    }

    /// Closes a session and gives its state.
    ///
    /// # Errors
    /// [`SessionLost`].
    pub fn close(&self, id: SessionId) -> Result<T, SessionLost> {
        let mut table = self.lock(Instant::now());
        let number = self.find(&mut table, id)?;
        let state = table.remove(number, SessionLost::Closed, &self.options).ok_or(SessionLost::Forgotten)?;
        table.stats.closed += 1;
        Ok(state)
    }

    /// Totals and the present state.
    pub fn stats(&self) -> SessionsStats {
        let table = self.lock(Instant::now());
        SessionsStats { open: table.open.len(), ..table.stats }
    }

    /// The number of an open session, or why there is none.
    fn find(&self, table: &mut Table<T>, id: SessionId) -> Result<u64, SessionLost> {
        let lost = if id.life != self.life {
            SessionLost::ServerRestarted
        } else if id.secret != self.secrets.hash_one(id.number) {
            SessionLost::Unknown
        } else if table.open.contains_key(&id.number) {
            return Ok(id.number);
        } else {
            table.lost.get(&id.number).copied().unwrap_or(SessionLost::Forgotten)
        };
        table.stats.missed += 1;
        Err(lost)
    }

    /// The table, without what has run out.
    fn lock(&self, now: Instant) -> Held<'_, T> {
        // A use that panicked has changed at most the state of its own session.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = table.expire(now, &self.options);
        Held { table, gone }
    }
}

impl<T> Table<T> {
    /// Takes out what has run out.
    fn expire(&mut self, now: Instant, options: &SessionsOptions) -> Vec<T> {
        let mut gone = Vec::new();
        while let Some((used, number)) = self.used.first().copied()
            && now.saturating_duration_since(used) >= options.lease
        {
            gone.extend(self.remove(number, SessionLost::Expired { lease: options.lease }, options));
            self.stats.expired += 1;
        }
        gone
    }

    /// Evicts until the limits hold, the one that is `in_use` last.
    fn make_room(&mut self, in_use: u64, options: &SessionsOptions) -> Vec<T> {
        let mut gone = Vec::new();
        while self.open.len() > options.sessions_max || self.stats.bytes > options.bytes_max {
            let oldest = self.used.iter().map(|(_, number)| *number).find(|number| *number != in_use);
            let is_its_own_fault = self.open.get(&in_use).is_some_and(|kept| kept.bytes > options.bytes_max);
            let victim = match oldest {
                Some(oldest) if options.when_full == NoRoom::Evict && !is_its_own_fault => oldest,
                _ => in_use,
            };
            let Some(state) = self.remove(victim, SessionLost::Evicted, options) else { break };
            gone.push(state);
            self.stats.evicted += 1;
        }
        gone
    }

    fn remove(&mut self, number: u64, why: SessionLost, options: &SessionsOptions) -> Option<T> {
        let session = self.open.remove(&number)?;
        self.used.remove(&(session.used, number));
        self.stats.bytes -= session.bytes;
        self.lost.insert(number, why);
        self.lost_order.push_back(number);
        if self.lost_order.len() > options.sessions_max.saturating_mul(LOST_PER_SESSION)
            && let Some(oldest) = self.lost_order.pop_front()
        {
            self.lost.remove(&oldest);
        }
        Some(session.state)
    }
}

impl<T> fmt::Debug for Sessions<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Lost sessions whose reason is kept, for each one that may be open: some 40 bytes each.
const LOST_PER_SESSION: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn options(sessions_max: usize, bytes_max: usize, when_full: NoRoom) -> SessionsOptions {
        SessionsOptions { lease: Duration::from_secs(10), sessions_max, bytes_max, when_full }
    }

    fn texts(options: SessionsOptions) -> Sessions<String> {
        Sessions::new(options, String::len)
    }

    #[tokio::test(start_paused = true)]
    async fn p03_a_session_lives_as_long_as_it_is_used_and_its_lease_after() {
        let sessions = texts(SessionsOptions { lease: Duration::from_secs(10), ..Default::default() });
        let used = sessions.open("used".into()).unwrap();
        let left = sessions.open("left".into()).unwrap();
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(9)).await;
            sessions.renew(used).unwrap();
        }
        assert_eq!(sessions.renew(left), Err(SessionLost::Expired { lease: Duration::from_secs(10) }));
        assert_eq!(sessions.close(used).unwrap(), "used");
        assert_eq!(sessions.renew(used), Err(SessionLost::Closed));
        let SessionsStats { open, bytes, opened, closed, expired, missed, .. } = sessions.stats();
        assert_eq!((open, bytes, opened, closed, expired, missed), (0, 0, 2, 1, 1, 2));
    }

    #[test]
    fn p03_without_room_the_longest_unused_goes_or_the_newcomer_is_refused() {
        let sessions = texts(options(2, 100, NoRoom::Evict));
        let [one, two] = ["one", "two"].map(|text| sessions.open(text.into()).unwrap());
        sessions.renew(one).unwrap();
        let three = sessions.open("three".into()).unwrap();
        assert_eq!(sessions.renew(two), Err(SessionLost::Evicted));
        // Growing counts, too.
        sessions.with(one, |text| *text = "x".repeat(98)).unwrap();
        assert_eq!(sessions.renew(three), Err(SessionLost::Evicted));
        assert_eq!(sessions.with(one, |text| *text = "x".repeat(101)), Err(SessionLost::Evicted));
        assert!(sessions.open("x".repeat(101)).is_err());
        let SessionsStats { open, bytes, evicted, refused, .. } = sessions.stats();
        assert_eq!((open, bytes, evicted, refused), (0, 0, 3, 1));

        let sessions = texts(options(2, 100, NoRoom::Refuse));
        let [one, two] = ["one", "two"].map(|text| sessions.open(text.into()).unwrap());
        assert_eq!(sessions.open("three".into()), Err(SessionsFull { sessions: 2, bytes: 6 }));
        assert_eq!(sessions.with(one, |text| *text = "x".repeat(98)), Err(SessionLost::Evicted));
        assert_eq!(sessions.with(two, |text| text.clone()).unwrap(), "two");
    }

    #[test]
    fn p03_ids_of_another_life_and_invented_ones_are_told_apart_and_reasons_are_bounded() {
        let (before, after) = (texts(SessionsOptions::default()), texts(options(2, 100, NoRoom::Evict)));
        let old = before.open("state".into()).unwrap();
        assert_eq!(after.renew(old), Err(SessionLost::ServerRestarted));
        let first = after.open("mine".into()).unwrap();
        let invented = SessionId { secret: first.secret ^ 1, ..first };
        assert_eq!(after.renew(invented), Err(SessionLost::Unknown));
        assert_eq!(after.renew(SessionId { number: 77, ..first }), Err(SessionLost::Unknown));
        for _ in 0..10 {
            after.open("other".into()).unwrap();
        }
        assert_eq!(after.renew(first), Err(SessionLost::Forgotten));
        assert_eq!(after.lock(Instant::now()).lost.len(), 2 * LOST_PER_SESSION);
    }

    #[test]
    fn p03_a_state_that_looks_at_the_table_when_it_is_dropped_holds_nobody_up() {
        struct Looks(std::sync::Weak<Sessions<Looks>>);
        impl Drop for Looks {
            fn drop(&mut self) {
                if let Some(sessions) = self.0.upgrade() {
                    assert!(sessions.stats().open <= 1);
                }
            }
        }
        let sessions = std::sync::Arc::new(Sessions::new(options(1, 100, NoRoom::Evict), |_: &Looks| 1));
        let [first, second] =
            [(); 2].map(|()| sessions.open(Looks(std::sync::Arc::downgrade(&sessions))).unwrap());
        assert_eq!(sessions.renew(first), Err(SessionLost::Evicted));
        assert!(sessions.close(second).is_ok());
    }
}
