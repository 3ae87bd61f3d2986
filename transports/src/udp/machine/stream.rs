//! The two directions of a stream: bytes that are on their way out, and bytes that have come in.
//!
//! Guarantee   what comes out of [`Incoming`] is what went into the peer's [`Outgoing`]: whole, in order, once.
//! Limits      an outgoing direction holds at most its limit of bytes that are not acknowledged; an incoming one at most
//!             the credit that it granted, in at most [`Incoming::pieces_max`] pieces ahead of their turn.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

use super::packet::Piece;
use super::plant::{Plant, Planted};
use super::runs::Runs;

/// Bytes that were written here and that the peer has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// From `base` on.
    bytes: VecDeque<u8>,
    base: u64,
    /// The first byte that was never sent.
    sent: u64,
    /// Acknowledged behind `base`.
    acked: Runs,
    /// Sent, lost, to be sent again.
    lost: Runs,
    /// How far the peer lets us send.
    credit: u64,
    end: End,
    plant: Plant,
}

/// What became of the end of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// The owner wrote everything.
    Wanted,
    Sent,
    Acked,
}

impl Outgoing {
    pub(super) fn new(credit: u64, plant: Plant) -> Self {
        Self { credit, plant, ..Self::default() }
    }

    /// How much may be written: no more than `bytes_max` is held, and of that `unsent_max` that was never sent.
    pub(super) fn room(&self, bytes_max: usize, unsent_max: usize) -> usize {
        let unsent = (self.written_until() - self.sent) as usize;
        bytes_max.saturating_sub(self.bytes.len()).min(unsent_max.saturating_sub(unsent))
    }

    /// Takes at most `room`; how much that was.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>], mut room: usize) -> usize {
        let mut taken = 0;
        for slice in slices {
            let count = slice.len().min(room);
            self.bytes.extend(&slice[..count]);
            taken += count;
            room -= count;
            if room == 0 {
                break;
            }
        }
        taken
    }

    pub(super) fn finish(&mut self) {
        if self.end == End::Open {
            self.end = End::Wanted;
        }
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.end != End::Open
    }

    /// The peer has everything, the end included.
    pub(super) fn is_delivered(&self) -> bool {
        self.end == End::Acked && self.bytes.is_empty()
    }

    /// Bytes that are held.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn grant(&mut self, credit: u64) {
        self.credit = self.credit.max(credit);
    }

    /// True when there is something that may be sent.
    pub(super) fn has_piece(&self) -> bool {
        !self.lost.is_empty() || self.sent < self.sendable_until() || self.wants_end()
    }

    /// The next piece to be sent, at most so many bytes: where it starts, where it ends, whether the stream ends
    /// there. It counts as sent from now on.
    pub(super) fn next_piece(&mut self, bytes_max: usize) -> Option<(u64, u64, bool)> {
        let (start, end) = if let Some((start, end)) = self.lost.first() {
            let end = end.min(start + bytes_max as u64);
            self.lost.remove(start, end);
            (start, end)
        } else {
            let end = self.sendable_until().min(self.sent + bytes_max as u64);
            if end <= self.sent && !self.wants_end() {
                return None;
            }
            (self.sent, end.max(self.sent))
        };
        self.sent = self.sent.max(end);
        let ends = self.end != End::Open && self.end != End::Acked && end == self.written_until();
        if ends {
            self.end = End::Sent;
        }
        Some((start, end, ends))
    }

    /// Appends the bytes of a piece.
    pub(super) fn copy(&self, start: u64, end: u64, out: &mut Vec<u8>) {
        let (from, until) = ((start - self.base) as usize, (end - self.base) as usize);
        let (front, back) = self.bytes.as_slices();
        let split = front.len();
        out.extend_from_slice(&front[from.min(split)..until.min(split)]);
        out.extend_from_slice(&back[from.max(split) - split..until.max(split) - split]);
    }

    /// The peer has this piece.
    pub(super) fn on_acked(&mut self, start: u64, end: u64, ends: bool) {
        if ends {
            self.end = End::Acked;
        }
        self.acked.insert(start.max(self.base), end);
        self.lost.remove(start, end);
        if let Some((first, until)) = self.acked.first()
            && first <= self.base
        {
            self.acked.pop_first();
            // Of what was sent, so it is held.
            self.bytes.drain(..((until - self.base) as usize).min(self.bytes.len()));
            self.base = until;
        }
    }

    /// The piece got lost; what of it was not acknowledged in another one is sent again.
    pub(super) fn on_lost(&mut self, start: u64, end: u64, ends: bool) {
        if ends && self.end == End::Sent && !self.plant.has(Planted::ForgetsLostEnd) {
            self.end = End::Wanted;
        }
        if self.plant.has(Planted::ForgetsLostPieces) {
            return;
        }
        let start = start.max(self.base);
        self.lost.insert(start, end.max(start));
        for (from, until) in self.acked.ascending() {
            self.lost.remove(from, until);
        }
    }

    /// The peer has everything that was written and its end, as it says itself.
    pub(super) fn on_all_acked(&mut self) {
        self.discard();
        if self.end != End::Open {
            self.end = End::Acked;
        }
    }

    /// Nobody wants the rest.
    pub(super) fn discard(&mut self) {
        self.base = self.written_until();
        self.sent = self.base;
        self.bytes = VecDeque::new();
        self.acked.clear();
        self.lost.clear();
    }

    /// Gives back memory that an idle connection does not need.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }

    fn written_until(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn sendable_until(&self) -> u64 {
        if self.plant.has(Planted::IgnoresCredit) {
            return self.written_until();
        }
        self.written_until().min(self.credit)
    }

    fn wants_end(&self) -> bool {
        self.end == End::Wanted && self.sent == self.written_until()
    }
}

