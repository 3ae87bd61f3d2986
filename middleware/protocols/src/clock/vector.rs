//! Vector clocks: how many events of each process may have influenced this one.
//!
//! Guarantee   of two events the one is [before](Relation::Before) the other exactly when it may have influenced it; if neither
//!             is, they are [concurrent](Relation::Concurrent).
//! Method      one count for each process; a message brings its sender's counts, and the larger ones are kept.
//!             *Compact*: processes without events have no entry; numbers take as many bytes as they need, and processes
//!             are told by what differs from the one before.
//!             *Differences*: over a path that keeps order, only what has changed since the last message need be sent
//!             ([`VectorClock::since`]), and is [merged](VectorClock::merge) there into what came before.
//! Source      Fidge 1988, Mattern 1989; differences: Singhal & Kshemkalyani 1992.
//! Limits      [`PROCESSES_MAX`] processes. A new life of a process is a new one, and nothing says when an old one may be
//!             forgotten: clocks are for a known circle of processes, such as the members of a group.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{COUNT_MAX, Logical, StampError, believable};
use crate::machine::ProcessId;
use crate::wire::{Wire, WireError, take_u8};

/// How many events of each process: a moment in a distributed computation. Only partially ordered, so it has no `Ord`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VectorClock(BTreeMap<ProcessId, u64>);

/// How two moments stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The first happened before the second and may have influenced it.
    Before,
    /// The second happened before the first.
    After,
    /// They are the same.
    Same,
    /// Neither can have influenced the other.
    Concurrent,
}

impl VectorClock {
    /// How many events of `process` it knows of.
    pub fn count(&self, process: ProcessId) -> u64 {
        self.0.get(&process).copied().unwrap_or(0)
    }

    /// The processes of which it knows events, with their counts, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessId, u64)> + '_ {
        self.0.iter().map(|(process, count)| (*process, *count))
    }

    /// How this moment stands to `other`.
    pub fn relation(&self, other: &Self) -> Relation {
        let has_more =
            |one: &Self, other: &Self| one.iter().any(|(process, count)| count > other.count(process));
        match (has_more(self, other), has_more(other, self)) {
            (false, false) => Relation::Same,
            (false, true) => Relation::Before,
            (true, false) => Relation::After,
            (true, true) => Relation::Concurrent,
        }
    }

    /// Takes in all that `other` knows.
    pub fn merge(&mut self, other: &Self) {
        for (process, count) in other.iter() {
            let own = self.0.entry(process).or_default();
            *own = count.max(*own);
        }
    }

    /// What has changed since `earlier`, a moment before this one: merged into `earlier`, it makes this one.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(self.iter().filter(|(process, count)| *count > earlier.count(*process)).collect())
    }
}

/// The clock of one process.
#[derive(Debug, Clone)]
pub struct Vector {
    me: ProcessId,
    now: VectorClock,
}

impl Vector {
    /// The clock of process `me`, before its first event.
    pub fn new(me: ProcessId) -> Self {
        Self { me, now: VectorClock::default() }
    }

    /// What this process knows of.
    pub const fn now(&self) -> &VectorClock {
        &self.now
    }

    fn tick(&mut self) -> VectorClock {
        *self.now.0.entry(self.me).or_default() += 1;
        self.now.clone()
    }
}

impl Logical for Vector {
    type Stamp = VectorClock;

    fn event(&mut self, _: Duration) -> VectorClock {
        self.tick()
    }

    fn receive(&mut self, _: Duration, sent: &VectorClock) -> Result<VectorClock, StampError> {
        let (count, own) = (sent.count(self.me), self.now.count(self.me));
        if count > own {
            return Err(StampError::FromTheFuture { count, own });
        }
        sent.0.values().try_for_each(|count| believable(*count))?;
        let strangers = sent.0.keys().filter(|process| !self.now.0.contains_key(process)).count();
        let processes = self.now.0.len() + strangers;
        // One more, in case this is the first event here.
        if processes >= PROCESSES_MAX {
            return Err(StampError::TooManyProcesses { processes, limit: PROCESSES_MAX });
        }
        self.now.merge(sent);
        Ok(self.tick())
    }
}

impl Wire for VectorClock {
    fn encode(&self, out: &mut BytesMut) {
        put_varint(out, self.0.len() as u64);
        let mut last = ProcessId { node: 0, incarnation: 0 };
        for (process, count) in self.iter() {
            put_varint(out, process.node - last.node);
            // Lives are near each other in either direction; the sign goes to the lowest bit.
            let step = process.incarnation.wrapping_sub(last.incarnation) as i64;
            put_varint(out, ((step << 1) ^ (step >> 63)) as u64);
            put_varint(out, count);
            last = process;
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let processes = take_varint(input, "processes")?;
        if processes > PROCESSES_MAX as u64 {
            return Err(WireError::Invalid { what: "processes", value: processes });
        }
        let mut clock = BTreeMap::new();
        let mut last = ProcessId { node: 0, incarnation: 0 };
        for place in 0..processes {
            let step = take_varint(input, "node step")?;
            let node =
                last.node.checked_add(step).ok_or(WireError::Invalid { what: "node step", value: step })?;
            let step = take_varint(input, "life step")?;
            let life = (step >> 1) as i64 ^ -((step & 1) as i64);
            let process = ProcessId { node, incarnation: last.incarnation.wrapping_add(life as u64) };
            // One moment has one encoding.
            if place > 0 && process <= last {
                return Err(WireError::Invalid { what: "unsorted process", value: node });
            }
            let count = take_varint(input, "event count")?;
            if count == 0 || count >= COUNT_MAX {
                return Err(WireError::Invalid { what: "event count", value: count });
            }
            clock.insert(process, count);
            last = process;
        }
        Ok(Self(clock))
    }
}

/// Seven bits in a byte, the lowest first; the highest bit says that more follow.
fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn take_varint(input: &mut Bytes, what: &'static str) -> Result<u64, WireError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take_u8(input, what)?;
        let bits = u64::from(byte & 0x7f);
        // Bits beyond the sixty-fourth, or a last byte that says nothing, would be a second way to write a number.
        if (shift == 63 && byte > 1) || (shift > 0 && byte == 0) {
            return Err(WireError::Invalid { what, value: u64::from(byte) });
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(WireError::Invalid { what, value })
}

/// Processes of one clock at most.
pub const PROCESSES_MAX: usize = 4096;
