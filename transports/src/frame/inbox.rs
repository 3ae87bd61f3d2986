//! Frames on their way in.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::{FrameError, HEADER_BYTES, LARGE_BYTES_MIN, READ_BYTES_MAX, READ_BYTES_MIN, length_at};

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
