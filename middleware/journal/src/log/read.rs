//! Reading records back, each checked again.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::Durability;
use super::catalog::{Catalog, Places, Segment};
use crate::error::{Corruption, ReadError};
use crate::format::{
    FIXED_BYTES, Footer, MARK_COPY_AT, Position, RECORD_ALIGN, RECORD_OVERHEAD_BYTES, RecordFault,
    RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader, claimed_payload_bytes, claimed_place, decode_record,
    encoded_bytes, segment_name, slice,
};
use crate::planted::{self, Planted};
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

/// The records from some position up to what was durable when the reader was made, or sent to a place. Blocks on the
/// disk.
///
/// After an error it ends. A truncation that overtakes it is an error ([`ReadError::Truncated`]), never a gap.
pub struct Reader {
    /// `None` when the journal was closed.
    storage: Option<Arc<dyn Storage>>,
    catalog: Arc<Catalog>,
    durability: Durability,
    next: Position,
    until: Position,
    open: Option<Open>,
}

struct Open {
    scanner: Scanner,
    segment: Segment,
    /// The first position of the segment after it.
    end: Option<Position>,
    /// What was read ahead of the records before this is what was written.
    sure: Position,
}

impl Reader {
    pub(crate) fn new(
        storage: Option<Arc<dyn Storage>>,
        catalog: Arc<Catalog>,
        from: Position,
        durability: Durability,
    ) -> Self {
        let mut reader = Self { storage, catalog, durability, next: from, until: Position::ZERO, open: None };
        reader.until = reader.end();
        reader
    }

    /// Goes on from `position`, and up to what is durable now. Going a little forward is cheap; what is passed over is
    /// not read, but for what lies around `position`. An error before is forgotten.
    pub fn seek(&mut self, position: Position) {
        let until = self.end();
        if let Some(open) = &mut self.open
            && until != self.until
        {
            // What was read ahead behind that may have been written since, and the segment may be full by now.
            open.sure = open.sure.min(self.until);
            let found = self.catalog.lock().find(open.segment.first);
            match found {
                Some((segment, end)) if segment == open.segment => open.end = end,
                _ => self.open = None,
            }
        }
        if self.open.as_ref().is_some_and(|open| position < open.scanner.position) {
            self.open = None;
        }
        self.until = until;
        self.next = position;
    }

    fn end(&self) -> Position {
        let contents = self.catalog.lock();
        if self.durability == Durability::Synced { contents.durable } else { contents.written }
    }

