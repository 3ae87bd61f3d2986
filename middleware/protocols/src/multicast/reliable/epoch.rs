//! The messages of one view, and who is known to hold how many of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::feedback::mix;
use super::{Config, Feedback};
use crate::machine::ProcessId;
use crate::stack::{Cast, View};
use crate::time::Time;

/// All that is known of one view's messages.
pub(super) struct Epoch {
    pub(super) view: View,
    pub(super) rank: usize,
    pub(super) others: std::sync::Arc<[ProcessId]>,
    pub(super) streams: Vec<Stream>,
    /// `acked[member][sender]`: how many of the sender's messages the member holds.
    pub(super) acked: Vec<Vec<u64>>,
    pub(super) safe: Vec<u64>,
    /// What the others were last told.
    pub(super) acknowledged: Vec<u64>,
    pub(super) frozen: bool,
    pub(super) fill: Option<Vec<u64>>,
    /// Something arrived that the others do not know of yet.
    pub(super) ack_due: bool,
    /// `acked` changed since `safe` and the stable prefixes were computed.
    pub(super) stability_due: bool,
    pub(super) status_at: Time,
}

/// One sender's messages in one view.
#[derive(Default)]
pub(super) struct Stream {
    /// Everyone holds the messages below; they are forgotten.
    pub(super) stable: u64,
    /// The messages from `stable` on, without gap.
    pub(super) store: VecDeque<Cast>,
    pub(super) store_bytes: usize,
    pub(super) delivered: u64,
    /// Messages behind a gap.
    early: BTreeMap<u64, Cast>,
    early_bytes: usize,
    /// Somebody is known to hold the messages below.
    pub(super) known: u64,
    pub(super) nak_at: Option<Time>,
    pub(super) nak_attempts: usize,
    /// Members that have asked for what is not here yet either: from which number, and up to which. One wish of each.
    pub(super) waiting: BTreeMap<ProcessId, (u64, u64)>,
    /// Own messages: the first of those that were last sent again to all, and when.
    pub(super) answered: Option<(u64, Time)>,
}

impl Stream {
    pub(super) fn received(&self) -> u64 {
        self.stable + self.store.len() as u64
    }

    pub(super) fn push(&mut self, cast: Cast) {
        self.store_bytes += cast.payload.len();
        self.store.push_back(cast);
    }

    /// Keeps a message behind a gap, up to two windows of them: beyond that it will be asked for when its turn comes.
    pub(super) fn keep_early(&mut self, config: &Config, number: u64, cast: Cast) {
        let messages_max = config.window_messages.saturating_mul(2);
        let has_room = (self.early.len() as u64) < messages_max
            && self.early_bytes + cast.payload.len() <= config.window_bytes.saturating_mul(2);
        if has_room && !self.early.contains_key(&number) {
            self.early_bytes += cast.payload.len();
            self.early.insert(number, cast);
        }
    }

    /// Moves early messages to the others as far as they follow without gap.
    pub(super) fn close_gap(&mut self) {
        while let Some(entry) = self.early.first_entry() {
            let (number, next) = (*entry.key(), self.stable + self.store.len() as u64);
            if number > next {
                break;
            }
            let cast = entry.remove();
            self.early_bytes -= cast.payload.len();
            if number == next {
                self.push(cast);
            }
        }
    }

    pub(super) fn forget_early(&mut self) {
        self.early.clear();
        self.early_bytes = 0;
    }

    pub(super) fn range(&self, first: u64, end: u64, bytes_max: usize) -> Vec<Cast> {
        let from = first.saturating_sub(self.stable) as usize;
        let to = (end.min(self.received()).saturating_sub(self.stable)) as usize;
        let mut bytes = 0;
        let mut casts = Vec::new();
        for cast in self.store.iter().take(to).skip(from) {
            bytes += cast.payload.len() + CAST_OVERHEAD_BYTES;
            if bytes > bytes_max && !casts.is_empty() {
                break;
            }
            casts.push(cast.clone());
        }
        casts
    }

    pub(super) fn forget_below(&mut self, stable: u64) {
        while self.stable < stable.min(self.delivered) {
            if let Some(cast) = self.store.pop_front() {
                self.store_bytes -= cast.payload.len();
            }
            self.stable += 1;
        }
    }
}

impl Epoch {
    pub(super) fn new(now: Time, config: &Config, me: ProcessId, view: View) -> Option<Self> {
        let rank = view.rank(me)?;
        let size = view.members.len();
        Some(Self {
            rank,
            others: view.others(me),
            streams: (0..size).map(|_| Stream::default()).collect(),
            acked: vec![vec![0; size]; size],
            safe: vec![0; size],
            acknowledged: vec![0; size],
            frozen: false,
            fill: None,
            ack_due: false,
            stability_due: false,
            status_at: now + config.status_interval,
            view,
        })
    }

