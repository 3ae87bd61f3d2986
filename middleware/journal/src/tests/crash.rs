//! The simulated disk is crashed at every operation of random histories, and fails at every operation of others.
//!
//! What must hold after each restart: every acknowledged record is there with its bytes; what else is there is a
//! whole prefix, append by append, of what was being written; nothing follows a hole; the snapshot is the old one or
//! the new one. `QUORATE_SEED=n` runs one seed only, `QUORATE_SEEDS=n` runs more of them.

use super::world::{Chance, World, config, name_of, open, seeds};
use crate::{
    AppendError, Config, DropReason, Faults, FaultyStorage, Log, OpenError, Position, ReadError, Record,
    Storage,
};

#[test]
fn q02_crash_at_every_disk_operation_keeps_every_acknowledged_record_and_invents_none() {
    let crashes: u64 = seeds(CRASHED_SEEDS).map(crash_everywhere).sum();
    println!("{crashes} histories cut four times each");
}

/// An empty segment whose removal was not synced came back two crashes later, after a truncation had dropped the
/// segment behind it, and the log did not join any more.
#[test]
fn q02_removed_empty_segment_does_not_come_back_behind_a_truncation() {
    crash_everywhere(2883);
}

/// The same history again and again, cut one operation later each time, until it is not cut any more; returns how
/// often.
pub(super) fn crash_everywhere(seed: u64) -> u64 {
    for crash_at in 0.. {
        let mut world = World::new(seed);
        world.disk.crash_at(crash_at);
        let is_cut = world.live(30).is_err();
        assert_eq!(is_cut, world.disk.is_crashed(), "seed {seed}: only the crash makes a call fail");
        // Two more lives, each crashed at a random moment: of opening or of work.
        for _ in 0..2 {
            world.restart();
            let at = world.chance.below(20);
            world.disk.crash_at(at);
            let _ = world.live(8);
        }
        world.restart();
        world.live(16).unwrap_or_else(|error| panic!("seed {seed}, crash at {crash_at}: {error}"));
        world.restart();
        world.live(0).unwrap_or_else(|error| panic!("seed {seed}, crash at {crash_at}: {error}"));
        if !is_cut {
            return crash_at;
        }
    }
    0
}

#[test]
fn q02_failure_of_any_operation_poisons_and_loses_nothing_even_without_a_power_cut() {
    let poisoned: u64 = seeds(60).map(fail_everywhere).sum();
    assert!(poisoned > 1000, "{poisoned}");
}

/// The same history again and again, with one failing operation, one later each time.
pub(super) fn fail_everywhere(seed: u64) -> u64 {
    for fail_at in 0.. {
        let mut world = World::new(seed);
        world.disk.fail_at(fail_at);
        if world.live(25).is_ok() {
            return fail_at;
        }
        if let Some(log) = &mut world.log {
            let operations = world.disk.operations();
            assert!(matches!(log.append(&[]), Err(AppendError::Poisoned(_))), "seed {seed}");
            assert!(matches!(log.commit(), Err(AppendError::Poisoned(_))), "seed {seed}");
            assert_eq!(world.disk.operations(), operations, "seed {seed}: nothing is retried");
        }
        // The process starts again; the machine does not: its cache shows bytes that never reached the disk.
        world.restart_process();
        world.live(5).unwrap_or_else(|error| panic!("seed {seed}, failure at {fail_at}: {error}"));
        world.restart();
        world.live(3).unwrap_or_else(|error| panic!("seed {seed}, failure at {fail_at}: {error}"));
    }
    0
}

#[test]
fn q02_flipped_bit_before_the_last_batch_is_refused_with_file_and_offset_or_harmless() {
    let refused = seeds(200).filter(|seed| flip_somewhere(*seed)).count();
    println!("{refused} refused");
    assert!(refused > 0);
}

