//! One replica: what it has promised, its log, its role; commands in, deliveries out.
//!
//! The roles' own work stands in [`election`](super::election), [`leader`](super::leader) and
//! [`follower`](super::follower).

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::log::Log;
use super::message::{Entry, Members, Message, Record};
use super::own::{Again, Outstanding, Reads};
use super::seats::Seats;
use super::snapshot::{Receiving, Snapshot};
use super::{Command, Config, Event, Refusal};
use crate::machine::{Input, Machine, Outputs, ProcessId, Violation};
use crate::planted::Planted;
use crate::time::Time;
use crate::wire::{Wire, WireError};

/// The machine. See the [module's page](super).
#[derive(Debug)]
pub struct Replica {
    pub(super) me: ProcessId,
    pub(super) config: Config,
    chance: u64,
    pub(super) now: Time,
    pub(super) term: u64,
    pub(super) voted: Option<ProcessId>,
    pub(super) log: Log,
    pub(super) snapshot: Snapshot,
    /// Up to here entries are chosen, as far as is known.
    pub(super) chosen: u64,
    pub(super) delivered: u64,
    /// The term of the last entry up to there.
    pub(super) delivered_term: u64,
    /// What was delivered, up to there.
    pub(super) seats: Seats,
    pub(super) role: Role,
    pub(super) election_at: Time,
    pub(super) outstanding: Outstanding,
    pub(super) reads: Reads,
    pub(super) again: Again,
    pub(super) receiving: Option<Receiving>,
    /// What the local user was asked for, but for its bytes.
    pub(super) wanted: Option<Snapshot>,
    /// A change of members that was asked for here: its place, its term, its token.
    pub(super) changing: Option<(u64, u64, u64)>,
    /// There is something to send, once all waiting inputs are taken.
    pub(super) is_dirty: bool,
}

/// What a replica does in its term.
#[derive(Debug)]
pub(super) enum Role {
    /// Follows a leader, if it knows one.
    Follower {
        leader: Option<ProcessId>,
        /// When that one was last heard.
        heard_at: Option<Time>,
    },
    /// Stands for election, or asks whether it should.
    Candidate { is_vote: bool, granted: std::collections::BTreeSet<ProcessId> },
    /// Leads.
    Leader(Box<super::leader::Leading>),
}

/// Records that are none of a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Entries are missing.
    #[error("entries from {first} on do not follow the last one, {last}")]
    Hole {
        /// The first place of the record.
        first: u64,
        /// The last place before it.
        last: u64,
    },
    /// A snapshot is none.
    #[error("the snapshot is none")]
    Snapshot(#[from] WireError),
}

