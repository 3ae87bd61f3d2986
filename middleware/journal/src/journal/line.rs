//! What is handed to the committer: appends and chores, in the order in which they came.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::ticket::Ticket;
use super::{Closed, JournalStats};
use crate::config::Config;
use crate::error::AppendError;
use crate::format::Position;
use crate::log::{Appended, Catalog, Durability, Log, Record, appended_bytes};
use crate::storage::Storage;

pub(super) struct Shared {
    pub(super) catalog: Arc<Catalog>,
    pub(super) config: Config,
    pub(super) epoch: u64,
    /// Signals the committer that there is something to do.
    pub(super) work: Condvar,
    /// Counts the signals, for a committer that looks out instead of sleeping.
    pub(super) signals: AtomicU64,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    /// Accepted: they have positions and will be written.
    pub(super) line: VecDeque<Waiting>,
    /// Waiting for room in the line. More than half of them belong to live futures.
    pub(super) outside: VecDeque<Waiting>,
    /// How many may have been withdrawn since `outside` was looked through.
    pub(super) withdrawn: usize,
    /// Each with the position that must have been written before it is done.
    pub(super) chores: VecDeque<(Position, Chore)>,
    pub(super) closers: Vec<Arc<Ticket<Closed>>>,
    /// Accepted, and nobody asked for more; to be told when the lock is free.
    pub(super) told: Told,
    /// The position of the next record that is accepted.
    pub(super) next: Position,
    /// Given up when the journal has closed.
    pub(super) storage: Option<Arc<dyn Storage>>,
    pub(super) is_closing: bool,
    /// The committer waits for a signal.
    pub(super) is_idle: bool,
    /// What every append gets from now on.
    pub(super) refusal: Option<AppendError>,
    pub(super) stats: JournalStats,
}

#[derive(Default)]
pub(super) struct Told(Vec<(AppendTicket, Appended)>);

impl Told {
    pub(super) fn tell(self) {
        for (ticket, appended) in self.0 {
            ticket.complete(Ok(appended));
        }
    }
}

pub(super) struct Waiting {
    pub(super) records: Vec<Record>,
    pub(super) durability: Durability,
    pub(super) bytes: usize,
    pub(super) completion: Completion,
}

pub(super) type AppendTicket = Arc<Ticket<Result<Appended, AppendError>>>;

/// Who hears of an append's outcome.
pub(super) enum Completion {
    /// Who waited has been told, or never wanted to know.
    Nobody,
    Ticket(AppendTicket),
    Then(Box<dyn FnOnce(Result<Appended, AppendError>) + Send>),
}

impl Completion {
    pub(super) fn complete(self, outcome: Result<Appended, AppendError>) {
        match self {
            Self::Nobody => {}
            Self::Ticket(ticket) => ticket.complete(outcome),
            Self::Then(then) => then(outcome),
        }
    }

    fn is_withdrawn(&self) -> bool {
        match self {
            Self::Ticket(ticket) => ticket.is_withdrawn(),
            Self::Nobody | Self::Then(_) => false,
        }
    }
}

pub(super) enum Chore {
    Truncate {
        position: Position,
        ticket: Option<Arc<Ticket<Result<Position, AppendError>>>>,
    },
    Snapshot {
        name: String,
        position: Position,
        blob: Bytes,
        ticket: Option<Arc<Ticket<Result<(), AppendError>>>>,
    },
}

impl Chore {
    pub(super) fn refuse(self, error: AppendError) {
        match self {
            Self::Truncate { ticket: Some(ticket), .. } => ticket.complete(Err(error)),
            Self::Snapshot { ticket: Some(ticket), .. } => ticket.complete(Err(error)),
            Self::Truncate { ticket: None, .. } | Self::Snapshot { ticket: None, .. } => {}
        }
    }
}

impl Shared {
    pub(super) fn new(log: &Log, config: &Config, epoch: u64) -> Arc<Self> {
        Arc::new(Self {
            catalog: log.catalog(),
            config: config.clone(),
            epoch,
            work: Condvar::new(),
            signals: AtomicU64::new(0),
            state: Mutex::new(State {
                line: VecDeque::new(),
                outside: VecDeque::new(),
                withdrawn: 0,
                chores: VecDeque::new(),
                closers: Vec::new(),
                told: Told::default(),
                next: log.next(),
                storage: Some(log.storage()),
                is_closing: false,
                is_idle: false,
                refusal: None,
                stats: JournalStats::default(),
            }),
        })
    }

    /// `None` when the journal has closed.
    pub(super) fn storage(&self) -> Option<Arc<dyn Storage>> {
        self.lock().storage.clone()
    }

    pub(super) fn stats(&self) -> JournalStats {
        self.lock().stats.clone()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an append in, or lets it wait outside; returns its position if it was taken in.
    pub(super) fn enter(
        &self,
        records: Vec<Record>,
        durability: Durability,
        completion: Completion,
        may_wait: bool,
    ) -> Result<Position, AppendError> {
        let size = appended_bytes(&records);
        let limit = self.config.append_bytes_max();
        if size > limit {
            return Err(AppendError::TooLarge { size, limit });
        }
        let waiting = Waiting { records, durability, bytes: size as usize, completion };
        let mut state = self.lock();
        state.check_open()?;
        let first = state.next;
        if state.outside.is_empty() && state.has_room(waiting.bytes, self.config.waiting_bytes_max) {
            state.accept(waiting);
        } else if may_wait {
            state.outside.push_back(waiting);
        } else {
            let waiting = state.stats.waiting_bytes;
            return Err(AppendError::Busy { waiting, limit: self.config.waiting_bytes_max });
        }
        self.signal(state);
        Ok(first)
    }

    /// One of those that wait for room may have gone. When the disk hangs they must not pile up behind those that stay;
    /// looking only when half of them may be gone keeps the cost of each going constant.
    pub(super) fn forget_withdrawn(&self) {
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

    pub(super) fn chore(&self, chore: Chore) -> Result<(), AppendError> {
        let mut state = self.lock();
        state.check_open()?;
        let after = state.next;
        state.chores.push_back((after, chore));
        self.signal(state);
        Ok(())
    }

    pub(super) fn close(&self, ticket: Option<Arc<Ticket<Closed>>>) {
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

    pub(super) fn report(&self) -> Closed {
        let failure = match &self.lock().refusal {
            Some(AppendError::Poisoned(failure)) => Some(failure.clone()),
            _ => None,
        };
        Closed { durable: self.catalog.lock().durable, failure }
    }

    fn signal(&self, mut state: MutexGuard<'_, State>) {
        let was_idle = std::mem::take(&mut state.is_idle);
        self.signals.fetch_add(1, Ordering::Release);
        let told = std::mem::take(&mut state.told);
        drop(state);
        told.tell();
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

    fn accept(&mut self, mut waiting: Waiting) {
        let first = self.next;
        self.next = self.next.plus(waiting.records.len() as u64);
        if waiting.durability == Durability::Memory
            && let Completion::Ticket(ticket) = std::mem::replace(&mut waiting.completion, Completion::Nobody)
        {
            self.told.0.push((ticket, Appended { first, next: self.next, durability: Durability::Memory }));
        }
        self.stats.waiting_bytes += waiting.bytes;
        self.line.push_back(waiting);
    }

    /// Lets in what waits outside, as far as there is room.
    pub(super) fn admit(&mut self, limit: usize) {
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