/// Flips one bit of what was durable before the last batch; true if that was refused.
pub(super) fn flip_somewhere(seed: u64) -> bool {
    let mut world = World::new(seed);
    world.disk.set_faults(Faults::default());
    if world.live(30).is_err() {
        panic!("seed {seed}: a disk without faults");
    }
    // One more batch behind: it proves that all before it is durable.
    let last_batch = world.append_and_commit();
    let names = world.segment_names();
    let name = &names[world.chance.below(names.len() as u64) as usize];
    let size = world.disk.content(name).map_or(0, |content| content.len());
    let bit = world.chance.below(8 * size as u64);
    if Some(name) == names.last() && last_batch.contains(&(bit / 8)) {
        return false;
    }
    assert!(world.disk.flip_bit(name, bit));
    world.log = None;
    let found = match Log::open(world.disk.clone(), config(seed)) {
        Err(OpenError::Corrupt(corruption)) => corruption,
        Err(OpenError::NotAJournal { file } | OpenError::Version { file, .. }) => {
            assert_eq!(&file, name);
            return true;
        }
        Err(error) => panic!("seed {seed}: {error}"),
        Ok((log, recovered)) => match log.read(recovered.first).find_map(Result::err) {
            // The segments before the last one are checked when they are read.
            Some(ReadError::Corrupt(corruption)) if Some(name) != names.last() => corruption,
            Some(error) => panic!("seed {seed}: {error:?}"),
            // The flip hit what no record needs: then nothing may be missing.
            None => {
                world.check(&log, &recovered);
                return false;
            }
        },
    };
    assert_eq!(&found.file, name);
    assert!(found.offset <= bit / 8, "seed {seed}: {found} for bit {bit}");
    true
}

#[test]
fn q02_hole_in_the_last_batch_cuts_there_and_says_so() {
    let disk = FaultyStorage::new(1);
    let (mut log, _) = open(&disk, 1);
    for _ in 0..3 {
        log.append(&[Record::new(1, vec![1; 600])]).expect("room");
    }
    log.commit().expect("a disk without faults");
    let name = name_of(1, 0);
    // The second record's payload; the third stays whole.
    assert!(disk.flip_bit(&name, 8 * (4096 + 632 + 100)));
    drop(log);
    let (log, recovered) = open(&disk, 1);
    assert_eq!(recovered.next, Position::from_u64(1));
    let dropped = recovered.dropped.expect("two records were cut");
    assert_eq!((dropped.file, dropped.offset, dropped.bytes), (name, 4096 + 632, 2 * 632));
    assert_eq!(dropped.reason, DropReason::Torn);
    assert_eq!(log.read(Position::ZERO).count(), 1);
    drop(log);
    let (_, recovered) = open(&disk, 1);
    assert_eq!((recovered.next, recovered.dropped), (Position::from_u64(1), None), "and the cut is final");
}

