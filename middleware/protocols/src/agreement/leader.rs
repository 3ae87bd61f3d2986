//! What a leader does: puts proposals into the log, spreads it, finds out what is chosen, answers for reads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Event;
use super::message::{Content, Entry, Gap, Message, Proposal};
use super::own::Again;
use super::peer::{Peer, Probe, Sending};
use super::replica::{Replica, Role};
use super::seats::Seats;
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::time::Time;
use crate::wire::Wire;

/// What only a leader knows.
#[derive(Debug)]
pub(super) struct Leading {
    /// Everybody else who takes part.
    pub(super) peers: BTreeMap<ProcessId, Peer>,
    /// The place of its first entry.
    pub(super) from: u64,
    /// Up to here its entries are recorded, or the record is on its way.
    pub(super) kept: u64,
    pub(super) beat_at: Time,
    /// The last round in which it asked who still follows.
    round: u64,
    /// Who wants to know from which place on it may read, with its last question.
    asking: BTreeMap<ProcessId, u64>,
    /// Those whose answer waits for a round: the round, the place, who asked what.
    confirming: VecDeque<(u64, u64, BTreeMap<ProcessId, u64>)>,
    /// Proposals that have come and are not in the log.
    fresh: VecDeque<Proposal>,
    /// What was put in, delivered or not: a repeated proposal is not put in again.
    admitted: Seats,
    /// The present snapshot as bytes, once somebody needed it.
    blob: Option<(u64, Bytes)>,
}

impl Replica {
    /// Elected.
    pub(super) fn take_lead(&mut self, out: &mut Outputs<Self>) {
        let kept = self.log.last();
        let mut admitted = self.seats.clone();
        for index in self.delivered() + 1..=kept {
            if let Some(Entry { content: Content::Command(proposal), .. }) = self.log.get(index) {
                admitted.take(proposal);
            }
        }
        self.log.push(Entry { term: self.term, content: Content::Nothing });
        self.role = Role::Leader(Box::new(Leading {
            peers: BTreeMap::new(),
            from: kept + 1,
            kept,
            beat_at: self.now + self.config.heartbeat,
            round: 0,
            asking: BTreeMap::new(),
            confirming: VecDeque::new(),
            fresh: VecDeque::new(),
            admitted,
            blob: None,
        }));
        self.receiving = None;
        self.again = Again::default();
        self.outstanding.resend();
        self.reads.ask_again();
        self.meet_members();
        self.is_dirty = true;
        out.event(Event::Leader { term: self.term, leader: Some(self.me) });
    }

    /// The time has come to be heard, and to see who is.
    pub(super) fn beat(&mut self, out: &mut Outputs<Self>) {
        let members = self.log.members().clone();
        let quorum = self.quorum();
        let (now, config) = (self.now, self.config);
        let Role::Leader(leading) = &mut self.role else { return };
        if leading.beat_at > now {
            return;
        }
        leading.beat_at = now + config.heartbeat;
        let heard = members.voters.iter().filter(|voter| match leading.peers.get(*voter) {
            Some(peer) => now.since(peer.heard_at) < config.election,
            None => true, // itself
        });
        if heard.count() < quorum {
            return self.follow_nobody(out);
        }
        for peer in leading.peers.values_mut() {
            peer.told = None;
        }
        self.is_dirty = true;
    }

    /// Everything that waits, as one batch: tells what is chosen, takes proposals, sends, then writes.
    pub(super) fn lead(&mut self, out: &mut Outputs<Self>) {
        self.advance(out);
        self.take_proposals();
        self.take_questions();
        self.spread(out);
        let Role::Leader(leading) = &mut self.role else { return };
        if leading.kept < self.log.last() {
            let first = leading.kept + 1;
            leading.kept = self.log.last();
            self.persist_from(first, out);
            // From here on it counts itself: whoever could learn of that learns it behind this barrier.
            if !self.has(Planted::LogCountsItselfEarly) {
                out.barrier();
            }
            self.advance(out);
        } else {
            self.answer_reads(out);
        }
    }

    fn take_proposals(&mut self) {
        while self.has_room(LEADERS_FACTOR) {
            let Role::Leader(leading) = &mut self.role else { return };
            let from_others = leading.fresh.pop_front();
            let Some(proposal) = from_others.or_else(|| self.outstanding.next_unsent(self.me)) else {
                return;
            };
            let may = proposal.fence == 0 || proposal.fence == self.term;
            if may && (leading.admitted.take(&proposal) || self.config.plant.has(Planted::LogDeliversTwice)) {
                self.log.push(Entry { term: self.term, content: Content::Command(proposal) });
            }
        }
    }

    fn take_questions(&mut self) {
        let question = self.reads.question();
        let (chosen, me) = (self.chosen, self.me);
        let early = self.has(Planted::LogReadsBeforeOwnEntry);
        let Role::Leader(leading) = &mut self.role else { return };
        if let Some(ask) = question {
            leading.asking.insert(me, ask);
        }
        // Before its first entry is chosen, a leader does not know what earlier ones had chosen.
        if !leading.asking.is_empty() && (chosen >= leading.from || early) {
            leading.round += 1;
            let askers = std::mem::take(&mut leading.asking);
            leading.confirming.push_back((leading.round, chosen, askers));
        }
    }

