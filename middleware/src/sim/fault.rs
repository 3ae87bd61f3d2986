//! What goes wrong in a run: an explicit list of faults, and the weather between them.
//!
//! Purpose     a seed draws both up front, swarm style: each seed its own mix. The list is plain data, so a failing
//!             run can drop faults one by one and print what is left as Rust.
//! Lesson      random crashes rarely hit the instant that matters. A [`Fault::Strike`] waits for a promise (an
//!             output that the scenario classifies) and strikes right there: before it is kept, after it left, or
//!             when it has just become durable.

use quorate_transports::fault::model::{Chance, Rng};

use super::sweep::Config;
use super::weather::{Weather, decade};

/// One fault. Times are microseconds of virtual time since the start of the run; nodes are indexes.
///
/// The `Debug` form is Rust: a printed list can be pasted into a regression test after
/// `use quorate::sim::{Action::*, Fault::*, Keep::*, Moment::*, Nodes};`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The node dies and starts again as a new incarnation with its durable records.
    Crash {
        /// When.
        at_us: u64,
        /// Who.
        node: usize,
        /// How long it stays down.
        down_us: u64,
        /// What its disk keeps of the records that were not synced.
        keep: Keep,
    },
    /// The node stands still; what arrives waits.
    Pause {
        /// When.
        at_us: u64,
        /// Who.
        node: usize,
        /// How long.
        for_us: u64,
    },
    /// Nothing sent by a node of `from` to a node of `to` arrives. One way; a full partition is two of them.
    Cut {
        /// When.
        at_us: u64,
        /// How long.
        for_us: u64,
        /// Whose messages are lost.
        from: Nodes,
        /// For whom they were.
        to: Nodes,
    },
    /// The node's clock jumps ahead, as after a suspended machine wakes up.
    ClockStep {
        /// When.
        at_us: u64,
        /// Whose clock.
        node: usize,
        /// How far.
        ahead_us: u64,
    },
    /// Every sync of the node takes longer.
    SlowDisk {
        /// When.
        at_us: u64,
        /// Whose disk.
        node: usize,
        /// How long it stays slow.
        for_us: u64,
        /// What each sync takes in addition.
        sync_us: u64,
    },
    /// The node is told something about a peer that need not be true.
    Lie {
        /// When.
        at_us: u64,
        /// Who is told.
        to: usize,
        /// About whom.
        about: usize,
        /// [`Reachable`](quorate_protocols::Input::Reachable) or its opposite.
        reachable: bool,
    },
    /// Waits for a promise of the node, then strikes.
    Strike {
        /// Promises before this moment do not count.
        from_us: u64,
        /// Whose promise.
        node: usize,
        /// Which class of promise; see [`Scenario::promise`](super::Scenario::promise).
        class: u8,
        /// How many promises of the class to let pass first.
        skip: u32,
        /// Where exactly.
        moment: Moment,
        /// What happens.
        action: Action,
    },
}

/// What a crash leaves of the records that were appended and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: the power failed.
    Nothing,
    /// Everything: the process was killed and the page cache lived on.
    Everything,
    /// This many thousandths of the records, as a prefix.
    Permille(u32),
}

/// Where a strike falls, seen from the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The promise is not carried out any more.
    Before,
    /// The promise was carried out: the message has left, the record is appended and not yet durable.
    After,
    /// The record has just become durable and nothing behind the barrier has left. For a message: as `After`.
    Durable,
}

/// What a strike does to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// As [`Fault::Crash`].
    Die {
        /// How long it stays down.
        down_us: u64,
        /// What its disk keeps.
        keep: Keep,
    },
    /// No message from or to the node arrives for a while.
    Isolate {
        /// How long.
        for_us: u64,
    },
    /// As [`Fault::Pause`].
    Stall {
        /// How long.
        for_us: u64,
    },
}

/// A set of node indexes, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nodes(pub u64);

impl Nodes {
    /// Only `node`.
    pub const fn one(node: usize) -> Self {
        Self(1 << node)
    }

    /// The first `count` nodes.
    pub const fn first(count: usize) -> Self {
        Self(if count >= 64 { u64::MAX } else { (1 << count) - 1 })
    }

    /// Everyone but these.
    pub const fn others(self) -> Self {
        Self(!self.0)
    }

    /// True when `node` is one of them.
    pub const fn contains(self, node: usize) -> bool {
        self.0 >> node & 1 == 1
    }
}

/// A kind of fault, to say which of them a scenario is meant to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Fault::Crash`].
    Crash,
    /// [`Fault::Pause`].
    Pause,
    /// [`Fault::Cut`].
    Cut,
    /// [`Fault::ClockStep`], and clocks that run at different rates.
    Clock,
    /// [`Fault::SlowDisk`].
    Disk,
    /// [`Fault::Lie`], and hints about reachability that come late.
    Lie,
    /// [`Fault::Strike`].
    Strike,
    /// Lost messages.
    Loss,
    /// Repeated messages.
    Duplication,
    /// Messages that overtake each other.
    Reordering,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Crash,
        Self::Pause,
        Self::Cut,
        Self::Clock,
        Self::Disk,
        Self::Lie,
        Self::Strike,
        Self::Loss,
        Self::Duplication,
        Self::Reordering,
    ];
}

