//! The books in one piece, so that an opening does not do the whole log again: only what was stored since.
//!
//! Guarantee   a checkpoint of a place, and the log from there on, give the same books as the log alone. It is an abbreviation
//!             and nothing more: the log is cut without regard to it, and where it is missing, damaged or older than the
//!             log's beginning, the log is done from its beginning.
//! Layout      the snapshot `books`; integers are little-endian. Version `u8` (1), next id `u64`; count `u32` of the state's
//!             entries, each: place `u64`, key (length `u8`, key), length of the value `u32`, value; count `u32` of queues.
//!             Each queue: number `u32`; count `u32` of messages that are known with all that belongs to them, each: place
//!             `u64`, size `u64`, length `u32` of its record, the record as in the log without the payload; count `u32` of
//!             names, each: id `u64`, place `u64`, name (length `u8`, name); count `u32` of blocks of other messages, each:
//!             255 less their priority `u8`, how many `u32`, length `u32`, and for each the step from the last id, the step
//!             from the last place (the sign in the lowest bit) and the size, seven bits a byte, the lowest first; count
//!             `u32` of those of them that were delivered, each: id `u64`, deliveries `u32`.
//! Limits      what is far takes some five bytes a message, everything else what it takes in memory. One is written when four
//!             times its size, and four segments, were stored since the last one.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_journal::{Position, ReadError, Snapshot};
use quorate_protocols::Time;

use super::books::{Books, Cell, Desk, Need};
use super::message::MessageId;
use super::near::Distance;
use super::planted::Bug;
use super::record::{Input, Put, put_text};
use super::shelf::Slip;

impl Books {
    /// A checkpoint and the place up to which it tells, when so much was stored since the last one that it is worth while.
    pub(super) fn checkpoint_if_due(&mut self, bytes_min: u64) -> Option<(u64, Bytes)> {
        if self.tail_bytes < bytes_min.max(CHECKPOINT_SHARE * self.checkpoint_bytes) {
            return None;
        }
        Some(self.checkpoint())
    }

    /// What was done so far, and up to where that is what the log says.
    pub(super) fn checkpoint(&mut self) -> (u64, Bytes) {
        let blob = self.encode();
        (self.tail_bytes, self.checkpoint_bytes) = (0, blob.len() as u64);
        // Whoever plants the bug knows where the log ends.
        (if self.has(Bug::CheckpointCoversWhatIsNotDone) { u64::MAX } else { self.done }, blob)
    }

    fn encode(&self) -> Bytes {
        let desks = self.desks.values();
        let far: usize = desks.map(|desk| desk.distance.len() * 6 + desk.shelf.len() * 64).sum();
        let mut out = BytesMut::with_capacity(4096 + far + self.cell_bytes);
        out.put_u8(VERSION);
        out.put_u64_le(self.next.as_u64());
        out.put_u32_le(self.cells.len() as u32);
        for (key, cell) in &self.cells {
            out.put_u64_le(cell.place);
            put_text(&mut out, key);
            out.put_u32_le(cell.value.len() as u32);
            out.put_slice(&cell.value);
        }
        out.put_u32_le(self.desks.len() as u32);
        for (queue, desk) in &self.desks {
            out.put_u32_le(*queue);
            encode_near(&mut out, *queue, desk);
            let names: Vec<_> = desk.seen.stored().collect();
            out.put_u32_le(names.len() as u32);
            for (id, place, name) in names {
                out.put_u64_le(id.as_u64());
                out.put_u64_le(place);
                put_text(&mut out, name);
            }
            if self.has(Bug::CheckpointForgetsWhatIsFar) {
                encode_far(&mut out, &Distance::default());
            } else {
                encode_far(&mut out, &desk.distance);
            }
        }
        out.freeze()
    }

