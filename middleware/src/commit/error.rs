//! What can go wrong with transactions.

use quorate_journal::{AppendError, Position, ReadError};
use quorate_protocols::WireError;
use quorate_protocols::commit;

use crate::node::ChannelTaken;

/// Why transactions cannot be served. Nothing is running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name is served on this node already.
    #[error("these transactions are open already")]
    Open(#[from] ChannelTaken),
    /// The journal cannot be read.
    #[error("cannot read the journal")]
    Read(#[from] ReadError),
    /// The journal takes no records.
    #[error("cannot write the journal")]
    Write(#[from] AppendError),
    /// A record of transactions is none. The journal's checksums hold, so another program or version wrote it.
    #[error("record {position} of the journal is none of transactions")]
    Record {
        /// Which.
        position: Position,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The snapshot of the transactions is none. Its checksum holds, so another program or version wrote it.
    #[error("the journal's snapshot {name} is none of transactions")]
    Snapshot {
        /// Which.
        name: String,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    Runtime,
}

/// Why a transaction was not begun: nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// It cannot be, or not now.
    #[error("refused")]
    Refused(#[from] commit::BeginError),
    /// Serving has stopped: after a shutdown, or because the journal failed.
    #[error("transactions are not served any more")]
    Stopped,
}

impl BeginError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Refused(commit::BeginError::Full { .. }))
    }
}