    /// The acknowledgement vector: what is held, or, while the user is saturated, what was acknowledged before.
    pub(super) fn acknowledge(&mut self, saturated: bool) -> Vec<u64> {
        if !saturated {
            self.acknowledged = self.streams.iter().map(Stream::received).collect();
        }
        // One's own messages are no burden to oneself.
        self.acknowledged[self.rank] = self.streams[self.rank].received();
        self.acknowledged.clone()
    }

    pub(super) fn is_settled(&self) -> bool {
        (0..self.streams.len())
            .all(|sender| self.streams[sender].store.is_empty() && self.missing_end(sender).is_none())
    }

    /// One past the last message of `sender` that is missed and known to exist; `None` when nothing is missed.
    /// A frozen member misses only what the cut wants.
    pub(super) fn missing_end(&self, sender: usize) -> Option<u64> {
        let stream = &self.streams[sender];
        let end = match (&self.fill, self.frozen) {
            (Some(cut), true) => cut[sender],
            (None, true) => 0,
            (_, false) => stream.early.first_key_value().map_or(stream.known, |(&number, _)| number),
        };
        (stream.received() < end).then_some(end)
    }

    /// The messages of `sender` that may be kept: all, or when frozen only those that fill the cut.
    pub(super) fn limit(&self, sender: usize) -> u64 {
        match (&self.fill, self.frozen) {
            (_, false) => u64::MAX,
            (Some(cut), true) => cut[sender],
            (None, true) => 0,
        }
    }

    pub(super) fn on_acked(&mut self, now: Time, config: &Config, member: usize, received: &[u64]) {
        if received.len() != self.streams.len() {
            return;
        }
        for (sender, &count) in received.iter().enumerate() {
            if count > self.acked[member][sender] {
                self.acked[member][sender] = count;
                self.stability_due = true;
            }
            let stream = &mut self.streams[sender];
            // Nobody can hold more of my messages than I sent.
            if count > stream.known && sender != self.rank {
                stream.known = count;
                self.watch_gap(now, config, sender);
            }
        }
    }

    pub(super) fn watch_gap(&mut self, now: Time, config: &Config, sender: usize) {
        let (gap, wait) = (self.missing_end(sender), self.wait(config, sender));
        let stream = &mut self.streams[sender];
        if gap.is_none() {
            (stream.nak_at, stream.nak_attempts) = (None, 0);
        } else if stream.nak_at.is_none() {
            stream.nak_at = Some(now + config.nak_delay + wait);
        }
    }

    /// How long to wait before asking for messages of `sender`, beyond what is waited for in any case.
    pub(super) fn wait(&self, config: &Config, sender: usize) -> Duration {
        if config.feedback == Feedback::Direct {
            return Duration::ZERO;
        }
        let (me, stream) = (self.view.members[self.rank], &self.streams[sender]);
        let chance =
            mix(&[me.node, me.incarnation, sender as u64, stream.received(), stream.nak_attempts as u64]);
        config.feedback.wait(chance, self.view.members.len())
    }

    /// A holder answers: it is asked for more as soon as all of its answer is here, or when the rest of it is lost. Only
    /// whoever is silent loses its turn.
    pub(super) fn on_repaired(&mut self, now: Time, config: &Config, sender: usize, more: bool) {
        let stream = &mut self.streams[sender];
        if stream.nak_at.is_some() {
            stream.nak_attempts = stream.nak_attempts.saturating_sub(1);
            stream.nak_at = Some(if more { now + config.nak_retry } else { now });
        }
    }

    /// Forgets what everyone holds; true when more became safe.
    pub(super) fn settle_stability(&mut self) -> bool {
        self.stability_due = false;
        let mut safer = false;
        for sender in 0..self.streams.len() {
            let stable = self.acked.iter().map(|received| received[sender]).min().unwrap_or(0);
            self.streams[sender].forget_below(stable);
            let safe = self.quorum_holds(sender);
            safer |= safe > self.safe[sender];
            self.safe[sender] = self.safe[sender].max(safe);
        }
        safer
    }

    /// How many of the sender's messages a quorum of the view holds.
    pub(super) fn quorum_holds(&self, sender: usize) -> u64 {
        let held = |rank: usize| self.acked[rank][sender];
        // The answer is one of the counts: the largest that a quorum reaches.
        let counts = (0..self.acked.len()).map(held);
        counts.filter(|&count| self.view.is_quorum(|rank| held(rank) >= count)).max().unwrap_or(0)
    }
}

/// What a message costs in a packet beside its payload: headers and length.
pub(super) const CAST_OVERHEAD_BYTES: usize = 12;
