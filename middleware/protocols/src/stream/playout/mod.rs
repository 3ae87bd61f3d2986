//! The play-out buffer: how long each unit waits so that those behind it are not late.
//!
//! Guarantee   one knob, the part of all units that may be late. The delay never moves by more than [`SLOPE`] of the time
//!             between two units, unless the application is [silent](Playout::set_silent), and never beyond `delay_max`.
//!             Equal inputs give equal decisions on every machine: the arithmetic is addition, multiplication, division
//!             and comparison of IEEE doubles, none of which a platform may round in its own way.
//! Method      many simple buffers run in shadow: each keeps a constant distance from the least delay, or a multiple of the
//!             largest one of the last second, whichever is more. Each has a record of what its delay would have
//!             been and what it would have missed. The one whose delay and misses cost least is followed, where the
//!             price of a miss is what makes the budget be kept. A unit that is about to be late is waited for as
//!             long as the slope allows, if the one before it was not missing: who plays slower anyway may as well do it
//!             before the gap and not after.
//! Needs       stamps on the sender's clock in sending order; every arrival is told, late ones too.
//! Source      Ramjee et al. 1994 (adaptive play-out, spikes); Moon, Kurose & Towsley 1998 (percentiles, the offline
//!             optimum); Herbster & Warmuth 1998 (following the best of many experts).
//! Limits      [`PENDING_MAX`] units whose fate is open; some 200 shadows; a decision looks at all of them.

mod recent;
mod shadow;

use std::collections::VecDeque;
use std::time::Duration;

use recent::{Floor, Peak};
use shadow::Shadows;

use crate::time::Time;

/// How much the delay may change, as a part of the time that passes: 10 % faster or slower is hardly noticed.
pub const SLOPE: f64 = 0.1;

/// Units that have been decided on and have not arrived yet; of more, the oldest counts as lost.
pub const PENDING_MAX: usize = 4_096;

/// How a play-out buffer chooses its delay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Policy {
    /// The same delay above the least one, always.
    Fixed(Duration),
    /// As little delay as makes this part of the units late: 0.001 to 0.5, usually 0.01.
    Adaptive {
        /// The part of the units that may be late.
        late_max: f64,
    },
}

/// The decisions about one stream at one receiver.
#[derive(Debug, Clone)]
pub struct Playout {
    policy: Policy,
    delay_max: f64,
    /// The first unit's transit, so that milliseconds are small numbers however the clocks stand.
    origin: Option<i128>,
    floor: Floor,
    peak: Peak,
    shadows: Shadows,
    chosen: usize,
    /// The last unit's stamp and delay.
    last: Option<(u64, f64)>,
    /// The last unit was waited for in vain, or was known to be missing.
    was_missing: bool,
    is_silent: bool,
    pending: VecDeque<Pending>,
    stats: PlayoutStats,
    since_choice: u32,
}

/// A unit whose fate the shadows have not heard of yet.
#[derive(Debug, Clone, Copy)]
struct Pending {
    sent: u64,
    /// How far the delay could move before it; `None` when it could jump.
    step: Option<f64>,
    floor: f64,
    peak: f64,
    transit: Option<f64>,
}

impl Playout {
    /// A buffer that waits `delay_max` above the least delay at most (10 ms to 10 s; values outside are cut).
    pub fn new(policy: Policy, delay_max: Duration) -> Self {
        let delay_max =
            delay_max.clamp(Duration::from_millis(10), Duration::from_secs(10)).as_secs_f64() * 1e3;
        let policy = match policy {
            Policy::Adaptive { late_max } if late_max.is_finite() => {
                Policy::Adaptive { late_max: late_max.clamp(0.001, 0.5) }
            }
            Policy::Adaptive { .. } => Policy::Adaptive { late_max: 0.01 },
            fixed @ Policy::Fixed(_) => fixed,
        };
        let mut playout = Self {
            policy,
            delay_max,
            origin: None,
            floor: Floor::default(),
            peak: Peak::default(),
            shadows: Shadows::new(delay_max),
            chosen: 0,
            last: None,
            was_missing: false,
            is_silent: true,
            pending: VecDeque::new(),
            stats: PlayoutStats::default(),
            since_choice: 0,
        };
        playout.choose();
        playout
    }

    /// Takes the arrival of a unit, early or late, in any order: `sent` on the sender's clock, `arrived` on ours.
    pub fn handle_arrival(&mut self, sent: Time, arrived: Time) {
        let transit = self.transit(sent, arrived);
        self.floor.add(arrived, transit);
        self.peak.add(arrived, transit);
        // Units that have been decided on, in sending order: only late ones are found here.
        if let Ok(at) = self.pending.binary_search_by_key(&sent.as_nanos(), |unit| unit.sent) {
            let unit = &mut self.pending[at];
            if unit.transit.is_none() {
                unit.transit = Some(transit);
                self.stats.late += 1;
            }
        }
        self.tell_shadows(arrived);
    }

    /// When the next unit in sending order may be played. Before the first arrival: nothing is known, so at once.
    pub fn window(&self, sent: Time) -> Window {
        let Some(origin) = self.origin else { return Window { earliest: sent, latest: sent } };
        let (low, high) = self.range(sent);
        let at = |delay: f64| {
            let moment = i128::from(sent.as_nanos()) + origin + (delay * 1e6) as i128;
            Time::from_nanos(u64::try_from(moment).unwrap_or(0))
        };
        Window { earliest: at(low), latest: at(high) }
    }

