//! The async face of a log: many writers, one committer thread, one sync for all that wait.
//!
//! Guarantee   an append that returned is durable. Appends are in the log in the order in which they were first
//!             polled (or submitted). Each waiter is woken once, by its own waker: no waiter wakes another.
//! Method      while a sync runs, what arrives forms the next batch. The running sync is the only wait, so a lone
//!             writer waits for nothing else and a crowd shares.
//! Runtime     any, or none: plain wakers and one named thread (`quorate-journal`). [`Journal::read`] and
//!             [`Journal::load_snapshot`] block on the disk, as does every method with `blocking` in its name.
//! Limits      [`Config::waiting_bytes_max`] bytes are accepted and not yet durable; further appends wait outside,
//!             each holding its own records.

mod committer;
mod line;
mod ticket;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use self::committer::Committer;
use self::line::{Chore, Completion, Shared};
#[cfg(test)]
pub(crate) use self::ticket::block_on as wait_for;
use self::ticket::{Ticket, Waiter, block_on};
use crate::config::Config;
use crate::error::{AppendError, BackupError, Failure, OpenError, ReadError};
use crate::format::Position;
use crate::log::{
    Appended, Backup, Durability, Log, Progress, Reader, Record, Recovered, Snapshot, backup, load_snapshot,
};
use crate::storage::Storage;

/// A handle of a journal; clones are cheap and share it.
///
/// When the last handle is dropped the journal commits what it accepted and ends in the background; use
/// [`close`](Self::close) to wait for that, for instance before the directory is opened again.
#[derive(Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

/// What [`Journal::close`] reports.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Closed {
    /// Everything before this is durable.
    pub durable: Position,
    /// Why the journal had failed before, if it had.
    pub failure: Option<Failure>,
}

/// Totals since the journal was opened, and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalStats {
    /// Appends that were stored, each as safe as it asked for.
    pub appends: u64,
    /// Records that were stored.
    pub records: u64,
    /// Payload bytes that were stored.
    pub payload_bytes: u64,
    /// Batches: each is one sync.
    pub batches: u64,
    /// Bytes accepted and not yet stored.
    pub waiting_bytes: usize,
    /// Segment files.
    pub segments: usize,
    /// Most bytes of a segment file.
    pub segment_bytes: u64,
}