/// Bytes that came and that the owner has not read.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// In order, from `taken` on.
    ready: VecDeque<u8>,
    taken: u64,
    /// Ahead of their turn, by offset; they overlap neither each other nor what is ready.
    ahead: BTreeMap<u64, Box<[u8]>>,
    ahead_bytes: usize,
    /// Where the stream ends, once it is known.
    end: Option<u64>,
    /// How far the peer was told that it may send, perhaps in vain.
    granted: u64,
    /// The same, in packets that are repeated when they get lost.
    assured: u64,
    bytes_max: usize,
    /// Nobody reads here any more.
    is_stopped: bool,
    plant: Plant,
}

/// A piece that a peer within its rights does not send, or one for which there is no place now: it must not be
/// acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

impl Incoming {
    pub(super) fn new(bytes_max: usize, plant: Plant) -> Self {
        let granted = bytes_max as u64;
        Self { bytes_max, granted, assured: granted, plant, ..Self::default() }
    }

    /// Takes a piece; true when the owner can read more than before, or has come to the end.
    pub(super) fn push(&mut self, piece: &Piece<'_>) -> Result<bool, Refused> {
        let end = piece.offset.checked_add(piece.bytes.len() as u64).ok_or(Refused)?;
        let is_beyond = end > self.granted && !self.plant.has(Planted::IgnoresCredit);
        let contradicts = self.end.is_some_and(|known| end > known || piece.ends && end != known);
        let is_cut_short = piece.ends && end < self.received_until();
        if is_beyond || contradicts || is_cut_short {
            return Err(Refused);
        }
        let was_at_end = self.is_at_end();
        let next = self.next();
        if self.is_stopped {
            // Only where it ends is of interest.
        } else if piece.offset <= next || self.plant.has(Planted::SkipsGaps) {
            let known = if self.plant.has(Planted::DeliversTwice) || self.plant.has(Planted::SkipsGaps) {
                0
            } else {
                // Less than the piece's length, or all of it.
                (next - piece.offset).min(piece.bytes.len() as u64) as usize
            };
            self.ready.extend(&piece.bytes[known..]);
            self.join();
        } else {
            self.hold(piece.offset, piece.bytes)?;
        }
        if piece.ends {
            self.end = Some(end);
        }
        Ok(self.next() > next || self.is_at_end() && !was_at_end)
    }

