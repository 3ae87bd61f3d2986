//! How far replicas are apart, and whether they stay within bounds: continuous consistency.
//!
//! Method      a *conit* is a unit of data for which bounds are given. A write of it has a weight: by how much it changes
//!             what is measured. Of a replica it is known which writes it has taken in and which of these are tentative, that
//!             is, may yet change their place in the order. What a reader may expect follows from that at every read.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::replicas::WriteId;
use super::verdict::{Model, Verdict, violated};

/// Writes of conits, how they spread, and reads, in the order of time. Verdicts name events by their place, counted from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct ConitLog<C> {
    events: Vec<(u64, Event<C>)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Event<C> {
    Accepted { replica: u64, conit: C, write: WriteId, weight: f64 },
    TakenIn { replica: u64, write: WriteId },
    Committed { replica: u64, write: WriteId },
    Read { replica: u64, conit: C },
}

/// How far a replica's copy of a conit may be from what all replicas together have accepted. `None`: any distance.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bounds {
    /// Numerical deviation: the weight of writes that it has not taken in.
    pub weight_max: Option<f64>,
    /// Numerical deviation: how many these are.
    pub unseen_max: Option<usize>,
    /// Order deviation: how many of the writes that it has taken in are tentative.
    pub tentative_max: Option<usize>,
    /// Staleness: for how long any write has been accepted elsewhere that it has not taken in; in the log's units of time.
    pub staleness_max: Option<u64>,
}

/// How far a replica's copy of a conit is from what all replicas together have accepted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Deviation {
    /// The weight of writes that it has not taken in.
    pub weight: f64,
    /// How many these are.
    pub unseen: usize,
    /// Of those that it has taken in, how many are tentative.
    pub tentative: usize,
    /// Since when the oldest of those that it has not taken in has been accepted elsewhere; 0 when there is none.
    pub staleness: u64,
}

impl<C> Default for ConitLog<C> {
    fn default() -> Self {
        Self { events: Vec::new() }
    }
}

impl<C> ConitLog<C> {
    /// `replica` accepted a write from a client: it has taken it in, tentatively.
    pub fn accepted(&mut self, now: u64, replica: u64, conit: C, write: WriteId, weight: f64) {
        self.events.push((now, Event::Accepted { replica, conit, write, weight }));
    }

    /// `replica` took in a write of another one, tentatively.
    pub fn taken_in(&mut self, now: u64, replica: u64, write: WriteId) {
        self.events.push((now, Event::TakenIn { replica, write }));
    }

    /// The place of a write in the order is final at `replica`.
    pub fn committed(&mut self, now: u64, replica: u64, write: WriteId) {
        self.events.push((now, Event::Committed { replica, write }));
    }

    /// A client read `conit` at `replica`.
    pub fn read(&mut self, now: u64, replica: u64, conit: C) {
        self.events.push((now, Event::Read { replica, conit }));
    }
}

impl<C: Clone + Eq + Hash> ConitLog<C> {
    /// How far `replica` is from all others at the end of the log.
    pub fn deviation(&self, replica: u64, conit: &C) -> Deviation {
        let mut spread = Spread::default();
        self.events.iter().enumerate().for_each(|(at, event)| spread.take(at, event));
        let now = self.events.last().map_or(0, |(now, _)| *now);
        spread.deviation(now, replica, conit).0
    }
}

/// Whether at every read the replica was within `bounds` (Yu and Vahdat 2002).
///
/// # Errors
/// [`Violated`](super::Rejection::Violated): the read, and the writes that make it deviate.
pub fn continuous<C: Clone + Eq + Hash>(log: &ConitLog<C>, bounds: &Bounds) -> Verdict {
    let mut spread = Spread::default();
    for (at, event) in log.events.iter().enumerate() {
        spread.take(at, event);
        let (now, Event::Read { replica, conit }) = event else { continue };
        let (deviation, unseen, tentative) = spread.deviation(*now, *replica, conit);
        let Deviation { weight, staleness, .. } = deviation;
        let (why, writes) = if bounds.weight_max.is_some_and(|max| weight > max) {
            (format!("writes of weight {weight} are missing"), unseen)
        } else if bounds.unseen_max.is_some_and(|max| unseen.len() > max) {
            (format!("{} writes are missing", unseen.len()), unseen)
        } else if bounds.staleness_max.is_some_and(|max| staleness > max) {
            (format!("a write is missing since {staleness}"), unseen)
        } else if bounds.tentative_max.is_some_and(|max| tentative.len() > max) {
            (format!("{} writes are tentative", tentative.len()), tentative)
        } else {
            continue;
        };
        let operations = [at].into_iter().chain(writes).collect();
        return Err(violated(Model::Continuous, operations, why));
    }
    Ok(())
}

/// Which replica has what.
struct Spread<C> {
    /// Of each write: where in the log it was accepted, when, its weight.
    writes: HashMap<C, BTreeMap<WriteId, (usize, u64, f64)>>,
    /// Whether a replica that has taken it in knows its place.
    taken: BTreeMap<(WriteId, u64), bool>,
}

impl<C> Default for Spread<C> {
    fn default() -> Self {
        Self { writes: HashMap::new(), taken: BTreeMap::new() }
    }
}

impl<C: Clone + Eq + Hash> Spread<C> {
    fn take(&mut self, at: usize, (now, event): &(u64, Event<C>)) {
        match event {
            Event::Accepted { replica, conit, write, weight } => {
                self.writes.entry(conit.clone()).or_default().insert(*write, (at, *now, *weight));
                self.taken.entry((*write, *replica)).or_default();
            }
            Event::TakenIn { replica, write } => {
                self.taken.entry((*write, *replica)).or_default();
            }
            Event::Committed { replica, write } => {
                self.taken.insert((*write, *replica), true);
            }
            Event::Read { .. } => {}
        }
    }

    /// Also where the unseen and the tentative writes were accepted.
    fn deviation(&self, now: u64, replica: u64, conit: &C) -> (Deviation, Vec<usize>, Vec<usize>) {
        let mut deviation = Deviation::default();
        let (mut unseen, mut tentative) = (Vec::new(), Vec::new());
        for (write, (at, accepted, weight)) in self.writes.get(conit).into_iter().flatten() {
            match self.taken.get(&(*write, replica)) {
                Some(true) => {}
                Some(false) => tentative.push(*at),
                None => {
                    unseen.push(*at);
                    deviation.weight += weight.abs();
                    deviation.staleness = deviation.staleness.max(now.saturating_sub(*accepted));
                }
            }
        }
        (deviation.unseen, deviation.tentative) = (unseen.len(), tentative.len());
        (deviation, unseen, tentative)
    }
}
