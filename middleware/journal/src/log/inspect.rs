//! A journal that is not open, looked at: checked, and read past its damage.
//!
//! Guarantee   nothing is written. What is told of the log's end is what opening would find.

use std::sync::Arc;

use super::catalog::{Places, Segment};
use super::read::{Entry, Scanner, read_footer, read_mark};
use super::recover::{Found, Tail, find_segments, open_segment, read_fixed, scan};
use super::{Snapshot, load_snapshot};
use crate::error::{Corruption, Dropped, OpenError, ReadError};
use crate::format::{INCOMPLETE_NAME, Position, SegmentHeader, segment_name, snapshot_name};
use crate::storage::Storage;

/// A directory with a journal in it, that nobody has open.
///
/// ```
/// use quorate_journal::{Config, Inspection, Journal, MemoryStorage, Position, Record};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let storage = MemoryStorage::new();
/// # let (journal, _) = Journal::open(storage.clone(), Config::new(7))?;
/// # journal.append_blocking(vec![Record::new(1, "hello")])?;
/// # journal.close_blocking();
/// let inspection = Inspection::new(storage)?; // `FileStorage::open(directory)?`
/// let checked = inspection.check(|progress| println!("{} of {} bytes", progress.bytes, progress.total))?;
/// assert!(checked.is_sound());
/// for record in inspection.records(Position::ZERO)? {
///     match record {
///         Ok(entry) => println!("{} {} {:?}", entry.position, entry.kind, entry.payload),
///         Err(damage) => println!("{damage}"), // and on it goes behind it
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Inspection {
    storage: Arc<dyn Storage>,
    owner: u64,
    segments: Vec<Segment>,
    snapshots: Vec<String>,
}

/// How far a long work has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that are done.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Checked {
    /// Whose journal it is.
    pub owner: u64,
    /// The first position that is there.
    pub first: Position,
    /// The position that the next record would get.
    pub next: Position,
    /// Segment files.
    pub segments: usize,
    /// Bytes of the segment files.
    pub bytes: u64,
    /// Whole records.
    pub records: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Whole snapshots: name, position, bytes.
    pub snapshots: Vec<(String, Position, u64)>,
    /// Full segments without a footer: they are only slower to read.
    pub without_footer: u64,
    /// The torn tail that opening would cut: records that nobody was told are durable.
    pub tail: Option<Dropped>,
    /// What is damaged, the first [`DAMAGES_MAX`](Self::DAMAGES_MAX) places.
    pub damages: Vec<Corruption>,
    /// How many places are damaged.
    pub damages_total: u64,
}

impl Checked {
    /// So many damaged places are told one by one.
    pub const DAMAGES_MAX: usize = 1000;

    /// True when everything that was durable is whole.
    pub fn is_sound(&self) -> bool {
        self.damages_total == 0
    }

    fn damage(&mut self, storage: &dyn Storage, mut corruption: Corruption) {
        corruption.file = storage.locate(&corruption.file);
        self.damages_total += 1;
        if self.damages.len() < Self::DAMAGES_MAX {
            self.damages.push(corruption);
        }
    }
}

impl Inspection {
    /// Looks which files there are.
    ///
    /// # Errors
    /// See [`OpenError`]: no journal at all, another format, a segment missing, a last segment without a header, a backup that
    /// was not finished.
    pub fn new(storage: impl Storage) -> Result<Self, OpenError> {
        let storage: Arc<dyn Storage> = Arc::new(storage);
        Self::look(storage.clone()).map_err(|error| error.located(&*storage))
    }

    fn look(storage: Arc<dyn Storage>) -> Result<Self, OpenError> {
        let io_error = |source| OpenError::Io { operation: "list", file: ".".to_owned(), source };
        let names = storage.list().map_err(io_error)?;
        if names.iter().any(|name| name == INCOMPLETE_NAME) {
            return Err(OpenError::IncompleteBackup { file: INCOMPLETE_NAME.to_owned() });
        }
        let segments: Vec<Segment> = find_segments(&*storage, &names)?.into();
        let Some(last) = segments.last() else {
            return Err(OpenError::NotAJournal { file: ".".to_owned() });
        };
        let name = segment_name(last.number, last.first);
        let file = storage.open(&name).map_err(|source| OpenError::Io {
            operation: "open",
            file: name.clone(),
            source,
        })?;
        let header = SegmentHeader::decode(&read_fixed(&*file, &name)?)
            .map_err(|fault| super::recover::header_error(&name, fault))?;
        let mut snapshots: Vec<String> = names.iter().filter_map(|name| snapshot_name(name)).collect();
        snapshots.sort();
        Ok(Self { storage, owner: header.owner, segments, snapshots })
    }

