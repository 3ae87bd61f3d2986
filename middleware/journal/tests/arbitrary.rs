//! Whatever bytes lie in the directory, opening and reading end in a result: no panic, no endless loop, no memory
//! that the file does not justify, and nothing is changed when the result is an error.

use proptest::prelude::*;
use quorate_journal::{Config, FaultyStorage, Log, Position, Record, Storage};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_as_a_segment_or_a_snapshot_never_panic(
        segment in prop::collection::vec(any::<u8>(), 0..6000),
        snapshot in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
        with_magic in any::<bool>(),
    ) {
        let disk = FaultyStorage::new(1);
        let mut segment = segment;
        if with_magic && segment.len() > 12 {
            segment[..8].copy_from_slice(b"QRTE-LOG");
            segment[8..12].copy_from_slice(&3_u32.to_le_bytes());
        }
        put(&disk, FIRST, &segment);
        if let Some(snapshot) = snapshot {
            put(&disk, "s.snapshot", &snapshot);
        }
        look(&disk);
    }

    /// Records with right headers and wrong contents: a real log with bytes overwritten, inserted into and cut.
    #[test]
    fn damaged_log_never_panics_and_never_shows_other_bytes(
        damages in prop::collection::vec((0..12_000_usize, prop::collection::vec(any::<u8>(), 0..40)), 1..6),
        cut in prop::option::of(0..14_000_usize),
    ) {
        let disk = FaultyStorage::new(1);
        let (mut log, _) = Log::open(disk.clone(), config()).expect("an empty disk");
        for number in 0..40_u8 {
            log.append(&[Record::new(1, vec![number; 200])]).expect("room");
            if number % 3 == 0 {
                log.commit().expect("a disk without faults");
            }
        }
        log.save_snapshot("s", log.next(), &[1; 300]).expect("a disk without faults");
        drop(log);
        let name = FIRST;
        let mut content = disk.content(name).expect("the first segment");
        for (at, bytes) in damages {
            let at = at.min(content.len());
            let end = (at + bytes.len()).min(content.len());
            content[at..end].copy_from_slice(&bytes[..end - at]);
        }
        content.truncate(cut.unwrap_or(usize::MAX));
        put(&disk, name, &content);
        for (position, payload) in look(&disk) {
            prop_assert_eq!(payload, vec![position.as_u64() as u8; 200]);
        }
    }

    /// A header may claim any length and any position; only what the checksum covers counts.
    #[test]
    fn forged_record_headers_never_panic(
        heads in prop::collection::vec((any::<u32>(), any::<u64>(), 0..3_u64, any::<u32>(), any::<u32>()), 0..60),
        sized in any::<bool>(),
    ) {
        let disk = FaultyStorage::new(1);
        drop(Log::open(disk.clone(), config()).expect("an empty disk"));
        let mut content = disk.content(FIRST).expect("the first segment");
        let mark = u64::from_le_bytes(*content[48..].first_chunk().expect("a header"));
        for (length, position, segment, unsynced, rest) in heads {
            let length = if sized { length % 100 } else { length };
            let mut record = [0; 4].to_vec();
            record.extend(length.to_le_bytes());
            record.extend(if sized { position % 4 } else { position }.to_le_bytes());
            record.extend(if segment == 1 { mark } else { segment }.to_le_bytes());
            record.extend(unsynced.to_le_bytes());
            record.extend(if sized { 0x0101_0000 } else { rest }.to_le_bytes());
            if sized {
                record.resize(32 + length as usize, 7);
                let crc = crc32c::crc32c(&record[4..]);
                record[..4].copy_from_slice(&crc.to_le_bytes());
                record.resize(record.len().next_multiple_of(8), 0);
            }
            content.extend(record);
        }
        put(&disk, FIRST, &content);
        look(&disk);
    }
}

fn config() -> Config {
    Config::new(1).segment_bytes(12 << 10).zero_fill_bytes(0)
}

fn put(disk: &FaultyStorage, name: &str, bytes: &[u8]) {
    let file = disk.create(name).expect("a disk without faults");
    file.write_at(bytes, 0).expect("a disk without faults");
}

/// Opens and reads everything.
fn look(disk: &FaultyStorage) -> Vec<(Position, Vec<u8>)> {
    let operations = disk.operations();
    match Log::open(disk.clone(), config()) {
        Ok((log, recovered)) => {
            let _ = log.load_snapshot("s");
            // Segments before the last one are checked when they are read: up to the damage, then.
            let entries = log.read(recovered.first).map_while(Result::ok);
            entries.map(|entry| (entry.position, entry.payload.to_vec())).collect()
        }
        Err(_) => {
            assert_eq!(disk.operations(), operations, "an opening that fails changes nothing");
            Vec::new()
        }
    }
}

const FIRST: &str = "00000000000000000001-00000000000000000000.segment";
