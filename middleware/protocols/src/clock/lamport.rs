//! Lamport clocks: one count, which is never behind what was heard.
//!
//! Guarantee   an event that happened before another one has the smaller stamp; any two events anywhere have different ones,
//!             so that all processes that sort the same events sort them alike.
//! Method      the count grows with each event, and beyond each stamp that comes; equal counts are told apart by process.
//! Source      Lamport 1978.
//! Limits      a smaller stamp does not mean that there was an influence: that is what [`vector`](super::vector) clocks know.

use std::fmt;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Logical, StampError, believable};
use crate::machine::ProcessId;
use crate::wire::{Wire, WireError, take_u64};

/// When and where something happened: totally ordered, by count and then by process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LamportStamp {
    /// The count.
    pub time: u64,
    /// Whose event it is.
    pub process: ProcessId,
}

/// The clock of one process.
#[derive(Debug, Clone)]
pub struct Lamport {
    me: ProcessId,
    time: u64,
}

impl Lamport {
    /// The clock of process `me`, before its first event.
    pub const fn new(me: ProcessId) -> Self {
        Self { me, time: 0 }
    }

    fn tick(&mut self) -> LamportStamp {
        self.time += 1;
        LamportStamp { time: self.time, process: self.me }
    }
}

impl Logical for Lamport {
    type Stamp = LamportStamp;

    fn event(&mut self, _: Duration) -> LamportStamp {
        self.tick()
    }

    fn receive(&mut self, _: Duration, sent: &LamportStamp) -> Result<LamportStamp, StampError> {
        believable(sent.time)?;
        self.time = self.time.max(sent.time);
        Ok(self.tick())
    }
}

impl fmt::Display for LamportStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.time, self.process)
    }
}

impl Wire for LamportStamp {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.time);
        self.process.encode(out);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { time: take_u64(input, "lamport time")?, process: ProcessId::decode(input)? })
    }
}
