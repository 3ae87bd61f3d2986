//! How many records per second does the journal make durable, how many messages a queue, and what does a lone writer wait?
//!
//! Set-up      1 KiB records in one directory; an append counts when its future resolved, that is after the sync.
//!             1, 64 and 1,024 tasks append in a closed loop, or put messages into a queue, or take and acknowledge what was
//!             put before in batches. In the same round, on the same disk: a bare loop that
//!             writes 1 KiB into a zero-filled file and calls fdatasync, and the naive log that grows a file and
//!             syncs once per record. Every figure is the median of the rounds.
//! Blind spot  the writers share the machine's cores with the committer; one directory, one disk; what the disk does
//!             with a flush is its own affair. The bare figure swings with whatever else the machine does, so
//!             compare within one run only.
//! Run         cargo bench -p benches --bench journal [-- --quick] [-- --directory DIR]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use quorate::queue::{QueueConfig, Queues};
use quorate_journal::{Config, FileStorage, Journal, Record};

#[derive(Parser)]
struct Options {
    /// Short rounds, for a first look and for CI.
    #[arg(long)]
    quick: bool,
    /// Where to write; a fresh sub-directory is made and removed. Default: the system's temporary directory.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let options = Options::parse();
    let base = options.directory.unwrap_or_else(std::env::temp_dir);
    let (rounds, time) =
        if options.quick { (3, Duration::from_millis(300)) } else { (7, Duration::from_secs(2)) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;

    let mut rows: Vec<Row> = ["bare fdatasync loop", "naive log, one sync per record"]
        .into_iter()
        .map(String::from)
        .chain(TASKS.iter().map(|tasks| format!("journal, {tasks} tasks")))
        .chain(TASKS.iter().map(|tasks| format!("queue, {tasks} tasks put")))
        .chain(TASKS.iter().map(|tasks| format!("queue, {tasks} take and acknowledge")))
        .map(|name| Row { name, rates: Vec::new(), batch: Vec::new(), waits: Vec::new() })
        .collect();
    for _ in 0..rounds {
        for (index, row) in rows.iter_mut().enumerate() {
            let directory = tempfile::tempdir_in(&base)?;
            let run = match index {
                0 => sync_loop(&directory.path().join("bare"), time, true)?,
                1 => sync_loop(&directory.path().join("naive"), time, false)?,
                2..=4 => runtime.block_on(journal(directory.path(), TASKS[index - 2], time))?,
                5..=7 => runtime.block_on(queue(directory.path(), TASKS[index - 5], time, true))?,
                _ => runtime.block_on(queue(directory.path(), TASKS[index - 8], time, false))?,
            };
            row.rates.push(run.rate);
            row.batch.push(run.batch);
            row.waits.push(run.waits);
        }
    }

    println!("1 KiB records, acknowledged after the sync; medians of {rounds} rounds of {time:?}");
    println!(
        "{:<32} {:>10} {:>10} {:>8} {:>10} {:>10} {:>10}",
        "", "records/s", "x bare", "batch", "p50 us", "p99 us", "p99.9 us"
    );
    let bare = median(&rows[0].rates);
    for row in &rows {
        let rate = median(&row.rates);
        let batch = median(&row.batch);
        let batch = if batch.is_nan() { "-".to_owned() } else { format!("{batch:.1}") };
        let wait = |quantile| {
            median(&row.waits.iter().map(|w| w.value_at_quantile(quantile) as f64 / 1e3).collect::<Vec<_>>())
        };
        println!(
            "{:<32} {:>10.0} {:>10.2} {:>8} {:>10.0} {:>10.0} {:>10.0}",
            row.name,
            rate,
            rate / bare,
            batch,
            wait(0.5),
            wait(0.99),
            wait(0.999)
        );
    }
    Ok(())
}

struct Row {
    name: String,
    rates: Vec<f64>,
    batch: Vec<f64>,
    waits: Vec<Histogram<u64>>,
}

struct Run {
    rate: f64,
    /// Records per sync.
    batch: f64,
    /// Nanoseconds from the call to its return.
    waits: Histogram<u64>,
}

/// One writer, one sync per record; into a file that has its bytes already, or into one that grows.
fn sync_loop(path: &Path, time: Duration, is_filled: bool) -> Outcome<Run> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    if is_filled {
        file.write_all_at(&vec![0; FILLED_BYTES as usize], 0)?;
    }
    file.sync_all()?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    let record = vec![7; RECORD_BYTES];
    let mut waits = Histogram::new(3)?;
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        let begin = Instant::now();
        let place = count * RECORD_BYTES as u64;
        file.write_all_at(&record, if is_filled { place % FILLED_BYTES } else { place })?;
        file.sync_data()?;
        waits.record(begin.elapsed().as_nanos() as u64)?;
        count += 1;
    }
    Ok(Run { rate: count as f64 / start.elapsed().as_secs_f64(), batch: 1.0, waits })
}

