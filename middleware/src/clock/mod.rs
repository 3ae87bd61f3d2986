//! Logical clocks: a layer between the application and whatever carries its messages.
//!
//! Purpose     events of several processes are put in an order that never contradicts what caused what.
//! Guarantee   [`Lamport`]: one total order, by count and then by process, in which causes come first. [`Vector`]: of any two
//!             events, whether one may have caused the other. [`Hybrid`]: as Lamport's, near the time of day.
//! Method      the application says what happens ([`Clock::event`]), hands each message over before it sends it
//!             ([`Clock::stamp`]) and after it got it ([`Clock::take`]). Sockets, calls, queues and groups carry the bytes;
//!             all processes use the same kind of clock.
//! Source      see [`quorate_protocols::clock`].
//! Limits      those of the kinds; a stamp takes 24 bytes ([`Lamport`]), 28 ([`Hybrid`]) or some bytes for each process
//!             ([`Vector`]).
//!
//! ```
//! use quorate::clock::{Clock, Relation};
//! use quorate::{Identity, Incarnation, NodeId};
//!
//! // In programs: `node.identity()`.
//! let [alice, bob] = [1, 2].map(|node| Clock::vector(Identity::new(NodeId(node), Incarnation(1))));
//! let (asked, message) = alice.stamp(b"lunch?");
//! // Any socket, group or queue carries the message; meanwhile something else happens here.
//! let aside = alice.event();
//! let question = bob.take(message)?;
//! assert_eq!(question.payload, "lunch?");
//! assert_eq!(asked.relation(&question.received), Relation::Before);
//! assert_eq!(aside.relation(&question.received), Relation::Concurrent);
//! # Ok::<(), quorate::clock::TakeError>(())
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use quorate_protocols::clock::Logical;
use quorate_protocols::{ProcessId, Wire, WireError};
use quorate_transports::Identity;

pub use quorate_protocols::clock::StampError;
pub use quorate_protocols::clock::hybrid::{Hybrid, HybridStamp};
pub use quorate_protocols::clock::lamport::{Lamport, LamportStamp};
pub use quorate_protocols::clock::vector::{Relation, Vector, VectorClock};

/// A process's clock. Cheap to clone; clones are the same clock, for all its tasks.
pub struct Clock<K: Logical> {
    kind: Arc<Mutex<K>>,
}

/// A message that was taken off the network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken<S> {
    /// When it left.
    pub sent: S,
    /// When it arrived: after it left.
    pub received: S,
    /// What was sent.
    pub payload: Bytes,
}

/// Why a message is not taken. The clock is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// It does not begin with a stamp of this kind.
    #[error("no stamp")]
    Malformed(#[from] WireError),
    /// Its stamp cannot be.
    #[error("a stamp that cannot be believed")]
    Stamp(#[from] StampError),
}

impl Clock<Lamport> {
    /// A count.
    pub fn lamport(me: Identity) -> Self {
        Self::of(Lamport::new(process(me)))
    }
}

impl Clock<Vector> {
    /// A count for each process.
    pub fn vector(me: Identity) -> Self {
        Self::of(Vector::new(process(me)))
    }
}

impl Clock<Hybrid> {
    /// The time of day, as far as it does not contradict what caused what. Messages from more than `ahead_max` ahead are refused:
    /// see [`Hybrid::new`].
    pub fn hybrid(me: Identity, ahead_max: Duration) -> Self {
        Self::of(Hybrid::new(process(me), ahead_max))
    }
}

impl<K: Logical> Clock<K> {
    /// A clock of any kind.
    pub fn of(kind: K) -> Self {
        Self { kind: Arc::new(Mutex::new(kind)) }
    }

    /// Something happens in this process.
    pub fn event(&self) -> K::Stamp {
        self.kind().event(physical())
    }

    /// A message leaves: when, and what to send in its place. Stamped in the order in which they are handed over here; also
    /// one that is never sent has happened.
    pub fn stamp(&self, payload: &[u8]) -> (K::Stamp, Bytes) {
        let stamp = self.event();
        let mut message = BytesMut::new();
        stamp.encode(&mut message);
        message.extend_from_slice(payload);
        (stamp, message.freeze())
    }

    /// A message of another process has come.
    ///
    /// # Errors
    /// [`TakeError`]; the message is to be dropped.
    pub fn take(&self, mut message: Bytes) -> Result<Taken<K::Stamp>, TakeError> {
        let sent = K::Stamp::decode(&mut message)?;
        let received = self.kind().receive(physical(), &sent)?;
        Ok(Taken { sent, received, payload: message })
    }

    fn kind(&self) -> MutexGuard<'_, K> {
        // A clock is never half-changed, so a poisoned lock is a sound one.
        self.kind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Logical> Clone for Clock<K> {
    fn clone(&self) -> Self {
        Self { kind: self.kind.clone() }
    }
}

impl<K: Logical + fmt::Debug> fmt::Debug for Clock<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind())
    }
}

fn process(identity: Identity) -> ProcessId {
    ProcessId { node: identity.node.0, incarnation: identity.incarnation.0 }
}

/// The time of day; before 1970 it is 1970.
fn physical() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
