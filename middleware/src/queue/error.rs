//! What can go wrong with a queue.

use std::sync::Arc;

use quorate_journal::{AppendError, OpenError, Position, ReadError};

use super::message::MessageId;

/// Why the queues of a directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueuesOpenError {
    /// The node was started without a directory.
    #[error("the node has no directory to keep queues in")]
    NoDirectory,
    /// The journal under them.
    #[error("cannot open the queues' journal")]
    Journal(#[source] OpenError),
    /// What the journal holds could not be read.
    #[error("cannot read the queues' journal")]
    Read(#[source] ReadError),
    /// The checkpoint was damaged, and could not be replaced.
    #[error("cannot replace the queues' damaged checkpoint")]
    Checkpoint(#[source] AppendError),
    /// A record is whole, but not one that queues write: the directory serves something else.
    #[error("record {position} is no queue record: {reason}")]
    Record {
        /// Which.
        position: Position,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The list of names is whole, but not one that queues write.
    #[error("the list of queues cannot be understood: {reason}")]
    Names {
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Why a queue could not be created or opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DeclareError {
    /// The name is not 1 to 128 of `a-z 0-9 - _ .`
    #[error("queue name {name:?} is not 1 to 128 of a-z, 0-9, -, _ and .")]
    Name {
        /// The name.
        name: String,
    },
    /// A setting is out of its range.
    #[error("queue setting `{field}` is out of its range")]
    Config {
        /// The setting.
        field: &'static str,
    },
    /// More names are to be remembered than a queue may.
    #[error("more than {limit} names to be remembered")]
    Names {
        /// The limit.
        limit: usize,
    },
    /// There are as many queues as there may be.
    #[error("there are {limit} queues already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The journal does not take the new name.
    #[error("cannot store the queue's name")]
    Journal(#[source] AppendError),
}

/// Why a put did not complete. Unless a variant says otherwise, the message is *not* in the queue.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The queue has no room, and its policy is to reject. Retry after a consumer acknowledged.
    #[error("queue full ({messages} messages, {bytes} bytes)")]
    Full {
        /// Messages in it.
        messages: usize,
        /// Bytes in it.
        bytes: usize,
    },
    /// The payload exceeds the limit for one message. Retrying cannot help.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// So many messages at once never fit into the queue. Retrying cannot help.
    #[error("{count} messages of {size} bytes exceed a queue of {messages} messages and {bytes} bytes")]
    TooMany {
        /// How many.
        count: usize,
        /// Their bytes.
        size: usize,
        /// The queue's limit in messages.
        messages: usize,
        /// Its limit in bytes.
        bytes: usize,
    },
    /// A message's key has more than 255 bytes, or its name not 1 to 255, or the key of an entry is not one.
    #[error("the {field} has a wrong length, or is reserved")]
    Label {
        /// Which of them.
        field: &'static str,
    },
    /// A message of this name was put before, and is only in memory: it is not as safe as this put asks. When it has left the
    /// queue, this put is told that it was put before.
    #[error("message {id} of the same name is in memory only")]
    InMemory {
        /// The message that was put before.
        id: MessageId,
    },
    /// The journal did not take it. After [`AppendError::Poisoned`] the message **may or may not** be found when the
    /// queues are opened again.
    #[error("cannot store the message")]
    Journal(#[source] AppendError),
}

impl PutError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full { .. } | Self::InMemory { .. } => true,
            Self::Journal(error) => error.is_retryable(),
            Self::TooLarge { .. } | Self::TooMany { .. } | Self::Label { .. } => false,
        }
    }
}

/// Why a unit of work was not done. Unless a variant says otherwise, *nothing* of it was done, and its messages go back to
/// their queues.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// The lease on one of its messages ran out and the message went to someone else, or to the dead letters.
    #[error("the lease on a message was lost")]
    LeaseLost,
    /// One of its messages cannot be put; after [`AppendError::Poisoned`] all of it **may or may not** have been done when
    /// the queues are opened again.
    #[error("a message cannot be put")]
    Put(#[source] PutError),
    /// A queue or a message of other queues than those it was made from was handed in.
    #[error("a queue or a message belongs to other queues")]
    Foreign,
    /// The application's state would be too large.
    #[error("state of {size} bytes exceeds the limit of {limit}")]
    State {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why a message could not be taken, acknowledged or given back.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The lease ran out and the message went to someone else, or to the dead letters.
    #[error("the lease on the message was lost")]
    LeaseLost,
    /// The queues were closed.
    #[error("the queues are closed")]
    Closed,
    /// The next message cannot be read back: the disk fails, or what it holds is damaged.
    #[error("cannot read the next message")]
    Read(#[source] Arc<ReadError>),
    /// The journal did not take the record. After [`AppendError::Poisoned`] the acknowledgement may or may not be found
    /// when the queues are opened again; after all others the message was given back.
    #[error("cannot store the change")]
    Journal(#[source] AppendError),
}
