//! Opening: what is there, how far it is whole, and where to go on.
//!
//! Guarantee   finds every acknowledged record; accepts nothing after a hole; changes nothing before all is
//!             checked. What it returns as recovered is durable, also when an earlier process left it in the cache
//!             only, and also when a sync of that process had failed.
//! Method      the names say which segments there are and where each begins; their numbers have no gaps. The last one
//!             is read and checked, record by record. The others were durable before the next one began: they are
//!             checked when they are read. So opening takes time for one segment, whatever the log holds.
//! Torn tail   damage in the *last* segment behind which no later record proves that the damaged one had been
//!             durable. A record is such a proof when it was written after a sync that covered the damaged place;
//!             every record says how far the log was durable then. All other damage is corruption and refused.
//! Limits      damage to the very last batch after its acknowledgement cannot be told from a torn tail unless the
//!             log was opened once more since; it is cut, and reported as dropped.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::catalog::{Catalog, Places, Segment};
use super::read::{Scanner, search};
use super::segments::{SPARES_MAX, write_footer};
use super::{Active, Log, Recovered, write_whole};
use crate::config::Config;
use crate::error::{Corruption, DropReason, Dropped, OpenError};
use crate::format::{
    FIXED_BYTES, FORMAT_VERSION, Footer, HeaderFault, INCOMPLETE_NAME, Position, SEGMENT_HEADER_BYTES,
    SegmentHeader, is_segment_of_version_1, is_temporary, new_mark, segment_name, segment_place,
    snapshot_owner, spare_number, temporary_name,
};
use crate::planted::{self, Planted};
use crate::storage::{Storage, StorageFile, read_full, write_full};

pub(super) fn open(storage: Arc<dyn Storage>, config: Config) -> Result<(Log, Recovered), OpenError> {
    config.check()?;
    // Everything is checked before anything is changed.
    let names = storage.list().map_err(io_error("list", "."))?;
    if names.iter().any(|name| name == INCOMPLETE_NAME) {
        return Err(OpenError::IncompleteBackup { file: INCOMPLETE_NAME.to_owned() });
    }
    let mut segments = find_segments(&*storage, &names)?;
    let last = match segments.back() {
        Some(last) => Some(open_segment(&*storage, *last, config.owner)?),
        None => None,
    };
    check_snapshots(&*storage, &names, config.owner)?;
    let scanned = match &last {
        Some(last) => Some(scan(last, config.place_bytes())?),
        None => None,
    };

    // An empty segment is replaced: its number is still unused, and numbers have no gaps.
    let (mut number, mut next, mut epoch) = (1, Position::ZERO, 1);
    let mut sealed = None;
    if let (Some(last), Some((tail, places))) = (&last, scanned.as_ref()) {
        (number, next, epoch) = (last.header.number, tail.next, last.header.epoch + 1);
        if tail.next > last.header.first {
            make_durable(last, tail, places, config.owner)?;
            sealed = Some((number, Arc::new(places.clone())));
            number += 1;
        } else {
            segments.pop_back();
        }
    }
    let header = SegmentHeader { owner: config.owner, number, epoch, first: next, mark: new_mark() };
    let file = create_segment(&*storage, &header)?;
    segments.push_back(Segment { number, first: next });

    // Only now may the leftovers go. A spare with the number of a segment that is there has not lost its old name.
    let kept = segments.front().map_or(0, |segment| segment.number);
    let mut spares: VecDeque<u64> = names.iter().filter_map(|name| spare_number(name)).collect();
    spares.retain(|spare| *spare < kept || planted::has(Planted::SpareKeepsItsOldName));
    spares.truncate(SPARES_MAX);
    let used = temporary_name(&segment_name(number, next));
    let mut leftovers = names.into_iter().filter(|name| {
        let is_surplus = spare_number(name).is_some_and(|number| !spares.contains(&number));
        // The new segment may have used and renamed one of the temporary files.
        is_surplus || (is_temporary(name) && *name != used)
    });
    let removed = leftovers.try_fold(0, |count, name| {
        storage.remove(&name).map_err(io_error("remove", &name)).map(|()| count + 1)
    })?;
    if removed > 0 {
        storage.sync_directory().map_err(io_error("sync", "."))?;
    }

    let mut dropped = scanned.and_then(|(tail, _)| tail.dropped);
    if let Some(dropped) = &mut dropped {
        dropped.file = storage.locate(&dropped.file);
    }
    let catalog = Catalog::new(segments, next);
    if let Some((number, places)) = sealed {
        catalog.lock().learn(number, places);
    }
    let first = catalog.lock().first();
    let recovered = Recovered { first, next, epoch, dropped };
    match &recovered.dropped {
        Some(dropped) => tracing::warn!(%dropped, next = next.as_u64(), "journal opened, torn tail cut"),
        None => tracing::debug!(first = first.as_u64(), next = next.as_u64(), epoch, "journal opened"),
    }
    let (end, mark) = (SEGMENT_HEADER_BYTES, header.mark);
    let active = Active { file, number, mark, first: next, end, filled: end };
    let log = Log {
        storage,
        config,
        epoch,
        catalog,
        active,
        buffer: Vec::new(),
        next,
        durable: next,
        spares,
        failure: None,
        syncs: 0,
    };
    Ok((log, recovered))
}

