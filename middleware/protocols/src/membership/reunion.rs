//! Sides of a group that was cut apart, and how they come together again.
//!
//! Purpose     a group whose members prefer to go on apart to waiting: the side without quorum goes on as a group of its own,
//!             and when the network is whole again, all are one group.
//! Guarantee   once all hear each other for long enough, all are on one side. No two sides ever go over to each other: the
//!             *senior* one stays.
//! Method      a side is a group with a number, of which the smaller is the senior one: first its *generation*, how often its
//!             line was cut off, then chance. Who has been without quorum for a while founds a side of the next generation,
//!             the longest-standing first, and the others hear of it and go over. Each member of a living side tells those
//!             that it once knew and that are not with it which side it is on; who hears of a senior one goes over, and brings
//!             what its side has done. Only numbers decide, which never change: so going over never goes in circles.
//! Source      partitionable membership: Dolev & Malki 1996 (Transis), Amir & Stanton 1998 (Spread); the joining of states is
//!             the application's, as in Birman & van Renesse 1994.
//! Limits      [`KNOWN_MAX`] processes are remembered. What sides did apart is joined by the application alone.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::planted::{Plant, Planted};
use crate::time::Time;

/// The times of a member that goes on apart.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How long a member without quorum waits for it before it goes on apart.
    pub part_after: Duration,
    /// How much longer each waits than the member before it: enough to hear of a side that was just founded.
    pub step: Duration,
    /// How often others are told of one's side.
    pub tell_every: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Tell these nodes which side this one is on.
    Tell {
        /// Those who were once known.
        to: Vec<u64>,
        /// The number of the side.
        group: u64,
    },
    /// Found a side, with the state as it is.
    Found {
        /// Its generation: see [`side`].
        generation: u16,
    },
    /// Go over to the side of this node.
    Move {
        /// The node.
        to: u64,
    },
}

/// One member's knowledge of sides. It is told what its present membership is told.
#[derive(Debug)]
pub struct Reunion {
    me: u64,
    config: Config,
    plant: Plant,
    /// The side that it is on, or was on last.
    group: u64,
    members: Vec<u64>,
    known: BTreeSet<u64>,
    lost_since: Option<Time>,
    /// `None` while it is on its way to another side.
    tell_at: Option<Time>,
}

impl Reunion {
    /// Of node `me`, on no side yet.
    pub fn new(me: u64, config: Config, plant: Plant) -> Self {
        let (members, known) = (Vec::new(), BTreeSet::new());
        Self { me, config, plant, group: 0, members, known, lost_since: None, tell_at: None }
    }

    /// Everybody who was once with this node.
    pub fn known(&self) -> impl Iterator<Item = u64> + '_ {
        self.known.iter().copied()
    }

    /// A view of its side, longest-standing member first.
    pub fn on_view(&mut self, now: Time, group: u64, members: &[u64]) {
        if group != self.group {
            self.lost_since = None;
        }
        (self.group, self.members) = (group, members.to_vec());
        self.known.extend(members.iter().copied().filter(|member| *member != self.me));
        while self.known.len() > KNOWN_MAX {
            let stranger = self.known.iter().copied().find(|node| !members.contains(node));
            let Some(stranger) = stranger.or_else(|| self.known.first().copied()) else { break };
            self.known.remove(&stranger);
        }
        // At once: whoever is waited for may wait for this.
        self.tell_at = Some(now);
    }

    /// Its side has lost or regained its quorum.
    pub fn on_quorum(&mut self, now: Time, is_lost: bool) {
        self.lost_since = is_lost.then(|| self.lost_since.unwrap_or(now));
    }

    /// Another node says that it is on a side that has a quorum.
    pub fn on_told(&mut self, now: Time, from: u64, group: u64) -> Option<Act> {
        self.tell_at?;
        if group == self.group || from == self.me {
            return None;
        }
        let waited = self.lost_since.is_some_and(|since| since + self.config.part_after <= now);
        if group < self.group || waited || self.plant.has(Planted::ReunionIgnoresSeniority) {
            self.tell_at = None;
            return Some(Act::Move { to: from });
        }
        // It will come over when it hears of this one.
        (self.lost_since.is_none()).then(|| Act::Tell { to: vec![from], group: self.group })
    }

    /// The way to another side ended outside, or this side has gone on without this member and cannot be reached.
    pub fn on_outside(&mut self) -> Act {
        self.found()
    }

    fn found(&mut self) -> Act {
        self.tell_at = None;
        Act::Found { generation: generation_of(self.group).saturating_add(1) }
    }

    /// What is due.
    pub fn on_tick(&mut self, now: Time) -> Option<Act> {
        if self.part_at().is_some_and(|at| at <= now) {
            return Some(self.found());
        }
        if self.tell_at? > now {
            return None;
        }
        self.tell_at = Some(now + self.config.tell_every);
        let to: Vec<_> = self.known().filter(|node| !self.members.contains(node)).collect();
        let speaks = self.lost_since.is_none() && !self.plant.has(Planted::ReunionStaysSilent);
        (speaks && !to.is_empty()).then_some(Act::Tell { to, group: self.group })
    }

    /// When [`on_tick`](Self::on_tick) is wanted.
    pub fn deadline(&self) -> Option<Time> {
        self.tell_at.into_iter().chain(self.part_at()).min()
    }

    fn part_at(&self) -> Option<Time> {
        self.tell_at?;
        let rank = self.members.iter().position(|member| *member == self.me).unwrap_or(0);
        let step = self.config.step * u32::try_from(rank).unwrap_or(u32::MAX);
        self.lost_since.map(|since| since + self.config.part_after + step)
    }
}

