//! What is under way, what arrived, what got lost.
//!
//! Method      every packet has a number of its own, also one that repeats what another one carried, so an
//!             acknowledgement is never ambiguous. A packet is lost when one sent [`REORDERED_MAX`] numbers or 9/8 of a
//!             round trip later has arrived. When no answer comes at all, a probe asks for one.
//! Source      RFC 9002, section 6.
//! Limits      packets under way are bounded by the congestion window, of which each takes its whole size.

use std::collections::BTreeMap;

use super::Nanos;
use super::pace::{Pacer, Rtt, Window};
use super::packet::Acks;
use super::plant::{Plant, Planted};

/// Numbers by which packets may overtake each other without a loss.
const REORDERED_MAX: u64 = 3;
/// Overdue answers in a row after which the path counts as congested through and through.
const PERSISTENT: u64 = 3;

/// A packet that wants an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) at: Nanos,
    pub(super) bytes: usize,
    /// Start, end, and whether the stream ends there.
    pub(super) piece: Option<(u64, u64, bool)>,
    pub(super) stops: bool,
    pub(super) aborts: bool,
    pub(super) grants: bool,
}

#[derive(Debug)]
pub(super) struct Recovery {
    next: u64,
    sent: BTreeMap<u64, Sent>,
    in_flight: usize,
    largest_acked: Option<u64>,
    /// When the last packet left that wants an answer.
    pub(super) asked_at: Nanos,
    /// Probes since the last answer.
    probes: u32,
    lost_at: Option<Nanos>,
    pub(super) rtt: Rtt,
    window: Window,
    pacer: Pacer,
    plant: Plant,
}

/// What an acknowledgement or the time says about packets.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) acked: Vec<Sent>,
    pub(super) lost: Vec<Sent>,
}

/// An acknowledgement of what was never sent.
#[derive(Debug)]
pub(super) struct Impossible;

impl Recovery {
    pub(super) fn new(packet_bytes: usize, window_max: usize, plant: Plant) -> Self {
        Self {
            next: 0,
            sent: BTreeMap::new(),
            in_flight: 0,
            largest_acked: None,
            asked_at: 0,
            probes: 0,
            lost_at: None,
            rtt: Rtt::default(),
            window: Window::new(packet_bytes, window_max),
            pacer: Pacer::default(),
            plant,
        }
    }

    /// The number of the next packet.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn on_sent(&mut self, number: u64, sent: Sent) {
        self.asked_at = sent.at;
        self.in_flight += sent.bytes;
        self.pacer.spend(sent.bytes);
        self.sent.insert(number, sent);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.sent.is_empty()
    }

    /// True when the window takes another packet.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight < self.window.bytes()
    }

    /// When the next packet may leave, if it must wait.
    pub(super) fn pace(&mut self, now: Nanos) -> Option<Nanos> {
        self.pacer.wait(now, &self.window, &self.rtt)
    }

    /// The oldest packet that waits for an answer.
    pub(super) fn oldest(&self) -> Option<&Sent> {
        self.sent.first_key_value().map(|(_, sent)| sent)
    }

    pub(super) fn on_acks(&mut self, now: Nanos, acks: &Acks<'_>) -> Result<News, Impossible> {
        let mut news = News::default();
        let mut runs = acks.runs().peekable();
        if runs.peek().is_none() {
            return Ok(news);
        }
        if acks.largest >= self.next {
            return Err(Impossible);
        }
        let in_flight = self.in_flight;
        for (first, last) in runs {
            while let Some((&number, &sent)) = self.sent.range(first..=last).next() {
                self.sent.remove(&number);
                self.in_flight -= sent.bytes;
                self.window.on_acked(sent.bytes, sent.at, in_flight);
                if number == acks.largest {
                    self.rtt.sample(now.saturating_sub(sent.at), u64::from(acks.delay_micros) * 1_000);
                }
                news.acked.push(sent);
            }
        }
        if !news.acked.is_empty() {
            self.probes = 0;
        }
        self.largest_acked = self.largest_acked.max(Some(acks.largest));
        self.find_lost(now, &mut news);
        Ok(news)
    }

    /// Finds what is lost by now.
    pub(super) fn on_time(&mut self, now: Nanos) -> News {
        let mut news = News::default();
        if self.lost_at.is_some_and(|at| at <= now) {
            self.find_lost(now, &mut news);
        }
        news
    }

    fn find_lost(&mut self, now: Nanos, news: &mut News) {
        self.lost_at = None;
        let Some(largest) = self.largest_acked else { return };
        let patience = self.rtt.lost_after();
        let mut lost = Vec::new();
        for (&number, sent) in self.sent.range(..largest) {
            if number + REORDERED_MAX <= largest || sent.at + patience <= now {
                lost.push(number);
            } else {
                self.lost_at = Some(sent.at + patience);
                break;
            }
        }
        let times = lost.first().zip(lost.last()).map(|(a, b)| (self.sent[a].at, self.sent[b].at));
        for number in lost {
            if let Some(sent) = self.sent.remove(&number) {
                self.in_flight -= sent.bytes;
                news.lost.push(sent);
            }
        }
        if let Some((first_at, last_at)) = times
            && !self.plant.has(Planted::NeverYields)
        {
            let is_persistent =
                self.rtt.is_measured() && last_at - first_at > PERSISTENT * self.rtt.overdue(0);
            self.window.on_lost(now, last_at, is_persistent);
        }
    }

    /// When something is lost, or when a probe must leave; `delay` as in [`Rtt::overdue`], `pause_max` bounds the growing
    /// pause between probes.
    pub(super) fn deadline(&self, delay: Nanos, pause_max: Nanos, grows: bool) -> Option<Nanos> {
        if self.lost_at.is_some() {
            return self.lost_at;
        }
        if self.sent.is_empty() {
            return None;
        }
        let pause = self.rtt.overdue(delay);
        let pause = if grows { pause.saturating_mul(1 << self.probes.min(20)) } else { pause };
        Some(self.asked_at + pause.min(pause_max))
    }

    pub(super) fn on_probe(&mut self) {
        self.probes += 1;
    }

    /// Another path: nothing is known about it.
    pub(super) fn start_over(&mut self, packet_bytes: usize, window_max: usize) {
        self.rtt = Rtt::default();
        self.window = Window::new(packet_bytes, window_max);
        self.pacer = Pacer::default();
        self.probes = 0;
    }
}
