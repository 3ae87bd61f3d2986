//! What waits to be sent, and what goes next. Pure.
//!
//! Guarantee   first in first out within a lane; an earlier lane goes first, except that a lane which was passed
//!             over [`PASSED_OVER_MAX`] times in a row gets one turn, so that nothing starves.
//! Method      a lane is a queue of encoded segments of at most one chunk; a turn hands over a whole segment without
//!             copying it, so the cost per message is the copy into the segment.
//! Limits      `lane_bytes_max` per lane, exceeded by at most one message and what was held back; never more than one
//!             chunk per turn, so that a message of an earlier lane waits for no more than that.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::assembly::tag;
use super::{CHUNK_BYTES, FRAME_BYTES_MAX};
use crate::frame::{HEADER_BYTES, Outbox};

/// How urgent a message is beside other traffic on the same connection; a later lane never holds up an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats, view changes, acknowledgements.
    Control,
    /// Small messages that must not wait behind ordinary ones.
    Urgent,
    /// Everything else.
    Ordinary,
    /// Large transfers.
    Bulk,
}

impl Lane {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All of them, most urgent first.
    pub const ALL: [Self; Self::COUNT] = [Self::Control, Self::Urgent, Self::Ordinary, Self::Bulk];
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Urgent => "urgent",
            Self::Ordinary => "ordinary",
            Self::Bulk => "bulk",
        })
    }
}

/// The waiting messages of one connection.
#[derive(Debug)]
pub struct LaneQueues {
    lanes: [LaneQueue; Lane::COUNT],
    /// Emptied outboxes, for their memory.
    spare: Vec<Outbox>,
    message_bytes_max: usize,
}

/// Figures of one lane of a connection. Totals only grow, but for what waits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LaneStats {
    /// Messages that were queued.
    pub messages_queued: u64,
    /// Their bytes, overhead included.
    pub bytes_queued: u64,
    /// Messages that were turned away because the lane was full; nothing of them was queued.
    pub messages_refused: u64,
    /// Messages that wait now, the one that is partly sent included.
    pub messages_waiting: usize,
    /// Bytes that wait now, overhead included.
    pub bytes_waiting: usize,
    /// Messages that came in whole.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
}

#[derive(Debug, Default)]
struct LaneQueue {
    segments: VecDeque<Segment>,
    bytes: usize,
    messages: usize,
    bytes_max: usize,
    passed_over: usize,
    is_refusing: bool,
    /// The last frame of the last segment, as long as items may be joined to it.
    open: Option<OpenFrame>,
    messages_queued: u64,
    bytes_queued: u64,
    messages_refused: u64,
}

#[derive(Debug, Clone, Copy)]
struct OpenFrame {
    stamp: u64,
    /// Its bytes, the tag included.
    length: usize,
}

#[derive(Debug)]
struct Segment {
    outbox: Outbox,
    /// Messages that end in it.
    messages: usize,
}

impl LaneQueues {
    /// Nothing waits.
    pub fn new(message_bytes_max: usize, lane_bytes_max: [usize; Lane::COUNT]) -> Self {
        let lanes = lane_bytes_max.map(|bytes_max| LaneQueue { bytes_max, ..LaneQueue::default() });
        Self { lanes, spare: Vec::new(), message_bytes_max }
    }

    /// Queues one message made of `parts`, which are copied, and `body`, which is not copied when it is large.
    ///
    /// # Errors
    /// [`SendError::TooLarge`], [`SendError::Full`]; nothing was queued.
    pub fn push(&mut self, lane: Lane, parts: &[&[u8]], body: Bytes) -> Result<(), SendError> {
        let size = parts.iter().map(|part| part.len()).sum::<usize>() + body.len();
        if size > self.message_bytes_max {
            return Err(SendError::TooLarge { size, limit: self.message_bytes_max });
        }
        let queue = &mut self.lanes[lane as usize];
        if queue.bytes + cost(size) > queue.bytes_max && !queue.has_room() {
            queue.is_refusing = true;
            queue.messages_refused += 1;
            return Err(SendError::Full { lane, limit: queue.bytes_max });
        }
        self.put(lane, parts, body, size);
        Ok(())
    }

