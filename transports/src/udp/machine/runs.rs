//! A set of numbers as runs.

use std::collections::BTreeMap;

/// Half-open runs, none touching another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// End by start.
    runs: BTreeMap<u64, u64>,
}

impl Runs {
    /// Adds every number from `start` to before `end`.
    pub(super) fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        // From behind: everything that begins at or before `end` and reaches `start`.
        while let Some((&at, &until)) = self.runs.range(..=end).next_back() {
            if until < start {
                break;
            }
            start = start.min(at);
            end = end.max(until);
            self.runs.remove(&at);
        }
        self.runs.insert(start, end);
    }

    /// Removes every number from `start` to before `end`.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        while let Some((&at, &until)) = self.runs.range(..end).next_back() {
            if until <= start || start >= end {
                return;
            }
            self.runs.remove(&at);
            if until > end {
                self.runs.insert(end, until);
            }
            if at < start {
                self.runs.insert(at, start);
            }
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(_, &end)| number < end)
    }

    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.runs.first_key_value().map(|(&start, &end)| (start, end))
    }

    pub(super) fn pop_first(&mut self) -> Option<(u64, u64)> {
        self.runs.pop_first()
    }

    /// Highest first.
    pub(super) fn descending(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs.iter().rev().map(|(&start, &end)| (start, end))
    }

    pub(super) fn ascending(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs.iter().map(|(&start, &end)| (start, end))
    }

    /// How many runs.
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }
}
