//! How often something happens: counts of the last seconds.

use quorate_protocols::Time;

/// Counts per second, the last ones.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// By second, modulo their number.
    slots: [u64; SECONDS + 1],
    /// The second that is being counted.
    second: u64,
}

impl Meter {
    pub(super) fn add(&mut self, now: Time) {
        self.pass(now);
        self.slots[place(self.second)] += 1;
    }

    /// How many a second, over the last ten full ones.
    pub(super) fn per_second(&mut self, now: Time) -> f64 {
        self.pass(now);
        let current = place(self.second);
        let full = self.slots.iter().enumerate().filter(|(slot, _)| *slot != current);
        full.map(|(_, count)| *count).sum::<u64>() as f64 / SECONDS as f64
    }

    /// Empties the seconds that have begun since.
    fn pass(&mut self, now: Time) {
        let second = now.as_nanos() / 1_000_000_000;
        let passed = second.saturating_sub(self.second).min(self.slots.len() as u64);
        for step in 1..=passed {
            self.slots[place(second - passed + step)] = 0;
        }
        self.second = self.second.max(second);
    }
}

fn place(second: u64) -> usize {
    (second % (SECONDS as u64 + 1)) as usize
}

/// Long enough to be steady, short enough to show a change.
const SECONDS: usize = 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn q09_rates_follow_the_last_ten_seconds() {
        let (mut meter, start) = (Meter::default(), Time::from_nanos(1 << 60));
        for tick in 0..3000 {
            meter.add(start + Duration::from_millis(tick * 10));
        }
        let end = start + Duration::from_secs(30);
        assert!((meter.per_second(end) - 100.0).abs() < 0.001);
        assert!((meter.per_second(end + Duration::from_secs(5)) - 50.0).abs() <= 10.0);
        assert!(meter.per_second(end + Duration::from_secs(60)) < 0.001);
        meter.add(start);
        assert!(meter.per_second(end + Duration::from_secs(61)) < 0.2, "a clock that goes back does no harm");
    }
}
