//! Segments come and go: one is sealed and the next begins, in a file that was used before if there is one; and the
//! oldest are dropped.
//!
//! Guarantee   a file is used again only after its old name is durably gone, and under a number that was never used; so
//!             no reader and no recovery takes what it held for what it holds.

use std::io;
use std::sync::Arc;

use super::catalog::{Places, Segment};
use super::{Active, Log, write_whole};
use crate::error::AppendError;
use crate::format::{
    Footer, Position, SEGMENT_HEADER_BYTES, SegmentHeader, new_mark, segment_name, spare_name, temporary_name,
};
use crate::planted::{self, Planted};
use crate::storage::{Storage, StorageFile, write_full};

impl Log {
    /// Drops whole segments whose records all lie before `position`; returns the first position still there.
    ///
    /// Commits first, so that no power cut takes what stands for the dropped records. The segment that is written to is never
    /// dropped. A crash in between leaves some of them for the next time, as
    /// does a backup that is under way. Some of the files are kept, to be used again.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`] when the directory cannot be changed.
    pub fn truncate_before(&mut self, position: Position) -> Result<Position, AppendError> {
        self.check_failure()?;
        let is_due = {
            let contents = self.catalog.lock();
            contents.segments.get(1).is_some_and(|next| next.first <= position) && contents.pins == 0
        };
        if is_due {
            // What stands for the dropped records may be among those that are not synced yet.
            self.commit()?;
        }
        loop {
            let gone = {
                let mut contents = self.catalog.lock();
                match (contents.segments.front().copied(), contents.segments.get(1)) {
                    (Some(oldest), Some(next)) if next.first <= position && contents.pins == 0 => {
                        // Readers must not begin in it any more before it is gone.
                        contents.drop_first();
                        oldest
                    }
                    _ => return Ok(contents.first()),
                }
            };
            tracing::debug!(segment = gone.number, first = gone.first.as_u64(), "journal segment dropped");
            let name = segment_name(gone.number, gone.first);
            // One directory sync each: a crash must not remove a segment and leave an older one.
            if self.is_worth_keeping(&name) {
                let spare = spare_name(gone.number);
                self.change_directory("rename", &name, |storage, name| storage.rename(name, &spare))?;
                self.spares.push_back(gone.number);
            } else {
                self.change_directory("remove", &name, |storage, name| storage.remove(name))?;
            }
        }
    }

    fn is_worth_keeping(&self, name: &str) -> bool {
        let size = self.storage.open(name).and_then(|file| file.size());
        let sizes = self.config.segment_bytes / 2..=self.config.segment_bytes;
        self.spares.len() < SPARES_MAX && size.is_ok_and(|size| sizes.contains(&size))
    }

    /// Closes the active segment: all its records are durable, and its footer says where they are.
    pub(super) fn seal(&mut self) -> Result<(), AppendError> {
        self.write()?;
        let footer = Footer {
            owner: self.config.owner,
            number: self.active.number,
            first: self.active.first,
            next: self.next,
            end: self.active.end,
            places: self.catalog.lock().places.0.clone(),
        };
        match write_footer(&*self.active.file, &footer) {
            Ok(end) => self.active.filled = self.active.filled.max(end),
            // It only saves time.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            Err(error) => return Err(self.poison("write", &self.active.name(), error)),
        }
        if planted::has(Planted::SealDoesNotSync) {
            return Ok(());
        }
        self.sync()
    }

    /// Begins the next segment; the active one is sealed.
    pub(super) fn begin_segment(&mut self) -> Result<(), AppendError> {
        let (number, first, mark) = (self.active.number + 1, self.next, new_mark());
        let header = SegmentHeader { owner: self.config.owner, number, epoch: self.epoch, first, mark };
        let name = segment_name(number, first);
        let (file, filled) = match self.spares.pop_front() {
            Some(spare) => self.reuse(spare, &name, &header.encode())?,
            None => (self.replace(&name, &[&header.encode()])?, SEGMENT_HEADER_BYTES),
        };
        let mut contents = self.catalog.lock();
        let places = Places(std::mem::take(&mut contents.places.0));
        contents.learn(self.active.number, Arc::new(places));
        contents.push(Segment { number, first });
        drop(contents);
        self.active = Active { file, number, mark, first, end: SEGMENT_HEADER_BYTES, filled };
        Ok(())
    }

