//! For whom a handler runs, and how long it is waited for.
//!
//! Method      a thread-local place that is filled while a handler is polled. Calls that the handler makes look there,
//!             so that their deadlines never exceed what is left of its own.

use std::cell::Cell;
use std::time::Duration;

use quorate_protocols::Time;
use tokio::time::Instant;

use super::post;
use crate::node::Identity;

/// For whom a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The node that called, in its life. What the medium vouches for it, [`Node::credentials`](crate::node::Node::credentials)
    /// tells.
    pub node: Identity,
    epoch: Instant,
    deadline: Option<Time>,
}

impl Caller {
    pub(super) const fn new(node: Identity, epoch: Instant, deadline: Option<Time>) -> Self {
        Self { node, epoch, deadline }
    }

    /// When the caller gives up; `None` when it does not wait, as with one-way methods and within one node.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.map(|deadline| post::instant_of(self.epoch, deadline))
    }
}

/// For whom the handler runs that asks; `None` outside of a handler that was called by messages. A task that the handler
/// spawns is outside.
///
/// Calls that a handler makes need not look: a call's deadline is never later than that of the handler that makes it.
pub fn caller() -> Option<Caller> {
    CALLER.get()
}

/// Runs `poll` for this caller.
pub(super) fn during<R>(caller: Caller, poll: impl FnOnce() -> R) -> R {
    /// Puts back what was there, also when a handler panics.
    struct Restore(Option<Caller>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CALLER.set(self.0);
        }
    }
    let _restore = Restore(CALLER.replace(Some(caller)));
    poll()
}

/// What a handler leaves to the calls that it makes.
pub(super) fn time_left() -> Option<Duration> {
    let caller = CALLER.get()?;
    caller.deadline.map(|deadline| deadline.since(post::time_since(caller.epoch)))
}

thread_local! {
    static CALLER: Cell<Option<Caller>> = const { Cell::new(None) };
}
