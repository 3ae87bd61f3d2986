//! What queues write into their journal. All integers are little-endian.
//!
//! | kind | meaning | layout |
//! | --- | --- | --- |
//! | 1 | put | queue `u32`, payload |
//! | 2 | acknowledged | queue `u32`, id `u64` |
//! | 3 | delivered | queue `u32`, id `u64`, deliveries `u32` |
//! | 4 | dead letter | queue `u32`, from queue `u32`, from id `u64`, deliveries `u32`, payload |
//! | 5 | moved: the message of that id again, further on in the log | queue `u32`, id `u64`, deliveries `u32`, is a dead letter `u8`, from queue `u32`, from id `u64`, its deliveries `u32`, payload |
//!
//! A message's id is the position of its record of kind 1 or 4. A record may speak of a message
//! whose own record was truncated away; it is then ignored. Names of queues: the snapshot `queues`, per queue `u32`
//! number, `u8` length, name.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_journal::{Entry, Record};

use super::config::QUEUE_NAME_BYTES_MAX;
use super::shelf::{MessageId, Origin};

/// One decoded record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Put { queue: u32, payload: Bytes },
    Acknowledged { queue: u32, id: MessageId },
    Delivered { queue: u32, id: MessageId, deliveries: u32 },
    Buried { queue: u32, origin: Origin, payload: Bytes },
    Moved { queue: u32, id: MessageId, deliveries: u32, origin: Option<Origin>, payload: Bytes },
}

impl Step {
    /// The queue that it is about.
    pub(super) fn queue(&self) -> u32 {
        match self {
            Self::Put { queue, .. }
            | Self::Acknowledged { queue, .. }
            | Self::Delivered { queue, .. }
            | Self::Buried { queue, .. }
            | Self::Moved { queue, .. } => *queue,
        }
    }

    pub(super) fn encode(&self) -> Record {
        let mut out = BytesMut::new();
        match self {
            Self::Put { queue, payload } => {
                out.reserve(4 + payload.len());
                out.put_u32_le(*queue);
                out.put_slice(payload);
                Record::new(PUT, out)
            }
            Self::Acknowledged { queue, id } => {
                out.put_u32_le(*queue);
                out.put_u64_le(id.as_u64());
                Record::new(ACKNOWLEDGED, out)
            }
            Self::Delivered { queue, id, deliveries } => {
                out.put_u32_le(*queue);
                out.put_u64_le(id.as_u64());
                out.put_u32_le(*deliveries);
                Record::new(DELIVERED, out)
            }
            Self::Buried { queue, origin, payload } => {
                out.put_u32_le(*queue);
                put_origin(&mut out, origin);
                out.put_slice(payload);
                Record::new(BURIED, out)
            }
            Self::Moved { queue, id, deliveries, origin, payload } => {
                out.put_u32_le(*queue);
                out.put_u64_le(id.as_u64());
                out.put_u32_le(*deliveries);
                out.put_u8(origin.is_some().into());
                put_origin(&mut out, &origin.unwrap_or(Origin::NONE));
                out.put_slice(payload);
                Record::new(MOVED, out)
            }
        }
    }

    pub(super) fn decode(entry: &Entry) -> Result<Self, &'static str> {
        let mut input = Input(entry.payload.clone());
        let queue = input.u32()?;
        let step = match entry.kind {
            PUT => Self::Put { queue, payload: input.rest() },
            ACKNOWLEDGED => Self::Acknowledged { queue, id: input.id()? },
            DELIVERED => Self::Delivered { queue, id: input.id()?, deliveries: input.u32()? },
            BURIED => Self::Buried { queue, origin: input.origin()?, payload: input.rest() },
            MOVED => {
                let (id, deliveries) = (input.id()?, input.u32()?);
                let is_dead_letter = input.take(1)?[0] != 0;
                let origin = input.origin()?;
                let origin = is_dead_letter.then_some(origin);
                Self::Moved { queue, id, deliveries, origin, payload: input.rest() }
            }
            _ => return Err("unknown kind"),
        };
        if input.0.is_empty() { Ok(step) } else { Err("too long") }
    }
}

/// The queues' names by number.
pub(super) fn encode_names(names: &BTreeMap<u32, String>) -> Bytes {
    let mut out = BytesMut::new();
    for (number, name) in names {
        out.put_u32_le(*number);
        // Names are checked to be at most 128 bytes.
        out.put_u8(name.len() as u8);
        out.put_slice(name.as_bytes());
    }
    out.freeze()
}

pub(super) fn decode_names(blob: Bytes) -> Result<BTreeMap<u32, String>, &'static str> {
    let mut input = Input(blob);
    let mut names = BTreeMap::new();
    while !input.0.is_empty() {
        let number = input.u32()?;
        let length = usize::from(input.take(1)?[0]);
        if length > QUEUE_NAME_BYTES_MAX {
            return Err("name too long");
        }
        let name = String::from_utf8(input.take(length)?.to_vec()).map_err(|_| "name is not text")?;
        names.insert(number, name);
    }
    Ok(names)
}

fn put_origin(out: &mut BytesMut, origin: &Origin) {
    out.put_u32_le(origin.queue);
    out.put_u64_le(origin.id.as_u64());
    out.put_u32_le(origin.deliveries);
}

/// Reads from the front; an error when there is not enough.
struct Input(Bytes);

impl Input {
    fn take(&mut self, count: usize) -> Result<Bytes, &'static str> {
        if self.0.len() < count { Err("too short") } else { Ok(self.0.split_to(count)) }
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn id(&mut self) -> Result<MessageId, &'static str> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(MessageId::from_u64(u64::from(low) | u64::from(high) << 32))
    }

    fn origin(&mut self) -> Result<Origin, &'static str> {
        Ok(Origin { queue: self.u32()?, id: self.id()?, deliveries: self.u32()? })
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }
}

const PUT: u16 = 1;
const ACKNOWLEDGED: u16 = 2;
const DELIVERED: u16 = 3;
const BURIED: u16 = 4;
const MOVED: u16 = 5;
