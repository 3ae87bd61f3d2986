//! One view change: the consensus on the next view and on the cut of this one.
//!
//! A leader prepares, proposes and decides; every member, the leader too, promises, fills the cut, accepts and installs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Ballot, Member, Message, Pace, Phase, Proposal, ViewSync, reach};
use crate::machine::{Lane, ProcessId};
use crate::planted::Planted;
use crate::stack::{Down, Ended, Flow, View, ViewId};
use crate::time::Time;

/// A leader's attempt.
pub(super) struct Leading {
    pub(super) ballot: Ballot,
    pub(super) patience_until: Time,
    pub(super) resend_at: Time,
    pub(super) step: Step,
}

pub(super) enum Step {
    Preparing { promises: BTreeMap<ProcessId, Promise> },
    Accepting { proposal: Proposal, accepted: BTreeSet<ProcessId> },
}

pub(super) struct Promise {
    pub(super) accepted: Option<(Ballot, Proposal)>,
    pub(super) received: Vec<u64>,
    pub(super) synced: bool,
    pub(super) leaving: bool,
}

impl ViewSync {
    /// When this process should start an attempt of its own; `None` when that is not its business.
    pub(super) fn lead_due_at(&self) -> Option<Time> {
        let Phase::Member(member) = &self.phase else { return None };
        if member.leading.is_some() || member.decided.is_some() || !self.wants_change() {
            return None;
        }
        if self.candidate() != Some(self.me) {
            return None;
        }
        let other = member.yields.filter(|(leader, _)| *leader != self.me && self.fit().contains(leader));
        let at = member.lead_at.max(self.settled_at());
        Some(other.map_or(at, |(_, until)| until.max(at)))
    }

    /// Starts a new attempt.
    pub(super) fn lead(&mut self, now: Time, flow: &mut Flow<Message>) {
        let (me, Pace { patience, retry, .. }) = (self.me, self.pace);
        let Some(member) = self.member() else { return };
        member.round_seen += 1;
        member.lead_at = now + retry;
        let ballot = Ballot { round: member.round_seen, leader: me };
        let step = Step::Preparing { promises: BTreeMap::new() };
        member.leading =
            Some(Leading { ballot, patience_until: now + patience, resend_at: now + retry, step });
        let view = member.view.id;
        self.send_members(&Message::Prepare { view, ballot }, flow);
    }

    pub(super) fn on_prepare(
        &mut self,
        now: Time,
        from: ProcessId,
        view: ViewId,
        ballot: Ballot,
        flow: &mut Flow<Message>,
    ) {
        if !self.is_current(from, view, flow) || ballot.leader != from {
            return;
        }
        let (plant, patience) = (self.plant, self.pace.patience);
        let Some(member) = self.member() else { return };
        member.round_seen = member.round_seen.max(ballot.round);
        if let Some(promised) = member.promised.filter(|promised| *promised > ballot) {
            return self.send(from, Message::Refuse { view, promised }, flow);
        }
        if member.promised != Some(ballot) {
            member.promised = Some(ballot);
            // Room for preparing and accepting.
            member.yields = Some((from, now + patience * 3));
            let older = member.leading.as_ref().is_some_and(|leading| leading.ballot < ballot);
            if older && !plant.has(Planted::ViewAcceptsOldBallot) {
                member.leading = None;
            }
        }
        if member.frozen.is_some() {
            self.send_promise(flow);
        } else {
            flow.down(Down::Freeze);
        }
    }

    pub(super) fn send_promise(&mut self, flow: &mut Flow<Message>) {
        let (synced, leaving) = (self.synced, self.leaving);
        let Some(member) = self.member() else { return };
        let (Some(ballot), Some(received)) = (member.promised, member.frozen.clone()) else { return };
        let (view, accepted) = (member.view.id, member.accepted.clone());
        let promise = Message::Promise { view, ballot, accepted, received, synced, leaving };
        self.send(ballot.leader, promise, flow);
    }

    pub(super) fn on_promise(&mut self, from: ProcessId, ballot: Ballot, promise: Promise) {
        let Some(member) = self.member() else { return };
        let senders = member.view.members.len();
        let Some(leading) = member.leading.as_mut().filter(|leading| leading.ballot == ballot) else {
            return;
        };
        if let Step::Preparing { promises } = &mut leading.step
            && promise.received.len() == senders
        {
            promises.insert(from, promise);
        }
    }

    /// Proposes once all that seem alive have promised, or a quorum when patience has run out.
    pub(super) fn propose_if_ready(&mut self, now: Time, flow: &mut Flow<Message>) {
        let Phase::Member(member) = &self.phase else { return };
        let Some(leading) = &member.leading else { return };
        let Step::Preparing { promises } = &leading.step else { return };
        let all = self.fit().iter().all(|process| promises.contains_key(process));
        let quorum = member.quorum(self.plant, |process| promises.contains_key(&process));
        if !quorum || !(all || leading.patience_until <= now) {
            return;
        }
        let ballot = leading.ballot;
        let Some(proposal) = self.choose(member, promises) else { return };
        let patience_until = now + self.pace.patience * 2;
        let resend_at = now + self.pace.retry;
        let view = member.view.id;
        if let Some(member) = self.member() {
            let step = Step::Accepting { proposal: proposal.clone(), accepted: BTreeSet::new() };
            member.leading = Some(Leading { ballot, patience_until, resend_at, step });
        }
        self.send_members(&Message::Accept { view, ballot, proposal }, flow);
    }

