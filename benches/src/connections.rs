//! What does a connection cost that is held idle, and does a node stand clients that come and go?
//!
//! Set-up      a node in this process; a crowd of clients, each with an identity of its own, in another one. Memory is
//!             the growth of this process's resident set while the crowd stands, after two heartbeats; the kernel's
//!             socket buffers are not in it. Then another crowd comes and goes: each of its clients connects, waits
//!             until it is established, closes, and comes again as a new life.
//! Blind spot  one machine: the crowd takes processor time from the node.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdout, Command, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use quorate::node::{Limits, Node};
use quorate_transports::connection::{CodecId, ConnectionConfig, Deliver, Driver, Hello, dial};
use quorate_transports::tcp::Tcp;
use quorate_transports::{Address, Identity, Incarnation, NodeId, Transport as _};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::Settings;
use crate::worker::{Outcome, wait_for_caller};

/// Where a crowd of clients goes and what it does there.
#[derive(Args)]
pub struct Crowd {
    address: Address,
    /// Connections that stand at the same time.
    #[arg(long, default_value_t = 0)]
    standing: u64,
    /// Connections that come and go, in all.
    #[arg(long, default_value_t = 0)]
    passing: u64,
    /// How many of these come per second, at most.
    #[arg(long, default_value_t = PASSING_PER_SECOND)]
    rate: f64,
}

/// What the node is to stand.
const PASSING_PER_SECOND: f64 = 1_000.0;

pub fn run(settings: &Settings) -> Outcome<()> {
    let (wanted, passing) = if settings.quick { (1_000, 10_000) } else { (10_000, 60_000) };
    let standing = wanted.min(files_max(wanted + SPARE_FILES)?.saturating_sub(SPARE_FILES));
    if standing < wanted {
        println!("the system lets a process hold {standing} of {wanted} connections (ulimit -Hn)");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut limits = Limits::default();
        limits.peers_max = 100_000;
        limits.handshakes_max = 1_024;
        let heartbeat = limits.connection.heartbeat;
        let node = Node::builder().id(NODE).limits(limits).listen("tcp://127.0.0.1:0").start().await?;
        let address = node.addresses()[0].to_string();

        let before = resident_bytes()?;
        let crowd = start(&["--standing", &standing.to_string(), &address])?;
        tokio::time::sleep(2 * heartbeat).await;
        let (each, peers) = ((resident_bytes()? - before) / node.peers().len() as f64, node.peers().len());
        println!("{peers} connections held idle: {:.1} KiB each in the node's process", each / 1024.0);
        drop(crowd);

        let (came, refused) = (node.stats().connections, node.stats().handshakes_refused);
        let start_of_passing = Instant::now();
        let crowd = start(&["--passing", &passing.to_string(), &address])?;
        let took = start_of_passing.elapsed();
        println!(
            "{} connections came and went in {:.1} s, {:.0} per second; {} were refused; {:.0} MiB resident",
            node.stats().connections - came,
            took.as_secs_f64(),
            (node.stats().connections - came) as f64 / took.as_secs_f64(),
            node.stats().handshakes_refused - refused,
            resident_bytes()? / f64::from(1 << 20)
        );
        drop(crowd);
        node.shutdown(Duration::from_secs(5)).await;
        Ok(())
    })
}

/// Lets this process, and those that it starts, have `wanted` files open, or as many as it may let itself have.
#[cfg(unix)]
fn files_max(wanted: u64) -> Outcome<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let allowed = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if current.is_some_and(|current| current < allowed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum })?;
    }
    Ok(allowed)
}

#[cfg(not(unix))]
fn files_max(wanted: u64) -> Outcome<u64> {
    Ok(wanted)
}

/// A crowd that has done what it came for; it goes when this is dropped.
struct Standing {
    child: std::process::Child,
}

fn start(arguments: &[&str]) -> Outcome<Standing> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("crowd")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take();
    let standing = Standing { child };
    let said = out.and_then(|out: ChildStdout| BufReader::new(out).lines().next()).transpose()?;
    if said.as_deref() == Some(DONE) { Ok(standing) } else { Err("the crowd did not come".into()) }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The crowd's own process.
pub fn crowd(crowd: &Crowd) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut standing = JoinSet::new();
        for number in 0..crowd.standing {
            let (_, driver) = connect(&crowd.address, FIRST_CLIENT + number, 1).await?;
            standing.spawn(driver);
        }
        pass(crowd).await?;
        println!("{DONE}");
        std::io::stdout().flush()?;
        tokio::task::spawn_blocking(wait_for_caller).await?
    })
}

async fn pass(crowd: &Crowd) -> Outcome<()> {
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / crowd.rate));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut passing: JoinSet<Outcome<()>> = JoinSet::new();
    for number in 0..crowd.passing {
        pace.tick().await;
        let address = crowd.address.clone();
        let (client, life) = (FIRST_CLIENT + number % PASSING_AT_ONCE, 2 + number / PASSING_AT_ONCE);
        passing.spawn(async move {
            let (connection, driver) = connect(&address, client, life).await?;
            connection.close();
            driver.await;
            Ok(())
        });
        while passing.len() >= PASSING_AT_ONCE as usize
            && let Some(passed) = passing.join_next().await
        {
            passed??;
        }
    }
    while let Some(passed) = passing.join_next().await {
        passed??;
    }
    Ok(())
}

async fn connect(
    address: &Address,
    client: u64,
    life: u64,
) -> Outcome<(quorate_transports::connection::Connection, Driver<Nobody>)> {
    let config = ConnectionConfig::default();
    let identity = Identity::new(NodeId(client), Incarnation(life));
    let hello = Hello::new(identity, CodecId(0), config.message_bytes_max, &[]);
    let link = Tcp::new().connect(address).await?;
    Ok(dial(link, &hello, &config).await?.start(&config, Nobody))
}

/// Takes messages and does nothing with them.
struct Nobody;

impl Deliver for Nobody {
    fn poll_deliver(&mut self, _: &mut Context<'_>, _: &mut Vec<Bytes>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Memory of this process that is in use.
pub fn resident_bytes() -> Outcome<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

const NODE: u64 = 1;
const FIRST_CLIENT: u64 = 1_000;
const PASSING_AT_ONCE: u64 = 64;
/// Files that a process needs beside its connections.
const SPARE_FILES: u64 = 200;
const DONE: &str = "done";
