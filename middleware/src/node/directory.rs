//! The directory of a node: whose it is, and how many lives it has seen.
//!
//! Guarantee   one process at a time; each opening has a larger incarnation than all before, also after a crash at
//!             any point, because the new number is durable before it is used.
//! Layout      `node.lock`, locked while the node lives; `node`, a text of three lines: `quorate node 1`, `id N`,
//!             `incarnation N`; replaced by rename.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use quorate_transports::{Identity, Incarnation, NodeId};

use super::error::StartError;

pub(super) struct Directory {
    path: PathBuf,
    lock: Mutex<Option<File>>,
}

impl Directory {
    /// Takes the directory, made if need be, for the node `wanted`, or for its owner when that is `None`; a fresh
    /// directory then gets the id `fresh`.
    pub(super) fn open(
        path: &Path,
        wanted: Option<NodeId>,
        fresh: impl FnOnce() -> NodeId,
    ) -> Result<(Self, Identity), StartError> {
        let failed = |path: &Path, source| StartError::Directory { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(|source| failed(path, source))?;
        let lock_path = path.join("node.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| failed(&lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::DirectoryInUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(&lock_path, source)),
        }
        let file = path.join("node");
        let before = read(&file)?;
        let identity = match before {
            None => Identity::new(wanted.unwrap_or_else(fresh), Incarnation(1)),
            Some(before) => {
                if let Some(wanted) = wanted.filter(|wanted| *wanted != before.node) {
                    return Err(StartError::ForeignDirectory {
                        path: path.to_owned(),
                        owner: before.node,
                        wanted,
                    });
                }
                let next =
                    before.incarnation.0.checked_add(1).ok_or_else(|| damaged(&file, "no lives left"))?;
                Identity::new(before.node, Incarnation(next))
            }
        };
        write(path, &file, identity).map_err(|source| failed(&file, source))?;
        Ok((Self { path: path.to_owned(), lock: Mutex::new(Some(lock)) }, identity))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets another process have it.
    pub(super) fn release(&self) {
        if let Some(lock) = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Closing alone is not enough: a child that another thread has just forked shares the lock until it executes
            // its program, and the next start would find the directory in use. If this fails, the system unlocks later.
            let _ = lock.unlock();
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.release();
    }
}

fn read(file: &Path) -> Result<Option<Identity>, StartError> {
    let mut text = String::new();
    match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StartError::Directory { path: file.to_owned(), source }),
        Ok(open) => match open.take(TEXT_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged(file, "not a text"));
            }
            Err(source) => return Err(StartError::Directory { path: file.to_owned(), source }),
        },
    }
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err(damaged(file, "does not begin with \"quorate node 1\""));
    }
    let mut number = |name: &str| {
        let line = lines.next().and_then(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim_start().parse().ok())
            .ok_or_else(|| damaged(file, &format!("has no line \"{name} NUMBER\" where it belongs")))
    };
    let identity = Identity::new(NodeId(number("id")?), Incarnation(number("incarnation")?));
    match lines.next() {
        None => Ok(Some(identity)),
        Some(_) => Err(damaged(file, "has more lines than it should")),
    }
}

fn write(directory: &Path, file: &Path, identity: Identity) -> io::Result<()> {
    let temporary = directory.join("node.new");
    let mut new = File::create(&temporary)?;
    write!(new, "{FIRST_LINE}\nid {}\nincarnation {}\n", identity.node, identity.incarnation)?;
    new.sync_all()?;
    drop(new);
    std::fs::rename(&temporary, file)?;
    // The rename is durable when the directory is; Windows has no such call and does not need it.
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

fn damaged(file: &Path, reason: &str) -> StartError {
    StartError::DirectoryDamaged { path: file.to_owned(), reason: reason.to_owned() }
}

const FIRST_LINE: &str = "quorate node 1";
/// Far more than three lines need.
const TEXT_BYTES_MAX: u64 = 4096;
