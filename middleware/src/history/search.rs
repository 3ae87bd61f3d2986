//! One order of all operations that explains what each returned: linearizability and sequential consistency.
//!
//! Method      operations stand in lanes, each in an order that is kept: that of a process for sequential consistency,
//!             disjoint intervals in time for linearizability. A search takes the next operation of some lane, as long as the
//!             specification allows what it returned, and goes back where it cannot go on. What it has seen is named by
//!             how far each lane is and the state, and is not entered twice. A read that fits is taken without looking
//!             further: it changes nothing, so that no later place can be better for it.
//! Unknown     operations that did not return stand in no lane: they are taken at any time after their call, or never.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};

use super::object::Specification;
use super::record::{History, Operation};
use super::verdict::{Limits, Model, Rejection, Undecided, Verdict, violated};

/// Whether the operations can be put into one order that explains what each returned and in which an operation that had
/// returned before another was called comes first.
///
/// # Errors
/// [`Violated`](Rejection::Violated): the first of its operations cannot return what it did, given all that had returned
/// before; the others overlap it. [`Undecided`](Rejection::Undecided): the search took too long.
pub fn linearizable<S: Specification>(
    specification: &S,
    history: &History<S::Call, S::Return>,
    limits: &Limits,
) -> Verdict {
    let all: Vec<usize> = (0..history.operations.len()).collect();
    Search::in_time(specification, &history.operations, &all).run(Model::Linearizable, limits)
}

/// As [`linearizable`], for an object that consists of independent objects, each with a `key` of its own: a history is
/// linearizable exactly when those of all keys are (Herlihy and Wing's locality), and short ones are checked much faster.
///
/// # Errors
/// As [`linearizable`], of the first key that is rejected.
pub fn linearizable_by_key<S: Specification, K: Ord>(
    specification: &S,
    history: &History<S::Call, S::Return>,
    key: impl Fn(&S::Call) -> K,
    limits: &Limits,
) -> Verdict {
    let mut keys: BTreeMap<K, Vec<usize>> = BTreeMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        keys.entry(key(&operation.call)).or_default().push(index);
    }
    keys.values().try_for_each(|indices| {
        Search::in_time(specification, &history.operations, indices).run(Model::Linearizable, limits)
    })
}

/// Whether the operations can be put into one order that explains what each returned and keeps the order of each process.
/// What has not returned may take effect after what its process did next.
///
/// # Errors
/// [`Violated`](Rejection::Violated): its operations are those at which the longest order ended, one of each process.
/// [`Undecided`](Rejection::Undecided): the search took too long.
pub fn sequential<S: Specification>(
    specification: &S,
    history: &History<S::Call, S::Return>,
    limits: &Limits,
) -> Verdict {
    Search::by_process(specification, &history.operations).run(Model::Sequential, limits)
}

struct Search<'a, S: Specification> {
    specification: &'a S,
    operations: &'a [Operation<S::Call, S::Return>],
    /// Those that returned, in orders that are kept.
    lanes: Vec<Vec<usize>>,
    /// Those that did not.
    unknown: Vec<Unknown>,
    is_in_time: bool,
}

struct Unknown {
    operation: usize,
    /// Where the order of processes is kept: it comes after so many of this lane.
    after: Option<(usize, usize)>,
}

/// How far the search is.
struct Place {
    /// How many of each lane were taken, then a bit for each unknown operation.
    taken: Vec<u32>,
    left: usize,
}

struct Frame<T> {
    state: T,
    /// Its choices begin here; they end where those of the next frame begin.
    choices: usize,
    next: usize,
    /// What led here.
    by: Option<Choice>,
}

/// An operation that may be taken next.
#[derive(Clone, Copy)]
struct Choice {
    operation: usize,
    from: From,
}

#[derive(Clone, Copy)]
enum From {
    Lane(usize),
    Unknown(usize),
}

/// Where the search came furthest before it could not go on.
#[derive(Default)]
struct Furthest {
    reached: Option<u64>,
    operations: Vec<usize>,
}