/// What a seed draws before anything runs.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How messages, clocks and disks behave all the time, until the calm phase.
    pub weather: Weather,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// The plan of `seed` for `nodes` nodes whose promises come in `classes` classes.
    pub fn draw(seed: u64, config: &Config, nodes: usize, classes: u8) -> Self {
        let mut rng = Rng::labelled(seed, PLAN_STREAM);
        // Swarm: half of the kinds are absent from any one seed, so that each also meets the others alone.
        let half = Chance::percent(50);
        let active: Vec<Kind> = config.kinds.iter().copied().filter(|_| rng.chance(half)).collect();
        let weather = Weather::draw(&mut rng, &active);
        let end_us = config.active.as_micros() as u64;
        let mut draw = Draw { rng, end_us, nodes, classes };
        let mut faults = Vec::new();
        for kind in active {
            // About one fault of a kind in `FAULT_PERIOD_US`, from rare to twice that.
            let most = (2 * end_us / FAULT_PERIOD_US).clamp(1, FAULTS_OF_A_KIND_MAX);
            let count = 1 + draw.rng.below(most);
            for _ in 0..count {
                draw.fault(kind, &mut faults);
            }
        }
        Self { weather, faults }
    }

    /// No faults in fair weather.
    pub fn calm() -> Self {
        Self { weather: Weather::calm(), faults: Vec::new() }
    }
}

struct Draw {
    rng: Rng,
    end_us: u64,
    nodes: usize,
    classes: u8,
}

impl Draw {
    fn fault(&mut self, kind: Kind, faults: &mut Vec<Fault>) {
        let at_us = self.rng.below(self.end_us);
        let node = self.rng.below(self.nodes as u64) as usize;
        match kind {
            Kind::Crash => {
                let (down_us, keep) = (self.span(3_000_000), self.keep());
                faults.push(Fault::Crash { at_us, node, down_us, keep });
            }
            Kind::Pause => {
                let for_us = self.span(3_000_000);
                faults.push(Fault::Pause { at_us, node, for_us });
            }
            Kind::Cut => {
                let everyone = Nodes::first(self.nodes);
                let for_us = self.span(5_000_000);
                let side = Nodes(self.rng.next_u64() & everyone.0);
                match self.rng.below(3) {
                    // Two sides that do not hear each other.
                    0 => {
                        let other = Nodes(side.others().0 & everyone.0);
                        faults.push(Fault::Cut { at_us, for_us, from: side, to: other });
                        faults.push(Fault::Cut { at_us, for_us, from: other, to: side });
                    }
                    // One way only.
                    1 => faults.push(Fault::Cut { at_us, for_us, from: Nodes::one(node), to: side }),
                    // Partial: two nodes do not hear each other, everyone else hears both.
                    _ => {
                        let peer = Nodes::one(self.rng.below(self.nodes as u64) as usize);
                        faults.push(Fault::Cut { at_us, for_us, from: Nodes::one(node), to: peer });
                        faults.push(Fault::Cut { at_us, for_us, from: peer, to: Nodes::one(node) });
                    }
                }
            }
            Kind::Clock => {
                let ahead_us = self.span(10_000_000);
                faults.push(Fault::ClockStep { at_us, node, ahead_us });
            }
            Kind::Disk => {
                let (for_us, sync_us) = (self.span(5_000_000), self.span(500_000));
                faults.push(Fault::SlowDisk { at_us, node, for_us, sync_us });
            }
            Kind::Lie => {
                let about = self.rng.below(self.nodes as u64) as usize;
                let reachable = self.rng.chance(Chance::percent(30));
                faults.push(Fault::Lie { at_us, to: node, about, reachable });
            }
            Kind::Strike => {
                let class = self.rng.below(u64::from(self.classes)) as u8;
                let skip = if self.rng.chance(Chance::percent(50)) { 0 } else { self.rng.below(8) as u32 };
                let moment = match self.rng.below(3) {
                    0 => Moment::Before,
                    1 => Moment::After,
                    _ => Moment::Durable,
                };
                let action = match self.rng.below(10) {
                    0 => Action::Stall { for_us: self.span(3_000_000) },
                    1 | 2 => Action::Isolate { for_us: self.span(5_000_000) },
                    _ => Action::Die { down_us: self.span(3_000_000), keep: self.keep() },
                };
                faults.push(Fault::Strike { from_us: at_us, node, class, skip, moment, action });
            }
            // Weather, not events.
            Kind::Loss | Kind::Duplication | Kind::Reordering => {}
        }
    }

    fn span(&mut self, max_us: u64) -> u64 {
        decade(&mut self.rng, 500, max_us)
    }

    fn keep(&mut self) -> Keep {
        match self.rng.below(3) {
            0 => Keep::Nothing,
            1 => Keep::Everything,
            _ => Keep::Permille(self.rng.below(1001) as u32),
        }
    }
}

/// One fault of each active kind in two and a half seconds leaves room to recover, and hits most recoveries.
const FAULT_PERIOD_US: u64 = 2_500_000;
/// A kind beyond this many faults only slows the run down.
const FAULTS_OF_A_KIND_MAX: u64 = 24;
const PLAN_STREAM: u64 = 1;
