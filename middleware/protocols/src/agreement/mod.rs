//! A replicated log: several processes agree on one sequence of commands, whatever is lost, repeated or crashes.
//!
//! Guarantee   all replicas deliver the same commands in the same order, each once; what one of them has delivered is
//!             never lost while a majority of the voters keeps its records. A proposal is delivered at most once however
//!             often it is repeated on its way. A [read](Command::Read) sees everything that any replica had delivered
//!             before it was asked for (linearizable). A replica that lost its records must come back as another member.
//! Method      one leader per term, elected by a majority; entries are chosen when a majority holds them durably. Who
//!             might not win does not stand for election (*pre-vote*), and a leader that a majority does not answer steps
//!             down, so a leader is always connected to a quorum. A candidate whose log is too short is lent what it
//!             lacks, so that the one process that everybody reaches can lead. Reads cost a round of messages and no
//!             write. Members change one voter at a time, and take effect when they are in the log.
//! Storage     a leader sends entries before it writes them: its disk works at the same time as the others'. It counts
//!             itself when the record is on its way, for everything that could tell so stands behind a barrier.
//! Lone write  one message there and back and one forced write; with a whole batch, the same.
//! Limits      each one in [`Config`]; when the log has no room more, nothing is put into it until the state machines have
//!             made a snapshot.
//! Source      Oki & Liskov 1988, Liskov & Cowling 2012 (Viewstamped Replication); Ongaro 2014 (Raft: pre-vote, reads by
//!             a quorum round, changes of members one at a time with the rule of 2015 that the leader's own term must
//!             have begun); Ng, Haridi & Carbone 2023 (OmniPaxos: leaders are to be chosen by connection, not by log);
//!             Lee et al. 2015 (RIFL: names of calls that make repetition harmless).

mod deliver;
mod election;
mod follower;
mod layout;
mod leader;
mod log;
mod message;
mod own;
mod peer;
mod replica;
mod seats;
mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::machine::ProcessId;
use crate::planted::Plant;

pub use message::{Change, Content, Entry, Gap, Members, Message, Proposal, Record};
pub use replica::{Replica, RestoreError};
pub use snapshot::Snapshot;

/// What the local user asks of a [`Replica`].
#[derive(Debug, Clone)]
pub enum Command {
    /// Have this delivered everywhere. Answered by [`Event::Delivered`] with the token, [`Event::Refused`] or
    /// [`Event::Missed`]; until then, for as long as it takes, it is tried.
    Propose {
        /// The caller's own name for it.
        token: u64,
        /// The only term in which it may be chosen, for one that acts as leader of that term; zero for any.
        fence: u64,
        /// What the state machines will see.
        payload: Bytes,
    },
    /// Ask when the local state contains everything that was delivered anywhere before now. Answered by
    /// [`Event::Readable`] or [`Event::Refused`].
    Read {
        /// The caller's own name for it.
        token: u64,
    },
    /// Only of the leader: change who takes part. Answered by [`Event::Reconfigured`], [`Event::Refused`] or
    /// [`Event::Missed`].
    Reconfigure {
        /// The caller's own name for it.
        token: u64,
        /// How.
        change: Change,
    },
    /// The state that was [wanted](Event::SnapshotWanted).
    Snapshot {
        /// The place that it was wanted for.
        index: u64,
        /// The state machine's own bytes.
        data: Bytes,
    },
}

/// What a [`Replica`] tells the local user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Commands in their order; nothing else is ever delivered at their places.
    Delivered(Vec<Delivered>),
    /// It was not done and will not be.
    Refused {
        /// The caller's own name for it.
        token: u64,
        /// Why.
        reason: Refusal,
    },
    /// It was done, but within a snapshot that replaced the local state: what came of it is not known here.
    Missed {
        /// The caller's own name for it.
        token: u64,
    },
    /// The state as delivered so far may answer the read.
    Readable {
        /// The caller's own name for it.
        token: u64,
    },
    /// The members have changed as was asked for.
    Reconfigured {
        /// The caller's own name for it.
        token: u64,
    },
    /// Replace the state by this one; what follows comes after it.
    Restore {
        /// The place that it stands for.
        index: u64,
        /// The state machine's own bytes.
        data: Bytes,
    },
    /// Give back the state as it is now, before anything that follows is applied, by [`Command::Snapshot`]; until
    /// then the log grows up to its limit.
    SnapshotWanted {
        /// The place that it stands for.
        index: u64,
    },
    /// Who leads, as far as is known here.
    Leader {
        /// The term.
        term: u64,
        /// The leader; `None` while there is none.
        leader: Option<ProcessId>,
    },
    /// These take part from now on, for good.
    Members(Arc<Members>),
}