    /// Whose journal it is.
    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// The names of the snapshots.
    pub fn snapshots(&self) -> &[String] {
        &self.snapshots
    }

    /// The snapshot of that name.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it is damaged.
    pub fn snapshot(&self, name: &str) -> Result<Option<Snapshot>, ReadError> {
        load_snapshot(&*self.storage, name, Position::from_u64(u64::MAX))
    }

    /// The records from `from` on, up to where opening would find the end. A damage is told once, and then the reading
    /// goes on behind it. Blocks on the disk.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn records(&self, from: Position) -> Result<InspectedRecords<'_>, ReadError> {
        let after = self.segments.partition_point(|segment| segment.first <= from);
        let next_segment = after.saturating_sub(1);
        Ok(InspectedRecords { inspection: self, from, next_segment, open: None })
    }

    /// Reads and checks everything. Blocks on the disk, for as long as that takes.
    ///
    /// # Errors
    /// [`ReadError::Io`] when the disk does not give what it has; damage is no error but a finding.
    pub fn check(&self, mut progress: impl FnMut(Progress)) -> Result<Checked, ReadError> {
        let storage = &*self.storage;
        let mut found = Checked { owner: self.owner, segments: self.segments.len(), ..Checked::default() };
        found.first = self.segments.first().map_or(Position::ZERO, |segment| segment.first);
        let mut sizes = Vec::new();
        for segment in &self.segments {
            let name = segment_name(segment.number, segment.first);
            let size = storage.open(&name).and_then(|file| file.size());
            sizes.push(size.map_err(|source| self.io("open", &name, source))?);
        }
        found.bytes = sizes.iter().sum();
        let mut bytes = 0;
        for (index, size) in sizes.iter().enumerate() {
            self.check_segment(index, &mut found)?;
            bytes += size;
            progress(Progress { bytes, total: found.bytes });
        }
        for name in &self.snapshots {
            match load_snapshot(storage, name, found.next) {
                Ok(Some(snapshot)) => {
                    found.snapshots.push((name.clone(), snapshot.position, snapshot.blob.len() as u64));
                }
                Ok(None) => {}
                Err(ReadError::Corrupt(corruption)) => found.damage(storage, corruption),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn check_segment(&self, index: usize, found: &mut Checked) -> Result<(), ReadError> {
        let storage = &*self.storage;
        let segment = self.segments[index];
        match open_segment(storage, segment, self.owner) {
            Ok(opened) => {
                if let Some(next) = self.segments.get(index + 1) {
                    let footer = read_footer(&*opened.file);
                    let footer = footer.map_err(|source| self.io("read", &opened.name, source))?;
                    let is_whole = footer
                        .is_some_and(|footer| (footer.number, footer.next) == (segment.number, next.first));
                    found.without_footer += u64::from(!is_whole);
                }
            }
            Err(error) => found.damage(storage, self.told(segment, error)?),
        }
        let Some(mut records) = self.enter(index)? else { return Ok(()) };
        found.tail = records.tail.take();
        while let Some(record) = self.step(&mut records)? {
            match record {
                Ok(entry) => {
                    found.records += 1;
                    found.payload_bytes += entry.payload.len() as u64;
                }
                Err(corruption) => found.damage(storage, corruption),
            }
        }
        found.next = records.scanner.position;
        Ok(())
    }

    /// Damage is a finding, all else an error.
    fn told(&self, segment: Segment, error: OpenError) -> Result<Corruption, ReadError> {
        let file = segment_name(segment.number, segment.first);
        match error {
            OpenError::Io { operation, source, .. } => Err(self.io(operation, &file, source)),
            OpenError::Corrupt(corruption) => Ok(corruption),
            error => Ok(Corruption { file, offset: 0, reason: error.to_string() }),
        }
    }

    /// The records of a segment.
    fn enter(&self, index: usize) -> Result<Option<OpenRecords>, ReadError> {
        let Some(segment) = self.segments.get(index) else { return Ok(None) };
        let name = segment_name(segment.number, segment.first);
        let file = self.storage.open(&name).map_err(|source| self.io("open", &name, source))?;
        let scanner = Scanner::at_start(file.clone(), name.clone(), segment.first);
        let (end, tail) = match self.segments.get(index + 1) {
            Some(next) => (Some(next.first), None),
            None => {
                let (number, first) = (segment.number, segment.first);
                let mark = read_mark(&*file).map_err(|source| self.io("read", &name, source))?;
                let header = SegmentHeader { owner: self.owner, number, epoch: 0, first, mark };
                match scan(&Found { name, file, header }, u64::MAX) {
                    Ok((Tail { next, dropped, .. }, Places(_))) => (Some(next), dropped),
                    Err(OpenError::Corrupt(_)) => (None, None),
                    Err(OpenError::Io { operation, file, source }) => {
                        return Err(self.io(operation, &file, source));
                    }
                    Err(_) => (Some(first), None),
                }
            }
        };
        let tail = tail.map(|tail| Dropped { file: self.storage.locate(&tail.file), ..tail });
        Ok(Some(OpenRecords { scanner, end, tail }))
    }

    /// The next record of a segment, or a damage that was passed; `None` at its end.
    fn step(&self, records: &mut OpenRecords) -> Result<Option<Result<Entry, Corruption>>, ReadError> {
        let OpenRecords { scanner, end, .. } = records;
        if end.is_some_and(|end| scanner.position >= end) {
            return Ok(None);
        }
        let (position, offset) = (scanner.position, scanner.offset);
        let name = scanner.name.clone();
        let io = |source| self.io("read", &name, source);
        let fault = match scanner.next().map_err(io)? {
            Ok((header, payload)) => return Ok(Some(Ok(Entry { position, kind: header.kind, payload }))),
            Err(fault) => fault,
        };
        let is_found = scanner.find_next(*end).map_err(io)?;
        if !is_found {
            match *end {
                Some(end) => scanner.position = end,
                // All that is behind is the tail of a segment whose end nobody knows.
                None => *end = Some(scanner.position),
            }
        }
        let missing = scanner.position.as_u64() - position.as_u64();
        let reason = format!("{fault}; {missing} records from position {position} on are lost");
        Ok(Some(Err(Corruption { file: scanner.name.clone(), offset, reason })))
    }

    fn io(&self, operation: &'static str, file: &str, source: std::io::Error) -> ReadError {
        ReadError::Io { operation, file: self.storage.locate(file), source }
    }
}

struct OpenRecords {
    scanner: Scanner,
    /// Behind the last record; `None` when damage hides where that is.
    end: Option<Position>,
    tail: Option<Dropped>,
}

/// The records of a journal that is not open; see [`Inspection::records`].
pub struct InspectedRecords<'a> {
    inspection: &'a Inspection,
    from: Position,
    next_segment: usize,
    open: Option<OpenRecords>,
}

impl InspectedRecords<'_> {
    fn advance(&mut self) -> Result<Option<Result<Entry, Corruption>>, ReadError> {
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                None => match self.inspection.enter(self.next_segment)? {
                    None => return Ok(None),
                    Some(open) => {
                        self.next_segment += 1;
                        self.open.insert(open)
                    }
                },
            };
            match self.inspection.step(open)? {
                Some(Ok(entry)) if entry.position < self.from => {}
                Some(record) => return Ok(Some(record)),
                None => self.open = None,
            }
        }
    }
}

impl Iterator for InspectedRecords<'_> {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let storage = &*self.inspection.storage;
        match self.advance() {
            Ok(record) => Some(record?.map_err(|damage| ReadError::Corrupt(damage).located(storage))),
            Err(error) => {
                // The disk fails: there is nothing to go on with.
                self.next_segment = self.inspection.segments.len();
                self.open = None;
                Some(Err(error))
            }
        }
    }
}
