//! The participant's role: prepares, votes, and after a yes waits for the decision, however long it takes.
//!
//! Guarantee   a yes vote leaves only behind the barrier of its record, an acknowledgement only behind the barrier of
//!             the ending; what was promised before a crash is promised after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::message::{Age, Decision, Ending, Message, Record, Vote};
use super::{Config, Effects, Event, InDoubt, Retry, TxnId};
use crate::machine::Violation;
use crate::planted::Planted;
use crate::time::Time;

pub(super) struct Participant {
    me: u64,
    config: Config,
    open: BTreeMap<TxnId, Phase>,
    /// What is over and may still be asked for, or prepared by a late copy.
    finished: BTreeMap<TxnId, Finish>,
    /// How many of `finished` belong to each coordinator: bounded by the window.
    remembered: BTreeMap<u64, usize>,
    /// Per coordinator: everything older is over everywhere.
    floors: BTreeMap<u64, Age>,
    timers: BTreeSet<(Time, TxnId)>,
    /// In doubt since before the restart, and the user has not been told.
    untold: BTreeSet<TxnId>,
}

enum Phase {
    /// The resource has been asked. Nothing is promised.
    Preparing { participants: Arc<[u64]>, payload: Bytes, retry: Retry },
    /// Voted yes: uncertain until told.
    Prepared(Prepared),
    /// Told; the resource is at it.
    Ending { decision: Decision, prepared: Prepared },
}

struct Prepared {
    participants: Arc<[u64]>,
    payload: Bytes,
    since: Time,
    retry: Retry,
}

/// How a transaction ended here, as far as others may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    Recorded(Ending),
    /// Voted no, and not recorded: good enough for the coordinator, not for other participants, because after a
    /// restart a late prepare might find a resource that says yes.
    VotedNo,
}

impl Participant {
    pub(super) fn new(me: u64, config: Config) -> Self {
        Self {
            me,
            config,
            open: BTreeMap::new(),
            finished: BTreeMap::new(),
            remembered: BTreeMap::new(),
            floors: BTreeMap::new(),
            timers: BTreeSet::new(),
            untold: BTreeSet::new(),
        }
    }

    /// Takes one record of an earlier life.
    pub(super) fn recover(&mut self, now: Time, record: &Record) {
        match record {
            Record::Prepared { txn, participants, payload } if !self.finished.contains_key(txn) => {
                self.take(*txn);
                let (participants, payload) = (participants.clone(), payload.clone());
                let retry = Retry { at: now, attempt: 0 };
                self.put(*txn, Phase::Prepared(Prepared { participants, payload, since: now, retry }));
                self.untold.insert(*txn);
            }
            Record::Finished { txn, ending } => {
                self.take(*txn);
                self.untold.remove(txn);
                self.finish(*txn, Finish::Recorded(*ending));
            }
            Record::Floor(txn) => self.raise_floor(txn.node, (txn.incarnation, txn.sequence)),
            _ => {}
        }
    }

    /// Records that lead to the same state.
    pub(super) fn snapshot(&self, records: &mut Vec<Record>) {
        for (node, (incarnation, sequence)) in &self.floors {
            records.push(Record::Floor(TxnId {
                node: *node,
                incarnation: *incarnation,
                sequence: *sequence,
            }));
        }
        for (txn, finish) in &self.finished {
            if let Finish::Recorded(ending) = finish {
                records.push(Record::Finished { txn: *txn, ending: *ending });
            }
        }
        for (txn, phase) in &self.open {
            // One that is ending is in doubt again after a restart, and will be told again.
            if let Phase::Prepared(prepared) | Phase::Ending { prepared, .. } = phase {
                let (participants, payload) = (prepared.participants.clone(), prepared.payload.clone());
                records.push(Record::Prepared { txn: *txn, participants, payload });
            }
        }
    }

    /// Tells the resource what it had promised before the restart.
    pub(super) fn announce(&mut self, fx: &mut Effects<'_>) {
        for txn in std::mem::take(&mut self.untold) {
            if let Some(Phase::Prepared(prepared)) = self.open.get(&txn) {
                fx.out.event(Event::InDoubt { txn, payload: prepared.payload.clone() });
            }
        }
    }