    /// Decides on the next unit in sending order, at the latest at the end of its [`window`](Self::window): `arrived` is
    /// when it came, `None` when it has not come by then.
    pub fn play(&mut self, sent: Time, arrived: Option<Time>) -> Decision {
        let Some(_) = self.origin else { return Decision { play_at: sent, is_there: false } };
        let (low, high) = self.range(sent);
        let transit = arrived.map(|at| self.transit(sent, at)).filter(|transit| *transit <= high);
        let step = (!self.is_silent).then(|| self.step(sent));
        let delay = transit.map_or(high, |transit| transit.max(low));
        let window = self.window(sent);
        let play_at = match arrived {
            Some(at) if transit.is_some() => at.max(window.earliest),
            _ => window.latest,
        };
        self.pending.push_back(Pending {
            sent: sent.as_nanos(),
            step,
            floor: self.floor.least(),
            peak: self.peak.largest(),
            transit,
        });
        self.stats.units += 1;
        match transit {
            Some(transit) if transit > low => self.stats.waited_for += 1,
            Some(_) => self.stats.early += 1,
            None => self.stats.missing += 1,
        }
        self.was_missing = transit.is_none();
        self.last = Some((sent.as_nanos(), delay));
        self.is_silent = false;
        self.tell_shadows(play_at);
        // For the units to come: what was said of this one's window holds.
        self.since_choice += 1;
        if self.since_choice == CHOICE_EVERY {
            self.since_choice = 0;
            self.choose();
        }
        Decision { play_at, is_there: transit.is_some() }
    }

    /// The application has nothing to play before the next unit, silence between words: the delay may jump there.
    pub fn set_silent(&mut self) {
        self.is_silent = true;
    }

    /// How far the delay of the last unit was above the least one.
    pub fn delay(&self) -> Duration {
        let above = self.last.map_or(0.0, |(_, delay)| delay - self.floor.least());
        Duration::from_nanos((above.max(0.0) * 1e6) as u64)
    }

    /// What has happened so far; the totals only grow.
    pub const fn stats(&self) -> PlayoutStats {
        self.stats
    }

    /// The least and the largest delay that the next unit may have.
    fn range(&self, sent: Time) -> (f64, f64) {
        let floor = self.floor.least();
        let target = match self.policy {
            Policy::Fixed(delay) => delay.as_secs_f64() * 1e3,
            Policy::Adaptive { .. } => self.shadows.distance(self.chosen, self.peak.largest() - floor),
        };
        let target = floor + target.min(self.delay_max);
        match self.last {
            Some((_, last)) if !self.is_silent => {
                let step = self.step(sent);
                let low = target.clamp(last - step, last + step);
                (low, if self.was_missing { low } else { last + step })
            }
            _ => (target, target),
        }
    }

    fn step(&self, sent: Time) -> f64 {
        self.last.map_or(0.0, |(before, _)| SLOPE * (sent.as_nanos().saturating_sub(before)) as f64 / 1e6)
    }

    /// Milliseconds above the first unit's transit.
    fn transit(&mut self, sent: Time, arrived: Time) -> f64 {
        let transit = i128::from(arrived.as_nanos()) - i128::from(sent.as_nanos());
        let origin = *self.origin.get_or_insert(transit);
        (transit - origin) as f64 / 1e6
    }

    fn choose(&mut self) {
        if let Policy::Adaptive { late_max } = self.policy {
            self.chosen = self.shadows.choose(late_max, self.stats.late, self.stats.units - self.stats.lost);
        }
    }

    /// Lets the shadows play every unit, in sending order, whose fate is known at `now`.
    fn tell_shadows(&mut self, now: Time) {
        let origin = self.origin.unwrap_or(0);
        while let Some(unit) = self.pending.front() {
            let waited =
                (i128::from(now.as_nanos()) - i128::from(unit.sent) - origin) as f64 / 1e6 - unit.floor;
            if unit.transit.is_none() && waited < self.delay_max && self.pending.len() < PENDING_MAX {
                return;
            }
            if unit.transit.is_none() {
                self.stats.lost += 1;
            }
            self.shadows.play(unit.step, unit.floor, unit.peak, unit.transit);
            self.pending.pop_front();
        }
    }
}

/// From when to when a unit may be played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// When it is there before this, it is played at this moment.
    pub earliest: Time,
    /// When it is not there at this moment, it is missing; when it comes before, it is played at once.
    pub latest: Time,
}

/// What becomes of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// When it is played, or something in its place.
    pub play_at: Time,
    /// False: it is not there, conceal it.
    pub is_there: bool,
}

/// What a play-out buffer has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PlayoutStats {
    /// Units decided on.
    pub units: u64,
    /// Of these, there before their moment: they waited in the buffer.
    pub early: u64,
    /// Of these, played later than planned because they were waited for.
    pub waited_for: u64,
    /// Of these, not there when they were to be played: late or lost.
    pub missing: u64,
    /// Missing ones that came afterwards.
    pub late: u64,
    /// Missing ones that had not come `delay_max` later.
    pub lost: u64,
}

/// Units between two choices of whom to follow: the records change slowly, and looking at them all costs more than a unit.
const CHOICE_EVERY: u32 = 16;

#[cfg(test)]
mod tests;
