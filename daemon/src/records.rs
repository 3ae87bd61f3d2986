//! Which processes run, noted for the next life of the daemon.
//!
//! Guarantee   the file is replaced as a whole, so that a killed daemon leaves the old or the new one. It survives a crash
//!             of the daemon; after one of the system its processes are gone as well, and what it says of them is seen to
//!             be untrue.
//! Limits      the file holds secrets of tickets: only its owner can read it. A file that is damaged is told and ignored.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use quorate::host::Ticket;
use serde::{Deserialize, Serialize};

use crate::error::StartError;

/// A process that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) process: u32,
    /// When it was started, as the system counts: tells it from a later process of the same number.
    pub(crate) started: u64,
    pub(crate) ticket: String,
}

impl Record {
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        self.ticket.parse().ok()
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Noted {
    running: BTreeMap<String, Record>,
}

/// The file, and what stands in it.
pub(crate) struct Records {
    file: Option<PathBuf>,
    noted: Mutex<Noted>,
}

impl Records {
    /// Opens the records of a directory, which is made if it is not there; gives what an earlier life noted.
    pub(crate) fn open(directory: Option<&Path>) -> Result<(Self, BTreeMap<String, Record>), StartError> {
        let Some(directory) = directory else {
            return Ok((Self { file: None, noted: Mutex::default() }, BTreeMap::new()));
        };
        let file = directory.join("running.toml");
        let state = |source| StartError::State { path: file.clone(), source };
        std::fs::create_dir_all(directory).map_err(state)?;
        let found = match std::fs::read_to_string(&file) {
            Ok(text) => toml::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "what runs is not known: the file is damaged");
                Noted::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Noted::default(),
            Err(error) => return Err(state(error)),
        };
        let running = found.running.clone();
        let records = Self { file: Some(file.clone()), noted: Mutex::new(found) };
        records.write().map_err(state)?;
        Ok((records, running))
    }

    pub(crate) fn note(&self, name: &str, record: Record) {
        self.lock().running.insert(name.to_owned(), record);
        self.try_write();
    }

    pub(crate) fn strike(&self, name: &str) {
        self.lock().running.remove(name);
        self.try_write();
    }

    fn try_write(&self) {
        if let Err(error) = self.write() {
            tracing::warn!(%error, "what runs could not be noted; a next life of this daemon will not know it");
        }
    }

    fn write(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        // Held until the file is in its place, so that an older state never replaces a newer one.
        let noted = self.lock();
        let text = toml::to_string(&*noted).map_err(io::Error::other)?;
        let fresh = file.with_extension("new");
        let mut written = File::create(&fresh)?;
        written.set_permissions(Permissions::from_mode(0o600))?;
        written.write_all(text.as_bytes())?;
        std::fs::rename(&fresh, file)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