    pub(super) fn on_prepare(
        &mut self,
        now: Time,
        txn: TxnId,
        floor: Age,
        participants: Arc<[u64]>,
        payload: Bytes,
        fx: &mut Effects<'_>,
    ) {
        if !participants.contains(&self.me) || participants.len() > self.config.participants_max {
            return;
        }
        self.raise_floor(txn.node, floor);
        if self.is_over_everywhere(txn) {
            return;
        }
        let vote = match (self.finished.get(&txn), self.open.get(&txn)) {
            (Some(Finish::Recorded(Ending::ReadOnly)), _) => Vote::ReadOnly,
            (Some(Finish::Recorded(Ending::Aborted) | Finish::VotedNo), _) => Vote::No,
            // The vote was lost: say it again.
            (None, Some(Phase::Prepared(_))) => Vote::Yes,
            // A late copy, or the resource is still at it.
            (Some(Finish::Recorded(Ending::Committed)), _) | (None, Some(_)) => return,
            (None, None) if self.is_full(txn.node) => Vote::No,
            (None, None) => {
                let retry = Retry::after(now, &self.config, txn);
                fx.out.event(Event::Prepare { txn, payload: payload.clone() });
                return self.put(txn, Phase::Preparing { participants, payload, retry });
            }
        };
        fx.send(txn.node, Message::Vote { txn, vote });
    }

    /// The resource's answer.
    pub(super) fn vote(&mut self, now: Time, txn: TxnId, vote: Vote, fx: &mut Effects<'_>) {
        let Some(phase) = self.take(txn) else {
            return;
        };
        let Phase::Preparing { participants, payload, .. } = phase else {
            // Answered before; the first answer counts.
            return self.put(txn, phase);
        };
        match vote {
            Vote::Yes => {
                let record =
                    Record::Prepared { txn, participants: participants.clone(), payload: payload.clone() };
                if self.config.plant.has(Planted::CommitVoteBeforePersist) {
                    fx.send(txn.node, Message::Vote { txn, vote });
                    fx.out.persist(record);
                    fx.out.barrier();
                } else {
                    fx.out.persist(record);
                    fx.out.barrier();
                    fx.send(txn.node, Message::Vote { txn, vote });
                }
                let retry = Retry::after(now, &self.config, txn);
                self.put(txn, Phase::Prepared(Prepared { participants, payload, since: now, retry }));
            }
            Vote::No => {
                self.finish(txn, Finish::VotedNo);
                fx.send(txn.node, Message::Vote { txn, vote });
            }
            Vote::ReadOnly => {
                // Recorded because after a restart this participant must not tell others that it never voted.
                self.record_ending(txn, Ending::ReadOnly, fx);
                fx.out.barrier();
                fx.send(txn.node, Message::Vote { txn, vote });
            }
        }
    }

    /// The decision, from the coordinator or from a participant that knows it.
    pub(super) fn on_decided(&mut self, from: u64, txn: TxnId, decision: Decision, fx: &mut Effects<'_>) {
        match self.take(txn) {
            Some(Phase::Prepared(prepared)) if from == txn.node || prepared.participants.contains(&from) => {
                self.end(txn, prepared, decision, fx);
            }
            Some(Phase::Preparing { .. }) if from == txn.node && decision == Decision::Abort => {
                // Not promised, so nothing is recorded; a resource that answers later is not listened to.
                self.finish(txn, Finish::VotedNo);
                fx.out.event(Event::Abort(txn));
            }
            Some(other) => self.put(txn, other),
            None => {
                let committed = self.finished.get(&txn) == Some(&Finish::Recorded(Ending::Committed));
                if decision == Decision::Commit && (committed || self.is_over_everywhere(txn)) {
                    // The acknowledgement was lost.
                    fx.send(txn.node, Message::Acknowledged(txn));
                }
            }
        }
    }