    /// Queues a message of `size` bytes, whatever waits already.
    fn put(&mut self, lane: Lane, parts: &[&[u8]], body: Bytes, size: usize) {
        let queue = &mut self.lanes[lane as usize];
        let cost = cost(size);
        queue.bytes += cost;
        queue.messages += 1;
        queue.messages_queued += 1;
        queue.bytes_queued += cost as u64;
        if size <= CHUNK_BYTES {
            queue.push_frame(&mut self.spare, tag(lane, false), parts, body, true);
            return;
        }
        let head = size - body.len();
        // Header parts are small; should they fill a chunk, joining everything first is plain and rare.
        let (parts, mut body) = if head < CHUNK_BYTES {
            (parts, body)
        } else {
            let mut joined = BytesMut::with_capacity(size);
            parts.iter().for_each(|part| joined.put_slice(part));
            joined.put_slice(&body);
            (&[][..], joined.freeze())
        };
        let head: usize = parts.iter().map(|part| part.len()).sum();
        let first = body.split_to(CHUNK_BYTES - head);
        queue.push_frame(&mut self.spare, tag(lane, true), parts, first, false);
        while body.len() > CHUNK_BYTES {
            let next = body.split_to(CHUNK_BYTES);
            queue.push_frame(&mut self.spare, tag(lane, true), &[], next, false);
        }
        queue.push_frame(&mut self.spare, tag(lane, false), &[], body, true);
    }

    /// Appends `item` to the lane's last message when that was begun by [`push_joinable`](Self::push_joinable) under the
    /// same `stamp`, nothing of it has left, and both together have at most [`JOINED_BYTES_MAX`] bytes and are no larger
    /// than a message may be. False, and nothing done, otherwise: then begin another message with it.
    ///
    /// So what is queued faster than it leaves travels as few large messages, and what is not, leaves at once. The
    /// receiver must be able to tell items apart.
    #[inline]
    pub fn join(&mut self, lane: Lane, stamp: u64, item: &[&[u8]]) -> bool {
        self.join_within(lane, stamp, item, self.lanes[lane as usize].bytes_max)
    }

    #[inline]
    fn join_within(&mut self, lane: Lane, stamp: u64, item: &[&[u8]], bytes_max: usize) -> bool {
        let queue = &mut self.lanes[lane as usize];
        let size: usize = item.iter().map(|part| part.len()).sum();
        let Some(open) = &mut queue.open else { return false };
        // The tag is part of a frame and not of the message.
        let length_max = JOINED_BYTES_MAX.min(1 + self.message_bytes_max);
        if open.stamp != stamp
            || open.length + size > length_max
            || queue.bytes.saturating_add(size) > bytes_max
        {
            return false;
        }
        let Some(segment) = queue.segments.back_mut() else { return false };
        if segment.outbox.bytes() + size > SEGMENT_BYTES_MAX {
            return false;
        }
        segment.outbox.extend_last(open.length, item);
        open.length += size;
        queue.bytes += size;
        queue.bytes_queued += size as u64;
        true
    }

