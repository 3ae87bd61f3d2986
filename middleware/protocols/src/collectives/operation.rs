//! What a member may call, what it gets, and why it may get nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::message::Kind;

/// How two partial results become one. It must be associative; it is applied in the order of the ranks.
pub type Combine = Arc<dyn Fn(&[u8], &[u8]) -> Bytes + Send + Sync>;

/// One call of the local member.
#[derive(Clone)]
pub enum Operation {
    /// Nobody goes on before everybody has come.
    Barrier,
    /// The root's bytes go to everybody.
    Broadcast {
        /// Who has them.
        root: u32,
        /// They, on the root; ignored elsewhere.
        body: Bytes,
    },
    /// Each member gets its own part from the root.
    Scatter {
        /// Who has them.
        root: u32,
        /// One for each member, on the root; ignored elsewhere.
        parts: Vec<Bytes>,
    },
    /// The root gets everybody's bytes.
    Gather {
        /// Who gets them.
        root: u32,
        /// This member's.
        body: Bytes,
    },
    /// Everybody gets everybody's bytes.
    AllGather {
        /// This member's.
        body: Bytes,
    },
    /// The root gets the combination of everybody's bytes.
    Reduce {
        /// Who gets it.
        root: u32,
        /// This member's.
        body: Bytes,
        /// How to combine.
        combine: Combine,
    },
    /// Everybody gets the combination of everybody's bytes.
    AllReduce {
        /// This member's.
        body: Bytes,
        /// How to combine.
        combine: Combine,
    },
    /// Everybody gets the combination of the bytes of all members up to itself.
    Scan {
        /// This member's.
        body: Bytes,
        /// How to combine.
        combine: Combine,
    },
    /// Each member has a part for each member.
    AllToAll {
        /// One for each member.
        parts: Vec<Bytes>,
    },
    /// A member is dead as far as this one knows: what needs it fails. Not numbered, and without an event of its own.
    GiveUp {
        /// Which.
        rank: u32,
    },
}

impl Operation {
    pub(super) fn kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Barrier => Kind::Barrier,
            Self::Broadcast { .. } => Kind::Broadcast,
            Self::Scatter { .. } => Kind::Scatter,
            Self::Gather { .. } => Kind::Gather,
            Self::AllGather { .. } => Kind::AllGather,
            Self::Reduce { .. } => Kind::Reduce,
            Self::AllReduce { .. } => Kind::AllReduce,
            Self::Scan { .. } => Kind::Scan,
            Self::AllToAll { .. } => Kind::AllToAll,
            Self::GiveUp { .. } => return None,
        })
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GiveUp { rank } => write!(f, "give up {rank}"),
            other => write!(f, "{:?}", other.kind()),
        }
    }
}

/// The end of an operation here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveEnd {
    /// Which operation of this member, counting from 0.
    pub number: u64,
    /// One item where the result is one, one for each member in the order of ranks where there are so many, none where
    /// this member gets nothing.
    pub result: Result<Vec<Bytes>, CollectiveError>,
}

/// Why an operation failed here; the members may differ in that, but none of them hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A member is gone.
    #[error("member {rank} is gone")]
    Gone {
        /// Which.
        rank: u32,
    },
    /// The others did not come within the time.
    #[error("not everybody came within {waited:?}")]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// A member calls another operation at this place.
    #[error("member {rank} calls another operation")]
    Mismatch {
        /// Which.
        rank: u32,
    },
    /// The arguments make no sense: a root that is no member, or not one part for each member.
    #[error("not the arguments of this operation")]
    Arguments,
}

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectiveConfig {
    /// After how long an operation is given up. Default 30 s.
    pub give_up_after: Duration,
    /// After how long a message without an acknowledgement is repeated. Default 200 ms.
    pub repeat_after: Duration,
}

impl Default for CollectiveConfig {
    fn default() -> Self {
        Self { give_up_after: Duration::from_secs(30), repeat_after: Duration::from_millis(200) }
    }
}