    /// What an earlier ballot may have chosen; otherwise the members that promised, joiners, and the union of what
    /// was received.
    pub(super) fn choose(
        &self,
        member: &Member,
        promises: &BTreeMap<ProcessId, Promise>,
    ) -> Option<Proposal> {
        let earlier = promises.values().filter_map(|promise| promise.accepted.as_ref());
        if let Some((_, proposal)) = earlier.max_by_key(|(ballot, _)| *ballot)
            && !self.plant.has(Planted::ViewIgnoresAccepted)
        {
            return Some(proposal.clone());
        }
        let cut_of = |rank: usize| {
            let mut counts = promises
                .iter()
                .filter(|(process, _)| !self.plant.has(Planted::CutOfLeaderOnly) || **process == self.me);
            counts.by_ref().map(|(_, promise)| promise.received[rank]).max().unwrap_or(0)
        };
        let cut: Vec<u64> = (0..member.view.members.len()).map(cut_of).collect();
        // Whoever promised seems alive to me; but two members that do not hear each other cannot both stay.
        let here: Vec<_> = member.view.members.iter().copied().filter(|p| promises.contains_key(p)).collect();
        let stays = |process: &ProcessId| !promises[process].leaving && !self.leavers.contains(process);
        let synced = |process: &ProcessId| promises[process].synced;
        let staying: Vec<_> = here.iter().copied().filter(stays).collect();
        let mut members = reach::mutual(&staying, self.reports.edges());
        if !staying.is_empty() && !members.iter().any(synced) {
            // The last ones with the state may not leave yet.
            members = reach::mutual(&here, self.reports.edges());
            // Without anyone who has it there is nothing to go on with: wait for one to come back.
            if !members.iter().any(synced) {
                return None;
            }
        }
        // Those that leave by themselves may leave fewer behind than the configured quorum; nobody else is given up for it.
        let left = here.iter().filter(|process| !stays(process) && !members.contains(process)).count();
        if members.len() + left < member.view.least() && !self.plant.has(Planted::ViewIgnoresQuorumMin) {
            return None;
        }
        let mut synced: Vec<_> = members.iter().map(synced).collect();
        let room = self.joiners_admitted(synced.iter().copied());
        let fresh = self.joiners.keys().filter(|joiner| !member.view.contains(**joiner));
        for &joiner in fresh.take(room) {
            members.push(joiner);
            synced.push(false);
        }
        let quorum_min = member.view.quorum_min;
        let id = member.view.id.next();
        let view = View { id, members: members.into(), synced: synced.into(), quorum_min };
        Some(Proposal { view, cut })
    }

    pub(super) fn on_accept(
        &mut self,
        now: Time,
        from: ProcessId,
        view: ViewId,
        ballot: Ballot,
        proposal: Proposal,
        flow: &mut Flow<Message>,
    ) {
        if !self.is_current(from, view, flow) || ballot.leader != from {
            return;
        }
        let (plant, patience) = (self.plant, self.pace.patience);
        let Some(member) = self.member() else { return };
        if proposal.cut.len() != member.view.members.len() || proposal.view.id != view.next() {
            return;
        }
        if let Some(promised) = member.promised.filter(|promised| *promised > ballot)
            && !plant.has(Planted::ViewAcceptsOldBallot)
        {
            return self.send(from, Message::Refuse { view, promised }, flow);
        }
        // Only whoever promised this ballot is frozen for it; one that missed the question waits for the result.
        if member.promised < Some(ballot) || member.frozen.is_none() || member.decided.is_some() {
            return;
        }
        if member.accepted.as_ref().is_some_and(|(accepted, _)| *accepted == ballot) {
            return self.send(from, Message::Accepted { view, ballot }, flow);
        }
        member.yields = Some((from, now + patience * 3));
        let cut = proposal.cut.clone();
        member.accepting = Some((ballot, proposal));
        if plant.has(Planted::FlushAcceptsUnfilled) {
            self.on_filled(&cut, flow);
        } else {
            flow.down(Down::Fill { cut });
        }
    }

    pub(super) fn on_filled(&mut self, cut: &[u64], flow: &mut Flow<Message>) {
        let plant = self.plant;
        let Some(member) = self.member() else { return };
        if let Some(proposal) = member.decided.take_if(|proposal| proposal.cut == cut) {
            let view = proposal.view.clone();
            let cut = Some(proposal.cut.clone());
            member.decided = Some(proposal);
            return flow.down(Down::Install { view, cut });
        }
        if let Some((ballot, proposal)) = member.accepting.take_if(|(_, proposal)| proposal.cut == cut)
            && (member.promised == Some(ballot) || plant.has(Planted::ViewAcceptsOldBallot))
        {
            member.accepted = Some((ballot, proposal));
            let view = member.view.id;
            self.send(ballot.leader, Message::Accepted { view, ballot }, flow);
        }
    }

