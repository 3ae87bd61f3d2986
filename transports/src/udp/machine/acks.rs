//! Which packets have come, and when the peer must hear of it.

use super::packet::ACK_RUNS_MAX;
use super::plant::{Plant, Planted};
use super::runs::Runs;
use super::{MILLI, Nanos};

/// How long an acknowledgement may wait for company.
pub(super) const ACK_DELAY_MAX: Nanos = 5 * MILLI;
/// Packets that want an answer; the second gets it at once.
const UNANSWERED_MAX: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Received {
    runs: Runs,
    /// Everything below counts as received; it was, or it is told of no more and comes again under another number.
    floor: u64,
    largest_at: Nanos,
    unanswered: u32,
    due: Option<Nanos>,
    plant: Plant,
}

impl Received {
    pub(super) fn new(plant: Plant) -> Self {
        Self { plant, ..Self::default() }
    }

    /// True when this number has come before.
    pub(super) fn is_known(&self, number: u64) -> bool {
        number < self.floor || self.runs.contains(number)
    }

    pub(super) fn largest(&self) -> Option<u64> {
        self.runs.descending().next().map(|(_, end)| end - 1)
    }

    /// Records a packet that is not known.
    pub(super) fn record(&mut self, now: Nanos, number: u64, wants_ack: bool) {
        let largest = self.largest();
        let is_in_order = number == largest.map_or(self.floor, |largest| largest + 1);
        if largest.is_none_or(|largest| number > largest) {
            self.largest_at = now;
        }
        let start = if self.plant.has(Planted::AcksWhatIsMissing) { 0 } else { number };
        self.runs.insert(start, number + 1);
        while self.runs.len() > ACK_RUNS_MAX {
            self.runs.pop_first();
            self.floor = self.runs.first().map_or(self.floor, |(start, _)| start);
        }
        if wants_ack {
            self.unanswered += 1;
            // Out of order means a loss, or will be taken for one.
            let at =
                if self.unanswered >= UNANSWERED_MAX || !is_in_order { now } else { now + ACK_DELAY_MAX };
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    /// A packet came again: the peer has not heard of the first one.
    pub(super) fn hurry(&mut self, now: Nanos) {
        self.due = Some(now);
    }

    pub(super) fn due(&self) -> Option<Nanos> {
        self.due
    }

    /// First and last number of each run, highest first, and how many microseconds the largest has waited.
    pub(super) fn tell(&mut self, now: Nanos, out: &mut Vec<(u64, u64)>) -> u32 {
        self.unanswered = 0;
        self.due = None;
        out.extend(self.runs.descending().map(|(start, end)| (start, end - 1)));
        u32::try_from(now.saturating_sub(self.largest_at) / 1_000).unwrap_or(u32::MAX)
    }
}