/// What a sender of payloads can know of a record: all but the mark of the segment.
fn forged(position: u64) -> Vec<u8> {
    let mut record = vec![0; 4];
    record.extend(8_u32.to_le_bytes());
    record.extend(position.to_le_bytes());
    record.extend(1_u64.to_le_bytes());
    record.extend(0_u32.to_le_bytes());
    record.extend([9, 0, 1, 1]);
    record.extend([0xf0; 8]);
    let crc = crc32c::crc32c(&record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
    record
}

#[test]
fn q02_a_payload_that_looks_like_records_neither_hinders_opening_nor_becomes_one() {
    let disk = FaultyStorage::new(1);
    let (mut log, _) = open(&disk, 1);
    log.append(&[Record::new(1, "kept")]).expect("room");
    log.commit().expect("a disk without faults");
    // A head that claims much in every place where one may begin, and whole records.
    let mut payload = Vec::new();
    for position in 1..20 {
        payload.extend(forged(position));
    }
    log.append(&[Record::new(1, payload)]).expect("room");
    log.commit().expect("a disk without faults");
    drop(log);
    // The last batch was torn: its record's own head is damaged.
    let name = name_of(1, 0);
    assert!(disk.flip_bit(&name, 8 * (4096 + 40 + 8)));
    let inspection = crate::Inspection::new(disk.clone()).expect("a journal");
    let records = inspection.records(Position::ZERO).expect("a disk that reads");
    let kinds: Vec<_> = records.filter_map(Result::ok).map(|entry| entry.kind).collect();
    assert_eq!(kinds, [1], "no invented one");
    let (log, recovered) = open(&disk, 1);
    assert_eq!(recovered.next, Position::from_u64(1));
    assert_eq!(log.read(Position::ZERO).count(), 1);
}

#[test]
fn q02_what_stands_for_dropped_records_is_synced_before_they_are_dropped() {
    let disk = FaultyStorage::new(1);
    let (mut log, _) = Log::open(disk.clone(), Config::new(1).segment_bytes(8 << 10)).expect("an empty disk");
    while log.catalog().lock().segments() < 2 {
        log.append(&[Record::new(1, vec![1; 600])]).expect("room");
        log.commit().expect("a disk without faults");
    }
    let copy = log.append(&[Record::new(2, "stands for all")]).expect("room");
    log.truncate_before(copy.first).expect("a disk without faults");
    drop(log);
    let (log, recovered) = Log::open(disk.crash(), Config::new(1)).expect("a whole log");
    assert!(recovered.first > Position::ZERO);
    assert!(log.read(recovered.first).any(|entry| entry.is_ok_and(|entry| entry.kind == 2)));
}

#[test]
fn directory_of_another_owner_or_version_is_refused_and_left_untouched() {
    let disk = FaultyStorage::new(1);
    let (mut log, _) = open(&disk, 1);
    log.append(&[Record::new(1, "mine")]).expect("room");
    log.save_snapshot("s", log.next(), b"blob").expect("a disk without faults");
    drop(log);
    let operations = disk.operations();
    match Log::open(disk.clone(), Config::new(2)).map(|_| ()) {
        Err(OpenError::Owner { found: 1, expected: 2, file }) => assert!(file.ends_with(".segment")),
        other => panic!("{other:?}"),
    }
    let name = name_of(1, 0);
    assert!(disk.flip_bit(&name, 8 * 8));
    match Log::open(disk.clone(), Config::new(1)).map(|_| ()) {
        Err(OpenError::Version { found: 2, supported: 3, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(disk.flip_bit(&name, 8 * 8) && disk.flip_bit(&name, 0));
    let error = Log::open(disk.clone(), Config::new(1)).map(|_| ());
    assert!(matches!(error, Err(OpenError::NotAJournal { .. })), "{error:?}");
    assert_eq!(disk.operations(), operations, "nothing was changed or synced");
    assert!(disk.flip_bit(&name, 0));
    assert!(Log::open(disk.clone(), Config::new(1)).is_ok());
    assert!(disk.flip_bit("s.snapshot", 8 * 66));
    let (log, _) = open(&disk, 1);
    assert!(log.load_snapshot("s").is_err());
}

#[test]
fn directory_of_the_first_version_of_the_format_is_refused_and_left_untouched() {
    let disk = FaultyStorage::new(1);
    let mut page = vec![0; 4096];
    page[..8].copy_from_slice(b"QRTE-LOG");
    page[8] = 1;
    let name = format!("{:020}.segment", 7);
    disk.create(&name).and_then(|file| file.write_at(&page, 0)).expect("a disk without faults");
    let operations = disk.operations();
    match Log::open(disk.clone(), Config::new(1)).map(|_| ()) {
        Err(OpenError::Version { file, found: 1, supported: 3 }) => assert_eq!(file, name),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.operations(), operations, "nothing was changed or synced");
}

#[test]
fn segment_missing_in_the_middle_is_refused() {
    let disk = FaultyStorage::new(1);
    let (mut log, _) = Log::open(disk.clone(), Config::new(1).segment_bytes(8 << 10)).expect("an empty disk");
    for _ in 0..20 {
        log.append(&[Record::new(1, vec![1; 1000])]).expect("room");
        log.commit().expect("a disk without faults");
    }
    drop(log);
    let names = disk.list().expect("powered");
    let second = names.iter().find(|name| name.starts_with(&format!("{:020}-", 2))).expect("it is there");
    disk.remove(second).expect("it is there");
    match Log::open(disk, Config::new(1)).map(|_| ()) {
        Err(OpenError::Corrupt(corruption)) => assert_eq!(corruption.file, name_of(1, 0)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn q02_record_from_another_segments_life_is_not_taken() {
    stale_record();
}

pub(super) fn stale_record() {
    let disk = FaultyStorage::new(1);
    let (mut log, _) = open(&disk, 1);
    log.append(&[Record::new(1, "old")]).expect("room");
    log.commit().expect("a disk without faults");
    drop(log);
    let (log, recovered) = open(&disk, 1);
    drop(log);
    assert_eq!(recovered.next, Position::from_u64(1));
    // The old record's bytes, as a file used again would show them; only the position is made to fit.
    let old = disk.content(&name_of(1, 0)).expect("it is there");
    let mut stale = old[4096..4096 + 40].to_vec();
    stale[8] = 1;
    let crc = crc32c::crc32c(&stale[4..35]);
    stale[..4].copy_from_slice(&crc.to_le_bytes());
    let file = disk.open(&name_of(2, 1)).expect("it is there");
    file.write_at(&stale, 4096).expect("a disk without faults");
    let (_, recovered) = open(&disk, 1);
    assert_eq!((recovered.next, recovered.dropped), (Position::from_u64(1), None));
}

/// One reader goes to and fro while the log grows under it: what it has read ahead is never taken for what came later.
#[test]
fn q09_a_reader_that_is_sent_about_sees_what_was_written_meanwhile() {
    for seed in 0..50 {
        let mut chance = Chance(seed);
        let disk = FaultyStorage::new(seed);
        let config = Config::new(1).segment_bytes(32 << 10).zero_fill_bytes([0, 8 << 10][seed as usize % 2]);
        let (mut log, _) = Log::open(disk, config).expect("an empty disk");
        let mut reader = log.read(Position::ZERO);
        let mut next = 0_u64;
        for _ in 0..300 {
            for _ in 0..chance.below(4) {
                let size = 8 + chance.below(900) as usize;
                let mut payload = vec![next as u8; size];
                payload[..8].copy_from_slice(&next.to_le_bytes());
                log.append(&[Record::new(1, payload)]).expect("room");
                next += 1;
            }
            log.commit().expect("a disk without faults");
            let first = reader_start(&mut chance, next);
            reader.seek(Position::from_u64(first));
            for expected in (first..next).take(chance.below(5) as usize) {
                let entry = reader.next().expect("it is there").expect("whole");
                assert_eq!(entry.position.as_u64(), expected, "seed {seed}");
                assert_eq!(entry.payload[..8], expected.to_le_bytes(), "seed {seed}");
            }
        }
    }
}

/// Mostly near the end.
fn reader_start(chance: &mut Chance, next: u64) -> u64 {
    if chance.below(3) == 0 { chance.below(next + 1) } else { next - chance.below(next.min(6) + 1) }
}

#[test]
fn q09_footer_of_another_segment_is_not_taken() {
    stale_footer();
}

pub(super) fn stale_footer() {
    let disk = FaultyStorage::new(1);
    let config = Config::new(1).segment_bytes(32 << 10).zero_fill_bytes(0);
    let (mut log, _) = Log::open(disk.clone(), config.clone()).expect("an empty disk");
    for number in 0..300_u64 {
        let size = if number.is_multiple_of(60) { 5_000 } else { 100 + number as usize };
        log.append(&[Record::new(number as u16, vec![1; size])]).expect("room");
    }
    log.commit().expect("a disk without faults");
    drop(log);
    let names = disk.list().expect("powered");
    let content = |name| disk.content(name).expect("it is there");
    let (second, third) = (content(&names[1]), content(&names[2]));
    let file = disk.open(&names[2]).expect("it is there");
    let places = usize::from(second[second.len() - 8]);
    let footer = &second[second.len() - 64 - 8 * places..];
    file.write_at(footer, third.len() as u64).expect("a disk without faults");
    let (log, recovered) = Log::open(disk.clone(), config).expect("footers only save time");
    let mut reader = log.read(recovered.first);
    for number in (0..300).rev() {
        reader.seek(Position::from_u64(number));
        let entry = reader.next().expect("it is there").expect("whole");
        assert_eq!((entry.position.as_u64(), u64::from(entry.kind)), (number, number));
    }
}

/// Files of segments that were dropped come back as new ones; what they held before is never read.
#[test]
fn q02_files_are_used_again_and_readers_of_their_old_records_are_told() {
    let disk = FaultyStorage::new(1);
    let small = Config::new(1).segment_bytes(16 << 10);
    let (mut log, _) = Log::open(disk.clone(), small.clone()).expect("an empty disk");
    let mut created = 0;
    let mut old = log.read(Position::ZERO);
    for round in 0..200_u64 {
        let payload = vec![round as u8; 700];
        log.append(&[Record::new(1, payload)]).expect("room");
        log.commit().expect("a disk without faults");
        if round == 0 {
            old = log.read(Position::ZERO);
        }
        log.truncate_before(Position::from_u64(round.saturating_sub(20))).expect("a disk without faults");
        created = created.max(disk.list().expect("powered").len());
    }
    assert!(created <= 6, "{created} files at a time");
    assert!(disk.files_created() <= 6, "{} files were made in all", disk.files_created());
    assert!(matches!(old.next(), Some(Err(ReadError::Truncated { .. }))), "its file holds other records now");
    let first = log.read(Position::from_u64(190)).map(|entry| entry.expect("whole").payload[0]).next();
    assert_eq!(first, Some(190));
}

#[test]
fn q09_any_record_is_found_without_reading_those_before_it() {
    let disk = FaultyStorage::new(1);
    let config = Config::new(1).segment_bytes(256 << 10).zero_fill_bytes(0);
    let (mut log, _) = Log::open(disk.clone(), config.clone()).expect("an empty disk");
    for number in 0..5_000_u64 {
        let mut payload = vec![0; 100 + (number as usize * 37) % 400];
        payload[..8].copy_from_slice(&number.to_le_bytes());
        log.append(&[Record::new(1, payload)]).expect("room");
    }
    log.commit().expect("a disk without faults");
    drop(log);
    // The second time with no footer in the third segment: slower, and the same.
    for has_footers in [true, false] {
        let (log, _) = Log::open(disk.clone(), config.clone()).expect("an intact disk");
        let mut reader = log.read(Position::ZERO);
        let read = disk.bytes_read();
        let mut looked = 0;
        for step in 0..500_u64 {
            let position = Position::from_u64(step * 2_741 % 5_000);
            reader.seek(position);
            for (offset, entry) in reader.by_ref().take(2).enumerate() {
                let entry = entry.expect("whole");
                assert_eq!(entry.position, position.plus(offset as u64));
                assert_eq!(entry.payload[..8], entry.position.as_u64().to_le_bytes());
                looked += 1;
            }
        }
        assert!(looked >= 999, "{looked}");
        let each = (disk.bytes_read() - read) / 500;
        println!("{each} bytes read for two records of some 300 bytes");
        assert!(!has_footers || each < 48 << 10, "{each}");
        reader.seek(Position::from_u64(5_000));
        assert!(reader.next().is_none());
        drop(log);
        let names = disk.list().expect("powered");
        let third = names.iter().find(|name| name.starts_with(&format!("{:020}-", 3))).expect("it is there");
        let size = disk.content(third).expect("it is there").len() as u64;
        assert!(disk.flip_bit(third, 8 * (size - 64)) || !has_footers);
    }
}

#[test]
fn wrong_settings_are_named() {
    let disk = FaultyStorage::new(1);
    let error = Log::open(disk.clone(), Config::new(1).segment_bytes(100)).map(|_| ());
    assert!(matches!(error, Err(OpenError::Config { field: "segment_bytes", .. })), "{error:?}");
    assert_eq!(disk.operations(), 0);
}

/// Some 100,000 power cuts; see the test's output.
const CRASHED_SEEDS: u64 = 560;
