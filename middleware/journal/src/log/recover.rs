//! Opening: what is there, how far it is whole, and where to go on.
//!
//! Guarantee   finds every acknowledged record; accepts nothing after a hole; changes nothing before all is
//!             checked. What it returns as recovered is durable, also when an earlier process left it in the cache
//!             only, and also when a sync of that process had failed.
//! Torn tail   damage in the *last* segment behind which no later record proves that the damaged one had been
//!             durable. A record is such a proof when it was written after a sync that covered the damaged place;
//!             every record says how far the log was durable then. All other damage is corruption and refused.
//! Limits      damage to the very last batch after its acknowledgement cannot be told from a torn tail unless the
//!             log was opened once more since; it is cut, and reported as dropped.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::read::Scanner;
use super::{Active, Catalog, Log, Recovered, Segment, write_whole};
use crate::config::Config;
use crate::error::{Corruption, DropReason, Dropped, OpenError};
use crate::format::{
    FIXED_BYTES, FORMAT_VERSION, HeaderFault, Position, RECORD_ALIGN, RECORD_OVERHEAD_BYTES,
    SEGMENT_HEADER_BYTES, SegmentHeader, claimed_payload_bytes, claimed_place, decode_record, is_temporary,
    segment_name, segment_number, snapshot_owner, temporary_name,
};
use crate::storage::{Storage, StorageFile, read_full, write_full};

pub(super) fn open(storage: Arc<dyn Storage>, config: Config) -> Result<(Log, Recovered), OpenError> {
    config.check()?;
    let names = storage.list().map_err(io_error("list", "."))?;
    let found = find_segments(&*storage, &names, config.owner)?;
    check_snapshots(&*storage, &names, config.owner)?;

    // Everything is checked before anything is changed.
    let mut segments = VecDeque::new();
    let mut tail = None;
    for (index, segment) in found.iter().enumerate() {
        let (entry, end) = scan(segment, found.get(index + 1).map(|next| next.header.first))?;
        segments.push_back(entry);
        tail = end;
    }

    if let (Some(tail), Some(last)) = (&tail, found.last()) {
        make_durable(last, tail)?;
    }
    let next = tail.as_ref().map_or(Position::ZERO, |tail| tail.next);
    let (number, epoch) = found.last().map_or((1, 1), |last| (last.header.number + 1, last.header.epoch + 1));
    let header = SegmentHeader { owner: config.owner, number, epoch, first: next };
    let file = create_segment(&*storage, &header)?;
    segments.push_back(Segment::new(number, next));

    // Only now may the leftovers go: segments without a record, and files that never got their names.
    let mut leftovers = Vec::new();
    for index in (1..segments.len()).rev() {
        if segments[index - 1].first == segments[index].first
            && let Some(empty) = segments.remove(index - 1)
        {
            leftovers.push(segment_name(empty.number));
        }
    }
    // The new segment may have used and renamed one of the temporary files.
    let used = temporary_name(&segment_name(number));
    leftovers.extend(names.into_iter().filter(|name| is_temporary(name) && *name != used));
    for name in &leftovers {
        storage.remove(name).map_err(io_error("remove", name))?;
    }
    if !leftovers.is_empty() {
        // A later truncation drops the segment behind an empty one; the empty one must not come back after that,
        // because the segments would not join any more.
        storage.sync_directory().map_err(io_error("sync", "."))?;
    }

    let mut dropped = tail.and_then(|tail| tail.dropped);
    if let Some(dropped) = &mut dropped {
        dropped.file = storage.locate(&dropped.file);
    }
    let catalog = Catalog::new(segments, next);
    let first = catalog.lock().first();
    let recovered = Recovered { first, next, epoch, dropped };
    match &recovered.dropped {
        Some(dropped) => tracing::warn!(%dropped, next = next.as_u64(), "journal opened, torn tail cut"),
        None => tracing::debug!(first = first.as_u64(), next = next.as_u64(), epoch, "journal opened"),
    }
    let active = Active { file, number, end: SEGMENT_HEADER_BYTES, filled: SEGMENT_HEADER_BYTES };
    let log =
        Log { storage, config, epoch, catalog, active, buffer: Vec::new(), next, failure: None, syncs: 0 };
    Ok((log, recovered))
}

