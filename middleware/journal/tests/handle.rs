//! The async handle: many writers, errors for everyone concerned, orderly ends.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use quorate_journal::{
    AppendError, Config, Durability, Entry, Faults, FaultyStorage, FileStorage, Journal, MemoryStorage,
    OpenError, Position, ReadError, Record, Storage, StorageFile,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn small() -> Config {
    Config::new(1).segment_bytes(64 << 10).zero_fill_bytes(8 << 10)
}

fn all(journal: &Journal) -> Result<Vec<Entry>, ReadError> {
    journal.read(journal.first()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q02_many_tasks_share_syncs_and_each_finds_its_records_where_it_was_told() -> Outcome {
    let (journal, _) = Journal::open(FaultyStorage::new(1), small())?;
    let mut tasks = Vec::new();
    for task in 0..64_u64 {
        let journal = journal.clone();
        tasks.push(tokio::spawn(async move {
            let mut places = Vec::new();
            for number in 0..50_u64 {
                let payload = [task.to_le_bytes(), number.to_le_bytes()].concat();
                let appended = journal.append(vec![Record::new(3, payload.clone())]).await?;
                places.push((appended.first, payload));
            }
            Ok::<_, AppendError>(places)
        }));
    }
    let mut positions = BTreeSet::new();
    let mut told = Vec::new();
    for task in tasks {
        let places = task.await??;
        assert!(places.is_sorted_by_key(|(position, _)| *position), "one task's appends keep their order");
        positions.extend(places.iter().map(|(position, _)| *position));
        told.extend(places);
    }
    assert_eq!(positions.len(), 64 * 50);
    let entries = all(&journal)?;
    for (position, payload) in told {
        let entry = &entries[position.as_u64() as usize];
        assert_eq!((entry.position, &entry.payload[..]), (position, &payload[..]));
    }
    let stats = journal.stats();
    assert_eq!((stats.appends, stats.records, stats.waiting_bytes), (3200, 3200, 0));
    assert!(stats.batches <= stats.appends);
    assert!(stats.segments > 1, "{stats:?}");
    Ok(())
}

#[tokio::test]
async fn q02_failed_sync_fails_the_waiters_and_every_later_append_with_a_typed_error() -> Outcome {
    let disk = FaultyStorage::new(2);
    let (journal, _) = Journal::open(disk.clone(), small())?;
    journal.append(vec![Record::new(1, "kept")]).await?;
    disk.fail_sync(disk.syncs());
    let first = journal.append(vec![Record::new(1, "unknown")]).await;
    let Err(AppendError::Poisoned(failure)) = first else { panic!("{first:?}") };
    assert_eq!(failure.operation(), "sync");
    let syncs = disk.syncs();
    for _ in 0..3 {
        assert!(matches!(journal.append(vec![Record::new(1, "late")]).await, Err(AppendError::Poisoned(_))));
        assert!(matches!(journal.truncate_before(Position::ZERO).await, Err(AppendError::Poisoned(_))));
    }
    assert_eq!(disk.syncs(), syncs, "a failed sync is never retried");
    assert_eq!(all(&journal)?.len(), 1, "only what was acknowledged can be read");
    let closed = journal.close().await;
    assert_eq!(closed.durable, Position::from_u64(1));
    assert!(closed.failure.is_some());
    Ok(())
}

#[tokio::test]
async fn q02_full_disk_is_typed_and_the_journal_goes_on_when_there_is_room() -> Outcome {
    let disk = FaultyStorage::with_faults(3, Faults { capacity_bytes: Some(100 << 10), ..Faults::default() });
    let (journal, _) = Journal::open(disk.clone(), small())?;
    let mut kept = 0;
    let error = loop {
        match journal.append(vec![Record::new(1, vec![7; 1000])]).await {
            Ok(appended) => kept = appended.next.as_u64(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::DiskFull), "{error:?}");
    assert!(error.is_retryable());
    assert!(kept > 50, "{kept}");
    assert_eq!(all(&journal)?.len() as u64, kept);
    disk.set_faults(Faults::default());
    let appended = journal.append(vec![Record::new(1, vec![8; 1000])]).await?;
    assert_eq!(appended.first.as_u64(), kept);
    journal.close().await;
    let (journal, recovered) = Journal::open(disk, small())?;
    assert_eq!((recovered.next.as_u64(), recovered.dropped), (kept + 1, None));
    assert_eq!(all(&journal)?.len() as u64, kept + 1);
    Ok(())
}

#[tokio::test]
async fn q02_truncation_drops_whole_segments_and_never_the_snapshot_that_replaces_them() -> Outcome {
    let storage = MemoryStorage::new();
    let (journal, _) = Journal::open(storage.clone(), small())?;
    for _ in 0..200 {
        journal.append(vec![Record::new(1, vec![1; 1000])]).await?;
    }
    let before = journal.stats().segments;
    journal.save_snapshot("sum", Position::from_u64(150), "150 seen").await?;
    let first = journal.truncate_before(Position::from_u64(150)).await?;
    assert!(first > Position::ZERO && first <= Position::from_u64(150), "{first}");
    assert!(journal.stats().segments < before);
    let old = journal.read(Position::ZERO).next();
    assert!(matches!(old, Some(Err(ReadError::Truncated { first: f })) if f == first), "{old:?}");
    let ahead = journal.save_snapshot("sum", Position::from_u64(201), "?").await;
    assert!(matches!(ahead, Err(AppendError::SnapshotAhead { .. })), "{ahead:?}");
    let named = journal.save_snapshot("../sum", Position::ZERO, "?").await;
    assert!(matches!(named, Err(AppendError::SnapshotName { .. })), "{named:?}");
    journal.close().await;
    let (journal, recovered) = Journal::open(storage, small())?;
    assert_eq!((recovered.first, recovered.next.as_u64()), (first, 200));
    let snapshot = journal.load_snapshot("sum")?.ok_or("the snapshot is there")?;
    assert_eq!((snapshot.position.as_u64(), &snapshot.blob[..]), (150, &b"150 seen"[..]));
    assert_eq!(journal.load_snapshot("other")?, None);
    Ok(())
}

#[tokio::test]
async fn closing_commits_what_was_accepted_and_frees_the_directory() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (journal, recovered) = Journal::open(FileStorage::open(directory.path())?, Config::new(9))?;
    assert_eq!(recovered.epoch, 1);
    assert!(matches!(FileStorage::open(directory.path()), Err(OpenError::InUse { .. })));
    let pending: Vec<_> =
        (0..10).map(|_| journal.submit(vec![Record::new(1, "x")])).collect::<Result<_, _>>()?;
    let closed = journal.close().await;
    assert_eq!((closed.durable.as_u64(), closed.failure.is_none()), (10, true));
    for (number, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.first().as_u64(), number as u64);
        assert_eq!(pending.await?.first.as_u64(), number as u64);
    }
    assert!(matches!(journal.append(vec![]).await, Err(AppendError::Closed)));
    assert!(matches!(journal.read(Position::ZERO).next(), Some(Err(ReadError::Closed))));
    assert_eq!(journal.close().await.durable.as_u64(), 10, "closing twice is allowed");

    let (_, recovered) = Journal::open(FileStorage::open(directory.path())?, Config::new(9))?;
    assert_eq!((recovered.next.as_u64(), recovered.epoch), (10, 2));
    Ok(())
}

#[test]
fn q02_each_append_returns_as_soon_as_it_is_as_safe_as_it_asked_for() -> Outcome {
    let gate = Arc::new(Gate::default());
    let storage = Gated { memory: MemoryStorage::new(), gate: gate.clone() };
    let (journal, _) = Journal::open(storage, small())?;
    gate.shut(true);
    let mut cx = Context::from_waker(Waker::noop());
    let record = |text: &'static str| vec![Record::new(1, text)];
    // The disk hangs in its first sync, and only who asked for it waits.
    let mut synced = Box::pin(journal.append(record("synced")));
    assert!(synced.as_mut().poll(&mut cx).is_pending());
    let mut memory = pin!(journal.append_as(Durability::Memory, record("memory")));
    let Poll::Ready(told) = memory.as_mut().poll(&mut cx) else { panic!("memory is there at once") };
    let told = told?;
    assert_eq!((told.first.as_u64(), told.next.as_u64(), told.durability), (1, 2, Durability::Memory));
    assert!(synced.as_mut().poll(&mut cx).is_pending());
    gate.shut(false);
    while synced.as_mut().poll(&mut cx).is_pending() {
        std::thread::yield_now();
    }
    drop(synced);
    journal.append_blocking(vec![])?;
    // Nobody asks for a sync: written is written, and can be read as such.
    gate.shut(true);
    let written = wait(journal.append_as(Durability::Written, record("written")));
    let written = written?;
    assert_eq!((written.first.as_u64(), written.durability), (2, Durability::Written));
    assert_eq!(journal.read_written(written.first).count(), 1);
    gate.shut(false);
    // It becomes durable all the same, without anybody asking.
    while journal.durable() < written.next {
        std::thread::yield_now();
    }
    assert_eq!(journal.read(written.first).count(), 1);
    let synced = journal.append_blocking(record("synced"))?;
    assert_eq!((synced.first.as_u64(), synced.durability), (3, Durability::Synced));
    Ok(())
}

#[test]
fn q02_a_completion_that_panics_leaves_nobody_waiting() -> Outcome {
    let (journal, _) = Journal::open(FaultyStorage::new(1), small())?;
    // Both in one batch: the first completion holds the committer up until the others are in line.
    let (held, holds) = std::sync::mpsc::channel::<()>();
    let hold = move |_| {
        // Until the other end goes.
        let _ = holds.recv();
    };
    journal.append_then(Vec::new(), hold)?;
    journal.append_then(vec![Record::new(1, "a")], |_| panic!("a bug of whoever waits"))?;
    let pending = journal.submit(vec![Record::new(1, "b")])?;
    drop(held);
    let outcome = pending.wait_blocking();
    assert!(matches!(outcome, Err(AppendError::Poisoned(_))), "{outcome:?}");
    journal.close_blocking();
    Ok(())
}

#[test]
fn q02_completions_come_in_the_order_of_the_log_whatever_they_asked_for() -> Outcome {
    let (journal, _) = Journal::open(MemoryStorage::new(), small())?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for number in 0..3_000_u32 {
        let durability =
            [Durability::Memory, Durability::Written, Durability::Synced][number as usize % 7 % 3];
        let seen = seen.clone();
        let record = vec![Record::new(1, number.to_le_bytes().to_vec())];
        journal.append_then_as(durability, record, move |outcome| {
            let told = outcome.expect("memory does not fail");
            assert!(told.durability >= durability.max(Durability::Written));
            seen.lock().expect("no panic under it").push(told.first.as_u64());
        })?;
    }
    journal.append_blocking(vec![])?;
    journal.close_blocking();
    let seen = seen.lock().expect("no panic under it");
    assert_eq!(*seen, (0..3_000).collect::<Vec<_>>());
    Ok(())
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn each_waiter_is_woken_at_most_once_and_a_dropped_one_harms_nobody() -> Outcome {
    let (journal, _) = Journal::open(MemoryStorage::new(), small())?;
    let counter = Arc::new(Counting(AtomicUsize::new(0)));
    let waker = Waker::from(counter.clone());
    let mut cx = Context::from_waker(&waker);
    let mut waiting = Vec::new();
    for number in 0..500_u32 {
        let mut append = Box::pin(journal.append(vec![Record::new(1, number.to_le_bytes().to_vec())]));
        match append.as_mut().poll(&mut cx) {
            Poll::Ready(outcome) => drop(outcome?),
            // Every third waiter goes away.
            Poll::Pending if number % 3 == 0 => drop(append),
            Poll::Pending => waiting.push(append),
        }
    }
    let appended = journal.append_blocking(vec![])?;
    assert_eq!(appended.first, appended.next);
    assert_eq!(appended.next.as_u64(), 500, "what was accepted is written, also for a waiter that left");
    for mut append in waiting {
        assert!(matches!(append.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
    }
    assert!(counter.0.load(Ordering::SeqCst) <= 500);
    let never_polled = journal.append(vec![Record::new(1, "never")]);
    drop(never_polled);
    assert_eq!(journal.append_blocking(vec![])?.next.as_u64(), 500);
    Ok(())
}

#[test]
fn too_much_waiting_makes_submit_fail_and_append_wait() -> Outcome {
    let (journal, _) = Journal::open(MemoryStorage::new(), small().waiting_bytes_max(4096))?;
    let mut accepted = 0;
    let mut refused = 0;
    for _ in 0..2000 {
        match journal.submit(vec![Record::new(1, vec![0; 3000])]) {
            Ok(pending) => {
                accepted += 1;
                drop(pending);
            }
            Err(AppendError::Busy { limit, .. }) => {
                assert_eq!(limit, 4096);
                refused += 1;
            }
            Err(error) => return Err(error.into()),
        }
        assert!(journal.stats().waiting_bytes <= 4096);
    }
    assert_eq!(accepted + refused, 2000);
    let waker = Waker::noop();
    let mut cx = Context::from_waker(waker);
    let mut appends: Vec<_> =
        (0..20).map(|_| Box::pin(journal.append(vec![Record::new(1, vec![0; 3000])]))).collect();
    let mut done = 0;
    for append in &mut appends {
        if let Poll::Ready(outcome) = append.as_mut().poll(&mut cx) {
            outcome?;
            done += 1;
        }
    }
    assert!(done <= 20);
    assert_eq!(journal.append_blocking(vec![])?.next.as_u64(), accepted + 20);
    let huge = journal.append_blocking(vec![Record::new(1, vec![0; 64 << 10])]);
    assert!(matches!(huge, Err(AppendError::TooLarge { .. })), "{huge:?}");
    let mut sync = pin!(journal.sync());
    while sync.as_mut().poll(&mut cx).is_pending() {
        std::thread::yield_now();
    }
    Ok(())
}

/// Memory, but its syncs wait until the gate opens.
struct Gated {
    memory: MemoryStorage,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    is_shut: Mutex<bool>,
    changed: Condvar,
}

struct GatedFile(Arc<dyn StorageFile>, Arc<Gate>);

impl Gate {
    fn shut(&self, is_shut: bool) {
        *self.is_shut.lock().expect("no panic under it") = is_shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let is_shut = self.is_shut.lock().expect("no panic under it");
        drop(self.changed.wait_while(is_shut, |is_shut| *is_shut).expect("no panic under it"));
    }
}

impl Storage for Gated {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(GatedFile(self.memory.create(name)?, self.gate.clone())))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.memory.open(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.memory.list()
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.memory.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.memory.rename(from, to)
    }
    fn sync_directory(&self) -> io::Result<()> {
        self.memory.sync_directory()
    }
}

impl StorageFile for GatedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
}

/// A payload that is counted while it lives.
struct Counted {
    _alive: Arc<()>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &[7; 3000]
    }
}

#[test]
fn appends_that_were_given_up_while_the_disk_hangs_hold_no_memory() -> Outcome {
    let gate = Arc::new(Gate::default());
    let storage = Gated { memory: MemoryStorage::new(), gate: gate.clone() };
    let (journal, _) = Journal::open(storage, small().waiting_bytes_max(4096))?;
    let alive = Arc::new(());
    let record = || vec![Record::new(1, Bytes::from_owner(Counted { _alive: alive.clone() }))];
    gate.shut(true);
    let accepted = journal.submit(record())?;
    let mut cx = Context::from_waker(Waker::noop());
    let mut append = || {
        let mut append = Box::pin(journal.append(record()));
        assert!(append.as_mut().poll(&mut cx).is_pending());
        append
    };
    // One that stays stands before all that go.
    let stays = append();
    for _ in 0..100 {
        drop(append());
    }
    let go: Vec<_> = (0..100).map(|_| append()).collect();
    drop(go);
    assert!(Arc::strong_count(&alive) <= 1 + 2 + 2, "{} payloads are alive", Arc::strong_count(&alive) - 1);
    gate.shut(false);
    accepted.wait_blocking()?;
    let mut stays = stays;
    while stays.as_mut().poll(&mut cx).is_pending() {
        std::thread::yield_now();
    }
    assert_eq!(journal.close_blocking().durable.as_u64(), 2, "what was given up was not written");
    Ok(())
}