async fn journal(directory: &Path, tasks: usize, time: Duration) -> Outcome<Run> {
    let (journal, _) = Journal::open(FileStorage::open(directory)?, Config::new(1))?;
    let record = Bytes::from(vec![7; RECORD_BYTES]);
    let writing = journal.clone();
    let (rate, waits) = together(tasks, time, move || {
        let (journal, record) = (writing.clone(), record.clone());
        async move {
            let records = vec![Record::new(1, record)];
            journal.append(records).await.map(drop).map_err(|error| error.to_string())
        }
    })
    .await?;
    let stats = journal.stats();
    journal.close().await;
    let batch = stats.records as f64 / stats.batches.max(1) as f64;
    Ok(Run { rate, batch, waits })
}

/// Puts, or takes and acknowledges what is there.
async fn queue(directory: &Path, tasks: usize, time: Duration, is_put: bool) -> Outcome<Run> {
    let queues = Queues::open(FileStorage::open(directory)?, Config::new(1))?;
    let config = QueueConfig::new().messages_max(usize::MAX >> 1).bytes_max(usize::MAX >> 1);
    let queue = queues.queue_with("bench", config).await?;
    let payload = Bytes::from(vec![7; RECORD_BYTES]);
    // More than can be taken in the time.
    let batches = if is_put { 0 } else { time.as_millis() as usize * 800 / BATCH };
    for _ in 0..batches {
        queue.put_all((0..BATCH).map(|_| payload.clone())).await?;
    }
    let (rate, waits) = together(tasks, time, move || {
        let (queue, payload) = (queue.clone(), payload.clone());
        async move {
            if is_put {
                return queue.put(payload).await.map(drop).map_err(|error| error.to_string());
            }
            let delivery = queue.poll().map_err(|error| error.to_string())?;
            let delivery = delivery.ok_or("nothing is left to take")?;
            delivery.ack().await.map(drop).map_err(|error| error.to_string())
        }
    })
    .await?;
    queues.close().await;
    Ok(Run { rate, batch: f64::NAN, waits })
}

/// So many tasks do the same again and again for so long: how often in a second, and how many nanoseconds each took.
async fn together<Doing>(
    tasks: usize,
    time: Duration,
    work: impl Fn() -> Doing + Clone + Send + 'static,
) -> Outcome<(f64, Histogram<u64>)>
where
    Doing: Future<Output = Result<(), String>> + Send,
{
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..tasks {
        let (work, stop, count) = (work.clone(), stop.clone(), count.clone());
        workers.push(tokio::spawn(async move {
            let mut waits = Histogram::<u64>::new(3).map_err(|error| error.to_string())?;
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                work().await?;
                waits.record(begin.elapsed().as_nanos() as u64).map_err(|error| error.to_string())?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, String>(waits)
        }));
    }
    tokio::time::sleep(time).await;
    let counted = count.load(Ordering::Relaxed);
    let elapsed = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut waits = Histogram::new(3)?;
    for worker in workers {
        waits.add(worker.await??)?;
    }
    Ok((counted as f64 / elapsed.as_secs_f64(), waits))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

const TASKS: [usize; 3] = [1, 64, 1024];
const RECORD_BYTES: usize = 1024;
const BATCH: usize = 1000;
const FILLED_BYTES: u64 = 16 << 20;
