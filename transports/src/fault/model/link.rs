//! What one direction of a link does to messages: settings, and the latency that is drawn from them.

use std::time::Duration;

use super::{Chance, Rng};

/// How long a message travels when nothing goes wrong.
///
/// Distributions other than `Constant` let messages overtake each other; see [`LinkModel::fifo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatencyModel {
    /// Always the same.
    Constant(Duration),
    /// Anything between the two, evenly; `max` is included.
    Uniform {
        /// The shortest.
        min: Duration,
        /// The longest. Below `min` counts as `min`.
        max: Duration,
    },
    /// `min` plus an exponentially distributed wait, the shape of a queue along the way.
    Exponential {
        /// The shortest.
        min: Duration,
        /// Mean of what is added to `min`.
        mean: Duration,
        /// Cut-off of the sum: without it one message in a billion takes 20 means.
        max: Duration,
    },
    /// Evenly between `min` and `max`, and now and then up to `spike` more: the shape of a stalled host.
    Spikes {
        /// The shortest.
        min: Duration,
        /// The longest without a spike.
        max: Duration,
        /// How often a message is hit.
        chance: Chance,
        /// The longest that a spike adds, evenly distributed.
        spike: Duration,
    },
}

impl LatencyModel {
    /// Draws one latency in nanoseconds.
    pub fn sample(&self, rng: &mut Rng) -> u64 {
        match *self {
            Self::Constant(latency) => nanos(latency),
            Self::Uniform { min, max } => rng.between(nanos(min), nanos(max)),
            Self::Exponential { min, mean, max } => {
                nanos(min).saturating_add(rng.exponential(nanos(mean))).min(nanos(max).max(nanos(min)))
            }
            Self::Spikes { min, max, chance, spike } => {
                let usual = rng.between(nanos(min), nanos(max));
                let extra = if rng.chance(chance) { rng.between(0, nanos(spike)) } else { 0 };
                usual.saturating_add(extra)
            }
        }
    }
}

/// How messages get lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossModel {
    /// Each message on its own.
    Independent(Chance),
    /// Gilbert and Elliott's two states: a link is calm or in a burst, and changes at each message by chance.
    Bursts {
        /// From calm to burst.
        begin: Chance,
        /// From burst to calm.
        end: Chance,
        /// Loss of a message inside a burst.
        loss: Chance,
    },
}

impl LossModel {
    /// Nothing is lost.
    pub const NONE: Self = Self::Independent(Chance::NEVER);
}

/// A link's capacity and the queue before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Bytes that leave per second. Zero lets nothing leave.
    pub bytes_per_second: u64,
    /// The longest that a message waits for those before it; one that would wait longer is lost ([`Loss::Congested`](super::Loss::Congested)).
    /// Streams wait instead, as their window would make them.
    pub queue: Duration,
}

/// What one direction of a link does to messages.
///
/// [`LinkModel::PERFECT`] is the start; set the fields that the test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkModel {
    /// Travel time.
    pub latency: LatencyModel,
    /// Loss. On streams a loss costs a retransmission instead.
    pub loss: LossModel,
    /// How often a second copy arrives, with a latency of its own. Streams never duplicate.
    pub duplication: Chance,
    /// How often a message is held back so that later ones overtake it. Streams never reorder.
    pub reordering: Chance,
    /// The longest that a reordered message is held back, evenly distributed.
    pub reordering_delay: Duration,
    /// Capacity; `None` is as fast as light.
    pub bandwidth: Option<Bandwidth>,
    /// How often a copy arrives with a flipped bit. On streams it breaks the frame's bytes all the same: this
    /// is damage that the stream's own checksum did not notice.
    pub corruption: Chance,
    /// How often a stream is reset instead of taking the message. Means nothing for single messages.
    pub reset: Chance,
    /// First wait before a lost piece of a stream is sent again; doubles each time.
    pub retransmission_timeout: Duration,
    /// True: messages never overtake each other whatever their latencies, except reordered ones and duplicates.
    pub fifo: bool,
}

impl LinkModel {
    /// Nothing goes wrong and nothing takes time.
    pub const PERFECT: Self = Self {
        latency: LatencyModel::Constant(Duration::ZERO),
        loss: LossModel::NONE,
        duplication: Chance::NEVER,
        reordering: Chance::NEVER,
        reordering_delay: Duration::from_millis(10),
        bandwidth: None,
        corruption: Chance::NEVER,
        reset: Chance::NEVER,
        retransmission_timeout: Duration::from_millis(200),
        fifo: false,
    };

    /// Loopback-like: 50 to 200 µs, nothing else.
    pub const LOCAL: Self = Self {
        latency: LatencyModel::Uniform { min: Duration::from_micros(50), max: Duration::from_micros(200) },
        ..Self::PERFECT
    };

    /// A wide-area link on a bad day: 20 ms and a tail, 1% loss, a few duplicates and reorderings.
    pub const BAD_WAN: Self = Self {
        latency: LatencyModel::Exponential {
            min: Duration::from_millis(20),
            mean: Duration::from_millis(10),
            max: Duration::from_millis(500),
        },
        loss: LossModel::Independent(Chance::percent(1)),
        duplication: Chance::ppm(5_000),
        reordering: Chance::percent(1),
        ..Self::PERFECT
    };

    /// Draws a link for one seed of a swarm test: each kind of trouble is absent in about half of the seeds and
    /// otherwise of a random strength, because mixes in which everything is always on hide the rare combinations.
    pub fn drawn(rng: &mut Rng) -> Self {
        let half = Chance::percent(50);
        let min = Duration::from_micros(rng.between(10, 5_000));
        let latency = match rng.below(4) {
            0 => LatencyModel::Constant(min),
            1 => LatencyModel::Uniform { min, max: min * u32::try_from(rng.between(1, 20)).unwrap_or(1) },
            2 => LatencyModel::Exponential { min, mean: min * 2, max: min * 100 },
            _ => LatencyModel::Spikes {
                min,
                max: min * 2,
                chance: Chance::ppm(u32::try_from(rng.between(100, 20_000)).unwrap_or(100)),
                spike: Duration::from_millis(rng.between(10, 1_000)),
            },
        };
        let mut chance_up_to = |ppm_max: u64| {
            if rng.chance(half) {
                Chance::ppm(u32::try_from(rng.between(100, ppm_max)).unwrap_or(100))
            } else {
                Chance::NEVER
            }
        };
        let independent = chance_up_to(200_000);
        let burst = chance_up_to(10_000);
        let duplication = chance_up_to(50_000);
        let reordering = chance_up_to(100_000);
        let loss = if independent == Chance::NEVER && burst != Chance::NEVER {
            LossModel::Bursts { begin: burst, end: Chance::percent(10), loss: Chance::percent(80) }
        } else {
            LossModel::Independent(independent)
        };
        Self { latency, loss, duplication, reordering, reordering_delay: min * 10, ..Self::PERFECT }
    }

    /// True when a message on this link depends on those before it.
    pub(super) const fn has_state(&self) -> bool {
        self.bandwidth.is_some() || self.fifo || matches!(self.loss, LossModel::Bursts { .. })
    }
}

impl Default for LinkModel {
    fn default() -> Self {
        Self::PERFECT
    }
}

/// Nanoseconds of a duration; 584 years and more are the end of the clock.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
