//! The machine's records in the journal: read at the opening, replaced by one snapshot then and now and again.
//!
//! Format      snapshot `commit-<channel>`: `count u32`, then each record with its length `u32`; see docs/disk.md.

use bytes::{Bytes, BytesMut};
use quorate_journal::{Journal, Position};
use quorate_protocols::commit::{Config, Manager, Record, TxnId};
use quorate_protocols::wire::{put_bytes, put_count, take_bytes, take_count};
use quorate_protocols::{ProcessId, Time, Wire, WireError};

use super::error::OpenError;
use crate::driver::Stable;
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
    let reading = (journal.clone(), name.clone());
    let read = tokio::task::spawn_blocking(move || read(&reading.0, &reading.1));
    let (records, end) = read.await.map_err(|_| OpenError::Runtime)??;
    // The driver's clock starts at zero with the machine.
    let manager = Manager::new(me, Time::ZERO, config, records);
    let snapshot = manager.snapshot();
    journal.save_snapshot(&name, end, encode(&snapshot)).await?;
    journal.truncate_before(end).await?;
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
        snapshot: |manager| encode(&manager.snapshot()),
    }
}

fn snapshot_name(channel: Channel) -> String {
    format!("commit-{channel}")
}

fn read(journal: &Journal, name: &str) -> Result<(Vec<Record>, Position), OpenError> {
    let (mut records, mut end) = match journal.load_snapshot(name)? {
        Some(snapshot) => {
            let wrong = |source| OpenError::Snapshot { name: name.to_owned(), source };
            (decode(snapshot.blob).map_err(wrong)?, snapshot.position)
        }
        None => (Vec::new(), journal.first()),
    };
    for entry in journal.read(end) {
        let entry = entry?;
        if entry.kind == RECORD_KIND {
            // A copy: the payload shares a large buffer, and some records live long.
            let wrong = |source| OpenError::Record { position: entry.position, source };
            records.push(Record::from_bytes(Bytes::copy_from_slice(&entry.payload)).map_err(wrong)?);
        }
        end = entry.position.plus(1);
    }
    Ok((records, end))
}

fn encode(records: &[Record]) -> Bytes {
    let mut out = BytesMut::new();
    put_count(&mut out, records.len());
    for record in records {
        put_bytes(&mut out, &record.to_bytes());
    }
    out.freeze()
}

fn decode(mut blob: Bytes) -> Result<Vec<Record>, WireError> {
    let count = take_count(&mut blob, size_of::<u32>(), "commit records")?;
    let records = (0..count).map(|_| Record::from_bytes(take_bytes(&mut blob, "commit record")?)).collect();
    if blob.is_empty() { records } else { Err(WireError::Trailing(blob.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_back_and_damage_is_refused() {
        let txn = TxnId { node: 1, incarnation: 2, sequence: 3 };
        let records = vec![
            Record::Forgotten(txn),
            Record::Prepared { txn, participants: [1, 2].into(), payload: Bytes::from_static(b"work") },
        ];
        let blob = encode(&records);
        assert_eq!(decode(blob.clone()), Ok(records));
        for cut in 0..blob.len() {
            assert!(decode(blob.slice(..cut)).is_err(), "{cut} of {} bytes", blob.len());
        }
        assert!(decode([&blob[..], b"x"].concat().into()).is_err());
    }
}
