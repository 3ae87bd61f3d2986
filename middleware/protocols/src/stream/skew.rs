//! Complex streams: sub-streams that are played together although their clocks drift apart.
//!
//! Guarantee   units of all sub-streams that were recorded at one moment are played at one moment, as exactly as the least
//!             delays are known; corrections move no sub-stream by more than [`SLOPE`] of its time.
//! Method      the receiver's clock is everybody's. The least transit time of each [`WINDOW`] has no queueing in it, so how it
//!             changes is how the sender's clock drifts against ours: a line of least squares through the last
//!             [`WINDOWS`] of them says how far. The sub-stream that needs the longest delay sets that of all.
//! Needs       stamps that count from one moment in all sub-streams; some ten units in each window, or the drift is known less
//!             well: what comes rarely, subtitles, should use the clock of what comes often.
//! Source      van Steen & Tanenbaum, "Distributed Systems", stream synchronisation; Moon, Skelly & Towsley 1999 (skew from
//!             least delays).
//! Limits      [`SUBSTREAMS_MAX`]; drift of up to [`DRIFT_PPM_MAX`]. A route that becomes longer looks like drift.

use std::collections::VecDeque;
use std::time::Duration;

use super::playout::SLOPE;
use crate::time::Time;

/// Sub-streams of one complex stream.
pub const SUBSTREAMS_MAX: usize = 64;

/// The drift that is followed, in parts per million; crystals have 100 at most.
pub const DRIFT_PPM_MAX: u32 = 2_000;

/// Over how long the least transit time is looked for.
pub const WINDOW: Duration = Duration::from_secs(2);

/// Through how many least transit times the line goes.
pub const WINDOWS: usize = 16;

/// How far sound may be from the lips that make it.
pub const LIP_SYNC: Duration = Duration::from_millis(80);

/// Plays several sub-streams together.
#[derive(Debug, Clone)]
pub struct Synchroniser {
    substreams: Vec<Substream>,
}

#[derive(Debug, Clone, Default)]
struct Substream {
    clock: SenderClock,
    margin: i64,
    /// The last unit's stamp, and how far it was moved.
    last: Option<(i64, i64)>,
}

impl Synchroniser {
    /// Of so many sub-streams: 1 to [`SUBSTREAMS_MAX`], other numbers are cut to that.
    pub fn new(substreams: usize) -> Self {
        Self { substreams: vec![Substream::default(); substreams.clamp(1, SUBSTREAMS_MAX)] }
    }

    /// Says how long a sub-stream's units wait beyond the least delay, which its play-out buffer knows. Zero until then.
    pub fn set_margin(&mut self, substream: usize, margin: Duration) {
        if let Some(place) = self.substreams.get_mut(substream) {
            place.margin = nanos(margin.as_nanos());
        }
    }

    /// Takes the arrival of a unit: its stamp on its sender's clock, and when it came on ours. Of an unknown sub-stream: nothing.
    pub fn handle_arrival(&mut self, substream: usize, stamp: Time, arrived: Time) {
        if let Some(substream) = self.substreams.get_mut(substream) {
            substream.clock.handle_arrival(nanos(stamp.as_nanos()), arrived);
        }
    }

    /// When the next unit of a sub-stream is played. `None` for an unknown sub-stream, and before one of its units came.
    pub fn play_at(&mut self, substream: usize, stamp: Time) -> Option<Time> {
        let stamp = nanos(stamp.as_nanos());
        self.substreams.get(substream)?.clock.first?;
        let needed =
            self.substreams.iter().filter_map(|s| Some(s.clock.first?.saturating_add(s.margin))).max()?;
        let substream = self.substreams.get_mut(substream)?;
        // All wait for the slowest, and all are moved by the drift of their own clock.
        let wanted = needed.saturating_add(substream.clock.drift(stamp));
        let moved = match substream.last {
            None => wanted,
            Some((before, moved)) => {
                let step = (stamp.saturating_sub(before).max(0) as f64 * SLOPE) as i64;
                wanted.clamp(moved.saturating_sub(step), moved.saturating_add(step))
            }
        };
        substream.last = Some((stamp, moved));
        Some(Time::from_nanos(u64::try_from(stamp.saturating_add(moved)).unwrap_or(0)))
    }

