//! What happened, for reading and for comparing.
//!
//! Guarantee   the hash covers every event since the beginning; the events themselves are kept up to a limit.

use std::collections::VecDeque;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use crate::fault::model::TraceHash;

/// One event of the simulated network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SimEvent {
    /// When, in nanoseconds since the network's first use.
    pub at_nanos: u64,
    /// What.
    pub kind: SimEventKind,
    /// The host that did it or sent it; empty for the network as a whole.
    pub from: Arc<str>,
    /// The host on the other side, if any.
    pub to: Arc<str>,
    /// Which connection; 0 where none is concerned.
    pub connection: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// A hash of the payload, or the event's own detail (an arrival time, a port).
    pub detail: u64,
}

/// Kinds of [`SimEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SimEventKind {
    /// A listener or a datagram socket was opened.
    Listen,
    /// A connection came to be.
    Connect,
    /// An attempt found no listener.
    Refuse,
    /// A connection was accepted.
    Accept,
    /// A frame left.
    Send,
    /// When that frame will arrive.
    Arrive,
    /// A frame or an end waits before a cut or a dead host.
    Stall,
    /// A frame was handed to its receiver.
    Deliver,
    /// A direction ended cleanly.
    End,
    /// A direction was dropped without closing.
    Abort,
    /// A connection was reset.
    Reset,
    /// Data stayed unacknowledged for too long.
    Break,
    /// A datagram left.
    Datagram,
    /// A datagram was lost.
    Lose,
    /// A link's behaviour changed.
    Change,
    /// Ways were cut.
    Cut,
    /// Ways were mended.
    Heal,
    /// A host lost power.
    Crash,
    /// A host's program was killed.
    Kill,
    /// A host came back.
    Restart,
    /// A host froze.
    Pause,
    /// A host thawed.
    Resume,
}

impl fmt::Display for SimEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.at_nanos / 1_000_000_000, self.at_nanos / 1_000 % 1_000_000);
        write!(f, "{seconds}.{micros:06} {:?} {} -> {}", self.kind, self.from, self.to)?;
        write!(f, " #{} {} bytes {:016x}", self.connection, self.bytes, self.detail)
    }
}

/// The last events and the hash of all.
pub(super) struct Trace {
    events: VecDeque<SimEvent>,
    events_max: usize,
    hash: TraceHash,
}

impl Trace {
    pub(super) fn new(events_max: usize) -> Self {
        Self { events: VecDeque::new(), events_max, hash: TraceHash::new() }
    }

    pub(super) fn record(&mut self, event: SimEvent) {
        event.hash(&mut self.hash);
        if self.events.len() >= self.events_max {
            self.events.pop_front();
        }
        if self.events_max > 0 {
            self.events.push_back(event);
        }
    }

    pub(super) fn events(&self) -> Vec<SimEvent> {
        self.events.iter().cloned().collect()
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash.value()
    }
}

/// A hash of a payload, for [`SimEvent::detail`].
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let mut hash = TraceHash::new();
    hash.bytes(bytes);
    hash.value()
}
