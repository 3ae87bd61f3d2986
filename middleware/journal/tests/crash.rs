//! The simulated disk is crashed at every operation of random histories, and fails at every operation of others.
//!
//! What must hold after each restart: every acknowledged record is there with its bytes; what else is there is a
//! whole prefix, append by append, of what was being written; nothing follows a hole; the snapshot is the old one or
//! the new one. `QUORATE_SEED=n` runs one seed only, `QUORATE_SEEDS=n` runs more of them.

use quorate_journal::{
    AppendError, Config, DropReason, Faults, FaultyStorage, Log, OpenError, Position, Record, Recovered,
};

#[test]
fn q02_crash_at_every_disk_operation_keeps_every_acknowledged_record_and_invents_none() {
    let crashes: u64 = seeds(200).map(crash_everywhere).sum();
    println!("{crashes} histories crashed");
}

/// An empty segment whose removal was not synced came back two crashes later, after a truncation had dropped the
/// segment behind it, and the log did not join any more.
#[test]
fn q02_removed_empty_segment_does_not_come_back_behind_a_truncation() {
    crash_everywhere(2883);
}

/// The same history again and again, cut one operation later each time, until it is not cut any more; returns how
/// often.
fn crash_everywhere(seed: u64) -> u64 {
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
        world.live(4).unwrap_or_else(|error| panic!("seed {seed}, crash at {crash_at}: {error}"));
        if !is_cut {
            return crash_at;
        }
    }
    0
}

#[test]
fn q02_failure_of_any_operation_poisons_and_loses_nothing_even_without_a_power_cut() {
    let mut poisoned = 0;
    for seed in seeds(40) {
        for fail_at in 0.. {
            let mut world = World::new(seed);
            world.disk.fail_at(fail_at);
            let outcome = world.live(25);
            if outcome.is_ok() {
                break;
            }
            poisoned += 1;
            if let Some(log) = &mut world.log {
                let operations = world.disk.operations();
                assert!(matches!(log.append(&[]), Err(AppendError::Poisoned(_))), "seed {seed}");
                assert!(matches!(log.commit(), Err(AppendError::Poisoned(_))), "seed {seed}");
                assert_eq!(world.disk.operations(), operations, "seed {seed}: nothing is retried");
            }
            // The process starts again; the machine does not: its cache shows bytes that never reached the disk.
            world.log = None;
            world.live(5).unwrap_or_else(|error| panic!("seed {seed}, failure at {fail_at}: {error}"));
            world.restart();
            world.live(3).unwrap_or_else(|error| panic!("seed {seed}, failure at {fail_at}: {error}"));
        }
    }
    assert!(poisoned > 1000, "{poisoned}");
}

