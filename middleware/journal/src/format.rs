//! The layout on disk, in one place. All integers are little-endian.
//!
//! Segment `NUMBER-FIRST.segment` (its number and its first position, 20 decimal digits each): one header page, then
//! records back to back, then whatever the file held before, then, once the segment is full, a footer that ends where
//! the file ends.
//! ```text
//! header  0 magic "QRTE-LOG"   8 format version u32   12 crc32c u32 (of these 64 bytes with this field zero)
//!        16 owner u64         24 segment number u64   32 epoch u64 (openings so far)   40 first position u64
//!        48 mark u64 (random)     56 zeros to 4088          4088 the mark again
//! record  0 crc32c u32 (of all that follows up to the payload's end)   4 payload bytes u32   8 position u64
//!        16 mark of the segment u64   24 unsynced u32   28 kind u16   30 flags u8   31 record version u8
//!        32 payload, then zeros to a multiple of 8
//! footer  places: records after the segment's first u32, offset in the file u32; ascending; then 64 bytes:
//!         0 magic "QRTE-END"   8 format version u32   12 crc32c u32 (of the 64 bytes with this field zero, then the
//!         places)   16 owner u64   24 segment number u64   32 first position u64   40 position after the last u64
//!        48 offset behind the last record u64   56 places u32   60 zeros
//! ```
//! The mark in each record keeps what is no record of this segment from being taken for one: a record of a file's earlier
//! life (files are used again), and bytes of a payload that look like a record, by chance or because whoever sent them
//! wanted it so: nobody outside knows the mark. `unsynced` is how many records lie between this one and the last one known durable
//! when it was written: a valid record is therefore a proof that everything before `position - unsynced` had reached
//! the disk, which tells a torn tail from corruption. Flag 1 marks the last record of an append. A footer only saves
//! time: without it the segment is read from its beginning.
//!
//! A segment that was truncated away and waits to be used again is `NUMBER.spare`.
//!
//! An empty file `backup.incomplete` marks a copy that was not finished.
//!
//! Snapshot `NAME.snapshot`:
//! ```text
//!         0 magic "QRTE-SNP"   8 format version u32   12 crc32c u32 (of the header with this field zero, then the blob)
//!        16 owner u64         24 position u64         32 blob bytes u64   40 zeros to 64, then the blob
//! ```

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;

use bytes::Bytes;

use crate::planted::{self, Planted};

/// The place of a record in its log: the first has 0, the next 1, and so on without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// The first record of a new log.
    pub const ZERO: Self = Self(0);

    /// The position with `number` records before it.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// How many records come before.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The position `records` later.
    pub const fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(records))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) owner: u64,
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) first: Position,
    /// What its records carry.
    pub(crate) mark: u64,
}

/// Why a header was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Magic,
    Version(u32),
    Checksum,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; SEGMENT_HEADER_BYTES as usize];
        page[..8].copy_from_slice(SEGMENT_MAGIC);
        page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[16..24].copy_from_slice(&self.owner.to_le_bytes());
        page[24..32].copy_from_slice(&self.number.to_le_bytes());
        page[32..40].copy_from_slice(&self.epoch.to_le_bytes());
        page[40..48].copy_from_slice(&self.first.0.to_le_bytes());
        page[48..56].copy_from_slice(&self.mark.to_le_bytes());
        page[MARK_COPY_AT as usize..].copy_from_slice(&self.mark.to_le_bytes());
        let crc = crc32c::crc32c(&page[..FIXED_BYTES]);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        page
    }

    pub(crate) fn decode(fixed: &[u8; FIXED_BYTES]) -> Result<Self, HeaderFault> {
        check_fixed(fixed, SEGMENT_MAGIC, &[])?;
        Ok(Self {
            owner: u64_at(fixed, 16),
            number: u64_at(fixed, 24),
            epoch: u64_at(fixed, 32),
            first: Position(u64_at(fixed, 40)),
            mark: u64_at(fixed, 48),
        })
    }
}