    /// Finds out what is chosen and delivers it.
    pub(super) fn advance(&mut self, out: &mut Outputs<Self>) {
        let Role::Leader(leading) = &self.role else { return };
        let held = self.agreed(leading.kept, |peer| peer.matched);
        // Entries of earlier terms are chosen only together with one of this term: a majority that holds them may
        // still be overruled by a leader that a later term's entry elects.
        let is_own = self.log.term_at(held) == Some(self.term) || self.has(Planted::LogChoosesOldTerms);
        if held > self.chosen && is_own {
            self.chosen = held;
            self.is_dirty = true;
            self.deliver(out);
            if !self.is_voter() && self.log.members_since() <= self.chosen {
                return self.follow_nobody(out);
            }
        }
        self.answer_reads(out);
    }

    fn answer_reads(&mut self, out: &mut Outputs<Self>) {
        let Role::Leader(leading) = &self.role else { return };
        let heard = if self.has(Planted::LogReadsUnconfirmed) {
            leading.round
        } else {
            self.agreed(leading.round, |peer| peer.round)
        };
        let me = self.me;
        let Role::Leader(leading) = &mut self.role else { return };
        while let Some((_, index, askers)) = leading.confirming.pop_front_if(|(round, ..)| *round <= heard) {
            for (asker, ask) in askers {
                if asker == me {
                    self.reads.on_answer(ask, index);
                } else {
                    out.send(asker, Lane::Control, Message::ReadAnswer { ask, index });
                }
            }
        }
        self.tell_readable(out);
    }

    /// What a quorum of the voters has reached, this one with `own`.
    fn agreed(&self, own: u64, reached: impl Fn(&Peer) -> u64) -> u64 {
        let Role::Leader(leading) = &self.role else { return 0 };
        // This one has no peer, and every other voter has.
        let voters = &self.log.members().voters;
        let mut places: Vec<u64> = voters
            .iter()
            .map(|voter| match leading.peers.get(voter) {
                Some(peer) => reached(peer),
                None => own,
            })
            .collect();
        places.sort_unstable_by(|a, b| b.cmp(a));
        places.get(self.quorum() - 1).copied().unwrap_or(0)
    }

    /// Sends everybody what is due.
    fn spread(&mut self, out: &mut Outputs<Self>) {
        let (now, config, term, chosen) = (self.now, self.config, self.term, self.chosen);
        let patience = lost_after(config.heartbeat);
        let log = &self.log;
        let snapshot = &self.snapshot;
        let Role::Leader(leading) = &mut self.role else { return };
        let round = leading.round;
        // Members that are equally far get the same message, encoded once.
        let mut runs: Vec<Run> = Vec::new();
        let mut chunks = Vec::new();
        for (name, peer) in &mut leading.peers {
            if peer.is_waiting() && now.since(peer.moved_at) >= patience {
                peer.try_again(now);
            }
            if peer.next <= log.base() && peer.sending.is_none() {
                let is_present = leading.blob.as_ref().is_some_and(|(index, _)| *index == snapshot.index);
                if !is_present {
                    leading.blob = Some((snapshot.index, snapshot.to_bytes()));
                }
                let bytes = leading.blob.as_ref().map_or_else(Bytes::new, |(_, bytes)| bytes.clone());
                peer.sending = Some(Sending { index: snapshot.index, bytes, offset: 0, is_sent: false });
            }
            if let Some(sending) = &mut peer.sending {
                if !sending.is_sent {
                    sending.is_sent = true;
                    peer.moved_at = now;
                    let offset =
                        usize::try_from(sending.offset).unwrap_or(usize::MAX).min(sending.bytes.len());
                    let end = offset.saturating_add(config.chunk_bytes).min(sending.bytes.len());
                    let (index, total) = (sending.index, sending.bytes.len() as u64);
                    let data = sending.bytes.slice(offset..end);
                    let offset = offset as u64;
                    chunks.push((*name, Message::Chunk { term, round, index, total, offset, data }));
                }
            } else {
                while peer.next <= log.last() && peer.may_be_sent(config.window_entries_max) {
                    let run = run_of(&mut runs, peer.next, false, || {
                        log.run_from(peer.next, config.batch_bytes_max, config.batch_entries_max)
                    });
                    run.to.push(*name);
                    if !peer.is_waiting() {
                        peer.moved_at = now;
                    }
                    peer.next += run.entries.len() as u64;
                    if peer.probe == Probe::Wanted {
                        peer.probe = Probe::Sent;
                    }
                    peer.told = Some((round, chosen));
                }
            }
            let news = (round, chosen.min(peer.matched));
            if peer.told.is_none_or(|told| told.0 < news.0 || told.1 < news.1) {
                peer.told = Some(news);
                // What it holds for certain, so that it has nothing to refuse.
                run_of(&mut runs, peer.matched + 1, true, || Arc::from([])).to.push(*name);
            }
        }
        runs.sort_by_key(|run| run.first);
        for Run { first, entries, to } in runs {
            let after = first - 1;
            // Before the base, everything is chosen, and whoever holds it does not look at the term.
            let (after, after_term) = log.term_at(after).map_or((0, 0), |term| (after, term));
            let message = Message::Append { term, after: (after, after_term), chosen, round, entries };
            out.multicast(to.into(), Lane::Ordinary, message);
        }
        for (to, message) in chunks {
            out.send(to, Lane::Bulk, message);
        }
    }

