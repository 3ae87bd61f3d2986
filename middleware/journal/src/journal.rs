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

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use bytes::Bytes;

use crate::config::Config;
use crate::error::{AppendError, Failure, OpenError, ReadError};
use crate::format::Position;
use crate::log::{
    Appended, Catalog, Log, Reader, Record, Recovered, Snapshot, appended_bytes, load_snapshot,
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
    /// Appends that became durable.
    pub appends: u64,
    /// Records that became durable.
    pub records: u64,
    /// Payload bytes that became durable.
    pub payload_bytes: u64,
    /// Batches: each is one sync.
    pub batches: u64,
    /// Bytes accepted and not yet durable.
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
        let shared = Arc::new(Shared {
            catalog: log.catalog(),
            segment_bytes: config.segment_bytes,
            append_bytes_max: config.append_bytes_max(),
            waiting_bytes_max: config.waiting_bytes_max,
            work: Condvar::new(),
            state: Mutex::new(State {
                line: VecDeque::new(),
                outside: VecDeque::new(),
                withdrawn: 0,
                chores: VecDeque::new(),
                closers: Vec::new(),
                next: log.next(),
                storage: Some(log.storage()),
                is_closing: false,
                is_idle: false,
                refusal: None,
                stats: JournalStats::default(),
            }),
        });
        let committer = Committer {
            shared: shared.clone(),
            log: Some(log),
            batch: Vec::new(),
            batch_bytes_max: config.batch_bytes_max,
        };
        thread::Builder::new().name("quorate-journal".to_owned()).spawn(move || committer.run()).map_err(
            |source| OpenError::Io { operation: "start", file: "the committer thread".to_owned(), source },
        )?;
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
        let shared = self.handle.shared.clone();
        // Entered on the first poll, so that a future that is never polled writes nothing.
        async move {
            let ticket = Ticket::new();
            shared.enter(records, Completion::Ticket(ticket.clone()), true)?;
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
        let ticket = Ticket::new();
        let first = self.handle.shared.enter(records, Completion::Ticket(ticket.clone()), false)?;
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
        self.handle.shared.enter(records, Completion::Then(Box::new(then)), true).map(drop)
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
        self.handle.shared.append_bytes_max
    }

    /// The first position that is still in the log.
    pub fn first(&self) -> Position {
        self.handle.shared.catalog.lock().first()
    }

    /// Reads the durable records from `from` on, up to what is durable now. The iterator blocks on the disk.
    ///
    /// While a reader lives, the directory stays locked.
    pub fn read(&self, from: Position) -> Reader {
        let shared = &self.handle.shared;
        Reader::new(shared.lock().storage.clone(), shared.catalog.clone(), from)
    }

    /// Drops whole segments whose records all lie before `position`; returns the first position still there.
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
        let chore =
            Chore::Snapshot { name: name.to_owned(), position, blob: blob.into(), ticket: ticket.clone() };
        self.handle.shared.chore(chore)?;
        Waiter { ticket, leaves: None }.await
    }

    /// The snapshot called `name`; `None` when there is none. Blocks on the disk.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it is damaged; [`ReadError::Closed`].
    pub fn load_snapshot(&self, name: &str) -> Result<Option<Snapshot>, ReadError> {
        let shared = &self.handle.shared;
        let storage = shared.lock().storage.clone().ok_or(ReadError::Closed)?;
        load_snapshot(&*storage, name, self.durable())
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
        let mut stats = shared.lock().stats.clone();
        stats.segments = shared.catalog.lock().segments.len();
        stats.segment_bytes = shared.segment_bytes;
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

struct Shared {
    catalog: Arc<Catalog>,
    segment_bytes: u64,
    append_bytes_max: u64,
    waiting_bytes_max: usize,
    /// Signals the committer that there is something to do.
    work: Condvar,
    state: Mutex<State>,
}

struct State {
    /// Accepted: they have positions and will be written.
    line: VecDeque<Waiting>,
    /// Waiting for room in the line. More than half of them belong to live futures.
    outside: VecDeque<Waiting>,
    /// How many may have been withdrawn since `outside` was looked through.
    withdrawn: usize,
    /// Each with the position that must have been written before it is done.
    chores: VecDeque<(Position, Chore)>,
    closers: Vec<Arc<Ticket<Closed>>>,
    /// The position of the next record that is accepted.
    next: Position,
    /// Given up when the journal has closed.
    storage: Option<Arc<dyn Storage>>,
    is_closing: bool,
    /// The committer waits for a signal.
    is_idle: bool,
    /// What every append gets from now on.
    refusal: Option<AppendError>,
    stats: JournalStats,
}

struct Waiting {
    records: Vec<Record>,
    bytes: usize,
    completion: Completion,
}

/// Who hears of an append's outcome.
enum Completion {
    Ticket(Arc<Ticket<Result<Appended, AppendError>>>),
    Then(Box<dyn FnOnce(Result<Appended, AppendError>) + Send>),
}

impl Completion {
    fn complete(self, outcome: Result<Appended, AppendError>) {
        match self {
            Self::Ticket(ticket) => ticket.complete(outcome),
            Self::Then(then) => then(outcome),
        }
    }

    fn is_withdrawn(&self) -> bool {
        match self {
            Self::Ticket(ticket) => ticket.is_withdrawn(),
            Self::Then(_) => false,
        }
    }
}

enum Chore {
    Truncate { position: Position, ticket: Option<Arc<Ticket<Result<Position, AppendError>>>> },
    Snapshot { name: String, position: Position, blob: Bytes, ticket: Arc<Ticket<Result<(), AppendError>>> },
}

impl Chore {
    fn refuse(self, error: AppendError) {
        match self {
            Self::Truncate { ticket: Some(ticket), .. } => ticket.complete(Err(error)),
            Self::Truncate { ticket: None, .. } => {}
            Self::Snapshot { ticket, .. } => ticket.complete(Err(error)),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an append in, or lets it wait outside; returns its position if it was taken in.
    fn enter(
        &self,
        records: Vec<Record>,
        completion: Completion,
        may_wait: bool,
    ) -> Result<Position, AppendError> {
        let size = appended_bytes(&records);
        if size > self.append_bytes_max {
            return Err(AppendError::TooLarge { size, limit: self.append_bytes_max });
        }
        let waiting = Waiting { records, bytes: size as usize, completion };
        let mut state = self.lock();
        state.check_open()?;
        let first = state.next;
        if state.outside.is_empty() && state.has_room(waiting.bytes, self.waiting_bytes_max) {
            state.accept(waiting);
        } else if may_wait {
            state.outside.push_back(waiting);
        } else {
            let waiting = state.stats.waiting_bytes;
            return Err(AppendError::Busy { waiting, limit: self.waiting_bytes_max });
        }
        self.signal(state);
        Ok(first)
    }

    /// One of those that wait for room may have gone. When the disk hangs they must not pile up behind those that stay;
    /// looking only when half of them may be gone keeps the cost of each going constant.
    fn forget_withdrawn(&self) {
        let mut state = self.lock();
        state.withdrawn += 1;
        if 2 * state.withdrawn < state.outside.len() {
            return;
        }
        state.withdrawn = 0;
        let (gone, stay) = std::mem::take(&mut state.outside)
            .into_iter()
            .partition::<VecDeque<_>, _>(|waiting| waiting.completion.is_withdrawn());
        state.outside = stay;
        // The records may belong to somebody: not dropped under the lock.
        drop(state);
        drop(gone);
    }

    fn chore(&self, chore: Chore) -> Result<(), AppendError> {
        let mut state = self.lock();
        state.check_open()?;
        let after = state.next;
        state.chores.push_back((after, chore));
        self.signal(state);
        Ok(())
    }

    fn close(&self, ticket: Option<Arc<Ticket<Closed>>>) {
        let mut state = self.lock();
        if state.storage.is_none() {
            drop(state);
            if let Some(ticket) = ticket {
                ticket.complete(self.report());
            }
            return;
        }
        state.is_closing = true;
        state.closers.extend(ticket);
        self.signal(state);
    }

    fn report(&self) -> Closed {
        let failure = match &self.lock().refusal {
            Some(AppendError::Poisoned(failure)) => Some(failure.clone()),
            _ => None,
        };
        Closed { durable: self.catalog.lock().durable, failure }
    }

    fn signal(&self, mut state: MutexGuard<'_, State>) {
        let was_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if was_idle {
            self.work.notify_one();
        }
    }
}

impl State {
    fn check_open(&self) -> Result<(), AppendError> {
        match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None if self.is_closing => Err(AppendError::Closed),
            None => Ok(()),
        }
    }

    fn has_room(&self, bytes: usize, limit: usize) -> bool {
        self.stats.waiting_bytes == 0 || self.stats.waiting_bytes + bytes <= limit
    }

    fn accept(&mut self, waiting: Waiting) {
        self.next = self.next.plus(waiting.records.len() as u64);
        self.stats.waiting_bytes += waiting.bytes;
        self.line.push_back(waiting);
    }

    /// Lets in what waits outside, as far as there is room.
    fn admit(&mut self, limit: usize) {
        while let Some(waiting) = self.outside.front() {
            if waiting.completion.is_withdrawn() {
                self.outside.pop_front();
            } else if self.has_room(waiting.bytes, limit) {
                let Some(waiting) = self.outside.pop_front() else { break };
                self.accept(waiting);
            } else {
                break;
            }
        }
    }
}

/// The one thread that owns the log.
struct Committer {
    shared: Arc<Shared>,
    /// Taken out at the end.
    log: Option<Log>,
    batch: Vec<Waiting>,
    batch_bytes_max: usize,
}

impl Committer {
    fn run(mut self) {
        let Some(mut log) = self.log.take() else { return };
        while self.wait() {
            self.commit(&mut log);
            for chore in self.due_chores(log.next()) {
                match chore {
                    Chore::Truncate { position, ticket } => {
                        let outcome = log.truncate_before(position);
                        if let Some(ticket) = ticket {
                            ticket.complete(outcome);
                        }
                    }
                    Chore::Snapshot { name, position, blob, ticket } => {
                        ticket.complete(log.save_snapshot(&name, position, &blob));
                    }
                }
            }
            if let Err(failure) = log.check_failure() {
                self.refuse(failure);
            }
        }
        // The directory must be unlocked before anyone hears that the journal is closed.
        drop(log);
        self.finish(AppendError::Closed);
    }

    /// Waits for work and takes a batch; there may be none, and only chores. False when closed and all is done.
    fn wait(&mut self) -> bool {
        let mut state = self.shared.lock();
        loop {
            state.admit(self.shared.waiting_bytes_max);
            if !state.line.is_empty() || !state.chores.is_empty() {
                break;
            }
            if state.is_closing && state.outside.is_empty() {
                return false;
            }
            state.is_idle = true;
            state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        while let Some(waiting) = state.line.front() {
            bytes += waiting.bytes;
            if bytes > self.batch_bytes_max && !self.batch.is_empty() {
                break;
            }
            self.batch.extend(state.line.pop_front());
        }
        true
    }

    /// The chores that overtake no append that was there before them.
    fn due_chores(&self, written: Position) -> Vec<Chore> {
        let mut state = self.shared.lock();
        let State { line, chores, .. } = &mut *state;
        let mut due = Vec::new();
        // With an empty line, what a chore waits for was written or has failed.
        while let Some((_, chore)) = chores.pop_front_if(|(after, _)| line.is_empty() || *after <= written) {
            due.push(chore);
        }
        due
    }

    fn commit(&mut self, log: &mut Log) {
        let mut failure = None;
        let mut outcomes = Vec::with_capacity(self.batch.len());
        for waiting in &self.batch {
            // After a failure the positions that later appends were promised are void.
            let outcome = match &failure {
                None => log.append(&waiting.records),
                Some(error) => Err(AppendError::clone(error)),
            };
            if let (None, Err(error)) = (&failure, &outcome) {
                failure = Some(error.clone());
            }
            outcomes.push(outcome);
        }
        if let Err(error) = log.commit() {
            outcomes.fill_with(|| Err(error.clone()));
            failure = Some(error);
        }

        let mut void = VecDeque::new();
        {
            let mut state = self.shared.lock();
            for (waiting, outcome) in self.batch.iter().zip(&outcomes) {
                state.stats.waiting_bytes -= waiting.bytes;
                if outcome.is_ok() {
                    state.stats.appends += 1;
                    state.stats.records += waiting.records.len() as u64;
                    state.stats.payload_bytes +=
                        waiting.records.iter().map(|record| record.payload.len() as u64).sum::<u64>();
                }
            }
            state.stats.batches = log.syncs();
            if failure.is_some() {
                void = std::mem::take(&mut state.line);
                state.stats.waiting_bytes = 0;
                state.next = log.next();
            }
            state.admit(self.shared.waiting_bytes_max);
        }
        for (waiting, outcome) in self.batch.drain(..).zip(outcomes) {
            waiting.completion.complete(outcome);
        }
        if let Some(error) = failure {
            for waiting in void {
                waiting.completion.complete(Err(error.clone()));
            }
        }
    }

    /// Fails everything that waits, and all that comes.
    fn refuse(&mut self, error: AppendError) {
        let (line, outside, chores) = {
            let mut state = self.shared.lock();
            state.refusal.get_or_insert_with(|| error.clone());
            state.stats.waiting_bytes = 0;
            let State { line, outside, chores, .. } = &mut *state;
            (std::mem::take(line), std::mem::take(outside), std::mem::take(chores))
        };
        for waiting in self.batch.drain(..).chain(line).chain(outside) {
            waiting.completion.complete(Err(error.clone()));
        }
        for (_, chore) in chores {
            chore.refuse(error.clone());
        }
    }

    /// The end: nobody is left waiting.
    fn finish(&mut self, error: AppendError) {
        self.refuse(error);
        let closers = {
            let mut state = self.shared.lock();
            state.storage = None;
            std::mem::take(&mut state.closers)
        };
        let report = self.shared.report();
        for closer in closers {
            closer.complete(report.clone());
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // A panic in here is a bug, and must not leave anyone waiting for ever.
        if thread::panicking() {
            let source = io::Error::other("the committer thread panicked");
            self.finish(AppendError::Poisoned(Failure::new("run", "the committer".to_owned(), source)));
        }
    }
}

/// One outcome for one waiter.
struct Ticket<T>(Mutex<TicketState<T>>);

struct TicketState<T> {
    outcome: Option<T>,
    waker: Option<Waker>,
    is_withdrawn: bool,
}

impl<T> Ticket<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(TicketState { outcome: None, waker: None, is_withdrawn: false })))
    }

    fn lock(&self) -> MutexGuard<'_, TicketState<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, outcome: T) {
        let waker = {
            let mut state = self.lock();
            state.outcome = Some(outcome);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.lock();
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    fn is_withdrawn(&self) -> bool {
        self.lock().is_withdrawn
    }
}

/// Waits for a ticket; dropped before its outcome, it withdraws it as far as that is still possible.
struct Waiter<T> {
    ticket: Arc<Ticket<T>>,
    /// Where it may still wait for room, and has to be taken out.
    leaves: Option<Arc<Shared>>,
}

impl<T> Future for Waiter<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let outcome = self.ticket.poll(cx);
        if outcome.is_ready() {
            self.leaves = None;
        }
        outcome
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        self.ticket.lock().is_withdrawn = true;
        if let Some(shared) = self.leaves.take() {
            shared.forget_withdrawn();
        }
    }
}

/// Runs a future on the calling thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(outcome) => return outcome,
            // A stray wake-up only costs another poll.
            Poll::Pending => thread::park(),
        }
    }
}