#[test]
fn q02_flipped_bit_before_the_last_batch_is_refused_with_file_and_offset_or_harmless() {
    let mut refused = 0;
    for seed in seeds(200) {
        let mut world = World::new(seed);
        world.disk.set_faults(Faults::default());
        if world.live(30).is_err() {
            panic!("seed {seed}: a disk without faults");
        }
        // One more batch behind: it proves that all before it is durable.
        world.append_and_commit();
        let names = world.segment_names();
        let name = &names[world.chance.below(names.len() as u64) as usize];
        let size = world.disk.content(name).map_or(0, |content| content.len());
        let last_batch = world.last_batch_bytes + 4096;
        let bit = world.chance.below(8 * size as u64);
        if Some(name) == names.last() && bit / 8 + last_batch as u64 >= world.written_end(name) {
            continue;
        }
        assert!(world.disk.flip_bit(name, bit));
        world.log = None;
        match Log::open(world.disk.clone(), config(seed)) {
            Err(OpenError::Corrupt(corruption)) => {
                assert_eq!(&corruption.file, name);
                assert!(corruption.offset <= bit / 8, "seed {seed}: {corruption} for bit {bit}");
                refused += 1;
            }
            Err(OpenError::NotAJournal { file } | OpenError::Version { file, .. }) => {
                assert_eq!(&file, name);
                refused += 1;
            }
            // The flip hit padding or zeros: then nothing may be missing.
            Ok((log, recovered)) => world.check(&log, &recovered),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    println!("{refused} refused");
    assert!(refused > 0);
}

#[test]
fn q02_hole_in_the_last_batch_cuts_there_and_says_so() {
    let disk = FaultyStorage::new(1);
    let (mut log, _) = open(&disk, 1);
    for _ in 0..3 {
        log.append(&[Record::new(1, vec![1; 600])]).expect("room");
    }
    log.commit().expect("a disk without faults");
    let name = format!("{:020}.segment", 1);
    // The second record's payload; the third stays whole.
    assert!(disk.flip_bit(&name, 8 * (4096 + 632 + 100)));
    drop(log);
    let (log, recovered) = open(&disk, 1);
    assert_eq!(recovered.next, Position::from_u64(1));
    let dropped = recovered.dropped.expect("two records were cut");
    // The last bytes of the third record's payload count, its padding does not.
    assert_eq!((dropped.file, dropped.offset, dropped.bytes), (name, 4096 + 632, 2 * 632));
    assert_eq!(dropped.reason, DropReason::Torn);
    assert_eq!(log.read(Position::ZERO).count(), 1);
    drop(log);
    let (_, recovered) = open(&disk, 1);
    assert_eq!((recovered.next, recovered.dropped), (Position::from_u64(1), None), "and the cut is final");
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
    let name = format!("{:020}.segment", 1);
    assert!(disk.flip_bit(&name, 8 * 8 + 1));
    match Log::open(disk.clone(), Config::new(1)).map(|_| ()) {
        Err(OpenError::Version { found: 3, supported: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(disk.flip_bit(&name, 8 * 8 + 1) && disk.flip_bit(&name, 0));
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
fn segment_missing_in_the_middle_is_refused() {
    use quorate_journal::Storage;
    let disk = FaultyStorage::new(1);
    let (mut log, _) = Log::open(disk.clone(), Config::new(1).segment_bytes(8 << 10)).expect("an empty disk");
    for _ in 0..20 {
        log.append(&[Record::new(1, vec![1; 1000])]).expect("room");
        log.commit().expect("a disk without faults");
    }
    drop(log);
    disk.remove(&format!("{:020}.segment", 2)).expect("it is there");
    match Log::open(disk, Config::new(1)).map(|_| ()) {
        Err(OpenError::Corrupt(corruption)) => assert_eq!(corruption.file, format!("{:020}.segment", 1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn record_from_another_segments_life_is_not_taken() {
    use quorate_journal::Storage;
    let disk = FaultyStorage::new(1);
    let (mut log, _) = open(&disk, 1);
    log.append(&[Record::new(1, "old")]).expect("room");
    log.commit().expect("a disk without faults");
    drop(log);
    let (log, recovered) = open(&disk, 1);
    drop(log);
    assert_eq!(recovered.next, Position::from_u64(1));
    // The old record's bytes, as a file used again would show them; only the position is made to fit.
    let old = disk.content(&format!("{:020}.segment", 1)).expect("it is there");
    let mut stale = old[4096..4096 + 40].to_vec();
    stale[8] = 1;
    let crc = crc32c::crc32c(&stale[4..35]);
    stale[..4].copy_from_slice(&crc.to_le_bytes());
    let file = disk.open(&format!("{:020}.segment", 2)).expect("it is there");
    file.write_at(&stale, 4096).expect("a disk without faults");
    let (_, recovered) = open(&disk, 1);
    assert_eq!(recovered.next, Position::from_u64(1));
    assert!(recovered.dropped.is_some());
}

#[test]
fn wrong_settings_are_named() {
    let disk = FaultyStorage::new(1);
    let error = Log::open(disk.clone(), Config::new(1).segment_bytes(100)).map(|_| ());
    assert!(matches!(error, Err(OpenError::Config { field: "segment_bytes", .. })), "{error:?}");
    assert_eq!(disk.operations(), 0);
}

/// A disk, the log on it, and what must be true of them.
struct World {
    seed: u64,
    chance: Chance,
    disk: FaultyStorage,
    log: Option<Log>,
    /// The payload at each position, from the start of time; acknowledged up to `acknowledged`.
    payloads: Vec<Vec<u8>>,
    /// Where appends end: recovery must stop at one of these.
    ends: Vec<usize>,
    acknowledged: usize,
    /// Truncation may have dropped all before this.
    truncated: usize,
    /// Snapshots that may be found: the last acknowledged one, and the one being written.
    snapshots: Vec<Option<(u64, Vec<u8>)>>,
    serial: u64,
    last_batch_bytes: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let faults = Faults {
            short_transfers: chance.below(2) == 0,
            write_back: chance.below(2) == 0,
            garbage: chance.below(2) == 0,
            capacity_bytes: None,
        };
        Self {
            seed,
            chance,
            disk: FaultyStorage::with_faults(seed, faults),
            log: None,
            payloads: Vec::new(),
            ends: vec![0],
            acknowledged: 0,
            truncated: 0,
            snapshots: vec![None],
            serial: 0,
            last_batch_bytes: 0,
        }
    }

    /// The power comes back.
    fn restart(&mut self) {
        self.log = None;
        self.disk = self.disk.crash();
    }

    /// Opens the log if needed, checks it, and does some steps; the error is the disk's.
    fn live(&mut self, steps: usize) -> Result<(), String> {
        if self.log.is_none() {
            let (log, recovered) = match Log::open(self.disk.clone(), config(self.seed)) {
                Ok(opened) => opened,
                Err(OpenError::Io { source, .. }) => return Err(source.to_string()),
                Err(error) => panic!("seed {}: {error:?}", self.seed),
            };
            self.check(&log, &recovered);
            self.log = Some(log);
        }
        for _ in 0..steps {
            self.step().map_err(|error| match error {
                AppendError::Poisoned(failure) => failure.to_string(),
                error => panic!("seed {}: {error:?}", self.seed),
            })?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), AppendError> {
        let Self { chance, log, .. } = self;
        let log = log.as_mut().expect("opened");
        match chance.below(12) {
            0..=5 => {
                let count = 1 + chance.below(3);
                let mut records = Vec::new();
                for _ in 0..count {
                    let size = [0, 1, 40, 511, 900, 2000][chance.below(6) as usize];
                    self.serial += 1;
                    let mut payload = vec![self.serial as u8; size + 8];
                    payload[..8].copy_from_slice(&self.serial.to_le_bytes());
                    records.push(Record::new(count as u16, payload.clone()));
                    self.payloads.push(payload);
                }
                self.ends.push(self.payloads.len());
                log.append(&records)?;
            }
            6..=9 => self.acknowledged = log.commit()?.as_u64() as usize,
            10 => {
                let before = chance.below(self.acknowledged as u64 + 1);
                self.truncated = self.truncated.max(before as usize);
                log.truncate_before(Position::from_u64(before))?;
            }
            _ => {
                self.serial += 1;
                let position = log.next();
                let blob = vec![self.serial as u8; chance.below(1500) as usize];
                self.snapshots.push(Some((position.as_u64(), blob.clone())));
                log.save_snapshot("state", position, &blob)?;
                self.acknowledged = position.as_u64() as usize;
                self.snapshots.drain(..self.snapshots.len() - 1);
            }
        }
        Ok(())
    }

    fn append_and_commit(&mut self) {
        let log = self.log.as_mut().expect("opened");
        self.acknowledged = log.commit().expect("a disk without faults").as_u64() as usize;
        let payload = vec![9; 100];
        log.append(&[Record::new(1, payload.clone())]).expect("room");
        self.last_batch_bytes = log.uncommitted_bytes();
        self.payloads.push(payload);
        self.ends.push(self.payloads.len());
        self.acknowledged = log.commit().expect("a disk without faults").as_u64() as usize;
    }

    /// Compares what an opening found with what must and may be there, and takes it for the truth from now on.
    fn check(&mut self, log: &Log, recovered: &Recovered) {
        let seed = self.seed;
        let next = recovered.next.as_u64() as usize;
        let first = recovered.first.as_u64() as usize;
        assert!(next >= self.acknowledged, "seed {seed}: {} acknowledged, {next} found", self.acknowledged);
        assert!(self.ends.contains(&next), "seed {seed}: {next} is inside an append ({:?})", self.ends);
        assert!(first <= self.truncated, "seed {seed}: starts at {first}, truncated at {}", self.truncated);
        let mut at = first;
        for entry in log.read(recovered.first) {
            let entry = entry.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
            assert_eq!(entry.position.as_u64() as usize, at, "seed {seed}");
            assert!(entry.payload == self.payloads[at], "seed {seed}: other bytes at {at}");
            at += 1;
        }
        assert_eq!(at, next, "seed {seed}");
        let snapshot = log.load_snapshot("state").unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        let snapshot = snapshot.map(|found| (found.position.as_u64(), found.blob.to_vec()));
        assert!(self.snapshots.contains(&snapshot), "seed {seed}: {snapshot:?} of {:?}", self.snapshots);
        self.snapshots = vec![snapshot];
        self.payloads.truncate(next);
        self.ends.retain(|end| *end <= next);
        self.acknowledged = next;
    }

    fn segment_names(&self) -> Vec<String> {
        use quorate_journal::Storage;
        let mut names = self.disk.list().expect("powered");
        names.retain(|name| name.ends_with(".segment"));
        names.sort();
        names
    }

    fn written_end(&self, name: &str) -> u64 {
        let content = self.disk.content(name).unwrap_or_default();
        content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
    }
}

fn config(seed: u64) -> Config {
    Config::new(1)
        .segment_bytes([12 << 10, 16 << 10, 64 << 10][(seed % 3) as usize])
        .zero_fill_bytes([0, 1000, 8 << 10][(seed / 3 % 3) as usize])
        .batch_bytes_max(8 << 10)
}

fn open(disk: &FaultyStorage, owner: u64) -> (Log, Recovered) {
    Log::open(disk.clone(), Config::new(owner)).expect("a disk without faults")
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match (number("QUORATE_SEED"), number("QUORATE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count_asked) => 0..count_asked.unwrap_or(count),
    }
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}
