//! The flow specification: what a stream will send, and what it needs.
//!
//! Guarantee   a flow that keeps to its specification and is served at the rate [`FlowSpec::service_rate`] waits no
//!             longer than [`FlowSpec::delay_bound`] for the server.
//! Method      arrivals are bounded by a token bucket: at most `burst + rate * t` bytes and one unit in any time `t`.
//! Source      RFC 1363 (the flow specification), RFC 2212, 5 (the bound b/R + M/R of guaranteed service, with
//!             unlimited peak); van Steen & Tanenbaum, "Distributed Systems", quality of service.
//! Limits      [`RATE_MAX`], [`BURST_MAX`], [`UNIT_MAX`].

use std::time::Duration;

use super::mode::TransmissionMode;

/// The largest rate in bytes per second: 1 TB/s, far from where exact arithmetic ends.
pub const RATE_MAX: u64 = 1_000_000_000_000;

/// The largest burst in bytes, so that a bucket's credit in byte-nanoseconds fits into 64 bits.
pub const BURST_MAX: u64 = 1 << 33;

/// The largest unit in bytes.
pub const UNIT_MAX: u32 = 1 << 30;

/// What a stream will send, and what it needs. Build one from [`audio`](Self::audio), [`video`](Self::video) or
/// [`bulk`](Self::bulk) and change what differs; [`check`](Self::check) is called wherever one is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowSpec {
    /// Bytes per second in the long run; 1 to [`RATE_MAX`].
    pub rate: u64,
    /// Bytes that may be sent at once, the depth of the token bucket; a unit at least, [`BURST_MAX`] at most.
    pub burst: u64,
    /// The largest unit in bytes; 1 to [`UNIT_MAX`].
    pub unit_max: u32,
    /// Which bounds the delay has, and with them the jitter.
    pub mode: TransmissionMode,
    /// Units that may be missing of each `loss_interval` units that follow one another.
    pub loss_max: u32,
    /// Over how many units losses are counted; at least one, and at least `loss_max`.
    pub loss_interval: u32,
}

impl FlowSpec {
    /// Speech or music in packets of 20 ms: 16 kB/s, 200 ms at most, one unit of a hundred may be missing.
    pub const fn audio() -> Self {
        Self {
            rate: 16_000,
            burst: 3_200,
            unit_max: 1_200,
            mode: TransmissionMode::Isochronous {
                delay_min: Duration::ZERO,
                delay_max: Duration::from_millis(200),
            },
            loss_max: 1,
            loss_interval: 100,
        }
    }

    /// A camera: 500 kB/s with bursts of a large picture, 300 ms at most, one unit of two hundred may be missing.
    pub const fn video() -> Self {
        Self {
            rate: 500_000,
            burst: 150_000,
            unit_max: 1_200,
            mode: TransmissionMode::Isochronous {
                delay_min: Duration::ZERO,
                delay_max: Duration::from_millis(300),
            },
            loss_max: 1,
            loss_interval: 200,
        }
    }

    /// Data without a bound in time that may not be missing.
    pub const fn bulk(rate: u64) -> Self {
        Self {
            rate,
            burst: 65_536,
            unit_max: 65_536,
            mode: TransmissionMode::Asynchronous,
            loss_max: 0,
            loss_interval: 1,
        }
    }

    /// The part of all units that may be missing.
    pub fn loss_budget(&self) -> f64 {
        f64::from(self.loss_max) / f64::from(self.loss_interval.max(1))
    }

    /// Says which field no stream could have.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.rate == 0 || self.rate > RATE_MAX {
            return Err(SpecError::Rate { rate: self.rate });
        }
        if self.unit_max == 0 || self.unit_max > UNIT_MAX {
            return Err(SpecError::Unit { unit: self.unit_max });
        }
        if self.burst < u64::from(self.unit_max) || self.burst > BURST_MAX {
            return Err(SpecError::Burst { burst: self.burst, unit: self.unit_max });
        }
        if self.loss_interval == 0 || self.loss_max > self.loss_interval {
            return Err(SpecError::Loss { lost: self.loss_max, of: self.loss_interval });
        }
        self.mode.check()
    }

    /// How long a unit may wait at most for a server that gives the flow `service` bytes per second: b/R + M/R.
    /// [`Duration::MAX`] when that is less than the flow's own rate: the queue would grow for ever.
    pub fn delay_bound(&self, service: u64) -> Duration {
        if service == 0 || service < self.rate {
            return Duration::MAX;
        }
        span_of(self.burst + u64::from(self.unit_max), service)
    }

    /// The least rate at which the flow must be served to keep its longest delay, `base` of which the way takes:
    /// its own rate, or more when the burst must leave sooner. `None` when no rate can do that.
    pub fn service_rate(&self, base: Duration) -> Option<u64> {
        let Some(max) = self.mode.delay_max() else { return Some(self.rate) };
        let left = max.checked_sub(base).filter(|left| !left.is_zero())?;
        let bytes = u128::from(self.burst) + u128::from(self.unit_max);
        let rate = (bytes * NANOS).div_ceil(left.as_nanos());
        u64::try_from(rate).ok().filter(|rate| *rate <= RATE_MAX).map(|rate| rate.max(self.rate))
    }
}