    /// Queues a message made of `parts` that items of the same `stamp` may be joined to.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_joinable(&mut self, lane: Lane, stamp: u64, parts: &[&[u8]]) -> Result<(), SendError> {
        self.push(lane, parts, Bytes::new())?;
        self.open(lane, stamp, parts);
        Ok(())
    }

    fn open(&mut self, lane: Lane, stamp: u64, parts: &[&[u8]]) {
        let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        if length <= JOINED_BYTES_MAX {
            self.lanes[lane as usize].open = Some(OpenFrame { stamp, length });
        }
    }

    /// How many bytes of items may be held back for a lane, to be queued together later; `None` when it is too full, or a
    /// message too small for that to be of use.
    pub fn may_hold(&self, lane: Lane) -> Option<usize> {
        let queue = &self.lanes[lane as usize];
        let bytes_max = HELD_BYTES_MAX.min(self.message_bytes_max / 2);
        (queue.bytes + HELD_BYTES_MAX <= queue.bytes_max).then_some(bytes_max)
    }

    /// Queues items that were held back, joined to the last message or as one of their own behind `head`. They were taken
    /// when there was room, so nothing refuses them now.
    pub fn push_held(&mut self, lane: Lane, stamp: u64, head: &[&[u8]], items: &[u8]) {
        if !self.join_within(lane, stamp, &[items], usize::MAX) {
            let mut parts: Vec<&[u8]> = head.to_vec();
            parts.push(items);
            let size = parts.iter().map(|part| part.len()).sum();
            debug_assert!(size <= self.message_bytes_max, "as much as may be held");
            self.put(lane, &parts, Bytes::new(), size);
            self.open(lane, stamp, &parts);
        }
    }

    /// Moves what goes next of all lanes into `current`: see [`pop_of`](Self::pop_of).
    pub fn pop(&mut self, current: &mut Outbox) -> Option<usize> {
        self.pop_of(0..Lane::COUNT, current)
    }

    /// Moves what goes next of these lanes, by their numbers, into `current`, which must be empty, and returns how many
    /// messages end in it; `None` when nothing waits there. At most one chunk.
    pub fn pop_of(&mut self, lanes: Range<usize>, current: &mut Outbox) -> Option<usize> {
        debug_assert!(current.is_empty());
        let mut messages = None;
        while let Some(index) = self.choose(lanes.clone()) {
            let queue = &mut self.lanes[index];
            let fits = |segment: &Segment| current.bytes() + segment.outbox.bytes() <= COALESCED_BYTES_MAX;
            if messages.is_some() && !queue.segments.front().is_some_and(fits) {
                break;
            }
            let Some(mut segment) = queue.segments.pop_front() else { break };
            queue.bytes -= segment.outbox.bytes();
            queue.messages -= segment.messages;
            if queue.segments.is_empty() {
                queue.open = None;
            }
            if current.is_empty() {
                std::mem::swap(current, &mut segment.outbox);
            } else {
                current.append(&mut segment.outbox);
            }
            *messages.get_or_insert(0) += segment.messages;
            if self.spare.len() < SPARE_MAX {
                self.spare.push(segment.outbox);
            }
            for (other, queue) in self.lanes.iter_mut().enumerate().filter(|(other, _)| lanes.contains(other))
            {
                if other == index || queue.segments.is_empty() {
                    queue.passed_over = 0;
                } else if other > index {
                    queue.passed_over += 1;
                }
            }
        }
        messages
    }

    /// Gives memory back that is kept for reuse, unless something waits. To be called now and then.
    pub fn trim(&mut self) {
        if self.is_empty() {
            self.spare.clear();
        }
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.is_empty_of(0..Lane::COUNT)
    }

    /// True when nothing waits in these lanes.
    pub fn is_empty_of(&self, lanes: Range<usize>) -> bool {
        self.lanes[lanes].iter().all(|queue| queue.segments.is_empty())
    }

    /// True when the lane would take a message of any permitted size.
    pub fn has_room(&self, lane: Lane) -> bool {
        self.lanes[lane as usize].has_room()
    }

    /// True when so much waits in the lane that whoever sends on should let it be written first: nearly a segment of
    /// what was copied, which then is in the processor's cache still, or several of what was not.
    #[inline]
    pub fn is_crowded(&self, lane: Lane) -> bool {
        let queue = &self.lanes[lane as usize];
        let limit = if queue.open.is_some() { CROWD_BYTES } else { 4 * CROWD_BYTES };
        queue.bytes >= limit
    }

    /// Bytes that wait in a lane, overhead included.
    pub fn bytes(&self, lane: Lane) -> usize {
        self.lanes[lane as usize].bytes
    }

    /// Messages that wait in a lane, the one that is partly sent included.
    pub fn messages(&self, lane: Lane) -> usize {
        self.lanes[lane as usize].messages
    }

    /// Figures of a lane, without what was received.
    pub fn stats(&self, lane: Lane) -> LaneStats {
        let queue = &self.lanes[lane as usize];
        LaneStats {
            messages_queued: queue.messages_queued,
            bytes_queued: queue.bytes_queued,
            messages_refused: queue.messages_refused,
            messages_waiting: queue.messages,
            bytes_waiting: queue.bytes,
            ..LaneStats::default()
        }
    }

    /// Drops what waits; the totals stay.
    pub fn clear(&mut self) {
        self.spare.clear();
        for queue in &mut self.lanes {
            queue.segments = VecDeque::new();
            (queue.bytes, queue.messages, queue.open) = (0, 0, None);
        }
    }

    /// Notes that somebody waits for room in the lane.
    pub fn want_room(&mut self, lane: Lane) {
        self.lanes[lane as usize].is_refusing = true;
    }

    /// The lanes that refused or made wait and have room again; each is told once.
    pub fn take_relieved(&mut self) -> [bool; Lane::COUNT] {
        self.lanes.each_mut().map(|queue| {
            let relieved = queue.is_refusing && queue.has_room();
            queue.is_refusing &= !relieved;
            relieved
        })
    }

    /// The one of these lanes whose turn it is.
    fn choose(&self, lanes: Range<usize>) -> Option<usize> {
        let mut first = None;
        for index in lanes.filter(|index| !self.lanes[*index].segments.is_empty()) {
            if self.lanes[index].passed_over >= PASSED_OVER_MAX {
                return Some(index);
            }
            first = first.or(Some(index));
        }
        first
    }
}

