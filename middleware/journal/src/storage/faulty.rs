//! A simulated disk that fails as real ones do, repeatable from a seed.
//!
//! Purpose     crash a program at every single disk operation of a history, and look at what a restart finds.
//! Model       each file has what is in the cache and what is on the disk. A write reaches the cache; a sync copies
//!             the file to the disk. A crash keeps, of all sectors (512 bytes) written since, a random subset, in no
//!             order; a sector that never was on the disk reads as zeros or as garbage. Names obey the same law with
//!             the directory's sync: each changed name shows its old or its new file, independently. (That is
//!             harsher than ext4 or XFS, whose journals keep names in order.)
//! Sync fails  as on Linux: an error, the pages are marked clean, some of them reached the disk; reading still shows
//!             the new bytes, and the next sync reports success without writing them.
//! Limits      a sector is never torn inside; contents live in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use super::memory::{copy_in, copy_out, lock};
use super::{Storage, StorageFile};

/// The simulated disk. Clones are handles of the same disk.
#[derive(Debug, Clone)]
pub struct FaultyStorage {
    disk: Arc<Mutex<Disk>>,
}

/// What the disk does wrong, besides crashing when told to. The default does nothing wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads and writes transfer fewer bytes than asked for, or are interrupted, now and then.
    pub short_transfers: bool,
    /// The cache writes random sectors back on its own between operations.
    pub write_back: bool,
    /// After a crash, sectors that never reached the disk may hold garbage instead of zeros.
    pub garbage: bool,
    /// The size of the disk. A write beyond it stores what fits, then fails as "no space".
    pub capacity_bytes: Option<u64>,
}

impl FaultyStorage {
    /// An empty disk without faults whose chance comes from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_faults(seed, Faults::default())
    }

    /// An empty disk with `faults`.
    pub fn with_faults(seed: u64, faults: Faults) -> Self {
        Self {
            disk: Arc::new(Mutex::new(Disk {
                chance: Chance(seed),
                faults,
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                files: BTreeMap::new(),
                next_file: 0,
                operations: 0,
                syncs: 0,
                bytes_read: 0,
                crash_at: None,
                fail_at: None,
                fail_sync: None,
                is_crashed: false,
            })),
        }
    }

    /// Changes the faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.disk).faults = faults;
    }

    /// How many operations have changed or synced something so far. Reads are not counted.
    pub fn operations(&self) -> u64 {
        lock(&self.disk).operations
    }

    /// How many syncs of files and of the directory there were.
    pub fn syncs(&self) -> u64 {
        lock(&self.disk).syncs
    }

    /// How many files were made so far.
    pub fn files_created(&self) -> u64 {
        lock(&self.disk).next_file
    }

    /// How many bytes were read so far.
    pub fn bytes_read(&self) -> u64 {
        lock(&self.disk).bytes_read
    }

    /// Cuts the power in the middle of the operation with this number (the first is 0): it and all that follow
    /// fail.
    pub fn crash_at(&self, operation: u64) {
        lock(&self.disk).crash_at = Some(operation);
    }

    /// Fails the operation with this number with an input/output error, once.
    pub fn fail_at(&self, operation: u64) {
        lock(&self.disk).fail_at = Some(operation);
    }

    /// Fails a sync of a file or of the directory, once: the one with this number (the first is 0).
    pub fn fail_sync(&self, sync: u64) {
        lock(&self.disk).fail_sync = Some(sync);
    }

    /// True when the power is off.
    pub fn is_crashed(&self) -> bool {
        lock(&self.disk).is_crashed
    }

    /// Cuts the power and gives the disk as the next start finds it. All handles of this one fail from now on.
    pub fn crash(&self) -> Self {
        let mut disk = lock(&self.disk);
        disk.is_crashed = true;
        Self { disk: Arc::new(Mutex::new(disk.survivor())) }
    }

    /// The bytes of a file as a reader sees them.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let disk = lock(&self.disk);
        Some(disk.files.get(disk.names.get(name)?)?.cache.clone())
    }

    /// Flips one bit of a file, on the disk and in the cache; false when there is no such bit.
    pub fn flip_bit(&self, name: &str, bit: u64) -> bool {
        let mut disk = lock(&self.disk);
        let Some(id) = disk.names.get(name).copied() else { return false };
        let Some(file) = disk.files.get_mut(&id) else { return false };
        let at = (bit / 8) as usize;
        if at >= file.cache.len() {
            return false;
        }
        let mask = 1 << (bit % 8);
        file.cache[at] ^= mask;
        if let Some(byte) = file.disk.get_mut(at) {
            *byte ^= mask;
        }
        true
    }
}