pub(super) struct Found {
    pub(super) name: String,
    pub(super) file: Arc<dyn StorageFile>,
    pub(super) header: SegmentHeader,
}

/// The end of the last segment.
pub(super) struct Tail {
    /// Behind the last whole append.
    pub(super) next: Position,
    end: u64,
    /// From here to `end` nothing proves that the bytes reached the disk.
    unproven: u64,
    pub(super) dropped: Option<Dropped>,
}

/// The segments by their names, oldest first.
pub(super) fn find_segments(storage: &dyn Storage, names: &[String]) -> Result<VecDeque<Segment>, OpenError> {
    let mut found = Vec::new();
    for name in names {
        if let Some((number, first)) = segment_place(name) {
            found.push(Segment { number, first });
        } else if is_segment_of_version_1(name) {
            let file = storage.open(name).map_err(io_error("open", name))?;
            let fixed = read_fixed(&*file, name)?;
            let fault = SegmentHeader::decode(&fixed).err().unwrap_or(HeaderFault::Magic);
            return Err(header_error(name, fault));
        }
    }
    found.sort_by_key(|segment| segment.number);
    for pair in found.windows(2) {
        let name = segment_name(pair[0].number, pair[0].first);
        if pair[0].number + 1 != pair[1].number {
            let reason = format!("the segment after it is missing: the next one is {}", pair[1].number);
            return Err(corrupt(&name, 0, reason));
        }
        if pair[0].first >= pair[1].first {
            let reason = format!("begins at {}, the next one at {}", pair[0].first, pair[1].first);
            return Err(corrupt(&name, 0, reason));
        }
    }
    Ok(found.into())
}