impl Replica {
    /// A replica from its records. `founders`: who takes part before the log says otherwise, the same at all founders
    /// and at every start; nobody for one that joins later, which waits until a leader has made it a member.
    /// `seed`: chance for time-outs, different for each process.
    ///
    /// What was delivered before is delivered again, from [`snapshot`](Self::snapshot) on, which the state machine is
    /// to be given first unless its place is zero.
    ///
    /// # Errors
    /// [`RestoreError`]: the records were not written by a replica.
    pub fn new(
        me: ProcessId,
        now: Time,
        seed: u64,
        config: Config,
        founders: Members,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Self, RestoreError> {
        let members = Arc::new(founders);
        let mut replica = Self {
            me,
            config,
            chance: seed,
            now,
            term: 0,
            voted: None,
            log: Log::new((0, 0), members.clone()),
            snapshot: Snapshot { members, ..Snapshot::default() },
            chosen: 0,
            delivered: 0,
            delivered_term: 0,
            seats: Seats::default(),
            role: Role::Follower { leader: None, heard_at: None },
            election_at: now,
            outstanding: Outstanding::default(),
            reads: Reads::default(),
            again: Again::default(),
            receiving: None,
            wanted: None,
            changing: None,
            is_dirty: false,
        };
        let mut parts = BytesMut::new();
        for record in records {
            replica.replay(record, &mut parts)?;
        }
        replica.chosen = replica.snapshot.index;
        replica.delivered = replica.snapshot.index;
        replica.delivered_term = replica.snapshot.term;
        replica.seats = replica.snapshot.seats.clone();
        replica.election_at = now + replica.patience();
        // Whoever starts again does not know whether there is a leader, and helps nobody to disturb it.
        if replica.term > 0 {
            replica.role = Role::Follower { leader: None, heard_at: Some(now) };
        }
        Ok(replica)
    }

    fn replay(&mut self, record: Record, parts: &mut BytesMut) -> Result<(), RestoreError> {
        match record {
            Record::Promise { term, voted } => (self.term, self.voted) = (term, voted),
            Record::Entries { first, entries } => {
                if first > self.log.last() + 1 {
                    return Err(RestoreError::Hole { first, last: self.log.last() });
                }
                self.log.truncate_from(first);
                // Those that a snapshot stands for already are not wanted any more.
                let skip = (self.log.last() + 1).saturating_sub(first);
                for entry in entries.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)) {
                    self.log.push(entry.clone());
                }
            }
            Record::Part { total, offset, data } => {
                if offset == 0 {
                    parts.clear();
                }
                if offset == parts.len() as u64 {
                    parts.extend_from_slice(&data);
                }
                if parts.len() as u64 == total {
                    let snapshot = Snapshot::from_bytes(parts.split().freeze())?;
                    self.stand_on(snapshot);
                }
            }
        }
        Ok(())
    }

    /// The snapshot stands for the beginning of the log; what follows it stays if it fits.
    pub(super) fn stand_on(&mut self, snapshot: Snapshot) {
        let place = (snapshot.index, snapshot.term);
        if self.log.base() <= place.0 && self.log.term_at(place.0) == Some(place.1) {
            self.log.compact_to(place.0);
        } else {
            self.log = Log::new(place, snapshot.members.clone());
        }
        self.snapshot = snapshot;
    }

    /// Records that say the same as all those that were emitted so far.
    pub fn records(&self) -> Vec<Record> {
        let mut records = vec![Record::Promise { term: self.term, voted: self.voted }];
        let bytes = self.snapshot.to_bytes();
        records.extend(Snapshot::records(&bytes, self.config.chunk_bytes));
        let mut first = self.snapshot.index + 1;
        // What a leader has not emitted yet is not to be claimed.
        let last = match &self.role {
            Role::Leader(leading) => leading.kept,
            _ => self.log.last(),
        };
        while first <= last {
            let entries =
                self.log.run_from(first, self.config.batch_bytes_max, self.config.batch_entries_max);
            let count = usize::try_from(last - first + 1).unwrap_or(usize::MAX).min(entries.len());
            let entries = if count < entries.len() { entries[..count].into() } else { entries };
            first += count as u64;
            records.push(Record::Entries { first: first - count as u64, entries });
        }
        records
    }

    /// What the state machine starts from.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// True while this replica leads.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Who leads, as far as is known.
    pub fn leader(&self) -> Option<ProcessId> {
        match &self.role {
            Role::Leader(_) => Some(self.me),
            Role::Follower { leader, .. } => *leader,
            Role::Candidate { .. } => None,
        }
    }

    /// Who takes part by the last entry that says so, which need not be chosen.
    pub fn members(&self) -> &Arc<Members> {
        self.log.members()
    }

    /// Up to which place commands were delivered.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The places that are in memory.
    pub fn places(&self) -> std::ops::RangeInclusive<u64> {
        self.log.base() + 1..=self.log.last()
    }

    /// The entry at a place, if it is in memory; it need not be chosen.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        self.log.get(index)
    }

    // ---- what the roles share -----------------------------------------------------------------------------------

    /// True for the name under which this process takes part.
    pub(super) fn names_me(&self, name: ProcessId) -> bool {
        name.node == self.me.node
            && (name.incarnation == self.me.incarnation || name.incarnation == ProcessId::ANY_LIFE)
    }

    pub(super) fn is_voter(&self) -> bool {
        self.log.members().is_voter(self.me)
    }

    pub(super) fn has(&self, bug: Planted) -> bool {
        self.config.plant.has(bug)
    }

    /// Enters a term, without a leader, and keeps it in mind.
    pub(super) fn enter_term(&mut self, term: u64, voted: Option<ProcessId>, out: &mut Outputs<Self>) {
        (self.term, self.voted) = (term, voted);
        out.persist(Record::Promise { term, voted });
        if !(voted.is_some() && self.has(Planted::LogVotesBeforeRecord)) {
            out.barrier();
        }
        self.follow_nobody(out);
    }

    pub(super) fn follow_nobody(&mut self, out: &mut Outputs<Self>) {
        if let Role::Leader(leading) = &self.role {
            // Not sent to anybody and not recorded: it has never been.
            let kept = leading.kept;
            self.log.truncate_from(kept + 1);
            self.election_at = self.now + self.patience();
        }
        self.role = Role::Follower { leader: None, heard_at: None };
        out.event(Event::Leader { term: self.term, leader: None });
    }

    /// How long to wait for a leader: at least the configured time, up to twice that.
    pub(super) fn patience(&mut self) -> Duration {
        self.config.election + self.chance_of(self.config.election)
    }

    pub(super) fn chance_of(&mut self, span: Duration) -> Duration {
        // SplitMix64.
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.chance;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos((x ^ (x >> 31)) % span)
    }

    /// False when the log must first be made shorter. `factor`: how many times the wanted length.
    pub(super) fn has_room(&self, factor: usize) -> bool {
        let entries = usize::try_from(self.log.last() - self.log.base()).unwrap_or(usize::MAX);
        let most = self.config.log_entries_max.saturating_mul(factor) + self.config.log_entries_kept;
        entries < most && self.log.bytes() < self.config.log_bytes_max.saturating_mul(factor)
    }

    /// Emits entries as records, in batches.
    pub(super) fn persist_from(&self, first: u64, out: &mut Outputs<Self>) {
        let mut first = first;
        while first <= self.log.last() {
            let entries =
                self.log.run_from(first, self.config.batch_bytes_max, self.config.batch_entries_max);
            let count = entries.len() as u64;
            out.persist(Record::Entries { first, entries });
            first += count;
        }
    }

    fn on_command(&mut self, command: Command, out: &mut Outputs<Self>) {
        match command {
            Command::Propose { token, fence, payload } => {
                let limit = self.config.outstanding_max;
                let reason = if payload.len() > self.config.payload_bytes_max {
                    Refusal::TooLarge { size: payload.len(), limit: self.config.payload_bytes_max }
                } else if self.outstanding.len() >= limit {
                    Refusal::Full { limit }
                } else if fence != 0 && fence < self.term {
                    Refusal::Fenced { term: self.term }
                } else {
                    self.outstanding.push(token, fence, payload);
                    self.is_dirty = true;
                    return;
                };
                out.event(Event::Refused { token, reason });
            }
            Command::Read { token } => {
                let limit = self.config.outstanding_max;
                if self.reads.len() >= limit {
                    out.event(Event::Refused { token, reason: Refusal::Full { limit } });
                } else {
                    self.reads.push(token);
                    self.is_dirty = true;
                }
            }
            Command::Reconfigure { token, change } => {
                if let Err(reason) = self.reconfigure(token, change) {
                    out.event(Event::Refused { token, reason });
                }
            }
            Command::Snapshot { index, data } => self.take_snapshot(index, data),
        }
    }

    fn on_message(&mut self, from: ProcessId, message: Message, out: &mut Outputs<Self>) {
        match message {
            Message::Ask { term, is_vote, last, chosen } => {
                self.on_ask(from, term, is_vote, last, chosen, out);
            }
            Message::Answer { term, is_vote, granted } => self.on_answer(from, term, is_vote, granted, out),
            Message::Lend { term, after, entries } => self.on_lend(term, after, &entries, out),
            Message::Append { term, after, chosen, round, entries } => {
                self.on_append(from, term, after, chosen, round, &entries, out);
            }
            Message::Appended { term, round, held } => {
                if self.hears_follower(from, term, round, out) {
                    self.on_appended(from, held);
                }
            }
            Message::Chunk { term, round, index, total, offset, data } => {
                self.on_chunk(from, (term, round), (index, total), offset, &data, out);
            }
            Message::ChunkTaken { term, round, index, offset } => {
                if self.hears_follower(from, term, round, out) {
                    self.on_chunk_taken(from, index, offset);
                }
            }
            Message::Propose(proposals) => self.on_propose(from, &proposals),
            Message::ReadAsk(ask) => self.on_read_ask(from, ask),
            Message::ReadAnswer { ask, index } => {
                self.reads.on_answer(ask, index);
                self.tell_readable(out);
            }
        }
    }

    fn on_tick(&mut self, out: &mut Outputs<Self>) {
        if self.is_leader() {
            self.beat(out);
        } else if self.is_voter() && self.election_at <= self.now {
            self.stand(out);
        }
        if self.again.is_due(self.now) {
            self.again = Again::default();
            self.outstanding.resend();
            self.reads.ask_again();
            self.is_dirty = true;
        }
        if self.is_dirty {
            self.is_dirty = false;
            match &self.role {
                Role::Leader(_) => self.lead(out),
                Role::Follower { leader: Some(leader), .. } => self.hand_over(*leader, out),
                _ => {}
            }
        }
    }
}

impl Machine for Replica {
    type Command = Command;
    type Event = Event;
    type Message = Message;
    type Record = Record;

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        self.now = now;
        match input {
            Input::Tick => self.on_tick(out),
            Input::Received { from, message } => self.on_message(from, message, out),
            Input::Command(command) => self.on_command(command, out),
            Input::Reachable(_) => {}
            Input::Unreachable(peer) => self.on_unreachable(peer),
        }
    }

    fn deadline(&self) -> Option<Time> {
        if self.is_dirty {
            return Some(self.now);
        }
        let role = match &self.role {
            Role::Leader(leading) => Some(leading.beat_at),
            _ => self.is_voter().then_some(self.election_at),
        };
        role.into_iter().chain(self.again.0).min()
    }

    fn check(&self) -> Result<(), Violation> {
        let broken = |what: &str| Err(Violation(format!("{}: {what}: {self:?}", self.me)));
        if self.chosen > self.log.last() || self.delivered > self.chosen || self.log.base() > self.delivered {
            return broken("places out of order");
        }
        if self.log.last_term() > self.term {
            return broken("an entry of a term that has not begun");
        }
        if self.snapshot.index < self.log.base() {
            return broken("entries are gone that no snapshot stands for");
        }
        Ok(())
    }
}
