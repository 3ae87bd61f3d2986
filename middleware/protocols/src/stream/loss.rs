//! What to do about losses: measured as bursts, answered by as little repair as keeps the budget.
//!
//! Guarantee   a chosen [`Protection`] leaves no more than the budget when losses are as they were measured, and repairs within
//!             the delay. A unit is asked for again only when the answer can come before it is played.
//! Method      two states, good and bad, every unit in the bad one lost; interleaving d deep looks at every d-th step of them,
//!             and how many of a block are lost follows from adding up over all ways through it.
//! Source      Gilbert 1960; Jiang & Schulzrinne 2000 (loss in bursts and forward error correction); RFC 4588 (asking again).
//! Limits      [`MISSING_MAX`] units are asked for at a time, [`ASKED_MAX`] times each; blocks of up to 32 + 8 shards.

use std::collections::BTreeMap;
use std::time::Duration;

use super::interleave::Blocks;
use crate::time::Time;

/// Losses as a chain of two states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    /// The chance that a unit is lost when the one before was not.
    pub begin: f64,
    /// The chance that a unit is not lost when the one before was: one over the mean length of a burst.
    pub end: f64,
}

impl Losses {
    /// The part of all units that is lost.
    pub fn part(self) -> f64 {
        if self.begin <= 0.0 { 0.0 } else { self.begin / (self.begin + self.end) }
    }

    /// As every `depth`-th unit sees them.
    pub fn at_depth(self, depth: u16) -> Self {
        let memory = (0..depth).fold(1.0, |memory, _| memory * (1.0 - self.begin - self.end));
        Self { begin: self.part() * (1.0 - memory), end: (1.0 - self.part()) * (1.0 - memory) }
    }

    /// The part of the data that is still lost when each block of `data` and then `parity` shards survives `parity` losses.
    pub fn residual(self, data: usize, parity: usize) -> f64 {
        // By the number of losses so far, up to the parity: how probable, and how much data is lost on average times that; for
        // a last unit that came, and for one that was lost.
        let mut ways = vec![[(0.0, 0.0); 2]; parity + 1];
        ways[0] = [(1.0 - self.part(), 0.0), (0.0, 0.0)];
        // What is before the block is lost or not, too, and counts for nothing.
        ways[0][1].0 = self.part();
        for shard in 0..data + parity {
            let is_data = if shard < data { 1.0 } else { 0.0 };
            let mut next = vec![[(0.0, 0.0); 2]; parity + 1];
            for (lost, [good, bad]) in ways.iter().enumerate() {
                let came =
                    |value: fn(&(f64, f64)) -> f64| value(good) * (1.0 - self.begin) + value(bad) * self.end;
                let gone =
                    |value: fn(&(f64, f64)) -> f64| value(good) * self.begin + value(bad) * (1.0 - self.end);
                next[lost][0].0 += came(|way| way.0);
                next[lost][0].1 += came(|way| way.1);
                if lost < parity {
                    next[lost + 1][1].0 += gone(|way| way.0);
                    next[lost + 1][1].1 += gone(|way| way.1) + is_data * gone(|way| way.0);
                }
            }
            ways = next;
        }
        let repaired: f64 = ways.iter().flatten().map(|way| way.1).sum();
        (self.part() - repaired / data.max(1) as f64).max(0.0)
    }
}

/// Measures losses; the last [`MEMORY`] units count most.
#[derive(Debug, Clone, Default)]
pub struct LossMeter {
    was_lost: bool,
    good: f64,
    bad: f64,
    begun: f64,
    ended: f64,
}

impl LossMeter {
    /// Takes the fate of the next unit in sending order.
    pub fn handle_unit(&mut self, is_lost: bool) {
        for count in [&mut self.good, &mut self.bad, &mut self.begun, &mut self.ended] {
            *count *= 1.0 - 1.0 / MEMORY;
        }
        match (self.was_lost, is_lost) {
            (false, _) => {
                self.good += 1.0;
                self.begun += if is_lost { 1.0 } else { 0.0 };
            }
            (true, _) => {
                self.bad += 1.0;
                self.ended += if is_lost { 0.0 } else { 1.0 };
            }
        }
        self.was_lost = is_lost;
    }