/// A mark for a new segment, which nobody can guess.
pub(crate) fn new_mark() -> u64 {
    // The standard library's own source of chance: keyed anew by the system for each process, and different each time.
    RandomState::new().hash_one(0_u8)
}

/// What a snapshot says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotHeader {
    pub(crate) owner: u64,
    pub(crate) position: Position,
    pub(crate) bytes: u64,
}

impl SnapshotHeader {
    pub(crate) fn encode(&self, blob: &[u8]) -> [u8; FIXED_BYTES] {
        let mut fixed = [0; FIXED_BYTES];
        fixed[..8].copy_from_slice(SNAPSHOT_MAGIC);
        fixed[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        fixed[16..24].copy_from_slice(&self.owner.to_le_bytes());
        fixed[24..32].copy_from_slice(&self.position.0.to_le_bytes());
        fixed[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&fixed), blob);
        fixed[12..16].copy_from_slice(&crc.to_le_bytes());
        fixed
    }

    /// Magic and version only: how much to read next. The checksum is for [`check`](Self::check).
    pub(crate) fn decode(fixed: &[u8; FIXED_BYTES]) -> Result<Self, HeaderFault> {
        check_kind(fixed, SNAPSHOT_MAGIC)?;
        Ok(Self { owner: u64_at(fixed, 16), position: Position(u64_at(fixed, 24)), bytes: u64_at(fixed, 32) })
    }

    pub(crate) fn check(fixed: &[u8; FIXED_BYTES], blob: &[u8]) -> Result<(), HeaderFault> {
        check_fixed(fixed, SNAPSHOT_MAGIC, blob)
    }
}

/// Whose snapshot it is; only magic and version are checked.
pub(crate) fn snapshot_owner(fixed: &[u8; FIXED_BYTES]) -> Result<u64, HeaderFault> {
    SnapshotHeader::decode(fixed).map(|header| header.owner)
}

/// What a full segment says of itself at its end: where it ends, and where in it records are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) owner: u64,
    pub(crate) number: u64,
    pub(crate) first: Position,
    /// The position after the last record.
    pub(crate) next: Position,
    /// Behind the last record.
    pub(crate) end: u64,
    /// Records after the first, and where in the file.
    pub(crate) places: Vec<(u32, u32)>,
}

impl Footer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(footer_bytes(self.places.len()));
        for (after, offset) in &self.places {
            out.extend_from_slice(&after.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        let mut fixed = [0; FIXED_BYTES];
        fixed[..8].copy_from_slice(FOOTER_MAGIC);
        fixed[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        fixed[16..24].copy_from_slice(&self.owner.to_le_bytes());
        fixed[24..32].copy_from_slice(&self.number.to_le_bytes());
        fixed[32..40].copy_from_slice(&self.first.0.to_le_bytes());
        fixed[40..48].copy_from_slice(&self.next.0.to_le_bytes());
        fixed[48..56].copy_from_slice(&self.end.to_le_bytes());
        fixed[56..60].copy_from_slice(&(self.places.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&fixed), &out);
        fixed[12..16].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&fixed);
        out
    }

    /// How many bytes before the fixed part belong to it by its own account; nothing else is checked.
    pub(crate) fn claimed_places_bytes(fixed: &[u8; FIXED_BYTES]) -> u64 {
        8 * u64::from(u32_at(fixed, 56))
    }

    /// `places` lies right before `fixed`.
    pub(crate) fn decode(fixed: &[u8; FIXED_BYTES], places: &[u8]) -> Result<Self, HeaderFault> {
        check_fixed(fixed, FOOTER_MAGIC, places)?;
        let places = places.chunks_exact(8).map(|place| (u32_at(place, 0), u32_at(place, 4))).collect();
        Ok(Self {
            owner: u64_at(fixed, 16),
            number: u64_at(fixed, 24),
            first: Position(u64_at(fixed, 32)),
            next: Position(u64_at(fixed, 40)),
            end: u64_at(fixed, 48),
            places,
        })
    }
}

