//! A state that stands for the beginning of the log, and how it travels in pieces.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::message::{Members, Record};
use super::seats::Seats;
use crate::wire::{Wire, WireError, put_bytes, take_bytes, take_u64};

/// What stands for all entries up to a place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The place.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// Who takes part from there on.
    pub members: Arc<Members>,
    /// What was delivered up to there, by origin.
    pub(super) seats: Seats,
    /// The state machine's own bytes.
    pub data: Bytes,
}

impl Snapshot {
    /// The snapshot as records, none of which is large.
    pub(super) fn records(bytes: &Bytes, part_bytes: usize) -> impl Iterator<Item = Record> + '_ {
        let total = bytes.len();
        let step = part_bytes.max(1);
        (0..total).step_by(step).map(move |offset| Record::Part {
            total: total as u64,
            offset: offset as u64,
            data: bytes.slice(offset..(offset + step).min(total)),
        })
    }
}

impl Wire for Snapshot {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.index);
        out.put_u64_le(self.term);
        self.members.encode(out);
        self.seats.encode(out);
        put_bytes(out, &self.data);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            index: take_u64(input, "snapshot's place")?,
            term: take_u64(input, "snapshot's term")?,
            members: Arc::new(Members::decode(input)?),
            seats: Seats::decode(input)?,
            data: take_bytes(input, "snapshot")?,
        })
    }
}

/// Pieces of a snapshot on their way in. Those of two senders are never mixed.
#[derive(Debug)]
pub(super) struct Receiving {
    /// The term and the place: they name the sender and the snapshot.
    name: (u64, u64),
    total: u64,
    bytes: BytesMut,
}

impl Receiving {
    pub(super) fn new(name: (u64, u64), total: u64) -> Self {
        Self { name, total, bytes: BytesMut::new() }
    }

    pub(super) fn is(&self, name: (u64, u64), total: u64) -> bool {
        self.name == name && self.total == total
    }

    /// Takes a piece if it is the next one.
    pub(super) fn take(&mut self, offset: u64, data: &[u8]) {
        if offset == self.wanted() && self.wanted() + data.len() as u64 <= self.total {
            self.bytes.extend_from_slice(data);
        }
    }

    /// Where the next piece begins.
    pub(super) fn wanted(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The whole, once it is there.
    pub(super) fn take_whole(&mut self) -> Option<Bytes> {
        (self.wanted() == self.total).then(|| self.bytes.split().freeze())
    }
}
