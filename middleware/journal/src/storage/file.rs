//! The real disk.
//!
//! Guarantee   one holder per directory: a lock file is locked for as long as the storage lives, and the system
//!             frees it when the process dies. Directories that had to be created are synced into their parents.
//! Limits      Unix only: it needs positioned reads and writes and the sync of a directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Storage, StorageFile};
use crate::error::OpenError;

/// A directory in the file system, locked against a second opening.
#[derive(Debug)]
pub struct FileStorage {
    directory: PathBuf,
    /// Synced after names change; opened once, because running out of descriptors must not fail a commit.
    handle: File,
    lock: File,
}

impl FileStorage {
    /// Opens `directory`, creating it when needed, and locks it.
    ///
    /// # Errors
    /// [`OpenError::InUse`] while another process or another `FileStorage` holds it; [`OpenError::Io`].
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, OpenError> {
        let directory = directory.as_ref();
        let io_error = |operation| {
            let file = directory.display().to_string();
            move |source| OpenError::Io { operation, file, source }
        };
        create_durably(directory).map_err(io_error("create directory"))?;
        let handle = File::open(directory).map_err(io_error("open directory"))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(LOCK_NAME))
            .map_err(io_error("create the lock file in"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { directory: directory.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(io_error("lock")(source)),
        }
        Ok(Self { directory: directory.to_owned(), handle, lock })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that another thread has just forked shares the lock until it executes
        // its program, and the next opening would find the directory in use. If this fails, the system unlocks later.
        let _ = self.lock.unlock();
    }
}

impl Storage for FileStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let path = self.directory.join(name);
        Ok(Arc::new(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.directory.join(name))?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            // Names that are not text are not ours, nor are directories.
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn locate(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

impl StorageFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        // fdatasync: it commits the size when that changed, and spares the time stamps.
        self.sync_data()
    }
}

/// Creates `directory` and syncs every parent that got a new entry.
fn create_durably(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    create_durably(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

const LOCK_NAME: &str = "lock";
