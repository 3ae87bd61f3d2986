//! Token bucket and leaky bucket: how much a flow may send, and when each unit leaves.
//!
//! Guarantee   in any time `t` a token bucket (r, b) lets no more than `b + r*t` bytes pass, and a leaky bucket of rate r
//!             no more than `r*t` and one unit; both let as much pass as that allows. Neither drifts: credit is kept in
//!             byte-nanoseconds, exactly.
//! Source      Turner 1986 (leaky bucket); van Steen & Tanenbaum, "Distributed Systems", quality of service; RFC 2215,
//!             3.6 (the token bucket and its one unit of slack).
//! Limits      [`BURST_MAX`], [`RATE_MAX`]: larger values are cut to them.

use std::time::Duration;

use super::flow::{BURST_MAX, NANOS, RATE_MAX, span_of};
use crate::time::Time;

/// Bursts up to its depth, the long run at its rate.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: u64,
    depth: u64,
    /// In byte-nanoseconds: what `rate` bytes per second bring in a nanosecond is `rate` of these.
    credit: u128,
    at: Time,
}

impl TokenBucket {
    /// A full bucket: `rate` bytes per second, `depth` bytes at once.
    pub fn new(rate: u64, depth: u64, now: Time) -> Self {
        let depth = depth.min(BURST_MAX);
        Self { rate: rate.min(RATE_MAX), depth, credit: u128::from(depth) * NANOS, at: now }
    }

    /// Lets `bytes` pass, all of them or none. Time that runs backwards brings nothing.
    ///
    /// # Errors
    /// [`Refused`] with the moment from which on the same bytes pass, when nothing else does before.
    pub fn take(&mut self, now: Time, bytes: u32) -> Result<(), Refused> {
        self.fill(now);
        let price = u128::from(bytes) * NANOS;
        if let Some(left) = self.credit.checked_sub(price) {
            self.credit = left;
            return Ok(());
        }
        if self.rate == 0 || u64::from(bytes) > self.depth {
            return Err(Refused { earliest: None });
        }
        let wait = (price - self.credit).div_ceil(u128::from(self.rate));
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        Err(Refused { earliest: Some(self.at + wait) })
    }

    /// Changes the rate; what has been saved up stays.
    pub fn set_rate(&mut self, now: Time, rate: u64) {
        self.fill(now);
        self.rate = rate.min(RATE_MAX);
    }

    /// Bytes that could pass at once.
    pub fn available(&mut self, now: Time) -> u64 {
        self.fill(now);
        u64::try_from(self.credit / NANOS).unwrap_or(u64::MAX)
    }

    fn fill(&mut self, now: Time) {
        let gained = u128::from(self.rate) * now.since(self.at).as_nanos();
        self.credit = (self.credit + gained).min(u128::from(self.depth) * NANOS);
        self.at = self.at.max(now);
    }
}

/// The bucket does not hold enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not enough credit")]
pub struct Refused {
    /// When it will; `None` when it never will, because the unit is larger than the bucket or nothing flows in.
    pub earliest: Option<Time>,
}

/// A leaky bucket as a queue: units leave one after the other at a constant rate, however they came.
#[derive(Debug, Clone)]
pub struct Pacer {
    rate: u64,
    wait_max: Duration,
    /// When the last unit has leaked out, and the part of a nanosecond, in parts of `rate`, beyond it.
    free: Time,
    rest: u64,
}

impl Pacer {
    /// Leaks `rate` bytes per second; a unit that would wait longer than `wait_max` is refused.
    pub fn new(rate: u64, wait_max: Duration, now: Time) -> Self {
        Self { rate: rate.clamp(1, RATE_MAX), wait_max, free: now, rest: 0 }
    }

    /// Takes a unit and gives the moment at which it leaves: at once when the bucket is empty.
    ///
    /// # Errors
    /// [`PacerFull`] when it would wait longer than the pacer allows; the unit was not taken.
    pub fn admit(&mut self, now: Time, bytes: u32) -> Result<Time, PacerFull> {
        let wait = self.free.since(now);
        if wait > self.wait_max {
            return Err(PacerFull { wait });
        }
        let idle = self.free < now;
        // Rounded up: a unit never leaves before its time, and the rest is carried so that none is lost either.
        let leaves = if idle { now } else { self.free + Duration::from_nanos(u64::from(self.rest > 0)) };
        let rest = if idle { 0 } else { u128::from(self.rest) };
        let parts = u128::from(bytes) * NANOS + rest;
        let nanos = u64::try_from(parts / u128::from(self.rate)).unwrap_or(u64::MAX);
        self.rest = u64::try_from(parts % u128::from(self.rate)).unwrap_or(0);
        self.free = self.free.max(now) + Duration::from_nanos(nanos);
        Ok(leaves)
    }

