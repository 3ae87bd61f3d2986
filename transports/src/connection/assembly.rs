//! What a frame of an established connection means, and messages made whole again. Pure.
//!
//! Layout of a frame, little-endian; the first byte is its tag:
//! ```text
//! 0000 0mll   a part of a message in lane ll (0 control, 1 urgent, 2 ordinary, 3 bulk); m: more parts follow
//! 0x10        ping, u64          0x11   pong, the same u64
//! 0x12        goodbye, u8: nothing follows on this stream, and so many streams say goodbye
//! ```
//! The streams end behind their goodbyes once the peer's goodbye came and everything before that was delivered.
//! Limits      one incomplete message per lane, each at most the agreed size; memory grows only with what arrived. All
//!             connections that share a [`Budget`] keep within it together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};

use super::lanes::Lane;

/// What a frame turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// A part of a message, or of a goodbye, that is not whole yet.
    Part,
    /// A whole message; a slice of the frame when it came in one.
    Message(Lane, Bytes),
    /// The peer lives and wants to measure.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
    /// The peer sends nothing after this, on any of its streams.
    Goodbye,
}

/// Bytes that the incomplete messages of several connections may take together. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Account { used: AtomicUsize::new(0), bytes_max }))
    }

    /// What is taken now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> Result<(), ProtocolError> {
        let limit = self.0.bytes_max;
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
        match self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(used) => Err(ProtocolError::Memory { used, limit }),
        }
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Makes messages whole.
#[derive(Debug)]
pub struct Assembly {
    parts: [BytesMut; Lane::COUNT],
    message_bytes_max: usize,
    budget: Budget,
    /// Streams that have said goodbye.
    goodbyes: u8,
    is_over: bool,
}

impl Assembly {
    /// Nothing received yet.
    pub fn new(message_bytes_max: usize, budget: Budget) -> Self {
        Self { parts: Default::default(), message_bytes_max, budget, goodbyes: 0, is_over: false }
    }

    /// Takes one frame.
    ///
    /// # Errors
    /// [`ProtocolError`]: the peer does not keep to the protocol, the connection must end.
    pub fn take(&mut self, mut frame: Bytes) -> Result<Received, ProtocolError> {
        if self.is_over {
            return Err(ProtocolError::AfterGoodbye);
        }
        let tag = *frame.first().ok_or(ProtocolError::Empty)?;
        frame.advance(1);
        match tag {
            0..8 => self.take_part(Lane::ALL[usize::from(tag & LANE_MASK)], tag & MORE != 0, frame),
            PING => Ok(Received::Ping(number(&frame)?)),
            PONG => Ok(Received::Pong(number(&frame)?)),
            GOODBYE => {
                let &[streams] = &frame[..] else {
                    return Err(ProtocolError::Length { size: frame.len() });
                };
                self.goodbyes += 1;
                if self.goodbyes < streams {
                    return Ok(Received::Part);
                }
                self.is_over = true;
                match self.parts.iter().position(|part| !part.is_empty()) {
                    Some(lane) => Err(ProtocolError::Unfinished { lane: Lane::ALL[lane] }),
                    None => Ok(Received::Goodbye),
                }
            }
            tag => Err(ProtocolError::UnknownTag { tag }),
        }
    }

    /// Bytes of messages that are not whole yet.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(BytesMut::len).sum()
    }

    fn take_part(&mut self, lane: Lane, more: bool, part: Bytes) -> Result<Received, ProtocolError> {
        let before = &mut self.parts[lane as usize];
        let size = before.len() + part.len();
        if size > self.message_bytes_max {
            return Err(ProtocolError::TooLarge { lane, size, limit: self.message_bytes_max });
        }
        if more {
            if part.is_empty() {
                return Err(ProtocolError::Empty);
            }
            self.budget.take(part.len())?;
            before.extend_from_slice(&part);
            return Ok(Received::Part);
        }
        if before.is_empty() {
            return Ok(Received::Message(lane, part));
        }
        self.budget.give_back(before.len());
        before.extend_from_slice(&part);
        // The buffer goes with the message: a lane that was busy once keeps no memory.
        Ok(Received::Message(lane, std::mem::take(before).freeze()))
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes());
    }
}

/// Why the frames of a peer are taken no further: it broke the protocol, or it sends more than fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A frame without a tag, or a part that carries nothing and yet is not the last.
    #[error("empty frame")]
    Empty,
    /// A tag that this version does not know.
    #[error("unknown frame tag {tag:#04x}")]
    UnknownTag {
        /// The tag.
        tag: u8,
    },
    /// A control frame of the wrong length.
    #[error("control frame with {size} bytes")]
    Length {
        /// Its length.
        size: usize,
    },
    /// A message beyond the agreed limit.
    #[error("message of {size} bytes or more in lane {lane} exceeds the limit of {limit}")]
    TooLarge {
        /// Its lane.
        lane: Lane,
        /// What came of it.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The incomplete messages of all peers together take what they may. Not this peer's fault alone.
    #[error("no room for a part of a message: incomplete ones take {used} of {limit} bytes")]
    Memory {
        /// What they take.
        used: usize,
        /// The limit.
        limit: usize,
    },
    /// A frame behind the goodbye.
    #[error("a frame came after the goodbye")]
    AfterGoodbye,
    /// A goodbye in the middle of a message.
    #[error("goodbye inside a message of lane {lane}")]
    Unfinished {
        /// The message's lane.
        lane: Lane,
    },
}

