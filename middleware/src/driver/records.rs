//! A machine's records in its journal: read at the start, replaced by one snapshot then and now and again.
//!
//! Format      a snapshot is `count u32`, then each record with its length `u32`; see docs/disk.md.

use bytes::{Bytes, BytesMut};
use quorate_journal::{AppendError, Journal, Position, ReadError};
use quorate_protocols::wire::{put_bytes, put_count, take_bytes, take_count};
use quorate_protocols::{Wire, WireError};

/// Why records cannot be taken up.
pub(crate) enum RecordsError {
    /// The journal cannot be read.
    Read(ReadError),
    /// The journal takes no records.
    Write(AppendError),
    /// A record is none of the machine's.
    Record(Position, WireError),
    /// The snapshot is none of the machine's.
    Snapshot(WireError),
    /// The runtime is shutting down.
    Runtime,
}

impl From<AppendError> for RecordsError {
    fn from(error: AppendError) -> Self {
        Self::Write(error)
    }
}

/// The records of a kind: those that the named snapshot stands for, then those behind it. With the end of the journal.
pub(crate) async fn read_records<R: Wire + Send + 'static>(
    journal: &Journal,
    name: &str,
    kind: u16,
) -> Result<(Vec<R>, Position), RecordsError> {
    let (journal, name) = (journal.clone(), name.to_owned());
    let read = tokio::task::spawn_blocking(move || read(&journal, &name, kind));
    read.await.map_err(|_| RecordsError::Runtime)?
}

/// Replaces all records before `end` by these.
pub(crate) async fn save_records(
    journal: &Journal,
    name: &str,
    end: Position,
    records: &[impl Wire],
) -> Result<(), RecordsError> {
    journal.save_snapshot(name, end, encode_records(records)).await?;
    journal.truncate_before(end).await?;
    Ok(())
}

/// The records as one run of bytes.
pub(crate) fn encode_records(records: &[impl Wire]) -> Bytes {
    let mut out = BytesMut::new();
    put_count(&mut out, records.len());
    for record in records {
        put_bytes(&mut out, &record.to_bytes());
    }
    out.freeze()
}

fn read<R: Wire>(journal: &Journal, name: &str, kind: u16) -> Result<(Vec<R>, Position), RecordsError> {
    let (mut records, mut end) = match journal.load_snapshot(name).map_err(RecordsError::Read)? {
        Some(snapshot) => (decode(snapshot.blob).map_err(RecordsError::Snapshot)?, snapshot.position),
        None => (Vec::new(), journal.first()),
    };
    for entry in journal.read(end) {
        let entry = entry.map_err(RecordsError::Read)?;
        if entry.kind == kind {
            // A copy: the payload shares a large buffer, and some records live long.
            let payload = Bytes::copy_from_slice(&entry.payload);
            let wrong = |source| RecordsError::Record(entry.position, source);
            records.push(R::from_bytes(payload).map_err(wrong)?);
        }
        end = entry.position.plus(1);
    }
    Ok((records, end))
}

fn decode<R: Wire>(mut blob: Bytes) -> Result<Vec<R>, WireError> {
    let count = take_count(&mut blob, size_of::<u32>(), "records")?;
    let records = (0..count).map(|_| R::from_bytes(take_bytes(&mut blob, "record")?)).collect();
    if blob.is_empty() { records } else { Err(WireError::Trailing(blob.len())) }
}

#[cfg(test)]
mod tests {
    use quorate_protocols::commit::{Record, TxnId};

    use super::*;

    #[test]
    fn a_snapshot_comes_back_and_damage_is_refused() {
        let txn = TxnId { node: 1, incarnation: 2, sequence: 3 };
        let records = vec![
            Record::Forgotten(txn),
            Record::Prepared { txn, participants: [1, 2].into(), payload: Bytes::from_static(b"work") },
        ];
        let blob = encode_records(&records);
        assert_eq!(decode(blob.clone()), Ok(records));
        for cut in 0..blob.len() {
            assert!(decode::<Record>(blob.slice(..cut)).is_err(), "{cut} of {} bytes", blob.len());
        }
        assert!(decode::<Record>([&blob[..], b"x"].concat().into()).is_err());
    }
}
