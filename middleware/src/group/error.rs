//! What can go wrong with a group.

use std::time::Duration;

use quorate_protocols::stack::{Ended, Impossible};
use quorate_transports::Address;

use crate::node::ChannelTaken;

/// Why a membership did not come to be. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// This node is in a group of that name already.
    #[error("the node is in group {name:?} already")]
    Taken {
        /// The group.
        name: String,
        /// The channel.
        #[source]
        source: ChannelTaken,
    },
    /// None of the addresses was given.
    #[error("joining group {name:?} needs the address of a member")]
    NoContact {
        /// The group.
        name: String,
    },
    /// No member let this process in: nobody answered, nobody there is a member, the group has no quorum, or the member
    /// that was asked for the state has not answered [`Event::StateWanted`](super::Event::StateWanted).
    #[error("no member of group {name:?} let us in within {deadline:?}; tried {}", list(tried))]
    Deadline {
        /// The group.
        name: String,
        /// How long it was tried.
        deadline: Duration,
        /// Where.
        tried: Vec<Address>,
    },
    /// The node is shut down, or was meanwhile.
    #[error("the node is shut down")]
    ShutDown,
    /// The membership ended before it had begun.
    #[error("the membership ended at once: {0:?}")]
    Ended(Ended),
    /// `payload_bytes_max` is more than any group carries.
    #[error("limit payload_bytes_max: {asked} bytes are more than the {limit} of the largest message")]
    PayloadLimit {
        /// What was asked for.
        asked: usize,
        /// The most that is possible.
        limit: usize,
    },
    /// The layers of a stack of the user's own cannot stand on each other.
    #[error("such a stack cannot work")]
    Impossible(#[source] Impossible),
    /// A limit that cannot work.
    #[error("limit {name}: {reason}")]
    Limit {
        /// The field of [`Limits`](super::Limits).
        name: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl JoinError {
    /// For a membership that ended with its machine's last word, or without.
    pub(super) fn ended(why: Option<Ended>) -> Self {
        why.map_or(Self::ShutDown, Self::Ended)
    }

    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Ended(_))
    }
}

/// Why a message was not taken. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CastError {
    /// Larger than the limit. Retrying cannot help.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// This process is no longer a member. What it cast before and has not seen among its own events may or may not
    /// have been delivered to the others. `None` when it was dropped or its node shut down.
    #[error("the membership has ended: {0:?}")]
    Ended(Option<Ended>),
}

/// Why a leave was not in good order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// The others did not agree in time; they will have to suspect this process.
    #[error("the others did not let us go within {deadline:?}")]
    Deadline {
        /// The time that was given.
        deadline: Duration,
    },
}

fn list(addresses: &[Address]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
