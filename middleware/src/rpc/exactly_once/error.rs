//! What can go wrong with a durable state, and what is known then.

use quorate_journal::{AppendError, OpenError, ReadError};
use quorate_protocols::WireError;

use crate::codec::{DecodeError, EncodeError};

/// Why a durable state could not be opened. The journal is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DurableOpenError {
    /// The node has no directory to keep a journal in.
    #[error("the node has no directory")]
    NoDirectory,
    /// The journal could not be opened.
    #[error("the journal cannot be opened")]
    Journal(#[from] OpenError),
    /// The journal could not be read.
    #[error("the journal cannot be read")]
    Read(#[from] ReadError),
    /// A record of the journal, or its snapshot, is none of ours.
    #[error("the journal holds a record that is none of a durable state: {0}")]
    Record(#[from] WireError),
    /// A change or the state itself is not understood: its type has changed since it was written.
    #[error("the journal holds a state or a change of another type: {0}")]
    State(#[from] DecodeError),
    /// The runtime was shut down meanwhile.
    #[error("the runtime was shut down")]
    Runtime,
}

/// Why something is not known to be durable. The state serves nothing any more until it is opened again, and then holds
/// what is durable: the change in question may be among it or not.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NotDurable {
    /// The journal failed.
    #[error("the journal failed")]
    Journal(#[source] AppendError),
    /// The change cannot be written as one record; nothing was changed, and the state goes on.
    #[error("the change cannot be encoded: {0}")]
    Encode(EncodeError),
    /// As [`Encode`](Self::Encode): the change exceeds what the journal takes at once.
    #[error("a change of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The state's own code panicked while it applied a change.
    #[error("the state's code panicked")]
    Panicked,
    /// It was closed.
    #[error("the state is closed")]
    Closed,
}
