//! A growing partial order with all its consequences, and the reasons for them.
//!
//! Method      the transitive closure as a matrix of bits, forwards only; adding a pair costs n²/64 at most. The pairs that
//!             were added are kept beside it, so that a contradiction can be told as the shortest circle of reasons.

use std::collections::VecDeque;

/// Which of `n` things come before which others.
#[derive(Clone)]
pub(super) struct Order {
    words: usize,
    /// A row of bits for each thing: what comes after it.
    after: Vec<u64>,
    reasons: Vec<Vec<(usize, Reason)>>,
}

/// Why one thing comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// One process did one after the other.
    Process,
    /// One ended before the other began.
    Time,
    /// One read what the other wrote.
    Read,
    /// Whoever read the other one's value would have seen this one's.
    Overwritten,
    /// It did not see what the other one wrote.
    Unseen,
}

impl Reason {
    const fn text(self) -> &'static str {
        match self {
            Self::Process => "in the order of its process",
            Self::Time => "ended before the other began",
            Self::Read => "was read by",
            Self::Overwritten => "was overwritten for a reader by",
            Self::Unseen => "did not see",
        }
    }
}

impl Order {
    pub(super) fn new(things: usize) -> Self {
        let words = things.div_ceil(64);
        Self { words, after: vec![0; words * things], reasons: vec![Vec::new(); things] }
    }

    pub(super) fn is_before(&self, one: usize, other: usize) -> bool {
        self.after[one * self.words + other / 64] >> (other % 64) & 1 == 1
    }

    /// Puts `one` before `other`, and whatever follows from it. `Err` with a circle of things, and why each comes before
    /// the next, if `other` is before `one` already.
    pub(super) fn add(&mut self, one: usize, other: usize, reason: Reason) -> Result<bool, Circle> {
        if self.is_before(one, other) {
            return Ok(false);
        }
        self.reasons[one].push((other, reason));
        if one == other || self.is_before(other, one) {
            return Err(self.circle(one, other));
        }
        let (words, others) = (self.words, self.row(other).to_vec());
        for thing in 0..self.reasons.len() {
            if (thing == one || self.is_before(thing, one)) && !self.is_before(thing, other) {
                let row = &mut self.after[thing * words..(thing + 1) * words];
                row.iter_mut().zip(&others).for_each(|(word, more)| *word |= more);
                row[other / 64] |= 1 << (other % 64);
            }
        }
        Ok(true)
    }

    pub(super) fn bytes(&self) -> usize {
        self.after.len() * size_of::<u64>()
    }

    fn row(&self, thing: usize) -> &[u64] {
        &self.after[thing * self.words..(thing + 1) * self.words]
    }

    /// The shortest way from `other` back to `one`, which comes before it.
    fn circle(&self, one: usize, other: usize) -> Circle {
        let mut came_from: Vec<Option<(usize, Reason)>> = vec![None; self.reasons.len()];
        let mut line = VecDeque::from([other]);
        while let Some(thing) = line.pop_front() {
            if thing == one {
                break;
            }
            for &(next, reason) in &self.reasons[thing] {
                if next != other && came_from[next].is_none() {
                    came_from[next] = Some((thing, reason));
                    line.push_back(next);
                }
            }
        }
        let mut steps = Vec::new();
        let mut thing = one;
        while let Some((from, reason)) = came_from[thing] {
            steps.push((from, reason));
            thing = from;
        }
        steps.reverse();
        // What was added last closes it.
        let last = self.reasons[one].last().map_or(Reason::Process, |(_, reason)| *reason);
        steps.push((one, last));
        Circle(steps)
    }
}

/// Things that would each have to come before the next one, and the last before the first.
#[derive(Debug)]
pub(super) struct Circle(Vec<(usize, Reason)>);

impl Circle {
    pub(super) fn things(&self) -> Vec<usize> {
        self.0.iter().map(|(thing, _)| *thing).collect()
    }

    pub(super) fn text(&self) -> String {
        let steps: Vec<_> =
            self.0.iter().map(|(thing, reason)| format!("{thing} {}", reason.text())).collect();
        let first = self.0.first().map_or(0, |(thing, _)| *thing);
        format!("{}, {first}", steps.join(", "))
    }
}
