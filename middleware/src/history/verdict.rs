//! What a checker says.

use std::fmt;

/// `Ok`: the model allows the history.
pub type Verdict = Result<(), Rejection>;

/// Why a history was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The model does not allow it.
    #[error("{0}")]
    Violated(Violation),
    /// It is not known whether the model allows it.
    #[error("undecided: {0}")]
    Undecided(Undecided),
}

/// The proof that a model does not allow a history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not {model}: {why} (operations {operations:?})")]
pub struct Violation {
    /// The model.
    pub model: Model,
    /// The operations that do not fit together, by their place in the history, the telling one first.
    pub operations: Vec<usize>,
    /// What is wrong with them.
    pub why: String,
}

/// Why a checker gave up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Undecided {
    /// The search took all the steps that it was allowed.
    #[error("no order was found in {0} steps")]
    Steps(u64),
    /// There are more operations than it was allowed.
    #[error("{operations} operations exceed the limit of {limit}")]
    TooMany {
        /// How many.
        operations: usize,
        /// The limit.
        limit: usize,
    },
    /// The same value was written to the same key twice: a reader of it may have read either.
    #[error("operations {0} and {1} write the same value")]
    SameValue(usize, usize),
}

/// The models that there are checkers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Model {
    /// One order of all operations, which keeps the order in time of those that do not overlap.
    Linearizable,
    /// One order of all operations, which keeps each process's own.
    Sequential,
    /// Writes that may depend on each other are seen in that order by all.
    Causal,
    /// The writes of one process are seen in its order by all (pipelined RAM).
    Fifo,
    /// Without further writes, all read the same.
    Eventual,
    /// Data that a lock guards are up to date for who holds the lock.
    Entry,
    /// Replicas are not further apart than bounds allow.
    Continuous,
    /// A client never reads what is older than what it has read.
    MonotonicReads,
    /// A client's writes are taken in everywhere in its order.
    MonotonicWrites,
    /// A client reads what it has written, or newer.
    ReadYourWrites,
    /// Who takes in a write has taken in what its writer had read.
    WritesFollowReads,
    /// One order of all transactions.
    Serializable,
    /// One order of all transactions, which keeps the order in time of those that do not overlap.
    StrictlySerializable,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linearizable => "linearizable",
            Self::Sequential => "sequentially consistent",
            Self::Causal => "causally consistent",
            Self::Fifo => "FIFO consistent",
            Self::Eventual => "eventually consistent",
            Self::Entry => "entry consistent",
            Self::Continuous => "continuously consistent",
            Self::MonotonicReads => "monotonic in its reads",
            Self::MonotonicWrites => "monotonic in its writes",
            Self::ReadYourWrites => "reading its writes",
            Self::WritesFollowReads => "letting writes follow reads",
            Self::Serializable => "serializable",
            Self::StrictlySerializable => "strictly serializable",
        })
    }
}

/// How much a checker may do before it gives up. Deciding these questions can take exponential time.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Steps of a search, of one key where keys are searched apart. Each remembers some 100 bytes and a copy of the
    /// object's state. Default 1,000,000.
    pub steps_max: u64,
    /// Operations of a check that compares all with all: n²/8 bytes. Default 10,000, which is 12.5 MB.
    pub operations_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps_max: 1_000_000, operations_max: 10_000 }
    }
}

pub(super) fn violated(model: Model, operations: Vec<usize>, why: impl Into<String>) -> Rejection {
    Rejection::Violated(Violation { model, operations, why: why.into() })
}
