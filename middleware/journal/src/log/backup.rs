//! A copy of a log that goes on being written.
//!
//! Guarantee   the copy is the log as it was at one moment after the call: all its records up to there, and the
//!             snapshots; opening it finds just that. Every record is checked while it is copied. A copy that was not
//!             finished says so, and is refused when it is opened.
//! Method      no file is dropped meanwhile. Snapshots come first, so that no one is ahead of the copied records, and once more
//!             behind them, as far as they are not: so none is older than what the records need.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::catalog::{Catalog, Places, Segment};
use super::inspect::Progress;
use super::read::Scanner;
use super::segments::write_footer;
use super::{load_snapshot, write_whole};
use crate::config::Config;
use crate::error::{BackupError, Corruption, ReadError};
use crate::format::{
    Footer, INCOMPLETE_NAME, Position, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader, SnapshotHeader,
    new_mark, segment_name, snapshot_file_name, snapshot_name, temporary_name,
};
use crate::storage::{Storage, write_full};

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backup {
    /// The first position in it.
    pub first: Position,
    /// The position after its last record.
    pub next: Position,
    /// Snapshots in it.
    pub snapshots: usize,
    /// Bytes that were written.
    pub bytes: u64,
}

pub(crate) fn backup(
    storage: &dyn Storage,
    catalog: &Arc<Catalog>,
    (config, epoch): (&Config, u64),
    target: &dyn Storage,
    mut progress: impl FnMut(Progress),
) -> Result<Backup, BackupError> {
    let write = |operation, file: &str| {
        let file = target.locate(file);
        move |source| BackupError::Write { operation, file, source }
    };
    let there = target.list().map_err(write("list", "."))?;
    let is_ours = |name: &&String| {
        name.ends_with(".segment") || name.ends_with(".snapshot") || name.as_str() == INCOMPLETE_NAME
    };
    if let Some(file) = there.iter().find(is_ours) {
        return Err(BackupError::NotEmpty { file: target.locate(file) });
    }
    let _pin = Pin::new(catalog.clone());
    target.create(INCOMPLETE_NAME).map_err(write("create", INCOMPLETE_NAME))?;
    target.sync_directory().map_err(write("sync the directory of", INCOMPLETE_NAME))?;

    let mut done = Backup { first: Position::ZERO, next: Position::ZERO, snapshots: 0, bytes: 0 };
    let mut copied = BTreeMap::new();
    copy_snapshots(storage, target, config.owner, None, &mut copied)?;

    let (segments, durable) = {
        let contents = catalog.lock();
        (Vec::from(contents.segments.clone()), contents.durable)
    };
    done.first = segments.first().map_or(durable, |segment| segment.first);
    done.next = durable;
    let total = segments.len() as u64 * config.segment_bytes;
    for (index, segment) in segments.iter().enumerate() {
        // One without a record says only where the log stands; the one before says it too.
        if index > 0 && segment.first == durable {
            break;
        }
        let next = segments.get(index + 1).map(|next| next.first);
        done.bytes += copy_segment(storage, target, (config, epoch), *segment, (next, durable))?;
        progress(Progress { bytes: (index as u64 + 1) * config.segment_bytes, total });
    }
    copy_snapshots(storage, target, config.owner, Some(durable), &mut copied)?;
    done.snapshots = copied.len();
    done.bytes += copied.values().sum::<u64>();
    target.sync_directory().map_err(write("sync", "."))?;
    target.remove(INCOMPLETE_NAME).map_err(write("remove", INCOMPLETE_NAME))?;
    target.sync_directory().map_err(write("sync", "."))?;
    Ok(done)
}