    /// Keeps what is new of a piece ahead of its turn.
    fn hold(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Refused> {
        if self.ahead.len() >= self.pieces_max() {
            return Err(Refused);
        }
        if let Some((&at, before)) = self.ahead.range(..=offset).next_back() {
            let known = (at + before.len() as u64).saturating_sub(offset).min(bytes.len() as u64);
            offset += known;
            bytes = &bytes[known as usize..];
        }
        while !bytes.is_empty() {
            let behind = self.ahead.range(offset..).next().map(|(&at, held)| (at, held.len() as u64));
            let free = behind.map_or(bytes.len() as u64, |(at, _)| (at - offset).min(bytes.len() as u64));
            if free > 0 {
                let (new, _) = bytes.split_at(free as usize);
                self.ahead.insert(offset, new.into());
                self.ahead_bytes += new.len();
            }
            let skip = free + behind.filter(|(at, _)| *at == offset + free).map_or(0, |(_, length)| length);
            let skip = skip.min(bytes.len() as u64);
            offset += skip;
            bytes = &bytes[skip as usize..];
        }
        Ok(())
    }

    /// Moves to the owner what has come to its turn.
    fn join(&mut self) {
        while let Some(entry) = self.ahead.first_entry() {
            let next = self.taken + self.ready.len() as u64;
            if *entry.key() > next {
                return;
            }
            let (at, held) = entry.remove_entry();
            self.ahead_bytes -= held.len();
            let known = ((next - at) as usize).min(held.len());
            self.ready.extend(&held[known..]);
        }
    }

    /// Takes at most `count` bytes; `take` gets them in one or two slices.
    pub(super) fn read(&mut self, count: usize, mut take: impl FnMut(&[u8])) -> usize {
        let count = count.min(self.ready.len());
        let (front, back) = self.ready.as_slices();
        let split = front.len().min(count);
        take(&front[..split]);
        take(&back[..count - split]);
        self.ready.drain(..count);
        self.taken += count as u64;
        count
    }

    /// Nothing is left to be read, and nothing will come.
    pub(super) fn is_at_end(&self) -> bool {
        if self.plant.has(Planted::EndsEarly) && self.end.is_some() && self.ready.is_empty() {
            return true;
        }
        self.end == Some(self.next())
    }

    /// The end is known, and everything before it is here.
    pub(super) fn is_whole(&self) -> bool {
        self.is_at_end() || self.is_stopped && self.end.is_some()
    }

    /// Nobody will read: what there is goes, what comes is dropped.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.ready = VecDeque::new();
        self.ahead.clear();
        self.ahead_bytes = 0;
    }

    /// How far the peer may send, by what was read.
    pub(super) fn credit(&self) -> u64 {
        self.taken + self.bytes_max as u64
    }

    /// True when the peer should hear of more credit: a quarter of it, so that it never waits for the news of a byte.
    pub(super) fn owes_credit(&self) -> bool {
        !self.is_stopped
            && self.end.is_none()
            && self.credit() - self.assured >= (self.bytes_max as u64).div_ceil(4)
    }

    /// The credit, which counts as told; `is_assured` when it is repeated in case that it gets lost.
    pub(super) fn grant(&mut self, is_assured: bool) -> u64 {
        self.granted = self.granted.max(self.credit());
        if is_assured {
            self.assured = self.granted;
        }
        self.granted
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Bytes that are held.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.ready.len() + self.ahead_bytes
    }

    /// Gives back memory that an idle connection does not need.
    pub(super) fn shrink(&mut self) {
        self.ready.shrink_to_fit();
    }

    /// Pieces of a hundred bytes cost twice what they hold; more of them than this are as good as lost.
    fn pieces_max(&self) -> usize {
        self.bytes_max / 512 + 64
    }

    fn next(&self) -> u64 {
        self.taken + self.ready.len() as u64
    }

    /// The end of the last byte that has come.
    fn received_until(&self) -> u64 {
        let ahead = self.ahead.last_key_value().map_or(0, |(at, held)| at + held.len() as u64);
        self.next().max(ahead)
    }
}
