//! What a follower does: takes entries and snapshots, hands its own proposals and questions to the leader.

use std::mem;
use std::sync::Arc;

use super::Event;
use super::message::{Entry, Gap, Message, Proposal, Record};
use super::own::Again;
use super::replica::{Replica, Role};
use super::snapshot::{Receiving, Snapshot};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::wire::Wire;

impl Replica {
    /// A leader of this or a later term has spoken.
    fn follow(&mut self, leader: ProcessId, term: u64, out: &mut Outputs<Self>) {
        if term > self.term {
            self.enter_term(term, None, out);
        }
        let heard_at = Some(self.now);
        let known = match &self.role {
            Role::Follower { leader, .. } => *leader,
            _ => None,
        };
        if known != Some(leader) {
            out.event(Event::Leader { term, leader: Some(leader) });
            self.outstanding.resend();
            self.reads.ask_again();
            self.is_dirty = true;
        }
        self.role = Role::Follower { leader: Some(leader), heard_at };
        self.election_at = self.now + self.patience();
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_append(
        &mut self,
        from: ProcessId,
        term: u64,
        after: (u64, u64),
        chosen: u64,
        round: u64,
        entries: &[Entry],
        out: &mut Outputs<Self>,
    ) {
        let refuse = |term, try_after, out: &mut Outputs<Self>| {
            let held = Err(Gap { after: after.0, try_after });
            out.send(from, Lane::Control, Message::Appended { term, round, held });
        };
        if term < self.term {
            return refuse(self.term, 0, out);
        }
        // Nobody else leads this term, and no entry is younger than its leader: not a message of a replica.
        if (term == self.term && self.is_leader()) || entries.iter().any(|entry| entry.term > term) {
            return;
        }
        self.follow(from, term, out);
        let fits = match self.log.term_at(after.0) {
            Some(found) => found == after.1 || self.has(Planted::LogIgnoresOtherTerms),
            None => after.0 < self.log.base(),
        };
        if !fits {
            // What is chosen is the same as the leader's; further on nothing is certain.
            let try_after = if after.0 > self.log.last() { self.log.last() } else { self.chosen };
            return refuse(term, try_after, out);
        }
        // Only while a snapshot is owed: a log that is full of what is not known to be chosen, as after a restart, gets
        // shorter by what follows, and by nothing else.
        if !entries.is_empty() && self.wanted.is_some() && !self.has_room(FOLLOWERS_FACTOR) {
            return; // as if it had been lost: it comes again when there is room
        }
        self.splice(after.0, entries, out);
        let end = after.0 + entries.len() as u64;
        let held = Ok(end.max(self.chosen));
        out.send(from, Lane::Control, Message::Appended { term, round, held });
        self.chosen = self.chosen.max(chosen.min(end));
        self.deliver(out);
    }

    /// Puts entries into the log after a place that is in it, and records what is new.
    pub(super) fn splice(&mut self, after: u64, entries: &[Entry], out: &mut Outputs<Self>) {
        let is_same = |(entry, index): (&Entry, u64)| {
            index <= self.log.base() || self.log.term_at(index) == Some(entry.term)
        };
        let same = if self.has(Planted::LogTruncatesMatching) && after >= self.chosen.max(self.log.base()) {
            0
        } else {
            entries.iter().zip(after + 1..).take_while(|pair| is_same(*pair)).count()
        };
        let first = after + 1 + same as u64;
        let fresh = &entries[same..];
        // Chosen entries are never replaced; who asks for that is no leader.
        if first <= self.chosen || (fresh.is_empty() && !self.has(Planted::LogTruncatesMatching)) {
            return;
        }
        self.log.truncate_from(first);
        for entry in fresh {
            self.log.push(entry.clone());
        }
        out.persist(Record::Entries { first, entries: fresh.into() });
        if !self.has(Planted::LogAcknowledgesBeforeRecord) {
            out.barrier();
        }
    }

    pub(super) fn on_chunk(
        &mut self,
        from: ProcessId,
        (term, round): (u64, u64),
        (index, total): (u64, u64),
        offset: u64,
        data: &[u8],
        out: &mut Outputs<Self>,
    ) {
        if term < self.term {
            let held = Err(Gap { after: 0, try_after: 0 });
            out.send(from, Lane::Control, Message::Appended { term: self.term, round, held });
            return;
        }
        if term == self.term && self.is_leader() {
            return;
        }
        self.follow(from, term, out);
        if index <= self.chosen {
            self.receiving = None;
            let held = Ok(self.chosen);
            out.send(from, Lane::Control, Message::Appended { term, round, held });
            return;
        }
        if total > self.config.snapshot_bytes_max as u64 {
            return; // nobody here could hold it
        }
        let name = (term, index);
        let receiving = match &mut self.receiving {
            Some(receiving) if receiving.is(name, total) => receiving,
            other => other.insert(Receiving::new(name, total)),
        };
        receiving.take(offset, data);
        let wanted = receiving.wanted();
        let Some(whole) = receiving.take_whole() else {
            out.send(from, Lane::Control, Message::ChunkTaken { term, round, index, offset: wanted });
            return;
        };
        self.receiving = None;
        // One that cannot be read is asked for again; a leader that goes on sending such is of another version.
        if let Ok(snapshot) = Snapshot::from_bytes(whole.clone())
            && snapshot.index == index
            && snapshot.term <= term
        {
            for part in Snapshot::records(&whole, self.config.chunk_bytes) {
                out.persist(part);
            }
            out.barrier();
            self.restore_to(snapshot, out);
            out.send(from, Lane::Control, Message::Appended { term, round, held: Ok(index) });
        }
    }

    /// Hands over to the leader what was not yet.
    pub(super) fn hand_over(&mut self, leader: ProcessId, out: &mut Outputs<Self>) {
        let mut batch: Vec<Proposal> = Vec::new();
        let mut bytes = 0;
        let mut send = |batch: &mut Vec<Proposal>| {
            let proposals: Arc<[Proposal]> = mem::take(batch).into();
            out.send(leader, Lane::Ordinary, Message::Propose(proposals));
        };
        let mut is_new = false;
        while let Some(proposal) = self.outstanding.next_unsent(self.me) {
            is_new = true;
            bytes += proposal.payload.len();
            batch.push(proposal);
            if bytes >= self.config.batch_bytes_max || batch.len() >= self.config.batch_entries_max {
                bytes = 0;
                send(&mut batch);
            }
        }
        if !batch.is_empty() {
            send(&mut batch);
        }
        if let Some(ask) = self.reads.question() {
            is_new = true;
            out.send(leader, Lane::Control, Message::ReadAsk(ask));
        }
        if is_new {
            self.again = Again(Some(self.now + self.config.election));
        }
    }
}

/// A follower takes entries up to so many times the length at which a snapshot is wanted: more than a leader of the same
/// configuration ever puts in, so that this binds only one whose state machine has stopped making snapshots.
const FOLLOWERS_FACTOR: usize = 8;
