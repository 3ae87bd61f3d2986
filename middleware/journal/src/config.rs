//! The journal's few knobs, checked once when it is opened.

use crate::error::OpenError;
use crate::format::{RECORD_OVERHEAD_BYTES, SEGMENT_HEADER_BYTES, footer_bytes};

/// How a journal is kept. The defaults suit a server with an SSD.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) owner: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) zero_fill_bytes: u64,
    pub(crate) batch_bytes_max: usize,
    pub(crate) waiting_bytes_max: usize,
    pub(crate) unsynced_bytes_max: usize,
}

impl Config {
    /// The defaults, for the journal of `owner`.
    ///
    /// `owner` (a node's id, say) is written into every file; a directory of another owner is refused and left
    /// untouched.
    pub fn new(owner: u64) -> Self {
        Self {
            owner,
            segment_bytes: 16 << 20,
            zero_fill_bytes: 1 << 20,
            batch_bytes_max: 8 << 20,
            waiting_bytes_max: 16 << 20,
            unsynced_bytes_max: 4 << 20,
        }
    }

    /// Bytes of one segment file. Default 16 MiB, at least 8 KiB, at most 4 GiB.
    ///
    /// Opening reads the last one, and truncation drops whole ones: larger ones open later and hold dead records
    /// longer; smaller ones cost three syncs more often. An append that does not fit into an empty segment is refused
    /// as too large.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// How far ahead of the last record a segment is filled with zeros. Default 1 MiB; 0 turns it off.
    ///
    /// Writing into bytes that the file already has spares each sync the commit of a new file size. Too much
    /// doubles what a burst writes; too little brings the size commits back.
    pub fn zero_fill_bytes(mut self, bytes: u64) -> Self {
        self.zero_fill_bytes = bytes;
        self
    }

    /// Most bytes that one write and one sync carry. Default 8 MiB, at least 4 KiB.
    ///
    /// Larger batches make the first waiter of a burst wait for the last; an append is never split, so a single
    /// one may exceed it.
    pub fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.batch_bytes_max = bytes;
        self
    }

    /// Most bytes that may wait for their sync; beyond it `append` waits for room and `submit` fails. Default
    /// 16 MiB, at least 4 KiB. An append larger than this is let in when nothing else waits.
    pub fn waiting_bytes_max(mut self, bytes: usize) -> Self {
        self.waiting_bytes_max = bytes;
        self
    }

    /// Most bytes that are [written](crate::Durability::Written) and not synced, when nobody asks for more. Default
    /// 4 MiB; 0 syncs every batch. A power cut takes at most this much of what was only written.
    pub fn unsynced_bytes_max(mut self, bytes: usize) -> Self {
        self.unsynced_bytes_max = bytes;
        self
    }

    /// Most bytes of one append, with the overhead of its records.
    pub(crate) fn append_bytes_max(&self) -> u64 {
        let places_max = (self.segment_bytes - SEGMENT_HEADER_BYTES) / self.place_bytes() + 1;
        self.segment_bytes - SEGMENT_HEADER_BYTES - footer_bytes(places_max as usize) as u64
    }

    /// Between two noted places of a segment: this much is read in vain at most to find a record.
    pub(crate) fn place_bytes(&self) -> u64 {
        (self.segment_bytes / PLACES_PER_SEGMENT).max(PLACE_BYTES_MIN)
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let wrong = |field, reason| Err(OpenError::Config { field, reason });
        if self.segment_bytes < SEGMENT_HEADER_BYTES + 4096 {
            return wrong("segment_bytes", "below 8 KiB");
        }
        if self.segment_bytes > 4 << 30 {
            return wrong("segment_bytes", "above 4 GiB");
        }
        if self.batch_bytes_max < 4096 {
            return wrong("batch_bytes_max", "below 4 KiB");
        }
        if self.batch_bytes_max > BATCH_BYTES_LIMIT {
            return wrong("batch_bytes_max", "above 1 GiB");
        }
        if self.waiting_bytes_max < 4096 {
            return wrong("waiting_bytes_max", "below 4 KiB");
        }
        Ok(())
    }
}

/// 8 bytes each: a footer of 8 KiB at most.
const PLACES_PER_SEGMENT: u64 = 1024;
const PLACE_BYTES_MIN: u64 = 1024;
/// Keeps the count of records in one batch within the 32 bits that a record header has for it.
const BATCH_BYTES_LIMIT: usize = 1 << 30;
const _: () = assert!(BATCH_BYTES_LIMIT / RECORD_OVERHEAD_BYTES < u32::MAX as usize / 8);