impl Journal {
    /// Opens the log in `storage` and starts its committer thread.
    ///
    /// Blocks on the disk: it reads and checks what is there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(storage: impl Storage, config: Config) -> Result<(Self, Recovered), OpenError> {
        let (log, recovered) = Log::open(storage, config.clone())?;
        let shared = Committer::start(log, &config, recovered.epoch)?;
        Ok((Self { handle: Arc::new(Handle { shared }) }, recovered))
    }

    /// Appends `records` and returns when they are durable. They survive a crash together or not at all.
    ///
    /// Waits for room while [`Config::waiting_bytes_max`] bytes wait for their sync. An append without records is a
    /// barrier: it returns when all accepted before it is durable.
    ///
    /// # Errors
    /// See [`AppendError`]: after [`Poisoned`](AppendError::Poisoned) the outcome is unknown until the journal is
    /// opened again, after all others nothing was written.
    /// # Cancel safety
    /// Dropping the future may leave the records written, all of them; never twice, never in part. Dropped while it
    /// waited for room, nothing is written.
    pub fn append(
        &self,
        records: Vec<Record>,
    ) -> impl Future<Output = Result<Appended, AppendError>> + Send + 'static {
        self.append_as(Durability::Synced, records)
    }

    /// As [`append`](Self::append), but returns as soon as the records are as safe as `durability` says.
    ///
    /// Records of every class lie in one order, and a crash takes none without all behind it. What is only in memory is
    /// written at once, and what is only written is synced with the next append that asks for it, or after 100 ms, or
    /// after [`Config::unsynced_bytes_max`] bytes.
    ///
    /// # Errors
    /// As [`append`](Self::append). A failure that comes after the return shows in later appends, but for a full disk: what was
    /// only in memory is then gone without a word, and others get the position that was told for it.
    /// # Cancel safety
    /// As [`append`](Self::append).
    pub fn append_as(
        &self,
        durability: Durability,
        records: Vec<Record>,
    ) -> impl Future<Output = Result<Appended, AppendError>> + Send + 'static {
        let shared = self.handle.shared.clone();
        // Entered on the first poll, so that a future that is never polled writes nothing.
        async move {
            let ticket = Ticket::new();
            shared.enter(records, durability, Completion::Ticket(ticket.clone()), true)?;
            Waiter { ticket, leaves: Some(shared) }.await
        }
    }

    /// As [`append`](Self::append), blocking the calling thread. Not for async code.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_blocking(&self, records: Vec<Record>) -> Result<Appended, AppendError> {
        block_on(self.append(records))
    }

    /// Accepts `records` now, gives them their positions, and returns what resolves when they are durable.
    ///
    /// For a caller that goes on working while the sync runs. Records submitted later are never durable without
    /// these.
    ///
    /// # Errors
    /// [`AppendError::Busy`] instead of waiting for room; else as [`append`](Self::append).
    /// # Cancel safety
    /// Dropping the [`Pending`] changes nothing: the records are written all the same.
    pub fn submit(&self, records: Vec<Record>) -> Result<Pending, AppendError> {
        self.submit_as(Durability::Synced, records)
    }

    /// As [`submit`](Self::submit), but what is returned resolves as soon as the records are as safe as `durability` says.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    /// # Cancel safety
    /// As [`submit`](Self::submit).
    pub fn submit_as(&self, durability: Durability, records: Vec<Record>) -> Result<Pending, AppendError> {
        let ticket = Ticket::new();
        let completion = Completion::Ticket(ticket.clone());
        let first = self.handle.shared.enter(records, durability, completion, false)?;
        Ok(Pending { ticket, first })
    }

    /// Appends `records` and calls `then` with the outcome, on the committer thread, in the order of the log.
    ///
    /// For state that must follow the log exactly, also when nobody waits any more. `then` must be quick, must not
    /// block and must not panic: every writer waits for it. It never fails for want of room, so the caller bounds how
    /// much it has under way.
    ///
    /// # Errors
    /// As [`append`](Self::append), as far as they are known at once; `then` is dropped uncalled in that case.
    pub fn append_then(
        &self,
        records: Vec<Record>,
        then: impl FnOnce(Result<Appended, AppendError>) + Send + 'static,
    ) -> Result<(), AppendError> {
        self.append_then_as(Durability::Synced, records, then)
    }

    /// As [`append_then`](Self::append_then), but `then` is called as soon as the records are as safe as `durability`
    /// says, and no earlier than written; still in the order of the log, whatever the others asked for.
    ///
    /// # Errors
    /// As [`append_then`](Self::append_then).
    pub fn append_then_as(
        &self,
        durability: Durability,
        records: Vec<Record>,
        then: impl FnOnce(Result<Appended, AppendError>) + Send + 'static,
    ) -> Result<(), AppendError> {
        let durability = durability.max(Durability::Written);
        self.handle.shared.enter(records, durability, Completion::Then(Box::new(then)), true).map(drop)
    }

    /// Returns when everything accepted before is durable.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn sync(&self) -> Result<Position, AppendError> {
        Ok(self.append(Vec::new()).await?.next)
    }

    /// Everything before this position is durable.
    pub fn durable(&self) -> Position {
        self.handle.shared.catalog.lock().durable
    }

    /// Most bytes of one append, each record counted with its overhead; see [`Config::segment_bytes`].
    pub fn append_bytes_max(&self) -> u64 {
        self.handle.shared.config.append_bytes_max()
    }

    /// The first position that is still in the log.
    pub fn first(&self) -> Position {
        self.handle.shared.catalog.lock().first()
    }

    /// Reads the durable records from `from` on, up to what is durable now. The iterator blocks on the disk.
    ///
    /// While a reader lives, the directory stays locked.
    pub fn read(&self, from: Position) -> Reader {
        self.reader(from, Durability::Synced)
    }

    /// As [`read`](Self::read), up to what is written now: the last of it may be gone after a power cut.
    pub fn read_written(&self, from: Position) -> Reader {
        self.reader(from, Durability::Written)
    }

    fn reader(&self, from: Position, durability: Durability) -> Reader {
        let shared = &self.handle.shared;
        Reader::new(shared.storage(), shared.catalog.clone(), from, durability)
    }

    /// Drops whole segments whose records all lie before `position`; returns the first position still there. What was written
    /// before the call is synced before anything is dropped.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`], [`AppendError::Closed`].
    /// # Cancel safety
    /// Dropping the future does not stop the truncation.
    pub async fn truncate_before(&self, position: Position) -> Result<Position, AppendError> {
        let ticket = Ticket::new();
        self.handle.shared.chore(Chore::Truncate { position, ticket: Some(ticket.clone()) })?;
        Waiter { ticket, leaves: None }.await
    }

    /// Begins a [`truncation`](Self::truncate_before) and returns at once; a failure shows in later appends.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`], [`AppendError::Closed`].
    pub fn truncate_soon(&self, position: Position) -> Result<(), AppendError> {
        self.handle.shared.chore(Chore::Truncate { position, ticket: None })
    }

    /// Replaces the snapshot called `name` (1 to 64 of `a-z 0-9 - _`): `blob` stands for all records before
    /// `position`. A crash leaves the old one or the new one. Appends wait meanwhile.
    ///
    /// # Errors
    /// After [`AppendError::SnapshotName`], [`AppendError::SnapshotAhead`] and [`AppendError::DiskFull`] the old
    /// snapshot still stands.
    /// # Cancel safety
    /// Dropping the future does not stop the writing.
    pub async fn save_snapshot(
        &self,
        name: &str,
        position: Position,
        blob: impl Into<Bytes>,
    ) -> Result<(), AppendError> {
        let ticket = Ticket::new();
        let (name, blob) = (name.to_owned(), blob.into());
        let chore = Chore::Snapshot { name, position, blob, ticket: Some(ticket.clone()) };
        self.handle.shared.chore(chore)?;
        Waiter { ticket, leaves: None }.await
    }

    /// As [`save_snapshot`](Self::save_snapshot), blocking the calling thread. Not for async code.
    ///
    /// # Errors
    /// As [`save_snapshot`](Self::save_snapshot).
    pub fn save_snapshot_blocking(
        &self,
        name: &str,
        position: Position,
        blob: impl Into<Bytes>,
    ) -> Result<(), AppendError> {
        block_on(self.save_snapshot(name, position, blob))
    }

    /// Begins to [replace a snapshot](Self::save_snapshot) and returns at once. On a full disk the old one stays; any other
    /// failure shows in later appends.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`], [`AppendError::Closed`].
    pub fn save_snapshot_soon(
        &self,
        name: &str,
        position: Position,
        blob: impl Into<Bytes>,
    ) -> Result<(), AppendError> {
        let (name, blob) = (name.to_owned(), blob.into());
        self.handle.shared.chore(Chore::Snapshot { name, position, blob, ticket: None })
    }

    /// The snapshot called `name`; `None` when there is none. Blocks on the disk.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it is damaged; [`ReadError::Closed`].
    pub fn load_snapshot(&self, name: &str) -> Result<Option<Snapshot>, ReadError> {
        let shared = &self.handle.shared;
        let storage = shared.storage().ok_or(ReadError::Closed)?;
        load_snapshot(&*storage, name, self.durable())
    }

    /// Copies the journal into `target`, which must hold none: all that is durable when this is called, and snapshots.
    /// Appends go on meanwhile, truncation waits. Blocks on both disks, for as long as the copying takes.
    ///
    /// The copy is a journal like any other: opened, it goes on from there.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn backup_blocking(
        &self,
        target: impl Storage,
        progress: impl FnMut(Progress),
    ) -> Result<Backup, BackupError> {
        let shared = &self.handle.shared;
        let storage = shared.storage().ok_or(ReadError::Closed)?;
        backup(&*storage, &shared.catalog, (&shared.config, shared.epoch), &target, progress)
    }

    /// Takes no more appends, commits those that were accepted or wait for room, stops the committer thread and
    /// unlocks the directory (as soon as no [`Reader`] is left). Closing twice is allowed.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn close(&self) -> Closed {
        let ticket = Ticket::new();
        self.handle.shared.close(Some(ticket.clone()));
        Waiter { ticket, leaves: None }.await
    }

    /// As [`close`](Self::close), blocking the calling thread.
    pub fn close_blocking(&self) -> Closed {
        block_on(self.close())
    }

    /// Totals and the present state.
    pub fn stats(&self) -> JournalStats {
        let shared = &self.handle.shared;
        let mut stats = shared.stats();
        stats.segments = shared.catalog.lock().segments();
        stats.segment_bytes = shared.config.segment_bytes;
        stats
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("durable", &self.durable()).finish_non_exhaustive()
    }
}

/// Records that were accepted; resolves when they are durable.
#[must_use = "the records are durable only when this resolved"]
pub struct Pending {
    ticket: Arc<Ticket<Result<Appended, AppendError>>>,
    first: Position,
}

impl Pending {
    /// The position that the first of the records gets if the append succeeds.
    pub fn first(&self) -> Position {
        self.first
    }

    /// Waits for the outcome, blocking the calling thread.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn wait_blocking(self) -> Result<Appended, AppendError> {
        block_on(self)
    }
}

impl Future for Pending {
    type Output = Result<Appended, AppendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.ticket.poll(cx)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("first", &self.first).finish_non_exhaustive()
    }
}

/// The last of these to go closes the journal.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(None);
    }
}