/// The tag of a part of a message.
pub(super) fn tag(lane: Lane, more: bool) -> u8 {
    lane as u8 | if more { MORE } else { 0 }
}

pub(super) const PING: u8 = 0x10;
pub(super) const PONG: u8 = 0x11;
pub(super) const GOODBYE: u8 = 0x12;
const LANE_MASK: u8 = 3;
const MORE: u8 = 4;

fn number(frame: &Bytes) -> Result<u64, ProtocolError> {
    let number: [u8; 8] = frame[..].try_into().map_err(|_| ProtocolError::Length { size: frame.len() })?;
    Ok(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(assembly: &mut Assembly, frame: &[u8]) -> Result<Received, ProtocolError> {
        assembly.take(Bytes::copy_from_slice(frame))
    }

    #[test]
    fn t08_parts_of_two_lanes_interleave() {
        let mut assembly = Assembly::new(100, Budget::new(usize::MAX));
        assert_eq!(take(&mut assembly, b"\x07bulk"), Ok(Received::Part));
        let urgent = Received::Message(Lane::Urgent, Bytes::from_static(b"urgent"));
        assert_eq!(take(&mut assembly, b"\x01urgent"), Ok(urgent));
        let bulk = Received::Message(Lane::Bulk, Bytes::from_static(b"bulky"));
        assert_eq!(take(&mut assembly, b"\x03y"), Ok(bulk));
        assert_eq!((take(&mut assembly, b"\x12\x01"), assembly.bytes()), (Ok(Received::Goodbye), 0));
        assert_eq!(take(&mut assembly, b"\x00"), Err(ProtocolError::AfterGoodbye));
    }

    #[test]
    fn t08_a_breach_of_the_protocol_is_a_typed_error() {
        let check = |frames: &[&[u8]], expected: ProtocolError| {
            let mut assembly = Assembly::new(4, Budget::new(usize::MAX));
            let last = frames.iter().map(|frame| take(&mut assembly, frame)).last();
            assert_eq!(last, Some(Err(expected)), "{frames:?}");
        };
        check(&[b""], ProtocolError::Empty);
        check(&[b"\x04"], ProtocolError::Empty);
        check(&[b"\x13"], ProtocolError::UnknownTag { tag: 0x13 });
        check(&[b"\x08abc"], ProtocolError::UnknownTag { tag: 8 });
        check(&[b"\x10abc"], ProtocolError::Length { size: 3 });
        check(&[b"\x12"], ProtocolError::Length { size: 0 });
        check(&[b"\x12abc"], ProtocolError::Length { size: 3 });
        check(&[b"\x02abcde"], ProtocolError::TooLarge { lane: Lane::Ordinary, size: 5, limit: 4 });
        check(&[b"\x06abc", b"\x06de"], ProtocolError::TooLarge { lane: Lane::Ordinary, size: 5, limit: 4 });
        check(&[b"\x12\x02", b"\x12\x02", b"\x02a"], ProtocolError::AfterGoodbye);
        check(&[b"\x06abc", b"\x12\x01"], ProtocolError::Unfinished { lane: Lane::Ordinary });
    }

    #[test]
    fn t08_incomplete_messages_of_all_connections_share_one_budget() {
        let budget = Budget::new(8);
        let mut one = Assembly::new(100, budget.clone());
        let mut two = Assembly::new(100, budget.clone());
        assert_eq!(take(&mut one, b"\x06abcde"), Ok(Received::Part));
        assert_eq!(take(&mut two, b"\x07abc"), Ok(Received::Part));
        assert_eq!(take(&mut two, b"\x05x"), Err(ProtocolError::Memory { used: 8, limit: 8 }));
        // A whole message needs none of it, and an ended connection gives its part back.
        assert!(matches!(take(&mut two, b"\x01a whole message"), Ok(Received::Message(..))));
        drop(two);
        assert_eq!(budget.used(), 5);
        assert!(matches!(take(&mut one, b"\x02fghijklmno"), Ok(Received::Message(..))));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn t08_streams_that_overtake_each_other_are_waited_for_until_all_have_said_goodbye() {
        let mut assembly = Assembly::new(100, Budget::new(usize::MAX));
        assert_eq!(take(&mut assembly, b"\x07bul"), Ok(Received::Part));
        assert_eq!(take(&mut assembly, b"\x12\x02"), Ok(Received::Part));
        let bulk = Received::Message(Lane::Bulk, Bytes::from_static(b"bulk"));
        assert_eq!(take(&mut assembly, b"\x03k"), Ok(bulk));
        assert_eq!(take(&mut assembly, b"\x12\x02"), Ok(Received::Goodbye));
    }

    proptest! {
        #[test]
        fn t08_any_frames_are_taken_or_refused_within_the_limit(
            frames in prop::collection::vec(
                (prop_oneof![0u8..8, 0u8..32], prop::collection::vec(any::<u8>(), 0..40)), 0..60),
        ) {
            let mut assembly = Assembly::new(100, Budget::new(usize::MAX));
            for (tag, rest) in frames {
                match take(&mut assembly, &[&[tag], &rest[..]].concat()) {
                    Ok(Received::Message(_, message)) => prop_assert!(message.len() <= 100),
                    Ok(_) => {}
                    Err(_) => break,
                }
                prop_assert!(assembly.bytes() <= 100 * Lane::COUNT);
            }
        }
    }
}
