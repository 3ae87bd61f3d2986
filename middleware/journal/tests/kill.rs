//! A real process writes, tells what was acknowledged, and is killed with SIGKILL again and again.
//!
//! The first test shows that a process may die at any moment. It does not show that anything was synced, because the
//! page cache outlives the process. The second one does: the journal lies in an ext4 file system inside an image file,
//! and what the image holds at the moment of the kill is what a power cut would have left. It needs root, loop devices
//! and `mkfs.ext4`; where these are missing it says so and passes.

#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use quorate_journal::{Config, FileStorage, Journal, Record};

#[test]
fn q02_process_killed_at_random_moments_loses_no_acknowledged_record() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut told = Told::default();
    let mut chance = Chance(1);
    for life in 0..25 {
        let acknowledged = told.run_and_kill(directory.path(), life, 1 + chance.below(400));
        let found = told.verify(directory.path());
        println!("life {life}: {acknowledged} acknowledged, {found} found in all");
    }
}

#[test]
fn q02_power_cut_under_a_real_file_system_loses_no_acknowledged_record() {
    let work = tempfile::tempdir().expect("a temporary directory");
    let image = work.path().join("image");
    let mount_point = work.path().join("disk");
    let copy = work.path().join("copy");
    let copy_mount_point = work.path().join("copy-disk");
    fs::create_dir(&mount_point).expect("a fresh directory");
    fs::create_dir(&copy_mount_point).expect("a fresh directory");
    fs::File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES)).expect("room for the image");
    if let Err(reason) = run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_os_str()]) {
        println!("skipped: {reason}");
        return;
    }
    let mut chance = Chance(2);
    let mut told = Told::default();
    for life in 0..6 {
        // No periodic commit of the file system's own journal: only our syncs bring anything to the image.
        let mounted = match Mount::new(&image, &mount_point, "loop,commit=600") {
            Ok(mounted) => mounted,
            Err(reason) if life == 0 => {
                println!("skipped: {reason}");
                return;
            }
            Err(reason) => panic!("{reason}"),
        };
        // The control: bytes that nobody synced. A new name each time, because ext4 flushes a file that is replaced.
        let control = format!("control-{life}");
        fs::write(mount_point.join(&control), vec![1; 100_000]).expect("room");
        let acknowledged = told.run_and_kill(&mount_point.join("journal"), life, 100 + chance.below(1500));
        fs::write(&copy, still_image(&image)).expect("room for the copy");
        drop(mounted);

        let mounted = Mount::new(&copy, &copy_mount_point, "loop").unwrap_or_else(|error| panic!("{error}"));
        let control = fs::metadata(copy_mount_point.join(&control)).map_or(0, |data| data.len());
        let found = told.verify(&copy_mount_point.join("journal"));
        drop(mounted);
        println!(
            "life {life}: {acknowledged} acknowledged, {found} found in all; of 100000 bytes without a sync, {control}"
        );
        // The next life goes on from what the power cut left.
        fs::rename(&copy, &image).expect("same directory");
    }
}

/// Not a test: the process that the others start and kill. Without its variable it has nothing to do.
#[test]
fn writer_that_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) else { return };
    let life: u64 = std::env::var(LIFE_VARIABLE).ok().and_then(|life| life.parse().ok()).expect("a number");
    let storage = FileStorage::open(directory).expect("the last process is dead");
    let (journal, _) = Journal::open(storage, config()).expect("a journal");
    // The test harness has begun a line that it does not end.
    std::io::stdout().lock().write_all(b"\n").expect("the parent reads");
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let journal = &journal;
            scope.spawn(move || {
                for serial in 0.. {
                    let appended = journal
                        .append_blocking(vec![Record::new(1, payload(life, writer, serial))])
                        .expect("a good disk");
                    // One write per line: a line is there whole or it is no line.
                    let line = format!("acknowledged {} {life} {writer} {serial}\n", appended.first);
                    std::io::stdout().lock().write_all(line.as_bytes()).expect("the parent reads");
                }
            });
        }
    });
}

/// What the writers said.
#[derive(Default)]
struct Told {
    /// Position, life, writer, serial.
    acknowledged: Vec<(u64, u64, u64, u64)>,
}

