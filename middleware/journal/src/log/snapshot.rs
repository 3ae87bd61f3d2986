//! Named blobs beside the log, each tied to a position: what truncation needs before it may drop records.
//!
//! Guarantee   a crash leaves the old blob or the new one under its name, whole.

use std::io;

use bytes::Bytes;

use super::Log;
use crate::error::{AppendError, Corruption, ReadError};
use crate::format::{
    FIXED_BYTES, HeaderFault, Position, SnapshotHeader, is_valid_snapshot_name, snapshot_file_name,
};
use crate::storage::{Storage, read_full};

/// A blob that stands for all records before a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The first position that the blob does not cover.
    pub position: Position,
    /// The user's bytes.
    pub blob: Bytes,
}

impl Log {
    /// Replaces the snapshot called `name`: `blob` stands for all records before `position`. Commits first, so that
    /// the log is never behind its snapshots. `name`: 1 to 64 of `a-z 0-9 - _`.
    ///
    /// # Errors
    /// After [`AppendError::SnapshotName`], [`AppendError::SnapshotAhead`] and [`AppendError::DiskFull`] the old snapshot still stands.
    pub fn save_snapshot(&mut self, name: &str, position: Position, blob: &[u8]) -> Result<(), AppendError> {
        if !is_valid_snapshot_name(name) {
            return Err(AppendError::SnapshotName { name: name.to_owned() });
        }
        let next = self.commit()?;
        if position > next {
            return Err(AppendError::SnapshotAhead { position, next });
        }
        let header = SnapshotHeader { owner: self.config.owner, position, bytes: blob.len() as u64 };
        self.replace(&snapshot_file_name(name), &[&header.encode(blob), blob])?;
        Ok(())
    }

    /// The snapshot called `name`; `None` when there is none.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it is damaged, or ahead of the log.
    pub fn load_snapshot(&self, name: &str) -> Result<Option<Snapshot>, ReadError> {
        load(&*self.storage, name, self.next)
    }
}

pub(crate) fn load(storage: &dyn Storage, name: &str, next: Position) -> Result<Option<Snapshot>, ReadError> {
    read(storage, name, next).map_err(|error| error.located(storage))
}

fn read(storage: &dyn Storage, name: &str, next: Position) -> Result<Option<Snapshot>, ReadError> {
    if !is_valid_snapshot_name(name) {
        return Ok(None);
    }
    let name = snapshot_file_name(name);
    let failed = |operation| {
        let file = name.clone();
        move |source| ReadError::Io { operation, file, source }
    };
    let corrupt = |offset, reason: &str| {
        ReadError::Corrupt(Corruption { file: name.clone(), offset, reason: reason.to_owned() })
    };
    let file = match storage.open(&name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open")(error)),
    };
    let size = file.size().map_err(failed("read"))?;
    let mut fixed = [0; FIXED_BYTES];
    read_full(&*file, &mut fixed, 0).map_err(failed("read"))?;
    let header = SnapshotHeader::decode(&fixed).map_err(|fault| match fault {
        HeaderFault::Version(found) => corrupt(8, &format!("unknown format version {found}")),
        _ => corrupt(0, "not a snapshot"),
    })?;
    if header.bytes.checked_add(FIXED_BYTES as u64) != Some(size) {
        return Err(corrupt(32, "snapshot is not as long as its header says"));
    }
    let mut blob = vec![0; header.bytes as usize];
    let got = read_full(&*file, &mut blob, FIXED_BYTES as u64).map_err(failed("read"))?;
    if got < blob.len() || SnapshotHeader::check(&fixed, &blob).is_err() {
        return Err(corrupt(0, "snapshot checksum mismatch"));
    }
    if header.position > next {
        return Err(corrupt(24, "snapshot is ahead of the log"));
    }
    Ok(Some(Snapshot { position: header.position, blob: blob.into() }))
}
