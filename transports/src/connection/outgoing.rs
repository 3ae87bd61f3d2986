//! What a driver has taken out of the lanes and not yet handed to the link.

use std::ops::Range;

use super::FRAME_BYTES_MAX;
use super::lanes::Lane;
use super::shared::Left;
use crate::frame::Outbox;

/// What is being written on one stream of the link.
pub(super) struct Outgoing {
    /// The lanes that travel on it.
    pub(super) lanes: Range<usize>,
    pub(super) current: Outbox,
    /// Messages that end in it.
    pub(super) messages: usize,
    /// The link took no more, perhaps because it has not passed on what it took.
    pub(super) is_unflushed: bool,
}

impl Outgoing {
    /// One of so many streams: each lane has one, as far as they go; the last one carries the rest.
    pub(super) fn new(stream: usize, streams: usize) -> Self {
        let end = if stream + 1 == streams { Lane::COUNT } else { stream + 1 };
        let current = Outbox::new(FRAME_BYTES_MAX);
        Self { lanes: stream..end, current, messages: 0, is_unflushed: false }
    }

    /// It waits for something to write.
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_empty() && !self.is_unflushed
    }

    pub(super) fn push_control(&mut self, tag: u8, rest: &[u8]) {
        let pushed = self.current.push(&[&[tag], rest]);
        debug_assert!(pushed.is_ok(), "a control frame is small");
    }
}

/// All of it, over the streams of a link.
pub(super) fn in_hand(outgoing: &[Outgoing]) -> Left {
    outgoing.iter().fold(Left::default(), |left, out| Left {
        messages: left.messages + out.messages,
        bytes: left.bytes + out.current.bytes(),
    })
}