impl Told {
    /// Starts a writer and kills it when it has told of `count` acknowledgements; takes in all that it told.
    fn run_and_kill(&mut self, directory: &Path, life: u64, count: u64) -> usize {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "writer_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY_VARIABLE, directory)
            .env(LIFE_VARIABLE, life.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("this test starts itself");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let before = self.acknowledged.len();
        let mut line = String::new();
        let mut is_killed = false;
        while lines.read_line(&mut line).expect("text") > 0 {
            // The last line may be cut; what it tells was acknowledged, but cannot be read.
            if let Some(told) = line.strip_suffix('\n').and_then(parse) {
                self.acknowledged.push(told);
            }
            line.clear();
            if !is_killed && self.acknowledged.len() - before >= count as usize {
                child.kill().expect("it runs");
                is_killed = true;
            }
        }
        child.wait().expect("it ran");
        assert!(is_killed, "the writer ended by itself");
        self.acknowledged.len() - before
    }

    /// Opens the journal and looks for everything that was acknowledged; returns how many records there are.
    fn verify(&self, directory: &Path) -> usize {
        let storage = FileStorage::open(directory).expect("the writer is dead");
        let (journal, recovered) = Journal::open(storage, config()).expect("a journal");
        let records: Vec<_> =
            journal.read(recovered.first).collect::<Result<_, _>>().expect("what was recovered can be read");
        assert_eq!(records.len() as u64, recovered.next.as_u64());
        for (position, life, writer, serial) in &self.acknowledged {
            let record = records.get(*position as usize).unwrap_or_else(|| {
                panic!("position {position} is missing of {}: {:?}", records.len(), recovered.dropped)
            });
            assert_eq!(record.position.as_u64(), *position);
            assert!(record.payload == payload(*life, *writer, *serial), "other bytes at {position}");
        }
        // Nothing is invented or doubled, and each writer's records keep their order.
        let distinct: BTreeSet<&[u8]> = records.iter().map(|record| &record.payload[..24]).collect();
        assert_eq!(distinct.len(), records.len());
        for writer in 0..WRITERS {
            let of_writer = records.iter().filter(|record| record.payload[8..16] == writer.to_be_bytes());
            assert!(of_writer.map(|record| &record.payload[..24]).is_sorted());
        }
        journal.close_blocking();
        records.len()
    }
}

/// Some hundred bytes that say whose they are, and can be compared in their order.
fn payload(life: u64, writer: u64, serial: u64) -> Vec<u8> {
    let mut payload = [life, writer, serial].map(u64::to_be_bytes).concat();
    payload.resize(24 + (serial as usize * 37) % 900, serial as u8);
    payload
}

fn parse(line: &str) -> Option<(u64, u64, u64, u64)> {
    let mut words = line.split(' ');
    if words.next() != Some("acknowledged") {
        return None;
    }
    let mut number = || words.next()?.parse().ok();
    Some((number()?, number()?, number()?, number()?))
}

fn config() -> Config {
    Config::new(5).segment_bytes(256 << 10).zero_fill_bytes(32 << 10)
}

/// The image's bytes at one moment: read until two readings agree, because a commit of the file system may still be on
/// its way when the process that asked for it is dead.
fn still_image(image: &Path) -> Vec<u8> {
    let mut last = fs::read(image).expect("the image");
    for _ in 0..100 {
        let next = fs::read(image).expect("the image");
        if next == last {
            return next;
        }
        last = next;
    }
    panic!("the image does not come to rest");
}

/// A mounted image; unmounted when dropped, also by a failing test.
struct Mount {
    mount_point: PathBuf,
}

impl Mount {
    fn new(image: &Path, mount_point: &Path, options: &str) -> Result<Self, String> {
        run("mount", &["-o".as_ref(), options.as_ref(), image.as_os_str(), mount_point.as_os_str()])?;
        Ok(Self { mount_point: mount_point.to_owned() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let path = self.mount_point.as_os_str();
        if let Err(reason) = run("umount", &[path]) {
            println!("{reason}");
            // Busy: it goes when the last file in it is closed.
            let _ = run("umount", &["-l".as_ref(), path]);
        }
    }
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        // Where mkfs and its like are, even if the user's path does not say so.
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
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

const DIRECTORY_VARIABLE: &str = "QUORATE_JOURNAL_WRITER_DIRECTORY";
const LIFE_VARIABLE: &str = "QUORATE_JOURNAL_WRITER_LIFE";
const WRITERS: u64 = 4;
const IMAGE_BYTES: u64 = 24 << 20;
