//! A simulated disk, a log on it, and the truth that both are compared with.

use std::ops::Range;

use crate::{
    AppendError, Config, Faults, FaultyStorage, Log, OpenError, Position, Record, Recovered, Storage,
};

/// A disk, the log on it, and what must be true of them.
pub(super) struct World {
    seed: u64,
    pub(super) chance: Chance,
    pub(super) disk: FaultyStorage,
    pub(super) log: Option<Log>,
    /// The payload at each position, from the start of time; acknowledged up to `acknowledged`.
    payloads: Vec<Vec<u8>>,
    /// Where appends end: recovery must stop at one of these.
    ends: Vec<usize>,
    acknowledged: usize,
    /// Handed to the system up to here: survives the process.
    written: usize,
    /// Truncation may have dropped all before this.
    truncated: usize,
    /// Snapshots that may be found: the last acknowledged one, and the one being written.
    snapshots: Vec<Option<(u64, Vec<u8>)>>,
    serial: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
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
            written: 0,
            truncated: 0,
            snapshots: vec![None],
            serial: 0,
        }
    }

    /// The power comes back.
    pub(super) fn restart(&mut self) {
        self.log = None;
        self.disk = self.disk.crash();
    }

    /// The process dies; the machine does not.
    pub(super) fn restart_process(&mut self) {
        self.log = None;
        self.acknowledged = self.acknowledged.max(self.written);
    }

    /// Opens the log if needed, checks it, and does some steps; the error is the disk's.
    pub(super) fn live(&mut self, steps: usize) -> Result<(), String> {
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
        match chance.below(13) {
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
            10 => self.written = log.write()?.as_u64() as usize,
            11 => {
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

    /// Returns where in the last segment the record went.
    pub(super) fn append_and_commit(&mut self) -> Range<u64> {
        let log = self.log.as_mut().expect("opened");
        self.acknowledged = log.commit().expect("a disk without faults").as_u64() as usize;
        let payload = vec![9; 100];
        log.append(&[Record::new(1, payload.clone())]).expect("room");
        let bytes = log.unwritten_bytes() as u64;
        self.payloads.push(payload);
        self.ends.push(self.payloads.len());
        self.acknowledged = log.commit().expect("a disk without faults").as_u64() as usize;
        log.end() - bytes..log.end()
    }

    /// Compares what an opening found with what must and may be there, and takes it for the truth from now on.
    pub(super) fn check(&mut self, log: &Log, recovered: &Recovered) {
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
        let mut reader = log.read(recovered.first);
        for _ in 0..if first < next { 8 } else { 0 } {
            let at = first + self.chance.below((next - first) as u64) as usize;
            reader.seek(Position::from_u64(at as u64));
            let entry =
                reader.next().expect("it is there").unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
            assert_eq!(entry.position.as_u64() as usize, at, "seed {seed}");
            assert!(entry.payload == self.payloads[at], "seed {seed}: other bytes at {at}");
        }
        let snapshot = log.load_snapshot("state").unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        let snapshot = snapshot.map(|found| (found.position.as_u64(), found.blob.to_vec()));
        assert!(self.snapshots.contains(&snapshot), "seed {seed}: {snapshot:?} of {:?}", self.snapshots);
        self.snapshots = vec![snapshot];
        self.payloads.truncate(next);
        self.ends.retain(|end| *end <= next);
        self.acknowledged = next;
        self.written = next;
    }

    pub(super) fn segment_names(&self) -> Vec<String> {
        let mut names = self.disk.list().expect("powered");
        names.retain(|name| name.ends_with(".segment"));
        names.sort();
        names
    }
}

pub(super) fn config(seed: u64) -> Config {
    Config::new(1)
        .segment_bytes([12 << 10, 16 << 10, 64 << 10][(seed % 3) as usize])
        .zero_fill_bytes([0, 1000, 8 << 10][(seed / 3 % 3) as usize])
        .batch_bytes_max(8 << 10)
}

pub(super) fn open(disk: &FaultyStorage, owner: u64) -> (Log, Recovered) {
    Log::open(disk.clone(), Config::new(owner)).expect("a disk without faults")
}

pub(super) fn name_of(number: u64, first: u64) -> String {
    format!("{number:020}-{first:020}.segment")
}

pub(super) fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match (number("QUORATE_SEED"), number("QUORATE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count_asked) => 0..count_asked.unwrap_or(count),
    }
}

/// SplitMix64.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}
