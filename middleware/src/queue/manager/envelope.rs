//! What a message is wrapped in while it is on its way to another node. Little-endian; times are nanoseconds since 1970.
//!
//! ```text
//! version u8 (1)   hops so far u8   destination u64   priority u8   flags u8 (1 key, 2 name, 4 expires, 8 not before)
//! length u32, name of the queue   then what the flags say: length u32, key; length u32, name; u64; u64   then the payload
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use quorate_protocols::wire::{put_bytes, take_bytes, take_u8, take_u64};
use quorate_protocols::{Time, WireError};

use super::super::config::QUEUE_NAME_BYTES_MAX;
use super::super::message::{Durability, LABEL_BYTES_MAX, Label, Message};

/// A message and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) hops: u8,
    /// The node that has the queue.
    pub(super) node: u64,
    pub(super) queue: Bytes,
    pub(super) label: Label,
    pub(super) payload: Bytes,
}

impl Envelope {
    /// What it takes at most beside the payload.
    pub(super) const BYTES_MAX: usize = 12 + (4 + QUEUE_NAME_BYTES_MAX) + 2 * (4 + LABEL_BYTES_MAX) + 16;

    pub(super) fn encode(&self) -> Bytes {
        let Label { put_at: _, priority, key, name, due, expires } = &self.label;
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let flags = flag(key.is_some(), KEY)
            | flag(name.is_some(), NAME)
            | flag(expires.is_some(), EXPIRES)
            | flag(due.is_some(), DUE);
        let mut out = BytesMut::with_capacity(64 + self.queue.len() + self.payload.len());
        out.put_u8(VERSION);
        out.put_u8(self.hops);
        out.put_u64_le(self.node);
        out.put_u8(*priority);
        out.put_u8(flags);
        put_bytes(&mut out, &self.queue);
        for text in [key, name].into_iter().flatten() {
            put_bytes(&mut out, text);
        }
        for time in [expires, due].into_iter().flatten() {
            out.put_u64_le(time.as_nanos());
        }
        out.put_slice(&self.payload);
        out.freeze()
    }

    pub(super) fn decode(mut input: Bytes) -> Result<Self, WireError> {
        let version = take_u8(&mut input, "version")?;
        if version != VERSION {
            return Err(WireError::Invalid { what: "version", value: version.into() });
        }
        let hops = take_u8(&mut input, "hops")?;
        let node = take_u64(&mut input, "destination")?;
        let (priority, flags) = (take_u8(&mut input, "priority")?, take_u8(&mut input, "flags")?);
        let queue = take_bytes(&mut input, "queue")?;
        let has = |bit: u8| flags & bit != 0;
        let key = if has(KEY) { Some(take_bytes(&mut input, "key")?) } else { None };
        let name = if has(NAME) { Some(take_bytes(&mut input, "name")?) } else { None };
        let time = |input: &mut Bytes| take_u64(input, "time").map(Time::from_nanos);
        let expires = if has(EXPIRES) { Some(time(&mut input)?) } else { None };
        let due = if has(DUE) { Some(time(&mut input)?) } else { None };
        let label = Label { put_at: Time::ZERO, priority, key, name, due, expires };
        Ok(Self { hops, node, queue, label, payload: input })
    }

    /// The message as it was put, at the end of its way.
    pub(super) fn open(&self, now: Time) -> Message {
        Message {
            // What was read shares a large buffer with its neighbours.
            payload: Bytes::copy_from_slice(&self.payload),
            key: self.label.key.as_deref().map(Bytes::copy_from_slice),
            priority: self.label.priority,
            delay: self.label.due.map_or_else(Default::default, |due| due.since(now)),
            expires_after: self.label.expires.map(|expires| expires.since(now)),
            name: self.label.name.as_deref().map(Bytes::copy_from_slice),
            durability: Durability::Synced,
        }
    }
}

const VERSION: u8 = 1;
const KEY: u8 = 1;
const NAME: u8 = 2;
const EXPIRES: u8 = 4;
const DUE: u8 = 8;
