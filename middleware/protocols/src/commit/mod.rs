//! Two-phase commit: many concurrent transactions, every process coordinator and participant at once.
//!
//! Guarantee   all participants of a transaction commit it or all abort it, whatever is lost, repeated or crashes, as
//!             long as records survive. A participant that voted yes never decides alone.
//! Method      presumed abort (Mohan, Lindsay & Obermarck 1986): only commits are recorded by the coordinator; a
//!             transaction it does not know was aborted. Failure-free with n remote participants: 4n messages and
//!             2n + 1 forced writes. Read-only voters take no part in the second phase.
//! Time-outs   | who waits for what | what it does |
//!             | --- | --- |
//!             | coordinator, votes | asks again; after [`Config::prepare_timeout`] aborts |
//!             | coordinator, acknowledgements of a commit | sends the decision again, without end |
//!             | participant, its own resource | asks the coordinator whether the transaction still lives |
//!             | participant that voted yes, the decision | asks the coordinator, after a while the others too; blocks if all are uncertain |
//! Peers       a participant that was never asked, or has not voted, records a refusal and answers "abort"; one that
//!             knows the decision tells it; an uncertain one is silent. A read-only vote is recorded too (one forced
//!             write), because after a restart its voter could not tell that it has voted.
//! Forgetting  a coordinator forgets a commit when all acknowledged; prepares carry the oldest transaction that it
//!             has not forgotten (the *floor*), below which participants forget and refuse late copies.
//! Limits      [`Config::transactions_max`], [`Config::participants_max`], [`Config::window_max`]; beyond them a
//!             beginning is refused, or a prepare voted down.
//! Source      Gray 1978; Bernstein, Hadzilacos & Goodman 1987, chapter 7 (cooperative termination); X/Open XA.

mod coordinator;
mod manager;
mod message;
mod participant;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::machine::Outputs;
use crate::planted::Plant;

pub use manager::{InDoubt, Load, Manager};
pub use message::{Decision, Ending, Message, Record, Vote};

/// A transaction's name: it tells who coordinates it, so that whoever is in doubt knows whom to ask.
///
/// Ordered by coordinator, then by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId {
    /// The coordinator's node.
    pub node: u64,
    /// The life of the coordinator that began it.
    pub incarnation: u64,
    /// Counts within that life.
    pub sequence: u64,
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}.{}", self.node, self.incarnation, self.sequence)
    }
}

/// What the local user asks of a [`Manager`].
#[derive(Debug, Clone)]
pub enum Command {
    /// Coordinate a transaction over these participants; answered by [`Event::Begun`] or [`Event::Refused`].
    Begin {
        /// The caller's own name for the wish.
        token: u64,
        /// Who does what.
        work: Vec<Work>,
    },
    /// Abort a transaction that was begun here, unless it is decided.
    Cancel(TxnId),
    /// The local resource's answer to [`Event::Prepare`]. After `Yes` it must be able to commit and to abort, also
    /// after a restart.
    Vote {
        /// The transaction.
        txn: TxnId,
        /// The answer.
        vote: Vote,
    },
    /// The local resource has done what [`Event::Commit`] or [`Event::Abort`] asked, durably.
    Applied(TxnId),
}

/// One participant's part of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The participant.
    pub node: u64,
    /// What its resource gets to see.
    pub payload: Bytes,
}

/// What a [`Manager`] tells the local user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The transaction has a name and is being voted on.
    Begun {
        /// The caller's own name for it.
        token: u64,
        /// The transaction.
        txn: TxnId,
    },
    /// The transaction was not begun; nothing happened.
    Refused {
        /// The caller's own name for it.
        token: u64,
        /// Why.
        reason: BeginError,
    },
    /// The transaction is decided; told by its coordinator, and again after a restart for one that some
    /// participant had not acknowledged.
    Decided {
        /// The transaction.
        txn: TxnId,
        /// For good.
        outcome: Outcome,
    },
    /// The local resource should prepare, and answer with [`Command::Vote`].
    Prepare {
        /// The transaction.
        txn: TxnId,
        /// What to do.
        payload: Bytes,
    },
    /// The local resource should make the prepared work permanent, and answer with [`Command::Applied`]. May come
    /// again after a restart.
    Commit(TxnId),
    /// The local resource should undo the prepared work, and answer with [`Command::Applied`]. May come again
    /// after a restart, and while it still prepares.
    Abort(TxnId),
    /// After a restart: the local resource has voted yes on this and must keep to it until it is told the decision.
    InDoubt {
        /// The transaction.
        txn: TxnId,
        /// What it had prepared.
        payload: Bytes,
    },
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every participant commits.
    Committed,
    /// Every participant aborts.
    Aborted(AbortReason),
}

