//! What replicas of a log tell each other and write down. Its bytes stand in [`layout`](super::layout).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::machine::ProcessId;

/// Who takes part. [`ProcessId::any_life`] names a member whose log survives a restart; a member whose log does not is
/// named with its life, so that its next life is another process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Those whose majority decides.
    pub voters: BTreeSet<ProcessId>,
    /// Those who only follow.
    pub learners: BTreeSet<ProcessId>,
}

impl Members {
    /// These voters, and no learners.
    pub fn of_voters(voters: impl IntoIterator<Item = ProcessId>) -> Self {
        Self { voters: voters.into_iter().collect(), learners: BTreeSet::new() }
    }

    /// The name under which `process` takes part, if it does.
    pub fn name_of(&self, process: ProcessId) -> Option<ProcessId> {
        let durable = ProcessId::any_life(process.node);
        [process, durable].into_iter().find(|name| self.voters.contains(name) || self.learners.contains(name))
    }

    /// True when `process` is a voter.
    pub fn is_voter(&self, process: ProcessId) -> bool {
        self.name_of(process).is_some_and(|name| self.voters.contains(&name))
    }

    /// These, but for one step. A node takes part under one name at most.
    pub(super) fn changed_by(&self, change: Change) -> Self {
        let (Change::Voter(name) | Change::Learner(name) | Change::Gone(name)) = change;
        let mut members = self.clone();
        members.voters.retain(|voter| voter.node != name.node);
        members.learners.retain(|learner| learner.node != name.node);
        match change {
            Change::Voter(_) => drop(members.voters.insert(name)),
            Change::Learner(_) => drop(members.learners.insert(name)),
            Change::Gone(_) => {}
        }
        members
    }

    /// How many voters are enough to decide.
    pub fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

/// One step from some members to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It gets a vote, if it is a learner that holds nearly all of the log.
    Voter(ProcessId),
    /// It follows, without a vote; if it had one, it has no longer.
    Learner(ProcessId),
    /// It takes part no more.
    Gone(ProcessId),
}

/// A command on its way into the log. Its origin and its sequence are its name: under one name it is delivered once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Who asked for it.
    pub origin: ProcessId,
    /// Counts the proposals of that process.
    pub sequence: u64,
    /// How far back the origin's oldest proposal lies whose end it does not know.
    pub behind: u32,
    /// The only term in which it may be chosen; zero for any.
    pub fence: u64,
    /// What the state machines will see.
    pub payload: Bytes,
}

/// What a place in the log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing: a new leader's first entry, which makes the ones before it chosen.
    Nothing,
    /// A command.
    Command(Proposal),
    /// Who takes part from here on.
    Members(Arc<Members>),
}

/// A place in the log. Two logs that hold the same term at the same place are the same up to there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that put it there.
    pub term: u64,
    /// What it holds.
    pub content: Content,
}

impl Entry {
    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match &self.content {
                Content::Nothing => 0,
                Content::Command(proposal) => proposal.payload.len(),
                Content::Members(members) => {
                    (members.voters.len() + members.learners.len()) * size_of::<ProcessId>()
                }
            }
    }
}

/// What replicas say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Would you, or do you, vote for me?
    Ask {
        /// The term to be led.
        term: u64,
        /// True when the asker has entered that term; false when it only wants to know whether it could win.
        is_vote: bool,
        /// The asker's last entry: its place and its term.
        last: (u64, u64),
        /// Up to where the asker knows entries to be chosen.
        chosen: u64,
    },
    /// The answer to [`Ask`](Self::Ask).
    Answer {
        /// The term that was asked for if it is a yes, else the voter's.
        term: u64,
        /// Which of the two questions.
        is_vote: bool,
        /// Yes.
        granted: bool,
    },
    /// To one that asked for a vote with too short a log: what it lacks.
    Lend {
        /// The lender's term.
        term: u64,
        /// The entry before them: its place and its term.
        after: (u64, u64),
        /// The entries, the last of which is younger than what the asker had.
        entries: Arc<[Entry]>,
    },
    /// Entries of the leader, or none.
    Append {
        /// The leader's term.
        term: u64,
        /// The entry before the first one: its place and its term.
        after: (u64, u64),
        /// Up to where entries are chosen.
        chosen: u64,
        /// The leader's round of asking who still follows.
        round: u64,
        /// The entries.
        entries: Arc<[Entry]>,
    },
    /// The answer to [`Append`](Self::Append).
    Appended {
        /// The follower's term.
        term: u64,
        /// The round that it has seen.
        round: u64,
        /// Up to where its log is the leader's, durably; or why not.
        held: Result<u64, Gap>,
    },
    /// A piece of a snapshot.
    Chunk {
        /// The leader's term.
        term: u64,
        /// The leader's round.
        round: u64,
        /// The place that the snapshot stands for.
        index: u64,
        /// The size of the whole.
        total: u64,
        /// Where this piece begins.
        offset: u64,
        /// The piece.
        data: Bytes,
    },
    /// The answer to [`Chunk`](Self::Chunk).
    ChunkTaken {
        /// The follower's term.
        term: u64,
        /// The round that it has seen.
        round: u64,
        /// Which snapshot.
        index: u64,
        /// What is wanted next.
        offset: u64,
    },
    /// To the leader: put these into the log.
    Propose(Arc<[Proposal]>),
    /// To the leader: which place contains everything that was chosen before now?
    ReadAsk(u64),
    /// The answer to [`ReadAsk`](Self::ReadAsk).
    ReadAnswer {
        /// Which question.
        ask: u64,
        /// The place.
        index: u64,
    },
}

/// Why entries could not be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The place after which they should have gone.
    pub after: u64,
    /// After which place the leader should try.
    pub try_after: u64,
}

/// What a replica writes down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// It takes part in no earlier term, and votes for nobody else in this one.
    Promise {
        /// The term.
        term: u64,
        /// Whom it has voted for.
        voted: Option<ProcessId>,
    },
    /// Entries; whatever stood at their places or behind them is void.
    Entries {
        /// The place of the first.
        first: u64,
        /// The entries.
        entries: Arc<[Entry]>,
    },
    /// A piece of a snapshot; the last one makes it stand for all places up to its own.
    Part {
        /// The size of the whole.
        total: u64,
        /// Where this piece begins.
        offset: u64,
        /// The piece.
        data: Bytes,
    },
}

/// What an entry takes beside its payload, about.
const ENTRY_BYTES: usize = 80;
