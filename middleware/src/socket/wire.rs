//! What sockets say to each other. Little-endian; described in docs/wire.md.
//!
//! Limits      every length is checked before anything is reserved for it; a frame that breaks a rule is a
//!             [`Malformed`] and ends its link.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::flow::Amount;

/// What kind of socket a link leads to, on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Pair = 1,
    Push = 2,
    Pull = 3,
    Publisher = 4,
    Subscriber = 5,
    Requester = 6,
    Replier = 7,
    Router = 8,
    Dealer = 9,
    Surveyor = 10,
    Respondent = 11,
    Stream = 12,
    Communicator = 13,
}

impl Role {
    /// Whether two kinds understand each other.
    pub(super) fn fits(self, other: Self) -> bool {
        use Role::{
            Communicator, Dealer, Pair, Publisher, Pull, Push, Replier, Requester, Respondent, Router,
            Stream, Subscriber, Surveyor,
        };
        matches!(
            (self, other),
            (Pair, Pair)
                | (Push, Pull)
                | (Pull, Push)
                | (Publisher, Subscriber)
                | (Subscriber, Publisher)
                | (Requester, Replier)
                | (Replier, Requester)
                | (Router, Dealer)
                | (Dealer, Router | Dealer)
                | (Surveyor, Respondent)
                | (Respondent, Surveyor)
                | (Stream, Stream)
                | (Communicator, Communicator)
        )
    }

    fn of(number: u8) -> Option<Self> {
        const ALL: [Role; 13] = [
            Role::Pair,
            Role::Push,
            Role::Pull,
            Role::Publisher,
            Role::Subscriber,
            Role::Requester,
            Role::Replier,
            Role::Router,
            Role::Dealer,
            Role::Surveyor,
            Role::Respondent,
            Role::Stream,
            Role::Communicator,
        ];
        ALL.into_iter().find(|role| *role as u8 == number)
    }
}

/// Why a link was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The kinds of the two sockets do not fit, such as push with push.
    #[error("the kinds of the sockets do not fit together")]
    Kind,
    /// The other socket has as many links as it may: a pair has one, a listener its backlog.
    #[error("the socket has all the links that it may have")]
    Busy,
    /// The other side speaks another version.
    #[error("the socket speaks another version")]
    Version,
}

/// A frame between sockets, but for data. A close tells all messages of the link, by class: nothing follows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    Hello { role: Role, channel: u64, link: u32, windows: [Amount; 2], name: Bytes },
    Welcome { to: u32, link: u32, windows: [Amount; 2] },
    Reject { to: u32, reason: Rejection },
    Grant { to: u32, class: Class, granted: Amount },
    Close { to: u32, sent: [u64; 2] },
    Closed { to: u32 },
    Filter { to: u32, serial: u64, is_wanted: bool, prefix: Bytes },
    Filtered { to: u32, serial: u64 },
}

/// Messages with a flow of their own on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Ordinary = 0,
    Urgent = 1,
}

/// What is before the items of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataHead {
    pub(super) class: Class,
    pub(super) to: u32,
    /// The number of the first item, and the bytes of all items before it.
    pub(super) at: Amount,
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// A frame as it comes.
pub(super) enum Frame {
    Data(DataHead, Bytes),
    Control(Control),
    /// A hello of another version, to be refused in words that it understands.
    OtherVersion {
        channel: u64,
        link: u32,
    },
}

impl DataHead {
    #[inline]
    pub(super) fn encode(&self) -> [u8; DATA_HEAD_BYTES] {
        let mut out = [0; DATA_HEAD_BYTES];
        out[0] = DATA + self.class as u8;
        out[1..5].copy_from_slice(&self.to.to_le_bytes());
        out[5..13].copy_from_slice(&self.at.messages.to_le_bytes());
        out[13..21].copy_from_slice(&self.at.bytes.to_le_bytes());
        out
    }
}

