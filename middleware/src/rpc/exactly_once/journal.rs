//! The way of records into the journal: one append at a time, all that wait in one; and back at the opening.
//!
//! Format      records of kind [`RECORD_KIND`]; snapshot [`SNAPSHOT`]: the state with its length `u32`, the number of
//!             records `u32`, each with its length; see docs/disk.md.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use quorate_journal::{AppendError, Appended, Journal, Record};
use quorate_protocols::rpc::{CompletionRecord, Completions, CompletionsConfig};
use quorate_protocols::wire::{put_bytes, put_count, take_bytes, take_count};
use quorate_protocols::{Time, Wire, WireError};

use super::error::{DurableOpenError, NotDurable};
use super::store::{Inner, Store, encode_snapshot};
use super::{DurableConfig, State};
use crate::codec::{Postcard, decode_frame};

/// Records on their way, and who waits for them.
pub(super) struct Queue {
    waiting: Vec<Bytes>,
    /// What they take.
    waiting_bytes: usize,
    /// Records of the append that is under way; 0 when there is none.
    writing: u64,
    durable: u64,
    appends: u64,
    snapshots: u64,
    /// Who waits until so many records are durable; the second number only tells them apart.
    waiters: BTreeMap<(u64, u64), Waker>,
    next_waiter: u64,
    failure: Option<NotDurable>,
    /// Records since the last snapshot.
    logged: u64,
    compact_records: u64,
    /// A snapshot for the end of the append that is under way.
    snapshot: Option<Bytes>,
    is_saving: bool,
}

impl Queue {
    pub(super) fn new(compact_records: u64) -> Self {
        Self {
            waiting: Vec::new(),
            waiting_bytes: 0,
            writing: 0,
            durable: 0,
            appends: 0,
            snapshots: 0,
            waiters: BTreeMap::new(),
            next_waiter: 0,
            failure: None,
            logged: 0,
            compact_records: compact_records.max(1),
            snapshot: None,
            is_saving: false,
        }
    }

    pub(super) fn check(&self) -> Result<(), NotDurable> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    pub(super) fn push(&mut self, record: Bytes) {
        self.waiting_bytes += cost(&record);
        self.waiting.push(record);
    }

    /// So much waits that no further call is to be begun.
    pub(super) fn is_full(&self) -> bool {
        self.waiting_bytes >= WAITING_BYTES_MAX
    }

    pub(super) fn totals(&self) -> (u64, u64, u64) {
        (self.durable, self.appends, self.snapshots)
    }

    /// Nothing becomes durable any more.
    pub(super) fn fail(&mut self, failure: NotDurable) {
        self.failure.get_or_insert(failure);
        self.waiting.clear();
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiters).into_values().for_each(Waker::wake);
    }

    /// The next append.
    fn batch(&mut self) -> Vec<Record> {
        let mut bytes = 0;
        let fits = |record: &&Bytes| {
            bytes += record.len();
            bytes <= BATCH_BYTES_MAX
        };
        let count = self.waiting.iter().take_while(fits).count().max(1);
        let Self { waiting, waiting_bytes, .. } = self;
        let taken = waiting.drain(..count).inspect(|record| *waiting_bytes -= cost(record));
        taken.map(|record| Record::new(RECORD_KIND, record)).collect()
    }
}

impl<S: State> Store<S> {
    /// Begins the next append, unless one is under way.
    pub(super) fn pump(self: &Arc<Self>, inner: &mut Inner<S>) {
        if inner.queue.writing > 0 || inner.queue.waiting.is_empty() || inner.queue.failure.is_some() {
            return;
        }
        let batch = inner.queue.batch();
        inner.queue.writing = batch.len() as u64;
        inner.queue.logged += batch.len() as u64;
        // With nothing left behind, the state is what the records up to the end of this append say.
        let is_due = inner.queue.logged >= inner.queue.compact_records && !inner.queue.is_saving;
        if is_due && inner.queue.waiting.is_empty() {
            inner.queue.logged = 0;
            match encode_snapshot(inner) {
                Ok(blob) => inner.queue.snapshot = Some(blob),
                Err(error) => tracing::error!(%error, "the snapshot of a durable state cannot be encoded"),
            }
        }
        let store = Arc::clone(self);
        let appended = self.journal.append_then(batch, move |outcome| store.on_appended(outcome));
        if let Err(error) = appended {
            inner.queue.fail(NotDurable::Journal(error));
        }
    }

