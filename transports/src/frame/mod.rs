//! Frames on their way out and in.
//!
//! Guarantee   what [`Outbox`] takes is what [`Inbox`] gives, frame by frame; neither allocates per frame.
//! Layout      on a stream a frame is its length as a little-endian `u32`, then so many bytes. A length beyond the
//!             limit is refused before any memory is reserved for it.
//! Limits      the frame size is checked on both sides. The bytes waiting in an outbox are bounded by its owner, who
//!             reads [`Outbox::bytes`]; the bytes in an inbox by one frame and one read.

mod inbox;
mod outbox;

pub use inbox::Inbox;
pub use outbox::Outbox;

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It is larger than agreed, or its length is garbage.
    #[error("frame of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its length.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The stream ended inside it.
    #[error("stream ended after {got} of {size} bytes of a frame")]
    Truncated {
        /// What came.
        got: usize,
        /// What should have come, as far as is known.
        size: usize,
    },
}

/// The bytes before every frame on a stream: its length, little-endian.
pub const HEADER_BYTES: usize = 4;
/// Bodies from this size on are chained, not copied. Below it one copy is cheaper than one more slice in `writev`.
pub const CHAIN_BYTES_MIN: usize = 8 * 1024;
/// The first read of a link. Small, so that an idle link costs little.
pub const READ_BYTES_MIN: usize = 8 * 1024;
/// The largest read. Larger ones gained nothing on loopback and fall out of the L2 cache.
pub const READ_BYTES_MAX: usize = 128 * 1024;
/// Frames from here on are read each into a buffer of its own size, so that no part of one is copied into the next.
const LARGE_BYTES_MIN: usize = 32 * 1024;

/// The length in a prefix; `bytes` is at least as long as one.
#[inline]
fn length_at(bytes: &[u8]) -> usize {
    match bytes.first_chunk::<HEADER_BYTES>() {
        Some(prefix) => u32::from_le_bytes(*prefix) as usize,
        None => {
            debug_assert!(false, "a length prefix spans two chunks");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use bytes::{BufMut, Bytes};
    use proptest::prelude::*;

    use super::*;

    /// Everything that a stream would carry.
    fn stream(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let filled = outbox.slices(&mut slices);
            let joined: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
            let taken = joined.len().min(step);
            assert!(taken > 0);
            out.extend_from_slice(&joined[..taken]);
            outbox.advance(taken);
        }
        assert_eq!(outbox.frames(), 0);
        out
    }

    #[test]
    fn t01_a_frame_beyond_the_limit_is_refused_on_both_sides() {
        let mut outbox = Outbox::new(4);
        assert_eq!(outbox.push(&[b"ab", b"cde"]), Err(FrameError::TooLarge { size: 5, limit: 4 }));
        assert_eq!(
            outbox.push_with(|out| out.put_slice(b"abcde")),
            Err(FrameError::TooLarge { size: 5, limit: 4 })
        );
        assert!(outbox.is_empty() && outbox.pop_frame().is_none());
        let mut inbox = Inbox::new(4);
        inbox.room().put_slice(&[5, 0, 0, 0]);
        assert_eq!(inbox.next_frame(), Err(FrameError::TooLarge { size: 5, limit: 4 }));
        assert_eq!(
            inbox.push_frame(Bytes::from_static(b"abcde")),
            Err(FrameError::TooLarge { size: 5, limit: 4 })
        );
    }

    #[test]
    fn t01_an_announced_frame_reserves_no_more_than_one_read() {
        let mut inbox = Inbox::new(usize::MAX);
        inbox.room().put_slice(&u32::MAX.to_le_bytes());
        assert_eq!(inbox.next_frame(), Ok(None));
        assert!(inbox.room().capacity() <= 2 * READ_BYTES_MAX);
        assert_eq!(inbox.check_end(), Err(FrameError::Truncated { got: 4, size: 4 + u32::MAX as usize }));
    }

    #[test]
    fn t01_a_large_frame_behind_another_stays_where_it_was_read_to() {
        const LENGTH: usize = 65_000;
        let mut inbox = Inbox::new(LENGTH);
        let frame = [&(LENGTH as u32).to_le_bytes()[..], &[7; LENGTH]].concat();
        inbox.room().put_slice(&frame);
        let first = inbox.next_frame().unwrap().unwrap();
        // What the medium has: the next frame in pieces, as large as there is room for.
        let place = inbox.room().as_ptr();
        for piece in frame.chunks(10_000) {
            let room = inbox.room();
            assert!(room.capacity() - room.len() >= piece.len());
            room.put_slice(piece);
            inbox.filled(piece.len());
        }
        let second = inbox.next_frame().unwrap().unwrap();
        assert_eq!((&first, second.as_ptr()), (&second, place.wrapping_add(HEADER_BYTES)));
    }

    proptest! {
        #[test]
        fn t01_frames_come_out_as_they_went_in(
            frames in prop::collection::vec((0usize..40, prop_oneof![0usize..200, 8000usize..9000]), 0..20),
            step in 1usize..5000,
            as_frames: bool,
        ) {
            let mut outbox = Outbox::new(20_000);
            let mut expected = Vec::new();
            for (index, &(head, body)) in frames.iter().enumerate() {
                let head = vec![index as u8; head];
                let body = vec![!(index as u8); body];
                match index % 3 {
                    0 => outbox.push(&[&head, &body]).unwrap(),
                    1 => outbox.push_body(&[&head], body.clone().into()).unwrap(),
                    _ => outbox.push_with(|out| { out.put_slice(&head); out.put_slice(&body); }).unwrap(),
                }
                expected.push([head, body].concat());
            }
            prop_assert_eq!(outbox.frames(), frames.len());
            let mut got = Vec::new();
            let mut inbox = Inbox::new(20_000);
            if as_frames {
                while let Some(frame) = outbox.pop_frame() {
                    inbox.push_frame(frame).unwrap();
                }
                prop_assert!(outbox.is_empty());
            }
            for piece in stream(&mut outbox, step).chunks(step) {
                inbox.room().put_slice(piece);
                inbox.filled(piece.len());
                while let Some(frame) = inbox.next_frame().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            while let Some(frame) = inbox.with_frame(<[u8]>::to_vec).unwrap() {
                got.push(frame);
            }
            prop_assert_eq!(inbox.check_end(), Ok(()));
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn t01_any_bytes_give_frames_or_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut inbox = Inbox::new(300);
            inbox.room().put_slice(&bytes);
            while let Ok(Some(frame)) = inbox.next_frame() {
                prop_assert!(frame.len() <= 300);
            }
            let _ = inbox.check_end();
        }
    }
}
