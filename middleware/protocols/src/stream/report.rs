//! Receiver reports: what came of what was sent, for the sender to act on.
//!
//! Guarantee   losses and jitter as RFC 3550 defines them, in integers; repeated and reordered units do not count as
//!             lost, and no sequence number that a peer invents makes the counters wrong by more than it moved them.
//! Method      the highest sequence number, extended beyond 16 bits, against the units that came; jitter J += (|D| - J) / 16
//!             over the difference D of relative transit times.
//! Source      RFC 3550, 6.4.1 and appendices A.1, A.3, A.8.
//! Limits      a jump of more than [`DROPOUT_MAX`] numbers is taken only when the next unit follows it.

/// How far the numbers may jump forwards at once, as in RFC 3550, A.1.
pub const DROPOUT_MAX: u16 = 3_000;

/// How far a unit may come behind the highest one and still count as reordered.
pub const MISORDER_MAX: u16 = 100;

/// What one receiver has seen of one sender.
#[derive(Debug, Clone, Default)]
pub struct Reception {
    state: Option<Seen>,
    jitter_16: u32,
    transit: Option<u32>,
}

#[derive(Debug, Clone)]
struct Seen {
    base: u64,
    highest: u64,
    received: u64,
    /// The number that would make a large jump believable.
    after_jump: Option<u16>,
    /// At the last report.
    told_expected: u64,
    told_received: u64,
}

impl Seen {
    const fn new(sequence: u16) -> Self {
        let base = sequence as u64;
        Self { base, highest: base, received: 1, after_jump: None, told_expected: 0, told_received: 0 }
    }

    const fn expected(&self) -> u64 {
        self.highest - self.base + 1
    }
}

impl Reception {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a unit: its sequence number, the sender's time stamp and the arrival, both in the stream's clock units
    /// (they wrap around, and their origins need not agree). False when the number is too far off to be believed.
    pub fn handle_unit(&mut self, sequence: u16, stamp: u32, arrival: u32) -> bool {
        if !self.count(sequence) {
            return false;
        }
        let transit = arrival.wrapping_sub(stamp);
        if let Some(before) = self.transit.replace(transit) {
            let difference = (transit.wrapping_sub(before) as i32).unsigned_abs();
            // J is kept sixteenfold: the same integers as in RFC 3550, A.8.
            self.jitter_16 = self
                .jitter_16
                .saturating_add(difference)
                .saturating_sub(self.jitter_16.saturating_add(8) >> 4);
        }
        true
    }

    /// What there is to tell, and begins the next interval.
    pub fn report(&mut self) -> Report {
        let Some(seen) = &mut self.state else { return Report::default() };
        let (expected, received) = (seen.expected(), seen.received);
        let expected_now = expected - seen.told_expected;
        let lost_now = expected_now.saturating_sub(received - seen.told_received);
        (seen.told_expected, seen.told_received) = (expected, received);
        let fraction = (lost_now << 8).checked_div(expected_now).unwrap_or(0);
        Report {
            highest: seen.highest,
            lost: i64::try_from(expected).unwrap_or(i64::MAX) - i64::try_from(received).unwrap_or(i64::MAX),
            lost_of_256: u8::try_from(fraction).unwrap_or(u8::MAX),
            jitter: self.jitter_16 >> 4,
        }
    }

    fn count(&mut self, sequence: u16) -> bool {
        let Some(seen) = &mut self.state else {
            self.state = Some(Seen::new(sequence));
            return true;
        };
        let ahead = sequence.wrapping_sub(seen.highest as u16);
        if ahead < DROPOUT_MAX {
            seen.highest += u64::from(ahead);
        } else if ahead <= u16::MAX - MISORDER_MAX {
            if seen.after_jump.replace(sequence.wrapping_add(1)) != Some(sequence) {
                return false;
            }
            // Two in a row: the sender has begun anew.
            *seen = Seen::new(sequence);
            self.transit = None;
            return true;
        }
        // Else repeated or overtaken: counted as received, as RFC 3550 does.
        seen.after_jump = None;
        seen.received += 1;
        true
    }
}

/// What a receiver tells the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// The highest sequence number, counted on beyond 16 bits.
    pub highest: u64,
    /// Units lost since the beginning; negative when more were repeated than lost.
    pub lost: i64,
    /// The part lost since the last report, of 256.
    pub lost_of_256: u8,
    /// The mean deviation of the transit times' difference, in clock units.
    pub jitter: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m06_a_report_counts_losses_across_the_wrap_and_not_what_was_reordered_or_repeated() {
        let mut reception = Reception::new();
        let numbers = (0..1_000u32).map(|i| (65_000 + i) as u16);
        for (i, number) in numbers.enumerate() {
            if i % 10 != 3 {
                assert!(reception.handle_unit(number, 0, 0));
            }
        }
        let report = reception.report();
        assert_eq!((report.highest, report.lost, report.lost_of_256), (65_999, 100, 25));
        // An overtaken one fills its gap; a wild one is not believed.
        assert!(reception.handle_unit(65_993u32 as u16, 0, 0));
        assert!(!reception.handle_unit(30_000, 0, 0));
        assert_eq!(reception.report(), Report { highest: 65_999, lost: 99, lost_of_256: 0, jitter: 0 });
        // Two that follow one another are a sender that began anew.
        assert!(!reception.handle_unit(40_000, 0, 0));
        assert!(reception.handle_unit(40_001, 0, 0));
        assert_eq!(reception.report().lost, 0);
    }

    #[test]
    fn m06_jitter_follows_the_formula_of_rfc_3550_to_the_unit() {
        let mut reception = Reception::new();
        let (mut state, mut exact, mut before) = (1u64, 0.0f64, None::<f64>);
        for i in 0..5_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let delay = (state >> 33) as u32 % 800;
            // The sender's clock stands anywhere and wraps around.
            let stamp = (i * 160).wrapping_add(u32::MAX - 100_000);
            assert!(reception.handle_unit(i as u16, stamp, (i * 160 + delay).wrapping_add(77)));
            if let Some(before) = before.replace(f64::from(delay)) {
                exact += ((f64::from(delay) - before).abs() - exact) / 16.0;
            }
        }
        let told = f64::from(reception.report().jitter);
        assert!((told - exact).abs() <= 1.0, "{told} is not {exact}");
    }
}
