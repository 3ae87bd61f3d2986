//! How a term gets its leader: asking softly, standing, voting, lending.
//!
//! Lending     a voter refuses a candidate whose log is shorter or older than its own. If that candidate is the only one
//!             that reaches a majority, nobody could ever lead; so the voter sends along what follows the entries that
//!             the candidate knows to be chosen. To take another's younger log for one's own loses nothing that was
//!             chosen: whatever was is in every log that ends with a later term, or with the same term further on.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::message::{Entry, Message};
use super::replica::{Replica, Role};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;

impl Replica {
    /// No leader is heard: asks the others whether they would vote.
    pub(super) fn stand(&mut self, out: &mut Outputs<Self>) {
        self.election_at = self.now + self.patience();
        self.ask_for_votes(false, out);
    }

    /// Enters the next term and votes for itself.
    fn campaign(&mut self, out: &mut Outputs<Self>) {
        self.enter_term(self.term.saturating_add(1), Some(self.me), out);
        self.election_at = self.now + self.patience();
        self.ask_for_votes(true, out);
    }

    fn ask_for_votes(&mut self, is_vote: bool, out: &mut Outputs<Self>) {
        let members = self.log.members().clone();
        let Some(name) = members.name_of(self.me) else { return };
        self.role = Role::Candidate { is_vote, granted: BTreeSet::from([name]) };
        let others: Arc<[ProcessId]> =
            members.voters.iter().copied().filter(|voter| *voter != name).collect();
        let term = if is_vote { self.term } else { self.term.saturating_add(1) };
        let last = (self.log.last(), self.log.last_term());
        out.multicast(others, Lane::Control, Message::Ask { term, is_vote, last, chosen: self.chosen });
        self.count_votes(out);
    }

    fn count_votes(&mut self, out: &mut Outputs<Self>) {
        let Role::Candidate { is_vote, granted } = &self.role else { return };
        let members = self.log.members();
        let count = granted.iter().filter(|name| members.voters.contains(name)).count();
        if count < self.quorum() {
            return;
        }
        if *is_vote {
            self.take_lead(out);
        } else {
            self.campaign(out);
        }
    }

    /// How many voters are enough.
    pub(super) fn quorum(&self) -> usize {
        let members = self.log.members();
        if self.has(Planted::LogQuorumOfHalf) { members.voters.len().div_ceil(2) } else { members.majority() }
    }

    /// True while a leader is heard that a candidate should not disturb.
    fn hears_leader(&self) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower { heard_at, .. } => {
                heard_at.is_some_and(|at| self.now.since(at) < self.config.election)
            }
            Role::Candidate { .. } => false,
        }
    }

    pub(super) fn on_ask(
        &mut self,
        from: ProcessId,
        term: u64,
        is_vote: bool,
        last: (u64, u64),
        chosen: u64,
        out: &mut Outputs<Self>,
    ) {
        let mine = (self.log.last(), self.log.last_term());
        let is_behind = (last.1, last.0) < (mine.1, mine.0) && !self.has(Planted::LogElectsOutdated);
        let granted = if is_vote {
            let is_free = term > self.term
                || self.voted.is_none()
                || self.voted == Some(from)
                || self.has(Planted::LogVotesTwice);
            let granted =
                term >= self.term && is_free && !is_behind && !(term == self.term && self.is_leader());
            if granted && !(term == self.term && self.voted == Some(from)) {
                self.enter_term(term, Some(from), out);
                self.election_at = self.now + self.patience();
            } else if term > self.term {
                self.enter_term(term, None, out);
            }
            granted
        } else {
            term > self.term && !is_behind && !self.hears_leader()
        };
        let term = if granted { term } else { self.term };
        out.send(from, Lane::Control, Message::Answer { term, is_vote, granted });
        if is_behind && !self.hears_leader() {
            self.lend(from, last, chosen, out);
        }
    }

    /// Sends a candidate what its log lacks.
    fn lend(&self, to: ProcessId, last: (u64, u64), chosen: u64, out: &mut Outputs<Self>) {
        // Where the candidate's log is the beginning of this one, some of the rest makes it younger. Where they part
        // somewhere behind what is chosen, only all of it does for certain.
        let is_beginning = self.log.term_at(last.0) == Some(last.1);
        let (after, bytes) = if is_beginning {
            (last.0, self.config.batch_bytes_max)
        } else {
            (chosen, self.config.log_bytes_max)
        };
        let Some(after_term) = self.log.term_at(after) else { return };
        let entries = self.log.run_from(after.saturating_add(1), bytes, self.config.log_entries_max);
        let message = Message::Lend { term: self.term, after: (after, after_term), entries };
        out.send(to, Lane::Ordinary, message);
    }

    pub(super) fn on_answer(
        &mut self,
        from: ProcessId,
        term: u64,
        is_vote: bool,
        granted: bool,
        out: &mut Outputs<Self>,
    ) {
        if !granted {
            if term > self.term {
                self.enter_term(term, None, out);
            }
            return;
        }
        let name = self.log.members().name_of(from);
        let Role::Candidate { is_vote: asked_vote, granted } = &mut self.role else { return };
        let asked = if *asked_vote { self.term } else { self.term.saturating_add(1) };
        if let (Some(name), true) = (name, is_vote == *asked_vote && term == asked) {
            granted.insert(name);
            self.count_votes(out);
        }
    }

    /// Takes what a voter has lent, if that makes the own log younger.
    pub(super) fn on_lend(
        &mut self,
        term: u64,
        after: (u64, u64),
        entries: &[Entry],
        out: &mut Outputs<Self>,
    ) {
        let Some(last) = entries.last() else { return };
        let lent = (last.term, after.0.saturating_add(entries.len() as u64));
        let mine = (self.log.last_term(), self.log.last());
        let fits = self.log.term_at(after.0) == Some(after.1);
        if self.hears_leader() || !fits || lent <= mine || entries.iter().any(|entry| entry.term > term) {
            return;
        }
        if term > self.term {
            self.enter_term(term, None, out);
        }
        self.splice(after.0, entries, out);
        // Now it may win, and whoever refused it is free.
        self.election_at = self.now + self.chance_of(self.config.heartbeat);
    }

    /// A connection broke. If it was the leader's, another one may be wanted sooner; if not, who asks is told so.
    pub(super) fn on_unreachable(&mut self, peer: ProcessId) {
        let soon = self.now + self.chance_of(self.config.heartbeat);
        match &mut self.role {
            Role::Follower { leader: Some(leader), heard_at } if *leader == peer => {
                *heard_at = None;
                self.election_at = self.election_at.min(soon);
            }
            Role::Leader(leading) => {
                let Some(name) = self.log.members().name_of(peer) else { return };
                if let Some(peer) = leading.peers.get_mut(&name) {
                    peer.try_again(self.now);
                    self.is_dirty = true;
                }
            }
            _ => {}
        }
    }
}