    /// What has been measured; before that, single losses of one in a thousand are assumed.
    pub fn losses(&self) -> Losses {
        Losses {
            begin: (self.begun + 0.01) / (self.good + 10.0),
            end: ((self.ended + 1.0) / (self.bad + 1.0)).min(1.0),
        }
    }
}

/// How a stream is protected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Protection {
    /// Data shards of a block.
    pub data: u16,
    /// Parity shards of a block.
    pub parity: u16,
    /// Blocks that are filled in turn.
    pub depth: u16,
    /// The part of the data that is still lost.
    pub residual: f64,
}

impl Protection {
    /// The protection that adds least and leaves no more than `budget` lost; the repair takes `delay` at most, for units that
    /// follow one another at `interval`. `None` when there is no such protection: lower the rate, or allow more delay.
    pub fn choose(losses: Losses, budget: f64, interval: Duration, delay: Duration) -> Option<Self> {
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let (interval, delay) = (nanos(interval), nanos(delay));
        let shapes = DATA.iter().flat_map(|data| (1..=PARITY_MAX).map(move |parity| (*data, parity)));
        let mut all: Vec<(u16, u16)> = shapes.collect();
        // By what they add; of equals the shorter block first, which repairs sooner.
        all.sort_by_key(|(data, parity)| (u32::from(*parity) * 10_000 / u32::from(*data), *data));
        all.into_iter().find_map(|(data, parity)| {
            let shards = data + parity;
            let depth = Blocks::depth_within(shards, interval, delay).min(DEPTH_MAX);
            let takes = u64::from(shards).saturating_mul(u64::from(depth)).saturating_mul(interval);
            let residual = losses.at_depth(depth).residual(usize::from(data), usize::from(parity));
            (takes <= delay && residual <= budget).then_some(Self { data, parity, depth, residual })
        })
    }
}

/// Asks for missing units again while that can help.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    missing: BTreeMap<u64, Missing>,
}

#[derive(Debug, Clone)]
struct Missing {
    play_at: Time,
    ask_at: Time,
    asked: u32,
}

impl Requests {
    /// A unit is missing that would be played at `play_at`. False when so many are missing that it is left to concealment.
    pub fn handle_missing(&mut self, now: Time, unit: u64, play_at: Time) -> bool {
        if self.missing.len() >= MISSING_MAX && !self.missing.contains_key(&unit) {
            return false;
        }
        self.missing.entry(unit).or_insert(Missing { play_at, ask_at: now, asked: 0 }).play_at = play_at;
        true
    }

    /// A unit has come, or has been repaired.
    pub fn handle_arrival(&mut self, unit: u64) {
        self.missing.remove(&unit);
    }

    /// The units to ask for now, when an answer takes `round_trip`; those for which it would come too late are given up.
    pub fn poll(&mut self, now: Time, round_trip: Duration) -> Vec<u64> {
        self.missing.retain(|_, unit| now + round_trip <= unit.play_at && unit.asked < ASKED_MAX);
        let due = self.missing.iter_mut().filter(|(_, unit)| unit.ask_at <= now);
        due.map(|(number, unit)| {
            unit.asked += 1;
            // Not again before the answer could be here, and some time beyond.
            unit.ask_at = now + round_trip + round_trip / 2;
            *number
        })
        .collect()
    }

    /// When to poll next.
    pub fn deadline(&self) -> Option<Time> {
        self.missing.values().map(|unit| unit.ask_at).min()
    }
}

/// Units that a loss meter remembers.
pub const MEMORY: f64 = 5_000.0;

/// Missing units that are asked for at a time; of more, a network that is overloaded would only get worse.
pub const MISSING_MAX: usize = 256;

/// How often a unit is asked for.
pub const ASKED_MAX: u32 = 3;

