//! The one fault model: what becomes of a message, decided from a seed.
//!
//! Guarantee   the same calls with the same seed give the same answers on every machine: integers, basic IEEE
//!             arithmetic and ordered maps only; no clock, no global randomness, no hash order, no libm.
//! Method      the caller owns time and queues; [`Network::fate`] says for one message when its copies arrive (none,
//!             one or two), [`Network::stream_fate`] the same for bytes of a reliable stream.
//! Cost        no allocation per message: `fate` walks the ordered maps that are not empty. Only links with state
//!             (bandwidth, burst loss, FIFO) remember anything, one small entry per link that was used.
//! Limits      [`COPIES_MAX`] copies of a message; [`RETRANSMISSIONS_MAX`] losses in a row break a stream.
//! Source      burst loss: Gilbert 1960, Elliott 1963. Retransmission: RFC 6298's doubling timer, without its estimator.

mod clock;
mod link;
mod rng;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

pub use clock::Clock;
pub use link::{Bandwidth, LatencyModel, LinkModel, LossModel};
pub use rng::{Chance, Rng};
pub use trace::TraceHash;

use link::nanos;

/// The most copies of one message that arrive: the message and one duplicate.
pub const COPIES_MAX: usize = 2;

/// Losses in a row after which a stream gives up and breaks; six doublings of the first timeout.
pub const RETRANSMISSIONS_MAX: u32 = 6;

/// Why no copy of a message arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loss {
    /// A partition or an isolated node lies between.
    Cut,
    /// The link lost it.
    Lost,
    /// The link's queue was full.
    Congested,
}

/// One copy that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// From the sending to the arrival, in nanoseconds.
    pub delay_nanos: u64,
    /// How its bytes were damaged; `None` when they are intact.
    pub corruption: Option<Corruption>,
}

/// Which bit of a message is flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Corruption(u64);

impl Corruption {
    /// Flips one bit of `bytes`; an empty message cannot be damaged.
    pub fn apply(self, bytes: &mut [u8]) {
        let bits = (bytes.len() as u64).saturating_mul(8);
        if bits > 0 {
            let bit = self.0 % bits;
            // The quotient is below `bytes.len()`, so it fits.
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
    }
}

/// What becomes of one message: its arriving copies as a slice, in no particular order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    copies: [Delivery; COPIES_MAX],
    count: u8,
    loss: Option<Loss>,
}

impl Fate {
    /// Why nothing arrives; `None` when something does.
    pub const fn loss(&self) -> Option<Loss> {
        self.loss
    }

    const fn lost(loss: Loss) -> Self {
        Self { copies: [ON_TIME; COPIES_MAX], count: 0, loss: Some(loss) }
    }

    const fn one(delivery: Delivery) -> Self {
        Self { copies: [delivery, ON_TIME], count: 1, loss: None }
    }
}

impl Deref for Fate {
    type Target = [Delivery];
    fn deref(&self) -> &[Delivery] {
        &self.copies[..usize::from(self.count)]
    }
}

/// What becomes of bytes that were written to a reliable stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFate {
    /// They arrive, after losses were mended by retransmission.
    Arrives(Delivery),
    /// The path is cut: nothing arrives until it heals. Ask again then.
    Stalls,
    /// The connection breaks on both sides.
    Resets,
}

/// Links, partitions and isolated nodes of a network of `N`.
///
/// Everything is directed: a link from `a` to `b` says nothing about the way back. `N` is a node's id or an
/// address's number.
#[derive(Debug, Clone)]
pub struct Network<N: Ord + Copy> {
    default: LinkModel,
    links: BTreeMap<(N, N), LinkModel>,
    cuts: BTreeSet<(N, N)>,
    mute: BTreeSet<N>,
    deaf: BTreeSet<N>,
    states: BTreeMap<(N, N), LinkState>,
}

/// What a link with state remembers.
#[derive(Debug, Clone, Copy, Default)]
struct LinkState {
    /// When the last byte so far has left the queue.
    busy_until: u64,
    /// The latest arrival so far, for FIFO.
    arrived: u64,
    /// Inside a burst of losses.
    burst: bool,
}

impl<N: Ord + Copy> Network<N> {
    /// A whole network in which every link behaves like `default`.
    pub const fn new(default: LinkModel) -> Self {
        Self {
            default,
            links: BTreeMap::new(),
            cuts: BTreeSet::new(),
            mute: BTreeSet::new(),
            deaf: BTreeSet::new(),
            states: BTreeMap::new(),
        }
    }

