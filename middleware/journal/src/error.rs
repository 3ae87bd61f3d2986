//! What can go wrong, whose fault it is, and what state the journal is in afterwards.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::format::Position;
use crate::storage::Storage;

/// Why a journal could not be opened. The directory is as it was, unless a variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting is out of its range.
    #[error("journal setting `{field}` is {reason}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another process, or another handle in this one, has the directory open.
    #[error("journal directory {} is in use", directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory belongs to somebody else.
    #[error("{file} belongs to owner {found}, not to {expected}")]
    Owner {
        /// The first file that says so.
        file: String,
        /// Who wrote it.
        found: u64,
        /// Who wanted to open it.
        expected: u64,
    },
    /// A file has a journal's name but is none.
    #[error("{file} is not a journal file")]
    NotAJournal {
        /// The file.
        file: String,
    },
    /// A file was written by a version of the format that this library does not read.
    #[error("{file} has format version {found}; this library reads version {supported}")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The directory holds a backup that was not finished. Make it again, in an empty directory.
    #[error("{file} marks a backup that was not finished")]
    IncompleteBackup {
        /// The mark.
        file: String,
    },
    /// Records that were once durable are damaged. Nothing was changed; a copy or a replica must repair it.
    #[error("journal is corrupt")]
    Corrupt(#[source] Corruption),
    /// No room for the new segment that every opening begins. Free some space and open again.
    #[error("disk full")]
    DiskFull,
    /// The storage failed. Opening again is safe.
    #[error("cannot {operation} {file}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Names the file in a way that leads to it.
    pub(crate) fn located(mut self, storage: &dyn Storage) -> Self {
        match &mut self {
            Self::Owner { file, .. }
            | Self::NotAJournal { file }
            | Self::IncompleteBackup { file }
            | Self::Version { file, .. }
            | Self::Io { file, .. }
            | Self::Corrupt(Corruption { file, .. }) => *file = storage.locate(file),
            Self::Config { .. } | Self::InUse { .. } | Self::DiskFull => {}
        }
        self
    }
}

/// Damage that is not the torn tail of the last segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file} at byte {offset}: {reason}")]
pub struct Corruption {
    /// The damaged file.
    pub file: String,
    /// Where the damage begins, in bytes from the file's start.
    pub offset: u64,
    /// What is wrong there.
    pub reason: String,
}

/// Why an append did not succeed. Unless a variant says otherwise, none of its records is in the log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The append exceeds what one segment holds. Retrying cannot help.
    #[error("append of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size, with the overhead of its records.
        size: u64,
        /// The most that is taken.
        limit: u64,
    },
    /// Too much waits for its sync already. Only from [`Journal::submit`](crate::Journal::submit), which does not
    /// wait for room.
    #[error("{waiting} bytes wait already (limit {limit})")]
    Busy {
        /// Bytes that wait.
        waiting: usize,
        /// The limit.
        limit: usize,
    },
    /// A snapshot's name is not 1 to 64 of `a-z 0-9 - _`.
    #[error("snapshot name {name:?} is not 1 to 64 of a-z, 0-9, - and _")]
    SnapshotName {
        /// The name.
        name: String,
    },
    /// A snapshot claims to stand for records that are not in the log.
    #[error("snapshot up to position {position} is ahead of the log, which ends at {next}")]
    SnapshotAhead {
        /// What it claims to cover.
        position: Position,
        /// Where the log ends.
        next: Position,
    },
    /// The disk is full. The log is unharmed: the same append may succeed when there is room.
    #[error("disk full")]
    DiskFull,
    /// A write or a sync failed, now or earlier: the records of this append **may or may not** be found when the
    /// journal is opened again. Every later append fails too; close, find out what is wrong with the disk, reopen.
    #[error("journal is poisoned")]
    Poisoned(#[source] Failure),
    /// The journal was closed.
    #[error("journal is closed")]
    Closed,
}

impl AppendError {
    /// True when the same call may succeed later on the same journal.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::DiskFull)
    }
}

/// The failure that poisoned a journal.
#[derive(Debug, Clone)]
pub struct Failure {
    pub(crate) operation: &'static str,
    pub(crate) file: String,
    pub(crate) source: Arc<io::Error>,
}

impl Failure {
    pub(crate) fn new(operation: &'static str, file: String, source: io::Error) -> Self {
        Self { operation, file, source: Arc::new(source) }
    }

    /// What was attempted: "write", "sync", ...
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// On which file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What kind of failure the system reported.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.operation, self.file)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// Why a record or a snapshot could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The records were dropped by a truncation; the log now begins at `first`.
    #[error("position is before the log's beginning at {first}")]
    Truncated {
        /// The first position that is still there.
        first: Position,
    },
    /// The journal was closed.
    #[error("journal is closed")]
    Closed,
    /// What was once durable is damaged.
    #[error("journal is corrupt")]
    Corrupt(#[source] Corruption),
    /// The storage failed; reading again is safe.
    #[error("cannot {operation} {file}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ReadError {
    /// Names the file in a way that leads to it.
    pub(crate) fn located(mut self, storage: &dyn Storage) -> Self {
        if let Self::Corrupt(Corruption { file, .. }) | Self::Io { file, .. } = &mut self {
            *file = storage.locate(file);
        }
        self
    }
}

/// Why a backup was not made. What is in its directory by then is marked as incomplete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is a journal, or a part of one, where the backup should go.
    #[error("{file} is there already")]
    NotEmpty {
        /// The first file of it.
        file: String,
    },
    /// The journal cannot be read: it is damaged, or closed.
    #[error("cannot read the journal")]
    Read(#[from] ReadError),
    /// The backup cannot be written.
    #[error("cannot {operation} {file}")]
    Write {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What recovery cut off the end of the log: records that were never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The segment whose tail was cut.
    pub file: String,
    /// Where the cut begins, in bytes from the file's start.
    pub offset: u64,
    /// Bytes from the cut to the end of what was written.
    pub bytes: u64,
    /// Why.
    pub reason: DropReason,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {} from byte {}: {}", self.bytes, self.file, self.offset, self.reason)
    }
}

/// Why recovery cut the log where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// A record's checksum or header is wrong: it was being written when the process or the power failed.
    Torn,
    /// The records are whole, but later ones of the same append are missing.
    IncompleteAppend,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torn => "torn record",
            Self::IncompleteAppend => "append without its end",
        })
    }
}
