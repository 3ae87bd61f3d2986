//! Chance from a seed.
//!
//! Guarantee   the same seed gives the same draws on every machine and in every release with the same
//!             [`TraceHash`](super::TraceHash) tests: xoshiro256++ and arithmetic without libm.
//! Limits      not for secrets.

use std::ops::Range;
use std::time::Duration;

use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A probability, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chance(u32);

impl Chance {
    /// Never; draws nothing.
    pub const NEVER: Self = Self(0);
    /// Always; draws nothing.
    pub const ALWAYS: Self = Self(MILLION);

    /// So many in a million; more than a million is always.
    pub const fn ppm(millionths: u32) -> Self {
        Self(if millionths > MILLION { MILLION } else { millionths })
    }

    /// So many in a hundred; more than a hundred is always.
    pub const fn percent(hundredths: u32) -> Self {
        if hundredths >= 100 { Self::ALWAYS } else { Self(hundredths * 10_000) }
    }

    /// How many in a million.
    pub const fn as_ppm(self) -> u32 {
        self.0
    }
}

/// A deterministic source of chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng(Xoshiro256PlusPlus);

impl Rng {
    /// A source for this seed.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// A source of its own for one part of a run, for example a node: what it draws does not depend on what others
    /// draw. The same seed and label give the same source.
    pub fn labelled(seed: u64, label: u64) -> Self {
        // An odd multiplier spreads small labels over all bits before they meet the seed.
        Self::new(seed ^ label.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31))
    }

    /// Splits off a source whose draws are independent of this one's later draws.
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; zero when `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: biased by less than bound / 2^64, and one multiplication.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number between the two, both included; `min` when they are in the wrong order.
    pub fn between(&mut self, min: u64, max: u64) -> u64 {
        if max <= min {
            return min;
        }
        match (max - min).checked_add(1) {
            Some(width) => min + self.below(width),
            None => self.next_u64(),
        }
    }

    /// A number of the range; its start when it is empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() { range.start } else { range.start + self.below(range.end - range.start) }
    }

    /// A duration of the range, to the nanosecond; its start when it is empty.
    pub fn duration(&mut self, range: Range<Duration>) -> Duration {
        Duration::from_nanos(self.range(super::nanos(range.start)..super::nanos(range.end)))
    }

    /// True with this probability. [`Chance::NEVER`] and [`Chance::ALWAYS`] draw nothing.
    pub fn chance(&mut self, chance: Chance) -> bool {
        match chance.0 {
            0 => false,
            MILLION => true,
            ppm => self.below(u64::from(MILLION)) < u64::from(ppm),
        }
    }

    /// One of `items`, evenly; `None` when there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len() as u64) as usize) }
    }

    /// Brings `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// An exponentially distributed number with this mean.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        // -ln(u) for u in (0, 1]: 53 random bits, never zero.
        let bits = (self.next_u64() >> 11) + 1;
        (negative_ln(bits) * mean as f64) as u64
    }
}

/// -ln(bits / 2^53) for bits in 1..=2^53.
///
/// Own series instead of `f64::ln`: the system's libm differs in the last bit between platforms, and one bit is
/// another trace. Addition, multiplication and division are exact by IEEE 754. Error below 1e-7.
fn negative_ln(bits: u64) -> f64 {
    let exponent = 63 - bits.leading_zeros();
    // In [1, 2): both numbers are below 2^54 and powers of two, so nothing is rounded.
    let mantissa = bits as f64 / (1_u64 << exponent) as f64;
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / odd;
    }
    let ln = f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series;
    (53.0 * std::f64::consts::LN_2 - ln).max(0.0)
}

const MILLION: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_logarithm_agrees_with_libm() {
        let mut rng = Rng::new(1);
        for bits in [1, 2, 3, 1 << 52, (1 << 53) - 1, 1 << 53] {
            let expected = -((bits as f64) / (1_u64 << 53) as f64).ln();
            assert!((negative_ln(bits) - expected).abs() < 1e-7, "{bits}");
        }
        for _ in 0..10_000 {
            let bits = rng.between(1, 1 << 53);
            let expected = -((bits as f64) / (1_u64 << 53) as f64).ln();
            assert!((negative_ln(bits) - expected).abs() < 1e-7, "{bits}");
        }
    }

    #[test]
    fn draws_stay_inside_their_bounds() {
        let mut rng = Rng::new(2);
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.between(7, 3), 7);
        assert_eq!(rng.range(5..5), 5);
        let mut seen = [false; 6];
        for _ in 0..1_000 {
            let drawn = rng.between(10, 15);
            assert!((10..=15).contains(&drawn));
            seen[(drawn - 10) as usize] = true;
            assert!((3..9).contains(&rng.range(3..9)));
            let millis = rng.duration(Duration::from_millis(1)..Duration::from_millis(2));
            assert!(millis >= Duration::from_millis(1) && millis < Duration::from_millis(2));
        }
        assert_eq!(seen, [true; 6]);
        rng.between(0, u64::MAX);
    }

    #[test]
    fn never_and_always_are_certain() {
        let mut rng = Rng::new(3);
        let before = rng.clone();
        assert!(!rng.chance(Chance::NEVER) && !rng.chance(Chance::ppm(0)));
        assert!(rng.chance(Chance::ALWAYS) && rng.chance(Chance::percent(200)));
        assert_eq!(rng, before, "certainty draws nothing");
    }

    #[test]
    fn labelled_sources_differ_and_repeat() {
        let draws = |label| Rng::labelled(9, label).next_u64();
        assert_eq!(draws(1), draws(1));
        let mut all: Vec<_> = (0..1_000).map(draws).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1_000);
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..50).collect();
        Rng::new(4).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        assert_eq!(Rng::new(4).pick::<u8>(&[]), None);
    }
}
