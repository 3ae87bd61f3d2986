//! The one thread that owns the log.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::line::{Chore, Completion, Shared, State, Waiting};
use crate::config::Config;
use crate::error::{AppendError, Failure, OpenError};
use crate::format::Position;
use crate::log::{Appended, Durability, Log};

/// Takes what waits, batch by batch, stores it, and tells those who wait.
pub(super) struct Committer {
    shared: Arc<Shared>,
    /// Taken out at the end.
    log: Option<Log>,
    batch: Vec<Waiting>,
    batch_bytes_max: usize,
    unsynced_bytes_max: usize,
    /// Written and not synced: how much, and since when.
    unsynced_bytes: usize,
    unsynced_since: Option<Instant>,
    /// How long to look out for the next append before sleeping.
    looks_max: Duration,
}

impl Committer {
    pub(super) fn start(log: Log, config: &Config, epoch: u64) -> Result<Arc<Shared>, OpenError> {
        let shared = Shared::new(&log, config, epoch);
        let committer = Self {
            shared: shared.clone(),
            log: Some(log),
            batch: Vec::new(),
            batch_bytes_max: config.batch_bytes_max,
            unsynced_bytes_max: config.unsynced_bytes_max,
            unsynced_bytes: 0,
            unsynced_since: None,
            // With one core, whoever should bring the next append cannot run meanwhile.
            looks_max: match thread::available_parallelism() {
                Ok(cores) if cores.get() > 1 => LOOKS_MAX,
                _ => Duration::ZERO,
            },
        };
        thread::Builder::new().name("quorate-journal".to_owned()).spawn(move || committer.run()).map_err(
            |source| OpenError::Io { operation: "start", file: "the committer thread".to_owned(), source },
        )?;
        Ok(shared)
    }

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
                        let outcome = log.save_snapshot(&name, position, &blob);
                        if let Some(ticket) = ticket {
                            ticket.complete(outcome);
                        }
                    }
                }
            }
            if let Err(failure) = log.check_failure() {
                self.refuse(failure);
            }
        }
        // What was only written is safer synced.
        if let Err(error) = log.commit() {
            self.refuse(error);
        }
        // The directory must be unlocked before anyone hears that the journal is closed.
        drop(log);
        self.finish(AppendError::Closed);
    }

    /// Waits for work and takes a batch; there may be none, and only chores, or only something to sync. False when closed
    /// and all is done.
    fn wait(&mut self) -> bool {
        let mut has_looked = false;
        let mut state = self.shared.lock();
        loop {
            state.admit(self.shared.config.waiting_bytes_max);
            if !state.line.is_empty() || !state.chores.is_empty() {
                break;
            }
            if state.is_closing && state.outside.is_empty() {
                return false;
            }
            if !has_looked {
                has_looked = true;
                let signals = self.shared.signals.load(Ordering::Acquire);
                drop(state);
                self.look_out(signals);
                state = self.shared.lock();
                continue;
            }
            state.is_idle = true;
            match self.unsynced_since {
                None => state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(since) => {
                    let left = UNSYNCED_MAX.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.shared.work.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        state.is_idle = false;
        let mut bytes = 0;
        while let Some(waiting) = state.line.front() {
            bytes += waiting.bytes;
            if bytes > self.batch_bytes_max && !self.batch.is_empty() {
                break;
            }
            self.batch.extend(state.line.pop_front());
        }
        let told = std::mem::take(&mut state.told);
        drop(state);
        told.tell();
        true
    }

    /// Looks for a signal after these for a moment: a writer that has just been told often comes back at once, and would
    /// have to wake this thread.
    fn look_out(&self, signals: u64) {
        let start = Instant::now();
        while self.shared.signals.load(Ordering::Acquire) == signals && start.elapsed() < self.looks_max {
            std::hint::spin_loop();
        }
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
        let stored = self.store(log, &mut outcomes);
        if let Err(error) = stored {
            outcomes.fill_with(|| Err(error.clone()));
            failure = Some(error);
        }

        let mut void = VecDeque::new();
        let told;
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
            state.admit(self.shared.config.waiting_bytes_max);
            told = std::mem::take(&mut state.told);
        }
        told.tell();
        if let Some(error) = failure {
            outcomes.extend(void.iter().map(|_| Err(error.clone())));
            self.batch.extend(void);
        }
        // One by one: should a completion panic, the others are still there to be told.
        self.batch.reverse();
        for outcome in outcomes {
            if let Some(waiting) = self.batch.pop() {
                waiting.completion.complete(outcome);
            }
        }
    }

    /// Writes the batch, and syncs if somebody asked for it or it is time; tells those in between who asked for less.
    fn store(
        &mut self,
        log: &mut Log,
        outcomes: &mut [Result<Appended, AppendError>],
    ) -> Result<(), AppendError> {
        log.write()?;
        if log.unsynced_records() == 0 && self.unsynced_since.is_none() {
            // Nothing but barriers, or what a new segment has made durable already.
            set(outcomes, Durability::Synced);
            return Ok(());
        }
        self.unsynced_bytes += self.batch.iter().map(|waiting| waiting.bytes).sum::<usize>();
        let since = *self.unsynced_since.get_or_insert_with(Instant::now);
        let is_asked_for = self.batch.iter().any(|waiting| waiting.durability == Durability::Synced);
        let is_time = self.unsynced_bytes >= self.unsynced_bytes_max || since.elapsed() >= UNSYNCED_MAX;
        set(outcomes, Durability::Written);
        if !is_asked_for && !is_time {
            return Ok(());
        }
        let mut is_behind = false;
        for (waiting, outcome) in self.batch.iter_mut().zip(&*outcomes) {
            is_behind |= waiting.durability == Durability::Synced;
            // Only who waits alone may be told before those that come first in the log.
            let is_free = matches!(waiting.completion, Completion::Ticket(_)) || !is_behind;
            if waiting.durability < Durability::Synced && is_free {
                std::mem::replace(&mut waiting.completion, Completion::Nobody).complete(outcome.clone());
            }
        }
        log.commit()?;
        self.unsynced_bytes = 0;
        self.unsynced_since = None;
        set(outcomes, Durability::Synced);
        Ok(())
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
        // There is nothing left to be synced, or it would be tried again and again.
        (self.unsynced_bytes, self.unsynced_since) = (0, None);
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

/// Those that were stored are this safe by now.
fn set(outcomes: &mut [Result<Appended, AppendError>], durability: Durability) {
    for appended in outcomes.iter_mut().flatten() {
        appended.durability = durability;
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

/// A task that was woken by a sync needs some 10 us to come back on a machine like ours.
const LOOKS_MAX: Duration = Duration::from_micros(30);
/// How long a record may be written and not synced.
const UNSYNCED_MAX: Duration = Duration::from_millis(100);
