//! Hybrid logical clocks: as Lamport's, but near the time of day.
//!
//! Guarantee   an event that happened before another one has the smaller stamp, whatever the clocks of the machines say; and
//!             no stamp is ahead of all machines' clocks that could have influenced it. So stamps sort what one process caused
//!             in another, and can be compared with a wall clock up to the clocks' error.
//! Method      a stamp is the largest time of day seen so far, here or in a message, and a count of the events at that very
//!             time. A message from too far ahead is refused: one machine with a wrong clock would drag all others along.
//! Source      Kulkarni, Demirbas, Madeppa, Avva & Leone 2014.
//! Limits      microseconds; a clock that was set back counts on at its largest time until the time of day has caught up.

use std::fmt;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Logical, StampError, believable};
use crate::machine::ProcessId;
use crate::wire::{Wire, WireError, take_u32, take_u64};

/// When and where something happened: totally ordered, by time, then count, then process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HybridStamp {
    /// Microseconds since the Unix epoch.
    pub micros: u64,
    /// Which event of that microsecond.
    pub count: u32,
    /// Whose event it is.
    pub process: ProcessId,
}

/// The clock of one process.
#[derive(Debug, Clone)]
pub struct Hybrid {
    ahead_max: Duration,
    last: HybridStamp,
}

impl Hybrid {
    /// The clock of process `me`, which believes others that are at most `ahead_max` ahead: more than the clocks differ by, less
    /// than would do harm. With clocks that are kept by NTP a second is much.
    pub const fn new(me: ProcessId, ahead_max: Duration) -> Self {
        Self { ahead_max, last: HybridStamp { micros: 0, count: 0, process: me } }
    }

    /// Moves on to an event at the time `micros` or, if it was that late before, behind `count` others.
    fn move_to(&mut self, micros: u64, count: Option<u32>) -> HybridStamp {
        let count = count.map_or(Some(0), |count| count.checked_add(1));
        // Four thousand million events in a microsecond: only a peer's stamp can say so, and then the time moves on.
        (self.last.micros, self.last.count) = count.map_or((micros + 1, 0), |count| (micros, count));
        self.last
    }
}

impl Logical for Hybrid {
    type Stamp = HybridStamp;

    fn event(&mut self, physical: Duration) -> HybridStamp {
        let (micros, last) = (micros_of(physical), self.last);
        if micros > last.micros {
            self.move_to(micros, None)
        } else {
            self.move_to(last.micros, Some(last.count))
        }
    }

    fn receive(&mut self, physical: Duration, sent: &HybridStamp) -> Result<HybridStamp, StampError> {
        believable(sent.micros)?;
        let (micros, last) = (micros_of(physical), self.last);
        let ahead = Duration::from_micros(sent.micros.saturating_sub(micros));
        if ahead > self.ahead_max && sent.micros > last.micros {
            return Err(StampError::TooFarAhead { ahead, limit: self.ahead_max });
        }
        let latest = micros.max(last.micros).max(sent.micros);
        let known = [(last.micros, last.count), (sent.micros, sent.count)];
        let count = known.into_iter().filter(|(at, _)| *at == latest).map(|(_, count)| count).max();
        Ok(self.move_to(latest, count))
    }
}

fn micros_of(physical: Duration) -> u64 {
    u64::try_from(physical.as_micros()).unwrap_or(u64::MAX).min(super::COUNT_MAX - 1)
}

impl fmt::Display for HybridStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}s+{}@{}",
            self.micros / 1_000_000,
            self.micros % 1_000_000,
            self.count,
            self.process
        )
    }
}

impl Wire for HybridStamp {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.micros);
        out.put_u32_le(self.count);
        self.process.encode(out);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let (micros, count) = (take_u64(input, "hybrid time")?, take_u32(input, "hybrid count")?);
        Ok(Self { micros, count, process: ProcessId::decode(input)? })
    }
}