    /// A follower has spoken; false when this is no answer to the present leader.
    pub(super) fn hears_follower(
        &mut self,
        from: ProcessId,
        term: u64,
        round: u64,
        out: &mut Outputs<Self>,
    ) -> bool {
        if term > self.term {
            self.enter_term(term, None, out);
        }
        let now = self.now;
        if term < self.term {
            return false;
        }
        let Some((peer, own_round)) = self.peer(from) else { return false };
        peer.heard_at = now;
        if round > peer.round && round <= own_round {
            peer.round = round;
            self.is_dirty = true;
        }
        true
    }

    fn peer(&mut self, from: ProcessId) -> Option<(&mut Peer, u64)> {
        let name = self.log.members().name_of(from)?;
        let Role::Leader(leading) = &mut self.role else { return None };
        let round = leading.round;
        leading.peers.get_mut(&name).map(|peer| (peer, round))
    }

    pub(super) fn on_appended(&mut self, from: ProcessId, held: Result<u64, Gap>) {
        let (now, last) = (self.now, self.log.last());
        let Some((peer, _)) = self.peer(from) else { return };
        match held {
            Ok(held) if held <= last && held > peer.matched => {
                peer.matched = held;
                peer.next = peer.next.max(held + 1);
                peer.probe = Probe::Over;
                peer.moved_at = now;
                peer.sending.take_if(|sending| sending.index <= held);
                self.is_dirty = true;
            }
            // Those that were sent before the last step back are not news.
            Err(gap) if gap.after > peer.matched && gap.after < peer.next && peer.sending.is_none() => {
                peer.next = gap.try_after.min(gap.after - 1).max(peer.matched) + 1;
                peer.probe = Probe::Wanted;
                peer.moved_at = now;
                self.is_dirty = true;
            }
            _ => {}
        }
    }

    pub(super) fn on_chunk_taken(&mut self, from: ProcessId, index: u64, offset: u64) {
        let now = self.now;
        let Some((peer, _)) = self.peer(from) else { return };
        if let Some(sending) = peer.sending.as_mut().filter(|sending| sending.index == index) {
            sending.offset = offset;
            sending.is_sent = false;
            peer.moved_at = now;
            self.is_dirty = true;
        }
    }

    pub(super) fn on_propose(&mut self, from: ProcessId, proposals: &[Proposal]) {
        let limit = self.config.outstanding_max;
        let payload_max = self.config.payload_bytes_max;
        let is_member = self.log.members().name_of(from).is_some();
        let Role::Leader(leading) = &mut self.role else { return };
        if !is_member {
            return;
        }
        for proposal in proposals {
            let is_sound = proposal.origin == from
                && (proposal.behind as usize) < limit
                && proposal.payload.len() <= payload_max;
            // Those that find no room come again.
            if is_sound && leading.fresh.len() < limit.saturating_mul(self.config.members_max) {
                leading.fresh.push_back(proposal.clone());
                self.is_dirty = true;
            }
        }
    }

    pub(super) fn on_read_ask(&mut self, from: ProcessId, ask: u64) {
        let is_member = self.log.members().name_of(from).is_some();
        let Role::Leader(leading) = &mut self.role else { return };
        if is_member {
            let last = leading.asking.entry(from).or_default();
            *last = ask.max(*last);
            self.is_dirty = true;
        }
    }
}

/// One message, and who gets it.
struct Run {
    first: u64,
    entries: Arc<[Entry]>,
    to: Vec<ProcessId>,
}

/// The message that begins at a place, made when it is wanted first. Empty ones are apart from those that carry entries.
fn run_of(runs: &mut Vec<Run>, first: u64, is_empty: bool, make: impl FnOnce() -> Arc<[Entry]>) -> &mut Run {
    let found = runs.iter().position(|run| run.first == first && run.entries.is_empty() == is_empty);
    let at = found.unwrap_or_else(|| {
        runs.push(Run { first, entries: make(), to: Vec::new() });
        runs.len() - 1
    });
    &mut runs[at]
}

/// Answers take a round trip and a forced write; what has none after two heartbeats is taken for lost.
fn lost_after(heartbeat: Duration) -> Duration {
    heartbeat * 2
}

/// A leader puts in entries up to so many times the length at which a snapshot is wanted.
const LEADERS_FACTOR: usize = 4;
