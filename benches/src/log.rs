//! What does a write on a replicated log cost, in memory and on disks?
//!
//! Machine     three machines in one thread that hand each other their messages: nothing but the protocol.
//! Nodes       three replicas in one process and one thread, over the transport within the process, without journals.
//! Journals    three processes with journals in files, over TCP and loopback; the callers are in one of them.
//! fdatasync   one file, one thread: as many writes as are under way, then one sync. No log can be faster with that disk.
//! Writes      64 B each; every caller waits for its own answer. CPU is that of all processes of a rival.
//! Blind spot  one machine and one disk: three journals share both, so that three syncs compete where they otherwise do not.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use quorate::journal::{self, FileStorage, Journal};
use quorate::node::{Node, NodeId};
use quorate::protocols::agreement::{self, Event, Members, Message, Replica};
use quorate::protocols::{Input, Machine, Output, Outputs, ProcessId, Time};
use quorate::replication::log::{Config, Logged, Storage};
use quorate::replication::{RestoreError, StateMachine};
use tokio::task::JoinSet;

use crate::Settings;
use crate::report::spread_of;
use crate::worker::Outcome;

const WRITE_BYTES: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    Machine,
    Nodes,
    Journals,
    Fdatasync,
}

const TABLES: [(&str, &[What], &[usize]); 2] = [
    ("three replicas in memory", &[What::Machine, What::Nodes], &[1, 64, 256, 1_024]),
    ("three replicas with journals, TCP", &[What::Journals, What::Fdatasync], &[1, 64, 1_024]),
];

/// One rival of one table, in a process of its own.
#[derive(Args)]
pub struct LogSide {
    what: What,
    in_flight: usize,
    seconds: f64,
}

/// A replica that takes no commands of its own.
#[derive(Args)]
pub struct LogFollower {
    id: u64,
    directory: std::path::PathBuf,
    /// Where the caller's replica is.
    leader: String,
}

pub fn run(settings: &Settings) -> Outcome<()> {
    let rounds = settings.rounds.unwrap_or(if settings.quick { 1 } else { 5 });
    let seconds = if settings.quick { 0.5 } else { 2.0 };
    for (name, rivals, outstanding) in TABLES {
        for in_flight in outstanding {
            println!("{name}, {in_flight} outstanding");
            println!(
                "{:<12} {:>12} {:>25} {:>10} {:>10} {:>9}",
                "", "writes/s", "least and greatest", "p50 us", "p99 us", "CPU us"
            );
            let mut figures = vec![[const { Vec::new() }; 4]; rivals.len()];
            for _ in 0..rounds {
                for (what, columns) in rivals.iter().zip(&mut figures) {
                    let row = ask(*what, *in_flight, seconds)?;
                    columns.iter_mut().zip(row).for_each(|(column, figure)| column.push(figure));
                }
            }
            for (what, columns) in rivals.iter().zip(figures) {
                let [rate, p50, p99, cpu] = columns.map(spread_of);
                println!(
                    "{:<12} {:>12.0} {:>12.0} {:>12.0} {:>10.1} {:>10.1} {:>9.2}",
                    format!("{what:?}").to_lowercase(),
                    rate[1],
                    rate[0],
                    rate[2],
                    p50[1],
                    p99[1],
                    cpu[1]
                );
            }
            println!();
        }
    }
    Ok(())
}