/// Why a transaction was aborted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AbortReason {
    /// A participant voted no.
    #[error("participant {0} voted no")]
    VotedNo(u64),
    /// Votes did not come in time.
    #[error("no vote in time from participants {0:?}")]
    TimedOut(Vec<u64>),
    /// The local user cancelled it.
    #[error("cancelled")]
    Cancelled,
}

/// Why a transaction was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// Nobody takes part.
    #[error("a transaction needs a participant")]
    NoParticipants,
    /// A participant is named twice.
    #[error("participant {0} is named twice")]
    Repeated(u64),
    /// More than [`Config::participants_max`].
    #[error("{count} participants are more than {limit}")]
    TooMany {
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// [`Config::transactions_max`] are open here, or one is open so long that [`Config::window_max`] younger ones
    /// have ended. Retry when some have ended.
    #[error("too many open transactions ({limit})")]
    Full {
        /// The limit that was met.
        limit: usize,
    },
}

/// The few knobs.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How long a coordinator waits for votes. Default 10 s. Shorter aborts what a slow participant would have
    /// done; longer holds its locks.
    pub prepare_timeout: Duration,
    /// The first wait before anything is sent again; doubles each time. Default 200 ms.
    pub retry_min: Duration,
    /// The longest wait before anything is sent again. Default 5 s: how long a healed partition may go unnoticed.
    pub retry_max: Duration,
    /// Open transactions, as coordinator and as participant each. Default 4,096.
    pub transactions_max: usize,
    /// Participants of one transaction. Default 64.
    pub participants_max: usize,
    /// Ended transactions of one coordinator that a participant remembers while an older one is open. Default 65,536.
    pub window_max: usize,
    /// For tests only: a planted bug.
    pub plant: Plant,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prepare_timeout: Duration::from_secs(10),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
            transactions_max: 4_096,
            participants_max: 64,
            window_max: 65_536,
            plant: Plant::NONE,
        }
    }
}

/// When to send again, and how often that has happened.
#[derive(Debug, Clone, Copy)]
struct Retry {
    at: crate::Time,
    attempt: u32,
}

impl Retry {
    fn after(now: crate::Time, config: &Config, salt: TxnId) -> Self {
        Self { at: now, attempt: 0 }.next(now, config, salt)
    }

    /// Doubles the wait, up to the limit, and spreads it by up to a quarter: many transactions that one crash held up
    /// must not all knock at the same instant. The spread comes from the name, so that a machine needs no chance.
    fn next(self, now: crate::Time, config: &Config, salt: TxnId) -> Self {
        let first = config.retry_min.max(Duration::from_millis(1));
        let wait = first.saturating_mul(1 << self.attempt.min(16)).min(config.retry_max.max(first));
        let stirred = (salt.sequence ^ salt.node.rotate_left(17) ^ u64::from(self.attempt).rotate_left(40))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            >> 56;
        let spread = wait / 1024 * u32::try_from(stirred).unwrap_or(0);
        Self { at: now + wait + spread, attempt: self.attempt.saturating_add(1) }
    }
}

/// Where both roles put what must happen; messages to the own node turn round here.
///
/// Turning round at once is safe although the record before the message may not be durable yet: both roles' records
/// are in one log in order, so no later record survives without the earlier one.
struct Effects<'a> {
    me: u64,
    out: &'a mut Outputs<Manager>,
    to_self: &'a mut std::collections::VecDeque<Message>,
}

impl Effects<'_> {
    fn send(&mut self, node: u64, message: Message) {
        if node == self.me {
            self.to_self.push_back(message);
        } else {
            let to = crate::ProcessId::any_life(node);
            self.out.send(to, crate::Lane::Ordinary, message);
        }
    }
}
