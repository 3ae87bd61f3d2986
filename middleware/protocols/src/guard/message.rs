//! What guards send each other, and how it is laid out.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Proof, PublicKey};
use crate::machine::Lane;
use crate::wire::{Wire, WireError, take_u8, take_u64};

/// What guards send each other.
#[derive(Clone, PartialEq, Eq)]
pub enum Message {
    /// "Who lives there?"
    Knock {
        /// That the sender has the secret.
        proof: Proof,
    },
    /// "This is I."
    Hello {
        /// The sender's key for this meeting.
        public: PublicKey,
        /// It knows the receiver's.
        is_answer: bool,
        /// That the sender has the secret.
        proof: Proof,
    },
    /// A message of the guarded machine.
    Sealed {
        /// Its lane, and its number there.
        lane: Lane,
        /// How many were sealed before in this lane.
        count: u64,
        /// The sealed message.
        body: Bytes,
    },
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Knock { .. } => write!(f, "knock"),
            Self::Hello { is_answer, .. } => write!(f, "hello (answer: {is_answer})"),
            Self::Sealed { lane, count, body } => write!(f, "{} sealed bytes, {lane:?} {count}", body.len()),
        }
    }
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Knock { proof } => {
                out.put_u8(KNOCK);
                out.put_slice(proof);
            }
            Self::Hello { public, is_answer, proof } => {
                out.put_u8(if *is_answer { ANSWER } else { HELLO });
                out.put_slice(public);
                out.put_slice(proof);
            }
            Self::Sealed { lane, count, body } => {
                out.put_u8(SEALED + *lane as u8);
                out.put_u64_le(*count);
                out.put_slice(body);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let lane = match take_u8(input, "kind of a guard's message")? {
            KNOCK => return Ok(Self::Knock { proof: take(input, "proof")? }),
            kind @ (HELLO | ANSWER) => {
                let (public, is_answer) = (take(input, "public key")?, kind == ANSWER);
                return Ok(Self::Hello { public, is_answer, proof: take(input, "proof")? });
            }
            kind => match kind.wrapping_sub(SEALED) {
                0 => Lane::Control,
                1 => Lane::Urgent,
                2 => Lane::Ordinary,
                3 => Lane::Bulk,
                _ => {
                    return Err(WireError::Invalid { what: "kind of a guard's message", value: kind.into() });
                }
            },
        };
        let count = take_u64(input, "count")?;
        Ok(Self::Sealed { lane, count, body: input.split_to(input.len()) })
    }
}

fn take(input: &mut Bytes, what: &'static str) -> Result<[u8; 32], WireError> {
    match input.first_chunk() {
        Some(bytes) => {
            let bytes = *bytes;
            let _ = input.split_to(32);
            Ok(bytes)
        }
        None => Err(WireError::Truncated { what, needed: 32, left: input.len() }),
    }
}

const KNOCK: u8 = 0;
const HELLO: u8 = 1;
const ANSWER: u8 = 2;
/// The first of four, one for each lane.
const SEALED: u8 = 3;
