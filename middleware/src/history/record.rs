//! Recording a history: who called what when, and what came back.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Operations with the moments of their beginning and end, in the order in which they began if a [`Recorder`] made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History<C, R> {
    /// All operations; verdicts name them by their place here.
    pub operations: Vec<Operation<C, R>>,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<C, R> {
    /// Who called: one that does one thing after the other.
    pub process: u64,
    /// What was asked.
    pub call: C,
    /// When it was called, on a clock that all processes share.
    pub called: u64,
    /// When it returned, and what. `None`: the outcome is unknown, and it may take effect at any time after the call or
    /// not at all.
    pub returned: Option<(u64, R)>,
}

impl<C, R> Default for History<C, R> {
    fn default() -> Self {
        Self { operations: Vec::new() }
    }
}

impl<C, R> History<C, R> {
    /// Adds an operation; returns its place.
    pub fn push(&mut self, operation: Operation<C, R>) -> usize {
        self.operations.push(operation);
        self.operations.len() - 1
    }
}

/// Records what concurrent processes do. Its clock counts calls and returns, so that two operations overlap exactly when
/// neither had returned before the other was called. Clones record into the same history.
pub struct Recorder<C, R> {
    inner: Arc<Mutex<Inner<C, R>>>,
}

struct Inner<C, R> {
    clock: u64,
    /// `None`: it certainly had no effect.
    operations: Vec<Option<Operation<C, R>>>,
}

/// An operation that was called and has not returned. Dropped, its outcome stays unknown.
#[derive(Debug)]
#[must_use = "an operation whose outcome is not told counts as unknown"]
pub struct Pending(usize);

impl<C, R> Recorder<C, R> {
    /// An empty history.
    pub fn new() -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { clock: 0, operations: Vec::new() })) }
    }

    /// Note this right before the call is made.
    pub fn called(&self, process: u64, call: C) -> Pending {
        let mut inner = self.lock();
        inner.clock += 1;
        let operation = Operation { process, call, called: inner.clock, returned: None };
        inner.operations.push(Some(operation));
        Pending(inner.operations.len() - 1)
    }

    /// Note this right after the call has returned.
    pub fn returned(&self, pending: Pending, value: R) {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        if let Some(Some(operation)) = inner.operations.get_mut(pending.0) {
            operation.returned = Some((now, value));
        }
    }

    /// The call certainly had no effect, and is no part of the history.
    pub fn refused(&self, pending: Pending) {
        if let Some(operation) = self.lock().operations.get_mut(pending.0) {
            *operation = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<C, R>> {
        // Each step leaves the value whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Clone, R: Clone> Recorder<C, R> {
    /// What was recorded so far; what has not returned has an unknown outcome.
    pub fn history(&self) -> History<C, R> {
        History { operations: self.lock().operations.iter().flatten().cloned().collect() }
    }
}

impl<C, R> Default for Recorder<C, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C, R> Clone for Recorder<C, R> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<C, R> fmt::Debug for Recorder<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("operations", &self.lock().operations.len()).finish_non_exhaustive()
    }
}
