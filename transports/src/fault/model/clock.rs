//! A node's imperfect clock: offset and drift against true time.
//!
//! Guarantee   local time is a non-decreasing function of true time between steps; [`Clock::true_time`] is the
//!             earliest true moment at which the clock shows the asked time, so a timer never fires early.
//! Limits      drift below one second per second.

/// Maps true (simulated) time to what one node's clock shows. All times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The true moment of the last adjustment, and what the clock showed then.
    base_true: u64,
    base_local: u64,
    /// Nanoseconds gained per true second.
    drift_ppb: i64,
}

impl Clock {
    /// Shows true time.
    pub const PERFECT: Self = Self { base_true: 0, base_local: 0, drift_ppb: 0 };

    /// Shows `offset_nanos` at true time zero and gains `drift_ppb` parts in a billion (loses, when negative; crystals
    /// are good to some ±50,000). Drifts of ±1,000,000,000 and beyond are cut to just below it.
    pub fn new(offset_nanos: u64, drift_ppb: i64) -> Self {
        Self { base_true: 0, base_local: offset_nanos, drift_ppb: drift_ppb.clamp(-DRIFT_MAX, DRIFT_MAX) }
    }

    /// What the clock shows at the true moment `now`; before the last adjustment, what it showed at that.
    pub fn local_time(&self, now: u64) -> u64 {
        let elapsed = i128::from(now.saturating_sub(self.base_true));
        let gained = (elapsed * i128::from(self.drift_ppb)).div_euclid(BILLION);
        // The drift is above -1, so the sum is not negative.
        saturate(i128::from(self.base_local) + elapsed + gained)
    }

    /// The earliest true moment at which the clock shows `local` or later.
    pub fn true_time(&self, local: u64) -> u64 {
        let wanted = i128::from(local.saturating_sub(self.base_local));
        let rate = BILLION + i128::from(self.drift_ppb);
        // Smallest e with floor(e * rate / BILLION) >= wanted.
        let elapsed = (wanted * BILLION + rate - 1).div_euclid(rate);
        saturate(i128::from(self.base_true) + elapsed)
    }

    /// From the true moment `now` on, gains `drift_ppb` instead; what it shows does not jump.
    pub fn set_drift(&mut self, now: u64, drift_ppb: i64) {
        let local = self.local_time(now);
        *self = Self { base_true: now, base_local: local, drift_ppb: drift_ppb.clamp(-DRIFT_MAX, DRIFT_MAX) };
    }

    /// Steps the clock at the true moment `now`, forwards or backwards, as an administrator or a bad time server
    /// does. Not before zero.
    pub fn step(&mut self, now: u64, nanos: i64) {
        let local = i128::from(self.local_time(now)) + i128::from(nanos);
        *self = Self { base_true: now, base_local: saturate(local), ..*self };
    }
}

fn saturate(nanos: i128) -> u64 {
    u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)
}

const BILLION: i128 = 1_000_000_000;
const DRIFT_MAX: i64 = 999_999_999;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_fast_clock_gains_by_its_drift() {
        let clock = Clock::new(5, 50_000);
        assert_eq!(clock.local_time(0), 5);
        assert_eq!(clock.local_time(SECOND), SECOND + 50_000 + 5);
        assert_eq!(Clock::new(0, -50_000).local_time(SECOND), SECOND - 50_000);
    }

    #[test]
    fn timers_never_fire_early_nor_a_nanosecond_late() {
        for drift in [-999_999_999, -300_000_000, -7, 0, 1, 123_456, 999_999_999] {
            let mut clock = Clock::new(17, drift);
            clock.set_drift(1_000, drift);
            for local in [18, 1_000, 3_333, 10_000_019] {
                let at = clock.true_time(local);
                assert!(clock.local_time(at) >= local, "drift {drift}, {local}");
                if at > 1_000 {
                    assert!(clock.local_time(at - 1) < local, "drift {drift}, {local}");
                }
            }
        }
    }

    #[test]
    fn a_changed_drift_does_not_jump_and_a_step_does() {
        let mut clock = Clock::new(0, 1_000_000);
        let before = clock.local_time(10 * SECOND);
        clock.set_drift(10 * SECOND, -1_000_000);
        assert_eq!(clock.local_time(10 * SECOND), before);
        assert_eq!(clock.local_time(11 * SECOND), before + SECOND - 1_000_000);
        clock.step(11 * SECOND, -3_000_000);
        assert_eq!(clock.local_time(11 * SECOND), before + SECOND - 4_000_000);
        clock.step(11 * SECOND, i64::MIN);
        assert_eq!(clock.local_time(11 * SECOND), 0);
        assert_eq!(Clock::PERFECT.local_time(u64::MAX), u64::MAX);
    }
}
