//! What queues write into their journal. All integers are little-endian; times are nanoseconds since 1970.
//!
//! | kind | meaning | layout |
//! | --- | --- | --- |
//! | 1 | message | queue `u32`, id `u64`, flags `u8`, priority `u8`, put at `u64`, then what the flags say, then the payload |
//! | 2 | gone | queue `u32`, id `u64`, why `u8` (0 acknowledged, 1 acknowledged and kept, 2 given up, 3 expired) |
//! | 3 | delivered | queue `u32`, id `u64`, deliveries `u32` |
//! | 4 | purged: all before | queue `u32`, id `u64` |
//! | 5 | sought: what is before is acknowledged, what is kept from there on comes back | queue `u32`, id `u64`, those before are kept `u8` |
//! | 6 | trimmed: kept ones before are dropped | queue `u32`, id `u64` |
//! | 7 | cell of the application's state | length of the key `u8`, key, has a value `u8`, value |
//! | 8 | names that were put | queue `u32`, each: id `u64`, length `u8`, name |
//! | 9 | floor: ids given out so far are smaller | id `u64` |
//!
//! Flags of a message, and what follows in this order: 1 key (length `u8`, key), 2 name (length `u8`, name), 4 expires at
//! `u64`, 8 not before `u64`, 16 dead letter (from queue `u32`, from id `u64`, deliveries there `u32`, reason `u8`: 0
//! deliveries, 1 expired, 2 too large), 32 a message again, further on in the log (deliveries `u32`), 64 it was acknowledged and is
//! kept, 128 it was not to be synced.
//!
//! A record may speak of a message whose own record was truncated away; it is then ignored. Names of queues: the snapshot
//! `queues`, per queue `u32` number, `u8` length, name.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_journal::{Entry, Record};
use quorate_protocols::Time;

use super::books::DELIVERED_BYTES;
use super::message::{DeadReason, Durability, Label, MessageId, Origin};

/// One decoded record: a change of the queues. The same is done when it has become durable, and after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Put(Put),
    Gone { queue: u32, id: MessageId, why: Why, class: Durability },
    Delivered { queue: u32, id: MessageId, deliveries: u32 },
    Purged { queue: u32, below: MessageId },
    Sought { queue: u32, to: MessageId, is_kept: bool },
    Trimmed { queue: u32, below: MessageId },
    Cell { key: Bytes, value: Option<Bytes> },
    Named { queue: u32, names: Vec<(MessageId, Bytes)> },
    Floor { next: MessageId },
}

/// A message that comes, or one that is written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) queue: u32,
    pub(super) id: MessageId,
    pub(super) label: Label,
    pub(super) origin: Option<Origin>,
    /// It lies further back in the log, too; so often it was delivered.
    pub(super) again: Option<u32>,
    pub(super) is_kept: bool,
    pub(super) class: Durability,
    pub(super) payload: Bytes,
}

/// How a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Acknowledged,
    /// Acknowledged, and kept for those who read it again.
    Kept,
    GivenUp,
    Expired,
}

impl Step {
    /// What is not recorded is only in memory.
    pub(super) fn class(&self) -> Durability {
        match self {
            Self::Put(Put { class, .. }) | Self::Gone { class, .. } => *class,
            Self::Delivered { .. } => Durability::Written,
            _ => Durability::Synced,
        }
    }

    /// What its record takes in the log, roughly.
    pub(super) fn log_bytes(&self) -> u64 {
        let payload = match self {
            Self::Put(put) => put.payload.len(),
            Self::Cell { value, .. } => value.as_ref().map_or(0, Bytes::len),
            Self::Named { names, .. } => names.iter().map(|(_, name)| name.len() + 9).sum(),
            _ => 0,
        };
        payload as u64 + DELIVERED_BYTES
    }