    /// In the journal's thread: quick, for every writer waits.
    fn on_appended(self: &Arc<Self>, outcome: Result<Appended, AppendError>) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let appended = match outcome {
            Ok(appended) => appended,
            Err(error) => {
                tracing::error!(%error, "a durable state serves nothing any more");
                inner.queue.fail(NotDurable::Journal(error));
                return;
            }
        };
        inner.queue.durable += inner.queue.writing;
        inner.queue.writing = 0;
        inner.queue.appends += 1;
        if let Some(blob) = inner.queue.snapshot.take() {
            inner.queue.is_saving = true;
            let store = Arc::clone(self);
            self.runtime.spawn(async move {
                // A journal that fails here fails the next append as well, which is where it is reported.
                let saved = store.journal.save_snapshot(SNAPSHOT, appended.next, blob).await;
                if saved.is_ok() {
                    let _ = store.journal.truncate_before(appended.next).await;
                }
                let mut inner = store.lock();
                inner.queue.snapshots += u64::from(saved.is_ok());
                inner.queue.is_saving = false;
            });
        }
        // The disk first: it is what the others wait for.
        self.pump(inner);
        let after = inner.queue.waiters.split_off(&(inner.queue.durable + 1, 0));
        let done = std::mem::replace(&mut inner.queue.waiters, after);
        drop(guard);
        done.into_values().for_each(Waker::wake);
    }

    /// Returns when so many records are durable, and tells how many are by then.
    pub(super) async fn stable(self: &Arc<Self>, count: u64) -> Result<u64, NotDurable> {
        let mut place = Place { store: self, key: None };
        poll_fn(|cx| {
            let mut inner = self.lock();
            let queue = &mut inner.queue;
            let outcome = match &queue.failure {
                _ if queue.durable >= count => Ok(queue.durable),
                Some(failure) => Err(failure.clone()),
                None => {
                    let key = *place.key.get_or_insert_with(|| {
                        queue.next_waiter += 1;
                        (count, queue.next_waiter)
                    });
                    queue.waiters.insert(key, cx.waker().clone());
                    // Whoever put it in line may have been stopped before it sent it on its way.
                    self.pump(&mut inner);
                    return Poll::Pending;
                }
            };
            // Whoever woke this has taken it out of the line.
            place.key = None;
            Poll::Ready(outcome)
        })
        .await
    }
}

/// One waiter's place in the line; left when it waits no longer.
struct Place<'a, S: State> {
    store: &'a Store<S>,
    key: Option<(u64, u64)>,
}

impl<S: State> Drop for Place<'_, S> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.store.lock().queue.waiters.remove(&key);
        }
    }
}

/// What the journal says.
pub(super) fn read<S: State>(
    journal: &Journal,
    initial: S,
    config: DurableConfig,
) -> Result<(S, Completions), DurableOpenError> {
    let mut completions = Completions::new(CompletionsConfig {
        seats_max: config.clients_max,
        slots_max: config.answers_max,
        reply_bytes_max: config.answer_bytes_max,
        lease: config.lease,
        ..CompletionsConfig::default()
    });
    let (mut state, from) = match journal.load_snapshot(SNAPSHOT)? {
        Some(snapshot) => {
            let (state, records) = decode_snapshot(snapshot.blob)?;
            records.iter().for_each(|record| completions.replay(Time::ZERO, record));
            (decode_frame::<Postcard, S>(&state)?, snapshot.position)
        }
        None => (initial, journal.first()),
    };
    for entry in journal.read(from) {
        // A copy: the payload shares a large buffer, and some answers are kept for long.
        let record = CompletionRecord::from_bytes(Bytes::copy_from_slice(&entry?.payload))?;
        if let CompletionRecord::Done { change, .. } | CompletionRecord::Change(change) = &record
            && !change.is_empty()
        {
            for change in decode_frame::<Postcard, Vec<S::Change>>(change)? {
                state.apply(&change);
            }
        }
        completions.replay(Time::ZERO, &record);
    }
    Ok((state, completions))
}

pub(super) fn encode_snapshot_parts(state: &[u8], records: &[CompletionRecord]) -> Bytes {
    let mut out = BytesMut::new();
    put_bytes(&mut out, state);
    put_count(&mut out, records.len());
    for record in records {
        put_bytes(&mut out, &record.to_bytes());
    }
    out.freeze()
}

fn decode_snapshot(mut blob: Bytes) -> Result<(Bytes, Vec<CompletionRecord>), WireError> {
    let state = take_bytes(&mut blob, "state")?;
    let count = take_count(&mut blob, size_of::<u32>(), "completion records")?;
    let records = (0..count)
        .map(|_| CompletionRecord::from_bytes(take_bytes(&mut blob, "completion record")?))
        .collect::<Result<_, _>>()?;
    if blob.is_empty() { Ok((state, records)) } else { Err(WireError::Trailing(blob.len())) }
}

/// The snapshot's name in the journal.
const SNAPSHOT: &str = "durable";

/// The kind of the records in the journal.
const RECORD_KIND: u16 = 0x2D;

/// What a record counts while it waits: its answer waits with it.
const fn cost(record: &Bytes) -> usize {
    record.len() + 2 * size_of::<Bytes>()
}

/// Bytes of records that wait while the journal is slow or hangs; beyond it exactly-once calls are refused as overloaded
/// before anything happens, until it has taken some. Those that execute at that moment still come in line.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Bytes of records in one append: well below what the journal takes at once.
const BATCH_BYTES_MAX: usize = 1 << 20;