impl LaneQueue {
    /// Half of the limit: a message of any size is then taken, so waiting for room and sending cannot chase each
    /// other for ever.
    fn has_room(&self) -> bool {
        self.bytes <= self.bytes_max / 2
    }

    fn push_frame(&mut self, spare: &mut Vec<Outbox>, tag: u8, parts: &[&[u8]], body: Bytes, is_last: bool) {
        let size = FRAME_OVERHEAD + parts.iter().map(|part| part.len()).sum::<usize>() + body.len();
        let fits = |segment: &Segment| segment.outbox.bytes() + size <= SEGMENT_BYTES_MAX;
        if !self.segments.back().is_some_and(fits) {
            let mut outbox = spare.pop().unwrap_or_else(|| Outbox::new(FRAME_BYTES_MAX));
            if !self.segments.is_empty() && size < SEGMENT_BYTES_MAX / 8 {
                // Small messages pile up: this one will be filled too, and need not grow step by step.
                outbox.reserve(SEGMENT_BYTES_MAX);
            }
            self.segments.push_back(Segment { outbox, messages: 0 });
        }
        self.open = None;
        if let Some(segment) = self.segments.back_mut() {
            let pushed = segment.outbox.push_tagged(tag, parts, body);
            debug_assert!(pushed.is_ok(), "a part is at most a chunk");
            segment.messages += usize::from(is_last);
        }
    }
}

/// Why a message was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The lane holds what it may hold. Wait for room, then retry.
    #[error("lane {lane} is full ({limit} bytes)")]
    Full {
        /// The lane.
        lane: Lane,
        /// Its limit in bytes.
        limit: usize,
    },
    /// The message exceeds what both sides agreed on. Retrying cannot help.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The connection is closing or has ended. Retry on another one.
    #[error("the connection is closed")]
    Closed,
}

/// What a message takes in a lane: its bytes and its frames' overhead.
fn cost(size: usize) -> usize {
    size + size.div_ceil(CHUNK_BYTES).max(1) * FRAME_OVERHEAD
}