    pub(super) fn encode(&self) -> Record {
        let mut out = BytesMut::new();
        let kind = match self {
            Self::Put(put) => {
                put.encode(&mut out);
                PUT
            }
            Self::Gone { queue, id, why, class: _ } => {
                put_about(&mut out, *queue, *id);
                out.put_u8(match why {
                    Why::Acknowledged => 0,
                    Why::Kept => 1,
                    Why::GivenUp => 2,
                    Why::Expired => 3,
                });
                GONE
            }
            Self::Delivered { queue, id, deliveries } => {
                put_about(&mut out, *queue, *id);
                out.put_u32_le(*deliveries);
                DELIVERED
            }
            Self::Purged { queue, below } => {
                put_about(&mut out, *queue, *below);
                PURGED
            }
            Self::Sought { queue, to, is_kept } => {
                put_about(&mut out, *queue, *to);
                out.put_u8((*is_kept).into());
                SOUGHT
            }
            Self::Trimmed { queue, below } => {
                put_about(&mut out, *queue, *below);
                TRIMMED
            }
            Self::Cell { key, value } => {
                put_text(&mut out, key);
                out.put_u8(value.is_some().into());
                out.put_slice(value.as_deref().unwrap_or_default());
                CELL
            }
            Self::Named { queue, names } => {
                out.put_u32_le(*queue);
                for (id, name) in names {
                    out.put_u64_le(id.as_u64());
                    put_text(&mut out, name);
                }
                NAMED
            }
            Self::Floor { next } => {
                out.put_u64_le(next.as_u64());
                FLOOR
            }
        };
        Record::new(kind, out)
    }

    pub(super) fn decode(entry: &Entry) -> Result<Self, &'static str> {
        let mut input = Input(entry.payload.clone());
        let step = match entry.kind {
            PUT => Self::Put(Put::decode(&mut input)?),
            GONE => {
                let (queue, id) = (input.u32()?, input.id()?);
                let why = match input.u8()? {
                    0 => Why::Acknowledged,
                    1 => Why::Kept,
                    2 => Why::GivenUp,
                    3 => Why::Expired,
                    _ => return Err("unknown way to go"),
                };
                Self::Gone { queue, id, why, class: Durability::Synced }
            }
            DELIVERED => Self::Delivered { queue: input.u32()?, id: input.id()?, deliveries: input.u32()? },
            PURGED => Self::Purged { queue: input.u32()?, below: input.id()? },
            SOUGHT => Self::Sought { queue: input.u32()?, to: input.id()?, is_kept: input.u8()? != 0 },
            TRIMMED => Self::Trimmed { queue: input.u32()?, below: input.id()? },
            CELL => {
                let key = input.text()?;
                let value = (input.u8()? != 0).then(|| input.rest());
                Self::Cell { key, value }
            }
            NAMED => {
                let queue = input.u32()?;
                let mut names = Vec::new();
                while !input.0.is_empty() {
                    names.push((input.id()?, input.text()?));
                }
                Self::Named { queue, names }
            }
            FLOOR => Self::Floor { next: input.id()? },
            _ => return Err("unknown kind"),
        };
        if input.0.is_empty() { Ok(step) } else { Err("too long") }
    }
}

impl Put {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let Label { put_at, priority, key, name, due, expires } = &self.label;
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let flags = flag(key.is_some(), KEY)
            | flag(name.is_some(), NAME)
            | flag(expires.is_some(), EXPIRES)
            | flag(due.is_some(), DUE)
            | flag(self.origin.is_some(), ORIGIN)
            | flag(self.again.is_some(), AGAIN)
            | flag(self.is_kept, KEPT)
            | flag(self.class == Durability::Written, WRITTEN);
        let label_bytes = key.as_ref().map_or(0, Bytes::len) + name.as_ref().map_or(0, Bytes::len);
        out.reserve(FIXED_BYTES_MAX + label_bytes + self.payload.len());
        put_about(out, self.queue, self.id);
        out.put_u8(flags);
        out.put_u8(*priority);
        out.put_u64_le(put_at.as_nanos());
        for text in [key, name].into_iter().flatten() {
            put_text(out, text);
        }
        for time in [expires, due].into_iter().flatten() {
            out.put_u64_le(time.as_nanos());
        }
        if let Some(Origin { queue, id, deliveries, reason }) = &self.origin {
            put_about(out, *queue, *id);
            out.put_u32_le(*deliveries);
            out.put_u8(match reason {
                DeadReason::Deliveries => 0,
                DeadReason::Expired => 1,
                DeadReason::TooLarge => 2,
            });
        }
        if let Some(deliveries) = self.again {
            out.put_u32_le(deliveries);
        }
        out.put_slice(&self.payload);
    }

    pub(super) fn decode(input: &mut Input) -> Result<Self, &'static str> {
        let (queue, id) = (input.u32()?, input.id()?);
        let (flags, priority) = (input.u8()?, input.u8()?);
        let has = |bit: u8| flags & bit != 0;
        let put_at = input.time()?;
        let key = if has(KEY) { Some(input.text()?) } else { None };
        let name = if has(NAME) { Some(input.text()?) } else { None };
        let expires = if has(EXPIRES) { Some(input.time()?) } else { None };
        let due = if has(DUE) { Some(input.time()?) } else { None };
        let origin = if has(ORIGIN) { Some(input.origin()?) } else { None };
        let again = if has(AGAIN) { Some(input.u32()?) } else { None };
        let label = Label { put_at, priority, key, name, due, expires };
        let class = if has(WRITTEN) { Durability::Written } else { Durability::Synced };
        Ok(Self { queue, id, label, origin, again, is_kept: has(KEPT), class, payload: input.rest() })
    }
}

