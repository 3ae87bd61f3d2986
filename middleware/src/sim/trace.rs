//! What happened: a hash always, text only when asked for.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use quorate_protocols::Time;
use quorate_transports::fault::model::TraceHash;

/// The trace of one run.
pub(crate) struct Trace {
    hash: TraceHash,
    lines: VecDeque<String>,
    notes: Vec<String>,
    keep: usize,
}

impl Trace {
    /// Keeps the last `keep` lines of text; none costs nothing.
    pub(crate) fn new(keep: usize) -> Self {
        Self { hash: TraceHash::new(), lines: VecDeque::new(), notes: Vec::new(), keep }
    }

    /// Adds one event to the hash: when, where, what kind.
    #[inline]
    pub(crate) fn mark(&mut self, now: u64, node: u32, kind: u8) {
        self.hash.word(now);
        self.hash.word(u64::from(node) << 8 | u64::from(kind));
    }

    /// Adds one event and which variant its content is. The content itself would have to be encoded, which costs
    /// more than the event; times already differ whenever anything differs.
    #[inline]
    pub(crate) fn mark_variant<T>(&mut self, now: u64, node: u32, kind: u8, content: &T) {
        self.mark(now, node, kind);
        std::mem::discriminant(content).hash(&mut self.hash);
    }

    /// Adds content to the hash.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.hash.bytes(bytes);
    }

    #[inline]
    pub(crate) fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.keep > 0 {
            if self.lines.len() == self.keep {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{} {}", Time::from_nanos(now), text()));
        }
    }

    /// As [`line`](Self::line), and kept however much follows: faults, crashes and restarts explain what comes later.
    pub(crate) fn note(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.keep > 0 {
            let text = text();
            if self.notes.len() < NOTES_MAX {
                self.notes.push(format!("{} {text}", Time::from_nanos(now)));
            }
            self.line(now, || text);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// The notes, and the last lines.
    pub(crate) fn into_text(self) -> (Vec<String>, Vec<String>) {
        (self.notes, self.lines.into())
    }
}

/// Beyond so many notes a report is no longer read.
const NOTES_MAX: usize = 100;