/// Starts a rival and hears its figures.
fn ask(what: What, in_flight: usize, seconds: f64) -> Outcome<[f64; 4]> {
    let name = what.to_possible_value().ok_or("a rival without a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    let output = command
        .args(["log-side", name.get_name(), &in_flight.to_string(), &seconds.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().ok_or("a rival says nothing")?;
    let figures: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    figures.try_into().map_err(|_| format!("{line} is no row").into())
}

pub fn side(side: &LogSide) -> Outcome<()> {
    let time = Duration::from_secs_f64(side.seconds);
    let figures = match side.what {
        What::Machine => machines(side.in_flight, time)?,
        What::Fdatasync => fdatasync(side.in_flight, time)?,
        What::Nodes => runtime()?.block_on(nodes(side.in_flight, time))?,
        What::Journals => runtime()?.block_on(journals(side.in_flight, time))?,
    };
    figures.say()
}

struct Figures {
    times: Histogram<u64>,
    elapsed: Duration,
    cpu: f64,
}

impl Figures {
    fn say(&self) -> Outcome<()> {
        let count = self.times.len() as f64;
        let micros = |quantile| self.times.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{} {} {} {}",
            count / self.elapsed.as_secs_f64(),
            micros(0.5),
            micros(0.99),
            self.cpu * 1e6 / count
        );
        Ok(())
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

// ---- the machine alone ----------------------------------------------------------------------------------------------

/// Three machines and what is on its way between them.
struct Trio {
    replicas: Vec<Replica>,
    began: Instant,
    messages: VecDeque<(u64, u64, Message)>,
    delivered: usize,
}

impl Trio {
    fn new() -> Outcome<Self> {
        let founders = || Members::of_voters((0..3).map(ProcessId::any_life));
        let make = |node| {
            let me = ProcessId { node, incarnation: 1 };
            Replica::new(me, Time::ZERO, node, Config::default(), founders(), [])
        };
        let replicas = (0..3).map(make).collect::<Result<_, _>>()?;
        Ok(Self { replicas, began: Instant::now(), messages: VecDeque::new(), delivered: 0 })
    }

    fn feed(&mut self, node: u64, input: Input<Replica>, out: &mut Outputs<Replica>) {
        let now = Time::from_nanos(self.began.elapsed().as_nanos() as u64);
        let replica = &mut self.replicas[node as usize];
        replica.handle(now, input, out);
        let mut wanted = None;
        for output in out.drain() {
            match output {
                Output::Send { to, message, .. } => {
                    for to in to.as_slice() {
                        self.messages.push_back((node, to.node, message.clone()));
                    }
                }
                Output::Event(Event::Delivered(run)) => {
                    self.delivered += run.iter().filter(|delivered| delivered.token.is_some()).count();
                }
                Output::Event(Event::SnapshotWanted { index }) => wanted = Some(index),
                _ => {}
            }
        }
        if let Some(index) = wanted {
            let command = agreement::Command::Snapshot { index, data: Bytes::new() };
            self.feed(node, Input::Command(command), out);
        }
    }

    /// Delivers what is on its way, then lets those tick whose time has come, as the driver does; false when all is quiet.
    fn turn(&mut self, out: &mut Outputs<Replica>) -> bool {
        let count = self.messages.len();
        for _ in 0..count {
            if let Some((from, to, message)) = self.messages.pop_front() {
                let from = ProcessId { node: from, incarnation: 1 };
                self.feed(to, Input::Received { from, message }, out);
            }
        }
        let mut is_busy = count > 0;
        for node in 0..3 {
            let now = Time::from_nanos(self.began.elapsed().as_nanos() as u64);
            if self.replicas[node as usize].deadline().is_some_and(|at| at <= now) {
                self.feed(node, Input::Tick, out);
                is_busy = true;
            }
        }
        is_busy
    }
}

fn machines(in_flight: usize, time: Duration) -> Outcome<Figures> {
    let mut trio = Trio::new()?;
    let mut out = Outputs::new();
    let payload = Bytes::from(vec![7; WRITE_BYTES]);
    let leader = loop {
        trio.turn(&mut out);
        if let Some(leader) = trio.replicas.iter().position(Replica::is_leader) {
            break leader as u64;
        }
    };
    let mut times = Histogram::new(3)?;
    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    while began.elapsed() < time {
        let start = Instant::now();
        let goal = trio.delivered + in_flight;
        for token in 0..in_flight as u64 {
            let command = agreement::Command::Propose { token, fence: 0, payload: payload.clone() };
            trio.feed(leader, Input::Command(command), &mut out);
        }
        while trio.delivered < goal {
            trio.turn(&mut out);
        }
        times.record_n(u64::try_from(start.elapsed().as_nanos())?, in_flight as u64)?;
    }
    Ok(Figures { times, elapsed: began.elapsed(), cpu: cpu_seconds()? - cpu })
}

// ---- replicas on nodes ----------------------------------------------------------------------------------------------

/// Counts.
#[derive(Default)]
struct Count(u64);

impl StateMachine for Count {
    type Command = quorate::Payload;
    type Response = u64;

    fn apply(&mut self, _: quorate::Payload) -> u64 {
        self.0 += 1;
        self.0
    }

    fn snapshot(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_le_bytes())
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError> {
        let bytes = snapshot[..].try_into().map_err(|_| RestoreError("not eight bytes".into()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

async fn open(node: &Node, storage: Storage) -> Outcome<Logged<Count>> {
    let founders = (0..3).map(NodeId);
    Ok(Logged::open(node, "count", storage, Count::default(), founders, Config::default()).await?)
}

async fn nodes(in_flight: usize, time: Duration) -> Outcome<Figures> {
    let mut nodes: Vec<Node> = Vec::new();
    for id in 0..3 {
        nodes.push(Node::builder().id(id).listen("mem://").start().await?);
    }
    let mut replicas = Vec::new();
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.identity() != node.identity()) {
            node.add_address(other.identity().node, other.addresses()[0].clone());
        }
        replicas.push(open(node, Storage::Memory).await?);
    }
    loop {
        let leads = |at: &usize| replicas[*at].progress().leader == Some(NodeId(*at as u64));
        if let Some(at) = (0..3).find(leads) {
            return write(&replicas[at], in_flight, time).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Writes for a while, by as many callers.
async fn write(replica: &Logged<Count>, in_flight: usize, time: Duration) -> Outcome<Figures> {
    let payload = quorate::Payload::from(vec![7; WRITE_BYTES]);
    replica.apply(&payload).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let (replica, payload, is_over) = (replica.clone(), payload.clone(), is_over.clone());
        callers.spawn(async move {
            let mut took = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let start = Instant::now();
                replica.apply(&payload).await?;
                took.push(start.elapsed());
            }
            Outcome::Ok(took)
        });
    }
    tokio::time::sleep(time).await;
    is_over.store(true, Ordering::Relaxed);
    let mut times = Histogram::new(3)?;
    while let Some(took) = callers.join_next().await {
        for took in took?? {
            times.record(u64::try_from(took.as_nanos())?)?;
        }
    }
    Ok(Figures { times, elapsed: began.elapsed(), cpu: cpu_seconds()? - cpu })
}

// ---- replicas with journals, each a process -------------------------------------------------------------------------

fn open_journal(directory: &Path, id: u64) -> Outcome<Storage> {
    let storage = FileStorage::open(directory.join(id.to_string()))?;
    Ok(Storage::Journal(Journal::open(storage, journal::Config::new(id))?.0))
}

/// A process that ends with this value.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn journals(in_flight: usize, time: Duration) -> Outcome<Figures> {
    let place = tempfile::tempdir_in(std::env::current_dir()?)?;
    let node = Node::builder().id(0).listen("tcp://127.0.0.1:0").start().await?;
    let address = node.addresses()[0].to_string();
    let mut followers = Vec::new();
    for id in 1..3_u64 {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["log-follower", &id.to_string()]).arg(place.path()).arg(&address);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().ok_or("its output is not piped")?;
        followers.push(Follower(child));
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        node.add_address(NodeId(id), line.trim().parse()?);
        // The second one is told of the first.
        for other in &mut followers {
            if let Some(stdin) = &mut other.0.stdin {
                writeln!(stdin, "{id} {}", line.trim())?;
            }
        }
    }
    // It begins alone for as long as the others wait longer for a leader, so it leads.
    let replica = open(&node, open_journal(place.path(), 0)?).await?;
    while replica.progress().leader != Some(NodeId(0)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pids: Vec<u32> = followers.iter().map(|follower| follower.0.id()).collect();
    let cpu_of_others = || pids.iter().map(|pid| cpu_seconds_of(&pid.to_string())).sum::<Outcome<f64>>();
    let before = cpu_of_others()?;
    let mut figures = write(&replica, in_flight, time).await?;
    figures.cpu += cpu_of_others()? - before;
    Ok(figures)
}

pub fn follow(follower: &LogFollower) -> Outcome<()> {
    runtime()?.block_on(async {
        let node = Node::builder().id(follower.id).listen("tcp://127.0.0.1:0").start().await?;
        node.add_address(NodeId(0), follower.leader.parse()?);
        println!("{}", node.addresses()[0]);
        std::io::stdout().flush()?;
        let storage = open_journal(&follower.directory, follower.id)?;
        let founders = (0..3).map(NodeId);
        // Not the first to want to lead.
        let config = Config { election: Duration::from_secs(2), ..Config::default() };
        let _replica: Logged<Count> =
            Logged::open(&node, "count", storage, Count::default(), founders, config).await?;
        let id = follower.id;
        let hearing = tokio::task::spawn_blocking(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if let Some((other, address)) = line.split_once(' ')
                    && let (Ok(other), Ok(address)) = (other.parse(), address.parse())
                    && other != id
                {
                    node.add_address(NodeId(other), address);
                }
            }
        });
        Ok(hearing.await?)
    })
}

// ---- the disk alone -------------------------------------------------------------------------------------------------

fn fdatasync(in_flight: usize, time: Duration) -> Outcome<Figures> {
    let mut file = tempfile::tempfile_in(std::env::current_dir()?)?;
    // As a journal does: the file has its size before, so that a sync writes data and nothing else.
    file.write_all(&vec![0; FILE_BYTES])?;
    file.sync_all()?;
    let batch = vec![7; RECORD_BYTES * in_flight];
    let mut times = Histogram::new(3)?;
    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    let mut at = 0;
    while began.elapsed() < time {
        if at + batch.len() > FILE_BYTES {
            at = 0;
        }
        let start = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &batch, at as u64)?;
        file.sync_data()?;
        at += batch.len();
        times.record_n(u64::try_from(start.elapsed().as_nanos())?, in_flight as u64)?;
    }
    Ok(Figures { times, elapsed: began.elapsed(), cpu: cpu_seconds()? - cpu })
}

fn cpu_seconds() -> Outcome<f64> {
    cpu_seconds_of("self")
}

/// User and system time of a process; the kernel counts it in hundredths of a second.
fn cpu_seconds_of(process: &str) -> Outcome<f64> {
    let mut stat = String::new();
    std::fs::File::open(format!("/proc/{process}/stat"))?.read_to_string(&mut stat)?;
    // The name of the program, in parentheses, may hold blanks; eleven fields lie between it and the two times.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks = fields.map(u64::from_str).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / 100.0)
}

/// What a write takes in the journal, about.
const RECORD_BYTES: usize = 160;
const FILE_BYTES: usize = 64 << 20;
