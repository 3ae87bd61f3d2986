//! How many messages a second become durable, put by producers that each wait for the last one: ours and the brokers' here.
//!
//! Set-up      1 KiB, each acknowledged after its sync, 64 producers with one message under way each. *Two processes*: put into
//!             a queue of another process and counted there, synced at both ends and transferred exactly once. The brokers as
//!             their manuals say that nothing acknowledged is lost: Redis with `appendfsync always`, PostgreSQL as it comes
//!             (a table, an insert a message), NATS JetStream with `sync_interval: always` (before 2.10 it has no such setting,
//!             and its row says so), beanstalkd with `-f0`; each producer
//!             has a connection of its own over loopback and speaks the protocol by hand. A bare fdatasync loop runs in
//!             each round.
//! Blind spot  whoever embeds a queue pays no socket: that is the point of it, and part of the difference. Producers share the
//!             cores with the server.
//! Missing     a broker that is not installed is named and left out.

mod brokers;
mod depot;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate::journal::{Config, FileStorage};
use quorate::queue::{Queue, QueueConfig, Queues};

use crate::Settings;
use crate::worker::Outcome;
pub use depot::{Depot, keep};

type Row = (&'static str, Vec<f64>);

pub fn run(settings: &Settings) -> Outcome<()> {
    let rounds = settings.rounds.unwrap_or(if settings.quick { 3 } else { 5 });
    let time = Duration::from_millis(if settings.quick { 500 } else { 2_000 });
    let mut rows: Vec<Row> = vec![
        ("bare write and fdatasync", Vec::new()),
        ("quorate, 1 task", Vec::new()),
        ("quorate, 64 tasks", Vec::new()),
        ("quorate, 1,024 tasks", Vec::new()),
        ("quorate, two processes, 64 tasks", Vec::new()),
        ("quorate, two processes, 1,024 tasks", Vec::new()),
    ];
    let brokers = brokers::installed();
    rows.extend(brokers.iter().map(|broker| (broker.name, Vec::new())));
    for _ in 0..rounds {
        for (index, (_, rates)) in rows.iter_mut().enumerate() {
            let place = tempfile::tempdir()?;
            rates.push(match index {
                0 => bare(&place.path().join("bare"), time)?,
                1 => runtime()?.block_on(local(place.path(), 1, time))?,
                2 => runtime()?.block_on(local(place.path(), 64, time))?,
                3 => runtime()?.block_on(local(place.path(), 1_024, time))?,
                4 => runtime()?.block_on(depot::transfer(place.path(), 64, time))?,
                5 => runtime()?.block_on(depot::transfer(place.path(), 1_024, time))?,
                _ => runtime()?.block_on(brokers::run(&brokers[index - OURS], place.path(), time))?,
            });
        }
    }
    println!("durable puts of 1 KiB, a second; medians of {rounds} rounds of {time:?}");
    let median = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    println!("{:<36} {:>10} {:>24} {:>9}", "", "a second", "least and greatest", "bare = 1");
    let first = median(&rows[0].1);
    for (name, rates) in &rows {
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let (middle, most) = (median(rates), rates.iter().copied().fold(0.0, f64::max));
        println!("{name:<36} {middle:>10.0} {least:>12.0} {most:>11.0} {:>9.2}", middle / first);
    }
    Ok(())
}

/// One writer, one sync for each, into a file that has its bytes already.
fn bare(path: &Path, time: Duration) -> Outcome<f64> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all_at(&vec![0; FILLED_BYTES], 0)?;
    file.sync_all()?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        file.write_all_at(&[7; MESSAGE_BYTES], count * MESSAGE_BYTES as u64 % FILLED_BYTES as u64)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

async fn local(directory: &Path, tasks: usize, time: Duration) -> Outcome<f64> {
    let queues = Queues::open(FileStorage::open(directory)?, Config::new(1))?;
    let queue = queues.queue_with("bench", without_limits()).await?;
    let payload = Bytes::from(vec![7; MESSAGE_BYTES]);
    let producers = (0..tasks).map(|_| Local { queue: queue.clone(), payload: payload.clone() });
    let rate = produce(producers, time).await?;
    queues.close().await;
    Ok(rate)
}

/// Somebody who puts one message after the other.
trait Producer: Send + 'static {
    /// Puts one; returns when it is durable.
    fn put(&mut self) -> impl Future<Output = Outcome<()>> + Send;
}

struct Local {
    queue: Queue,
    payload: Bytes,
}

impl Producer for Local {
    async fn put(&mut self) -> Outcome<()> {
        self.queue.put(self.payload.clone()).await?;
        Ok(())
    }
}

/// How many puts returned a second.
async fn produce(producers: impl Iterator<Item = impl Producer>, time: Duration) -> Outcome<f64> {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let working: Vec<_> = producers
        .map(|mut producer| {
            let (stop, count) = (stop.clone(), count.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    producer.put().await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Ok(())
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    let rate = count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for producer in working {
        producer.await??;
    }
    Ok(rate)
}

/// Both threads of a machine with two cores.
fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn without_limits() -> QueueConfig {
    QueueConfig::new().deliveries_max(None).messages_max(usize::MAX >> 1).bytes_max(usize::MAX >> 1)
}

const OURS: usize = 6;
const MESSAGE_BYTES: usize = 1024;
const FILLED_BYTES: usize = 16 << 20;
