//! The replicated state of a directory: who registered what, under which lease.
//!
//! Guarantee   deterministic: the same commands in the same order give the same book. A change that is repeated, also
//!             late and after others of its session, does nothing a second time. Every refused command leaves the book
//!             as it was.
//! Method      a session is the lease of one handle; changes within it are numbered and a number that is not larger
//!             than the last one is old. No clock: a replica that finds a lease unused long enough *proposes* its end,
//!             naming the renewals it had seen; a renewal that came first makes the proposal void.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::entry::{Entry, Kept, Query};
use super::error::NameError;
use crate::codec::{Codec, Postcard, decode_frame};
use crate::replication::{RestoreError, StateMachine};

/// Entries of a directory. With entries of the largest size 64 MiB, which a joining replica gets in one piece.
pub(super) const ENTRIES_MAX: usize = 16_384;

/// Entries of one session.
pub(super) const SESSION_ENTRIES_MAX: usize = 1_024;

/// Sessions of a directory.
pub(super) const SESSIONS_MAX: usize = 16_384;

/// The shortest lease: some heartbeats long, so that a pause of the scheduler costs nobody its name.
pub(super) const LEASE_MIN: Duration = Duration::from_secs(1);

/// The longest lease.
pub(super) const LEASE_MAX: Duration = Duration::from_secs(3600);

/// Changes that those who wait can catch up with one by one; who is further behind looks at everything once. Of entries
/// of the largest size 1 MiB.
const LATEST_MAX: usize = 256;

/// Registrations that one answer carries; 1 MiB when they are of the largest size.
pub(super) const FOUND_MAX: usize = 256;

/// The lease of one handle of one life of a node. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct SessionId {
    pub(super) node: u64,
    pub(super) incarnation: u64,
    pub(super) number: u32,
}

/// What an owner may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    /// Begins a session, or renews it.
    Open { lease: Duration },
    /// Renews the lease.
    Renew,
    /// Registers the entry `number`, or replaces it.
    Put { sequence: u64, number: u64, name: String, entry: Entry },
    /// Takes the entry `number` out.
    Remove { sequence: u64, number: u64 },
    /// Ends the session with all that is registered in it.
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command {
    Change(SessionId, Change),
    /// A replica saw no renewal after this many for as long as the lease is.
    Expire {
        session: SessionId,
        renewals: u64,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) lease: Duration,
    pub(super) renewals: u64,
    /// The number of the last change.
    last: u64,
    entries: BTreeMap<u64, Kept>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Book {
    /// Drawn by the founder. Versions of books of different lives cannot be compared.
    pub(super) life: u64,
    /// Changes so far.
    pub(super) version: u64,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    /// Where the entries of a name are; follows from `sessions`.
    #[serde(skip)]
    names: BTreeMap<String, BTreeSet<(SessionId, u64)>>,
    /// How many entries there are; follows from `sessions`.
    #[serde(skip)]
    entries: usize,
    /// The latest changes, for those who wait. No part of the state.
    #[serde(skip)]
    latest: Latest,
    /// Tells the questions that wait on this replica of every change. No part of the state.
    #[serde(skip)]
    changed: watch::Sender<u64>,
}

/// Which entries were touched last, so that a question that waits need not look at all of them after every change.
#[derive(Debug, Default)]
struct Latest {
    /// Entries before or after a change, each with the version that the change made.
    touched: VecDeque<(u64, Kept)>,
    /// Every later version is among them.
    after: u64,
    /// Grows when the book is replaced by another one: nothing is known of what lies between.
    books: u64,
}

/// A state of the book that somebody has looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looked {
    books: u64,
    version: u64,
}

impl Book {
    pub(super) fn new(life: u64) -> Self {
        Self { life, ..Self::default() }
    }