pub(super) fn decode(mut frame: Bytes) -> Result<Frame, Malformed> {
    let kind = take_u8(&mut frame)?;
    let control = match kind {
        DATA | URGENT => {
            let class = if kind == DATA { Class::Ordinary } else { Class::Urgent };
            let head = DataHead { class, to: take_u32(&mut frame)?, at: take_amount(&mut frame)? };
            return Ok(Frame::Data(head, frame));
        }
        HELLO => {
            let version = take_u8(&mut frame)?;
            let role = take_u8(&mut frame)?;
            let (channel, link) = (take_u64(&mut frame)?, take_u32(&mut frame)?);
            if version != VERSION {
                return Ok(Frame::OtherVersion { channel, link });
            }
            let role = Role::of(role).ok_or(Malformed)?;
            let windows = [take_amount(&mut frame)?, take_amount(&mut frame)?];
            let name = take_short(&mut frame)?;
            Control::Hello { role, channel, link, windows, name }
        }
        WELCOME => Control::Welcome {
            to: take_u32(&mut frame)?,
            link: take_u32(&mut frame)?,
            windows: [take_amount(&mut frame)?, take_amount(&mut frame)?],
        },
        REJECT => Control::Reject {
            to: take_u32(&mut frame)?,
            reason: match take_u8(&mut frame)? {
                1 => Rejection::Kind,
                2 => Rejection::Busy,
                3 => Rejection::Version,
                _ => return Err(Malformed),
            },
        },
        GRANT => Control::Grant {
            to: take_u32(&mut frame)?,
            class: match take_u8(&mut frame)? {
                0 => Class::Ordinary,
                1 => Class::Urgent,
                _ => return Err(Malformed),
            },
            granted: take_amount(&mut frame)?,
        },
        CLOSE => {
            Control::Close { to: take_u32(&mut frame)?, sent: [take_u64(&mut frame)?, take_u64(&mut frame)?] }
        }
        CLOSED => Control::Closed { to: take_u32(&mut frame)? },
        FILTER => Control::Filter {
            to: take_u32(&mut frame)?,
            serial: take_u64(&mut frame)?,
            is_wanted: match take_u8(&mut frame)? {
                0 => false,
                1 => true,
                _ => return Err(Malformed),
            },
            prefix: take_short(&mut frame)?,
        },
        FILTERED => Control::Filtered { to: take_u32(&mut frame)?, serial: take_u64(&mut frame)? },
        _ => return Err(Malformed),
    };
    if frame.has_remaining() { Err(Malformed) } else { Ok(Frame::Control(control)) }
}

impl Control {
    pub(super) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(80);
        match self {
            Self::Hello { role, channel, link, windows, name } => {
                out.put_slice(&[HELLO, VERSION, *role as u8]);
                out.put_u64_le(*channel);
                out.put_u32_le(*link);
                windows.iter().for_each(|window| put_amount(&mut out, *window));
                put_short(&mut out, name);
            }
            Self::Welcome { to, link, windows } => {
                out.put_u8(WELCOME);
                out.put_u32_le(*to);
                out.put_u32_le(*link);
                windows.iter().for_each(|window| put_amount(&mut out, *window));
            }
            Self::Reject { to, reason } => {
                out.put_u8(REJECT);
                out.put_u32_le(*to);
                out.put_u8(match reason {
                    Rejection::Kind => 1,
                    Rejection::Busy => 2,
                    Rejection::Version => 3,
                });
            }
            Self::Grant { to, class, granted } => {
                out.put_u8(GRANT);
                out.put_u32_le(*to);
                out.put_u8(*class as u8);
                put_amount(&mut out, *granted);
            }
            Self::Close { to, sent } => {
                out.put_u8(CLOSE);
                out.put_u32_le(*to);
                sent.iter().for_each(|messages| out.put_u64_le(*messages));
            }
            Self::Closed { to } => {
                out.put_u8(CLOSED);
                out.put_u32_le(*to);
            }
            Self::Filter { to, serial, is_wanted, prefix } => {
                out.put_u8(FILTER);
                out.put_u32_le(*to);
                out.put_u64_le(*serial);
                out.put_u8(u8::from(*is_wanted));
                put_short(&mut out, prefix);
            }
            Self::Filtered { to, serial } => {
                out.put_u8(FILTERED);
                out.put_u32_le(*to);
                out.put_u64_le(*serial);
            }
        }
        out
    }
}

