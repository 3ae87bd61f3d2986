//! The log itself: synchronous, one owner.
//!
//! Guarantee   see the crate's page. [`Log::commit`] returns only when everything appended before is durable.
//! Method      appends are encoded into one buffer; a commit is one write and one sync. A new segment is written
//!             under a temporary name, synced, renamed, and the directory synced, before a record enters it; so a
//!             file with a segment's name has a whole header, and its existence proves the segment before it whole.
//!             Every opening begins a new segment, so nothing is ever written behind a tail that a crash left.
//! Limits      one append fits into one segment; see [`Config`].

mod read;
mod recover;
mod snapshot;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

pub use read::{Entry, Reader};
pub use snapshot::Snapshot;
pub(crate) use snapshot::load as load_snapshot;

use crate::config::Config;
use crate::error::{AppendError, Dropped, Failure, OpenError};
use crate::format::{
    Position, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader, encoded_bytes, segment_name, temporary_name,
};
use crate::storage::{Storage, StorageFile, write_full};

/// One record to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the payload is; the meaning is the user's.
    pub kind: u16,
    /// The bytes to keep.
    pub payload: Bytes,
}

impl Record {
    /// A record of that kind.
    pub fn new(kind: u16, payload: impl Into<Bytes>) -> Self {
        Self { kind, payload: payload.into() }
    }
}

/// Where an append's records are: from `first` to just before `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The position of its first record.
    pub first: Position,
    /// The position after its last record; equal to `first` when it had none.
    pub next: Position,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// The first position that is still in the log.
    pub first: Position,
    /// The position that the next record will get.
    pub next: Position,
    /// How many times this log was opened before. Durable before `open` returns, so it may serve as an incarnation.
    pub epoch: u64,
    /// What was cut off the end, if anything: records that nobody was told are durable.
    pub dropped: Option<Dropped>,
}

/// A log over some storage. Not shared; see [`Journal`](crate::Journal) for many writers.
pub struct Log {
    storage: Arc<dyn Storage>,
    config: Config,
    epoch: u64,
    catalog: Arc<Catalog>,
    active: Active,
    /// Encoded records that are not written yet; they go to `active.end`.
    buffer: Vec<u8>,
    next: Position,
    failure: Option<Failure>,
    syncs: u64,
}

/// The segment that is written to.
struct Active {
    file: Arc<dyn StorageFile>,
    number: u64,
    /// Where the next record goes.
    end: u64,
    /// Up to here the file has bytes.
    filled: u64,
}

impl Log {
    /// Opens the log in `storage`, creating it when there is none.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is changed in a directory that belongs to another owner, that has another format
    /// version, or that is corrupt.
    pub fn open(storage: impl Storage, config: Config) -> Result<(Self, Recovered), OpenError> {
        let storage: Arc<dyn Storage> = Arc::new(storage);
        recover::open(storage.clone(), config).map_err(|error| error.located(&*storage))
    }

    /// Takes records into the log's buffer and gives them positions; they are durable after [`commit`](Self::commit).
    ///
    /// They survive a crash together or not at all. May write and sync earlier records to make room.
    ///
    /// # Errors
    /// After [`AppendError::TooLarge`] and [`AppendError::DiskFull`] the log is as it was.
    pub fn append(&mut self, records: &[Record]) -> Result<Appended, AppendError> {
        self.check_failure()?;
        let size = appended_bytes(records);
        let limit = self.config.append_bytes_max();
        if size > limit {
            return Err(AppendError::TooLarge { size, limit });
        }
        if !self.buffer.is_empty() && self.buffer.len() as u64 + size > self.config.batch_bytes_max as u64 {
            self.commit()?;
        }
        if self.active.end + self.buffer.len() as u64 + size > self.config.segment_bytes {
            // The new segment's header claims that all before it is durable.
            self.commit()?;
            self.begin_segment()?;
        }
        self.fill_ahead(self.active.end + self.buffer.len() as u64 + size)?;

        let first = self.next;
        let durable = self.catalog.lock().durable;
        for (index, record) in records.iter().enumerate() {
            let offset = self.active.end + self.buffer.len() as u64;
            self.catalog.lock().note(self.next, offset);
            let header = RecordHeader {
                position: self.next,
                segment: self.active.number,
                unsynced: (self.next.as_u64() - durable.as_u64()) as u32,
                kind: record.kind,
                is_last: index + 1 == records.len(),
            };
            header.encode(&record.payload, &mut self.buffer);
            self.next = self.next.plus(1);
        }
        Ok(Appended { first, next: self.next })
    }

