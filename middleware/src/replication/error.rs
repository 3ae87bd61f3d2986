//! What can go wrong with a replica.

use crate::codec::EncodeError;
use crate::group::CastError;

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The command has no encoding. Nothing was sent.
    #[error("the command cannot be encoded")]
    Encode(#[from] EncodeError),
    /// The group did not take it. Nothing was sent.
    #[error("the group did not take the command")]
    Cast(#[from] CastError),
    /// The replica had ended before. Nothing was sent.
    #[error("the replica has ended")]
    Ended,
    /// The replicas could not decode it: they run another version of the command's type. Nothing was applied.
    #[error("the replicas do not understand the command")]
    Malformed,
    /// The replica ended while the command was under way: it may or may not have been applied. Ask another replica
    /// with a command that can tell, for example by an id of its own.
    #[error("outcome unknown: the replica ended while the command was under way")]
    Unknown,
}

impl ApplyError {
    /// True when it is certain that the command was not and will not be applied.
    pub fn is_not_applied(&self) -> bool {
        !matches!(self, Self::Unknown)
    }
}

/// Bytes that are no snapshot of this state machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot: {0}")]
pub struct RestoreError(pub String);
