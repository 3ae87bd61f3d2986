//! What can go wrong with names.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::book::{ENTRIES_MAX, SESSION_ENTRIES_MAX, SESSIONS_MAX};
use super::entry::{ENTRY_BYTES_MAX, NAME_BYTES_MAX};
use crate::group::JoinError;
use crate::rpc::ServeError;

/// Why the directory refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty or too long.
    #[error("a name of {bytes} bytes; it must have 1 to {NAME_BYTES_MAX}")]
    Name {
        /// Its length.
        bytes: usize,
    },
    /// Name, addresses and attributes together are too long.
    #[error("an entry of {bytes} bytes; at most {ENTRY_BYTES_MAX} are kept")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The lease is shorter or longer than the directory grants.
    #[error("a lease of {lease:?}; {min:?} to {max:?} are granted")]
    Lease {
        /// The one asked for.
        lease: Duration,
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// The directory holds as many entries as it may.
    #[error("the directory holds {ENTRIES_MAX} entries already")]
    TooManyEntries,
    /// One handle has registered as much as it may.
    #[error("{SESSION_ENTRIES_MAX} entries are registered through one handle already")]
    TooManyOfOne,
    /// The directory serves as many handles with registrations as it may.
    #[error("the directory keeps {SESSIONS_MAX} leases already")]
    TooManySessions,
    /// The lease has run out, and what was registered under it is gone.
    #[error("the lease has run out")]
    SessionEnded,
    /// Nobody has registered the name.
    #[error("nobody has registered {name:?}, within {waited:?}")]
    NotRegistered {
        /// The name.
        name: String,
        /// How long was waited for it.
        waited: Duration,
    },
    /// Nobody has registered the name, and who is to start it could not.
    #[error("{name:?} could not be started: {reason}")]
    NotStarted {
        /// The name.
        name: String,
        /// What went wrong, in the words of who tried.
        reason: String,
    },
    /// This replica cannot answer now; another one may.
    #[error("this replica of the directory cannot answer: {0}")]
    Unavailable(String),
}

/// Why a handle to the directory has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamesError {
    /// The directory refused.
    #[error(transparent)]
    Refused(NameError),
    /// No replica answered in time. Asking again is safe.
    #[error(
        "no replica of the directory answered within {waited:?}; the last one tried, {address}, said: {reason}"
    )]
    Unreachable {
        /// How long was tried.
        waited: Duration,
        /// The replica tried last.
        address: String,
        /// What it, or the connection to it, said.
        reason: String,
    },
    /// There is no address to ask at.
    #[error("no address of the directory was given")]
    NoAddress,
    /// This node is being shut down, or the handle was closed.
    #[error("the handle to the directory is closed")]
    Closed,
}

/// Why a replica of the directory could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// It could not become a member of the replicas' group.
    #[error("no membership in the directory's group")]
    Join(#[from] JoinError),
    /// The group ended, or its state could not be taken over, before this replica had it.
    #[error("the directory ended before this replica had its state")]
    NoState,
    /// The node serves a directory already.
    #[error("the directory cannot be served")]
    Serve(#[from] ServeError),
}