    pub(super) fn on_accepted(
        &mut self,
        from: ProcessId,
        view: ViewId,
        ballot: Ballot,
        flow: &mut Flow<Message>,
    ) {
        if !self.is_current(from, view, flow) {
            return;
        }
        let Some(member) = self.member() else { return };
        let Some(leading) = member.leading.as_mut().filter(|leading| leading.ballot == ballot) else {
            return;
        };
        if let Step::Accepting { accepted, .. } = &mut leading.step {
            accepted.insert(from);
        }
    }

    /// Decides once all that go on and seem alive have accepted, or a quorum when patience has run out: a quorum is
    /// enough to be safe, but the more hold the whole cut, the more crashes the next view survives.
    pub(super) fn decide_if_ready(&mut self, now: Time, flow: &mut Flow<Message>) {
        let Phase::Member(member) = &self.phase else { return };
        let Some(leading) = &member.leading else { return };
        let Step::Accepting { proposal, accepted } = &leading.step else { return };
        let fit = self.fit();
        let mut go_on = fit.iter().filter(|process| proposal.view.contains(**process));
        let all = go_on.all(|process| accepted.contains(process));
        let quorum = member.quorum(self.plant, |process| accepted.contains(&process));
        if !quorum || !(all || leading.patience_until <= now) {
            return;
        }
        let proposal = proposal.clone();
        let told = member.view.members.iter().chain(proposal.view.members.iter()).copied();
        let told: BTreeSet<_> = told.filter(|process| *process != self.me).collect();
        let told = told.into_iter().collect();
        flow.multicast(told, Lane::Control, Message::Install { proposal: proposal.clone() });
        self.on_install(proposal, flow);
    }

    pub(super) fn on_refuse(
        &mut self,
        now: Time,
        from: ProcessId,
        view: ViewId,
        promised: Ballot,
        flow: &mut Flow<Message>,
    ) {
        if !self.is_current(from, view, flow) {
            return;
        }
        let patience = self.pace.patience;
        let Some(member) = self.member() else { return };
        member.round_seen = member.round_seen.max(promised.round);
        if member.leading.as_ref().is_some_and(|leading| leading.ballot < promised) {
            member.leading = None;
            // Give the other leader its time; its Prepare will set this anew.
            member.yields = Some((promised.leader, now + patience));
        }
    }

    pub(super) fn on_install(&mut self, proposal: Proposal, flow: &mut Flow<Message>) {
        let mine = proposal.view.contains(self.me);
        match &mut self.phase {
            Phase::Joining { .. } if mine => {
                let view = proposal.view.clone();
                let mut member = Member::new(view.clone(), None);
                // Not a member yet: `decided` says which view is about to begin.
                member.decided = Some(proposal);
                self.phase = Phase::Member(Box::new(member));
                flow.down(Down::Install { view, cut: None });
            }
            Phase::Member(member)
                if proposal.view.id == member.view.id.next() && member.decided.is_none() =>
            {
                if proposal.cut.len() != member.view.members.len() {
                    return;
                }
                if !mine {
                    let why = if self.leaving { Ended::Left } else { Ended::Expelled };
                    return self.end(why, flow);
                }
                let cut = proposal.cut.clone();
                (member.leading, member.accepting) = (None, None);
                member.decided = Some(proposal);
                if self.plant.has(Planted::FlushAcceptsUnfilled) {
                    self.on_filled(&cut, flow);
                } else {
                    if member.frozen.is_none() {
                        flow.down(Down::Freeze);
                    }
                    flow.down(Down::Fill { cut });
                }
            }
            _ => {}
        }
    }

    pub(super) fn repeat_attempt(&mut self, now: Time, flow: &mut Flow<Message>) {
        let retry = self.pace.retry;
        let Phase::Member(member) = &mut self.phase else { return };
        let Some(leading) = &mut member.leading else { return };
        let (view, ballot) = (member.view.id, leading.ballot);
        let impatient = leading.patience_until <= now;
        if impatient && matches!(leading.step, Step::Accepting { .. }) {
            self.decide_if_ready(now, flow);
            let undecided = self.member().is_some_and(|member| member.decided.is_none());
            // Too many died between promise and acceptance: ask anew who is there.
            if undecided {
                self.lead(now, flow);
            }
            return;
        }
        if leading.resend_at <= now {
            leading.resend_at = now + retry;
            let message = match &leading.step {
                Step::Preparing { .. } => Message::Prepare { view, ballot },
                Step::Accepting { proposal, .. } => {
                    Message::Accept { view, ballot, proposal: proposal.clone() }
                }
            };
            self.send_members(&message, flow);
        }
    }
}
