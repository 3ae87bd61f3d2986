//! The machine's records in the journal: read at the opening, replaced by one snapshot then and now and again.

use bytes::Bytes;
use quorate_journal::Journal;
use quorate_protocols::commit::{Config, Manager, Record, TxnId};
use quorate_protocols::{ProcessId, Time};

use super::error::OpenError;
use crate::driver::{RecordsError, Stable, encode_records, read_records, save_records};
use crate::node::Channel;

/// The kind of the machine's records in a journal.
const RECORD_KIND: u16 = 0x2C;

pub(super) struct Restored {
    pub(super) manager: Manager,
    /// Yes votes without a recorded end, with what was prepared.
    pub(super) promised: Vec<(TxnId, Bytes)>,
    /// Commits of its own that not all have acknowledged.
    pub(super) committed: Vec<TxnId>,
}

/// Makes the machine from the snapshot and what follows it, and saves a new snapshot.
pub(super) async fn restore(
    journal: &Journal,
    channel: Channel,
    me: ProcessId,
    config: Config,
) -> Result<Restored, OpenError> {
    let name = snapshot_name(channel);
    let wrong = |error| match error {
        RecordsError::Read(error) => error.into(),
        RecordsError::Write(error) => error.into(),
        RecordsError::Record(position, source) => OpenError::Record { position, source },
        RecordsError::Snapshot(source) => OpenError::Snapshot { name: snapshot_name(channel), source },
        RecordsError::Runtime => OpenError::Runtime,
    };
    let (records, end) = read_records(journal, &name, RECORD_KIND).await.map_err(wrong)?;
    // The driver's clock starts at zero with the machine.
    let manager = Manager::new(me, Time::ZERO, config, records);
    let snapshot = manager.snapshot();
    save_records(journal, &name, end, &snapshot).await.map_err(wrong)?;
    let (mut promised, mut committed) = (Vec::new(), Vec::new());
    for record in snapshot {
        match record {
            Record::Prepared { txn, payload, .. } => promised.push((txn, payload)),
            Record::Committed { txn, .. } => committed.push(txn),
            _ => {}
        }
    }
    Ok(Restored { manager, promised, committed })
}

/// How the driver keeps the records of the machine.
pub(super) fn stable(journal: Journal, channel: Channel) -> Stable<Manager> {
    Stable {
        journal,
        kind: RECORD_KIND,
        snapshot_name: snapshot_name(channel),
        snapshot: |manager| encode_records(&manager.snapshot()),
    }
}

fn snapshot_name(channel: Channel) -> String {
    format!("commit-{channel}")
}
