//! Stable storage: a segmented, checksummed, group-committing append-only log.
//!
//! Purpose     what was acknowledged survives a crash at any instant. Queues, exactly-once calls, commit logs and
//!             checkpoints all stand on this one journal.
//! Guarantee   a position that an append returned is as safe as its [`Durability`] says; by default durable (the file was synced, and so was the directory that
//!             names it). After any crash, opening finds every acknowledged record, in order, byte for byte; an
//!             append of several records is there whole or not at all; nothing is ever accepted after a hole.
//! Method      one committer thread: while one sync runs, everything that arrives is the next batch. No timer.
//!             A failed write or sync *poisons* the journal: all waiters and every later append fail, nothing is
//!             retried, because after a failed sync the kernel may already have forgotten the bytes.
//! Layers      [`Storage`] (a directory: real, in memory, or a simulated faulty disk), [`Log`] (synchronous, one
//!             owner), [`Journal`] (the cheap, cloneable, runtime-agnostic async handle over a log).
//! Limits      every one is named in [`Config`]. A 512-byte sector is taken to be written whole or not at all; a
//!             disk that lies about flushes is beyond what any log can repair.
//!
//! ```
//! use quorate_journal::{Config, Journal, MemoryStorage, Position, Record};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (journal, recovered) = Journal::open(MemoryStorage::new(), Config::new(7))?;
//! assert_eq!(recovered.next, Position::ZERO);
//! let appended = journal.append_blocking(vec![Record::new(1, "hello")])?; // `append(..).await` in async code
//! let entry = journal.read(appended.first).next().ok_or("the record is there")??;
//! assert_eq!(entry.payload, "hello");
//! # Ok(())
//! # }
//! ```

mod config;
mod error;
mod format;
mod journal;
mod log;
mod planted;
mod storage;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use error::{AppendError, BackupError, Corruption, DropReason, Dropped, Failure, OpenError, ReadError};
pub use format::{Position, RECORD_OVERHEAD_BYTES};
pub use journal::{Closed, Journal, JournalStats, Pending};
pub use log::{
    Appended, Backup, Checked, Durability, Entry, InspectedRecords, Inspection, Log, Progress, Reader,
    Record, Recovered, Snapshot,
};
pub use storage::{Faults, FaultyStorage, MemoryStorage, Storage, StorageFile};

#[cfg(unix)]
pub use storage::FileStorage;