    /// Changes the behaviour of every link that has none of its own.
    pub fn set_default(&mut self, model: LinkModel) {
        self.default = model;
    }

    /// Gives the link from `from` to `to` a behaviour of its own.
    pub fn set_link(&mut self, from: N, to: N, model: LinkModel) {
        self.links.insert((from, to), model);
    }

    /// Gives both directions between `a` and `b` a behaviour of their own.
    pub fn set_links(&mut self, a: N, b: N, model: LinkModel) {
        self.set_link(a, b, model);
        self.set_link(b, a, model);
    }

    /// Returns the link from `from` to `to` to the default.
    pub fn reset_link(&mut self, from: N, to: N) {
        self.links.remove(&(from, to));
    }

    /// Returns every link to the default.
    pub fn reset_links(&mut self) {
        self.links.clear();
    }

    /// The behaviour of the link from `from` to `to`, cut or not.
    pub fn link(&self, from: N, to: N) -> &LinkModel {
        if self.links.is_empty() {
            return &self.default;
        }
        self.links.get(&(from, to)).unwrap_or(&self.default)
    }

    /// Cuts both directions between `a` and `b`.
    pub fn cut(&mut self, a: N, b: N) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts the way from `from` to `to` only.
    pub fn cut_one_way(&mut self, from: N, to: N) {
        if from != to {
            self.cuts.insert((from, to));
        }
    }

    /// Partitions the network: members of different groups no longer reach each other. Cuts that stand remain,
    /// and a node in no group or in several keeps its other links, which makes partial partitions.
    pub fn partition(&mut self, groups: &[&[N]]) {
        for (index, group) in groups.iter().enumerate() {
            for other in &groups[index + 1..] {
                for &a in *group {
                    for &b in *other {
                        self.cut(a, b);
                    }
                }
            }
        }
    }

    /// Cuts the ways from every one of `from` to every one of `to`, and not the ways back.
    pub fn partition_one_way(&mut self, from: &[N], to: &[N]) {
        for &a in from {
            for &b in to {
                self.cut_one_way(a, b);
            }
        }
    }

    /// Cuts `node` off in both directions, until [`rejoin`](Self::rejoin).
    pub fn isolate(&mut self, node: N) {
        self.mute(node);
        self.deafen(node);
    }

    /// Nothing that `node` sends arrives, until [`rejoin`](Self::rejoin).
    pub fn mute(&mut self, node: N) {
        self.mute.insert(node);
    }

    /// Nothing reaches `node`, until [`rejoin`](Self::rejoin).
    pub fn deafen(&mut self, node: N) {
        self.deaf.insert(node);
    }

    /// Ends isolation, muteness and deafness of `node`; cuts remain.
    pub fn rejoin(&mut self, node: N) {
        self.mute.remove(&node);
        self.deaf.remove(&node);
    }

    /// Mends both directions between `a` and `b`.
    pub fn heal(&mut self, a: N, b: N) {
        self.heal_one_way(a, b);
        self.heal_one_way(b, a);
    }

    /// Mends the way from `from` to `to`.
    pub fn heal_one_way(&mut self, from: N, to: N) {
        self.cuts.remove(&(from, to));
    }

    /// Mends every cut and lets every node rejoin; links keep their behaviour.
    pub fn heal_all(&mut self) {
        self.cuts.clear();
        self.mute.clear();
        self.deaf.clear();
    }

    /// True when nothing is cut and nobody is isolated.
    pub fn is_whole(&self) -> bool {
        self.cuts.is_empty() && self.mute.is_empty() && self.deaf.is_empty()
    }

    /// True when no cut and no isolation lies on the way from `from` to `to`. A node always reaches itself.
    pub fn reaches(&self, from: N, to: N) -> bool {
        from == to
            || ((self.mute.is_empty() || !self.mute.contains(&from))
                && (self.deaf.is_empty() || !self.deaf.contains(&to))
                && (self.cuts.is_empty() || !self.cuts.contains(&(from, to))))
    }