    /// How fast a sub-stream's clock runs against ours, in parts per million; positive when it is fast. Zero until it is known.
    pub fn drift_ppm(&self, substream: usize) -> f64 {
        self.substreams.get(substream).map_or(0.0, |substream| substream.clock.rate as f64 / -1e3)
    }
}

/// What is known of the clock of one sender: transit = level + rate * (stamp - origin).
#[derive(Debug, Clone, Default)]
struct SenderClock {
    /// The least transit time of the first window: what drift is counted from.
    first: Option<i64>,
    began: Time,
    /// The unit of least transit time of this window: its stamp and its transit time.
    least: Option<(i64, i64)>,
    /// The same of the windows before.
    past: VecDeque<(i64, i64)>,
    origin: i64,
    level: i64,
    /// In parts of a thousand million.
    rate: i64,
}

impl SenderClock {
    fn handle_arrival(&mut self, stamp: i64, arrived: Time) {
        if self.least.is_some() && arrived.since(self.began) >= WINDOW {
            if self.past.len() == WINDOWS {
                self.past.pop_front();
            }
            self.past.extend(self.least.take());
            self.fit();
        }
        let transit = nanos(arrived.as_nanos()).saturating_sub(stamp);
        match self.least {
            None => (self.began, self.least) = (arrived, Some((stamp, transit))),
            Some((_, least)) if transit < least => self.least = Some((stamp, transit)),
            Some(_) => {}
        }
        if self.past.is_empty() {
            self.first = self.least.map(|(_, transit)| transit);
        }
    }

    fn fit(&mut self) {
        let count = self.past.len() as i128;
        let mean = |sum: i128| sum / count;
        let origin = mean(self.past.iter().map(|(stamp, _)| i128::from(*stamp)).sum());
        let level = mean(self.past.iter().map(|(_, transit)| i128::from(*transit)).sum());
        let (mut along, mut across) = (0i128, 0i128);
        for (stamp, transit) in &self.past {
            // In microseconds: the squares of whatever a sender says then stay within 128 bits.
            let x = (i128::from(*stamp) - origin) / 1_000;
            along += x * x;
            across += x * ((i128::from(*transit) - level) / 1_000);
        }
        let limit = i128::from(DRIFT_PPM_MAX) * 1_000;
        // From two points the line would follow every accident.
        let rate = if self.past.len() < 4 {
            0
        } else {
            across.saturating_mul(PARTS).checked_div(along).unwrap_or(0)
        };
        self.rate = clamped(rate.clamp(-limit, limit));
        (self.origin, self.level) = (clamped(origin), clamped(level));
    }

    /// How far the clock has drifted from where it was in the first window.
    fn drift(&self, stamp: i64) -> i64 {
        let (Some(first), false) = (self.first, self.past.is_empty()) else { return 0 };
        let moved = i128::from(self.rate) * (i128::from(stamp) - i128::from(self.origin)) / PARTS;
        self.level.saturating_sub(first).saturating_add(clamped(moved))
    }
}

/// A rate of one.
const PARTS: i128 = 1_000_000_000;

fn nanos(nanos: impl TryInto<i64>) -> i64 {
    nanos.try_into().unwrap_or(i64::MAX)
}