    /// Makes all records so far durable, with one write and one sync; does nothing when they are.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`]: whether the records since the last commit are there is unknown until the log is
    /// opened again. This and every later call fails.
    pub fn commit(&mut self) -> Result<Position, AppendError> {
        self.check_failure()?;
        if !self.buffer.is_empty() {
            let file = &*self.active.file;
            let outcome = write_full(file, &self.buffer, self.active.end)
                .map_err(|error| ("write", error))
                .and_then(|()| file.sync().map_err(|error| ("sync", error)));
            if let Err((operation, error)) = outcome {
                return Err(self.poison(operation, &segment_name(self.active.number), error));
            }
            self.syncs += 1;
            self.active.end += self.buffer.len() as u64;
            self.active.filled = self.active.filled.max(self.active.end);
            self.buffer.clear();
            // One huge append must not hold its memory for ever.
            self.buffer.shrink_to(self.config.batch_bytes_max);
            self.catalog.lock().durable = self.next;
        }
        Ok(self.next)
    }

    /// Drops whole segments whose records all lie before `position`; returns the first position still there.
    ///
    /// The segment that is written to is never dropped. A crash in between leaves some of them for the next time.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`] when the directory cannot be changed.
    pub fn truncate_before(&mut self, position: Position) -> Result<Position, AppendError> {
        self.check_failure()?;
        loop {
            let (number, first) = {
                let catalog = self.catalog.lock();
                let first = catalog.first();
                match (catalog.segments.front(), catalog.segments.get(1)) {
                    (Some(oldest), Some(next)) if next.first <= position => (oldest.number, first),
                    _ => return Ok(first),
                }
            };
            tracing::debug!(segment = number, first = first.as_u64(), "journal segment dropped");
            // Readers must not begin in it any more before it is gone.
            self.catalog.lock().segments.pop_front();
            // One directory sync each: a crash must not remove a segment and leave an older one.
            self.change_directory("remove", &segment_name(number), |storage, name| storage.remove(name))?;
        }
    }

    /// Reads the durable records from `from` on. Blocks on the disk; does not follow records that come later.
    pub fn read(&self, from: Position) -> Reader {
        Reader::new(Some(self.storage.clone()), self.catalog.clone(), from)
    }

    /// The position that the next record will get.
    pub fn next(&self) -> Position {
        self.next
    }

    /// How many bytes wait for a commit.
    pub fn uncommitted_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Syncs of record batches so far.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.clone()
    }

    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    /// The failure that poisoned the log, if one did.
    pub(crate) fn check_failure(&self) -> Result<(), AppendError> {
        match &self.failure {
            Some(failure) => Err(AppendError::Poisoned(failure.clone())),
            None => Ok(()),
        }
    }

    fn poison(&mut self, operation: &'static str, file: &str, source: io::Error) -> AppendError {
        let failure = Failure::new(operation, self.storage.locate(file), source);
        tracing::error!(operation, file = failure.file(), error = %failure.source, "journal poisoned");
        self.failure = Some(failure.clone());
        AppendError::Poisoned(failure)
    }

    /// Changes a name and makes the change durable.
    fn change_directory(
        &mut self,
        operation: &'static str,
        file: &str,
        change: impl FnOnce(&dyn Storage, &str) -> io::Result<()>,
    ) -> Result<(), AppendError> {
        if let Err(error) = change(&*self.storage, file) {
            return Err(self.poison(operation, file, error));
        }
        if let Err(error) = self.storage.sync_directory() {
            return Err(self.poison("sync the directory of", file, error));
        }
        Ok(())
    }

    /// Closes the active segment, all of whose records are durable, and begins the next.
    fn begin_segment(&mut self) -> Result<(), AppendError> {
        let header = SegmentHeader {
            owner: self.config.owner,
            number: self.active.number + 1,
            epoch: self.epoch,
            first: self.next,
        };
        let name = segment_name(header.number);
        let file = self.replace(&name, &[&header.encode()])?;
        self.catalog.lock().segments.push_back(Segment::new(header.number, header.first));
        self.active =
            Active { file, number: header.number, end: SEGMENT_HEADER_BYTES, filled: SEGMENT_HEADER_BYTES };
        Ok(())
    }

    /// Puts a whole new file in the place of `name`, durably, or leaves what is there.
    fn replace(&mut self, name: &str, parts: &[&[u8]]) -> Result<Arc<dyn StorageFile>, AppendError> {
        let file = match write_whole(&*self.storage, name, parts) {
            Ok(file) => file,
            Err((_, _, error)) if error.kind() == io::ErrorKind::StorageFull => {
                // Give back what the attempt took; if that fails, the next opening does it.
                let _ = self.storage.remove(&temporary_name(name));
                return Err(AppendError::DiskFull);
            }
            Err((operation, file, error)) => return Err(self.poison(operation, &file, error)),
        };
        let temporary = temporary_name(name);
        self.change_directory("rename", &temporary, |storage, temporary| storage.rename(temporary, name))?;
        Ok(file)
    }

    /// Sees to it that the file has bytes up to `end`, with some to spare, so that a full disk shows before a record
    /// is written and so that most syncs need not commit a new size.
    fn fill_ahead(&mut self, end: u64) -> Result<(), AppendError> {
        if self.config.zero_fill_bytes == 0 || end <= self.active.filled {
            return Ok(());
        }
        let target = (end + self.config.zero_fill_bytes).min(self.config.segment_bytes).max(end);
        while self.active.filled < target {
            let count = (target - self.active.filled).min(ZEROS.len() as u64);
            match write_full(&*self.active.file, &ZEROS[..count as usize], self.active.filled) {
                Ok(()) => self.active.filled += count,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    // Zeros behind the last record harm nobody.
                    if end <= self.active.filled {
                        return Ok(());
                    }
                    return Err(AppendError::DiskFull);
                }
                Err(error) => {
                    return Err(self.poison("write", &segment_name(self.active.number), error));
                }
            }
        }
        Ok(())
    }
}