    /// Gives a spare file a header and a segment's name; returns also how many bytes it has.
    fn reuse(
        &mut self,
        spare: u64,
        name: &str,
        header: &[u8],
    ) -> Result<(Arc<dyn StorageFile>, u64), AppendError> {
        let old = spare_name(spare);
        let attempt = || {
            let file = self.storage.open(&old).map_err(|error| ("open", error))?;
            let size = file.size().map_err(|error| ("read", error))?;
            write_full(&*file, header, 0).map_err(|error| ("write", error))?;
            file.sync().map_err(|error| ("sync", error))?;
            Ok((file, size))
        };
        let reused = match attempt() {
            Ok(reused) => reused,
            Err((_, error)) if error.kind() == io::ErrorKind::StorageFull => {
                self.spares.push_front(spare);
                return Err(AppendError::DiskFull);
            }
            Err((operation, error)) => return Err(self.poison(operation, &old, error)),
        };
        self.change_directory("rename", &old, |storage, old| storage.rename(old, name))?;
        Ok(reused)
    }

    /// Puts a whole new file in the place of `name`, durably, or leaves what is there.
    pub(super) fn replace(
        &mut self,
        name: &str,
        parts: &[&[u8]],
    ) -> Result<Arc<dyn StorageFile>, AppendError> {
        let file = match write_whole(&*self.storage, name, parts) {
            Ok(file) => file,
            Err((_, _, error)) if error.kind() == io::ErrorKind::StorageFull => {
                // Give back what the attempt took; if that fails, the next opening does it.
                let _ = self.storage.remove(&temporary_name(name));
                return Err(AppendError::DiskFull);
            }
            Err((operation, file, error)) => return Err(self.poison(operation, &file, error)),
        };
        let temporary = temporary_name(name);
        self.change_directory("rename", &temporary, |storage, temporary| storage.rename(temporary, name))?;
        Ok(file)
    }

    /// Changes a name and makes the change durable.
    fn change_directory(
        &mut self,
        operation: &'static str,
        file: &str,
        change: impl FnOnce(&dyn Storage, &str) -> io::Result<()>,
    ) -> Result<(), AppendError> {
        if let Err(error) = change(&*self.storage, file) {
            return Err(self.poison(operation, file, error));
        }
        if !planted::has(Planted::DirectoryIsNotSynced)
            && let Err(error) = self.storage.sync_directory()
        {
            return Err(self.poison("sync the directory of", file, error));
        }
        Ok(())
    }

    /// Sees to it that the file has bytes up to `end`, with some to spare, so that a full disk shows before a record
    /// is written and so that most syncs need not commit a new size.
    pub(super) fn fill_ahead(&mut self, end: u64) -> Result<(), AppendError> {
        if self.config.zero_fill_bytes == 0 || end <= self.active.filled {
            return Ok(());
        }
        let target = (end + self.config.zero_fill_bytes).min(self.config.segment_bytes).max(end);
        while self.active.filled < target {
            let count = (target - self.active.filled).min(ZEROS.len() as u64);
            match write_full(&*self.active.file, &ZEROS[..count as usize], self.active.filled) {
                Ok(()) => self.active.filled += count,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    // Zeros behind the last record harm nobody.
                    if end <= self.active.filled {
                        return Ok(());
                    }
                    return Err(AppendError::DiskFull);
                }
                Err(error) => {
                    return Err(self.poison("write", &self.active.name(), error));
                }
            }
        }
        Ok(())
    }
}

/// Writes a footer so that it ends where the file ends, behind the last record; returns where that is.
pub(super) fn write_footer(file: &dyn StorageFile, footer: &Footer) -> io::Result<u64> {
    let bytes = footer.encode();
    let at = file.size()?.saturating_sub(bytes.len() as u64).max(footer.end);
    write_full(file, &bytes, at)?;
    Ok(at + bytes.len() as u64)
}

/// Files that are kept to be used again: the next one, and one more for a log that is truncated in leaps.
pub(super) const SPARES_MAX: usize = 2;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