/// A command at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Its place in the log; places grow, and some hold no command.
    pub index: u64,
    /// The term of the leader that put it there; terms never fall.
    pub term: u64,
    /// The name that it was given here, if it was proposed here in this life.
    pub token: Option<u64>,
    /// The command.
    pub payload: Bytes,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// As many as [`Config::outstanding_max`] are under way. Retry when some have ended.
    #[error("{limit} are under way")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The command is larger than [`Config::payload_bytes_max`].
    #[error("a command of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The term that it was for is over.
    #[error("the term that it was for has ended: this is term {term}")]
    Fenced {
        /// The term now.
        term: u64,
    },
    /// Only the leader does this.
    #[error("only the leader can do this")]
    NotLeader {
        /// Who that may be.
        leader: Option<ProcessId>,
    },
    /// Another change of members, or the leader's first entry, is not chosen yet. Retry soon.
    #[error("another change is under way")]
    Changing,
    /// No voter would be left.
    #[error("the last voter must stay")]
    LastVoter,
    /// There would be more members than [`Config::members_max`].
    #[error("there are {limit} members, and that is the limit")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// A new voter does not hold enough of the log yet: make it a learner first, and retry.
    #[error("{0} is too far behind to vote")]
    Behind(ProcessId),
    /// Another leader's entries took its place.
    #[error("another leader's entries took its place")]
    Superseded,
}

/// The few knobs.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How often a leader is heard when it has nothing to say. Default 50 ms.
    pub heartbeat: Duration,
    /// How long nothing is heard of a leader before another one is wanted; up to twice that, by chance. Default
    /// 300 ms. Shorter than some round trips and a forced write, nobody leads for long; longer, nothing happens for so
    /// long when a leader dies.
    pub election: Duration,
    /// Proposals, and reads, of one process that are under way. Default 4,096.
    pub outstanding_max: usize,
    /// Bytes of one command. Default 1 MiB.
    pub payload_bytes_max: usize,
    /// Bytes of entries in one message or record, unless a single one is larger. Default 512 KiB.
    pub batch_bytes_max: usize,
    /// Entries in one message or record. Default 4,096.
    pub batch_entries_max: usize,
    /// Entries that are on their way to one follower. Default 16,384.
    pub window_entries_max: usize,
    /// Entries in memory after which a snapshot is wanted; with four times as many nothing more is put in. Default
    /// 65,536.
    pub log_entries_max: usize,
    /// Bytes of entries in memory, likewise. Default 64 MiB.
    pub log_bytes_max: usize,
    /// Entries that a snapshot stands for and that are kept all the same, for followers that are a little behind.
    /// Default 8,192.
    pub log_entries_kept: usize,
    /// Bytes of one piece of a snapshot. Default 256 KiB.
    pub chunk_bytes: usize,
    /// Bytes of a snapshot that is taken from a leader. Default 1 GiB.
    pub snapshot_bytes_max: usize,
    /// Members. Default 15.
    pub members_max: usize,
    /// For tests only: a planted bug.
    pub plant: Plant,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election: Duration::from_millis(300),
            outstanding_max: 4_096,
            payload_bytes_max: 1 << 20,
            batch_bytes_max: 512 << 10,
            batch_entries_max: 4_096,
            window_entries_max: 16_384,
            log_entries_max: 65_536,
            log_bytes_max: 64 << 20,
            log_entries_kept: 8_192,
            chunk_bytes: 256 << 10,
            snapshot_bytes_max: 1 << 30,
            members_max: 15,
            plant: Plant::NONE,
        }
    }
}
