//! The log itself: synchronous, one owner.
//!
//! Guarantee   see the crate's page. [`Log::commit`] returns only when everything appended before is durable.
//! Method      appends are encoded into one buffer; a commit is one write and one sync. A new segment is written
//!             under another name, synced, renamed, and the directory synced, before a record enters it; so a
//!             file with a segment's name has a whole header, and its existence proves the segment before it whole.
//!             Every opening begins a new segment, so nothing is ever written behind a tail that a crash left.
//! Limits      one append fits into one segment; see [`Config`].

mod backup;
mod catalog;
mod inspect;
mod read;
mod recover;
mod segments;
mod snapshot;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

pub use backup::Backup;
pub(crate) use backup::backup;
pub(crate) use catalog::Catalog;
pub use inspect::{Checked, InspectedRecords, Inspection, Progress};
pub use read::{Entry, Reader};
pub use snapshot::Snapshot;
pub(crate) use snapshot::load as load_snapshot;

use crate::config::Config;
use crate::error::{AppendError, Dropped, Failure, OpenError};
use crate::format::{
    Position, RecordHeader, SEGMENT_HEADER_BYTES, encoded_bytes, segment_name, temporary_name,
};
use crate::planted::{self, Planted};
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

/// What a record survives. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// Nothing yet: it is in this process's memory, in its place among the others, and on its way.
    Memory,
    /// The end of this process: the system has the bytes. A power cut may take it, and all after it.
    Written,
    /// A power cut: the disk has said that it has the bytes.
    Synced,
}

/// Where an append's records are, from `first` to just before `next`, and how safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The position of its first record.
    pub first: Position,
    /// The position after its last record; equal to `first` when it had none.
    pub next: Position,
    /// What they survive by now.
    pub durability: Durability,
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
    /// Everything before this is synced.
    durable: Position,
    /// The numbers that files had which wait to be used again.
    spares: VecDeque<u64>,
    failure: Option<Failure>,
    syncs: u64,
}

/// The segment that is written to.
struct Active {
    file: Arc<dyn StorageFile>,
    number: u64,
    /// What its records carry.
    mark: u64,
    first: Position,
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
        if self.active.end + self.buffer.len() as u64 + size > SEGMENT_HEADER_BYTES + limit {
            // The existence of the new segment claims that all before it is durable.
            self.seal()?;
            self.begin_segment()?;
        }
        self.fill_ahead(self.active.end + self.buffer.len() as u64 + size)?;

        let first = self.next;
        let mut contents = self.catalog.lock();
        for (index, record) in records.iter().enumerate() {
            let offset = self.active.end + self.buffer.len() as u64;
            contents.places.note(self.active.first, self.next, offset, self.config.place_bytes());
            let header = RecordHeader {
                position: self.next,
                mark: self.active.mark,
                unsynced: (self.next.as_u64() - self.durable.as_u64()) as u32,
                kind: record.kind,
                is_last: index + 1 == records.len(),
            };
            header.encode(&record.payload, &mut self.buffer);
            self.next = self.next.plus(1);
        }
        Ok(Appended { first, next: self.next, durability: Durability::Memory })
    }

    /// Hands all records so far to the system, with one write, so that they outlive this process.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn write(&mut self) -> Result<Position, AppendError> {
        self.check_failure()?;
        if !self.buffer.is_empty() {
            if let Err(error) = write_full(&*self.active.file, &self.buffer, self.active.end) {
                return Err(self.poison("write", &self.active.name(), error));
            }
            self.active.end += self.buffer.len() as u64;
            self.active.filled = self.active.filled.max(self.active.end);
            self.buffer.clear();
            // One huge append must not hold its memory for ever.
            self.buffer.shrink_to(self.config.batch_bytes_max);
            self.catalog.lock().written = self.next;
        }
        Ok(self.next)
    }

    /// Makes all records so far durable, with one write and one sync; does nothing when they are.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`]: whether the records since the last commit are there is unknown until the log is
    /// opened again. This and every later call fails.
    pub fn commit(&mut self) -> Result<Position, AppendError> {
        self.write()?;
        if self.durable < self.next {
            self.sync()?;
        }
        Ok(self.next)
    }

    fn sync(&mut self) -> Result<(), AppendError> {
        if !planted::has(Planted::CommitDoesNotSync)
            && let Err(error) = self.active.file.sync()
        {
            return Err(self.poison("sync", &self.active.name(), error));
        }
        self.syncs += 1;
        self.durable = self.next;
        self.catalog.lock().durable = self.next;
        Ok(())
    }

    /// Reads the durable records from `from` on. Blocks on the disk; does not follow records that come later.
    pub fn read(&self, from: Position) -> Reader {
        Reader::new(Some(self.storage.clone()), self.catalog.clone(), from, Durability::Synced)
    }

    /// The position that the next record will get.
    pub fn next(&self) -> Position {
        self.next
    }

    /// How many bytes wait to be written.
    pub fn unwritten_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// How many records are written, or wait to be, and are not synced.
    pub fn unsynced_records(&self) -> u64 {
        self.next.as_u64() - self.durable.as_u64()
    }

    /// Where the next record goes in the last segment.
    #[cfg(test)]
    pub(crate) fn end(&self) -> u64 {
        self.active.end
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
}

impl Active {
    fn name(&self) -> String {
        segment_name(self.number, self.first)
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
        if !planted::has(Planted::NewFileIsNotSynced) {
            file.sync().map_err(|error| ("sync", error))?;
        }
        Ok(file)
    };
    attempt().map_err(|(operation, error)| (operation, temporary.clone(), error))
}