struct Found {
    name: String,
    file: Arc<dyn StorageFile>,
    header: SegmentHeader,
}

/// The end of the last segment.
struct Tail {
    /// Behind the last whole append.
    next: Position,
    end: u64,
    /// From here to `end` nothing proves that the bytes reached the disk.
    unproven: u64,
    dropped: Option<Dropped>,
}

fn find_segments(storage: &dyn Storage, names: &[String], owner: u64) -> Result<Vec<Found>, OpenError> {
    let mut found = Vec::new();
    for name in names {
        let Some(number) = segment_number(name) else { continue };
        let file = storage.open(name).map_err(io_error("open", name))?;
        let fixed = read_fixed(&*file, name)?;
        let header = SegmentHeader::decode(&fixed).map_err(|fault| header_error(name, fault))?;
        if header.owner != owner {
            return Err(OpenError::Owner { file: name.clone(), found: header.owner, expected: owner });
        }
        if header.number != number {
            return Err(corrupt(name, 24, format!("the file is segment {} by its header", header.number)));
        }
        found.push(Found { name: name.clone(), file, header });
    }
    found.sort_by_key(|segment| segment.header.number);
    Ok(found)
}

fn check_snapshots(storage: &dyn Storage, names: &[String], owner: u64) -> Result<(), OpenError> {
    for name in names.iter().filter(|name| name.ends_with(".snapshot")) {
        let file = storage.open(name).map_err(io_error("open", name))?;
        let found = snapshot_owner(&read_fixed(&*file, name)?).map_err(|fault| header_error(name, fault))?;
        if found != owner {
            return Err(OpenError::Owner { file: name.clone(), found, expected: owner });
        }
    }
    Ok(())
}

fn read_fixed(file: &dyn StorageFile, name: &str) -> Result<[u8; FIXED_BYTES], OpenError> {
    let mut fixed = [0; FIXED_BYTES];
    let got = read_full(file, &mut fixed, 0).map_err(io_error("read", name))?;
    if got < FIXED_BYTES {
        return Err(OpenError::NotAJournal { file: name.to_owned() });
    }
    Ok(fixed)
}

/// Checks every record of a segment. `until` is where the next segment begins; the last one has none, and gives a
/// tail.
fn scan(segment: &Found, until: Option<Position>) -> Result<(Segment, Option<Tail>), OpenError> {
    let Found { name, file, header } = segment;
    let mut entry = Segment::new(header.number, header.first);
    let mut scanner = Scanner::at_start(file.clone(), name.clone(), header.number, header.first);
    let mut whole = (header.first, SEGMENT_HEADER_BYTES);
    let mut unproven = SEGMENT_HEADER_BYTES;
    loop {
        if until == Some(scanner.position) {
            return Ok((entry, None));
        }
        let (position, offset) = (scanner.position, scanner.offset);
        match (scanner.next().map_err(io_error("read", name))?, until) {
            (Ok((record, _)), _) => {
                entry.note(position, offset);
                if record.unsynced == 0 {
                    unproven = offset;
                }
                if record.is_last {
                    whole = (scanner.position, scanner.offset);
                }
            }
            (Err(fault), Some(_)) => return Err(corrupt(name, offset, fault.to_string())),
            (Err(fault), None) => {
                let rest = examine_rest(segment, offset)?;
                if rest.proven > whole.0 {
                    let reason = format!("{fault}, but later records prove that it had been durable");
                    return Err(corrupt(name, offset, reason));
                }
                let (next, end) = whole;
                let written = rest.end.max(offset);
                let dropped = (written > end).then(|| Dropped {
                    file: name.clone(),
                    offset: end,
                    bytes: written - end,
                    reason: if offset > end { DropReason::IncompleteAppend } else { DropReason::Torn },
                });
                // What is cut must not stay in the index.
                entry.index.retain(|(position, _)| *position < next);
                return Ok((entry, Some(Tail { next, end, unproven: unproven.min(end), dropped })));
            }
        }
    }
}

