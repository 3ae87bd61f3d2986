//! How messages, clocks and disks behave all the time: one draw per seed over the one fault model.

use std::time::Duration;

use quorate_transports::fault::model::{Chance, Clock, LatencyModel, LinkModel, LossModel, Rng};

use super::fault::Kind;

/// The conditions of one run, until its calm phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weather {
    /// Every link.
    pub link: LinkModel,
    /// Clocks gain or lose up to this much, in parts per million.
    pub drift_ppm_max: u32,
    /// A node looks at its inputs only at multiples of this, so that they come in batches; zero looks at once.
    pub turn: Duration,
    /// The shortest sync.
    pub sync_min: Duration,
    /// The longest usual sync.
    pub sync_max: Duration,
    /// How often a sync takes a hundred times as long.
    pub sync_stall: Chance,
    /// While a barrier waits for its sync, records that follow are appended already, so that the next sync covers
    /// many; else they wait like everything else.
    pub appends_early: bool,
    /// Whether machines are told about reachability.
    pub hints: Hints,
    /// Every message and record goes through its byte layout and back.
    pub wire_check: bool,
}

/// Whether machines get [`Reachable`](quorate_protocols::Input::Reachable) and its opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hints {
    /// Never.
    None,
    /// True when sent; late by up to this.
    Late(Duration),
}

impl Weather {
    /// Messages take 50 to 200 µs, syncs 100 µs; nothing goes wrong.
    pub fn calm() -> Self {
        Self {
            link: LinkModel { fifo: true, ..LinkModel::LOCAL },
            drift_ppm_max: 0,
            turn: Duration::ZERO,
            sync_min: Duration::from_micros(100),
            sync_max: Duration::from_micros(100),
            sync_stall: Chance::NEVER,
            appends_early: false,
            hints: Hints::Late(Duration::from_micros(100)),
            wire_check: false,
        }
    }

    pub(crate) fn draw(rng: &mut Rng, active: &[Kind]) -> Self {
        let mut link = LinkModel::drawn(rng);
        let has = |kind| active.contains(&kind);
        if !has(Kind::Loss) {
            link.loss = LossModel::NONE;
        }
        if !has(Kind::Duplication) {
            link.duplication = Chance::NEVER;
        }
        if !has(Kind::Reordering) {
            link.reordering = Chance::NEVER;
            link.fifo = true;
        }
        let drift_ppm_max = if has(Kind::Clock) { decade(rng, 1, 50_000) as u32 } else { 0 };
        let turn =
            if rng.chance(Chance::percent(30)) { micros(decade(rng, 10, 20_000)) } else { Duration::ZERO };
        let sync_min = micros(decade(rng, 10, 10_000));
        let sync_max = sync_min * (1 + rng.below(10) as u32);
        let sync_stall = if has(Kind::Disk) { Chance::percent(2) } else { Chance::NEVER };
        let hints = if rng.chance(Chance::percent(30)) {
            Hints::None
        } else {
            Hints::Late(micros(decade(rng, 10, 1_000_000)))
        };
        let wire_check = rng.chance(Chance::percent(10));
        let appends_early = rng.chance(Chance::percent(50));
        Self { link, drift_ppm_max, turn, sync_min, sync_max, sync_stall, appends_early, hints, wire_check }
    }

    /// Simpler conditions, one step each: what the shrinker tries.
    pub(crate) fn simpler(&self) -> Vec<Self> {
        let calm = Self::calm();
        let quiet = |change: &dyn Fn(&mut Self)| {
            let mut simpler = self.clone();
            change(&mut simpler);
            simpler
        };
        let mut all = vec![
            quiet(&|w| w.link.loss = LossModel::NONE),
            quiet(&|w| w.link.duplication = Chance::NEVER),
            quiet(&|w| {
                w.link.reordering = Chance::NEVER;
                w.link.fifo = true;
            }),
            quiet(&|w| w.link.latency = calm.link.latency),
            quiet(&|w| w.drift_ppm_max = 0),
            quiet(&|w| w.turn = Duration::ZERO),
            quiet(&|w| {
                w.sync_min = calm.sync_min;
                w.sync_max = calm.sync_max;
                w.sync_stall = Chance::NEVER;
            }),
            quiet(&|w| w.appends_early = false),
            quiet(&|w| w.hints = Hints::None),
            quiet(&|w| w.wire_check = false),
        ];
        all.retain(|simpler| simpler != self);
        all
    }

    pub(crate) fn calm_down(&mut self) {
        let Self { wire_check, drift_ppm_max, appends_early, .. } = *self;
        *self = Self { wire_check, drift_ppm_max, appends_early, ..Self::calm() };
    }

    /// The clock of a new incarnation: its epoch is its own.
    pub(crate) fn clock(&self, now: u64, rng: &mut Rng) -> Clock {
        let most = i64::from(self.drift_ppm_max) * 1_000;
        let drift_ppb = rng.between(0, 2 * most as u64) as i64 - most;
        let mut clock = Clock::new(rng.between(1_000_000_000, 100_000_000_000), 0);
        clock.set_drift(now, drift_ppb);
        clock
    }

    /// When a node that is asked at `at` looks.
    pub(crate) fn next_turn(&self, at: u64) -> u64 {
        match self.turn.as_nanos() as u64 {
            0 => at,
            turn => at.div_ceil(turn).saturating_mul(turn),
        }
    }

    pub(crate) fn sync_time(&self, rng: &mut Rng) -> u64 {
        let usual = rng.between(self.sync_min.as_nanos() as u64, self.sync_max.as_nanos() as u64);
        if rng.chance(self.sync_stall) { usual * 100 } else { usual }
    }

    pub(crate) fn hint_delay(&self, rng: &mut Rng) -> u64 {
        match self.hints {
            Hints::None => 0,
            Hints::Late(most) => rng.between(1_000, most.as_nanos() as u64),
        }
    }
}

impl Weather {
    /// One line for a report.
    pub(crate) fn describe(&self) -> String {
        let latency = match self.link.latency {
            LatencyModel::Constant(span) => format!("{span:?}"),
            other => format!("{other:?}"),
        };
        format!(
            "latency {latency}, loss {:?}, duplication {} ppm, reordering {} ppm{}, drift up to {} ppm, turn {:?}, sync {:?} to {:?} (stall {} ppm){}, hints {:?}{}",
            self.link.loss,
            self.link.duplication.as_ppm(),
            self.link.reordering.as_ppm(),
            if self.link.fifo { " (fifo)" } else { "" },
            self.drift_ppm_max,
            self.turn,
            self.sync_min,
            self.sync_max,
            self.sync_stall.as_ppm(),
            if self.appends_early { " with early appends" } else { "" },
            self.hints,
            if self.wire_check { ", through the wire layouts" } else { "" },
        )
    }
}

/// A number between the two whose size is drawn first, so that small ones are as likely as large ones.
pub(crate) fn decade(rng: &mut Rng, min: u64, max: u64) -> u64 {
    let mut top = max;
    while top / 10 > min && rng.chance(Chance::percent(50)) {
        top /= 10;
    }
    rng.between(min, top)
}

fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}
