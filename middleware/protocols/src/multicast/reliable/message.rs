//! What members send each other, and how it is laid out.

use bytes::{BufMut, Bytes, BytesMut};

use crate::stack::{Cast, Headers, MEMBERS_MAX, ViewId};
use crate::wire::{
    Wire, WireError, put_bytes, put_count, take_bytes, take_count, take_u8, take_u16, take_u64,
};

/// What members send each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Consecutive messages of the sender of this packet, and what it has received of the others.
    Data {
        /// The view they belong to.
        view: ViewId,
        /// The number of the first.
        first: u64,
        /// The messages.
        casts: Vec<Cast>,
        /// Acknowledgement vector by rank.
        received: Vec<u64>,
    },
    /// What the sender of this packet has received, by rank.
    Ack {
        /// The view it speaks of.
        view: ViewId,
        /// Acknowledgement vector by rank.
        received: Vec<u64>,
        /// True when the sender wants to hear the receiver's own.
        answer: bool,
    },
    /// "I miss these."
    Nak {
        /// The view they belong to.
        view: ViewId,
        /// Whose messages, by rank.
        sender: u16,
        /// The first missing one.
        first: u64,
        /// One past the last missing one.
        end: u64,
        /// True when all members were asked: the sender answers all of them, the others need not ask.
        to_all: bool,
    },
    /// Messages of any sender, again.
    Repair {
        /// The view they belong to.
        view: ViewId,
        /// Whose messages, by rank.
        sender: u16,
        /// The number of the first.
        first: u64,
        /// The messages.
        casts: Vec<Cast>,
        /// True when more packets follow that were asked for together with this one.
        more: bool,
    },
}

impl Wire for Cast {
    fn encode(&self, out: &mut BytesMut) {
        self.headers.encode(out);
        put_bytes(out, &self.payload);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { headers: Headers::decode(input)?, payload: take_bytes(input, "payload")? })
    }
}

fn put_casts(out: &mut BytesMut, casts: &[Cast]) {
    put_count(out, casts.len());
    for cast in casts {
        cast.encode(out);
    }
}

fn take_casts(input: &mut Bytes) -> Result<Vec<Cast>, WireError> {
    let count = take_count(input, CAST_BYTES_MIN, "messages")?;
    (0..count).map(|_| Cast::decode(input)).collect()
}

pub(crate) fn put_counts(out: &mut BytesMut, counts: &[u64]) {
    put_count(out, counts.len());
    for &count in counts {
        out.put_u64_le(count);
    }
}

pub(crate) fn take_counts(input: &mut Bytes) -> Result<Vec<u64>, WireError> {
    let count = take_count(input, 8, "counts")?;
    if count > MEMBERS_MAX {
        return Err(WireError::Invalid { what: "counts", value: count as u64 });
    }
    (0..count).map(|_| take_u64(input, "count")).collect()
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Data { view, first, casts, received } => {
                out.put_u8(0);
                view.encode(out);
                out.put_u64_le(*first);
                put_counts(out, received);
                put_casts(out, casts);
            }
            Self::Ack { view, received, answer } => {
                out.put_u8(if *answer { 2 } else { 1 });
                view.encode(out);
                put_counts(out, received);
            }
            Self::Nak { view, sender, first, end, to_all } => {
                out.put_u8(if *to_all { 6 } else { 3 });
                view.encode(out);
                out.put_u16_le(*sender);
                out.put_u64_le(*first);
                out.put_u64_le(*end);
            }
            Self::Repair { view, sender, first, casts, more } => {
                out.put_u8(if *more { 5 } else { 4 });
                view.encode(out);
                out.put_u16_le(*sender);
                out.put_u64_le(*first);
                put_casts(out, casts);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let kind = take_u8(input, "multicast message")?;
        let view = ViewId::decode(input)?;
        match kind {
            0 => {
                let first = take_u64(input, "first number")?;
                let received = take_counts(input)?;
                Ok(Self::Data { view, first, received, casts: take_casts(input)? })
            }
            1 | 2 => Ok(Self::Ack { view, received: take_counts(input)?, answer: kind == 2 }),
            3 | 6 => Ok(Self::Nak {
                view,
                sender: take_u16(input, "sender rank")?,
                first: take_u64(input, "first number")?,
                end: take_u64(input, "end number")?,
                to_all: kind == 6,
            }),
            4 | 5 => Ok(Self::Repair {
                view,
                sender: take_u16(input, "sender rank")?,
                first: take_u64(input, "first number")?,
                casts: take_casts(input)?,
                more: kind == 5,
            }),
            other => Err(WireError::Invalid { what: "multicast message", value: u64::from(other) }),
        }
    }
}

/// The smallest encoded message: empty headers, empty payload.
const CAST_BYTES_MIN: usize = 5;