/// Bytes of a footer with so many places.
pub(crate) const fn footer_bytes(places: usize) -> usize {
    8 * places + FIXED_BYTES
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) position: Position,
    pub(crate) mark: u64,
    pub(crate) unsynced: u32,
    pub(crate) kind: u16,
    pub(crate) is_last: bool,
}

impl RecordHeader {
    /// Appends the record to `out`. `payload` is shorter than 4 GiB: the caller checked it against the segment size.
    pub(crate) fn encode(&self, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.position.0.to_le_bytes());
        out.extend_from_slice(&self.mark.to_le_bytes());
        out.extend_from_slice(&self.unsynced.to_le_bytes());
        out.extend_from_slice(&self.kind.to_le_bytes());
        out.push(if self.is_last { FLAG_LAST } else { 0 });
        out.push(RECORD_VERSION);
        out.extend_from_slice(payload);
        let crc = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        out.resize(start + encoded_bytes(payload.len()), 0);
    }

    /// The position before which everything was durable when this record was written.
    pub(crate) fn durable_before(&self) -> Position {
        Position(self.position.0.saturating_sub(u64::from(self.unsynced)))
    }
}

/// Why bytes are not a record of this segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordFault {
    #[error("record runs beyond the end of the file")]
    Length,
    #[error("record checksum mismatch")]
    Checksum,
    #[error("record of another segment")]
    Segment,
    #[error("record out of sequence")]
    Position,
    #[error("record has an unknown version or unknown flags")]
    Version,
}

/// The payload length that a record header claims; nothing is checked yet.
pub(crate) fn claimed_payload_bytes(head: &[u8; RECORD_OVERHEAD_BYTES]) -> u64 {
    u64::from(u32_at(head, 4))
}

/// The mark and the position that a record header claims; nothing is checked yet.
pub(crate) fn claimed_place(head: &[u8]) -> (u64, Position) {
    (u64_at(head, 16), Position(u64_at(head, 8)))
}

/// Checks one record: `bytes` begins with it and holds at least what its header claims.
pub(crate) fn decode_record(bytes: &[u8], mark: u64) -> Result<RecordHeader, RecordFault> {
    if bytes.len() < RECORD_OVERHEAD_BYTES {
        return Err(RecordFault::Length);
    }
    let end = RECORD_OVERHEAD_BYTES.saturating_add(u32_at(bytes, 4) as usize);
    if bytes.len() < end {
        return Err(RecordFault::Length);
    }
    if u32_at(bytes, 0) != crc32c::crc32c(&bytes[4..end]) {
        return Err(RecordFault::Checksum);
    }
    let header = RecordHeader {
        position: Position(u64_at(bytes, 8)),
        mark: u64_at(bytes, 16),
        unsynced: u32_at(bytes, 24),
        kind: u16::from_le_bytes([bytes[28], bytes[29]]),
        is_last: bytes[30] & FLAG_LAST != 0,
    };
    if bytes[31] != RECORD_VERSION || bytes[30] & !FLAG_LAST != 0 {
        return Err(RecordFault::Version);
    }
    if header.mark != mark && !planted::has(Planted::StaleRecordIsTaken) {
        return Err(RecordFault::Segment);
    }
    Ok(header)
}

/// Bytes on disk of a record with that payload.
pub(crate) const fn encoded_bytes(payload: usize) -> usize {
    (RECORD_OVERHEAD_BYTES + payload).next_multiple_of(RECORD_ALIGN)
}

pub(crate) fn segment_name(number: u64, first: Position) -> String {
    format!("{number:020}-{first:020}.{SEGMENT_SUFFIX}")
}

/// The number and the first position of a segment by its file name; `None` when it is not one of ours.
pub(crate) fn segment_place(name: &str) -> Option<(u64, Position)> {
    let (number, first) = name.strip_suffix(SEGMENT_SUFFIX)?.strip_suffix('.')?.split_once('-')?;
    Some((digits(number)?, Position(digits(first)?)))
}

