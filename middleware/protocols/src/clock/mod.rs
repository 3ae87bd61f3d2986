//! Clocks that say what may have caused what, without any physical time, or with as little trust in it as is due.
//!
//! Purpose     processes order events that they did not see themselves: by a count ([`lamport`]), by a count for each process
//!             ([`vector`]), or by a count that stays near the time of day ([`hybrid`]).
//! Guarantee   all of them: what happened before another thing, also in another process through messages, has the smaller
//!             stamp. Only vector clocks say it the other way round, too: neither before nor after is concurrent.
//! Method      a clock stands between the application and the network. It moves on with each event, puts a stamp on each
//!             message that leaves, and is put right by the stamp of each message that comes.
//! Source      van Steen & Tanenbaum, "Distributed Systems", logical clocks.

pub mod hybrid;
pub mod lamport;
#[cfg(test)]
mod tests;
pub mod vector;

use std::fmt;
use std::time::Duration;

use crate::wire::Wire;

/// The clock of one process.
pub trait Logical {
    /// What it puts on events and messages.
    type Stamp: Wire + Clone + fmt::Debug + Send + 'static;

    /// Something happens here, or a message leaves. `physical` is the time of day since the Unix epoch, for clocks that
    /// look at it; it may go backwards.
    fn event(&mut self, physical: Duration) -> Self::Stamp;

    /// A message arrives that left at `sent`: the stamp of the arrival.
    ///
    /// # Errors
    /// [`StampError`]: its sender cannot be believed. The clock is as before.
    fn receive(&mut self, physical: Duration, sent: &Self::Stamp) -> Result<Self::Stamp, StampError>;
}

/// Why a stamp is not taken. Its message may be sound, but its clock is not: whoever takes such a stamp is dragged along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StampError {
    /// So much could never have been counted.
    #[error("a count of {count} is beyond {limit}")]
    Beyond {
        /// What the stamp says.
        count: u64,
        /// The largest count.
        limit: u64,
    },
    /// It knows of more events of this process than there were.
    #[error("{count} events of this process, which had {own}")]
    FromTheFuture {
        /// What the stamp says.
        count: u64,
        /// How many there were.
        own: u64,
    },
    /// It knows of more processes than a stamp may.
    #[error("{processes} processes, and {limit} are the most")]
    TooManyProcesses {
        /// Those of the stamp and of this clock.
        processes: usize,
        /// The most.
        limit: usize,
    },
    /// It is ahead of the time of day here by more than clocks may differ.
    #[error("{ahead:?} ahead, and {limit:?} is the most")]
    TooFarAhead {
        /// By so much.
        ahead: Duration,
        /// The most.
        limit: Duration,
    },
}

/// The largest count of a stamp. A process that counts a thousand million events a second gets there in a century; what a
/// peer claims beyond it would leave no numbers to count on with.
pub const COUNT_MAX: u64 = 1 << 62;

/// Checks a count that came from elsewhere.
fn believable(count: u64) -> Result<(), StampError> {
    if count >= COUNT_MAX { Err(StampError::Beyond { count, limit: COUNT_MAX }) } else { Ok(()) }
}