    /// The resource has done what the decision asked.
    pub(super) fn applied(&mut self, txn: TxnId, fx: &mut Effects<'_>) {
        match self.take(txn) {
            Some(Phase::Ending { decision: Decision::Commit, .. }) => {
                if self.config.plant.has(Planted::CommitAcknowledgesBeforePersist) {
                    fx.send(txn.node, Message::Acknowledged(txn));
                    self.record_ending(txn, Ending::Committed, fx);
                    fx.out.barrier();
                } else {
                    self.record_ending(txn, Ending::Committed, fx);
                    fx.out.barrier();
                    fx.send(txn.node, Message::Acknowledged(txn));
                }
            }
            // Not forced and not acknowledged: if it is lost, the coordinator will be asked again.
            Some(Phase::Ending { decision: Decision::Abort, .. }) => {
                self.record_ending(txn, Ending::Aborted, fx);
            }
            Some(other) => self.put(txn, other),
            None => {}
        }
    }

    /// Another participant asks.
    pub(super) fn on_query(&mut self, from: u64, txn: TxnId, fx: &mut Effects<'_>) {
        if self.is_over_everywhere(txn) {
            return;
        }
        let decision = match (self.finished.get(&txn), self.open.get(&txn)) {
            (Some(Finish::Recorded(Ending::Committed)), _) => Decision::Commit,
            (Some(Finish::Recorded(Ending::Aborted)), _) => Decision::Abort,
            (None, Some(Phase::Ending { decision, .. })) => *decision,
            // Uncertain as well, or out of it: silence.
            (Some(Finish::Recorded(Ending::ReadOnly)), _) | (None, Some(Phase::Prepared(_))) => return,
            // Not voted, so not promised: refuse for good, and only then say so.
            (Some(Finish::VotedNo), _) | (None, Some(Phase::Preparing { .. })) => {
                let asked = self.take(txn).is_some();
                self.refuse(txn, fx);
                // Behind the barrier: told before, the resource would hear "abort", and after a crash that loses the
                // refusal be asked again, say yes, and commit.
                if asked {
                    fx.out.event(Event::Abort(txn));
                }
                Decision::Abort
            }
            (None, None) if self.is_full(txn.node) => return,
            (None, None) => {
                self.refuse(txn, fx);
                Decision::Abort
            }
        };
        fx.send(from, Message::Decided { txn, decision });
    }

