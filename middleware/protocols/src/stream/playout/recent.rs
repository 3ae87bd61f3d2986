//! The least delay of the last minutes and the largest one of the last second.

use std::time::Duration;

use crate::time::Time;

/// The least delay of the last one to two [`SPAN`](Self::SPAN)s: long enough for an idle network to have shown itself, short
/// enough to follow clocks that drift.
#[derive(Debug, Clone, Default)]
pub(super) struct Floor {
    began: Time,
    now: Option<f64>,
    before: Option<f64>,
}

impl Floor {
    /// In 60 s clocks drift apart by 6 ms at most.
    const SPAN: Duration = Duration::from_secs(60);

    pub(super) fn add(&mut self, at: Time, delay: f64) {
        if self.now.is_none() {
            self.began = at;
        } else if at.since(self.began) >= Self::SPAN {
            (self.began, self.before) = (at, self.now.take());
        }
        self.now = Some(self.now.map_or(delay, |least| least.min(delay)));
    }

    pub(super) fn least(&self) -> f64 {
        let now = self.now.unwrap_or(0.0);
        self.before.map_or(now, |before| before.min(now))
    }
}

/// The largest delay of the last second, in [`SLOTS`](Self::SLOTS) parts of it: a fixed size however many units come.
#[derive(Debug, Clone)]
pub(super) struct Peak {
    slots: [f64; Self::SLOTS],
    /// The slot that is being filled, counted since the clock's epoch.
    newest: u64,
}

impl Default for Peak {
    fn default() -> Self {
        Self { slots: [f64::NEG_INFINITY; Self::SLOTS], newest: 0 }
    }
}

impl Peak {
    const SLOTS: usize = 16;
    const SLOT_NANOS: u64 = 62_500_000;

    pub(super) fn add(&mut self, at: Time, delay: f64) {
        let slot = at.as_nanos() / Self::SLOT_NANOS;
        let passed = slot.saturating_sub(self.newest).min(Self::SLOTS as u64);
        for i in 1..=passed {
            self.slots[((slot - passed + i) % Self::SLOTS as u64) as usize] = f64::NEG_INFINITY;
        }
        self.newest = self.newest.max(slot);
        let place = &mut self.slots[(self.newest % Self::SLOTS as u64) as usize];
        *place = place.max(delay);
    }

    /// Negative infinity before the first one.
    pub(super) fn largest(&self) -> f64 {
        self.slots.iter().fold(f64::NEG_INFINITY, |largest, slot| largest.max(*slot))
    }
}
