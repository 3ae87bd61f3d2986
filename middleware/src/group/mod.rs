//! Groups: view-synchronous multicast among named members.
//!
//! Purpose     processes that work together see the same members and the same messages: a chat room, the replicas of
//!             a service.
//! Guarantee   [`Fifo`]: each sender's messages in its order. [`Causal`]: in addition every message after those that its
//!             sender had delivered before. [`Total`]: all members the same messages in the same
//!             order, and *uniform*: what any member delivered, even one that died right after, every member that
//!             goes on delivers. In all: views agreed by a quorum of the view before, members that go on together
//!             have delivered the same messages in each view, and a joiner starts from the state at its first view.
//! Method      the stack of `quorate_protocols::group`, run by the driver on a channel named after the group. Members
//!             introduce each other, so a joiner needs the address of one.
//! Source      van Steen & Tanenbaum, reliable group communication; Birman & Joseph 1987.
//! End         [`Group::leave`] and dropping the [`Events`] leave in good order; dropping the [`Group`] or shutting the
//!             node down ends the membership as a crash would; the others may go on without a member that they do not
//!             hear. In each case [`Event::Ended`] is the last event, and the name is free before it is told.
//! Joining     somebody must answer [`Event::StateWanted`], or nobody can join; [`Builder::stateless`] spares it.
//! Limits      [`Limits`]; a message larger than one of the node's travels in fragments. The members are a *primary partition*: a side without quorum neither delivers
//!             in total order nor changes its view; see [`Event::QuorumLost`]. When a quorum of a view is lost for
//!             good, the group ends there.
//!
//! ```
//! use quorate::group::{Builder, Event};
//! use quorate::node::Node;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! // Others `join` through this node's address instead.
//! let (group, mut events) = Builder::total("room").create(&node).await?;
//! group.cast("hello".into()).await?;
//! let mut heard = Vec::new();
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::View(view) => println!("here are {view}"),
//!         Event::Message { payload, .. } => {
//!             heard.push(payload);
//!             break;
//!         }
//!         // Somebody joins and waits for what happened so far; with `Builder::stateless` nobody asks.
//!         Event::StateWanted(request) => request.answer(heard.concat().into()),
//!         _ => {}
//!     }
//! }
//! assert_eq!(heard, ["hello"]);
//! # Ok(()) }
//! ```

mod builder;
mod calls;
mod discover;
mod error;
mod events;
mod introduce;
mod merging;
mod outside;
#[cfg(feature = "secrets")]
mod secret;
mod stack;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::Machine;
use quorate_protocols::group::{CausalGroup, Command, FifoGroup, TotalGroup};
use tokio::sync::SemaphorePermit;

pub use builder::{Builder, Limits, SlowReader};
pub use calls::{Asked, CALLS_MAX, Call, CallError, Caller, Calls};
pub use discover::Discover;
#[cfg(feature = "udp")]
pub use discover::{Answering, Beacon};
pub use error::{CastError, JoinError, LeaveError};
pub use events::{Event, Events, StateRequest};
pub use merging::{Merging, OfferRequest, Tidings, Told};
pub use outside::{UNDER_WAY_BYTES_MAX, UNDER_WAY_MAX, VisitError, Visitor};
pub use quorate_protocols::ProcessId;
pub use quorate_protocols::membership::detector::Detection;
pub use quorate_protocols::membership::heartbeat::Judge;
pub use quorate_protocols::multicast::reliable::Feedback;
pub use quorate_protocols::multicast::total::TotalBy;
pub use quorate_protocols::rpc::gather::Wanted;
pub use quorate_protocols::stack::{Ended, Impossible, View, ViewId};
#[cfg(feature = "secrets")]
pub use secret::{SECRET_BYTES_MIN, Secret, SecretTooShort};
pub use stack::{Own, Stack};

use crate::driver::Handle;
use events::Shared;