/// How many items a data frame's rest holds: each its length `u32`, then so many bytes.
pub(super) fn count_items(mut rest: &[u8]) -> Result<u64, Malformed> {
    let mut count = 0;
    while !rest.is_empty() {
        let length = item_length(rest).ok_or(Malformed)?;
        rest = rest.get(ITEM_OVERHEAD + length..).ok_or(Malformed)?;
        count += 1;
    }
    Ok(count)
}

/// The length of the first item.
#[inline]
pub(super) fn item_length(rest: &[u8]) -> Option<usize> {
    rest.first_chunk().map(|length| u32::from_le_bytes(*length) as usize)
}

/// Takes the next item as a slice of the frame, which must have been counted.
#[inline]
pub(super) fn next_item(rest: &mut Bytes) -> Option<Bytes> {
    let length = item_length(rest)?;
    rest.advance(ITEM_OVERHEAD);
    Some(rest.split_to(length.min(rest.len())))
}

/// Takes the next item without counting a reference.
#[inline]
pub(super) fn next_slice<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = item_length(rest)?;
    let (item, after) = rest[ITEM_OVERHEAD..].split_at_checked(length)?;
    *rest = after;
    Some(item)
}

fn put_amount(out: &mut BytesMut, amount: Amount) {
    out.put_u64_le(amount.messages);
    out.put_u64_le(amount.bytes);
}

fn put_short(out: &mut BytesMut, bytes: &[u8]) {
    debug_assert!(bytes.len() <= SHORT_BYTES_MAX);
    let length = bytes.len().min(SHORT_BYTES_MAX);
    out.put_u16_le(length as u16);
    out.put_slice(&bytes[..length]);
}

fn take_u8(frame: &mut Bytes) -> Result<u8, Malformed> {
    frame.try_get_u8().map_err(|_| Malformed)
}

fn take_u32(frame: &mut Bytes) -> Result<u32, Malformed> {
    frame.try_get_u32_le().map_err(|_| Malformed)
}

fn take_u64(frame: &mut Bytes) -> Result<u64, Malformed> {
    frame.try_get_u64_le().map_err(|_| Malformed)
}

fn take_amount(frame: &mut Bytes) -> Result<Amount, Malformed> {
    Ok(Amount { messages: take_u64(frame)?, bytes: take_u64(frame)? })
}

fn take_short(frame: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = usize::from(frame.try_get_u16_le().map_err(|_| Malformed)?);
    if frame.len() < length { Err(Malformed) } else { Ok(frame.split_to(length)) }
}