    /// Follows the version.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn len(&self) -> usize {
        self.entries
    }

    /// Differs, with the certainty of 64 bits, whenever the registrations that the query accepts differ, also between
    /// directories of different lives, whose versions are the same numbers.
    pub(super) fn digest(&self, query: &Query) -> u64 {
        self.accepted(query)
            .fold(DIGEST_START, |digest, kept| (digest ^ kept.version ^ self.life).wrapping_mul(DIGEST_PRIME))
    }

    /// What the query accepts, by name; the first [`FOUND_MAX`] of it.
    pub(super) fn found(&self, query: &Query) -> Vec<Kept> {
        self.accepted(query).take(FOUND_MAX).cloned().collect()
    }

    /// The present state, to ask later what [has changed](Self::may_differ) since.
    pub(super) fn looked(&self) -> Looked {
        Looked { books: self.latest.books, version: self.version }
    }

    /// False when no change since then concerns what the query finds.
    pub(super) fn may_differ(&self, since: Looked, query: &Query) -> bool {
        let is_known = since.books == self.latest.books && since.version >= self.latest.after;
        let newer = self.latest.touched.iter().rev().take_while(|(version, _)| *version > since.version);
        !is_known || newer.map(|(_, kept)| kept).any(|kept| query.finds(kept))
    }

    /// Under which sessions, each after how many renewals, the query finds something.
    pub(super) fn owners(&self, query: &Query) -> BTreeSet<(SessionId, u64)> {
        let finds = |session: &Session| session.entries.values().any(|kept| query.finds(kept));
        let owners = self.sessions.iter().filter(|(_, session)| finds(session));
        owners.map(|(id, session)| (*id, session.renewals)).collect()
    }

    fn accepted<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = &'a Kept> {
        let named = query.name.as_ref().map(|name| self.names.get(name));
        let all = named.is_none().then(|| self.names.values());
        let places = named.flatten().into_iter().chain(all.into_iter().flatten()).flatten();
        places
            .filter_map(|(session, number)| self.sessions.get(session)?.entries.get(number))
            .filter(|kept| query.accepts(&kept.entry))
    }

    fn change(&mut self, id: SessionId, change: Change) -> Result<u64, NameError> {
        if let Change::Open { lease } = change {
            if !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
                return Err(NameError::Lease { lease, min: LEASE_MIN, max: LEASE_MAX });
            }
            if !self.sessions.contains_key(&id) && self.sessions.len() >= SESSIONS_MAX {
                return Err(NameError::TooManySessions);
            }
            let new = || Session { lease, renewals: 0, last: 0, entries: BTreeMap::new() };
            self.sessions.entry(id).or_insert_with(new).renewals += 1;
            return Ok(self.version);
        }
        let session = self.sessions.get_mut(&id).ok_or(NameError::SessionEnded)?;
        match change {
            Change::Open { .. } | Change::Renew => {}
            Change::Put { sequence, number, name, entry } => {
                entry.check(&name)?;
                if sequence > session.last {
                    let is_new = !session.entries.contains_key(&number);
                    if is_new && session.entries.len() >= SESSION_ENTRIES_MAX {
                        return Err(NameError::TooManyOfOne);
                    }
                    if is_new && self.entries >= ENTRIES_MAX {
                        return Err(NameError::TooManyEntries);
                    }
                    session.last = sequence;
                    self.version += 1;
                    if let Some(old) = session.entries.remove(&number) {
                        self.entries -= 1;
                        forget(&mut self.names, &old.name, (id, number));
                        self.latest.note(self.version, old);
                    }
                    self.entries += 1;
                    let kept = Kept { name: name.clone(), entry, version: self.version };
                    self.latest.note(self.version, kept.clone());
                    session.entries.insert(number, kept);
                    self.names.entry(name).or_default().insert((id, number));
                }
                session.renewals += 1;
                // Of a repetition too it is the version of the entry: the owner takes it for its fencing token, and one
                // that others' changes have made larger would pass for a later registration.
                return Ok(session.entries.get(&number).map_or(self.version, |kept| kept.version));
            }
            Change::Remove { sequence, number } => {
                if sequence > session.last {
                    session.last = sequence;
                    if let Some(old) = session.entries.remove(&number) {
                        self.version += 1;
                        self.entries -= 1;
                        forget(&mut self.names, &old.name, (id, number));
                        self.latest.note(self.version, old);
                    }
                }
            }
            Change::Close => {
                self.end(id);
                return Ok(self.version);
            }
        }
        session.renewals += 1;
        Ok(self.version)
    }

    fn end(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        for (number, kept) in session.entries {
            self.version += 1;
            self.entries -= 1;
            forget(&mut self.names, &kept.name, (id, number));
            self.latest.note(self.version, kept);
        }
    }
}

impl Latest {
    fn note(&mut self, version: u64, kept: Kept) {
        if self.touched.len() >= LATEST_MAX
            && let Some((oldest, _)) = self.touched.pop_front()
        {
            self.after = oldest;
        }
        self.touched.push_back((version, kept));
    }
}

fn forget(names: &mut BTreeMap<String, BTreeSet<(SessionId, u64)>>, name: &str, place: (SessionId, u64)) {
    if let Some(places) = names.get_mut(name) {
        places.remove(&place);
        if places.is_empty() {
            names.remove(name);
        }
    }
}

impl StateMachine for Book {
    type Command = Command;
    type Response = Result<u64, NameError>;

    fn apply(&mut self, command: Command) -> Self::Response {
        let before = self.version;
        let response = match command {
            Command::Change(id, change) => self.change(id, change),
            Command::Expire { session, renewals } => {
                if self.sessions.get(&session).is_some_and(|kept| kept.renewals == renewals) {
                    self.end(session);
                }
                Ok(self.version)
            }
        };
        if self.version != before {
            self.changed.send_replace(self.version);
        }
        response
    }

    fn snapshot(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(SNAPSHOT_VERSION);
        // Strings, numbers and maps: there is nothing that postcard could refuse. A joiner refuses what is cut off.
        if let Err(error) = Postcard::encode(self, &mut out) {
            tracing::error!(%error, "the directory has no encoding");
        }
        out.freeze()
    }

    fn restore(&mut self, mut snapshot: Bytes) -> Result<(), RestoreError> {
        if snapshot.first() != Some(&SNAPSHOT_VERSION) {
            return Err(RestoreError("not a directory of this version".into()));
        }
        let book: Self = decode_frame::<Postcard, _>(&snapshot.split_off(1))
            .map_err(|error| RestoreError(error.to_string()))?;
        let changed = std::mem::take(&mut self.changed);
        let books = self.latest.books + 1;
        let latest = Latest { touched: VecDeque::new(), after: book.version, books };
        *self = Self { changed, latest, ..book };
        for (id, session) in &self.sessions {
            self.entries += session.entries.len();
            for (number, kept) in &session.entries {
                self.names.entry(kept.name.clone()).or_default().insert((*id, *number));
            }
        }
        self.changed.send_replace(self.version);
        Ok(())
    }
}

const SNAPSHOT_VERSION: u8 = 1;

/// FNV-1a over words: where it starts, and its prime.
pub(super) const DIGEST_START: u64 = 0xcbf2_9ce4_8422_2325;
const DIGEST_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests;
