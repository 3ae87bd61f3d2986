//! Distributed protocols as pure state machines.
//!
//! Purpose     every algorithm of quorate that depends on timing or order, as a value: one input and the time go
//!             in, outputs come out. The same code runs over sockets and, thousands of times faster than real
//!             time, in a seeded simulation.
//! Guarantee   a machine reads no clock, owns no socket, spawns nothing, draws no randomness of its own, and
//!             never panics on what a peer sent. Equal inputs give equal outputs.
//! Contract    [`Machine`]: learn it once, know them all.

pub mod agreement;
pub mod clock;
pub mod collectives;
pub mod commit;
pub mod group;
pub mod guard;
pub mod machine;
pub mod membership;
pub mod multicast;
pub mod objects;
pub mod planted;
pub mod relocation;
pub mod rpc;
pub mod stack;
pub mod stream;
pub mod time;
pub mod transfer;
pub mod wire;

pub use machine::{Input, Lane, Machine, Output, Outputs, ProcessId, Targets, Violation};
pub use time::Time;
pub use wire::{Wire, WireError};