/// Copies the snapshots, but for those ahead of `end`, and notes how large each is.
fn copy_snapshots(
    storage: &dyn Storage,
    target: &dyn Storage,
    owner: u64,
    end: Option<Position>,
    copied: &mut BTreeMap<String, u64>,
) -> Result<(), BackupError> {
    let names = storage.list().map_err(|source| ReadError::Io {
        operation: "list",
        file: storage.locate("."),
        source,
    })?;
    for name in names.iter().filter_map(|name| snapshot_name(name)) {
        // The log was durable up to there before it was written: the first time, what is copied after it is not behind it.
        let Some(snapshot) = load_snapshot(storage, &name, Position::from_u64(u64::MAX))? else { continue };
        if end.is_some_and(|end| snapshot.position > end) {
            continue;
        }
        let bytes = snapshot.blob.len() as u64;
        let header = SnapshotHeader { owner, position: snapshot.position, bytes };
        let parts: [&[u8]; 2] = [&header.encode(&snapshot.blob), &snapshot.blob];
        put(target, &snapshot_file_name(&name), |file| {
            write_whole(target, file, &parts).map(drop).map_err(|(operation, file, source)| {
                BackupError::Write { operation, file: target.locate(&file), source }
            })
        })?;
        copied.insert(name, bytes);
    }
    Ok(())
}

/// Copies a segment up to `next`, where the one after it begins, or else up to `durable`; returns the bytes.
fn copy_segment(
    storage: &dyn Storage,
    target: &dyn Storage,
    (config, epoch): (&Config, u64),
    segment: Segment,
    (next, durable): (Option<Position>, Position),
) -> Result<u64, BackupError> {
    let name = segment_name(segment.number, segment.first);
    let read = |operation, source| ReadError::Io { operation, file: storage.locate(&name), source };
    let source = storage.open(&name).map_err(|source| read("open", source))?;
    let mut scanner = Scanner::at_start(source, name.clone(), segment.first);
    let end = next.unwrap_or(durable).min(durable);
    let (number, first, mark) = (segment.number, segment.first, new_mark());
    let header = SegmentHeader { owner: config.owner, number, epoch, first, mark };
    let mut written = 0;
    put(target, &name, |temporary| {
        let failed = |operation, source| BackupError::Write {
            operation,
            file: target.locate(&temporary_name(temporary)),
            source,
        };
        let file = target.create(&temporary_name(temporary)).map_err(|error| failed("create", error))?;
        let mut buffer = header.encode();
        let mut places = Places::default();
        while scanner.position < end {
            let (position, offset) = (scanner.position, scanner.offset);
            let (record, payload) = match scanner.next().map_err(|source| read("read", source))? {
                Ok(record) => record,
                Err(fault) => {
                    let file = storage.locate(&name);
                    let reason = fault.to_string();
                    return Err(ReadError::Corrupt(Corruption { file, offset, reason }).into());
                }
            };
            places.note(segment.first, position, offset, config.place_bytes());
            RecordHeader { mark, ..record }.encode(&payload, &mut buffer);
            if buffer.len() >= COPIED_BYTES {
                write_full(&*file, &buffer, written).map_err(|error| failed("write", error))?;
                written += buffer.len() as u64;
                buffer.clear();
            }
        }
        write_full(&*file, &buffer, written).map_err(|error| failed("write", error))?;
        written += buffer.len() as u64;
        debug_assert_eq!(written, scanner.offset.max(SEGMENT_HEADER_BYTES), "record for record");
        if let Some(next) = next {
            let footer = Footer {
                owner: config.owner,
                number: segment.number,
                first: segment.first,
                next,
                end: written,
                places: places.0,
            };
            written = write_footer(&*file, &footer).map_err(|error| failed("write", error))?;
        }
        file.sync().map_err(|error| failed("sync", error))
    })?;
    Ok(written)
}

/// Has a file written under its temporary name, and names it.
fn put(
    target: &dyn Storage,
    name: &str,
    write: impl FnOnce(&str) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    write(name)?;
    target.rename(&temporary_name(name), name).map_err(|source| BackupError::Write {
        operation: "rename",
        file: target.locate(&temporary_name(name)),
        source,
    })
}

/// Keeps all segments for as long as it lives.
struct Pin(Arc<Catalog>);

impl Pin {
    fn new(catalog: Arc<Catalog>) -> Self {
        catalog.lock().pins += 1;
        Self(catalog)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.lock().pins -= 1;
    }
}

/// Copied at a time.
const COPIED_BYTES: usize = 1 << 20;
