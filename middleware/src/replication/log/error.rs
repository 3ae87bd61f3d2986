//! What can go wrong with a replica on a log.

use quorate_journal::{AppendError, Position, ReadError};
use quorate_protocols::WireError;
use quorate_protocols::agreement::{self, Refusal};

use crate::codec::EncodeError;
use crate::node::ChannelTaken;
use crate::replication::RestoreError;

/// Why a replica cannot take part. Nothing is running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A log of that name is open on this node already.
    #[error("this log is open already")]
    Open(#[from] ChannelTaken),
    /// The journal cannot be read.
    #[error("cannot read the journal")]
    Read(#[from] ReadError),
    /// The journal takes no records.
    #[error("cannot write the journal")]
    Write(#[from] AppendError),
    /// A record is none of a replicated log. The journal's checksums hold, so another program or version wrote it.
    #[error("record {position} of the journal is none of a replicated log")]
    Record {
        /// Which.
        position: Position,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The journal's snapshot is none of a replicated log.
    #[error("the journal's snapshot is none of a replicated log")]
    Snapshot {
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The records do not fit together.
    #[error("the records of the log do not fit together")]
    Log(#[source] agreement::RestoreError),
    /// The state machine does not understand its own snapshot.
    #[error("the state machine cannot take up its snapshot")]
    Restore(#[from] RestoreError),
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    Runtime,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The command has no encoding. Nothing was sent.
    #[error("the command cannot be encoded")]
    Encode(#[from] EncodeError),
    /// It was not applied and will not be.
    #[error("refused")]
    Refused(#[from] Refusal),
    /// The replica had ended before. Nothing was sent.
    #[error("the replica has ended")]
    Ended,
    /// The replicas could not decode it: they run another version of the command's type. Nothing was applied.
    #[error("the replicas do not understand the command")]
    Malformed,
    /// It was applied, but this replica took over a snapshot that contains it, and does not know the answer.
    #[error("the command was applied, and its answer is lost")]
    AnswerLost,
    /// The replica ended while the command was under way: it may or may not be applied. Ask another replica with a
    /// command that can tell, for example by an id of its own.
    #[error("outcome unknown: the replica ended while the command was under way")]
    Unknown,
}

/// What is known of a command that has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Applied,
    /// It was not applied and will not be: to give it again does it once.
    Rejected,
    /// It may have been applied, or still be: to give it again may do it twice.
    Unknown,
}

impl ApplyError {
    /// What came of the command.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Encode(_) | Self::Refused(_) | Self::Ended | Self::Malformed => Outcome::Rejected,
            Self::AnswerLost => Outcome::Applied,
            Self::Unknown => Outcome::Unknown,
        }
    }
}

/// Why the members were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// They were not and will not be.
    #[error("refused")]
    Refused(#[from] Refusal),
    /// The replica had ended before.
    #[error("the replica has ended")]
    Ended,
    /// The replica ended, or was behind, while the change was under way: look at the members.
    #[error("outcome unknown")]
    Unknown,
}