/// Length prefix and tag.
const FRAME_OVERHEAD: usize = HEADER_BYTES + 1;
/// The largest message that items are joined to, in bytes. Twice as much gained nothing, and a reader copies the part of
/// a message that came with one read to where the rest comes with the next.
pub const JOINED_BYTES_MAX: usize = 16 * 1024;
/// Bytes of items that one source may hold back. Two such and what they were joined to make one message.
const HELD_BYTES_MAX: usize = JOINED_BYTES_MAX / 2 - 256;
/// A little less than a segment: whoever has queued so much and then waits leaves no rest that would be a write of its
/// own.
const CROWD_BYTES: usize = 60 * 1024;
/// A segment is what a turn hands over: one full frame, or many small ones.
const SEGMENT_BYTES_MAX: usize = FRAME_BYTES_MAX + HEADER_BYTES;
/// Segments of several lanes leave in one write while they are together no larger than this.
const COALESCED_BYTES_MAX: usize = 16 * 1024;
/// Turns that earlier lanes may take before a waiting one gets its own.
const PASSED_OVER_MAX: usize = 16;
/// Emptied outboxes kept for reuse while the connection is busy, at most 64 KiB each: as many as a sender that is held
/// back by a window of 1 MiB fills again and again.
const SPARE_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::assembly::{Assembly, Budget, Received};
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    /// Frames of the next turn, each as lane and first payload byte.
    fn turn(queues: &mut LaneQueues) -> Vec<(u8, u8)> {
        let mut current = Outbox::new(FRAME_BYTES_MAX);
        queues.pop(&mut current);
        std::iter::from_fn(|| current.pop_frame()).map(|frame| (frame[0] & 3, frame[1])).collect()
    }

    #[test]
    fn t08_urgent_overtakes_bulk_after_at_most_one_chunk() {
        let mut queues = LaneQueues::new(LIMIT, [LIMIT; 4]);
        queues.push(Lane::Bulk, &[], vec![1; 5 * CHUNK_BYTES].into()).unwrap();
        assert_eq!(turn(&mut queues), [(3, 1)]);
        queues.push(Lane::Urgent, &[b"\x02"], Bytes::new()).unwrap();
        queues.push(Lane::Control, &[b"\x03"], Bytes::new()).unwrap();
        assert_eq!(turn(&mut queues), [(0, 3), (1, 2)]);
        assert_eq!(turn(&mut queues), [(3, 1)]);
    }

    #[test]
    fn t08_no_lane_starves() {
        let mut queues = LaneQueues::new(LIMIT, [LIMIT; 4]);
        queues.push(Lane::Bulk, &[b"b"], Bytes::new()).unwrap();
        let full = Bytes::from(vec![7; CHUNK_BYTES]);
        let turns = (0..).position(|_| {
            queues.push(Lane::Ordinary, &[], full.clone()).unwrap();
            turn(&mut queues).contains(&(3, b'b'))
        });
        assert!(turns.is_some_and(|turns| turns <= PASSED_OVER_MAX), "{turns:?}");
    }

    #[test]
    fn t08_a_full_lane_refuses_and_tells_once_when_there_is_room() {
        let mut queues = LaneQueues::new(LIMIT, [10_000; 4]);
        let message = Bytes::from(vec![0; 3000]);
        for _ in 0..3 {
            queues.push(Lane::Ordinary, &[], message.clone()).unwrap();
        }
        let full = Err(SendError::Full { lane: Lane::Ordinary, limit: 10_000 });
        assert_eq!(queues.push(Lane::Ordinary, &[], message.clone()), full);
        assert_eq!(queues.push(Lane::Urgent, &[], message), Ok(()));
        assert_eq!(queues.take_relieved(), [false; 4]);
        turn(&mut queues);
        assert_eq!(queues.take_relieved(), [false, false, queues.has_room(Lane::Ordinary), false]);
        while !turn(&mut queues).is_empty() {}
        assert_eq!(queues.take_relieved(), [false; 4]);
        assert_eq!(queues.bytes(Lane::Ordinary) + queues.messages(Lane::Ordinary), 0);
        // An idle lane takes any permitted message, or large ones could never be sent.
        queues.push(Lane::Ordinary, &[], vec![0; LIMIT].into()).unwrap();
        let size = LIMIT + 1;
        let too_large = Err(SendError::TooLarge { size, limit: LIMIT });
        assert_eq!(queues.push(Lane::Ordinary, &[], vec![0; size].into()), too_large);
    }

    #[test]
    fn t08_items_join_a_message_that_has_not_left_and_only_their_own() {
        let mut queues = LaneQueues::new(LIMIT, [LIMIT; 4]);
        let push = |queues: &mut LaneQueues, stamp, item: &[u8]| {
            let is_joined = queues.join(Lane::Ordinary, stamp, &[item]);
            if !is_joined {
                queues.push_joinable(Lane::Ordinary, stamp, &[b"<", item]).unwrap();
            }
            is_joined
        };
        let messages = |queues: &mut LaneQueues| {
            let mut current = Outbox::new(FRAME_BYTES_MAX);
            queues.pop(&mut current);
            std::iter::from_fn(|| current.pop_frame()).map(|frame| frame.slice(1..)).collect::<Vec<_>>()
        };
        let joined = [(1, b"a"), (1, b"b"), (2, b"c"), (1, b"d")].map(|(s, item)| push(&mut queues, s, item));
        assert_eq!(joined, [false, true, false, false]);
        queues.push(Lane::Ordinary, &[b"other"], Bytes::new()).unwrap();
        assert!(!push(&mut queues, 1, b"e"));
        assert_eq!(queues.messages(Lane::Ordinary), 5);
        assert_eq!(messages(&mut queues), [&b"<ab"[..], b"<c", b"<d", b"other", b"<e"]);
        assert_eq!((queues.bytes(Lane::Ordinary), queues.messages(Lane::Ordinary)), (0, 0));
        // What has left cannot be joined to, nor what would grow too large.
        assert!(!push(&mut queues, 1, b"f"));
        let large = vec![b'g'; JOINED_BYTES_MAX - 4];
        assert!(push(&mut queues, 1, &large) && push(&mut queues, 1, b"h") && !push(&mut queues, 1, b"i"));
        let lengths: Vec<_> = messages(&mut queues).iter().map(Bytes::len).collect();
        assert_eq!(lengths, [JOINED_BYTES_MAX - 1, 2]);
        // Nor what would grow beyond what the peer takes.
        let mut queues = LaneQueues::new(1_100, [LIMIT; 4]);
        let joined = [500, 599, 1, 1].map(|size| push(&mut queues, 1, &vec![b'j'; size]));
        assert_eq!(joined, [false, true, false, true]);
        let lengths: Vec<_> = messages(&mut queues).iter().map(Bytes::len).collect();
        assert_eq!(lengths, [1_100, 3]);
    }

    #[test]
    fn t08_what_was_held_back_is_queued_whatever_waits() {
        let mut queues = LaneQueues::new(LIMIT, [2 * HELD_BYTES_MAX; 4]);
        let held = vec![b'h'; queues.may_hold(Lane::Ordinary).unwrap()];
        queues.push_joinable(Lane::Ordinary, 1, &[b"<"]).unwrap();
        queues.push_held(Lane::Ordinary, 1, &[b"<"], &held);
        assert!(queues.may_hold(Lane::Ordinary).is_none(), "{}", queues.bytes(Lane::Ordinary));
        queues.push_held(Lane::Ordinary, 1, &[b"<"], &held);
        queues.push_held(Lane::Ordinary, 1, &[b"<"], &held);
        queues.push_held(Lane::Ordinary, 2, &[b"<"], &held);
        assert_eq!(queues.messages(Lane::Ordinary), 3);
        let mut current = Outbox::new(FRAME_BYTES_MAX);
        assert_eq!(queues.pop(&mut current), Some(3));
        let lengths: Vec<_> =
            std::iter::from_fn(|| current.pop_frame()).map(|frame| frame.len() - 2).collect();
        assert_eq!(lengths, [2 * held.len(), held.len(), held.len()]);
        assert_eq!((queues.bytes(Lane::Ordinary), queues.messages(Lane::Ordinary)), (0, 0));
    }

    proptest! {
        #[test]
        fn t08_messages_come_out_whole_and_in_order_per_lane(
            messages in prop::collection::vec(
                (0usize..4, prop_oneof![4 => 0usize..50, 1 => 0usize..200_000], prop_oneof![4 => 0usize..20, 1 => 0usize..140_000]),
                0..40),
            pops in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut queues = LaneQueues::new(LIMIT, [64 * LIMIT; 4]);
            let mut assembly = Assembly::new(LIMIT, Budget::new(usize::MAX));
            let mut expected: [VecDeque<Vec<u8>>; 4] = Default::default();
            let mut current = Outbox::new(FRAME_BYTES_MAX);
            let mut drain = |queues: &mut LaneQueues, expected: &mut [VecDeque<Vec<u8>>; 4]| {
                let ended = queues.pop(&mut current);
                assert!(current.bytes() <= SEGMENT_BYTES_MAX);
                let mut whole = 0;
                while let Some(frame) = current.pop_frame() {
                    if let Received::Message(lane, message) = assembly.take(frame).unwrap() {
                        assert_eq!(expected[lane as usize].pop_front().as_deref(), Some(&message[..]));
                        whole += 1;
                    }
                }
                assert_eq!(ended.unwrap_or(0), whole);
                ended.is_some()
            };
            for ((lane, body, head), pop) in messages.into_iter().zip(pops) {
                let (head, body) = (vec![head as u8; head], vec![body as u8; body]);
                queues.push(Lane::ALL[lane], &[&head[..head.len() / 2], &head[head.len() / 2..]], body.clone().into()).unwrap();
                expected[lane].push_back([head, body].concat());
                if pop {
                    drain(&mut queues, &mut expected);
                }
            }
            while drain(&mut queues, &mut expected) {}
            prop_assert!(queues.is_empty());
            prop_assert!(expected.iter().all(VecDeque::is_empty));
            for lane in Lane::ALL {
                prop_assert_eq!((queues.bytes(lane), queues.messages(lane)), (0, 0));
            }
        }
    }
}