    fn advance(&mut self) -> Result<Entry, ReadError> {
        let storage = self.storage.as_deref().ok_or(ReadError::Closed)?;
        loop {
            let open = match &mut self.open {
                Some(open) if open.end.is_none_or(|end| self.next < end) => open,
                _ => self.open.insert(enter(storage, &self.catalog, self.next)?),
            };
            if self.next.as_u64() > open.scanner.position.as_u64() + SKIPPED_MAX {
                let places = places(storage, &self.catalog, open)?;
                open.scanner.skip_to(places.find(open.segment.first, self.next));
            }
            if open.scanner.position >= open.sure {
                open.scanner.forget_window();
                open.sure = NOWHERE;
            }
            let name = open.scanner.name.clone();
            let offset = open.scanner.offset;
            let scanned = open.scanner.next().map_err(|source| ReadError::Io {
                operation: "read",
                file: name.clone(),
                source,
            })?;
            match scanned {
                Ok((header, payload)) => {
                    // The places lead to a record at or before the wanted one.
                    if header.position < self.next {
                        continue;
                    }
                    self.next = header.position.plus(1);
                    return Ok(Entry { position: header.position, kind: header.kind, payload });
                }
                Err(fault) => {
                    // The file may be in use again, for other records.
                    let first = self.catalog.lock().first();
                    if first > self.next {
                        return Err(ReadError::Truncated { first });
                    }
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
            self.open = None;
        }
        Some(item.map_err(|error| match &self.storage {
            Some(storage) => error.located(&**storage),
            None => error,
        }))
    }
}

/// Opens the segment that holds `position`, near it.
fn enter(storage: &dyn Storage, catalog: &Catalog, position: Position) -> Result<Open, ReadError> {
    let (segment, end) = {
        let contents = catalog.lock();
        contents.find(position).ok_or(ReadError::Truncated { first: contents.first() })?
    };
    let name = segment_name(segment.number, segment.first);
    let file = storage.open(&name).map_err(|source| {
        // A truncation may have come between the look into the catalog and the opening.
        let first = catalog.lock().first();
        if first > position {
            return ReadError::Truncated { first };
        }
        ReadError::Io { operation: "open", file: name.clone(), source }
    })?;
    let mut open =
        Open { scanner: Scanner::at_start(file, name, segment.first), segment, end, sure: NOWHERE };
    if position > segment.first {
        let places = places(storage, catalog, &open)?;
        open.scanner.skip_to(places.find(segment.first, position));
    }
    Ok(open)
}

/// Where in a segment records are.
fn places(storage: &dyn Storage, catalog: &Catalog, open: &Open) -> Result<Arc<Places>, ReadError> {
    let Open { scanner, segment, end, .. } = open;
    {
        let mut contents = catalog.lock();
        if contents.segments.back() == Some(segment) {
            return Ok(Arc::new(contents.places.clone()));
        }
        if let Some(places) = contents.known(segment.number) {
            return Ok(places);
        }
    }
    let read = read_footer(&*scanner.file);
    let footer =
        read.map_err(|source| ReadError::Io { operation: "read", file: scanner.name.clone(), source })?;
    let place = |footer: &Footer| (footer.number, footer.first, Some(footer.next));
    let places = match footer {
        Some(footer)
            if place(&footer) == (segment.number, segment.first, *end)
                || planted::has(Planted::StaleFooterIsTaken) =>
        {
            Places(footer.places)
        }
        // A crash has left it without one, or it is damaged: reading from the beginning takes longer, and finds the same.
        _ => {
            tracing::debug!(file = storage.locate(&scanner.name), "segment without a footer");
            Places::default()
        }
    };
    let places = Arc::new(places);
    catalog.lock().learn(segment.number, places.clone());
    Ok(places)
}

/// What the end of a file says of it, if that is a footer.
pub(super) fn read_footer(file: &dyn StorageFile) -> io::Result<Option<Footer>> {
    let size = file.size()?;
    let mut fixed = [0; FIXED_BYTES];
    let Some(at) = size.checked_sub(FIXED_BYTES as u64) else { return Ok(None) };
    if read_full(file, &mut fixed, at)? < FIXED_BYTES {
        return Ok(None);
    }
    let bytes = Footer::claimed_places_bytes(&fixed);
    let Some(at) = at.checked_sub(bytes) else { return Ok(None) };
    let mut places = vec![0; bytes as usize];
    if read_full(file, &mut places, at)? < places.len() {
        return Ok(None);
    }
    Ok(Footer::decode(&fixed, &places).ok())
}

/// Steps through one segment's records.
pub(super) struct Scanner {
    file: Arc<dyn StorageFile>,
    pub(super) name: String,
    /// What the segment's records carry, once it was read.
    mark: Option<u64>,
    /// Where the next record should begin, and its position.
    pub(super) offset: u64,
    pub(super) position: Position,
    /// Bytes read ahead, from `offset` on.
    window: Bytes,
    /// How much to read the next time.
    read_bytes: usize,
}

impl Scanner {
    /// From a segment's first record.
    pub(super) fn at_start(file: Arc<dyn StorageFile>, name: String, first: Position) -> Self {
        Self {
            file,
            name,
            mark: None,
            offset: SEGMENT_HEADER_BYTES,
            position: first,
            window: Bytes::new(),
            read_bytes: READ_BYTES_MIN,
        }
    }

    /// Goes to a place further on; one that lies behind changes nothing.
    pub(super) fn skip_to(&mut self, (position, offset): (Position, u64)) {
        if position <= self.position {
            return;
        }
        let skipped = usize::try_from(offset - self.offset).unwrap_or(usize::MAX).min(self.window.len());
        self.window = self.window.split_off(skipped);
        (self.position, self.offset) = (position, offset);
    }

    /// Reads again what was read ahead.
    fn forget_window(&mut self) {
        self.window = Bytes::new();
    }

    /// The next record, or why there is none; after a fault the scanner stays where it is.
    pub(super) fn next(&mut self) -> io::Result<Result<(RecordHeader, Bytes), RecordFault>> {
        let mark = self.mark()?;
        if !self.fill(RECORD_OVERHEAD_BYTES)? {
            return Ok(Err(RecordFault::Length));
        }
        let mut head = [0; RECORD_OVERHEAD_BYTES];
        head.copy_from_slice(&self.window[..RECORD_OVERHEAD_BYTES]);
        let payload_bytes = claimed_payload_bytes(&head) as usize;
        if !self.fill(RECORD_OVERHEAD_BYTES + payload_bytes)? {
            return Ok(Err(RecordFault::Length));
        }
        let header = match decode_record(&self.window, mark) {
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

    /// Goes to the next whole record behind a damaged place, before the position `end` if there is one; false when there is
    /// none.
    pub(super) fn find_next(&mut self, end: Option<Position>) -> io::Result<bool> {
        let mut found = None;
        let from = self.offset + RECORD_ALIGN as u64;
        let mark = self.mark()?;
        search(&*self.file, from, (mark, self.position), |offset, _, record| {
            let record = record.filter(|record| end.is_none_or(|end| record.position < end));
            found = record.map(|record| (record.position, offset));
            found.is_none()
        })?;
        let Some((position, offset)) = found else { return Ok(false) };
        (self.position, self.offset, self.window) = (position, offset, Bytes::new());
        Ok(true)
    }

    fn mark(&mut self) -> io::Result<u64> {
        let mark = match self.mark {
            Some(mark) => mark,
            None => read_mark(&*self.file)?,
        };
        self.mark = Some(mark);
        Ok(mark)
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
        let wanted = (count.max(self.read_bytes) as u64).min(left) as usize;
        self.read_bytes = (2 * self.read_bytes).min(READ_BYTES_MAX);
        let mut window = vec![0; wanted];
        let got = read_full(&*self.file, &mut window, self.offset)?;
        window.truncate(got);
        self.window = window.into();
        Ok(got >= count)
    }
}

/// What a segment's records carry: by its header, and if that is damaged, by what stands at the end of its page.
pub(super) fn read_mark(file: &dyn StorageFile) -> io::Result<u64> {
    let mut fixed = [0; FIXED_BYTES];
    read_full(file, &mut fixed, 0)?;
    if let Ok(header) = SegmentHeader::decode(&fixed) {
        return Ok(header.mark);
    }
    let mut copy = [0; 8];
    read_full(file, &mut copy, MARK_COPY_AT)?;
    Ok(u64::from_le_bytes(copy))
}

/// Looks from `from` on for what carries `mark` and claims to be a record at `first` or behind it; tells of each where it
/// begins and ends, and its header if it is whole, until that returns false.
pub(super) fn search(
    file: &dyn StorageFile,
    from: u64,
    (mark, first): (u64, Position),
    mut found: impl FnMut(u64, u64, Option<RecordHeader>) -> bool,
) -> io::Result<()> {
    let size = file.size()?;
    let mut at = from;
    let mut window = vec![0; READ_BYTES_MAX + RECORD_OVERHEAD_BYTES];
    while at < size {
        // Windows overlap by a record's header, so that none is missed between two of them.
        let got = read_full(file, &mut window, at)?;
        let end = window[..got].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for start in (0..end.min(READ_BYTES_MAX)).step_by(RECORD_ALIGN) {
            let Some(head) = window[start..got].first_chunk::<RECORD_OVERHEAD_BYTES>() else { break };
            // Cheap tests first: the checksum is computed only for what looks like one of our records. What the file
            // held in an earlier life has another mark, and nobody who sends payloads knows this one.
            let (claimed, position) = claimed_place(head);
            let total = RECORD_OVERHEAD_BYTES as u64 + claimed_payload_bytes(head);
            let place = at + start as u64;
            if claimed != mark || position < first || place + total > size {
                continue;
            }
            let mut bytes = vec![0; total as usize];
            let read = read_full(file, &mut bytes, place)?;
            if !found(place, place + total, decode_record(&bytes[..read], mark).ok()) {
                return Ok(());
            }
        }
        at += READ_BYTES_MAX as u64;
    }
    Ok(())
}

/// Behind every record.
const NOWHERE: Position = Position::from_u64(u64::MAX);
/// Read at a time: little at first, for who wants one record; then more, so that a fast disk streams; never so much that
/// a payload which is kept pins a lot.
const READ_BYTES_MIN: usize = 16 << 10;
const READ_BYTES_MAX: usize = 256 << 10;
/// Read rather than skipped: looking for the place costs more.
const SKIPPED_MAX: u64 = 16;