/// The order in which a group delivers; implemented by [`Fifo`], [`Causal`], [`Total`], and [`Own`] for stacks of one's own.
///
/// What needs an order asks for it in its type: replication takes a [`TotalOrder`], and a group in FIFO order is none.
///
/// The textbook's six combinations (van Steen & Tanenbaum, virtually synchronous reliable multicasting):
///
/// | basic order | without total order | with total order |
/// | --- | --- | --- |
/// | none | [`Unordered`] | [`UnorderedTotal`] |
/// | FIFO | [`Fifo`] | [`FifoTotal`] |
/// | causal | [`Causal`] | [`CausalTotal`] |
///
/// The three on the right are one and the same [`Total`]: its messages keep their senders' order, and a total order that
/// is uniform and does that is causal. For were `m` delivered somewhere before what its sender had delivered when it sent
/// `m`, uniform total order would have made the sender deliver `m` before that as well, and so before it sent `m`.
pub trait Order: sealed::Sealed + Send + Sync + 'static {
    /// The machine that gives this order.
    #[doc(hidden)]
    type Machine: Machine<Command = Command, Event = quorate_protocols::group::Event, Record = (), Message: Send>
        + Send
        + 'static;

    /// Makes the machine, unless it cannot work.
    #[doc(hidden)]
    fn machine(me: ProcessId, config: quorate_protocols::group::Config) -> Result<Self::Machine, Impossible>;
}

/// Each sender's messages in its order.
#[derive(Debug, Clone, Copy)]
pub struct Fifo;

/// Each message after all that its sender had delivered before, and so each sender's messages in its order.
#[derive(Debug, Clone, Copy)]
pub struct Causal;

/// All messages in one order, uniformly, found as [`Builder::by`] says: the order of each sender and the causal one are kept, see [`Order`].
#[derive(Debug, Clone, Copy)]
pub struct Total;

/// No order is promised. Given by [`Fifo`], whose order costs nothing more: messages are numbered anyway, so that none is
/// lost.
pub type Unordered = Fifo;

/// One order for all, and no other promise. Given by [`Total`].
pub type UnorderedTotal = Total;

/// One order for all that keeps each sender's. It is [`Total`].
pub type FifoTotal = Total;

/// One order for all that keeps the causal one. It is [`Total`]: see [`Order`].
pub type CausalTotal = Total;

impl Order for Fifo {
    type Machine = FifoGroup;

    fn machine(me: ProcessId, config: quorate_protocols::group::Config) -> Result<FifoGroup, Impossible> {
        Ok(FifoGroup::fifo(me, config))
    }
}

impl Order for Causal {
    type Machine = CausalGroup;

    fn machine(me: ProcessId, config: quorate_protocols::group::Config) -> Result<CausalGroup, Impossible> {
        Ok(CausalGroup::causal(me, config))
    }
}

impl Order for Total {
    type Machine = TotalGroup;

    fn machine(me: ProcessId, config: quorate_protocols::group::Config) -> Result<TotalGroup, Impossible> {
        Ok(TotalGroup::total(me, config))
    }
}

mod sealed {
    /// Orders are ours, or those of a [`Stack`](super::Stack): a new one is a new layer first.
    pub trait Sealed {}
    impl Sealed for super::Fifo {}
    impl Sealed for super::Causal {}
    impl<S: super::Stack> Sealed for super::Own<S> {}
    impl Sealed for super::Total {}
}

/// A membership. Cheap to clone. Dropping the last clone ends it at once, as a crash would: the name is free, and the
/// others notice and agree on a view without this member, if they have a quorum. [`leave`](Self::leave) is kinder.
pub struct Group<O: Order> {
    inner: Arc<Inner<O>>,
}

struct Inner<O: Order> {
    handle: Handle<O::Machine>,
    shared: Arc<Shared>,
    payload_bytes_max: usize,
}

impl<O: Order> Group<O> {
    /// Who this member is.
    pub fn me(&self) -> ProcessId {
        self.inner.shared.me()
    }

    /// The view that this member is in: the last one that its machine installed. [`Events`] may still lead to it.
    pub fn view(&self) -> Option<View> {
        self.inner.shared.view()
    }

