//! What holders, owners and senders say to each other, and its layout.
//!
//! Layout      one byte of kind, then fixed little-endian fields in the order of declaration; lists behind their count.

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::{Wire, WireError, put_count, take_count, take_u8, take_u64};

/// One change of what a holder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The object.
    pub number: u64,
    /// It is held from now on (dirty), or not any more (clean).
    pub is_held: bool,
}

/// One message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectsMessage {
    /// Holder to owner: these are my changes, and I live.
    Claims {
        /// Which of the holder's sessions with this owner; later ones have larger numbers.
        epoch: u64,
        /// The holder's clock, for the answer.
        stamp: u64,
        /// The number of the first change; the first of a session is 1.
        first: u64,
        /// The changes that are not confirmed yet, from the first on.
        changes: Vec<Change>,
    },
    /// Owner to holder: I have applied your changes.
    Known {
        /// The session.
        epoch: u64,
        /// What the claims said.
        stamp: u64,
        /// All changes below are applied. Not beyond those of the claims: the lists say nothing of others.
        next: u64,
        /// Of the objects that were claimed, those that do not exist.
        gone: Vec<u64>,
        /// Those that the holder must not have, because it holds too many.
        refused: Vec<u64>,
    },
    /// Owner to holder: I do not know the session; tell me everything.
    Unknown {
        /// The session.
        epoch: u64,
    },
    /// Receiver to sender: what you passed on is registered, or not needed.
    Arrived {
        /// The pins.
        pins: Vec<u64>,
    },
}

impl Wire for ObjectsMessage {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Claims { epoch, stamp, first, changes } => {
                out.put_u8(CLAIMS);
                out.put_u64_le(*epoch);
                out.put_u64_le(*stamp);
                out.put_u64_le(*first);
                put_count(out, changes.len());
                for change in changes {
                    out.put_u64_le(change.number);
                    out.put_u8(u8::from(change.is_held));
                }
            }
            Self::Known { epoch, stamp, next, gone, refused } => {
                out.put_u8(KNOWN);
                out.put_u64_le(*epoch);
                out.put_u64_le(*stamp);
                out.put_u64_le(*next);
                put_numbers(out, gone);
                put_numbers(out, refused);
            }
            Self::Unknown { epoch } => {
                out.put_u8(UNKNOWN);
                out.put_u64_le(*epoch);
            }
            Self::Arrived { pins } => {
                out.put_u8(ARRIVED);
                put_numbers(out, pins);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(match take_u8(input, "objects message kind")? {
            CLAIMS => {
                let epoch = take_u64(input, "epoch")?;
                let stamp = take_u64(input, "stamp")?;
                let first = take_u64(input, "first change")?;
                let count = take_count(input, CHANGE_BYTES, "changes")?;
                let mut changes = Vec::with_capacity(count);
                for _ in 0..count {
                    let number = take_u64(input, "object")?;
                    let is_held = match take_u8(input, "change")? {
                        0 => false,
                        1 => true,
                        other => return Err(WireError::Invalid { what: "change", value: other.into() }),
                    };
                    changes.push(Change { number, is_held });
                }
                Self::Claims { epoch, stamp, first, changes }
            }
            KNOWN => Self::Known {
                epoch: take_u64(input, "epoch")?,
                stamp: take_u64(input, "stamp")?,
                next: take_u64(input, "next change")?,
                gone: take_numbers(input, "objects that are gone")?,
                refused: take_numbers(input, "objects that are refused")?,
            },
            UNKNOWN => Self::Unknown { epoch: take_u64(input, "epoch")? },
            ARRIVED => Self::Arrived { pins: take_numbers(input, "pins")? },
            other => return Err(WireError::Invalid { what: "objects message kind", value: other.into() }),
        })
    }
}

fn put_numbers(out: &mut BytesMut, numbers: &[u64]) {
    put_count(out, numbers.len());
    for number in numbers {
        out.put_u64_le(*number);
    }
}

fn take_numbers(input: &mut Bytes, what: &'static str) -> Result<Vec<u64>, WireError> {
    let count = take_count(input, size_of::<u64>(), what)?;
    (0..count).map(|_| take_u64(input, what)).collect()
}

const CHANGE_BYTES: usize = 9;

const CLAIMS: u8 = 1;
const KNOWN: u8 = 2;
const UNKNOWN: u8 = 3;
const ARRIVED: u8 = 4;
