//! Accrual failure detection: how unlikely a member's silence is, given how regularly it spoke before.
//!
//! Guarantee   a suspicion level, *phi*, that grows with the silence: at phi the chance to be wrong is one in 10^phi, as
//!             far as gaps are distributed normally and go on as before. A machine or a network that is slow all the
//!             time is waited for longer, a quick one is missed sooner.
//! Method      mean and deviation of the last [`GAPS_MAX`] gaps; the normal distribution's tail by its logistic
//!             approximation, which can be turned round with additions and products alone: the same on every machine.
//! Source      Hayashibara, Defago, Yared & Katayama 2004.
//! Limits      below [`GAPS_MIN`] gaps nothing is said.

use std::collections::VecDeque;
use std::time::Duration;

/// How one member speaks.
#[derive(Debug, Clone, Default)]
pub struct Rhythm {
    gaps: VecDeque<u64>,
    sum: u128,
    squares: u128,
}

impl Rhythm {
    /// So much time lay between its last two signs of life.
    pub fn note(&mut self, gap: Duration) {
        // In microseconds, of which an hour's square fits thousands of times.
        let gap = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX).min(GAP_MICROS_MAX);
        if self.gaps.len() == GAPS_MAX
            && let Some(oldest) = self.gaps.pop_front()
        {
            self.sum -= u128::from(oldest);
            self.squares -= u128::from(oldest).pow(2);
        }
        self.gaps.push_back(gap);
        self.sum += u128::from(gap);
        self.squares += u128::from(gap).pow(2);
    }

    /// Mean and deviation in microseconds; `None` while too little is known. The deviation is at least a quarter of the
    /// mean: a rhythm that was perfect so far will not stay so.
    fn shape(&self) -> Option<(f64, f64)> {
        if self.gaps.len() < GAPS_MIN {
            return None;
        }
        let count = self.gaps.len() as f64;
        let mean = self.sum as f64 / count;
        let variance = (self.squares as f64 / count - mean * mean).max(0.0);
        Some((mean, variance.sqrt().max(mean / 4.0)))
    }

    /// How suspect so long a silence is; `None` while too little is known.
    pub fn phi(&self, silence: Duration) -> Option<f64> {
        let (mean, deviation) = self.shape()?;
        let exponent = logistic((silence.as_micros() as f64 - mean) / deviation);
        // The tail is 1 / (1 + e^exponent); for large ones that is e^-exponent.
        Some(if exponent > 30.0 { exponent } else { (1.0 + exponent.exp()).ln() } / std::f64::consts::LN_10)
    }

    /// The silence at which the level is `phi`; `None` while too little is known.
    pub fn patience(&self, phi: f64) -> Option<Duration> {
        let (mean, deviation) = self.shape()?;
        let wanted = phi.clamp(PHI_MIN, PHI_MAX) * std::f64::consts::LN_10;
        let (mut low, mut high) = (0.0, DEVIATIONS_MAX);
        for _ in 0..50 {
            let middle = (low + high) / 2.0;
            if logistic(middle) < wanted { low = middle } else { high = middle }
        }
        Some(Duration::from_micros((mean + high * deviation) as u64))
    }
}

/// The exponent of the logistic curve that is the normal distribution's, to a few parts in ten thousand.
fn logistic(deviations: f64) -> f64 {
    deviations * (1.5976 + 0.070_566 * deviations * deviations)
}

/// Gaps remembered of each member.
pub const GAPS_MAX: usize = 100;

/// Gaps that make a rhythm.
pub const GAPS_MIN: usize = 5;

/// An hour.
const GAP_MICROS_MAX: u64 = 3_600_000_000;

/// Below, half of all beats would be suspect; above, the numbers of this page mean nothing.
const PHI_MIN: f64 = 0.5;
const PHI_MAX: f64 = 100.0;

/// Where phi is beyond [`PHI_MAX`].
const DEVIATIONS_MAX: f64 = 20.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn rhythm(gaps: impl IntoIterator<Item = u64>) -> Rhythm {
        let mut rhythm = Rhythm::default();
        gaps.into_iter().for_each(|gap| rhythm.note(Duration::from_millis(gap)));
        rhythm
    }

    #[test]
    fn g02_the_level_grows_with_the_silence_and_says_when_it_is_reached() {
        let rhythm = rhythm([90, 110, 95, 105, 100, 100, 120, 80]);
        let levels: Vec<_> =
            (1..=6).map(|tenths| rhythm.phi(Duration::from_millis(100 * tenths)).unwrap()).collect();
        assert!(levels.is_sorted(), "{levels:?}");
        for phi in [1.0, 3.0, 8.0, 12.0] {
            let patience = rhythm.patience(phi).unwrap();
            let level = rhythm.phi(patience).unwrap();
            assert!((level - phi).abs() < 0.1, "{phi} is reached after {patience:?}, where it is {level}");
        }
    }

    #[test]
    fn g02_who_speaks_irregularly_is_waited_for_longer() {
        let steady = rhythm((0..50).map(|_| 100));
        let moody = rhythm((0..50).map(|number| if number % 2 == 0 { 20 } else { 180 }));
        assert!(moody.patience(8.0) > steady.patience(8.0).map(|patience| patience * 2));
        assert_eq!(rhythm([100; GAPS_MIN - 1]).patience(8.0), None);
    }

    #[test]
    fn g02_old_gaps_are_forgotten() {
        let mut changed = rhythm([5000; GAPS_MAX]);
        (0..GAPS_MAX).for_each(|_| changed.note(Duration::from_millis(100)));
        assert_eq!(changed.patience(8.0), rhythm([100; GAPS_MAX]).patience(8.0));
    }
}