    pub(super) fn tick(&mut self, now: Time, fx: &mut Effects<'_>) {
        while let Some(&(at, txn)) = self.timers.first()
            && at <= now
        {
            match self.take(txn) {
                Some(Phase::Preparing { participants, payload, retry }) => {
                    // The abort may have been lost; a transaction that lives is not answered for.
                    fx.send(txn.node, Message::Query(txn));
                    let retry = retry.next(now, &self.config, txn);
                    self.put(txn, Phase::Preparing { participants, payload, retry });
                }
                Some(Phase::Prepared(mut prepared)) => {
                    if self.config.plant.has(Planted::CommitUncertainAborts) && prepared.retry.attempt > 1 {
                        self.end(txn, prepared, Decision::Abort, fx);
                        continue;
                    }
                    fx.send(txn.node, Message::Query(txn));
                    if prepared.retry.attempt >= PEERS_AFTER {
                        let others = prepared.participants.iter().filter(|node| **node != self.me);
                        for node in others.filter(|node| **node != txn.node) {
                            fx.send(*node, Message::Query(txn));
                        }
                    }
                    prepared.retry = prepared.retry.next(now, &self.config, txn);
                    self.put(txn, Phase::Prepared(prepared));
                }
                Some(ending) => self.put(txn, ending),
                None => {
                    self.timers.remove(&(at, txn));
                }
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(super) fn in_doubt(&self) -> Vec<InDoubt> {
        let uncertain = |(txn, phase): (&TxnId, &Phase)| match phase {
            Phase::Prepared(prepared) => Some(InDoubt {
                txn: *txn,
                since: prepared.since,
                participants: prepared.participants.clone(),
            }),
            Phase::Preparing { .. } | Phase::Ending { .. } => None,
        };
        self.open.iter().filter_map(uncertain).collect()
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    pub(super) fn check(&self) -> Result<(), Violation> {
        if self.open.len() > self.config.transactions_max {
            return Err(Violation(format!("{} open transactions at a participant", self.open.len())));
        }
        let remembered: usize = self.remembered.values().sum();
        if remembered != self.finished.len() {
            let finished = self.finished.len();
            return Err(Violation(format!("{finished} finished transactions are counted as {remembered}")));
        }
        Ok(())
    }

    fn end(&mut self, txn: TxnId, prepared: Prepared, decision: Decision, fx: &mut Effects<'_>) {
        fx.out.event(match decision {
            Decision::Commit => Event::Commit(txn),
            Decision::Abort => Event::Abort(txn),
        });
        self.put(txn, Phase::Ending { decision, prepared });
    }

    /// Promises never to vote on it.
    fn refuse(&mut self, txn: TxnId, fx: &mut Effects<'_>) {
        if self.config.plant.has(Planted::CommitRefusesWithoutRecord) {
            return;
        }
        self.record_ending(txn, Ending::Aborted, fx);
        fx.out.barrier();
    }

    fn record_ending(&mut self, txn: TxnId, ending: Ending, fx: &mut Effects<'_>) {
        fx.out.persist(Record::Finished { txn, ending });
        self.finish(txn, Finish::Recorded(ending));
    }

    fn finish(&mut self, txn: TxnId, finish: Finish) {
        if self.is_over_everywhere(txn) || self.config.plant.has(Planted::CommitForgetsFinished) {
            return;
        }
        if self.finished.insert(txn, finish).is_none() {
            *self.remembered.entry(txn.node).or_default() += 1;
        }
    }

    fn is_full(&self, coordinator: u64) -> bool {
        let remembered = match self.remembered.get(&coordinator) {
            Some(count) => *count >= self.config.window_max,
            // A query may name any coordinator: made-up ones must not fill the memory.
            None => self.remembered.len() >= COORDINATORS_MAX,
        };
        remembered || self.open.len() >= self.config.transactions_max
    }

    fn is_over_everywhere(&self, txn: TxnId) -> bool {
        self.floors.get(&txn.node).is_some_and(|floor| (txn.incarnation, txn.sequence) < *floor)
    }

    fn raise_floor(&mut self, coordinator: u64, floor: Age) {
        let known = self.floors.entry(coordinator).or_insert((0, 0));
        if floor <= *known {
            return;
        }
        *known = floor;
        let end = TxnId { node: coordinator, incarnation: floor.0, sequence: floor.1 };
        let begin = TxnId { node: coordinator, incarnation: 0, sequence: 0 };
        let over: Vec<TxnId> = self.finished.range(begin..end).map(|(txn, _)| *txn).collect();
        for txn in &over {
            self.finished.remove(txn);
        }
        if let Some(count) = self.remembered.get_mut(&coordinator) {
            *count -= over.len();
            if *count == 0 {
                self.remembered.remove(&coordinator);
            }
        }
    }

    fn put(&mut self, txn: TxnId, phase: Phase) {
        if let Some(at) = phase.wakes() {
            self.timers.insert((at, txn));
        }
        let before = self.open.insert(txn, phase);
        debug_assert!(before.is_none(), "a transaction is taken before it is put back");
    }

    fn take(&mut self, txn: TxnId) -> Option<Phase> {
        let phase = self.open.remove(&txn)?;
        if let Some(at) = phase.wakes() {
            self.timers.remove(&(at, txn));
        }
        Some(phase)
    }
}

impl Phase {
    fn wakes(&self) -> Option<Time> {
        match self {
            Self::Preparing { retry, .. } => Some(retry.at),
            Self::Prepared(prepared) => Some(prepared.retry.at),
            // The resource will answer; nobody else can help.
            Self::Ending { .. } => None,
        }
    }
}

/// Waits for the coordinator before the other participants are asked as well: about three seconds by default. A
/// participant that is asked too early, while its prepare is only late, would refuse a transaction that could commit.
const PEERS_AFTER: u32 = 4;

/// Coordinators of which ended transactions are remembered at a time: more nodes than talk to each other.
const COORDINATORS_MAX: usize = 1_024;