/// Opens a segment and checks that it is what its name says.
pub(super) fn open_segment(storage: &dyn Storage, segment: Segment, owner: u64) -> Result<Found, OpenError> {
    let name = segment_name(segment.number, segment.first);
    let file = storage.open(&name).map_err(io_error("open", &name))?;
    let fixed = read_fixed(&*file, &name)?;
    let header = SegmentHeader::decode(&fixed).map_err(|fault| header_error(&name, fault))?;
    if header.owner != owner {
        return Err(OpenError::Owner { file: name, found: header.owner, expected: owner });
    }
    if header.number != segment.number {
        return Err(corrupt(&name, 24, format!("the file is segment {} by its header", header.number)));
    }
    if header.first != segment.first {
        return Err(corrupt(&name, 40, format!("the file begins at {} by its header", header.first)));
    }
    Ok(Found { name, file, header })
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

pub(super) fn read_fixed(file: &dyn StorageFile, name: &str) -> Result<[u8; FIXED_BYTES], OpenError> {
    let mut fixed = [0; FIXED_BYTES];
    let got = read_full(file, &mut fixed, 0).map_err(io_error("read", name))?;
    if got < FIXED_BYTES {
        return Err(OpenError::NotAJournal { file: name.to_owned() });
    }
    Ok(fixed)
}

/// Checks every record of the last segment.
pub(super) fn scan(segment: &Found, apart: u64) -> Result<(Tail, Places), OpenError> {
    let Found { name, file, header } = segment;
    let mut places = Places::default();
    let mut scanner = Scanner::at_start(file.clone(), name.clone(), header.first);
    let mut whole = (header.first, SEGMENT_HEADER_BYTES);
    let mut unproven = SEGMENT_HEADER_BYTES;
    loop {
        let (position, offset) = (scanner.position, scanner.offset);
        match scanner.next().map_err(io_error("read", name))? {
            Ok((record, _)) => {
                places.note(header.first, position, offset, apart);
                if record.unsynced == 0 {
                    unproven = offset;
                }
                if record.is_last || planted::has(Planted::HalfAnAppendIsKept) {
                    whole = (scanner.position, scanner.offset);
                }
            }
            Err(fault) => {
                let rest = examine_rest(segment, offset)?;
                if rest.proven > whole.0 && !planted::has(Planted::ProofIsIgnored) {
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
                // What is cut must not be found.
                places.0.retain(|(after, _)| header.first.plus(u64::from(*after)) < next);
                return Ok((Tail { next, end, unproven: unproven.min(end), dropped }, places));
            }
        }
    }
}

/// What lies behind the first place that is no record.
struct Rest {
    /// Behind the last thing that claims to be a record of this segment.
    end: u64,
    /// The furthest position that a record in there proves to have been durable.
    proven: Position,
}

fn examine_rest(segment: &Found, from: u64) -> Result<Rest, OpenError> {
    let Found { name, file, header } = segment;
    let mut rest = Rest { end: from, proven: Position::ZERO };
    let found = search(&**file, from, (header.mark, header.first), |_, end, record| {
        rest.end = rest.end.max(end);
        if let Some(record) = record {
            rest.proven = rest.proven.max(record.durable_before());
        }
        true
    });
    found.map_err(io_error("read", name))?;
    Ok(rest)
}

/// Writes again what no record proves to be on the disk, and a footer, and syncs. A sync alone would not do: if one
/// failed before, the kernel took these pages for clean, and would report success without writing them.
fn make_durable(last: &Found, tail: &Tail, places: &Places, owner: u64) -> Result<(), OpenError> {
    let Found { name, file, header } = last;
    let mut at = tail.unproven;
    let mut window = vec![0; WINDOW_BYTES];
    while at < tail.end && !planted::has(Planted::RecoveryOnlySyncs) {
        let count = (tail.end - at).min(WINDOW_BYTES as u64) as usize;
        let got = read_full(&**file, &mut window[..count], at).map_err(io_error("read", name))?;
        if got == 0 {
            break;
        }
        write_full(&**file, &window[..got], at).map_err(io_error("write", name))?;
        at += got as u64;
    }
    let footer = Footer {
        owner,
        number: header.number,
        first: header.first,
        next: tail.next,
        end: tail.end,
        places: places.0.clone(),
    };
    match write_footer(&**file, &footer) {
        Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(io_error("write", name)(error)),
        // On a full disk it is missing: it only saves time.
        _ => file.sync().map_err(io_error("sync", name)),
    }
}

fn create_segment(storage: &dyn Storage, header: &SegmentHeader) -> Result<Arc<dyn StorageFile>, OpenError> {
    let name = segment_name(header.number, header.first);
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

pub(super) fn header_error(name: &str, fault: HeaderFault) -> OpenError {
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
