//! The coordinator's role: collects votes, decides, and repeats a commit until everyone has acknowledged it.
//!
//! Guarantee   a commit leaves, and is told to the user, only behind the barrier of its record; an abort needs none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::message::{Age, Decision, Message, Record, Vote};
use super::{AbortReason, BeginError, Config, Effects, Event, Outcome, Retry, TxnId, Work};
use crate::machine::{ProcessId, Violation};
use crate::planted::Planted;
use crate::time::Time;

pub(super) struct Coordinator {
    me: ProcessId,
    config: Config,
    /// The sequence of the next transaction of this life.
    next: u64,
    /// Everything that is not forgotten, oldest first.
    open: BTreeMap<TxnId, Phase>,
    timers: BTreeSet<(Time, TxnId)>,
    /// Recovered decisions that the user has not been told again.
    untold: Vec<TxnId>,
}

enum Phase {
    Voting(Voting),
    Deciding(Deciding),
}

/// Nobody may commit yet.
struct Voting {
    work: Vec<Work>,
    participants: Arc<[u64]>,
    votes: BTreeMap<u64, Vote>,
    /// For the planted bug that counts votes instead of voters.
    votes_heard: usize,
    until: Time,
    retry: Retry,
}

/// Committed, and repeated until all of `waiting` have acknowledged.
struct Deciding {
    waiting: BTreeSet<u64>,
    retry: Retry,
}

/// What a vote leads to.
enum Counted {
    Undecided(Voting),
    Commit { waiting: BTreeSet<u64> },
    Abort { voting: Voting, reason: AbortReason },
}

impl Voting {
    fn on_vote(mut self, from: u64, vote: Vote, config: &Config) -> Counted {
        if !self.participants.contains(&from) {
            return Counted::Undecided(self);
        }
        if vote == Vote::No {
            self.votes.insert(from, vote);
            return Counted::Abort { voting: self, reason: AbortReason::VotedNo(from) };
        }
        // The first vote counts: a repeated one says the same, and a voter counts once.
        self.votes.entry(from).or_insert(vote);
        self.votes_heard += 1;
        let complete = if config.plant.has(Planted::CommitCountsDuplicateVotes) {
            self.votes_heard >= self.participants.len()
        } else {
            self.votes.len() == self.participants.len()
        };
        if !complete {
            return Counted::Undecided(self);
        }
        let yes = |node: &&u64| self.votes.get(node) != Some(&Vote::ReadOnly);
        Counted::Commit { waiting: self.participants.iter().filter(yes).copied().collect() }
    }

    fn missing(&self) -> Vec<u64> {
        self.participants.iter().filter(|node| !self.votes.contains_key(node)).copied().collect()
    }
}

impl Coordinator {
    pub(super) fn new(me: ProcessId, config: Config) -> Self {
        Self { me, config, next: 0, open: BTreeMap::new(), timers: BTreeSet::new(), untold: Vec::new() }
    }

    /// Takes one record of an earlier life.
    pub(super) fn recover(&mut self, now: Time, record: &Record) {
        match record {
            Record::Committed { txn, waiting } if !self.open.contains_key(txn) => {
                let deciding = Deciding {
                    waiting: waiting.iter().copied().collect(),
                    retry: Retry { at: now, attempt: 0 },
                };
                self.put(*txn, Phase::Deciding(deciding));
                self.untold.push(*txn);
            }
            Record::Forgotten(txn) => {
                self.take(*txn);
                self.untold.retain(|untold| untold != txn);
            }
            _ => {}
        }
    }

    /// Records that lead to the same state.
    pub(super) fn snapshot(&self, records: &mut Vec<Record>) {
        for (txn, phase) in &self.open {
            if let Phase::Deciding(deciding) = phase {
                records.push(Record::Committed {
                    txn: *txn,
                    waiting: deciding.waiting.iter().copied().collect(),
                });
            }
        }
    }

    /// Tells the user what was decided before the restart.
    pub(super) fn announce(&mut self, fx: &mut Effects<'_>) {
        for txn in self.untold.drain(..) {
            fx.out.event(Event::Decided { txn, outcome: Outcome::Committed });
        }
    }