impl Storage for FaultyStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = lock(&self.disk);
        let verdict = disk.step()?;
        let id = disk.next_file;
        disk.next_file += 1;
        disk.files.insert(id, File::default());
        disk.names.insert(name.to_owned(), id);
        verdict?;
        Ok(Arc::new(Handle { disk: self.disk.clone(), file: id }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let disk = lock(&self.disk);
        disk.powered()?;
        let file = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Handle { disk: self.disk.clone(), file }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let disk = lock(&self.disk);
        disk.powered()?;
        Ok(disk.names.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let verdict = disk.step()?;
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        verdict
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let verdict = disk.step()?;
        let file = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), file);
        verdict
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let verdict = disk.step_sync()?;
        if verdict.is_ok() {
            disk.durable_names = disk.names.clone();
        }
        verdict
    }
}

#[derive(Debug)]
struct Handle {
    disk: Arc<Mutex<Disk>>,
    file: u64,
}

impl StorageFile for Handle {
    fn size(&self) -> io::Result<u64> {
        let mut disk = lock(&self.disk);
        disk.powered()?;
        Ok(disk.file(self.file)?.cache.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        disk.powered()?;
        let asked = disk.transfer(buffer.len())?;
        let read = copy_out(&disk.file(self.file)?.cache, &mut buffer[..asked], offset);
        disk.bytes_read += read as u64;
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        let verdict = disk.step()?;
        let mut count = disk.transfer(bytes.len())?;
        if verdict.is_err() {
            // A failed write leaves some of its bytes in the cache.
            count = disk.chance.below(bytes.len() as u64 + 1) as usize;
        }
        if let Some(capacity) = disk.faults.capacity_bytes {
            let used: u64 = disk.names.values().map(|id| disk.files[id].cache.len() as u64).sum();
            let size = disk.file(self.file)?.cache.len() as u64;
            let room = (size + capacity.saturating_sub(used)).saturating_sub(offset);
            count = count.min(room as usize);
            if count == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        disk.file(self.file)?.write(&bytes[..count], offset);
        disk.write_back();
        verdict?;
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        match disk.step_sync()? {
            Ok(()) => disk.file(self.file)?.sync(),
            Err(error) => {
                let keep = disk.chance.draw_share();
                let Disk { files, chance, .. } = &mut *disk;
                if let Some(file) = files.get_mut(&self.file) {
                    file.flush_some(chance, keep);
                    file.dirty.clear();
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Disk {
    chance: Chance,
    faults: Faults,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    files: BTreeMap<u64, File>,
    next_file: u64,
    operations: u64,
    syncs: u64,
    bytes_read: u64,
    crash_at: Option<u64>,
    fail_at: Option<u64>,
    fail_sync: Option<u64>,
    is_crashed: bool,
}

impl Disk {
    fn powered(&self) -> io::Result<()> {
        if self.is_crashed { Err(io::Error::other("simulated power failure")) } else { Ok(()) }
    }

    /// Counts an operation. The outer error says that it has no effect at all; the inner one that it fails after
    /// having had some.
    fn step(&mut self) -> io::Result<io::Result<()>> {
        self.powered()?;
        let operation = self.operations;
        self.operations += 1;
        if self.crash_at.is_some_and(|at| operation >= at) {
            self.is_crashed = true;
            return Ok(self.powered());
        }
        if self.fail_at == Some(operation) {
            return Ok(Err(io::Error::other("simulated input/output error")));
        }
        Ok(Ok(()))
    }

    fn step_sync(&mut self) -> io::Result<io::Result<()>> {
        let sync = self.syncs;
        self.syncs += 1;
        match self.step()? {
            Ok(()) if self.fail_sync == Some(sync) => Ok(Err(io::Error::other("simulated sync failure"))),
            verdict => Ok(verdict),
        }
    }

    fn file(&mut self, id: u64) -> io::Result<&mut File> {
        self.files.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// How many of `asked` bytes are transferred this time.
    fn transfer(&mut self, asked: usize) -> io::Result<usize> {
        if !self.faults.short_transfers || asked == 0 {
            return Ok(asked);
        }
        match self.chance.below(8) {
            0 => Err(io::ErrorKind::Interrupted.into()),
            1 => Ok(1 + self.chance.below(asked as u64) as usize),
            _ => Ok(asked),
        }
    }

    fn write_back(&mut self) {
        if self.faults.write_back && self.chance.below(4) == 0 {
            let Self { files, chance, .. } = self;
            for file in files.values_mut() {
                file.flush_some(chance, 128);
            }
        }
    }

    /// The disk after the power came back.
    fn survivor(&mut self) -> Self {
        let share = self.chance.draw_share();
        let mut names = BTreeMap::new();
        let mentioned: BTreeSet<&String> = self.names.keys().chain(self.durable_names.keys()).collect();
        for name in mentioned {
            let kept = if self.chance.hits(share) { &self.names } else { &self.durable_names };
            if let Some(file) = kept.get(name) {
                names.insert(name.clone(), *file);
            }
        }
        let share = self.chance.draw_share();
        let mut files = BTreeMap::new();
        for id in names.values() {
            if let Some(file) = self.files.get(id) {
                files.insert(*id, file.survivor(&mut self.chance, share, self.faults.garbage));
            }
        }
        Self {
            chance: Chance(self.chance.next()),
            faults: self.faults,
            durable_names: names.clone(),
            names,
            files,
            next_file: self.next_file,
            operations: 0,
            syncs: 0,
            bytes_read: 0,
            crash_at: None,
            fail_at: None,
            fail_sync: None,
            is_crashed: false,
        }
    }
}

#[derive(Debug, Default, Clone)]
struct File {
    cache: Vec<u8>,
    disk: Vec<u8>,
    /// Sectors whose cached content has not been written to the disk.
    dirty: BTreeSet<usize>,
}

impl File {
    fn write(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        // A hole between the old end and the write is dirty too: its size is not durable yet.
        let from = (offset as usize).min(self.cache.len());
        copy_in(&mut self.cache, bytes, offset);
        let last = offset as usize + bytes.len() - 1;
        self.dirty.extend(from / SECTOR_BYTES..=last / SECTOR_BYTES);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.flush(sector);
        }
    }

    fn flush(&mut self, sector: usize) {
        let from = sector * SECTOR_BYTES;
        let to = (from + SECTOR_BYTES).min(self.cache.len());
        if from < to {
            let Self { cache, disk, .. } = self;
            copy_in(disk, &cache[from..to], from as u64);
        }
    }

    /// Writes each dirty sector back with a chance of `share` in 256. Those beyond the size on disk stay: only a
    /// sync commits a size.
    fn flush_some(&mut self, chance: &mut Chance, share: u64) {
        let dirty: Vec<usize> = self.dirty.iter().copied().collect();
        for sector in dirty {
            if (sector + 1) * SECTOR_BYTES <= self.disk.len() && chance.hits(share) {
                self.flush(sector);
                self.dirty.remove(&sector);
            }
        }
    }

    fn survivor(&self, chance: &mut Chance, share: u64, garbage: bool) -> Self {
        let mut after = self.clone();
        if self.cache.len() > self.disk.len() {
            // The new size survives or not, or a size in between does.
            let grown = self.cache.len() - self.disk.len();
            let size = self.disk.len()
                + match chance.below(3) {
                    0 => 0,
                    1 => grown,
                    _ => chance.below(grown as u64 + 1) as usize,
                };
            let old = after.disk.len();
            after.disk.resize(size, 0);
            if garbage && chance.below(2) == 0 {
                for byte in &mut after.disk[old..] {
                    *byte = chance.next() as u8;
                }
            }
        }
        let size = after.disk.len();
        for sector in &self.dirty {
            if chance.hits(share) {
                after.flush(*sector);
                after.disk.truncate(size);
            }
        }
        after.dirty.clear();
        after.cache.clone_from(&after.disk);
        after
    }
}

/// SplitMix64 (Steele, Lea & Flood 2014): enough chance for a simulated disk, and no dependency.
#[derive(Debug, Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn hits(&mut self, share: u64) -> bool {
        self.below(256) < share
    }

    /// How much survives this time: nothing, everything, or something between. Drawn once per crash, because a
    /// fixed half would almost never keep or lose a whole batch.
    fn draw_share(&mut self) -> u64 {
        [0, 32, 128, 224, 256][self.below(5) as usize]
    }
}

const SECTOR_BYTES: usize = 512;