/// The number of a side: the generation decides who is senior, then the rest, which is unlike any other's when `unique` is.
pub fn side(generation: u16, unique: u64) -> u64 {
    // Spread over all bits first: what tells founders apart may be in the highest.
    let spread = unique.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u64::from(generation) << GENERATION_SHIFT | (spread ^ spread >> 29) & ((1 << GENERATION_SHIFT) - 1)
}

/// How often the line of a side was cut off.
pub const fn generation_of(group: u64) -> u16 {
    (group >> GENERATION_SHIFT) as u16
}

const GENERATION_SHIFT: u32 = 48;

/// Nodes that are remembered and told, so many of those who are not members any more.
pub const KNOWN_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NODES: u64 = 6;
    const TURN: Duration = Duration::from_millis(100);
    const CONFIG: Config = Config {
        part_after: Duration::from_millis(1500),
        step: Duration::from_millis(500),
        tell_every: Duration::from_millis(700),
    };

    fn mix(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (*seed ^ (*seed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        word ^ (word >> 29)
    }

    /// Groups as they are below: each has a view, and a quorum of it that hears each other goes on. Told everything at once,
    /// which is the only thing that is simpler here than in truth: who loses whom when is drawn.
    struct World {
        now: Time,
        seed: u64,
        nodes: Vec<Reunion>,
        /// Which side each is on.
        on: Vec<Option<u64>>,
        views: BTreeMap<u64, Vec<u64>>,
        /// The component of the network that each is in.
        place: Vec<u64>,
        moves: usize,
        /// Somebody went over from a living side to one that is not its senior.
        is_wrong: bool,
    }

    impl World {
        fn new(seed: u64, plant: Plant) -> Self {
            let mut world = Self {
                now: Time::ZERO,
                seed,
                nodes: (0..NODES).map(|node| Reunion::new(node, CONFIG, plant)).collect(),
                on: vec![Some(side(0, 7)); NODES as usize],
                views: [(side(0, 7), (0..NODES).collect())].into(),
                place: vec![0; NODES as usize],
                moves: 0,
                is_wrong: false,
            };
            world.tell_view(side(0, 7));
            world
        }

        fn hear(&self, one: u64, other: u64) -> bool {
            self.place[one as usize] == self.place[other as usize]
        }

        /// Those of a side's view that are on it and hear `node`.
        fn with(&self, group: u64, node: u64) -> Vec<u64> {
            let here = |member: &u64| self.on[*member as usize] == Some(group) && self.hear(*member, node);
            self.views[&group].iter().copied().filter(here).collect()
        }

        fn has_quorum(&self, group: u64, node: u64) -> bool {
            let (with, view) = (self.with(group, node), &self.views[&group]);
            with.len() * 2 > view.len() || (with.len() * 2 == view.len() && with.contains(&view[0]))
        }

        fn tell_view(&mut self, group: u64) {
            let view = self.views[&group].clone();
            for &member in view.iter().filter(|member| self.on[**member as usize] == Some(group)) {
                self.nodes[member as usize].on_view(self.now, group, &view);
            }
        }

        fn act(&mut self, node: u64, act: Act) {
            match act {
                Act::Tell { to, group } => {
                    for to in to {
                        // Now and then a word is lost.
                        if self.hear(node, to) && !mix(&mut self.seed).is_multiple_of(5) {
                            let hearer = &mut self.nodes[to as usize];
                            let is_senior = hearer.lost_since.is_none() && hearer.group < group;
                            let answer = hearer.on_told(self.now, node, group);
                            self.is_wrong |= is_senior && matches!(answer, Some(Act::Move { .. }));
                            answer.into_iter().for_each(|act| self.act(to, act));
                        }
                    }
                }
                Act::Found { generation } => {
                    let group = side(generation, mix(&mut self.seed));
                    self.on[node as usize] = Some(group);
                    self.views.insert(group, vec![node]);
                    self.tell_view(group);
                }
                Act::Move { to } => {
                    self.moves += 1;
                    let there = self.on[to as usize].filter(|group| {
                        self.hear(node, to)
                            && self.has_quorum(*group, to)
                            && self.on[node as usize] != Some(*group)
                    });
                    self.on[node as usize] = None;
                    match there {
                        Some(group) => {
                            self.on[node as usize] = Some(group);
                            let view = self.views.entry(group).or_default();
                            view.retain(|member| *member != node);
                            view.push(node);
                            self.tell_view(group);
                        }
                        None => {
                            let act = self.nodes[node as usize].on_outside();
                            self.act(node, act);
                        }
                    }
                }
            }
        }

        fn turn(&mut self) {
            self.now = self.now + TURN;
            for node in 0..NODES {
                let Some(group) = self.on[node as usize] else { continue };
                let alive = self.has_quorum(group, node);
                if alive
                    && self.with(group, node).len() < self.views[&group].len()
                    && mix(&mut self.seed).is_multiple_of(4)
                {
                    let with = self.with(group, node);
                    let left: Vec<_> =
                        self.views[&group].iter().copied().filter(|m| !with.contains(m)).collect();
                    self.views.insert(group, with);
                    // Who was left out and is on that side still will be told so when it is heard again.
                    for out in left.into_iter().filter(|out| self.on[*out as usize] == Some(group)) {
                        self.nodes[out as usize].on_quorum(self.now, true);
                    }
                    self.tell_view(group);
                } else if !self.views[&group].contains(&node)
                    && self.views[&group].iter().any(|m| self.hear(*m, node))
                {
                    // Told that it is out: it tries to come back, here by whoever it hears.
                    let to = self.views[&group].iter().copied().find(|m| self.hear(*m, node));
                    to.into_iter().for_each(|to| self.act(node, Act::Move { to }));
                } else {
                    self.nodes[node as usize].on_quorum(self.now, !alive);
                }
            }
            for node in 0..NODES {
                if self.nodes[node as usize].deadline().is_some_and(|at| at <= self.now) {
                    let act = self.nodes[node as usize].on_tick(self.now);
                    act.into_iter().for_each(|act| self.act(node, act));
                }
            }
        }
    }

    /// Cuts and heals; true when nobody went the wrong way and in the end all are on one side and stay there.
    fn story(seed: u64, plant: Plant) -> bool {
        let mut world = World::new(seed, plant);
        for turn in 0..600 {
            if turn % 40 == 0 {
                let parts = 1 + mix(&mut world.seed) % 3;
                world.place = (0..NODES).map(|_| mix(&mut world.seed) % parts).collect();
            }
            world.turn();
        }
        world.place = vec![0; NODES as usize];
        (0..200).for_each(|_| world.turn());
        let (moves, side) = (world.moves, world.on[0]);
        (0..100).for_each(|_| world.turn());
        !world.is_wrong && side.is_some() && world.on.iter().all(|on| *on == side) && world.moves == moves
    }

    #[test]
    fn g01_sides_of_a_group_that_was_cut_apart_come_together_whatever_was_cut() {
        for seed in 0..2_000 {
            assert!(story(seed, Plant::NONE), "seed {seed}");
        }
    }

    #[cfg(feature = "planted-bugs")]
    #[test]
    fn g01_every_planted_bug_of_reunions_is_found() {
        for bug in [Planted::ReunionIgnoresSeniority, Planted::ReunionStaysSilent] {
            assert!((0..2_000).any(|seed| !story(seed, Plant::of(bug))), "{bug:?}");
        }
    }

    #[test]
    fn g01_the_generation_decides_which_side_is_senior_and_then_chance() {
        assert!(side(0, u64::MAX) < side(1, 0) && side(1, 5) < side(2, 5));
        assert_ne!(side(1, 5), side(1, 6));
        assert_eq!(generation_of(side(3, 12_345)), 3);
    }
}
