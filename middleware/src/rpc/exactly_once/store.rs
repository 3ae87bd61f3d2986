//! The state, the table of completed calls and their way into the journal, under one lock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use quorate_journal::Journal;
use quorate_protocols::rpc::{Begun, CompletionRecord, Completions, Doubt, Refusal, Request, Verdict};
use quorate_protocols::{ProcessId, Wire};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;

use super::error::{DurableOpenError, NotDurable};
use super::journal::{self, Queue};
use super::keeper::Attempt;
use super::transaction::Staged;
use super::{DurableConfig, DurableStats, State};
use crate::codec::{Codec, EncodeError, Postcard};
use crate::rpc::post;

/// What all clones of a durable state share.
pub(super) struct Store<S: State> {
    pub(super) journal: Journal,
    /// What a record may have, its overhead left out.
    record_bytes_max: usize,
    epoch: Instant,
    /// Held by the transaction that may change the state next.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Told when a request that executed has ended.
    pub(super) ended: Notify,
    /// Where snapshots are saved.
    pub(super) runtime: tokio::runtime::Handle,
    inner: Mutex<Inner<S>>,
}

pub(super) struct Inner<S> {
    pub(super) state: S,
    pub(super) completions: Completions,
    pub(super) queue: Queue,
    /// Filled and emptied within one step.
    records: Vec<CompletionRecord>,
}

