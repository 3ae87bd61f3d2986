//! An embeddable async middleware: no broker to run, services get what a distributed-systems course teaches as parts.
//!
//! One [`Node`] per process multiplexes everything over one connection per peer:
//!
//! | what you need | module |
//! | --- | --- |
//! | messages between sockets, in well-known patterns | [`socket`] |
//! | call a method of a trait in another process | [`rpc`] and [`service`] |
//! | messages that survive crashes until someone has worked on them | [`queue`] |
//! | the same members and the same messages in several processes | [`group`] |
//! | state that survives the death of a minority | [`replication`] |
//! | a change in several processes, everywhere or nowhere | [`commit`] |
//! | find who offers what, and tell others | [`naming`] |
//! | services that are started when somebody asks for them | [`host`] |
//! | what may have caused what, across processes | [`clock`] |
//! | identity, connections, limits, shutdown | [`node`] |
//! | values as bytes | [`codec`] |
//! | tests under every fault, thousands of times faster than real time | [`sim`] |
//! | whether what clients saw is what a consistency model allows | [`history`] |
//!
//! The protocols under them are pure state machines, in [`protocols`]; [`transports`] and the [`journal`] are crates of
//! their own, too. `docs/ARCHITECTURE.md` in the repository has the picture.

// `#[service]` names what it needs by its public paths, here too.
extern crate self as quorate;

/// What generated code says only where tower is.
#[cfg(feature = "tower")]
#[doc(hidden)]
#[macro_export]
macro_rules! __with_tower {
    ($($code:tt)*) => { $($code)* };
}

/// What generated code says only where tower is.
#[cfg(not(feature = "tower"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __with_tower {
    ($($code:tt)*) => {};
}

pub mod clock;
pub mod codec;
pub mod commit;
mod driver;
pub mod group;
pub mod history;
pub mod host;
pub mod naming;
pub mod node;
pub mod queue;
pub mod replication;
pub mod rpc;
pub mod sim;
pub mod socket;

/// Bytes that are shared when they are cloned: what messages are made of.
pub use bytes::Bytes;
pub use codec::Payload;
pub use node::{Address, Identity, Incarnation, Lane, Node, NodeId};
/// Stable storage: what transactions and queues are kept in.
pub use quorate_journal as journal;
pub use quorate_macros::service;
/// The algorithms alone, as pure state machines.
pub use quorate_protocols as protocols;
/// What carries messages, and the contract of transports of your own.
pub use quorate_transports as transports;