/// How long `bytes` take at `rate` bytes per second, rounded up to the nanosecond.
pub(super) fn span_of(bytes: u64, rate: u64) -> Duration {
    let nanos = (u128::from(bytes) * NANOS).div_ceil(u128::from(rate.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Nanoseconds in a second.
pub(super) const NANOS: u128 = 1_000_000_000;

/// Which field of a [`FlowSpec`] no stream can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The rate is zero or above [`RATE_MAX`].
    #[error("a rate of {rate} bytes per second is not between 1 and {RATE_MAX}")]
    Rate {
        /// What was asked for.
        rate: u64,
    },
    /// The largest unit is empty or above [`UNIT_MAX`].
    #[error("a largest unit of {unit} bytes is not between 1 and {UNIT_MAX}")]
    Unit {
        /// What was asked for.
        unit: u32,
    },
    /// The bucket does not hold one unit, or is above [`BURST_MAX`].
    #[error("a burst of {burst} bytes is not between a unit of {unit} and {BURST_MAX}")]
    Burst {
        /// What was asked for.
        burst: u64,
        /// The largest unit.
        unit: u32,
    },
    /// More may be missing than is sent.
    #[error("{lost} units of {of} cannot be missing")]
    Loss {
        /// How many may be missing.
        lost: u32,
        /// Of so many.
        of: u32,
    },
    /// The bounds of the delay leave no room.
    #[error("no unit takes between {min:?} and {max:?}")]
    Delay {
        /// The shortest delay.
        min: Duration,
        /// The longest delay.
        max: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::bucket::{Pacer, TokenBucket};
    use crate::time::Time;

    #[test]
    fn m02_a_specification_that_no_stream_can_have_names_the_field() {
        for spec in [FlowSpec::audio(), FlowSpec::video(), FlowSpec::bulk(1)] {
            assert_eq!(spec.check(), Ok(()));
        }
        let audio = FlowSpec::audio();
        assert!(matches!(FlowSpec { rate: 0, ..audio }.check(), Err(SpecError::Rate { .. })));
        assert!(matches!(FlowSpec { unit_max: 0, ..audio }.check(), Err(SpecError::Unit { .. })));
        assert!(matches!(FlowSpec { burst: 1_199, ..audio }.check(), Err(SpecError::Burst { .. })));
        assert!(matches!(FlowSpec { loss_interval: 0, ..audio }.check(), Err(SpecError::Loss { .. })));
        let never = TransmissionMode::Synchronous { delay_max: Duration::ZERO };
        assert!(matches!(FlowSpec { mode: never, ..audio }.check(), Err(SpecError::Delay { .. })));
    }

    #[test]
    fn m02_the_delay_bound_of_guaranteed_service_is_kept_and_reached_within_five_percent() {
        for (rate, burst, unit, service) in [
            (16_000, 60_000, 1_200, 16_000),
            (16_000, 60_000, 1_200, 40_000),
            (500_000, 150_000, 1_500, 600_000),
        ] {
            let spec = FlowSpec { rate, burst, unit_max: unit, ..FlowSpec::bulk(rate) };
            let bound = spec.delay_bound(service);
            // The greediest source that the bucket allows, served a unit at a time at the reserved rate.
            let mut bucket = TokenBucket::new(rate, burst, Time::ZERO);
            let mut server = Pacer::new(service, Duration::MAX, Time::ZERO);
            let (mut now, mut worst) = (Time::ZERO, Duration::ZERO);
            for _ in 0..20_000 {
                if let Err(refused) = bucket.take(now, unit) {
                    now = refused.earliest.unwrap_or(now);
                    continue;
                }
                let done = server.admit(now, unit).unwrap_or(Time::ZERO) + span_of(u64::from(unit), service);
                worst = worst.max(done.since(now));
            }
            assert!(worst <= bound, "{worst:?} is above {bound:?}");
            assert!(worst.as_secs_f64() >= 0.95 * bound.as_secs_f64(), "{worst:?} is far below {bound:?}");
        }
        assert_eq!(FlowSpec::audio().delay_bound(15_999), Duration::MAX);
    }

    #[test]
    fn m02_the_service_rate_is_the_least_that_keeps_the_delay() {
        let spec = FlowSpec { burst: 60_000, ..FlowSpec::audio() };
        let base = Duration::from_millis(50);
        let rate = spec.service_rate(base).unwrap_or(0);
        let left = Duration::from_millis(150);
        assert!(spec.delay_bound(rate) <= left && spec.delay_bound(rate - 1) > left);
        assert_eq!(spec.service_rate(Duration::from_millis(200)), None, "the way takes all the time");
        assert_eq!(FlowSpec::bulk(7).service_rate(base), Some(7), "without a bound its own rate is enough");
    }
}
