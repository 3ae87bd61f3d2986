//! Known bugs, one switch each, so that the simulator can prove that it finds them.
//!
//! Guarantee   without the feature `planted-bugs` no bug can be planted and every test of a switch is a constant
//!             `false` that the compiler removes.

/// A bug that can be planted into one machine. Each names the rule that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Planted {
    /// Reliable multicast: a retransmitted message is delivered again.
    MulticastDeliversDuplicates,
    /// Reliable multicast: a message behind a gap is delivered without waiting.
    MulticastSkipsGaps,
    /// Reliable multicast: delivery goes on after the member has promised a view change.
    FlushDoesNotFreeze,
    /// View change: a member accepts the next view before it holds every message of the cut.
    FlushAcceptsUnfilled,
    /// View change: the cut is what the leader received, not what anyone received.
    CutOfLeaderOnly,
    /// View change: the leader ignores a proposal that a member has already accepted.
    ViewIgnoresAccepted,
    /// View change: half of the members is enough, whichever half.
    ViewQuorumHalf,
    /// View change: a promise does not bind; an older ballot is still accepted, and an older attempt goes on.
    ViewAcceptsOldBallot,
    /// Fragments: a message that the end of a view has cut in two is not begun anew.
    FragmentForgetsToRestart,
    /// Fragments: what came of a message in an earlier view is kept.
    FragmentOutlivesViews,
    /// Fragments: small messages do not wait behind a large one.
    FragmentLetsOthersPass,
    /// Causal order: a message is delivered whatever its timestamp says.
    CausalIgnoresTimestamps,
    /// Causal order: a timestamp of an earlier view is obeyed.
    CausalObeysOldNotes,
    /// Causal order: what was told in an earlier view is taken for told in this one.
    CausalNotesOutliveViews,
    /// Causal order: what is left at the end of a view is delivered without its predecessors.
    CausalDeliversOrphans,
    /// Total order: a message is delivered before a quorum holds it.
    TotalDeliversUnstable,
    /// Total order: what was left unordered at the end of a view is delivered in order of arrival.
    TotalLeftoverByArrival,
    /// Total order: an order that was made for an earlier view is obeyed.
    TotalObeysStaleOrder,
    /// Total order by timestamps: a message is delivered although an earlier one may still come.
    LamportWaitsForNobody,
    /// Total order by timestamps: a message is delivered before a quorum holds it.
    LamportDeliversUnstable,
    /// Total order by timestamps: own messages that are on their way are forgotten in what is promised.
    LamportPromisesTooMuch,
    /// Total order by timestamps: what is left at the end of a view is delivered by rank alone.
    LamportLeftoverByRank,
    /// Total order by a token: turns are obeyed as they come.
    TokenIgnoresTurns,
    /// Total order by a token: a member that has something to say takes a turn without holding it.
    TokenIsDoubled,
    /// Total order by a token: whoever held it in the last view holds it in the next one.
    TokenOutlivesViews,
    /// Total order by a token: what comes after a turn without messages is delivered before that one is safe.
    TokenTrustsEmptyTurns,
    /// View change: fewer members than the configured quorum go on.
    ViewIgnoresQuorumMin,
    /// Reunion: a side goes over to another one although it is the senior.
    ReunionIgnoresSeniority,
    /// Reunion: nobody is told of a side.
    ReunionStaysSilent,
    /// Guard: what was taken before is taken again.
    GuardTakesReplays,
    /// Guard: whoever says hello is believed to have the secret.
    GuardBelievesStrangers,
    /// Guard: all messages of a lane are sealed with the same number.
    GuardReusesNumbers,
    /// State transfer: a joiner delivers messages before it has the state.
    StateAfterMessages,
    /// State transfer: a joiner goes on with the pieces of an earlier view's state.
    StateMixesViews,
    /// State transfer: a joiner delivers what it held from before the view whose state it got.
    StateKeepsOlderMessages,
    /// RPC server: a request that comes again is executed again.
    RpcExecutesDuplicates,
    /// RPC server: a request whose slot has moved on is executed all the same.
    RpcSlotIgnoresSequence,
    /// RPC server: a refusal is not remembered, and a later copy of the request is executed.
    RpcForgetsRefusals,
    /// RPC client: a call that may have been executed is sent again to a restarted server.
    RpcReissuesAfterRestart,
    /// RPC completion records: an answer leaves before its record is durable.
    RpcAnswersBeforeRecord,
    /// RPC completion records: what a request changed and what it was answered are two records.
    RpcRecordsEffectApart,
    /// RPC completion records: answers are dropped that the client has not acknowledged.
    RpcTrimsUnacknowledged,
    /// RPC completion records: a new life does not take up the answers of the last one.
    RpcForgetsAnswers,
    /// RPC server: what executes for an earlier life of a client's process goes on.
    RpcIgnoresReincarnation,
    /// RPC server: what executes for a client that is silent for a quantum goes on.
    RpcIgnoresSilence,
    /// RPC server: what executes for a client that is suspected is ended before the client was asked.
    RpcEndsUnasked,
    /// RPC client: does not say that it still waits.
    RpcNeverRenews,
    /// RPC client: an exactly-once call is sent again although the server has forgotten this client's records.
    RpcReissuesUnderNewSeat,
    /// Remote objects: a sender lets go of a reference as soon as it is on its way.
    ObjectsForgetDeparted,
    /// Remote objects: a holder gives back what it has passed on and does not use itself any more.
    ObjectsCleanWhilePinned,
    /// Remote objects: an owner applies changes in the order in which they come, and repeated ones again.
    ObjectsIgnoreOrder,
    /// Remote objects: a holder counts its lease from the answer and not from what was answered.
    ObjectsLeaseFromAnswer,
    /// Remote objects: what a holder held whose lease has ended is kept.
    ObjectsKeepExpired,
    /// Streams: an item that comes again is taken again.
    StreamTakesCopies,
    /// Streams: an item behind a gap is taken without waiting.
    StreamSkipsGaps,
    /// Streams: the writer's end is believed although items are missing.
    StreamEndsEarly,
    /// Streams: a reader waits for ever for an item that was lost.
    StreamWaitsForTheLost,
    /// Two-phase commit: a yes vote leaves before its record is durable.
    CommitVoteBeforePersist,
    /// Two-phase commit: the decision leaves before its record is durable.
    CommitDecisionBeforePersist,
    /// Two-phase commit: a participant that voted yes aborts on its own after a while.
    CommitUncertainAborts,
    /// Two-phase commit: the coordinator forgets a commit at the first acknowledgement.
    CommitForgetsBeforeAcks,
    /// Two-phase commit: the coordinator counts votes, not voters.
    CommitCountsDuplicateVotes,
    /// Two-phase commit: a participant acknowledges before its ending is durable.
    CommitAcknowledgesBeforePersist,
    /// Two-phase commit: a participant tells another that it never voted, and may vote later.
    CommitRefusesWithoutRecord,
    /// Replicated log: a vote leaves before its record is durable.
    LogVotesBeforeRecord,
    /// Replicated log: a vote does not bind; another candidate of the same term gets one, too.
    LogVotesTwice,
    /// Replicated log: who lacks entries is voted for all the same.
    LogElectsOutdated,
    /// Replicated log: half of the voters is enough, whichever half.
    LogQuorumOfHalf,
    /// Replicated log: entries are acknowledged before they are durable.
    LogAcknowledgesBeforeRecord,
    /// Replicated log: a leader counts itself for entries that are not durable.
    LogCountsItselfEarly,
    /// Replicated log: entries of an earlier term are chosen when a majority holds them.
    LogChoosesOldTerms,
    /// Replicated log: entries are taken whatever the term of the one before them.
    LogIgnoresOtherTerms,
    /// Replicated log: what follows the entries of a message is dropped although nothing contradicts it.
    LogTruncatesMatching,
    /// Replicated log: a leader answers reads without asking whether it still leads.
    LogReadsUnconfirmed,
    /// Replicated log: a new leader answers reads before it knows what earlier ones had chosen.
    LogReadsBeforeOwnEntry,
    /// Replicated log: a proposal that comes again is put in again, and delivered again.
    LogDeliversTwice,
    /// Replicated log: what was delivered is not part of snapshots.
    LogSnapshotForgetsSeats,
    /// Replicated log: members change while an earlier change is not chosen, and several at a time.
    LogChangesTwoAtOnce,
    /// Transfer: messages are acknowledged before they are stored.
    TransferAcknowledgesUnstored,
    /// Transfer: a position is told that is not stored.
    TransferTellsUnstored,
    /// Transfer: messages are dropped by the sender when they are sent.
    TransferSettlesUnstored,
    /// Transfer: what does not follow is taken all the same.
    TransferSkipsGaps,
    /// Transfer: what was taken before is taken again.
    TransferStoresDuplicates,
    /// Transfer: a new life of the receiver does not know up to where it had stored.
    TransferForgetsPlaces,
    /// Transfer: the numbers of a sender's new disk are taken for those of its old one.
    TransferIgnoresBirth,
    /// Transfer: a position that another future of a restored disk has led to is taken for one's own.
    TransferIgnoresForks,
    /// Two-phase commit: a participant does not remember what has ended, so that a late prepare runs again.
    CommitForgetsFinished,
}

/// Which bug is planted into a machine; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plant {
    #[cfg(feature = "planted-bugs")]
    bug: Option<Planted>,
}

impl Plant {
    /// The healthy machine.
    pub const NONE: Self = Self {
        #[cfg(feature = "planted-bugs")]
        bug: None,
    };

    /// Plants one bug.
    #[cfg(feature = "planted-bugs")]
    pub const fn of(bug: Planted) -> Self {
        Self { bug: Some(bug) }
    }

    /// True when `bug` is planted.
    #[cfg(feature = "planted-bugs")]
    pub fn has(self, bug: Planted) -> bool {
        self.bug == Some(bug)
    }

    /// True when `bug` is planted: never, in this build.
    #[cfg(not(feature = "planted-bugs"))]
    pub const fn has(self, _bug: Planted) -> bool {
        false
    }
}
