//! Reading records back, each checked again.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::Catalog;
use crate::error::{Corruption, ReadError};
use crate::format::{
    Position, RECORD_OVERHEAD_BYTES, RecordFault, RecordHeader, SEGMENT_HEADER_BYTES, claimed_payload_bytes,
    decode_record, encoded_bytes, segment_name, slice,
};
use crate::storage::{Storage, StorageFile, read_full};

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub position: Position,
    /// The kind that it was appended with.
    pub kind: u16,
    /// The bytes that it was appended with. They share a buffer with their neighbours (up to 256 KiB): copy what is
    /// small and kept for long.
    pub payload: Bytes,
}

/// The records from some position up to what was durable when the reader was made. Blocks on the disk.
///
/// After an error it ends. A truncation that overtakes it is an error ([`ReadError::Truncated`]), never a gap.
pub struct Reader {
    /// `None` when the journal was closed.
    storage: Option<Arc<dyn Storage>>,
    catalog: Arc<Catalog>,
    next: Position,
    until: Position,
    open: Option<Open>,
}

struct Open {
    scanner: Scanner,
    /// The first position of the segment after it.
    end: Position,
}

impl Reader {
    pub(crate) fn new(storage: Option<Arc<dyn Storage>>, catalog: Arc<Catalog>, from: Position) -> Self {
        let until = catalog.lock().durable;
        Self { storage, catalog, next: from, until, open: None }
    }

    fn advance(&mut self) -> Result<Entry, ReadError> {
        loop {
            let storage = self.storage.as_deref().ok_or(ReadError::Closed)?;
            let open = match &mut self.open {
                Some(open) if self.next < open.end => open,
                _ => self.open.insert(enter(storage, &self.catalog, self.next)?),
            };
            let name = open.scanner.name.clone();
            let offset = open.scanner.offset;
            let scanned = open.scanner.next().map_err(|source| ReadError::Io {
                operation: "read",
                file: name.clone(),
                source,
            })?;
            match scanned {
                Ok((header, payload)) => {
                    // The index leads to a record at or before the wanted one.
                    if header.position < self.next {
                        continue;
                    }
                    self.next = header.position.plus(1);
                    return Ok(Entry { position: header.position, kind: header.kind, payload });
                }
                Err(fault) => {
                    return Err(ReadError::Corrupt(Corruption {
                        file: name,
                        offset,
                        reason: fault.to_string(),
                    }));
                }
            }
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.until {
            return None;
        }
        let item = self.advance();
        if item.is_err() {
            self.until = Position::ZERO;
        }
        Some(item.map_err(|error| match &self.storage {
            Some(storage) => error.located(&**storage),
            None => error,
        }))
    }
}

/// Opens the segment that holds `position`, near it.
fn enter(storage: &dyn Storage, catalog: &Catalog, position: Position) -> Result<Open, ReadError> {
    let (number, end, place) = {
        let contents = catalog.lock();
        let after = contents.segments.partition_point(|segment| segment.first <= position);
        let Some(segment) = after.checked_sub(1).and_then(|at| contents.segments.get(at)) else {
            return Err(ReadError::Truncated { first: contents.first() });
        };
        let end = contents.segments.get(after).map_or(Position::from_u64(u64::MAX), |next| next.first);
        (segment.number, end, segment.place(position))
    };
    let name = segment_name(number);
    let file = storage.open(&name).map_err(|source| {
        // A truncation may have come between the look into the catalog and the opening.
        let first = catalog.lock().first();
        if first > position {
            return ReadError::Truncated { first };
        }
        ReadError::Io { operation: "open", file: name.clone(), source }
    })?;
    Ok(Open { scanner: Scanner::new(file, name, number, place), end })
}

/// Steps through one segment's records.
pub(super) struct Scanner {
    file: Arc<dyn StorageFile>,
    pub(super) name: String,
    number: u64,
    /// Where the next record should begin, and its position.
    pub(super) offset: u64,
    pub(super) position: Position,
    /// Bytes read ahead, from `offset` on.
    window: Bytes,
}

impl Scanner {
    pub(super) fn new(
        file: Arc<dyn StorageFile>,
        name: String,
        number: u64,
        (position, offset): (Position, u64),
    ) -> Self {
        Self { file, name, number, offset, position, window: Bytes::new() }
    }

    /// From a segment's first record.
    pub(super) fn at_start(file: Arc<dyn StorageFile>, name: String, number: u64, first: Position) -> Self {
        Self::new(file, name, number, (first, SEGMENT_HEADER_BYTES))
    }

    /// The next record, or why there is none; after a fault the scanner stays where it is.
    pub(super) fn next(&mut self) -> io::Result<Result<(RecordHeader, Bytes), RecordFault>> {
        if !self.fill(RECORD_OVERHEAD_BYTES)? {
            return Ok(Err(RecordFault::Length));
        }
        let mut head = [0; RECORD_OVERHEAD_BYTES];
        head.copy_from_slice(&self.window[..RECORD_OVERHEAD_BYTES]);
        let payload_bytes = claimed_payload_bytes(&head) as usize;
        if !self.fill(RECORD_OVERHEAD_BYTES + payload_bytes)? {
            return Ok(Err(RecordFault::Length));
        }
        let header = match decode_record(&self.window, self.number) {
            Ok(header) if header.position != self.position => return Ok(Err(RecordFault::Position)),
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let payload = slice(&self.window, payload_bytes);
        let total = encoded_bytes(payload_bytes);
        self.offset += total as u64;
        self.position = self.position.plus(1);
        self.window = self.window.split_off(total.min(self.window.len()));
        Ok(Ok((header, payload)))
    }

    /// Gets `count` bytes at `offset` into the window; false when the file does not have them. Never allocates more
    /// than the file has, whatever a damaged header claims.
    fn fill(&mut self, count: usize) -> io::Result<bool> {
        if self.window.len() >= count {
            return Ok(true);
        }
        let left = self.file.size()?.saturating_sub(self.offset);
        if left < count as u64 {
            return Ok(false);
        }
        let wanted = (count.max(READ_BYTES) as u64).min(left) as usize;
        let mut window = vec![0; wanted];
        let got = read_full(&*self.file, &mut window, self.offset)?;
        window.truncate(got);
        self.window = window.into();
        Ok(got >= count)
    }
}

/// Read at a time: large enough that a fast disk streams, small enough that a payload which is kept pins little.
const READ_BYTES: usize = 256 << 10;