    /// Multicasts `payload`, at most [`Limits::payload_bytes_max`], to all members, this one included.
    ///
    /// Returns once the message waits to be sent. It is delivered in this view or in one of the next ones, to all
    /// members that go on or, when this process dies, to all of them or none. It has been delivered when it appears
    /// among this member's own [`Events`].
    ///
    /// Waits while [`Limits::outstanding_max`] own messages, or [`Limits::outstanding_bytes_max`], have not been delivered here, or were delivered beyond
    /// [`Limits::events_waiting_max`] unread events or [`Limits::events_waiting_bytes_max`]: have another task read them meanwhile.
    ///
    /// # Errors
    /// [`CastError`].
    /// # Cancel safety
    /// Dropping the future while it waits sends nothing.
    pub async fn cast(&self, payload: Bytes) -> Result<(), CastError> {
        let limit = self.inner.payload_bytes_max;
        if payload.len() > limit {
            return Err(CastError::TooLarge { size: payload.len(), limit });
        }
        let room = self.inner.shared.room(payload.len()).await.map_err(|_| self.ended())?;
        self.inner.handle.command(Command::Cast(payload)).await.map_err(|_| self.ended())?;
        // Given back when the message has its place among the events.
        room.into_iter().for_each(SemaphorePermit::forget);
        Ok(())
    }

    /// Leaves in good order: the others agree on a view without this member and do not have to suspect it.
    ///
    /// # Errors
    /// [`LeaveError::Deadline`] when they did not within `deadline`; the membership has ended all the same. In any
    /// case the name is free again.
    /// # Cancel safety
    /// Dropping the future leaves the wish standing.
    pub async fn leave(&self, deadline: Duration) -> Result<(), LeaveError> {
        let handle = &self.inner.handle;
        let leaving = async {
            // One that has ended already has left.
            if handle.command(Command::Leave).await.is_ok() {
                handle.stopped().await;
            }
        };
        let left = tokio::time::timeout(deadline, leaving).await;
        handle.stop().await;
        left.map_err(|_| LeaveError::Deadline { deadline })
    }

    /// Totals since the start.
    pub fn stats(&self) -> GroupStats {
        let counts = self.inner.handle.counts();
        let load = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        GroupStats {
            malformed: load(&counts.malformed),
            refused: load(&counts.refused),
            stale: load(&counts.stale),
            unsent: load(&counts.unsent),
            ..self.inner.shared.totals()
        }
    }

    fn ended(&self) -> CastError {
        CastError::Ended(self.inner.shared.why_ended())
    }
}

/// Totals of one membership; all but `waiting` and `waiting_bytes` only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GroupStats {
    /// Messages delivered into [`Events`].
    pub delivered: u64,
    /// Views installed.
    pub views: u64,
    /// Times that a member was suspected to be dead.
    pub suspicions: u64,
    /// Those that were false, because the member spoke again, be it too late: after it was left out.
    pub false_suspicions: u64,
    /// Events that nobody has read yet.
    pub waiting: usize,
    /// The bytes of messages and states among them.
    pub waiting_bytes: usize,
    /// Frames that were no message of the protocol.
    pub malformed: u64,
    /// Frames of peers that this member does not hear: see [`Builder::admit`].
    pub refused: u64,
    /// Messages for an earlier membership of this node.
    pub stale: u64,
    /// Packets that the node did not take; the protocol repeats them.
    pub unsent: u64,
}

impl<O: Order> Clone for Group<O> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<O: Order> fmt::Debug for Group<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("me", &self.me()).field("view", &self.view()).finish_non_exhaustive()
    }
}

/// What members say beside the protocol begins with its kind.
const ASIDE_INTRODUCTION: u8 = 0;
const ASIDE_OUTSIDE: u8 = 1;
const ASIDE_SIDE: u8 = 2;

/// Anything that delivers to all its members the same messages in the same order, with the state for joiners.
/// Replication stands on this. Dropping it ends the membership, after which the [`Events`] end, too.
pub trait TotalOrder: Send + Sync + 'static {
    /// Hands a message over; it is done when it appears among the own events.
    fn cast(&self, payload: Bytes) -> impl Future<Output = Result<(), CastError>> + Send;

    /// Who this member is.
    fn me(&self) -> ProcessId;

    /// Leaves in good order.
    fn leave(&self, deadline: Duration) -> impl Future<Output = Result<(), LeaveError>> + Send;
}

impl TotalOrder for Group<Total> {
    fn cast(&self, payload: Bytes) -> impl Future<Output = Result<(), CastError>> + Send {
        Self::cast(self, payload)
    }

    fn me(&self) -> ProcessId {
        Self::me(self)
    }

    fn leave(&self, deadline: Duration) -> impl Future<Output = Result<(), LeaveError>> + Send {
        Self::leave(self, deadline)
    }
}