/// What a log holds and how far it is durable: shared with readers.
pub(crate) struct Catalog(Mutex<Contents>);

pub(crate) struct Contents {
    /// Oldest first; never empty.
    pub(crate) segments: VecDeque<Segment>,
    /// All before this is durable.
    pub(crate) durable: Position,
}

pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) first: Position,
    /// Every `INDEX_BYTES` or so the place of a record, ascending.
    index: Vec<(Position, u64)>,
}

impl Catalog {
    fn new(segments: VecDeque<Segment>, durable: Position) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Contents { segments, durable })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Contents> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    pub(crate) fn first(&self) -> Position {
        self.segments.front().map_or(self.durable, |segment| segment.first)
    }

    fn note(&mut self, position: Position, offset: u64) {
        if let Some(segment) = self.segments.back_mut() {
            segment.note(position, offset);
        }
    }
}

impl Segment {
    fn new(number: u64, first: Position) -> Self {
        Self { number, first, index: Vec::new() }
    }

    fn note(&mut self, position: Position, offset: u64) {
        if self.index.last().is_none_or(|(_, last)| offset - last >= INDEX_BYTES) {
            self.index.push((position, offset));
        }
    }

    /// The nearest known place at or before `position`.
    fn place(&self, position: Position) -> (Position, u64) {
        let after = self.index.partition_point(|(known, _)| *known <= position);
        match after.checked_sub(1) {
            Some(at) => self.index[at],
            None => (self.first, SEGMENT_HEADER_BYTES),
        }
    }
}

/// Bytes that an append takes on disk.
pub(crate) fn appended_bytes(records: &[Record]) -> u64 {
    records.iter().map(|record| encoded_bytes(record.payload.len()) as u64).sum()
}

/// Writes a file under its temporary name and syncs it. The error names the operation and the file.
fn write_whole(
    storage: &dyn Storage,
    name: &str,
    parts: &[&[u8]],
) -> Result<Arc<dyn StorageFile>, (&'static str, String, io::Error)> {
    let temporary = temporary_name(name);
    let attempt = || {
        let file = storage.create(&temporary).map_err(|error| ("create", error))?;
        let mut offset = 0;
        for part in parts {
            write_full(&*file, part, offset).map_err(|error| ("write", error))?;
            offset += part.len() as u64;
        }
        file.sync().map_err(|error| ("sync", error))?;
        Ok(file)
    };
    attempt().map_err(|(operation, error)| (operation, temporary.clone(), error))
}

/// Between two entries of a segment's index: at most this much is read in vain to find a record, and a backlog of
/// 10 GiB costs 2.5 MiB of memory.
const INDEX_BYTES: u64 = 64 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