    /// Changes the rate for units that come from now on.
    pub fn set_rate(&mut self, rate: u64) {
        // The rest is less than a nanosecond: give it up to the careful side.
        self.free = self.free + Duration::from_nanos(u64::from(self.rest > 0));
        self.rest = 0;
        self.rate = rate.clamp(1, RATE_MAX);
    }

    /// How long a unit that came now would wait.
    pub fn backlog(&self, now: Time) -> Duration {
        self.free.since(now)
    }

    /// How long `bytes` take to leak out.
    pub fn span(&self, bytes: u32) -> Duration {
        span_of(u64::from(bytes), self.rate)
    }
}

/// A unit would wait too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a unit would wait {wait:?}")]
pub struct PacerFull {
    /// How long.
    pub wait: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The most that passed above `rate * t`, over all windows: the largest rise of sent minus earned.
    fn excess(passed: &[(Time, u32)], rate: u64) -> i128 {
        let (mut lowest, mut most, mut sent) = (i128::MAX, 0, 0i128);
        for (at, bytes) in passed {
            let earned = i128::from(rate) * i128::from(at.as_nanos());
            // A window begins just before a unit and ends just after one.
            lowest = lowest.min(sent * NANOS as i128 - earned);
            sent += i128::from(*bytes);
            most = most.max(sent * NANOS as i128 - earned - lowest);
        }
        most
    }

    proptest! {
        #[test]
        fn m06_a_token_bucket_lets_no_more_pass_in_any_window_than_its_depth_and_what_flowed_in(
            rate in 1u64..50_000_000, depth in 1u64..200_000,
            asked in prop::collection::vec((0u64..40_000_000, 1u32..3_000), 1..300),
        ) {
            let mut bucket = TokenBucket::new(rate, depth, Time::ZERO);
            let (mut now, mut passed) = (Time::ZERO, Vec::new());
            for (gap, bytes) in asked {
                now = now + Duration::from_nanos(gap);
                match bucket.take(now, bytes) {
                    Ok(()) => passed.push((now, bytes)),
                    Err(Refused { earliest: None }) => prop_assert!(u64::from(bytes) > depth),
                    Err(Refused { earliest: Some(at) }) => {
                        // Not a nanosecond before, and then it passes.
                        let early = Time::from_nanos(at.as_nanos() - 1);
                        prop_assert!(at > now && bucket.clone().take(early, bytes).is_err());
                        now = at;
                        prop_assert!(bucket.take(now, bytes).is_ok());
                        passed.push((now, bytes));
                    }
                }
            }
            prop_assert!(excess(&passed, rate) <= i128::from(depth) * NANOS as i128);
        }

        #[test]
        fn m06_a_leaky_bucket_lets_one_unit_more_pass_in_any_window_than_its_rate_and_wastes_nothing(
            rate in 1u64..50_000_000, asked in prop::collection::vec((0u64..40_000_000, 1u32..3_000), 1..300),
        ) {
            let mut pacer = Pacer::new(rate, Duration::MAX, Time::ZERO);
            let (mut now, mut passed) = (Time::ZERO, Vec::<(Time, u32)>::new());
            for (gap, bytes) in asked {
                now = now + Duration::from_nanos(gap);
                let leaves = pacer.admit(now, bytes).expect("waits as long as it takes");
                if let Some((before, size)) = passed.last() {
                    // It leaves when it came or when its forerunner is through: never later than a nanosecond.
                    let due = now.max(*before + span_of(u64::from(*size), rate));
                    prop_assert!(leaves >= now && leaves <= due + Duration::from_nanos(1));
                }
                passed.push((leaves, bytes));
            }
            let unit = passed.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
            // A departure is rounded up by less than a nanosecond, and a window may begin at a rounded one.
            let slack = i128::from(rate);
            prop_assert!(excess(&passed, rate) <= i128::from(unit) * NANOS as i128 + slack);
        }
    }

    #[test]
    fn m06_ten_thousand_units_a_second_are_paced_evenly_whatever_the_source_does() {
        let mut pacer = Pacer::new(2_000_000, Duration::from_secs(1), Time::ZERO);
        let mut left = Vec::new();
        for burst in 0..100u64 {
            let now = Time::from_nanos(burst * 10_000_000);
            left.extend((0..100).map(|_| pacer.admit(now, 200).expect("within a second")));
        }
        assert!(left.windows(2).all(|two| two[1].since(two[0]) == Duration::from_micros(100)));
    }

    #[test]
    fn m06_a_pacer_that_would_wait_too_long_refuses_and_keeps_its_place() {
        let mut pacer = Pacer::new(1_000, Duration::from_secs(1), Time::ZERO);
        assert_eq!(pacer.admit(Time::ZERO, 1_001), Ok(Time::ZERO));
        let full = pacer.admit(Time::ZERO, 1);
        assert_eq!(full, Err(PacerFull { wait: Duration::from_millis(1_001) }));
        let later = Time::ZERO + Duration::from_millis(1);
        assert_eq!(pacer.admit(later, 1), Ok(Time::ZERO + Duration::from_millis(1_001)));
    }
}
