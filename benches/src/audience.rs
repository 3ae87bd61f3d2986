//! Does a subscriber that never reads cost the others their rate, or the publisher its memory?
//!
//! Set-up      a publisher in this process; its subscribers in another one, each on a node and a connection of its own,
//!             over TCP and loopback. The publisher sends 64 B as fast as it can and drops for whom it has no room;
//!             counted is what the reading subscribers received. First all of them read, then all but one.
//! Blind spot  one machine: the audience takes processor time from the publisher.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use quorate::node::{Address, Limits, Node};
use quorate::socket::{Options, Publisher, Subscriber};
use tokio::task::JoinSet;

use crate::Settings;
use crate::connections::resident_bytes;
use crate::worker::{BURST, Outcome, wait_for_caller};

/// Subscribers of one publisher.
#[derive(Args)]
pub struct Audience {
    address: Address,
    /// How many there are.
    #[arg(long)]
    count: u64,
    /// How many of them never read.
    #[arg(long)]
    hung: u64,
}

pub fn run(settings: &Settings) -> Outcome<()> {
    let (count, time) = if settings.quick { (100, 1.0) } else { (1_000, 5.0) };
    let rounds = settings.rounds.unwrap_or(if settings.quick { 2 } else { 5 });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (hung, rates) in rates.iter_mut().enumerate() {
            let (rate, memory) =
                runtime.block_on(publish(count, hung as u64, Duration::from_secs_f64(time)))?;
            println!(
                "{count} subscribers, {hung} hung: {rate:.0} messages/s each; publisher {memory:.1} MiB resident"
            );
            rates.push(rate);
        }
    }
    let [all, but_one] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("medians: the others keep {:.0} % of their rate beside one that hangs\n", 100.0 * but_one / all);
    Ok(())
}

/// Messages per second that a reading subscriber received, and the publisher's memory in MiB at the end.
async fn publish(count: u64, hung: u64, time: Duration) -> Outcome<(f64, f64)> {
    let mut limits = Limits::default();
    limits.peers_max = 2 * count as usize;
    limits.handshakes_max = limits.peers_max;
    let node = Node::builder().id(1).limits(limits).listen("tcp://127.0.0.1:0").start().await?;
    let publisher = Publisher::bind(&node, SOCKET, Options::default())?;
    let audience = (count.to_string(), hung.to_string(), node.addresses()[0].to_string());
    let mut audience =
        tokio::task::spawn_blocking(move || start(&audience.0, &audience.1, &audience.2)).await??;
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..BURST {
            publisher.publish("news", &[7; 64]).await?;
        }
        // The connections live in this thread, too.
        tokio::task::yield_now().await;
    }
    let took = start.elapsed().as_secs_f64();
    let memory = resident_bytes()? / f64::from(1 << 20);
    let received = tokio::task::spawn_blocking(move || audience.end()).await??;
    drop(publisher);
    node.shutdown(Duration::from_secs(5)).await;
    Ok((received / (count - hung) as f64 / took, memory))
}

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

fn start(count: &str, hung: &str, address: &str) -> Outcome<Running> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["attend", "--count", count, "--hung", hung, address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().ok_or("its output is not piped")?;
    let mut running = Running { child, lines: BufReader::new(out).lines() };
    if running.line()? == READY { Ok(running) } else { Err("the audience did not come".into()) }
}

impl Running {
    fn line(&mut self) -> Outcome<String> {
        Ok(self.lines.next().ok_or("the audience has gone")??)
    }

    /// What all of the readers received.
    fn end(&mut self) -> Outcome<f64> {
        drop(self.child.stdin.take());
        Ok(self.line()?.parse()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The audience's own process.
pub fn attend(audience: &Audience) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let received = Arc::new(AtomicU64::new(0));
        let (mut readers, mut kept) = (JoinSet::new(), Vec::new());
        for number in 0..audience.count {
            let node = Node::builder().id(2 + number).start().await?;
            let mut subscriber =
                Subscriber::connect(&node, audience.address.clone(), SOCKET, Options::default()).await?;
            subscriber.subscribe("").await?;
            if number < audience.hung {
                kept.push((node, subscriber));
                continue;
            }
            let received = received.clone();
            readers.spawn(async move {
                let _node = node;
                while let Ok(batch) = subscriber.receive_batch().await {
                    let count = batch.count();
                    received.fetch_add(count as u64, Ordering::Relaxed);
                }
            });
        }
        println!("{READY}");
        std::io::stdout().flush()?;
        tokio::task::spawn_blocking(wait_for_caller).await??;
        println!("{}", received.load(Ordering::Relaxed));
        Ok(())
    })
}

const SOCKET: &str = "news";
const READY: &str = "ready";
