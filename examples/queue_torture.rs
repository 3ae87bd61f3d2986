//! Durable queues while everything is killed: producers, consumers and what is between them, with SIGKILL, all the time.
//!
//! Three processes. The first one counts, per key, into a local queue, from which competing workers send the numbers on; the
//! second one only forwards; in the third one competing consumers take them. Beside that the first one pours long backlogs
//! into a queue of its own and drains them. Workers and consumers fail at random: they give back, forget, or hang longer than
//! their lease. Some do everything in one unit of work; others put again what they do not know to be stored, under the
//! same name, or acknowledge afterwards and know by the number what comes again. Meanwhile any of the three is killed at
//! any moment and started again.
//!
//! ```text
//! cargo run --release --example queue_torture -- --minutes 10
//! ```
//! It ends with how much was done and how often was killed, and the proof: every number of every key was taken once, in its
//! order, with its bytes; nothing that a process was told to be stored or acknowledged was forgotten. The exit status is 0
//! only when the proof holds.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use quorate::journal::{Config, FileStorage};
use quorate::queue::{Delivery, Message, Queue, QueueConfig, QueueError, QueueManager, Queues, WorkError};
use quorate::{Node, NodeId};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// How long to kill.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The same in seconds; it goes before.
    #[arg(long)]
    seconds: Option<f64>,
    /// Of all that is drawn by chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the queues are; a new directory among the temporary ones otherwise, removed when all is well.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// What one of the three processes is started with.
    #[arg(long, hide = true)]
    site: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match arguments.site {
        Some(site) => run_site(site, &arguments).await.map(|()| true),
        None => torture(&arguments).await,
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("queue_torture: {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- the one that kills

/// One of the three processes, as it lives now.
struct Site {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What the processes have told.
#[derive(Debug, Default)]
struct Told {
    /// Totals by what they count, as they were told last.
    totals: BTreeMap<String, u64>,
    /// By key, the last number whose acknowledgement returned.
    acknowledged: BTreeMap<u64, u64>,
    /// The same as it was when the process that tells it was killed last.
    settled: BTreeMap<u64, u64>,
    again: u64,
    is_stopped: bool,
    violations: Vec<String>,
}

impl Told {
    fn total(&self, what: &str) -> u64 {
        self.totals.get(what).copied().unwrap_or(0)
    }

    /// Takes in a line; gives the address if it is one.
    fn take(&mut self, line: &str) -> Option<String> {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match what {
            "at" => return line.split(' ').nth(1).map(str::to_owned),
            "stopped" => self.is_stopped = true,
            // What was told before must have survived.
            "kept" => {
                let name = line.split(' ').nth(1).unwrap_or_default();
                let (kept, told) = (line.split(' ').nth(2).unwrap_or_default(), self.total(name));
                if kept.parse::<u64>().unwrap_or(0) < told {
                    self.violations.push(format!("{kept} {name} after a restart, {told} were told before"));
                }
            }
            COUNTED | TAKEN | POURED | DRAINED => {
                let (total, count) = (self.totals.entry(what.to_owned()).or_default(), number());
                *total = count.max(*total);
            }
            "acknowledged" => {
                let (key, number) = (number(), number());
                let last = self.acknowledged.entry(key).or_default();
                *last = number.max(*last);
            }
            "again" => {
                let (key, number) = (number(), number());
                self.again += 1;
                // Within one life, two workers may have had it at a time.
                if self.settled.get(&key).is_some_and(|last| number <= *last) {
                    self.violations
                        .push(format!("{number} of key {key} came back after its acknowledgement"));
                }
            }
            _ => self.violations.push(line.trim_start_matches("violation: ").to_owned()),
        }
        None
    }
}

impl Site {
    fn start(number: usize, directory: &Path, seed: u64) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--site", &(number + 1).to_string(), "--seed", &seed.to_string(), "--dir"])
            .arg(directory.join((number + 1).to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        Ok(Self { child, input, lines })
    }

    async fn tell(&mut self, what: &str) -> Outcome {
        Ok(self.input.write_all(format!("{what}\n").as_bytes()).await?)
    }

    /// Takes in what it says for so long.
    async fn hear(&mut self, told: &mut Told, within: Duration) -> Outcome {
        let until = tokio::time::Instant::now() + within;
        while let Ok(line) = tokio::time::timeout_at(until, self.lines.next_line()).await {
            told.take(&line?.ok_or("a process ended by itself")?);
        }
        Ok(())
    }

    /// Takes in what it says up to its address.
    async fn address(&mut self, told: &mut Told) -> Outcome<String> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let line = tokio::time::timeout_at(until, self.lines.next_line()).await;
            let line = line.map_err(|_| "a process does not come up")??.ok_or("a process did not come up")?;
            if let Some(address) = told.take(&line) {
                return Ok(address);
            }
        }
    }

    async fn kill(mut self, told: &mut Told) -> Outcome {
        self.child.kill().await?;
        // What it had said before counts; its last line may be cut, and then says nothing.
        let mut last: Option<String> = None;
        while let Some(line) = self.lines.next_line().await? {
            if let Some(whole) = last.replace(line) {
                told.take(&whole);
            }
        }
        told.settled = told.acknowledged.clone();
        Ok(())
    }
}

async fn torture(arguments: &Arguments) -> Outcome<bool> {
    let unique = format!("queue_torture-{}", std::process::id());
    let directory = arguments.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(unique));
    std::fs::create_dir_all(&directory)?;
    let mut chance = Chance(arguments.seed);
    let mut told = Told::default();
    let (mut sites, mut addresses) = (Vec::new(), Vec::new());
    for number in 0..3 {
        let mut site = Site::start(number, &directory, chance.next())?;
        addresses.push(site.address(&mut told).await?);
        sites.push(site);
    }
    introduce(&mut sites, &addresses).await?;
    let begun = Instant::now();
    let time = Duration::from_secs_f64(arguments.seconds.unwrap_or(arguments.minutes * 60.0));
    let (mut kills, mut shown) = (0, begun);
    while begun.elapsed() < time {
        for site in &mut sites {
            site.hear(&mut told, Duration::from_millis(chance.below(150))).await?;
        }
        let victims = if chance.below(10) == 0 { 3 } else { 1 };
        for _ in 0..victims {
            let victim = chance.below(3) as usize;
            sites.remove(victim).kill(&mut told).await?;
            kills += 1;
            let mut site = Site::start(victim, &directory, chance.next())?;
            addresses[victim] = site.address(&mut told).await?;
            sites.insert(victim, site);
        }
        introduce(&mut sites, &addresses).await?;
        // So that what is on its way at the end has arrived soon.
        sites[0].tell(&format!("{TAKEN} {}", told.total(TAKEN))).await?;
        if shown.elapsed() > Duration::from_secs(10) {
            shown = Instant::now();
            eprintln!("{:.0?}: {:?}, {kills} killed", begun.elapsed(), told.totals);
        }
    }
    // Nothing new, and nobody is killed any more: everything must arrive.
    sites[0].tell("stop").await?;
    let (mut calm, mut arrived) = (Instant::now(), 0);
    let is_even =
        |told: &Told| told.total(COUNTED) == told.total(TAKEN) && told.total(POURED) == told.total(DRAINED);
    while calm.elapsed() < PATIENCE && !(told.is_stopped && is_even(&told)) {
        for site in &mut sites {
            site.hear(&mut told, Duration::from_millis(200)).await?;
        }
        let now = told.total(TAKEN) + told.total(DRAINED);
        if now > arrived {
            (calm, arrived) = (Instant::now(), now);
        }
    }
    for violation in told.violations.iter().take(20) {
        println!("violation: {violation}");
    }
    println!(
        "{} messages over two hops, {} through backlogs, {:.0} s, {kills} processes killed, {} came again unacknowledged, {} violations",
        told.total(COUNTED),
        told.total(POURED),
        begun.elapsed().as_secs_f64(),
        told.again,
        told.violations.len()
    );
    let is_proved = told.is_stopped && is_even(&told) && told.violations.is_empty() && told.total(TAKEN) > 0;
    drop(sites);
    if is_proved {
        println!("proof: every number of every key was taken once, in its order");
        if arguments.dir.is_none() {
            std::fs::remove_dir_all(&directory)?;
        }
    } else {
        println!("no proof: {:?}; look into {}", told.totals, directory.display());
    }
    Ok(is_proved)
}

async fn introduce(sites: &mut [Site], addresses: &[String]) -> Outcome {
    for site in sites {
        for (index, address) in addresses.iter().enumerate() {
            site.tell(&format!("{} {address}", index + 1)).await?;
        }
    }
    Ok(())
}

// ---- those who are killed

async fn run_site(id: u64, arguments: &Arguments) -> Outcome {
    let directory = arguments.dir.clone().ok_or("no directory")?;
    let storage = FileStorage::open(directory.join("queues"))?;
    let node = Node::builder().id(id).directory(directory).listen("tcp://127.0.0.1:0").start().await?;
    // Small segments, so that the journals are cut, recycled and abbreviated all the time.
    let queues = Queues::open(storage, Config::new(id).segment_bytes(128 << 10))?;
    let manager = QueueManager::start(&node, &queues).await?;
    manager.route(NodeId(3), NodeId(2));
    let settings =
        QueueConfig::new().deliveries_max(None).lease(Duration::from_millis(300)).messages_max(2000);
    let queue = queues.queue_with(if id == 3 { "end" } else { "pool" }, settings).await?;
    let backlog = queues.queue_with("backlog", QueueConfig::new().deliveries_max(None)).await?;
    match id {
        1 => {
            say(&format!("kept {COUNTED} {}", total(&queues, "next")));
            say(&format!("kept {POURED} {}", number(&queues, POURED)));
            say(&format!("kept {DRAINED} {}", number(&queues, DRAINED)));
        }
        3 => say(&format!("kept {TAKEN} {}", total(&queues, "taken"))),
        _ => {}
    }
    say(&format!("at {}", node.addresses().first().ok_or("no address")?));
    let turns = Arc::new([const { Mutex::const_new(()) }; KEYS as usize]);
    let hand = || Hand {
        queues: queues.clone(),
        queue: queue.clone(),
        manager: manager.clone(),
        turns: turns.clone(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let taken = Arc::new(AtomicU64::new(total(&queues, "next")));
    for worker in 0..WORKERS {
        let chance = Chance(arguments.seed.wrapping_add(worker));
        match id {
            1 => drop(tokio::spawn(until_it_fails(hand().pass_on(chance)))),
            3 => drop(tokio::spawn(until_it_fails(hand().take(chance)))),
            _ => {}
        }
    }
    let mut producing = Vec::new();
    if id == 1 {
        tokio::spawn(until_it_fails(drain(queues.clone(), backlog.clone())));
        let pour = pour(queues.clone(), backlog, Chance(arguments.seed), stop.clone());
        producing.push(tokio::spawn(until_it_fails(pour)));
        let produce = hand().produce(Chance(arguments.seed), stop.clone(), taken.clone());
        producing.push(tokio::spawn(until_it_fails(produce)));
    }
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        match order.split_once(' ') {
            Some((TAKEN, count)) => taken.store(count.parse()?, Ordering::Relaxed),
            Some((peer, address)) => node.add_address(NodeId(peer.parse()?), address.parse()?),
            None => {
                stop.store(true, Ordering::Relaxed);
                for producing in producing.drain(..) {
                    producing.await?;
                }
                say(&format!("{COUNTED} {}", total(&queues, "next")));
                say(&format!("{POURED} {}", number(&queues, POURED)));
                say("stopped");
            }
        }
    }
    Ok(())
}

async fn until_it_fails(work: impl Future<Output = Outcome>) {
    if let Err(error) = work.await {
        say(&format!("violation: {error}"));
    }
}

/// What the tasks of a site work on.
struct Hand {
    queues: Queues,
    queue: Queue,
    manager: QueueManager,
    /// Whoever takes a message of a key has its turn meanwhile.
    turns: Arc<[Mutex<()>; KEYS as usize]>,
}

impl Hand {
    /// Counts per key. The next number is part of the unit of work that puts this one; or it is set afterwards, and whoever
    /// is killed between the two puts the same again, under the same name.
    async fn produce(self, mut chance: Chance, stop: Arc<AtomicBool>, taken: Arc<AtomicU64>) -> Outcome {
        let mut is_last = false;
        while !is_last {
            // The last time all keys, so that everything that was put is counted.
            is_last = stop.load(Ordering::Relaxed);
            let on_the_way = total(&self.queues, "next").saturating_sub(taken.load(Ordering::Relaxed));
            if !is_last && on_the_way > ON_THE_WAY_MAX {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let mut work = self.queues.work();
            let first = if is_last { 0 } else { chance.below(KEYS) };
            for key in (first..KEYS).take(if is_last { KEYS as usize } else { 16 }) {
                let number = number(&self.queues, &format!("next.{key}"));
                let message =
                    Message::new(text(key, number)).key(key.to_string()).name(format!("{key} {number}"));
                if chance.below(4) == 0 {
                    self.queue.put(message).await?;
                } else {
                    work.put(&self.queue, message);
                }
                work.set(format!("next.{key}"), (number + 1).to_string());
            }
            work.commit().await?;
            say(&format!("{COUNTED} {}", total(&self.queues, "next")));
        }
        Ok(())
    }

    /// Sends on what was counted.
    async fn pass_on(self, mut chance: Chance) -> Outcome {
        let remote = self.manager.remote(NodeId(3), "end").await?;
        loop {
            let Some(delivery) = self.next(&mut chance).await? else { continue };
            let mut work = self.queues.work();
            work.send(&remote, delivery.to_message()).ack(delivery);
            done(work.commit().await)?;
        }
    }

    /// Takes what arrives: of each key it must be the next number.
    async fn take(self, mut chance: Chance) -> Outcome {
        loop {
            let Some(delivery) = self.next(&mut chance).await? else { continue };
            let found = String::from_utf8_lossy(delivery.payload()).into_owned();
            let key = delivery.key().and_then(|key| std::str::from_utf8(key).ok()?.parse::<u64>().ok());
            let (Some(key), Some(arrived)) =
                (key, found.split(' ').nth(1).and_then(|word| word.parse().ok()))
            else {
                return Err(format!("no number: {found}").into());
            };
            let turn = self.turns.get(key as usize).ok_or("no such key")?.lock().await;
            let cell = format!("taken.{key}");
            let expected = number(&self.queues, &cell);
            if found != text(key, arrived) || arrived > expected {
                say(&format!("violation: {found} of key {key}, where {expected} is the next"));
            }
            if arrived < expected {
                // Known, but its acknowledgement was not stored before somebody died.
                drop(turn);
                say(&format!("again {key} {arrived}"));
                acknowledge(delivery, key, arrived).await?;
                continue;
            }
            let mut work = self.queues.work();
            work.set(cell, (expected + 1).to_string());
            if chance.below(4) == 0 {
                work.commit().await?;
                drop(turn);
                acknowledge(delivery, key, arrived).await?;
            } else {
                work.ack(delivery);
                if done(work.commit().await)? {
                    say(&format!("acknowledged {key} {arrived}"));
                }
            }
            say(&format!("{TAKEN} {}", total(&self.queues, "taken")));
        }
    }

    /// The next message, unless this time the worker fails.
    async fn next(&self, chance: &mut Chance) -> Outcome<Option<Delivery>> {
        let Some(delivery) = self.queue.get(Duration::MAX).await? else { return Ok(None) };
        match chance.below(40) {
            0 => drop(delivery),
            1 => delivery.nack(Duration::from_millis(chance.below(50)))?,
            2 if chance.below(5) == 0 => tokio::time::sleep(Duration::from_millis(400)).await,
            _ => return Ok(Some(delivery)),
        }
        Ok(None)
    }
}

async fn acknowledge(delivery: Delivery, key: u64, number: u64) -> Outcome {
    match delivery.ack().await {
        Ok(()) => say(&format!("acknowledged {key} {number}")),
        Err(QueueError::LeaseLost) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Makes a long backlog of plain messages, again and again.
async fn pour(queues: Queues, backlog: Queue, mut chance: Chance, stop: Arc<AtomicBool>) -> Outcome {
    while !stop.load(Ordering::Relaxed) {
        if backlog.stats().messages > 6000 {
            tokio::time::sleep(Duration::from_millis(chance.below(300))).await;
            continue;
        }
        let (mut work, first) = (queues.work(), number(&queues, POURED));
        let count = 1 + chance.below(400);
        for number in first..first + count {
            work.put(&backlog, text(KEYS, number));
        }
        work.set(POURED, (first + count).to_string());
        work.commit().await?;
        say(&format!("{POURED} {}", first + count));
    }
    Ok(())
}

/// Takes them, in their order.
async fn drain(queues: Queues, backlog: Queue) -> Outcome {
    loop {
        let mut next = number(&queues, DRAINED);
        let mut work = queues.work();
        for delivery in backlog.get_many(100, Duration::from_secs(1)).await? {
            if delivery.payload() != text(KEYS, next).as_bytes() {
                say(&format!("violation: {:?} in the backlog, where {next} is the next", delivery.payload()));
            }
            next += 1;
            work.ack(delivery);
        }
        work.set(DRAINED, next.to_string());
        if done(work.commit().await)? {
            say(&format!("{DRAINED} {next}"));
        }
    }
}

/// Whoever was too slow has lost its message, and nothing of its work was done: false.
fn done<T>(outcome: Result<T, WorkError>) -> Outcome<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(WorkError::LeaseLost) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A message's bytes, all of which its key and its number tell.
fn text(key: u64, number: u64) -> String {
    let mut chance = Chance(number.wrapping_mul(KEYS + 1).wrapping_add(key));
    let letters = (0..chance.below(300)).map(|_| char::from(b'a' + chance.below(26) as u8));
    format!("{key} {number} {}", letters.collect::<String>())
}

fn number(queues: &Queues, key: &str) -> u64 {
    let value = queues.state(key);
    value.and_then(|value| String::from_utf8_lossy(&value).parse().ok()).unwrap_or(0)
}

fn total(queues: &Queues, what: &str) -> u64 {
    (0..KEYS).map(|key| number(queues, &format!("{what}.{key}"))).sum()
}

fn say(what: &str) {
    // One write a line: it is there whole or not at all. Whoever listened may be gone.
    let _ = std::io::Write::write_all(&mut std::io::stdout().lock(), format!("{what}\n").as_bytes());
}

/// Chance from a seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

const COUNTED: &str = "counted";
const TAKEN: &str = "taken";
const POURED: &str = "poured";
const DRAINED: &str = "drained";
const KEYS: u64 = 64;
const WORKERS: u64 = 24;
/// Messages that were counted and not taken; beyond it the first process waits.
const ON_THE_WAY_MAX: u64 = 10_000;
/// How long a process may take to come up, and nothing arrive in the end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
