//! Does a subscriber that never reads cost the others their rate, or the publisher its memory?
//!
//! Set-up      a publisher in this process; its subscribers in another one, each on a node and a connection of its own,
//!             over TCP and loopback. The publisher sends 64 B as fast as it can and drops for whom it has no room.
//!             By turns all of them read, and one of them does not, from the moment on at which the publisher has no
//!             more room for it. Counted is what the others receive; each time beside one that hangs is compared with
//!             the mean of the times before and after it, so that a machine that drifts does not decide.
//! Blind spot  one machine: the audience takes processor time from the publisher.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use quorate::node::{Address, Limits, Node, NodeId};
use quorate::socket::{Options, Publisher, Subscriber};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::Settings;
use crate::connections::resident_bytes;
use crate::report::spread_of;
use crate::worker::{BURST, Outcome};

/// Subscribers of one publisher.
#[derive(Args)]
pub struct Audience {
    address: Address,
    /// How many there are.
    #[arg(long)]
    count: u64,
}

pub fn run(settings: &Settings) -> Outcome<()> {
    let (count, time) = if settings.quick { (100, 0.5) } else { (1_000, 3.0) };
    let rounds = settings.rounds.unwrap_or(if settings.quick { 3 } else { 7 });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare(count, rounds, Duration::from_secs_f64(time)))
}

async fn compare(count: u64, rounds: usize, time: Duration) -> Outcome<()> {
    let mut limits = Limits::default();
    limits.peers_max = 2 * count as usize;
    limits.handshakes_max = limits.peers_max;
    let node = Node::builder().id(1).limits(limits).listen("tcp://127.0.0.1:0").start().await?;
    let publisher = Arc::new(Publisher::bind(&node, SOCKET, Options::default())?);
    let address = node.addresses()[0].to_string();
    let mut seats = Seats {
        publisher: publisher.clone(),
        hall: Some(spawn_blocking(move || Hall::open(count, &address)).await??),
    };
    let publishing = tokio::spawn(async move {
        loop {
            for _ in 0..BURST {
                if publisher.publish("news", &[7; 64]).await.is_err() {
                    return;
                }
            }
            // The connections live in this thread, too.
            tokio::task::yield_now().await;
        }
    });

    let others = (count - 1) as f64;
    let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    let mut before = seats.rate(time).await? / others;
    for _ in 0..rounds {
        seats.hang().await?;
        let beside = seats.rate(time).await? / others;
        let memory = resident_bytes()? / f64::from(1 << 20);
        seats.say(READ).await?;
        tokio::time::sleep(time / 4).await;
        let after = seats.rate(time).await? / others;
        println!(
            "{count} subscribers: {before:.0} messages/s each, {beside:.0} beside one that hangs, {after:.0} after it; \
             publisher {memory:.0} MiB resident"
        );
        ratios.push(100.0 * beside / ((before + after) / 2.0));
        rates[0].push(before);
        rates[1].push(beside);
        before = after;
    }
    publishing.abort();
    let [least, median, greatest] = spread_of(ratios);
    println!(
        "medians: {:.0} messages/s each, {:.0} beside one that hangs; the others keep {median:.1} % ({least:.1} to {greatest:.1})\n",
        spread_of(std::mem::take(&mut rates[0]))[1],
        spread_of(std::mem::take(&mut rates[1]))[1],
    );
    drop(seats);
    node.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// The publisher's view of its audience.
struct Seats {
    publisher: Arc<Publisher>,
    /// Away while another thread waits for its answer.
    hall: Option<Hall>,
}

impl Seats {
    /// What all others receive in a second.
    async fn rate(&mut self, time: Duration) -> Outcome<f64> {
        let (start, before) = (Instant::now(), self.received().await?);
        tokio::time::sleep(time).await;
        let received = self.received().await? - before;
        Ok(received / start.elapsed().as_secs_f64())
    }

    /// One stops reading, and the publisher has no more room for it.
    async fn hang(&mut self) -> Outcome<()> {
        let dropped = |publisher: &Publisher| {
            let link = publisher.links().into_iter().find(|link| link.remote.node() == HANGING);
            link.map(|link| link.dropped).ok_or("it has gone")
        };
        self.say(HANG).await?;
        let (start, before) = (Instant::now(), dropped(&self.publisher)?);
        while dropped(&self.publisher)? < before + BURST as u64 {
            if start.elapsed() > PATIENCE {
                return Err("there is always room for a subscriber that does not read".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn received(&mut self) -> Outcome<f64> {
        Ok(self.say(COUNT).await?.parse()?)
    }

    /// Tells the audience something, and waits for its answer, while this thread goes on publishing.
    async fn say(&mut self, what: &'static str) -> Outcome<String> {
        let mut hall = self.hall.take().ok_or("the audience has gone")?;
        let (hall, answer) = spawn_blocking(move || {
            let answer = hall.ask(what);
            (hall, answer)
        })
        .await?;
        self.hall = Some(hall);
        answer
    }
}

/// The audience's process, as seen from the publisher's.
struct Hall {
    child: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Hall {
    fn open(count: u64, address: &str) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["attend", "--count", &count.to_string(), address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("its input is not piped")?;
        let lines = BufReader::new(child.stdout.take().ok_or("its output is not piped")?).lines();
        let mut hall = Self { child, input, lines };
        hall.line()?;
        Ok(hall)
    }

    fn ask(&mut self, what: &str) -> Outcome<String> {
        writeln!(self.input, "{what}")?;
        self.input.flush()?;
        self.line()
    }

    fn line(&mut self) -> Outcome<String> {
        Ok(self.lines.next().ok_or("the audience has gone")??)
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The audience's own process: says a line when all are there, and answers every line that it hears with one.
pub fn attend(audience: &Audience) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let received = Arc::new(AtomicU64::new(0));
        let (hangs, hanging) = watch::channel(false);
        let mut readers = JoinSet::new();
        for number in 0..audience.count {
            let id = HANGING.0 + number;
            let node = Node::builder().id(id).start().await?;
            let mut subscriber =
                Subscriber::connect(&node, SOCKET, audience.address.clone(), Options::default()).await?;
            subscriber.subscribe("").await?;
            if id == HANGING.0 {
                readers.spawn(read_or_hang(node, subscriber, hanging.clone()));
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
        let (heard, mut asked) = mpsc::channel(1);
        // Ends with the process, which the publisher's ends.
        std::thread::spawn(move || {
            std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| heard.blocking_send(line))
        });
        println!("{HERE}");
        while let Some(line) = asked.recv().await {
            match line.as_str() {
                HANG | READ => {
                    hangs.send_replace(line == HANG);
                    println!("{line}");
                }
                _ => println!("{}", received.load(Ordering::Relaxed)),
            }
            std::io::stdout().flush()?;
        }
        Ok(())
    })
}

async fn read_or_hang(_node: Node, mut subscriber: Subscriber, mut hanging: watch::Receiver<bool>) {
    while hanging.wait_for(|hangs| !hangs).await.is_ok() {
        tokio::select! {
            batch = subscriber.receive_batch() => if batch.is_err() { return },
            _ = hanging.changed() => {}
        }
    }
}

const SOCKET: &str = "news";
/// The subscriber that reads not always; the others' numbers follow.
const HANGING: NodeId = NodeId(2);
const HANG: &str = "hang";
const READ: &str = "read";
const COUNT: &str = "count";
const HERE: &str = "here";
/// How long the room for a subscriber that does not read may last.
const PATIENCE: Duration = Duration::from_secs(120);
