//! Frames on their way out and in.
//!
//! Guarantee   what [`Outbox`] takes is what [`Inbox`] gives, frame by frame; neither allocates per frame.
//! Layout      on a stream a frame is its length as a little-endian `u32`, then so many bytes. A length beyond the
//!             limit is refused before any memory is reserved for it.
//! Limits      the frame size is checked on both sides. The bytes waiting in an outbox are bounded by its owner, who
//!             reads [`Outbox::bytes`]; the bytes in an inbox by one frame and one read.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Frames to be sent, encoded by the caller straight into it.
#[derive(Debug)]
pub struct Outbox {
    /// Chunks before `tail`, oldest first. A chunk begins anywhere, but a length prefix never spans two chunks.
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    frames: usize,
    /// What is left of the front frame when a part of it was written; 0 at a frame boundary.
    front_left: usize,
    frame_bytes_max: usize,
}

impl Outbox {
    /// An empty outbox for frames of at most `frame_bytes_max` bytes (at most `u32::MAX`).
    pub fn new(frame_bytes_max: usize) -> Self {
        let frame_bytes_max = frame_bytes_max.min(u32::MAX as usize);
        Self {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            bytes: 0,
            frames: 0,
            front_left: 0,
            frame_bytes_max,
        }
    }

    /// Appends one frame, copying its parts.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; the outbox is unchanged.
    #[inline]
    pub fn push(&mut self, parts: &[&[u8]]) -> Result<(), FrameError> {
        let length = parts.iter().map(|part| part.len()).sum();
        self.begin(length, length)?;
        for part in parts {
            self.tail.put_slice(part);
        }
        Ok(())
    }

    /// Appends one frame: `head` is copied, `body` follows it. A body from [`CHAIN_BYTES_MIN`] on is not copied.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; the outbox is unchanged.
    #[inline]
    pub fn push_body(&mut self, head: &[&[u8]], body: Bytes) -> Result<(), FrameError> {
        self.push_prefixed(&[], head, body)
    }

    /// As [`push_body`](Self::push_body), with one byte before the head: what the connection layer marks frames with.
    #[inline]
    pub(crate) fn push_tagged(&mut self, tag: u8, head: &[&[u8]], body: Bytes) -> Result<(), FrameError> {
        self.push_prefixed(&[tag], head, body)
    }