    pub(super) fn begin(&mut self, now: Time, token: u64, work: Vec<Work>, fx: &mut Effects<'_>) {
        if let Err(reason) = self.may_begin(&work) {
            return fx.out.event(Event::Refused { token, reason });
        }
        let txn = TxnId { node: self.me.node, incarnation: self.me.incarnation, sequence: self.next };
        self.next += 1;
        fx.out.event(Event::Begun { token, txn });
        let voting = Voting {
            participants: work.iter().map(|work| work.node).collect(),
            work,
            votes: BTreeMap::new(),
            votes_heard: 0,
            until: now + self.config.prepare_timeout,
            retry: Retry::after(now, &self.config, txn),
        };
        let floor = self.floor().unwrap_or((txn.incarnation, txn.sequence));
        voting.ask(txn, floor, fx);
        self.put(txn, Phase::Voting(voting));
    }

    fn may_begin(&self, work: &[Work]) -> Result<(), BeginError> {
        if work.is_empty() {
            return Err(BeginError::NoParticipants);
        }
        if work.len() > self.config.participants_max {
            return Err(BeginError::TooMany { count: work.len(), limit: self.config.participants_max });
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = work.iter().find(|work| !seen.insert(work.node)) {
            return Err(BeginError::Repeated(twice.node));
        }
        if self.open.len() >= self.config.transactions_max {
            return Err(BeginError::Full { limit: self.config.transactions_max });
        }
        // Participants remember what ended above the floor, so the floor must not fall too far behind.
        let begun_above = match self.floor() {
            None => 0,
            Some((incarnation, sequence)) if incarnation == self.me.incarnation => self.next - sequence,
            Some(_) => self.next,
        };
        if begun_above >= self.config.window_max as u64 {
            return Err(BeginError::Full { limit: self.config.window_max });
        }
        Ok(())
    }

    pub(super) fn cancel(&mut self, txn: TxnId, fx: &mut Effects<'_>) {
        match self.take(txn) {
            Some(Phase::Voting(voting)) => voting.abort(txn, AbortReason::Cancelled, fx),
            Some(decided) => self.put(txn, decided),
            None => {}
        }
    }

    pub(super) fn on_vote(&mut self, now: Time, from: u64, txn: TxnId, vote: Vote, fx: &mut Effects<'_>) {
        match self.take(txn) {
            Some(Phase::Voting(voting)) => match voting.on_vote(from, vote, &self.config) {
                Counted::Undecided(voting) => self.put(txn, Phase::Voting(voting)),
                Counted::Abort { voting, reason } => voting.abort(txn, reason, fx),
                Counted::Commit { waiting } => self.commit(now, txn, waiting, fx),
            },
            Some(Phase::Deciding(deciding)) => {
                if vote == Vote::Yes && deciding.waiting.contains(&from) {
                    fx.send(from, Message::Decided { txn, decision: Decision::Commit });
                }
                self.put(txn, Phase::Deciding(deciding));
            }
            // Presumed abort. A voter that has committed and acknowledged does not listen to this.
            None if vote == Vote::Yes => fx.send(from, Message::Decided { txn, decision: Decision::Abort }),
            None => {}
        }
    }

    pub(super) fn on_acknowledged(&mut self, from: u64, txn: TxnId, fx: &mut Effects<'_>) {
        match self.take(txn) {
            Some(Phase::Deciding(mut deciding)) => {
                deciding.waiting.remove(&from);
                if deciding.waiting.is_empty() || self.config.plant.has(Planted::CommitForgetsBeforeAcks) {
                    // Not forced: if it is lost, the decision is sent again and acknowledged again.
                    fx.out.persist(Record::Forgotten(txn));
                } else {
                    self.put(txn, Phase::Deciding(deciding));
                }
            }
            Some(voting) => self.put(txn, voting),
            None => {}
        }
    }

    pub(super) fn on_query(&mut self, from: u64, txn: TxnId, fx: &mut Effects<'_>) {
        let decision = match self.open.get(&txn) {
            // Undecided: the vote, or its absence, will decide it.
            Some(Phase::Voting(_)) => return,
            Some(Phase::Deciding(_)) => Decision::Commit,
            None => Decision::Abort,
        };
        fx.send(from, Message::Decided { txn, decision });
    }

    pub(super) fn tick(&mut self, now: Time, fx: &mut Effects<'_>) {
        while let Some(&(at, txn)) = self.timers.first()
            && at <= now
        {
            match self.take(txn) {
                Some(Phase::Voting(voting)) if now >= voting.until => {
                    let missing = voting.missing();
                    voting.abort(txn, AbortReason::TimedOut(missing), fx);
                }
                Some(Phase::Voting(mut voting)) => {
                    let floor = self
                        .floor()
                        .unwrap_or((txn.incarnation, txn.sequence))
                        .min((txn.incarnation, txn.sequence));
                    voting.ask(txn, floor, fx);
                    voting.retry = voting.retry.next(now, &self.config, txn);
                    self.put(txn, Phase::Voting(voting));
                }
                Some(Phase::Deciding(mut deciding)) => {
                    for node in &deciding.waiting {
                        fx.send(*node, Message::Decided { txn, decision: Decision::Commit });
                    }
                    deciding.retry = deciding.retry.next(now, &self.config, txn);
                    self.put(txn, Phase::Deciding(deciding));
                }
                // A timer without its transaction cannot be: both go together.
                None => {
                    self.timers.remove(&(at, txn));
                }
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// How many transactions are being voted on, and how many commits wait for acknowledgements.
    pub(super) fn load(&self) -> (usize, usize) {
        let voting = self.open.values().filter(|phase| matches!(phase, Phase::Voting(_))).count();
        (voting, self.open.len() - voting)
    }

    pub(super) fn check(&self) -> Result<(), Violation> {
        if self.timers.len() != self.open.len() {
            let (timers, open) = (self.timers.len(), self.open.len());
            return Err(Violation(format!("coordinator has {timers} timers for {open} transactions")));
        }
        Ok(())
    }

    fn commit(&mut self, now: Time, txn: TxnId, waiting: BTreeSet<u64>, fx: &mut Effects<'_>) {
        let decided = Event::Decided { txn, outcome: Outcome::Committed };
        if waiting.is_empty() {
            // All read-only: nobody asks, nothing to remember.
            return fx.out.event(decided);
        }
        let record = Record::Committed { txn, waiting: waiting.iter().copied().collect() };
        let early = self.config.plant.has(Planted::CommitDecisionBeforePersist);
        if !early {
            fx.out.persist(record.clone());
            fx.out.barrier();
        }
        for node in &waiting {
            fx.send(*node, Message::Decided { txn, decision: Decision::Commit });
        }
        fx.out.event(decided);
        if early {
            fx.out.persist(record);
            fx.out.barrier();
        }
        self.put(txn, Phase::Deciding(Deciding { waiting, retry: Retry::after(now, &self.config, txn) }));
    }

    fn floor(&self) -> Option<Age> {
        self.open.keys().next().map(|txn| (txn.incarnation, txn.sequence))
    }

    fn put(&mut self, txn: TxnId, phase: Phase) {
        self.timers.insert((phase.wakes(), txn));
        let before = self.open.insert(txn, phase);
        debug_assert!(before.is_none(), "a transaction is taken before it is put back");
    }

    fn take(&mut self, txn: TxnId) -> Option<Phase> {
        let phase = self.open.remove(&txn)?;
        self.timers.remove(&(phase.wakes(), txn));
        Some(phase)
    }
}

impl Phase {
    fn wakes(&self) -> Time {
        match self {
            Self::Voting(voting) => voting.retry.at.min(voting.until),
            Self::Deciding(deciding) => deciding.retry.at,
        }
    }
}

impl Voting {
    /// Asks everyone who has not voted.
    fn ask(&self, txn: TxnId, floor: Age, fx: &mut Effects<'_>) {
        for work in self.work.iter().filter(|work| !self.votes.contains_key(&work.node)) {
            let (participants, payload) = (self.participants.clone(), work.payload.clone());
            fx.send(work.node, Message::Prepare { txn, floor, participants, payload });
        }
    }

    /// Nothing is recorded: whoever does not hear of it will ask, and not being known is the answer.
    fn abort(self, txn: TxnId, reason: AbortReason, fx: &mut Effects<'_>) {
        for node in self.participants.iter() {
            if !matches!(self.votes.get(node), Some(Vote::No | Vote::ReadOnly)) {
                fx.send(*node, Message::Decided { txn, decision: Decision::Abort });
            }
        }
        fx.out.event(Event::Decided { txn, outcome: Outcome::Aborted(reason) });
    }
}