/// The shapes that are tried.
const DATA: [u16; 8] = [2, 4, 6, 8, 12, 16, 20, 32];
const PARITY_MAX: u16 = 8;
const DEPTH_MAX: u16 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const BURSTS: Losses = Losses { begin: 0.01, end: 0.3 };

    fn chance(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as f64 / 2_147_483_648.0
    }

    #[test]
    fn m04_residual_losses_are_computed_as_they_are_measured() {
        for (depth, percent, within) in [(1, 1.75, 0.1), (2, 0.82, 0.1), (4, 0.23, 0.1), (8, 0.040, 0.3)] {
            let residual = 100.0 * BURSTS.at_depth(depth).residual(20, 4);
            assert!(
                (residual / percent - 1.0).abs() <= within,
                "{residual:.3} % at depth {depth}, not {percent} %"
            );
        }
        // Without memory it is the binomial distribution: of two and one parity, both or one and the parity.
        let single = Losses { begin: 0.1, end: 0.9 };
        assert!((single.residual(2, 1) - 0.1 * (1.0 - 0.9 * 0.9)).abs() < 1e-12);
        assert!((BURSTS.part() - 0.01 / 0.31).abs() < 1e-12);
    }

    #[test]
    fn m04_the_least_protection_that_keeps_the_budget_within_the_delay_is_chosen() {
        let ms = Duration::from_millis;
        let choose = |losses, budget, delay| Protection::choose(losses, budget, ms(5), ms(delay));
        let single = Losses { begin: 0.01, end: 0.99 };
        let (some, much) = (choose(single, 0.002, 300), choose(single, 0.000_1, 300));
        let overhead =
            |p: Option<Protection>| p.map_or(f64::INFINITY, |p| f64::from(p.parity) / f64::from(p.data));
        assert!(overhead(some) < overhead(much) && overhead(much) < 0.5);
        // Bursts cost more than single losses do, and less when there is time to interleave.
        let part = Losses { begin: 0.032, end: 0.968 };
        assert!(overhead(choose(BURSTS, 0.005, 500)) > overhead(choose(part, 0.005, 500)));
        assert!(overhead(choose(BURSTS, 0.005, 200)) > overhead(choose(BURSTS, 0.005, 2_000)));
        assert_eq!(choose(BURSTS, 0.000_001, 20), None, "four units are no time");
        for delay in [100, 300, 1_000] {
            if let Some(p) = choose(BURSTS, 0.005, delay) {
                assert!(
                    p.residual <= 0.005 && u64::from(p.data + p.parity) * u64::from(p.depth) * 5 <= delay
                );
            }
        }
    }

    #[test]
    fn m04_losses_are_measured_as_they_are_and_newer_ones_count_more() {
        let (mut meter, mut state, mut is_lost) = (LossMeter::default(), 1, false);
        assert!(meter.losses().part() < 0.002);
        for (begin, end) in [(0.2, 0.9), (0.01, 0.3)] {
            for _ in 0..40_000 {
                is_lost = if is_lost { chance(&mut state) >= end } else { chance(&mut state) < begin };
                meter.handle_unit(is_lost);
            }
            let measured = meter.losses();
            assert!((measured.begin / begin - 1.0).abs() < 0.35, "{measured:?}");
            assert!((measured.end / end - 1.0).abs() < 0.35, "{measured:?}");
        }
    }

    #[test]
    fn m04_a_unit_is_asked_for_again_only_while_the_answer_can_come_in_time() {
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        let trip = Duration::from_millis(40);
        let mut requests = Requests::default();
        assert!(requests.handle_missing(at(0), 7, at(120)) && requests.handle_missing(at(0), 8, at(30)));
        assert_eq!(requests.poll(at(0), trip), [7], "an answer for 8 would come too late");
        assert_eq!((requests.poll(at(59), trip), requests.deadline()), (vec![], Some(at(60))));
        assert_eq!(requests.poll(at(60), trip), [7], "the request or its answer was lost");
        requests.handle_arrival(7);
        assert_eq!((requests.poll(at(70), trip), requests.deadline()), (vec![], None));
        // No more than its limits, whatever is missing.
        for unit in 0..1_000 {
            assert_eq!(requests.handle_missing(at(100), unit, at(1_000_000)), unit < MISSING_MAX as u64);
        }
        let asked: usize = (0..100).map(|i| requests.poll(at(100 + i * 1_000), trip).len()).sum();
        assert_eq!(asked, MISSING_MAX * ASKED_MAX as usize);
        assert_eq!(requests.deadline(), None);
    }
}
