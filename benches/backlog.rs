//! What does a backlog cost: memory while it grows, while it is there and while it is worked off, and time to open?
//!
//! Set-up      one queue, put by 1,024 tasks, each put returns after the sync. Each phase is a process of its
//!             own, so that its memory is its own: *fill* puts them all and dies without closing; *open* drops the files from
//!             the system's cache, opens and takes the first message; *drain* takes them all and acknowledges them in random
//!             order, 1,000 at a time in hand. Memory is what is resident above the same process with an empty queue.
//! Blind spot  one queue, one size, no keys, no delays: those take more. Allocated memory that was freed counts as well.
//! Run         cargo bench -p benches --bench backlog [-- --messages N] [-- --directory DIR]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use quorate::journal::{Config, FileStorage};
use quorate::queue::{Queue, QueueConfig, Queues};

#[derive(Parser)]
struct Options {
    /// How many messages.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Bytes of each message.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// Where to write; a fresh sub-directory is made and removed. Default: the system's temporary directory.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Few messages, for a first look and for CI.
    #[arg(long)]
    quick: bool,
    /// One phase, in this directory. For the program's own use.
    #[arg(long, hide = true)]
    phase: Option<String>,
    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let options = Options::parse();
    let messages = if options.quick { options.messages.min(20_000) } else { options.messages };
    let base = options.directory.clone().unwrap_or_else(std::env::temp_dir);
    let Some(phase) = options.phase else {
        let directory = tempfile::tempdir_in(&base)?;
        println!("{messages} messages of {} bytes, each put returns after the sync", options.bytes);
        for phase in ["fill", "open", "drain"] {
            let status = Command::new(std::env::current_exe()?)
                .args(["--phase", phase, "--messages", &messages.to_string()])
                .args(["--bytes", &options.bytes.to_string(), "--directory"])
                .arg(directory.path())
                .status()?;
            if !status.success() {
                return Err(format!("{phase}: {status}").into());
            }
        }
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    match phase.as_str() {
        "fill" => runtime.block_on(fill(&base, messages, options.bytes)),
        "open" => runtime.block_on(open(&base, options.bytes)),
        _ => runtime.block_on(drain(&base, messages)),
    }?;
    // Not closed: the next phase finds what a crash leaves.
    std::process::exit(0);
}

async fn fill(directory: &Path, messages: u64, bytes: usize) -> Outcome<()> {
    let (_queues, queue) = backlog(directory).await?;
    let empty = resident_bytes()?;
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        let (queue, next) = (queue.clone(), next.clone());
        tasks.push(tokio::spawn(async move {
            let payload = Bytes::from(vec![7; bytes]);
            while next.fetch_add(1, Ordering::Relaxed) < messages {
                queue.put(payload.clone()).await.map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    report("fill", messages, start.elapsed(), empty)
}

async fn open(directory: &Path, bytes: usize) -> Outcome<()> {
    for entry in std::fs::read_dir(directory)? {
        let file = File::open(entry?.path())?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    let empty = resident_bytes()?;
    let start = Instant::now();
    let (_queues, queue) = backlog(directory).await?;
    let opened = start.elapsed();
    let first = queue.get(Duration::from_secs(60)).await?.ok_or("no message")?;
    assert_eq!(first.payload().len(), bytes);
    println!(
        "open  {:>10.1} ms to the first message, {:.1} ms of them opening, {:>8.1} MiB",
        start.elapsed().as_secs_f64() * 1e3,
        opened.as_secs_f64() * 1e3,
        mib(resident_bytes()?.saturating_sub(empty))
    );
    Ok(())
}

async fn drain(directory: &Path, messages: u64) -> Outcome<()> {
    let empty = resident_bytes()?;
    let (_queues, queue) = backlog(directory).await?;
    let start = Instant::now();
    let mut held = Vec::new();
    let (mut chance, mut taken) = (1_u64, 0);
    while taken < messages || !held.is_empty() {
        let wanted = HELD - held.len();
        if taken < messages && wanted > 0 {
            let got = queue.get_many(wanted, Duration::from_secs(60)).await?;
            taken += got.len() as u64;
            held.extend(got);
        }
        let mut under_way = Vec::new();
        for _ in 0..held.len().div_ceil(2) {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (chance >> 33) as usize % held.len();
            under_way.push(tokio::spawn(held.swap_remove(at).ack()));
        }
        for ack in under_way {
            ack.await??;
        }
    }
    report("drain", messages, start.elapsed(), empty)
}

async fn backlog(directory: &Path) -> Outcome<(Queues, Queue)> {
    let queues = Queues::open(FileStorage::open(directory)?, Config::new(1))?;
    let config = QueueConfig::new().messages_max(100_000_000).bytes_max(usize::MAX >> 1);
    let queue = queues.queue_with("backlog", config).await?;
    Ok((queues, queue))
}

fn report(phase: &str, messages: u64, time: Duration, empty: u64) -> Outcome<()> {
    println!(
        "{phase:<5} {:>10.0} messages/s, {:>8.1} MiB at the end, {:.1} MiB at most",
        messages as f64 / time.as_secs_f64(),
        mib(resident_bytes()?.saturating_sub(empty)),
        mib(status("VmHWM:")?.saturating_sub(empty))
    );
    Ok(())
}

fn resident_bytes() -> Outcome<u64> {
    status("VmRSS:")
}

fn status(name: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes << 10)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

const TASKS: usize = 1024;
const HELD: usize = 1000;