/// The queues' names by number.
pub(super) fn encode_names(names: &BTreeMap<u32, String>) -> Bytes {
    let mut out = BytesMut::new();
    for (number, name) in names {
        out.put_u32_le(*number);
        // Names are checked to be at most 128 bytes.
        put_text(&mut out, name.as_bytes());
    }
    out.freeze()
}

pub(super) fn decode_names(blob: Bytes) -> Result<BTreeMap<u32, String>, &'static str> {
    let mut input = Input(blob);
    let mut names = BTreeMap::new();
    while !input.0.is_empty() {
        let number = input.u32()?;
        let name = input.text()?;
        // Queues for dead letters had longer names than one may give now.
        let name = String::from_utf8(name.to_vec()).map_err(|_| "name is not text")?;
        names.insert(number, name);
    }
    Ok(names)
}

fn put_about(out: &mut BytesMut, queue: u32, id: MessageId) {
    out.put_u32_le(queue);
    out.put_u64_le(id.as_u64());
}

/// At most 255 bytes, which those who take keys and names have checked.
pub(super) fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_u8(text.len() as u8);
    out.put_slice(text);
}

/// Reads from the front; an error when there is not enough. What is small and kept gets bytes of its own: what was read
/// shares a large buffer with its neighbours, and one of them would keep all of it.
pub(super) struct Input(pub(super) Bytes);

impl Input {
    pub(super) fn take(&mut self, count: usize) -> Result<Bytes, &'static str> {
        if self.0.len() < count { Err("too short") } else { Ok(self.0.split_to(count)) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn u64(&mut self) -> Result<u64, &'static str> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(low) | u64::from(high) << 32)
    }

    pub(super) fn id(&mut self) -> Result<MessageId, &'static str> {
        // The one behind it must be a number, too.
        let id = self.u64()?;
        if id == u64::MAX { Err("id out of range") } else { Ok(MessageId::from_u64(id)) }
    }

    fn time(&mut self) -> Result<Time, &'static str> {
        self.u64().map(Time::from_nanos)
    }

    pub(super) fn text(&mut self) -> Result<Bytes, &'static str> {
        let length = usize::from(self.u8()?);
        Ok(Bytes::copy_from_slice(&self.take(length)?))
    }

    fn origin(&mut self) -> Result<Origin, &'static str> {
        let (queue, id, deliveries) = (self.u32()?, self.id()?, self.u32()?);
        let reason = match self.u8()? {
            0 => DeadReason::Deliveries,
            1 => DeadReason::Expired,
            2 => DeadReason::TooLarge,
            _ => return Err("unknown reason"),
        };
        Ok(Origin { queue, id, deliveries, reason })
    }

    fn rest(&mut self) -> Bytes {
        Bytes::copy_from_slice(&std::mem::take(&mut self.0))
    }
}

const PUT: u16 = 1;
const GONE: u16 = 2;
const DELIVERED: u16 = 3;
const PURGED: u16 = 4;
const SOUGHT: u16 = 5;
const TRIMMED: u16 = 6;
const CELL: u16 = 7;
const NAMED: u16 = 8;
const FLOOR: u16 = 9;

const KEY: u8 = 1;
const NAME: u8 = 2;
const EXPIRES: u8 = 4;
const DUE: u8 = 8;
const ORIGIN: u8 = 16;
const AGAIN: u8 = 32;
const KEPT: u8 = 64;
const WRITTEN: u8 = 128;

/// A message's record without key, name and payload, with everything else.
const FIXED_BYTES_MAX: usize = 22 + 2 + 16 + 17 + 4;