impl<'a, S: Specification> Search<'a, S> {
    fn in_time(
        specification: &'a S,
        operations: &'a [Operation<S::Call, S::Return>],
        indices: &[usize],
    ) -> Self {
        let mut sorted = indices.to_vec();
        sorted.sort_by_key(|index| operations[*index].called);
        let mut lanes: Vec<Vec<usize>> = Vec::new();
        // When the last one of each lane returned.
        let mut ends: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        let mut unknown = Vec::new();
        for index in sorted {
            let operation = &operations[index];
            let Some((end, _)) = operation.returned else {
                unknown.push(Unknown { operation: index, after: None });
                continue;
            };
            let lane = match ends.peek() {
                Some(Reverse((end, lane))) if *end < operation.called => {
                    let lane = *lane;
                    ends.pop();
                    lane
                }
                _ => {
                    lanes.push(Vec::new());
                    lanes.len() - 1
                }
            };
            lanes[lane].push(index);
            ends.push(Reverse((end, lane)));
        }
        Self { specification, operations, lanes, unknown, is_in_time: true }.without_unknown_reads()
    }

    fn by_process(specification: &'a S, operations: &'a [Operation<S::Call, S::Return>]) -> Self {
        let mut processes: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, operation) in operations.iter().enumerate() {
            processes.entry(operation.process).or_default().push(index);
        }
        let (mut lanes, mut unknown) = (Vec::new(), Vec::new());
        for (number, mut indices) in processes.into_values().enumerate() {
            indices.sort_by_key(|index| operations[*index].called);
            let mut lane = Vec::new();
            for index in indices {
                match operations[index].returned {
                    Some(_) => lane.push(index),
                    None => unknown.push(Unknown { operation: index, after: Some((number, lane.len())) }),
                }
            }
            lanes.push(lane);
        }
        Self { specification, operations, lanes, unknown, is_in_time: false }.without_unknown_reads()
    }

    fn without_unknown_reads(mut self) -> Self {
        let (specification, operations) = (self.specification, self.operations);
        self.unknown.retain(|unknown| !specification.is_read(&operations[unknown.operation].call));
        self
    }

    fn run(&self, model: Model, limits: &Limits) -> Verdict {
        let left = self.lanes.iter().map(Vec::len).sum();
        if left == 0 {
            return Ok(());
        }
        let words = self.lanes.len() + self.unknown.len().div_ceil(32);
        let mut place = Place { taken: vec![0; words], left };
        let mut seen: HashSet<(Box<[u32]>, S::State)> = HashSet::new();
        let mut furthest = Furthest::default();
        let mut choices = Vec::new();
        let mut steps = 0;
        let first = Frame { state: self.specification.initial(), choices: 0, next: 0, by: None };
        self.choose(&place, &first.state, &mut choices, &mut furthest);
        let mut frames = vec![first];
        while let Some(frame) = frames.last_mut() {
            let Some(&choice) = choices.get(frame.next) else {
                choices.truncate(frame.choices);
                if let Some(by) = frame.by {
                    self.give_back(&mut place, by);
                }
                frames.pop();
                continue;
            };
            frame.next += 1;
            let Some(state) = self.step(&frame.state, choice) else { continue };
            steps += 1;
            if steps > limits.steps_max {
                return Err(Rejection::Undecided(Undecided::Steps(limits.steps_max)));
            }
            self.take(&mut place, choice);
            if place.left == 0 {
                return Ok(());
            }
            let start = choices.len();
            self.choose(&place, &state, &mut choices, &mut furthest);
            // Where there is no choice there is nothing to remember.
            let is_new = choices.len() - start < 2
                || seen.insert((place.taken.clone().into_boxed_slice(), state.clone()));
            if is_new {
                frames.push(Frame { state, choices: start, next: start, by: Some(choice) });
            } else {
                choices.truncate(start);
                self.give_back(&mut place, choice);
            }
        }
        Err(self.explain(model, furthest))
    }

    /// Appends what may be taken next. A read that fits is the only one.
    fn choose(&self, place: &Place, state: &S::State, out: &mut Vec<Choice>, furthest: &mut Furthest) {
        let start = out.len();
        let waiting = self.lanes.iter().zip(&place.taken).enumerate().filter_map(|(lane, (line, taken))| {
            let operation = *line.get(*taken as usize)?;
            Some(Choice { operation, from: From::Lane(lane) })
        });
        // Whatever was called after this one's return has to wait for it.
        let Some(earliest) = waiting.clone().min_by_key(|choice| self.end(choice.operation)) else { return };
        let earliest_end = self.end(earliest.operation);
        let reached = if self.is_in_time { earliest_end } else { u64::MAX - place.left as u64 };
        if furthest.reached < Some(reached) {
            furthest.reached = Some(reached);
            let stuck = waiting.clone().map(|choice| choice.operation);
            furthest.operations = stuck.filter(|operation| *operation != earliest.operation).collect();
            furthest.operations.insert(0, earliest.operation);
        }
        let may_come =
            |operation: usize| !self.is_in_time || self.operations[operation].called <= earliest_end;
        for choice in waiting.filter(|choice| may_come(choice.operation)) {
            let is_read = self.specification.is_read(&self.operations[choice.operation].call);
            if is_read && self.step(state, choice).is_some() {
                out.truncate(start);
                out.push(choice);
                return;
            }
            out.push(choice);
        }
        // Who returned first is most often the first.
        out[start..].sort_by_key(|choice| self.end(choice.operation));
        for (number, unknown) in self.unknown.iter().enumerate() {
            let comes_after = unknown.after.is_none_or(|(lane, count)| place.taken[lane] as usize >= count);
            let (word, bit) = self.bit(number);
            if comes_after && place.taken[word] & bit == 0 && may_come(unknown.operation) {
                out.push(Choice { operation: unknown.operation, from: From::Unknown(number) });
            }
        }
    }

    /// The state after a choice, if it may be made. An unknown operation that would change nothing need not be.
    fn step(&self, state: &S::State, choice: Choice) -> Option<S::State> {
        let operation = &self.operations[choice.operation];
        let returned = operation.returned.as_ref().map(|(_, value)| value);
        let next = self.specification.step(state, &operation.call, returned)?;
        (operation.returned.is_some() || next != *state).then_some(next)
    }

    fn take(&self, place: &mut Place, choice: Choice) {
        match choice.from {
            From::Lane(lane) => {
                place.taken[lane] += 1;
                place.left -= 1;
            }
            From::Unknown(number) => {
                let (word, bit) = self.bit(number);
                place.taken[word] |= bit;
            }
        }
    }

    fn give_back(&self, place: &mut Place, choice: Choice) {
        match choice.from {
            From::Lane(lane) => {
                place.taken[lane] -= 1;
                place.left += 1;
            }
            From::Unknown(number) => {
                let (word, bit) = self.bit(number);
                place.taken[word] &= !bit;
            }
        }
    }

    const fn bit(&self, unknown: usize) -> (usize, u32) {
        (self.lanes.len() + unknown / 32, 1 << (unknown % 32))
    }

    fn end(&self, operation: usize) -> u64 {
        self.operations[operation].returned.as_ref().map_or(u64::MAX, |(end, _)| *end)
    }

    fn explain(&self, model: Model, furthest: Furthest) -> Rejection {
        let Furthest { mut operations, .. } = furthest;
        let why = if self.is_in_time {
            let called = |operation: &usize| self.operations[*operation].called;
            let end = operations.first().map_or(0, |first| self.end(*first));
            operations.retain(|operation| called(operation) <= end);
            "nothing that was called before the end of the first of these explains what it returned"
        } else {
            "no order of what came before explains what any of these returned"
        };
        violated(model, operations, why)
    }
}
