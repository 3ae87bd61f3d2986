//! Less when the network carries less: the rate follows the receiver's reports, and the least important layers go first.
//!
//! Guarantee   a layer is sent only when all more important ones are and their rates together are within the allowed rate; the
//!             rate stays within its bounds, halves at most at a report, and rises by a twentieth at most.
//! Method      more than 10 % lost: as much less as half of that; less than 2 %: a twentieth more; between them as it is. A
//!             layer comes back only when there is a tenth more than it needs, and each try that failed makes the next one
//!             wait twice as long, so that layers do not flicker.
//! Source      the loss-based controller of Google congestion control (Carlucci et al. 2016); RFC 3550, 6.4.1 (reports);
//!             McCanne, Jacobson & Vetterli 1996 (layers).
//! Limits      [`LAYERS_MAX`] layers.

use super::report::Report;

/// Layers of one stream.
pub const LAYERS_MAX: usize = 16;

/// The rate that a sender allows itself.
#[derive(Debug, Clone)]
pub struct RateControl {
    least: u64,
    most: u64,
    rate: u64,
    /// Reports without loss since the last cut, and how many there must be before the rate rises.
    quiet: u32,
    patience: u32,
    has_risen: bool,
}

impl RateControl {
    /// Begins at the most; between `least` and `most` bytes per second, whichever is which.
    pub fn new(least: u64, most: u64) -> Self {
        let (least, most) = (least.min(most).max(1), most.max(least).max(1));
        Self { least, most, rate: most, quiet: 0, patience: 0, has_risen: false }
    }

    /// Takes a receiver's report and gives the rate from now on.
    pub fn handle_report(&mut self, report: &Report) -> u64 {
        let lost = u64::from(report.lost_of_256);
        if lost > HIGH {
            // Half of the part that was lost.
            self.rate -= self.rate / 512 * lost;
            if self.has_risen {
                self.patience = (2 * self.patience + 1).min(PATIENCE_MAX);
            }
            (self.quiet, self.has_risen) = (0, false);
        } else if lost < LOW {
            self.quiet += 1;
            if self.quiet > self.patience {
                self.rate += self.rate / 20;
                self.has_risen = true;
            }
            if self.quiet > 2 * PATIENCE_MAX {
                (self.quiet, self.patience) = (0, 0);
            }
        }
        self.rate = self.rate.clamp(self.least, self.most);
        self.rate
    }

    /// Bytes per second.
    pub const fn rate(&self) -> u64 {
        self.rate
    }
}

/// The layers of a stream, the most important one first.
#[derive(Debug, Clone)]
pub struct Layers {
    rates: Vec<u64>,
    sent: usize,
}

impl Layers {
    /// Layers that need so many bytes per second each; of more than [`LAYERS_MAX`] the least important are never sent.
    pub fn new(rates: &[u64]) -> Self {
        let rates = rates[..rates.len().min(LAYERS_MAX)].to_vec();
        Self { sent: rates.len(), rates }
    }

    /// How many layers, from the most important on, are sent at this rate. The first one always is.
    pub fn fit(&mut self, rate: u64) -> usize {
        let fits = |count: &usize, rate: u64| {
            self.rates[..*count].iter().fold(0u64, |sum, r| sum.saturating_add(*r)) <= rate
        };
        let most =
            (1..=self.rates.len()).rev().find(|count| fits(count, rate)).unwrap_or(self.rates.len().min(1));
        self.sent = if most <= self.sent {
            most
        } else {
            // Only with a tenth to spare.
            let spare = rate - rate / 11;
            (self.sent..=most).rev().find(|count| fits(count, spare)).unwrap_or(self.sent)
        };
        self.sent
    }
}

/// Of 256: 10 % and 2 %.
const HIGH: u64 = 25;
const LOW: u64 = 5;

/// Reports without loss before the rate rises, at most.
const PATIENCE_MAX: u32 = 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m06_under_congestion_the_least_important_layers_go_first_and_come_back_when_it_is_over() {
        // 30, 30 and 40 kB a second on a link that carries 100, then 50, then 100 again; it drops what is too much, whatever it is.
        let (mut control, mut layers) =
            (RateControl::new(10_000, 120_000), Layers::new(&[30_000, 30_000, 40_000]));
        let mut lost_of_first = Vec::new();
        let mut sent_layers = Vec::new();
        for second in 0..200 {
            let link = if (30..100).contains(&second) { 50_000 } else { 100_000 };
            let sent = layers.fit(control.rate());
            let load: u64 = layers.rates[..sent].iter().sum();
            let lost = load.saturating_sub(link) * 256 / load;
            lost_of_first.push(lost);
            sent_layers.push(sent);
            control.handle_report(&Report {
                lost_of_256: u8::try_from(lost).unwrap_or(u8::MAX),
                ..Report::default()
            });
        }
        assert_eq!(sent_layers[..30], [3; 30]);
        // Ten reports later only what the link carries is sent, but for a try now and then.
        assert!(sent_layers[40..100].iter().filter(|sent| **sent == 1).count() >= 50, "{sent_layers:?}");
        let mean = lost_of_first[40..100].iter().sum::<u64>() as f64 / 60.0 / 2.56;
        assert!(mean < 3.0, "{mean} % of the most important layer are lost");
        assert_eq!(sent_layers[190..], [3; 10]);
    }

    #[test]
    fn m06_a_layer_does_not_flicker_when_the_rate_does() {
        let mut layers = Layers::new(&[10_000, 10_000]);
        assert_eq!(
            [20_000, 19_999, 20_000, 21_900, 22_000, 20_001].map(|rate| layers.fit(rate)),
            [2, 1, 1, 1, 2, 2]
        );
        assert_eq!(layers.fit(0), 1, "the first one always");
        assert_eq!(Layers::new(&[]).fit(5), 0);
    }

    #[test]
    fn m06_the_rate_follows_reports_within_its_bounds() {
        let mut control = RateControl::new(1_000, 100_000);
        let report = |lost_of_256| Report { lost_of_256, ..Report::default() };
        assert_eq!(control.handle_report(&report(0)), 100_000);
        assert_eq!(control.handle_report(&report(15)), 100_000, "between the two it stays");
        assert_eq!(control.handle_report(&report(128)), 75_040);
        for _ in 0..100 {
            control.handle_report(&report(255));
        }
        assert_eq!(control.rate(), 1_000);
    }
}
