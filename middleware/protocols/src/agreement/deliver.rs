//! What a replica gives to its user: commands at their places, states that stand for many of them.

use bytes::Bytes;

use super::message::Content;
use super::own::Again;
use super::replica::Replica;
use super::seats::Seats;
use super::snapshot::Snapshot;
use super::{Delivered, Event, Refusal};
use crate::machine::Outputs;
use crate::planted::Planted;

impl Replica {
    /// Delivers what is chosen.
    pub(super) fn deliver(&mut self, out: &mut Outputs<Self>) {
        let mut batch = Vec::new();
        while self.delivered < self.chosen {
            let Some(entry) = self.log.get(self.delivered + 1) else { break };
            let (term, content) = (entry.term, entry.content.clone());
            self.delivered += 1;
            let index = self.delivered;
            if term > self.delivered_term {
                // Terms never fall: nothing of an earlier one is chosen behind this place.
                self.delivered_term = term;
                for token in self.outstanding.fenced_off(term) {
                    out.event(Event::Refused { token, reason: Refusal::Fenced { term } });
                }
            }
            match content {
                Content::Nothing => {}
                Content::Command(proposal) => {
                    let is_new = self.seats.take(&proposal) || self.has(Planted::LogDeliversTwice);
                    if is_new && (proposal.fence == 0 || proposal.fence == term) {
                        let is_mine = proposal.origin == self.me;
                        let token = if is_mine { self.outstanding.settle(proposal.sequence) } else { None };
                        batch.push(Delivered { index, term, token, payload: proposal.payload });
                    }
                }
                Content::Members(members) => {
                    flush(&mut batch, out);
                    out.event(Event::Members(members));
                }
            }
            if let Some((at, asked_in, token)) = self.changing
                && at <= index
            {
                self.changing = None;
                flush(&mut batch, out);
                out.event(if term == asked_in {
                    Event::Reconfigured { token }
                } else {
                    Event::Refused { token, reason: Refusal::Superseded }
                });
            }
        }
        if !batch.is_empty() {
            self.again = Again((!self.outstanding.is_empty()).then(|| self.now + self.config.election));
        }
        flush(&mut batch, out);
        self.tell_readable(out);
        self.want_snapshot(out);
    }

    pub(super) fn tell_readable(&mut self, out: &mut Outputs<Self>) {
        for token in self.reads.readable(self.delivered) {
            out.event(Event::Readable { token });
        }
    }

    fn want_snapshot(&mut self, out: &mut Outputs<Self>) {
        let index = self.delivered;
        let since = usize::try_from(index - self.snapshot.index).unwrap_or(usize::MAX);
        let is_long = since >= self.config.log_entries_max || self.log.bytes() >= self.config.log_bytes_max;
        if self.wanted.is_some() || since == 0 || !is_long {
            return;
        }
        let Some(term) = self.log.term_at(index) else { return };
        let members = self.log.members_at(index).clone();
        self.wanted = Some(Snapshot { index, term, members, seats: self.seats.clone(), data: Bytes::new() });
        out.event(Event::SnapshotWanted { index });
    }

    pub(super) fn take_snapshot(&mut self, index: u64, data: Bytes) {
        let Some(wanted) = self.wanted.take_if(|wanted| wanted.index == index) else { return };
        if index <= self.snapshot.index {
            return; // a leader's replaced it meanwhile
        }
        self.snapshot = Snapshot { data, ..wanted };
        if self.has(Planted::LogSnapshotForgetsSeats) {
            self.snapshot.seats = Seats::default();
        }
        self.log.compact_to(index.saturating_sub(self.config.log_entries_kept as u64).max(self.log.base()));
        if self.log.bytes() > self.config.log_bytes_max / 2 {
            self.log.compact_to(index);
        }
        self.is_dirty = true;
    }

    /// The state is another one's now, of a later place.
    pub(super) fn restore_to(&mut self, snapshot: Snapshot, out: &mut Outputs<Self>) {
        let index = snapshot.index;
        self.stand_on(snapshot);
        (self.chosen, self.delivered) = (index, index);
        self.delivered_term = self.snapshot.term;
        self.seats = self.snapshot.seats.clone();
        self.wanted = None;
        out.event(Event::Restore { index, data: self.snapshot.data.clone() });
        out.event(Event::Members(self.snapshot.members.clone()));
        for token in self.outstanding.seated(&self.seats, self.me) {
            out.event(Event::Missed { token });
        }
        for token in self.outstanding.fenced_off(self.snapshot.term) {
            out.event(Event::Refused { token, reason: Refusal::Fenced { term: self.snapshot.term } });
        }
        if let Some((_, _, token)) = self.changing.take_if(|(at, ..)| *at <= index) {
            out.event(Event::Missed { token });
        }
        self.tell_readable(out);
    }
}

fn flush(batch: &mut Vec<Delivered>, out: &mut Outputs<Replica>) {
    if !batch.is_empty() {
        out.event(Event::Delivered(std::mem::take(batch)));
    }
}
