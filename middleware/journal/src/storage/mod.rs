//! A directory of files, as far as a log needs one.
//!
//! Purpose     one contract for the real disk, for memory, and for the simulated disk that fails.
//! Guarantee   what [`StorageFile::sync`] returned for survives a crash; what it did not return for may survive
//!             in part, sector by sector, in any order. The same for names and [`Storage::sync_directory`].
//! Method      synchronous and object-safe: the committer thread is the only one that waits for the disk.

mod faulty;
#[cfg(unix)]
mod file;
mod memory;

use std::io;
use std::sync::Arc;

pub use faulty::{Faults, FaultyStorage};
#[cfg(unix)]
pub use file::FileStorage;
pub use memory::MemoryStorage;

/// A flat directory. Names are short ASCII; there are no sub-directories.
pub trait Storage: Send + Sync + 'static {
    /// Creates a file, or empties it when there is one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Opens a file that exists, to read and write.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Removes a file. Handles that are open stay usable.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name, replacing what had it. A crash leaves the old or the new file there, never a mix.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes all creations, removals and renames so far durable.
    fn sync_directory(&self) -> io::Result<()>;
    /// What errors call a file, so that whoever reads them finds it. The bare name unless the storage knows more.
    fn locate(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// An open file.
pub trait StorageFile: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads some bytes at `offset`; fewer than asked for are allowed, 0 means the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes some bytes at `offset`, extending the file where needed; fewer than asked for are allowed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes all writes so far durable, with the size of the file. After an error nothing is known of them.
    fn sync(&self) -> io::Result<()>;
}

/// Reads until `buffer` is full or the file ends; returns how much.
pub(crate) fn read_full(file: &dyn StorageFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of `bytes`.
pub(crate) fn write_full(file: &dyn StorageFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
