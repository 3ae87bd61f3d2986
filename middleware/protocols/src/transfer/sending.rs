//! The sending end of a channel.

use std::collections::VecDeque;
use std::time::Duration;

use super::{BATCH_BYTES, Config, Event, ITEM_BYTES, Item, Message, Question, Transfer};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::time::Time;

/// What is under way to one peer.
#[derive(Debug)]
pub(super) struct Sending {
    /// Of the disk, as the peer knows it.
    birth: u64,
    /// Most bytes that the peer can be sent at once.
    bytes_max: usize,
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
    /// A message that is too large for the peer and was told to the user.
    aside: Option<u64>,
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
    /// The peer has seen another future of this disk: it must be told a later birth.
    Forked,
}

impl Sending {
    pub(super) fn new(birth: u64) -> Self {
        Self {
            birth,
            bytes_max: usize::MAX,
            phase: Phase::Doubt,
            settled: 0,
            window: VecDeque::new(),
            window_bytes: 0,
            sent: 0,
            previous: 0,
            read: 0,
            is_reading: false,
            has_more: false,
            aside: None,
            wake: None,
            silences: 0,
        }
    }

    pub(super) fn birth(&self) -> u64 {
        self.birth
    }

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
    pub(super) fn opened(&mut self, to: u64, opened: Opened, config: &Config, out: &mut Outputs<Transfer>) {
        let Opened { question, stored, mark, bytes_max } = opened;
        let Phase::Asked(asked, settled) = self.phase else { return };
        if asked != question {
            return;
        }
        if !config.is_ours(stored, mark) {
            return self.fork_from(to, (stored, mark), config, out);
        }
        self.bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(config.message_bytes_max);
        if stored < settled {
            out.event(Event::Gap { to, stored, settled });
        }
        if stored > self.settled {
            self.silences = 0;
        }
        self.settle(to, stored, out);
        // A later answer to what was sent before may have overtaken this one.
        let previous = if stored < settled { stored } else { self.settled };
        (self.phase, self.sent, self.previous) = (Phase::Going, 0, previous);
        // One that answers and stores nothing is full: it is not to be sent the same again and again.
        self.wake = None;
    }

    /// The peer knows a disk of this process that came to be later.
    pub(super) fn outdated(&mut self, to: u64, question: Question, known: u64, out: &mut Outputs<Transfer>) {
        if matches!(self.phase, Phase::Asked(asked, _) if asked == question) {
            self.fork(to, known, out);
        }
    }

    fn fork_from(
        &mut self,
        to: u64,
        (stored, mark): (u64, u64),
        config: &Config,
        out: &mut Outputs<Transfer>,
    ) {
        // What both futures have in common was sent in the other one.
        let common = config.last_of(mark).filter(|last| *last <= stored).unwrap_or(0);
        self.settle(to, common, out);
        self.fork(to, self.birth, out);
    }

    fn fork(&mut self, to: u64, above: u64, out: &mut Outputs<Transfer>) {
        (self.phase, self.wake, self.silences) = (Phase::Forked, None, 0);
        out.event(Event::Forked { to, above });
    }

    /// The peer will take what it is sent now for messages of another disk.
    pub(super) fn born(&mut self, birth: u64) {
        if self.phase == Phase::Forked {
            *self = Self { has_more: true, ..Self::new(birth) };
        }
    }

    /// The user has put a message somewhere else that the peer cannot take.
    pub(super) fn set_aside(&mut self, number: u64) {
        if self.aside == Some(number) {
            self.aside = None;
            // Nothing else is under way while that is done, so it is the first.
            if let Some(item) = self.window.pop_front_if(|item| item.number == number) {
                self.window_bytes -= item.body.len();
            }
        }
    }

    /// The peer has stored what was sent, in this life or before.
    pub(super) fn stored(
        &mut self,
        now: Time,
        to: u64,
        (stored, mark): (u64, u64),
        config: &Config,
        out: &mut Outputs<Transfer>,
    ) {
        if stored <= self.settled || self.phase == Phase::Forked {
            return;
        }
        if !config.is_ours(stored, mark) {
            return self.fork_from(to, (stored, mark), config, out);
        }
        self.settle(to, stored, out);
        self.previous = self.previous.max(stored);
        self.silences = 0;
        if self.phase == Phase::Going {
            self.wake = (self.sent > 0).then(|| now + self.patience(config));
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

    /// The peer can be reached, perhaps after it could not.
    pub(super) fn reachable(&mut self) {
        if self.phase != Phase::Forked {
            (self.phase, self.wake, self.silences) = (Phase::Doubt, None, 0);
        }
    }

    /// The peer said nothing for too long.
    pub(super) fn silence(&mut self) {
        self.silences = self.silences.saturating_add(1);
        (self.phase, self.wake) = (Phase::Doubt, None);
    }

    /// How long it is waited for an answer.
    fn patience(&self, config: &Config) -> Duration {
        config.silence * (1 << self.silences.min(SILENCES_MAX))
    }

    /// It is too large for the peer, or was and is being put somewhere else.
    fn is_aside(&self, item: &Item) -> bool {
        BATCH_BYTES + ITEM_BYTES + item.body.len() > self.bytes_max || self.aside == Some(item.number)
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
            self.wake = Some(now + self.patience(config));
            out.send(peer, Lane::Ordinary, Message::Open { birth: self.birth, question });
        }
        if self.phase != Phase::Going {
            return;
        }
        while self.sent < self.window.len() {
            let mut bytes = BATCH_BYTES;
            let mut items: Vec<Item> = Vec::new();
            let bytes_max = config.batch_bytes.min(self.bytes_max);
            let mark = self.window.get(self.sent).map_or(0, |item| config.mark_of(item.number));
            while let Some(item) = self.window.get(self.sent)
                && (items.is_empty() || bytes + ITEM_BYTES + item.body.len() <= bytes_max)
                && config.mark_of(item.number) == mark
                && !self.is_aside(item)
            {
                bytes += ITEM_BYTES + item.body.len();
                items.push(item.clone());
                self.sent += 1;
            }
            let Some(last) = items.last().map(|item| item.number) else {
                // The peer will tell that it has those behind it: so that must not be before this one is somewhere.
                if let (0, Some(item)) = (self.sent, self.window.front())
                    && self.aside.replace(item.number) != Some(item.number)
                {
                    let size = BATCH_BYTES + ITEM_BYTES + item.body.len();
                    out.event(Event::TooLarge { to, number: item.number, size, limit: self.bytes_max });
                }
                break;
            };
            let previous = std::mem::replace(&mut self.previous, last);
            self.wake = self.wake.or(Some(now + self.patience(config)));
            let life = config.life;
            out.send(peer, Lane::Ordinary, Message::Batch { birth: self.birth, life, mark, previous, items });
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

/// What the peer has told.
pub(super) struct Opened {
    pub(super) question: Question,
    pub(super) stored: u64,
    pub(super) mark: u64,
    pub(super) bytes_max: u64,
}

/// So often the time to wait for an answer is doubled.
const SILENCES_MAX: u32 = 3;
