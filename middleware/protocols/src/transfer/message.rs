//! What travels: fixed layouts, little-endian, one tag byte first.

use bytes::{BufMut, Bytes, BytesMut};

use super::Question;
use crate::wire::{Wire, WireError, put_bytes, put_count, take_bytes, take_count, take_u8, take_u64};

/// A message that is transferred. The machine does not look into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its number in the transmission queues of the sender; larger than those of all before it, and not zero.
    pub number: u64,
    /// What to store.
    pub body: Bytes,
}

/// What the two ends of a channel tell each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Sender: up to where do you have what I sent?
    Open {
        /// Of the sender's disk.
        birth: u64,
        /// To be repeated in the answer.
        question: Question,
    },
    /// Receiver: this is on my disk.
    Opened {
        /// Of the sender's disk.
        birth: u64,
        /// Which question this answers.
        question: Question,
        /// The last number that is stored; zero for none.
        stored: u64,
        /// The life of the sender's disk that gave this number, as it said; zero if that is not known.
        mark: u64,
        /// Bytes of the largest message of this protocol that the receiver can be sent.
        bytes_max: u64,
    },
    /// Receiver: a disk of yours that I know came to be later.
    Outdated {
        /// Of the sender's disk.
        birth: u64,
        /// Which question this answers.
        question: Question,
        /// The later one.
        known: u64,
    },
    /// Sender: messages.
    Batch {
        /// Of the sender's disk.
        birth: u64,
        /// The life of the process that sends them; it has asked before.
        life: u64,
        /// The life of the sender's disk that gave their numbers.
        mark: u64,
        /// The number of the message before them, or the receiver's position.
        previous: u64,
        /// One at least, in the order of their numbers.
        items: Vec<Item>,
    },
    /// Receiver: now this is on my disk.
    Stored {
        /// Of the sender's disk.
        birth: u64,
        /// The last number that is stored.
        stored: u64,
        /// The life of the sender's disk that gave this number, as it said; zero if that is not known.
        mark: u64,
    },
    /// Receiver: what you sent does not follow what I have.
    Behind {
        /// Of the sender's disk.
        birth: u64,
    },
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Open { birth, question } => {
                out.put_u8(OPEN);
                out.put_u64_le(*birth);
                put_question(out, question);
            }
            Self::Opened { birth, question, stored, mark, bytes_max } => {
                out.put_u8(OPENED);
                out.put_u64_le(*birth);
                put_question(out, question);
                out.put_u64_le(*stored);
                out.put_u64_le(*mark);
                out.put_u64_le(*bytes_max);
            }
            Self::Outdated { birth, question, known } => {
                out.put_u8(OUTDATED);
                out.put_u64_le(*birth);
                put_question(out, question);
                out.put_u64_le(*known);
            }
            Self::Batch { birth, life, mark, previous, items } => {
                out.put_u8(BATCH);
                out.put_u64_le(*birth);
                out.put_u64_le(*life);
                out.put_u64_le(*mark);
                out.put_u64_le(*previous);
                put_count(out, items.len());
                for item in items {
                    out.put_u64_le(item.number);
                    put_bytes(out, &item.body);
                }
            }
            Self::Stored { birth, stored, mark } => {
                out.put_u8(STORED);
                out.put_u64_le(*birth);
                out.put_u64_le(*stored);
                out.put_u64_le(*mark);
            }
            Self::Behind { birth } => {
                out.put_u8(BEHIND);
                out.put_u64_le(*birth);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let kind = take_u8(input, "message kind")?;
        let birth = take_u64(input, "birth")?;
        Ok(match kind {
            OPEN => Self::Open { birth, question: take_question(input)? },
            OPENED => {
                let question = take_question(input)?;
                let stored = take_u64(input, "stored number")?;
                let (mark, bytes_max) = (take_u64(input, "mark")?, take_u64(input, "limit")?);
                Self::Opened { birth, question, stored, mark, bytes_max }
            }
            OUTDATED => {
                let question = take_question(input)?;
                Self::Outdated { birth, question, known: take_u64(input, "known birth")? }
            }
            BATCH => {
                let (life, mark) = (take_u64(input, "life")?, take_u64(input, "mark")?);
                let previous = take_u64(input, "previous number")?;
                let count = take_count(input, ITEM_BYTES, "items")?;
                let mut items = Vec::with_capacity(count);
                let mut last = previous;
                for _ in 0..count {
                    let number = take_u64(input, "number")?;
                    if number <= last {
                        return Err(WireError::Invalid { what: "number", value: number });
                    }
                    last = number;
                    items.push(Item { number, body: take_bytes(input, "body")? });
                }
                Self::Batch { birth, life, mark, previous, items }
            }
            STORED => {
                let stored = take_u64(input, "stored number")?;
                Self::Stored { birth, stored, mark: take_u64(input, "mark")? }
            }
            BEHIND => Self::Behind { birth },
            other => return Err(WireError::Invalid { what: "message kind", value: other.into() }),
        })
    }
}

fn put_question(out: &mut BytesMut, question: &Question) {
    out.put_u64_le(question.life);
    out.put_u64_le(question.number);
}

fn take_question(input: &mut Bytes) -> Result<Question, WireError> {
    Ok(Question { life: take_u64(input, "life")?, number: take_u64(input, "question")? })
}

/// What a batch takes beside its messages.
pub const BATCH_BYTES: usize = 1 + 8 + 8 + 8 + 8 + 4;
/// What a message takes in a batch beside its bytes.
pub const ITEM_BYTES: usize = 8 + 4;
const OPEN: u8 = 1;
const OPENED: u8 = 2;
const BATCH: u8 = 3;
const STORED: u8 = 4;
const BEHIND: u8 = 5;
const OUTDATED: u8 = 6;