    /// Has what a checkpoint tells; of no use after an error.
    fn recall(&mut self, now: Time, first: Position, snapshot: Snapshot) -> Result<(), &'static str> {
        self.checkpoint_bytes = snapshot.blob.len() as u64;
        self.done = snapshot.position.as_u64();
        let input = &mut Input(snapshot.blob);
        if input.u8()? != VERSION {
            return Err("unknown version");
        }
        self.next = input.id()?;
        for _ in 0..input.u32()? {
            let (place, key, length) = (input.u64()?, input.text()?, input.u32()?);
            let value = Bytes::copy_from_slice(&input.take(length as usize)?);
            self.cell_bytes += key.len() + value.len();
            self.needed.insert((place, Need::Cell(key.clone())));
            self.cells.insert(key, Cell { value, place });
        }
        for _ in 0..input.u32()? {
            let queue = input.u32()?;
            if !self.desks.contains_key(&queue) {
                return Err("queue without a name");
            }
            self.recall_near(now, queue, input)?;
            for _ in 0..input.u32()? {
                let (id, place, name) = (input.id()?, input.u64()?, input.text()?);
                // No record tells that a name is forgotten; but what tells the name was cut only after that.
                if place >= first.as_u64() {
                    self.remember(queue, id, name, Some(place));
                }
            }
            recall_far(&mut self.desk(queue).distance, input)?;
        }
        if input.0.is_empty() { Ok(()) } else { Err("too long") }
    }

    fn recall_near(&mut self, now: Time, queue: u32, input: &mut Input) -> Result<(), &'static str> {
        for _ in 0..input.u32()? {
            let (place, size, length) = (input.u64()?, input.u64()?, input.u32()?);
            let put = Put::decode(&mut Input(input.take(length as usize)?))?;
            let Put { id, label, origin, again, is_kept, class, .. } = put;
            self.needed.insert((place, Need::Message(queue, id)));
            let slip = Slip::new(Some(place), size as usize, label, origin, again.unwrap_or(0), class);
            let shelf = &mut self.desk(queue).shelf;
            if is_kept {
                shelf.insert_kept(id, slip);
            } else {
                shelf.insert(now, id, slip);
            }
        }
        Ok(())
    }
}

/// The books to begin with, and from where on the log is to be done: what `newest` tells, if that can be used. The third says
/// that there was one that cannot, and must be replaced before the log grows: it may tell what the log no longer does.
pub(super) fn begin(
    books: impl Fn() -> Books,
    now: Time,
    first: Position,
    newest: Result<Option<Snapshot>, ReadError>,
) -> Result<(Books, Position, bool), ReadError> {
    let all = |is_wrong| {
        let mut books = books();
        books.done = first.as_u64();
        Ok((books, first, is_wrong))
    };
    let reason = match newest {
        Ok(None) => return all(false),
        // Older than the log's beginning: nothing of it is left.
        Ok(Some(old)) if old.position < first && !books().has(Bug::StaleCheckpointIsTaken) => {
            return all(false);
        }
        Ok(Some(snapshot)) => {
            let (mut begun, position) = (books(), snapshot.position);
            match begun.recall(now, first, snapshot) {
                Ok(()) => return Ok((begun, position, false)),
                Err(reason) => reason.to_owned(),
            }
        }
        Err(ReadError::Corrupt(corruption)) => corruption.to_string(),
        Err(error) => return Err(error),
    };
    tracing::warn!(%reason, "the checkpoint of the queues cannot be used; their whole journal is read instead");
    all(true)
}

fn encode_near(out: &mut BytesMut, queue: u32, desk: &Desk) {
    let here = desk.shelf.messages().iter().map(|entry| (entry, false));
    let kept = desk.shelf.kept().iter().map(|entry| (entry, true));
    let stored = || here.clone().chain(kept.clone()).filter(|((_, slip), _)| slip.place.is_some());
    out.put_u32_le(stored().count() as u32);
    let mut record = BytesMut::new();
    for ((id, slip), is_kept) in stored() {
        let put = Put {
            queue,
            id: *id,
            label: slip.label.clone(),
            origin: slip.origin,
            again: Some(slip.deliveries),
            is_kept,
            class: slip.class,
            payload: Bytes::new(),
        };
        record.clear();
        put.encode(&mut record);
        out.put_u64_le(slip.place.unwrap_or_default());
        out.put_u64_le(slip.size as u64);
        out.put_u32_le(record.len() as u32);
        out.put_slice(&record);
    }
}

fn encode_far(out: &mut BytesMut, distance: &Distance) {
    out.put_u32_le(distance.ranks().values().map(|far| far.blocks().len()).sum::<usize>() as u32);
    for (rank, far) in distance.ranks() {
        for (len, packed) in far.blocks() {
            out.put_u8(*rank);
            out.put_u32_le(len as u32);
            out.put_u32_le(packed.len() as u32);
            out.put_slice(packed);
        }
    }
    out.put_u32_le(distance.delivered().len() as u32);
    for (id, deliveries) in distance.delivered() {
        out.put_u64_le(id.as_u64());
        out.put_u32_le(*deliveries);
    }
}

fn recall_far(distance: &mut Distance, input: &mut Input) -> Result<(), &'static str> {
    for _ in 0..input.u32()? {
        let (rank, len, length) = (input.u8()?, input.u32()?, input.u32()?);
        let packed = input.take(length as usize)?;
        distance.rank(rank).insert_block(len as usize, &packed).ok_or("messages out of order")?;
    }
    for _ in 0..input.u32()? {
        let (id, deliveries): (MessageId, u32) = (input.id()?, input.u32()?);
        distance.restore_deliveries(id, deliveries);
    }
    Ok(())
}

const VERSION: u8 = 1;
/// So many times a checkpoint's own bytes are stored before the next one: so they add a quarter to what is written, at most.
const CHECKPOINT_SHARE: u64 = 4;
