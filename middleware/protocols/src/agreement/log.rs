//! The log in memory: entries behind a base, and who takes part by which of them.
//!
//! Limits      the owner compacts it; see `Config::log_entries_max` and `Config::log_bytes_max`.

use std::collections::VecDeque;
use std::sync::Arc;

use super::message::{Content, Entry, Members};

#[derive(Debug)]
pub(super) struct Log {
    /// The place before the first entry, and its term.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Who takes part from which place on; the first one is at or before the base.
    memberships: Vec<(u64, Arc<Members>)>,
}

impl Log {
    pub(super) fn new(base: (u64, u64), members: Arc<Members>) -> Self {
        Self { base, entries: VecDeque::new(), bytes: 0, memberships: vec![(base.0, members)] }
    }

    /// The place before the first entry.
    pub(super) fn base(&self) -> u64 {
        self.base.0
    }

    /// The last entry's place.
    pub(super) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub(super) fn last_term(&self) -> u64 {
        self.entries.back().map_or(self.base.1, |entry| entry.term)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The term at a place; `None` before the base and behind the end.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 { Some(self.base.1) } else { self.get(index).map(|entry| entry.term) }
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        if let Content::Members(members) = &entry.content {
            self.memberships.push((self.last() + 1, members.clone()));
        }
        self.entries.push_back(entry);
    }

    /// Drops everything from a place on.
    pub(super) fn truncate_from(&mut self, index: u64) {
        while self.last() >= index.max(self.base.0 + 1) {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| entry.bytes());
        }
        self.memberships.retain(|(at, _)| *at < index || *at <= self.base.0);
    }

    /// Drops everything up to a place, which becomes the base; it must be in the log.
    pub(super) fn compact_to(&mut self, index: u64) {
        let Some(term) = self.term_at(index) else { return };
        for _ in self.base.0..index {
            self.bytes -= self.entries.pop_front().map_or(0, |entry| entry.bytes());
        }
        self.base = (index, term);
        let before = self.memberships.iter().take_while(|(at, _)| *at <= index).count();
        self.memberships.drain(..before.saturating_sub(1));
    }

    /// Entries from a place on, as many as fit, at least one if there is one.
    pub(super) fn run_from(&self, index: u64, bytes_max: usize, entries_max: usize) -> Arc<[Entry]> {
        let offset = usize::try_from(index.saturating_sub(self.base.0 + 1)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut count = 0;
        let rest = self.entries.len().saturating_sub(offset);
        for entry in self.entries.iter().skip(offset).take(entries_max) {
            bytes += entry.bytes();
            if count > 0 && bytes > bytes_max {
                break;
            }
            count += 1;
        }
        self.entries.range(self.entries.len() - rest..self.entries.len() - rest + count).cloned().collect()
    }

    /// Who takes part by the last entry that says so.
    pub(super) fn members(&self) -> &Arc<Members> {
        &self.memberships[self.memberships.len() - 1].1
    }

    /// The place of that entry.
    pub(super) fn members_since(&self) -> u64 {
        self.memberships[self.memberships.len() - 1].0
    }

    /// Who takes part by the entries up to a place.
    pub(super) fn members_at(&self, index: u64) -> &Arc<Members> {
        let found = self.memberships.iter().rev().find(|(at, _)| *at <= index);
        &found.unwrap_or(&self.memberships[0]).1
    }
}
