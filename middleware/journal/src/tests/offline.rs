//! Backups and inspections: what they find is what there is, also when they are cut short or what they read is damaged.

use super::world::name_of;
use crate::{
    BackupError, Config, FaultyStorage, Inspection, Journal, OpenError, Position, ReadError, Record, Storage,
};

fn small() -> Config {
    Config::new(1).segment_bytes(16 << 10).zero_fill_bytes(4 << 10)
}

/// 100 records of 1000 bytes in some seven segments, the first of them cut off, and a snapshot.
fn journal(disk: &FaultyStorage) -> Journal {
    let (journal, _) = Journal::open(disk.clone(), small()).expect("an empty disk");
    for number in 0..100_u8 {
        journal.append_blocking(vec![Record::new(number.into(), vec![number; 1000])]).expect("room");
    }
    crate::journal::wait_for(async {
        journal.save_snapshot("state", Position::from_u64(40), "forty").await.expect("a disk without faults");
        journal.truncate_before(Position::from_u64(40)).await.expect("a disk without faults");
    });
    journal
}

fn kinds(disk: &FaultyStorage) -> Vec<u64> {
    let (journal, recovered) = Journal::open(disk.clone(), small()).expect("a whole journal");
    let kinds: Result<Vec<u64>, _> =
        journal.read(recovered.first).map(|entry| entry.map(|entry| entry.kind.into())).collect();
    let snapshot = journal.load_snapshot("state").expect("whole").expect("it is there");
    assert_eq!((snapshot.position.as_u64(), &snapshot.blob[..]), (40, &b"forty"[..]));
    journal.close_blocking();
    kinds.expect("whole records")
}

#[test]
fn q09_a_backup_of_a_running_journal_is_whole_or_says_that_it_is_not_wherever_it_is_cut() {
    let disk = FaultyStorage::new(1);
    let journal = journal(&disk);
    let first = journal.first().as_u64();
    assert!(first > 0);
    for cut in 0.. {
        let target = FaultyStorage::new(cut);
        target.crash_at(cut);
        let backup = journal.backup_blocking(target.clone(), |_| {});
        let left = target.crash();
        let there = left.list().expect("the power is back");
        match backup {
            Ok(backup) => {
                assert_eq!((backup.first.as_u64(), backup.next.as_u64(), backup.snapshots), (first, 100, 1));
                assert_eq!(kinds(&left), (first..100).collect::<Vec<_>>());
                let again = journal.backup_blocking(left, |_| {});
                assert!(matches!(again, Err(BackupError::NotEmpty { .. })), "{again:?}");
                assert!(cut > 20, "{cut}");
                break;
            }
            Err(error) => {
                assert!(matches!(error, BackupError::Write { .. }), "{error:?}");
                let is_marked = there.iter().any(|name| name == "backup.incomplete");
                if is_marked {
                    let looked = Inspection::new(left.clone()).map(drop);
                    assert!(matches!(looked, Err(OpenError::IncompleteBackup { .. })), "{looked:?}");
                    let opened = Journal::open(left, small()).map(drop);
                    assert!(matches!(opened, Err(OpenError::IncompleteBackup { .. })), "{opened:?}");
                } else if !there.is_empty() {
                    // Cut when the mark was being removed: all the rest is there.
                    assert_eq!(kinds(&left), (first..100).collect::<Vec<_>>(), "cut {cut}");
                }
            }
        }
    }
    journal.close_blocking();
}

#[test]
fn q09_a_backup_goes_on_while_records_come_and_old_ones_are_cut_off() {
    let disk = FaultyStorage::new(1);
    let journal = journal(&disk);
    let first = journal.first();
    let target = FaultyStorage::new(2);
    let mut seen = 0;
    let backup = journal.backup_blocking(target.clone(), |progress| {
        seen += 1;
        assert!(progress.bytes <= progress.total);
        journal.append_blocking(vec![Record::new(1, "meanwhile")]).expect("room");
        let next = journal.durable();
        let cut = crate::journal::wait_for(journal.truncate_before(next)).expect("a disk without faults");
        assert_eq!(cut, first, "not while the backup needs them");
    });
    let backup = backup.expect("disks without faults");
    assert!(seen > 2 && backup.next.as_u64() == 100, "{seen} {backup:?}");
    assert_eq!(kinds(&target), (first.as_u64()..100).collect::<Vec<_>>());
    let cut =
        crate::journal::wait_for(journal.truncate_before(journal.durable())).expect("a disk without faults");
    assert!(cut > first);
    journal.close_blocking();
}

#[test]
fn q09_a_snapshot_that_is_written_while_the_records_are_copied_is_in_the_copy_if_it_is_not_ahead_of_them() {
    let disk = FaultyStorage::new(1);
    let journal = journal(&disk);
    let target = FaultyStorage::new(2);
    let backup = journal.backup_blocking(target.clone(), |_| {
        crate::journal::wait_for(async {
            let save = |name: &'static str, position| journal.save_snapshot(name, position, "new");
            journal.append(vec![Record::new(1, "meanwhile")]).await.expect("room");
            save("names", Position::ZERO).await.expect("a disk without faults");
            save("ahead", journal.durable()).await.expect("a disk without faults");
        });
    });
    assert_eq!(backup.expect("disks without faults").snapshots, 2);
    let (copy, _) = Journal::open(target, small()).expect("a whole copy");
    assert_eq!(copy.load_snapshot("names").expect("whole").expect("it is there").blob, "new");
    assert!(copy.load_snapshot("ahead").expect("nothing is damaged").is_none());
    copy.close_blocking();
    journal.close_blocking();
}