    /// Makes room for `bytes` bytes of frames that will be copied.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.tail.reserve(bytes);
    }

    /// Appends to the frame that was pushed last, of `length` bytes, which must lie in one piece at the end: its body
    /// was copied, and nothing of it has been written.
    #[inline]
    pub(crate) fn extend_last(&mut self, length: usize, parts: &[&[u8]]) {
        let added: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(length + added <= self.frame_bytes_max);
        self.tail.reserve(added);
        let Some(start) = self.tail.len().checked_sub(HEADER_BYTES + length) else {
            debug_assert!(false, "the last frame lies in the tail");
            return;
        };
        for part in parts {
            match part {
                // Most begin with a length, and many have an empty part: no call of a function for these.
                [] => {}
                [a, b, c, d] => self.tail.put_slice(&[*a, *b, *c, *d]),
                part => self.tail.put_slice(part),
            }
        }
        self.tail[start..start + HEADER_BYTES].copy_from_slice(&((length + added) as u32).to_le_bytes());
        self.bytes += added;
    }

    /// Moves all frames of `other`, none of them partly written, behind those of this one, without copying them.
    pub(crate) fn append(&mut self, other: &mut Self) {
        debug_assert_eq!(other.front_left, 0);
        for part in [self.tail.split().freeze()].into_iter().chain(other.chunks.drain(..)) {
            if !part.is_empty() {
                self.chunks.push_back(part);
            }
        }
        self.tail = other.tail.split();
        self.bytes += std::mem::take(&mut other.bytes);
        self.frames += std::mem::take(&mut other.frames);
    }

    /// Appends one frame that `encode` writes in place; it must only append.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; the outbox is unchanged.
    #[inline]
    pub fn push_with(&mut self, encode: impl FnOnce(&mut BytesMut)) -> Result<(), FrameError> {
        let start = self.tail.len();
        self.tail.put_u32_le(0);
        encode(&mut self.tail);
        let length = self.tail.len().saturating_sub(start + HEADER_BYTES);
        if length > self.frame_bytes_max {
            self.tail.truncate(start);
            return Err(FrameError::TooLarge { size: length, limit: self.frame_bytes_max });
        }
        self.tail[start..start + HEADER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
        self.bytes += HEADER_BYTES + length;
        self.frames += 1;
        Ok(())
    }

    /// Bytes waiting, length prefixes included.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames waiting, one that is partly written included.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// True when nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The largest frame that it takes.
    pub fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// Fills `slices` with what comes next on a stream and returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail: &[u8] = &self.tail;
        let parts = self.chunks.iter().map(|chunk| &chunk[..]).chain(std::iter::once(tail));
        let mut filled = 0;
        for (slot, part) in slices.iter_mut().zip(parts.filter(|part| !part.is_empty())) {
            *slot = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    /// Drops the first `count` bytes: a stream has taken them.
    ///
    /// `count` beyond [`bytes`](Self::bytes) is taken as all of them.
    pub fn advance(&mut self, count: usize) {
        debug_assert!(count <= self.bytes);
        if count >= self.bytes {
            // The common case needs no walk.
            self.chunks.clear();
            self.tail.clear();
            (self.bytes, self.frames, self.front_left) = (0, 0, 0);
            return;
        }
        let mut left = count;
        self.bytes -= left;
        while left > 0 {
            let chunk: &[u8] = self.chunks.front().map_or(&self.tail[..], |chunk| &chunk[..]);
            let taken = left.min(chunk.len());
            let mut at = 0;
            while at < taken {
                if self.front_left == 0 {
                    self.front_left = HEADER_BYTES + length_at(&chunk[at..]);
                }
                let step = self.front_left.min(taken - at);
                at += step;
                self.front_left -= step;
                if self.front_left == 0 {
                    self.frames -= 1;
                }
            }
            left -= taken;
            self.drop_front(taken);
        }
    }

    /// Takes the first frame, for media and wrappers that carry frames and not bytes. Do not mix with
    /// [`advance`](Self::advance): behind a frame that is partly written there is nothing whole to take.
    pub fn pop_frame(&mut self) -> Option<Bytes> {
        if self.bytes == 0 || self.front_left != 0 {
            debug_assert!(self.front_left == 0, "a medium takes bytes or frames, never both");
            return None;
        }
        while self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
        let chunk: &[u8] = self.chunks.front().map_or(&self.tail[..], |chunk| &chunk[..]);
        let length = length_at(chunk);
        let whole = chunk.len() >= HEADER_BYTES + length;
        self.bytes -= HEADER_BYTES + length;
        self.frames -= 1;
        self.drop_front(HEADER_BYTES);
        if whole {
            if let Some(chunk) = self.chunks.front_mut() {
                return Some(chunk.split_to(length));
            }
            return Some(self.tail.split_to(length).freeze());
        }
        // The body is a chunk of its own; without a head before it there is nothing to join.
        let mut joined = BytesMut::with_capacity(length);
        while joined.len() < length {
            let wanted = length - joined.len();
            match self.chunks.front_mut() {
                Some(chunk) if chunk.is_empty() => {
                    self.chunks.pop_front();
                }
                Some(chunk) if joined.is_empty() && chunk.len() == wanted => return self.chunks.pop_front(),
                Some(chunk) => {
                    let part = chunk.split_to(wanted.min(chunk.len()));
                    joined.put_slice(&part);
                }
                None => joined.put_slice(&self.tail.split_to(wanted.min(self.tail.len()))),
            }
        }
        Some(joined.freeze())
    }

    #[inline]
    fn push_prefixed(&mut self, prefix: &[u8], head: &[&[u8]], body: Bytes) -> Result<(), FrameError> {
        let head_bytes = prefix.len() + head.iter().map(|part| part.len()).sum::<usize>();
        let chain = body.len() >= CHAIN_BYTES_MIN;
        let copied = if chain { head_bytes } else { head_bytes + body.len() };
        self.begin(head_bytes + body.len(), copied)?;
        self.tail.put_slice(prefix);
        for part in head {
            self.tail.put_slice(part);
        }
        if chain {
            self.chunks.push_back(self.tail.split().freeze());
            self.chunks.push_back(body);
        } else {
            self.tail.put_slice(&body);
        }
        Ok(())
    }

    /// Checks the size and writes the prefix; `copied` bytes are about to follow in the tail.
    #[inline]
    fn begin(&mut self, length: usize, copied: usize) -> Result<(), FrameError> {
        if length > self.frame_bytes_max {
            return Err(FrameError::TooLarge { size: length, limit: self.frame_bytes_max });
        }
        self.tail.reserve(HEADER_BYTES + copied);
        self.tail.put_u32_le(length as u32);
        self.bytes += HEADER_BYTES + length;
        self.frames += 1;
        Ok(())
    }

    /// Drops `count` bytes of the front chunk.
    fn drop_front(&mut self, count: usize) {
        match self.chunks.front_mut() {
            Some(chunk) => {
                chunk.advance(count);
                if chunk.is_empty() {
                    self.chunks.pop_front();
                }
            }
            None => self.tail.advance(count),
        }
    }
}

/// What has arrived and was not taken yet.
#[derive(Debug)]
pub struct Inbox {
    /// Bytes of a stream; the front is at a frame boundary.
    buffer: BytesMut,
    /// Whole frames of media that carry frames.
    whole: VecDeque<Bytes>,
    whole_bytes: usize,
    read_bytes: usize,
    /// The size of the last frame when that was a large one, or 0.
    large_bytes: usize,
    /// The buffer grew for a large frame; it is given back when the frame is taken.
    is_grown: bool,
    frame_bytes_max: usize,
}

impl Inbox {
    /// An empty inbox that refuses frames beyond `frame_bytes_max` bytes.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            whole: VecDeque::new(),
            whole_bytes: 0,
            read_bytes: READ_BYTES_MIN,
            large_bytes: 0,
            is_grown: false,
            frame_bytes_max: frame_bytes_max.min(u32::MAX as usize),
        }
    }

    /// Takes the next whole frame as a slice of the read buffer.
    ///
    /// The frame keeps the buffer that it came in alive (up to [`READ_BYTES_MAX`] and shared with its neighbours):
    /// who keeps a small frame for long copies it.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`], again and again: the stream is of no further use.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        if !self.whole.is_empty() {
            return Ok(self.next_whole());
        }
        let Some(length) = self.whole_length()? else { return Ok(None) };
        self.expect_after(length);
        self.buffer.advance(HEADER_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Hands the next whole frame to `take` without counting references: the fastest form, for frames that are
    /// decoded at once. `None` when no whole frame is there.
    ///
    /// # Errors
    /// As [`next_frame`](Self::next_frame).
    #[inline]
    pub fn with_frame<R>(&mut self, take: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, FrameError> {
        if !self.whole.is_empty() {
            return Ok(self.next_whole().map(|frame| take(&frame)));
        }
        let Some(length) = self.whole_length()? else { return Ok(None) };
        self.expect_after(length);
        let result = take(&self.buffer[HEADER_BYTES..HEADER_BYTES + length]);
        self.buffer.advance(HEADER_BYTES + length);
        Ok(Some(result))
    }

    /// Bytes that were received and not taken.
    pub fn bytes(&self) -> usize {
        self.buffer.len() + self.whole_bytes
    }

    /// The largest frame that it takes.
    pub fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// Changes the largest frame, once a handshake has agreed on it.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max.min(u32::MAX as usize);
    }

    /// For stream media: a buffer with room for a read behind what is there. Only append to it, then tell
    /// [`filled`](Self::filled).
    pub fn room(&mut self) -> &mut BytesMut {
        // A frame that is partly here asks for its rest, but never more at once than one read: a peer that announces
        // a large frame and sends nothing costs nothing. Behind a large frame another one is expected.
        let frame = match self.buffer.get(..HEADER_BYTES) {
            Some(header) => HEADER_BYTES + length_at(header),
            None => self.large_bytes,
        };
        let rest = frame.saturating_sub(self.buffer.len()).clamp(1, READ_BYTES_MAX);
        let is_large = frame >= LARGE_BYTES_MIN;
        let wanted = if is_large { rest } else { rest.max(self.read_bytes) };
        let spare = self.buffer.capacity() - self.buffer.len();
        // Prefer the room that is there while it is worth a read, and reuse the buffer when nobody else holds it. A
        // large frame gets a buffer in which all of it has room: what came with the one before would be copied.
        if spare < wanted && !self.buffer.try_reclaim(wanted) && (is_large || spare < wanted / 2) {
            self.buffer.reserve(wanted);
            self.is_grown |= self.buffer.capacity() > 2 * READ_BYTES_MAX;
        }
        &mut self.buffer
    }

    /// For stream media: `count` bytes were appended to [`room`](Self::room). A read that filled the room makes the
    /// next one larger, up to [`READ_BYTES_MAX`].
    pub fn filled(&mut self, count: usize) {
        if count >= self.read_bytes {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
    }

    /// For stream media at the end of the stream: was it at a frame boundary?
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when a frame is incomplete, [`FrameError::TooLarge`] when one is not acceptable.
    pub fn check_end(&self) -> Result<(), FrameError> {
        let mut rest: &[u8] = &self.buffer;
        while !rest.is_empty() {
            if rest.len() < HEADER_BYTES {
                return Err(FrameError::Truncated { got: rest.len(), size: HEADER_BYTES });
            }
            let length = length_at(rest);
            if length > self.frame_bytes_max {
                return Err(FrameError::TooLarge { size: length, limit: self.frame_bytes_max });
            }
            rest = rest
                .get(HEADER_BYTES + length..)
                .ok_or(FrameError::Truncated { got: rest.len(), size: HEADER_BYTES + length })?;
        }
        Ok(())
    }

    /// For media that carry frames: one frame arrived.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; the frame is dropped and the link must be given up.
    pub fn push_frame(&mut self, frame: Bytes) -> Result<(), FrameError> {
        if frame.len() > self.frame_bytes_max {
            return Err(FrameError::TooLarge { size: frame.len(), limit: self.frame_bytes_max });
        }
        self.whole_bytes += frame.len();
        self.whole.push_back(frame);
        Ok(())
    }

    #[inline]
    fn expect_after(&mut self, length: usize) {
        let frame = HEADER_BYTES + length;
        self.large_bytes = if frame >= LARGE_BYTES_MIN { frame } else { 0 };
    }

    fn next_whole(&mut self) -> Option<Bytes> {
        let frame = self.whole.pop_front()?;
        self.whole_bytes -= frame.len();
        Some(frame)
    }

    /// The length of the next frame when all of it is in the buffer.
    #[inline]
    fn whole_length(&self) -> Result<Option<usize>, FrameError> {
        let Some(header) = self.buffer.get(..HEADER_BYTES) else { return Ok(None) };
        let length = length_at(header);
        if length > self.frame_bytes_max {
            return Err(FrameError::TooLarge { size: length, limit: self.frame_bytes_max });
        }
        Ok((self.buffer.len() - HEADER_BYTES >= length).then_some(length))
    }
}

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
    use super::*;
    use proptest::prelude::*;

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