/// What lies behind the first place that is no record.
struct Rest {
    /// Behind the last byte that is not zero.
    end: u64,
    /// The furthest position that a record in there proves to have been durable.
    proven: Position,
}

fn examine_rest(segment: &Found, from: u64) -> Result<Rest, OpenError> {
    let Found { name, file, header } = segment;
    let size = file.size().map_err(io_error("read", name))?;
    let mut rest = Rest { end: from, proven: Position::ZERO };
    let mut at = from;
    let mut window = vec![0; WINDOW_BYTES + RECORD_OVERHEAD_BYTES];
    while at < size {
        // Windows overlap by a record's header, so that none is missed between two of them.
        let got = read_full(&**file, &mut window, at).map_err(io_error("read", name))?;
        if let Some(last) = window[..got].iter().rposition(|byte| *byte != 0) {
            rest.end = at + last as u64 + 1;
            for start in (0..got.min(WINDOW_BYTES)).step_by(RECORD_ALIGN) {
                let Some(head) = window[start..got].first_chunk::<RECORD_OVERHEAD_BYTES>() else { break };
                // Cheap tests first: the checksum is computed only for what looks like one of our records.
                let (number, position) = claimed_place(head);
                let total = RECORD_OVERHEAD_BYTES as u64 + claimed_payload_bytes(head);
                let place = at + start as u64;
                if number != header.number || position < header.first || place + total > size {
                    continue;
                }
                let mut bytes = vec![0; total as usize];
                let read = read_full(&**file, &mut bytes, place).map_err(io_error("read", name))?;
                if let Ok(record) = decode_record(&bytes[..read], header.number) {
                    rest.proven = rest.proven.max(record.durable_before());
                }
            }
        }
        at += WINDOW_BYTES as u64;
    }
    Ok(rest)
}

/// Writes again what no record proves to be on the disk, and syncs. A sync alone would not do: if one failed before,
/// the kernel took these pages for clean, and would report success without writing them.
fn make_durable(last: &Found, tail: &Tail) -> Result<(), OpenError> {
    let Found { name, file, .. } = last;
    let mut at = tail.unproven;
    let mut window = vec![0; WINDOW_BYTES];
    while at < tail.end {
        let count = (tail.end - at).min(WINDOW_BYTES as u64) as usize;
        let got = read_full(&**file, &mut window[..count], at).map_err(io_error("read", name))?;
        if got == 0 {
            break;
        }
        write_full(&**file, &window[..got], at).map_err(io_error("write", name))?;
        at += got as u64;
    }
    file.sync().map_err(io_error("sync", name))
}

fn create_segment(storage: &dyn Storage, header: &SegmentHeader) -> Result<Arc<dyn StorageFile>, OpenError> {
    let name = segment_name(header.number);
    let temporary = temporary_name(&name);
    let file = write_whole(storage, &name, &[&header.encode()]).map_err(|(operation, file, source)| {
        if source.kind() == io::ErrorKind::StorageFull {
            return OpenError::DiskFull;
        }
        OpenError::Io { operation, file, source }
    })?;
    storage.rename(&temporary, &name).map_err(io_error("rename", &temporary))?;
    storage.sync_directory().map_err(io_error("sync the directory of", &name))?;
    Ok(file)
}

fn header_error(name: &str, fault: HeaderFault) -> OpenError {
    match fault {
        HeaderFault::Magic => OpenError::NotAJournal { file: name.to_owned() },
        HeaderFault::Version(found) => {
            OpenError::Version { file: name.to_owned(), found, supported: FORMAT_VERSION }
        }
        HeaderFault::Checksum => corrupt(name, 0, "header checksum mismatch".to_owned()),
    }
}

fn corrupt(name: &str, offset: u64, reason: String) -> OpenError {
    OpenError::Corrupt(Corruption { file: name.to_owned(), offset, reason })
}

fn io_error(operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> OpenError {
    let file = file.to_owned();
    move |source| OpenError::Io { operation, file, source }
}

const WINDOW_BYTES: usize = 256 << 10;