/// The largest prefix and name.
pub(super) const SHORT_BYTES_MAX: usize = 1024;
/// Before every item: its length.
pub(super) const ITEM_OVERHEAD: usize = 4;
const DATA_HEAD_BYTES: usize = 21;
const VERSION: u8 = 1;
const DATA: u8 = 1;
const URGENT: u8 = 2;
const HELLO: u8 = 3;
const WELCOME: u8 = 4;
const REJECT: u8 = 5;
const GRANT: u8 = 6;
const CLOSE: u8 = 7;
const CLOSED: u8 = 8;
const FILTER: u8 = 9;
const FILTERED: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use proptest::test_runner::{Config, TestRunner};

    fn controls() -> Vec<Control> {
        let amount = |messages| Amount { messages, bytes: messages << 9 };
        let windows = [amount(3), amount(4)];
        let mut all = vec![
            Control::Hello { role: Role::Dealer, channel: 1 << 60, link: 7, windows, name: "me".into() },
            Control::Welcome { to: 7, link: 8, windows },
            Control::Grant { to: 7, class: Class::Urgent, granted: amount(9) },
            Control::Close { to: 7, sent: [1 << 40, 3] },
            Control::Closed { to: 7 },
            Control::Filter { to: 7, serial: 1, is_wanted: true, prefix: "news".into() },
            Control::Filtered { to: 7, serial: 1 },
        ];
        let reasons = [Rejection::Kind, Rejection::Busy, Rejection::Version];
        all.extend(reasons.map(|reason| Control::Reject { to: 7, reason }));
        all
    }

    #[test]
    fn every_frame_comes_back_as_it_was_and_no_part_of_it_does() {
        for control in controls() {
            let bytes = control.encode().freeze();
            match decode(bytes.clone()) {
                Ok(Frame::Control(back)) => assert_eq!(back, control),
                _ => panic!("{control:?}"),
            }
            for end in 0..bytes.len() {
                assert!(matches!(decode(bytes.slice(..end)), Err(Malformed)), "{control:?} cut at {end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(matches!(decode(longer.into()), Err(Malformed)), "{control:?} and a byte");
        }
    }

    #[test]
    fn items_are_counted_and_a_lie_about_a_length_is_found() {
        let frame = [&[1, 0, 0, 0, 9][..], &[0, 0, 0, 0], &[2, 0, 0, 0, 7, 8]].concat();
        assert_eq!(count_items(&frame), Ok(3));
        let mut rest = Bytes::from(frame.clone());
        let items: Vec<_> = std::iter::from_fn(|| next_item(&mut rest)).collect();
        assert_eq!(items, [&[9][..], &[], &[7, 8]]);
        let mut rest = &frame[..];
        let slices: Vec<_> = std::iter::from_fn(|| next_slice(&mut rest)).collect();
        assert_eq!(slices, items);
        assert_eq!(count_items(&frame[..frame.len() - 1]), Err(Malformed));
        assert_eq!(count_items(&[255, 255, 255, 255]), Err(Malformed));
        assert_eq!(count_items(&[1, 0]), Err(Malformed));
    }

    /// Tries a property on as many values as is usual, or on new ones for the seconds of `QUORATE_FUZZ_SECONDS`.
    fn fuzz<S: Strategy>(values: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
        let seconds = std::env::var("QUORATE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds.unwrap_or(0));
        let config = Config { source_file: Some(file!()), ..Config::default() };
        loop {
            let outcome = TestRunner::new(config.clone()).run(&values, &property);
            outcome.unwrap_or_else(|failure| panic!("{failure}"));
            if std::time::Instant::now() >= end {
                return;
            }
        }
    }

    #[test]
    fn s03_any_bytes_are_refused_or_are_the_one_encoding_of_what_they_mean() {
        let any_bytes = prop::collection::vec(prop_oneof![2 => 0u8..14, 1 => any::<u8>()], 0..100);
        let edits = prop::collection::vec((any::<Index>(), any::<u8>()), 0..4);
        let edited = (prop::sample::select(controls()), edits).prop_map(|(control, edits)| {
            let mut bytes = control.encode().to_vec();
            for (at, value) in edits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes
        });
        fuzz(prop_oneof![any_bytes, edited], |bytes| {
            match decode(Bytes::from(bytes.clone())) {
                Ok(Frame::Control(control)) => prop_assert_eq!(&control.encode()[..], &bytes[..]),
                Ok(Frame::Data(head, items)) => {
                    prop_assert_eq!([&head.encode()[..], &items[..]].concat(), bytes);
                    let mut rest = items.clone();
                    if let Ok(count) = count_items(&items) {
                        let taken: usize =
                            (0..count).filter_map(|_| next_item(&mut rest)).map(|item| item.len()).sum();
                        prop_assert!(
                            rest.is_empty() && taken + ITEM_OVERHEAD * count as usize == items.len()
                        );
                    }
                }
                Ok(Frame::OtherVersion { .. }) => prop_assert!(bytes[0] == HELLO && bytes[1] != VERSION),
                Err(Malformed) => {}
            }
            Ok(())
        });
    }
}
