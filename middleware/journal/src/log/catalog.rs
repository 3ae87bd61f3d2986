//! What a log holds and where, shared by its owner and its readers.
//!
//! Limits      two numbers for each segment, and the places of records in the segment that is written to. The places of
//!             the others are read from their footers when they are wanted, and those of a few are kept; so memory does
//!             not grow with the records.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::{Position, SEGMENT_HEADER_BYTES};

pub(crate) struct Catalog(Mutex<Contents>);

pub(crate) struct Contents {
    /// Oldest first; never empty. The last one is written to.
    pub(super) segments: VecDeque<Segment>,
    /// Of the last segment.
    pub(super) places: Places,
    /// Of others, the one that was used last at the end.
    known: VecDeque<(u64, Arc<Places>)>,
    /// All before this was handed to the system: it outlives the process.
    pub(crate) written: Position,
    /// All before this is durable.
    pub(crate) durable: Position,
    /// Backups under way: nothing may be dropped.
    pub(super) pins: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) first: Position,
}

/// Where in a segment some of its records are: how many come after the first, and the offset; ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places(pub(super) Vec<(u32, u32)>);

impl Catalog {
    pub(super) fn new(segments: VecDeque<Segment>, durable: Position) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Contents {
            segments,
            places: Places::default(),
            known: VecDeque::new(),
            written: durable,
            durable,
            pins: 0,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Contents> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    pub(crate) fn first(&self) -> Position {
        self.segments.front().map_or(self.durable, |segment| segment.first)
    }

    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The segment that holds `position`, and where the next one begins, if there is one.
    pub(super) fn find(&self, position: Position) -> Option<(Segment, Option<Position>)> {
        let after = self.segments.partition_point(|segment| segment.first <= position);
        let segment = *self.segments.get(after.checked_sub(1)?)?;
        Some((segment, self.segments.get(after).map(|next| next.first)))
    }

    /// A segment begins.
    pub(super) fn push(&mut self, segment: Segment) {
        self.segments.push_back(segment);
        self.places.0.clear();
    }

    /// The oldest segment goes.
    pub(super) fn drop_first(&mut self) {
        if let Some(gone) = self.segments.pop_front() {
            self.known.retain(|(number, _)| *number != gone.number);
        }
    }

    pub(super) fn known(&mut self, number: u64) -> Option<Arc<Places>> {
        let at = self.known.iter().position(|(known, _)| *known == number)?;
        let found = self.known.remove(at)?;
        let places = found.1.clone();
        self.known.push_back(found);
        Some(places)
    }

    pub(super) fn learn(&mut self, number: u64, places: Arc<Places>) {
        if self.known.len() == KNOWN_MAX {
            self.known.pop_front();
        }
        self.known.push_back((number, places));
    }
}

impl Places {
    /// Notes a record if it is `apart` bytes or more behind the last one that was noted.
    pub(super) fn note(&mut self, first: Position, position: Position, offset: u64, apart: u64) {
        if self.0.last().is_none_or(|(_, last)| offset - u64::from(*last) >= apart)
            && let Ok(after) = u32::try_from(position.as_u64() - first.as_u64())
            && let Ok(offset) = u32::try_from(offset)
        {
            self.0.push((after, offset));
        }
    }

    /// The nearest known place at or before `position`.
    pub(super) fn find(&self, first: Position, position: Position) -> (Position, u64) {
        let wanted = position.as_u64().saturating_sub(first.as_u64());
        let after = self.0.partition_point(|(known, _)| u64::from(*known) <= wanted);
        match after.checked_sub(1).map(|at| self.0[at]) {
            Some((known, offset)) => (first.plus(u64::from(known)), u64::from(offset)),
            None => (first, SEGMENT_HEADER_BYTES),
        }
    }
}

/// Segments other than the last one whose places are kept: some 8 KiB each.
const KNOWN_MAX: usize = 16;
