//! Frames on their way out.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{CHAIN_BYTES_MIN, FrameError, HEADER_BYTES, length_at};

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
