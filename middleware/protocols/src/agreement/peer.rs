//! What a leader knows of each member, and who the members are.

use std::sync::Arc;

use bytes::Bytes;

use super::Refusal;
use super::message::{Change, Content, Entry};
use super::replica::{Replica, Role};
use crate::machine::ProcessId;
use crate::planted::Planted;
use crate::time::Time;

/// How far a member is.
#[derive(Debug)]
pub(super) struct Peer {
    /// Up to here its log is the leader's, durably.
    pub(super) matched: u64,
    /// What is sent next.
    pub(super) next: u64,
    pub(super) probe: Probe,
    /// When something was sent that nothing was on its way before, or when progress was last made.
    pub(super) moved_at: Time,
    pub(super) heard_at: Time,
    /// The last round that it has answered.
    pub(super) round: u64,
    /// What it was last told: the round, and how much is chosen; `None` when it is to be told anyway.
    pub(super) told: Option<(u64, u64)>,
    pub(super) sending: Option<Sending>,
}

/// Until it is clear what a member holds, it gets one message at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// It is clear: as many as the window allows.
    Over,
    Wanted,
    Sent,
}

/// A snapshot on its way to a member.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) index: u64,
    pub(super) bytes: Bytes,
    pub(super) offset: u64,
    pub(super) is_sent: bool,
}

impl Peer {
    pub(super) fn new(next: u64, now: Time) -> Self {
        Self {
            matched: 0,
            next,
            probe: Probe::Wanted,
            moved_at: now,
            heard_at: now,
            round: 0,
            told: None,
            sending: None,
        }
    }

    /// What is on its way is taken for lost.
    pub(super) fn try_again(&mut self, now: Time) {
        self.next = self.matched + 1;
        self.probe = Probe::Wanted;
        self.moved_at = now;
        if let Some(sending) = &mut self.sending {
            sending.is_sent = false;
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        let is_sending = self.sending.as_ref().is_some_and(|sending| sending.is_sent);
        is_sending
            || match self.probe {
                Probe::Over => self.next > self.matched + 1,
                Probe::Wanted => false,
                Probe::Sent => true,
            }
    }

    pub(super) fn may_be_sent(&self, window: usize) -> bool {
        match self.probe {
            Probe::Over => self.next - 1 - self.matched < window as u64,
            Probe::Wanted => true,
            Probe::Sent => false,
        }
    }
}

impl Replica {
    /// There is a peer for every member, and for nobody else.
    pub(super) fn meet_members(&mut self) {
        let members = self.log.members().clone();
        let me = members.name_of(self.me);
        let Role::Leader(leading) = &mut self.role else { return };
        let is_member = |name: &ProcessId| members.voters.contains(name) || members.learners.contains(name);
        leading.peers.retain(|name, _| is_member(name));
        for name in members.voters.iter().chain(&members.learners).filter(|name| Some(**name) != me) {
            // It may hold all that was recorded before; if not, it says so.
            leading.peers.entry(*name).or_insert_with(|| Peer::new(leading.kept + 1, self.now));
        }
    }

    /// The members change by one step, as soon as that stands in the log: a majority of those before and one of those
    /// after always have somebody in common.
    pub(super) fn reconfigure(&mut self, token: u64, change: Change) -> Result<(), Refusal> {
        let leader = self.leader();
        let (chosen, last) = (self.chosen, self.log.last());
        let present = self.log.members().clone();
        let is_settled = self.log.members_since() <= chosen;
        let Role::Leader(leading) = &self.role else { return Err(Refusal::NotLeader { leader }) };
        // A leader whose own term has begun knows of every change before it; see Ongaro's note of 2015.
        let is_free = is_settled && chosen >= leading.from && self.changing.is_none();
        if !is_free && !self.has(Planted::LogChangesTwoAtOnce) {
            return Err(Refusal::Changing);
        }
        if let Change::Voter(voter) = change
            && !present.voters.contains(&voter)
        {
            let near = self.config.window_entries_max as u64;
            let matched = leading.peers.get(&voter).map_or(0, |peer| peer.matched);
            if !self.names_me(voter) && (!present.learners.contains(&voter) || matched + near < last) {
                return Err(Refusal::Behind(voter));
            }
        }
        let members = present.changed_by(change);
        if members.voters.is_empty() {
            return Err(Refusal::LastVoter);
        }
        let limit = self.config.members_max;
        if members.voters.len() + members.learners.len() > limit {
            return Err(Refusal::TooMany { limit });
        }
        self.changing = Some((last + 1, self.term, token));
        self.log.push(Entry { term: self.term, content: Content::Members(Arc::new(members)) });
        self.meet_members();
        self.is_dirty = true;
        Ok(())
    }
}
