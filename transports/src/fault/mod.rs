//! Faults on purpose: one model of what networks do to messages.
//!
//! [`model`] is the pure part (no IO, no clock, no task): the simulated transport, the fault wrapper and the
//! simulator of protocol machines all ask it what becomes of a message, so that a fault means the same everywhere.

pub mod model;