    /// Decides what becomes of a message of `bytes` bytes sent now. A message to oneself arrives at once.
    ///
    /// `now` in nanoseconds, never going back on the same link.
    pub fn fate(&mut self, now: u64, from: N, to: N, bytes: usize, rng: &mut Rng) -> Fate {
        if from == to {
            return Fate::one(ON_TIME);
        }
        if !self.reaches(from, to) {
            return Fate::lost(Loss::Cut);
        }
        let model = *self.link(from, to);
        let mut state =
            if model.has_state() { Some(self.states.entry((from, to)).or_default()) } else { None };

        let mut queued = 0;
        if let (Some(bandwidth), Some(state)) = (model.bandwidth, state.as_deref_mut()) {
            if state.busy_until.saturating_sub(now) > nanos(bandwidth.queue) {
                return Fate::lost(Loss::Congested);
            }
            queued = state.transmit(now, bytes, bandwidth);
        }
        if is_lost(model.loss, state.as_deref_mut(), rng) {
            return Fate::lost(Loss::Lost);
        }

        let mut delay = queued.saturating_add(model.latency.sample(rng));
        if let (true, Some(state)) = (model.fifo, state) {
            state.arrived = state.arrived.max(now.saturating_add(delay));
            delay = state.arrived - now;
        }
        // Held back after FIFO was enforced: later messages do not wait for it, they overtake it.
        if rng.chance(model.reordering) {
            delay = delay.saturating_add(rng.between(0, nanos(model.reordering_delay)));
        }
        let mut fate = Fate::one(Delivery { delay_nanos: delay, corruption: corruption(&model, rng) });
        if rng.chance(model.duplication) {
            let delay_nanos = queued.saturating_add(model.latency.sample(rng));
            fate.copies[1] = Delivery { delay_nanos, corruption: corruption(&model, rng) };
            fate.count = 2;
        }
        fate
    }

    /// Decides what becomes of `bytes` bytes written now to a reliable stream from `from` to `to`.
    ///
    /// Order is kept by the caller, who lets nothing arrive before what was written earlier. Losses cost
    /// retransmission timeouts; too many in a row, and chance by [`LinkModel::reset`], break the stream.
    pub fn stream_fate(&mut self, now: u64, from: N, to: N, bytes: usize, rng: &mut Rng) -> StreamFate {
        if from == to {
            return StreamFate::Arrives(ON_TIME);
        }
        if !self.reaches(from, to) {
            return StreamFate::Stalls;
        }
        let model = *self.link(from, to);
        let mut state =
            if model.has_state() { Some(self.states.entry((from, to)).or_default()) } else { None };
        if rng.chance(model.reset) {
            return StreamFate::Resets;
        }
        let mut delay = match (model.bandwidth, state.as_deref_mut()) {
            (Some(bandwidth), Some(state)) => state.transmit(now, bytes, bandwidth),
            _ => 0,
        };
        let mut timeout = nanos(model.retransmission_timeout);
        let mut losses = 0;
        while is_lost(model.loss, state.as_deref_mut(), rng) {
            losses += 1;
            if losses > RETRANSMISSIONS_MAX {
                return StreamFate::Resets;
            }
            delay = delay.saturating_add(timeout);
            timeout = timeout.saturating_mul(2);
        }
        delay = delay.saturating_add(model.latency.sample(rng));
        StreamFate::Arrives(Delivery { delay_nanos: delay, corruption: corruption(&model, rng) })
    }
}

impl<N: Ord + Copy> Default for Network<N> {
    fn default() -> Self {
        Self::new(LinkModel::PERFECT)
    }
}

impl LinkState {
    /// Queues `bytes` behind what is leaving and returns the nanoseconds until the last of them has left.
    fn transmit(&mut self, now: u64, bytes: usize, bandwidth: Bandwidth) -> u64 {
        let spent = (bytes as u128 * 1_000_000_000)
            .checked_div(u128::from(bandwidth.bytes_per_second))
            .and_then(|nanos| u64::try_from(nanos).ok())
            .unwrap_or(u64::MAX);
        self.busy_until = self.busy_until.max(now).saturating_add(spent);
        self.busy_until - now
    }
}

/// Draws whether one message is lost; `state` is there whenever the model needs it.
fn is_lost(model: LossModel, state: Option<&mut LinkState>, rng: &mut Rng) -> bool {
    match (model, state) {
        (LossModel::Independent(chance), _) => rng.chance(chance),
        (LossModel::Bursts { begin, end, loss }, Some(state)) => {
            let changes = rng.chance(if state.burst { end } else { begin });
            state.burst ^= changes;
            state.burst && rng.chance(loss)
        }
        (LossModel::Bursts { .. }, None) => false,
    }
}

fn corruption(model: &LinkModel, rng: &mut Rng) -> Option<Corruption> {
    rng.chance(model.corruption).then(|| Corruption(rng.next_u64()))
}

const ON_TIME: Delivery = Delivery { delay_nanos: 0, corruption: None };

#[cfg(test)]
mod tests;