impl<S: State> Store<S> {
    pub(super) async fn open(
        journal: Journal,
        initial: S,
        config: DurableConfig,
    ) -> Result<Arc<Self>, DurableOpenError> {
        let reading = journal.clone();
        let read = tokio::task::spawn_blocking(move || journal::read(&reading, initial, config));
        let (state, completions) = read.await.map_err(|_| DurableOpenError::Runtime)??;
        let limit = journal.append_bytes_max().saturating_sub(RECORD_OVERHEAD_BYTES);
        Ok(Arc::new(Self {
            journal,
            record_bytes_max: usize::try_from(limit).unwrap_or(usize::MAX),
            epoch: Instant::now(),
            turn: Arc::default(),
            ended: Notify::new(),
            runtime: tokio::runtime::Handle::current(),
            inner: Mutex::new(Inner {
                state,
                completions,
                queue: Queue::new(config.compact_records),
                records: Vec::new(),
            }),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        // A panic of the user's code in here is caught where it matters; one while looking changes nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    pub(super) fn see<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&self.lock().state)
    }

    /// Looks, and tells how many records must be durable for what was seen to last.
    pub(super) fn look<R>(&self, look: impl FnOnce(&S) -> R) -> Result<(R, u64), NotDurable> {
        let inner = self.lock();
        // Once failed, the state may show what is lost.
        inner.queue.check()?;
        Ok((look(&inner.state), inner.completions.emitted()))
    }

    pub(super) fn take_seat(self: &Arc<Self>, from: ProcessId, client: u32) -> Option<(u64, u64)> {
        let now = post::time_since(self.epoch);
        let inner = &mut *self.lock();
        inner.queue.check().ok()?;
        let seat = inner.completions.take_seat(now, from, client, &mut inner.records);
        line_up(inner);
        self.pump(inner);
        seat
    }

    pub(super) fn look_up(&self, request: Request, acknowledged: u64, unless: Option<Refusal>) -> Begun {
        let now = post::time_since(self.epoch);
        let mut inner = self.lock();
        let failed = inner.queue.check().is_err().then_some(Refusal::JournalFailed);
        let full = inner.queue.is_full().then_some(Refusal::Overloaded);
        inner.completions.begin(now, request, acknowledged, failed.or(unless).or(full))
    }

    pub(super) fn abandon(&self, request: Request) {
        self.lock().completions.abandon(request);
        self.ended.notify_waiters();
    }

    /// Makes one record of what a call changed and what it is answered, and applies it; it goes on its way with the next
    /// [`pump`](Self::pump). Gives how many records must be durable before the answer leaves.
    pub(super) fn finish(
        self: &Arc<Self>,
        attempt: Option<Attempt<S>>,
        reply: &Bytes,
        staged: Option<Staged<S>>,
    ) -> Result<u64, Verdict> {
        // The turn is given up at the end of this, when the state shows the changes.
        let (changes, _turn) = match staged {
            Some(Staged { changes, turn }) => (changes, turn),
            None => (Vec::new(), None),
        };
        let change = self.encode(&changes, reply.len()).map_err(|error| {
            tracing::error!(%error, "an exactly-once call cannot be recorded");
            Verdict::Refused(Refusal::Unrecordable)
        })?;
        let inner = &mut *self.lock();
        inner.queue.check().map_err(|_| Verdict::Refused(Refusal::JournalFailed))?;
        let stable = match attempt {
            Some(attempt) => {
                let request = attempt.close();
                let reply = reply.clone();
                let stable = inner.completions.complete(request, reply, change, &mut inner.records);
                self.ended.notify_waiters();
                stable.ok_or(Verdict::Doubtful(Doubt::Abandoned))?
            }
            None if changes.is_empty() => return Ok(inner.completions.emitted()),
            None => inner.completions.change(change, &mut inner.records),
        };
        self.apply(inner, &changes).map_err(|_| Verdict::Doubtful(Doubt::HandlerFailed))?;
        Ok(stable)
    }

    /// Commits a transaction that belongs to no exactly-once call.
    pub(super) fn commit(self: &Arc<Self>, staged: Staged<S>) -> Result<u64, NotDurable> {
        let Staged { changes, turn: _turn } = staged;
        let change = self.encode(&changes, 0)?;
        let inner = &mut *self.lock();
        inner.queue.check()?;
        if changes.is_empty() {
            return Ok(inner.completions.emitted());
        }
        let stable = inner.completions.change(change, &mut inner.records);
        self.apply(inner, &changes)?;
        self.pump(inner);
        Ok(stable)
    }

    fn encode(&self, changes: &Vec<S::Change>, reply_bytes: usize) -> Result<Bytes, NotDurable> {
        let mut out = BytesMut::new();
        if !changes.is_empty() {
            Postcard::encode(changes, &mut out).map_err(NotDurable::Encode)?;
        }
        let size = out.len() + reply_bytes;
        if size > self.record_bytes_max {
            return Err(NotDurable::TooLarge { size, limit: self.record_bytes_max });
        }
        Ok(out.freeze())
    }

    /// Applies what the records in hand say, and puts these in line.
    fn apply(&self, inner: &mut Inner<S>, changes: &[S::Change]) -> Result<(), NotDurable> {
        let Inner { state, .. } = inner;
        // Half-changed, it is not looked at again: the queue fails for good.
        let applied =
            catch_unwind(AssertUnwindSafe(|| changes.iter().for_each(|change| state.apply(change))));
        if applied.is_err() {
            tracing::error!("a durable state panicked and serves nothing any more");
            inner.records.clear();
            inner.queue.fail(NotDurable::Panicked);
            return Err(NotDurable::Panicked);
        }
        line_up(inner);
        Ok(())
    }

    pub(super) fn stats(&self) -> DurableStats {
        let inner = self.lock();
        let (durable, appends, snapshots) = inner.queue.totals();
        DurableStats { calls: inner.completions.stats(), durable, appends, snapshots }
    }

    pub(super) async fn close(self: &Arc<Self>) {
        let emitted = {
            let inner = self.lock();
            inner.completions.emitted()
        };
        // What fails here has been told to those whom it concerns.
        let _ = self.stable(emitted).await;
        self.lock().queue.fail(NotDurable::Closed);
        self.journal.close().await;
    }
}

fn line_up<S>(inner: &mut Inner<S>) {
    for record in inner.records.drain(..) {
        inner.queue.push(record.to_bytes());
    }
}

/// The state and the records as one snapshot.
pub(super) fn encode_snapshot<S: State>(inner: &Inner<S>) -> Result<Bytes, EncodeError> {
    let mut state = BytesMut::new();
    Postcard::encode(&inner.state, &mut state)?;
    Ok(journal::encode_snapshot_parts(&state, &inner.completions.snapshot()))
}

/// What a record has besides an answer and changes, and what the journal adds to it.
const RECORD_OVERHEAD_BYTES: u64 = 256;