fn clamped(value: i128) -> i64 {
    value.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chance(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*state >> 33) as f64 + 0.5) / 2_147_483_648.0
    }

    fn time(seconds: f64) -> Time {
        Time::from_nanos((seconds * 1e9) as u64)
    }

    /// One virtual hour of sound and pictures. Gives how far apart, in seconds, what is seen and heard together was recorded,
    /// for every picture, and the part of all units that came in time.
    fn hour(ppm: [f64; 2], is_corrected: bool, seed: u64) -> (Vec<f64>, f64) {
        // The recording's seconds are the receiver's; it sees them 100 s later on its clock, and 40 or 70 ms at least.
        let mut state = seed;
        let mut synchroniser = Synchroniser::new(2);
        synchroniser.set_margin(0, Duration::from_millis(60));
        synchroniser.set_margin(1, Duration::from_millis(90));
        let mut arrivals = Vec::new();
        for (substream, interval, least) in [(0, 0.020, 0.040), (1, 0.040, 0.070)] {
            for unit in 0..(3_600.0 / interval) as u64 {
                let recorded = unit as f64 * interval;
                // Sound is delayed exponentially, pictures evenly, and some are lost.
                let jitter = if substream == 0 {
                    -0.010 * chance(&mut state).ln()
                } else {
                    0.080 * chance(&mut state)
                };
                if chance(&mut state) > 0.01 {
                    arrivals.push((100.0 + recorded + least + jitter, substream, recorded));
                }
            }
        }
        arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut played, mut in_time) = ([Vec::new(), Vec::new()], 0);
        for (arrived, substream, recorded) in &arrivals {
            let stamp = time(recorded * (1.0 + ppm[*substream] / 1e6));
            if is_corrected || *recorded < 2.0 {
                synchroniser.handle_arrival(*substream, stamp, time(*arrived));
            }
            let at = synchroniser.play_at(*substream, stamp).expect("one has come").as_nanos() as f64 / 1e9;
            in_time += u64::from(at >= *arrived);
            played[*substream].push((at, *recorded));
        }
        let [mut sound, pictures] = played;
        sound.sort_by(|a, b| a.0.total_cmp(&b.0));
        let skews = pictures.iter().filter_map(|(at, recorded)| {
            let heard = sound.partition_point(|(begins, _)| begins <= at).checked_sub(1)?;
            let (begins, of) = sound[heard];
            // Within a unit sound goes on; behind the last one there is none.
            (at - begins < 0.1).then_some((recorded - (of + at - begins)).abs())
        });
        (skews.collect(), in_time as f64 / arrivals.len() as f64)
    }

    #[test]
    fn m05_sound_and_pictures_stay_together_for_an_hour_although_their_clocks_drift_apart() {
        for seed in [1, 2] {
            let (skews, in_time) = hour([500.0, -500.0], true, seed);
            // Until both have been heard the one does not wait for the other; that is made up for at the slope.
            let mut skews = skews[250..].to_vec();
            skews.sort_by(f64::total_cmp);
            let (p99, most) = (skews[skews.len() * 99 / 100], skews[skews.len() - 1]);
            assert!(skews.len() > 80_000 && in_time > 0.99);
            assert!(p99 <= 0.020, "{p99} s is more than a unit of sound");
            assert!(most <= LIP_SYNC.as_secs_f64(), "{most} s is seen");
        }
    }

    #[test]
    fn m05_uncorrected_they_are_as_far_apart_as_their_clocks() {
        let (skews, _) = hour([500.0, -500.0], false, 1);
        let last = skews.last().copied().unwrap_or(0.0);
        assert!((last - 3.6).abs() < 0.1, "{last} s");
    }

    #[test]
    fn m05_drift_is_measured_and_a_sender_that_lies_about_time_breaks_nothing() {
        let (mut synchroniser, mut state) = (Synchroniser::new(1), 3);
        for unit in 0..5_000 {
            let sent = f64::from(unit) * 0.020;
            let stamp = time(sent * (1.0 - 80e-6));
            synchroniser.handle_arrival(0, stamp, time(sent + 0.050 - 0.005 * chance(&mut state).ln()));
        }
        assert!((synchroniser.drift_ppm(0) + 80.0).abs() < 20.0, "{} ppm", synchroniser.drift_ppm(0));
        for _ in 0..5_000 {
            let wild = |state: &mut u64| Time::from_nanos((chance(state) * 1.8e19) as u64);
            synchroniser.handle_arrival(0, wild(&mut state), wild(&mut state));
            assert!(synchroniser.play_at(0, wild(&mut state)).is_some());
            synchroniser.handle_arrival(7, Time::ZERO, Time::ZERO);
            assert_eq!(synchroniser.play_at(7, Time::ZERO), None);
        }
        assert!(synchroniser.drift_ppm(0).abs() <= f64::from(DRIFT_PPM_MAX));
    }
}
