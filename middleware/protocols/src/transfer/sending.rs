//! The sending end of a channel.

use std::collections::VecDeque;

use super::{BATCH_BYTES, Config, Event, ITEM_BYTES, Item, Message, Question, Transfer};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::time::Time;

/// What is under way to one peer.
#[derive(Debug, Default)]
pub(super) struct Sending {
    phase: Phase,
    /// The peer has these on its disk.
    settled: u64,
    /// Read and not settled, in order.
    window: VecDeque<Item>,
    window_bytes: usize,
    /// So many of them were sent since the peer told its position.
    sent: usize,
    /// The number before the next one to be sent.
    previous: u64,
    /// The last number that was read.
    read: u64,
    is_reading: bool,
    /// There may be something to be read.
    has_more: bool,
    /// When the peer has been silent for too long.
    wake: Option<Time>,
    /// How often it was, in a row.
    silences: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// The peer's position is not known, and there was no reason to ask.
    #[default]
    Doubt,
    /// And what was settled then.
    Asked(Question, u64),
    /// It is known.
    Going,
}

impl Sending {
    pub(super) fn wake(&self) -> Option<Time> {
        self.wake
    }

    pub(super) fn is_idle(&self) -> bool {
        self.window.is_empty() && !self.has_more && !self.is_reading
    }

    pub(super) fn offer(&mut self) {
        self.has_more = true;
    }

    pub(super) fn fetched(&mut self, after: u64, items: Vec<Item>) {
        if !self.is_reading || after != self.read {
            return;
        }
        self.is_reading = false;
        self.has_more |= !items.is_empty();
        for item in items {
            // Settled by what an earlier life had sent.
            if item.number > self.read {
                self.read = item.number;
                if item.number > self.settled {
                    self.window_bytes += item.body.len();
                    self.window.push_back(item);
                }
            }
        }
    }

    /// The answer to a question: goes on from where the peer is.
    pub(super) fn opened(&mut self, to: u64, question: Question, stored: u64, out: &mut Outputs<Transfer>) {
        let Phase::Asked(asked, settled) = self.phase else { return };
        if asked != question {
            return;
        }
        if stored < settled {
            out.event(Event::Gap { to, stored, settled });
        }
        self.settle(to, stored, out);
        // A later answer to what was sent before may have overtaken this one.
        let previous = if stored < settled { stored } else { self.settled };
        (self.phase, self.sent, self.previous) = (Phase::Going, 0, previous);
        (self.wake, self.silences) = (None, 0);
    }

    /// The peer has stored what was sent, in this life or before.
    pub(super) fn stored(
        &mut self,
        now: Time,
        to: u64,
        stored: u64,
        config: &Config,
        out: &mut Outputs<Transfer>,
    ) {
        if stored <= self.settled {
            return;
        }
        self.settle(to, stored, out);
        self.previous = self.previous.max(stored);
        self.silences = 0;
        if self.phase == Phase::Going {
            self.wake = (self.sent > 0).then(|| now + config.silence);
        }
    }

    fn settle(&mut self, to: u64, stored: u64, out: &mut Outputs<Transfer>) {
        if stored <= self.settled {
            return;
        }
        self.settled = stored;
        while let Some(item) = self.window.front()
            && item.number <= stored
        {
            self.window_bytes -= item.body.len();
            self.window.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
        out.event(Event::Settled { to, through: stored });
    }

    /// Something may have been lost: the peer must be asked.
    pub(super) fn doubt(&mut self) {
        if self.phase == Phase::Going {
            self.phase = Phase::Doubt;
        }
    }

    /// The peer said nothing for too long.
    pub(super) fn silence(&mut self) {
        self.silences = self.silences.saturating_add(1);
        (self.phase, self.wake) = (Phase::Doubt, None);
    }

    pub(super) fn pump(
        &mut self,
        now: Time,
        to: u64,
        config: &Config,
        question: Question,
        out: &mut Outputs<Transfer>,
    ) {
        let peer = ProcessId::any_life(to);
        if self.phase == Phase::Doubt && !self.is_idle() {
            self.phase = Phase::Asked(question, self.settled);
            self.wake = Some(now + config.silence * (1 << self.silences.min(SILENCES_MAX)));
            out.send(peer, Lane::Ordinary, Message::Open { birth: config.birth, question });
        }
        if self.phase != Phase::Going {
            return;
        }
        while self.sent < self.window.len() {
            let mut bytes = BATCH_BYTES;
            let mut items = Vec::new();
            while let Some(item) = self.window.get(self.sent)
                && (items.is_empty() || bytes + ITEM_BYTES + item.body.len() <= config.batch_bytes)
            {
                bytes += ITEM_BYTES + item.body.len();
                items.push(item.clone());
                self.sent += 1;
            }
            let Some(last) = items.last().map(|item| item.number) else { break };
            let previous = std::mem::replace(&mut self.previous, last);
            self.wake = self.wake.or(Some(now + config.silence));
            out.send(peer, Lane::Ordinary, Message::Batch { birth: config.birth, previous, items });
            if config.plant.has(Planted::TransferSettlesUnstored) {
                self.settle(to, last, out);
            }
        }
        if self.has_more && !self.is_reading && self.window_bytes < config.window_bytes {
            (self.has_more, self.is_reading) = (false, true);
            self.read = self.read.max(self.settled);
            let bytes_max = config.window_bytes - self.window_bytes;
            out.event(Event::Fetch { to, after: self.read, bytes_max });
        }
    }
}

/// So often the time to wait for an answer is doubled.
const SILENCES_MAX: u32 = 3;