/// True for the names that segments had in version 1 of the format.
pub(crate) fn is_segment_of_version_1(name: &str) -> bool {
    name.strip_suffix(SEGMENT_SUFFIX).and_then(|name| name.strip_suffix('.')).and_then(digits).is_some()
}

pub(crate) fn spare_name(number: u64) -> String {
    format!("{number:020}.{SPARE_SUFFIX}")
}

/// The number that a file had as a segment.
pub(crate) fn spare_number(name: &str) -> Option<u64> {
    digits(name.strip_suffix(SPARE_SUFFIX)?.strip_suffix('.')?)
}

fn digits(text: &str) -> Option<u64> {
    let is_number = text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

pub(crate) fn snapshot_file_name(name: &str) -> String {
    format!("{name}.snapshot")
}

/// The snapshot's name by its file name; `None` when it is not one of ours.
pub(crate) fn snapshot_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(".snapshot")?;
    is_valid_snapshot_name(name).then(|| name.to_owned())
}

pub(crate) fn is_valid_snapshot_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// The name under which a file is written before it is renamed to `name`.
pub(crate) fn temporary_name(name: &str) -> String {
    format!("{name}{TEMPORARY_SUFFIX}")
}

pub(crate) fn is_temporary(name: &str) -> bool {
    name.strip_suffix(TEMPORARY_SUFFIX)
        .is_some_and(|rest| segment_place(rest).is_some() || rest.ends_with(".snapshot"))
}

pub(crate) fn slice(buffer: &Bytes, payload: usize) -> Bytes {
    buffer.slice(RECORD_OVERHEAD_BYTES..RECORD_OVERHEAD_BYTES + payload)
}

fn check_kind(fixed: &[u8; FIXED_BYTES], magic: &[u8; 8]) -> Result<(), HeaderFault> {
    if &fixed[..8] != magic {
        return Err(HeaderFault::Magic);
    }
    // Before the checksum: another version may compute it differently.
    match u32_at(fixed, 8) {
        FORMAT_VERSION => Ok(()),
        other => Err(HeaderFault::Version(other)),
    }
}

fn check_fixed(fixed: &[u8; FIXED_BYTES], magic: &[u8; 8], blob: &[u8]) -> Result<(), HeaderFault> {
    check_kind(fixed, magic)?;
    let mut blank = *fixed;
    blank[12..16].fill(0);
    if u32_at(fixed, 12) != crc32c::crc32c_append(crc32c::crc32c(&blank), blob) {
        return Err(HeaderFault::Checksum);
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The version that this library writes and reads.
pub(crate) const FORMAT_VERSION: u32 = 3;
/// A whole page, so that the header is never rewritten by a record beside it.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Fixed part of segment and snapshot headers.
pub(crate) const FIXED_BYTES: usize = 64;
/// Where the mark is once more, for who reads a segment past the damage of its header.
pub(crate) const MARK_COPY_AT: u64 = SEGMENT_HEADER_BYTES - 8;
/// What a record takes on disk beside its payload and up to 7 bytes of padding.
pub const RECORD_OVERHEAD_BYTES: usize = 32;
/// Records begin at multiples of this, so that a search for one after a hole may skip.
pub(crate) const RECORD_ALIGN: usize = 8;
/// An empty file that is there while a backup is being written.
pub(crate) const INCOMPLETE_NAME: &str = "backup.incomplete";
const RECORD_VERSION: u8 = 1;
const FLAG_LAST: u8 = 1;
const SEGMENT_MAGIC: &[u8; 8] = b"QRTE-LOG";
const FOOTER_MAGIC: &[u8; 8] = b"QRTE-END";
const SNAPSHOT_MAGIC: &[u8; 8] = b"QRTE-SNP";
const SEGMENT_SUFFIX: &str = "segment";
const SPARE_SUFFIX: &str = "spare";
const TEMPORARY_SUFFIX: &str = ".tmp";