#[test]
fn q09_a_damaged_journal_is_not_copied() {
    let disk = FaultyStorage::new(1);
    let journal = journal(&disk);
    let name = segments(&disk)[1].clone();
    assert!(disk.flip_bit(&name, 8 * 6_000));
    let backup = journal.backup_blocking(FaultyStorage::new(2), |_| {});
    let Err(BackupError::Read(ReadError::Corrupt(corruption))) = backup else { panic!("{backup:?}") };
    assert_eq!(corruption.file, name);
    journal.close_blocking();
}

#[test]
fn q09_a_check_tells_every_damage_and_changes_nothing_and_a_dump_goes_on_behind_it() {
    let disk = FaultyStorage::new(1);
    let journal = journal(&disk);
    let first = journal.first().as_u64();
    journal.close_blocking();
    let names = segments(&disk);
    let operations = disk.operations();
    let inspection = Inspection::new(disk.clone()).expect("a journal");
    let mut last = None;
    let checked = inspection.check(|progress| last = Some(progress)).expect("a disk that reads");
    assert!(checked.is_sound(), "{checked:?}");
    let last = last.expect("told");
    assert_eq!((last.bytes, last.total), (checked.bytes, checked.bytes));
    assert_eq!((checked.owner, checked.first.as_u64(), checked.next.as_u64()), (1, first, 100));
    assert_eq!((checked.records, checked.payload_bytes), (100 - first, (100 - first) * 1000));
    assert_eq!((checked.segments, checked.without_footer, checked.tail.clone()), (names.len(), 0, None));
    assert_eq!(checked.snapshots, [("state".to_owned(), Position::from_u64(40), 5)]);

    // In the second segment a record, two in a row in the third, its footer, and the header of the first.
    let record = |index: u64| 4096 + 1032 * index + 500;
    assert!(disk.flip_bit(&names[1], 8 * record(2)));
    assert!(disk.flip_bit(&names[2], 8 * record(4)) && disk.flip_bit(&names[2], 8 * record(5)));
    let size = disk.content(&names[2]).expect("it is there").len() as u64;
    assert!(disk.flip_bit(&names[2], 8 * (size - 10)));
    assert!(disk.flip_bit(&names[0], 8 * 20));
    let inspection = Inspection::new(disk.clone()).expect("a journal");
    let checked = inspection.check(|_| {}).expect("a disk that reads");
    let told: Vec<(&str, u64)> =
        checked.damages.iter().map(|damage| (damage.file.as_str(), damage.offset)).collect();
    let expected = [(&names[0], 0), (&names[1], record(2) - 500), (&names[2], record(4) - 500)];
    assert_eq!(told, expected.map(|(name, offset)| (name.as_str(), offset)), "{:?}", checked.damages);
    assert_eq!((checked.records, checked.without_footer, checked.damages_total), (100 - first - 3, 1, 3));
    let (mut read, mut damaged) = (Vec::new(), 0);
    for record in inspection.records(Position::from_u64(first + 2)).expect("a disk that reads") {
        match record {
            Ok(entry) => {
                assert_eq!(entry.payload, vec![entry.position.as_u64() as u8; 1000]);
                read.push(entry.position.as_u64());
            }
            Err(ReadError::Corrupt(_)) => damaged += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(
        (read.first(), read.last(), read.len() as u64, damaged),
        (Some(&(first + 2)), Some(&99), 95 - first, 2)
    );
    assert!(read.is_sorted());
    assert_eq!(disk.operations(), operations, "nothing was changed");
}

#[test]
fn q09_a_check_of_a_crashed_journal_tells_the_tail_that_opening_will_cut() {
    let disk = FaultyStorage::new(1);
    journal(&disk).close_blocking();
    let name = segments(&disk).pop().expect("there are some");
    let content = disk.content(&name).expect("it is there");
    let count = (content.len() as u64 - 4096) / 1032;
    assert!(count >= 2);
    // Half of the last record of the last batch.
    let first = Inspection::new(disk.clone()).expect("a journal").check(|_| {}).expect("it reads");
    let at = 4096 + 1032 * (records_in(&name) - 1);
    assert!(disk.flip_bit(&name, 8 * (at + 700)));
    let checked = Inspection::new(disk.clone()).expect("a journal").check(|_| {}).expect("it reads");
    assert!(checked.is_sound(), "{checked:?}");
    assert_eq!(checked.next.as_u64(), first.next.as_u64() - 1);
    let tail = checked.tail.expect("a torn tail");
    assert_eq!((tail.file.as_str(), tail.offset), (name.as_str(), at));
    let (_, recovered) = Journal::open(disk, small()).expect("a torn tail is no damage");
    assert_eq!((recovered.next, recovered.dropped), (checked.next, Some(tail)));
}

#[test]
fn q09_what_is_no_journal_is_said_to_be_none() {
    let disk = FaultyStorage::new(1);
    assert!(matches!(Inspection::new(disk.clone()).map(drop), Err(OpenError::NotAJournal { .. })));
    disk.create(&name_of(1, 0)).expect("a disk without faults");
    assert!(matches!(Inspection::new(disk).map(drop), Err(OpenError::NotAJournal { .. })));
}

fn segments(disk: &FaultyStorage) -> Vec<String> {
    let mut names = disk.list().expect("powered");
    names.retain(|name| name.ends_with(".segment"));
    names.sort();
    names
}

/// Of the 100 records, those in the last segment.
fn records_in(name: &str) -> u64 {
    let first: u64 = name[21..41].parse().expect("a segment's name");
    100 - first
}
