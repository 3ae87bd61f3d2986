//! How many totally ordered messages per second do three processes deliver, and how late?
//!
//! Set-up      three processes on loopback TCP, one thread each, one group in uniform total order with view changes and
//!             state transfer on. Every member delivers every message; the rate is deliveries per second at one
//!             receiver, the median of the three. `one` sends from the sequencer, `all` from all three. Beside it, in
//!             the same run: one process that writes the same bytes in 64 KiB pieces to two receivers over plain TCP,
//!             which is the limit of the medium, without order, acknowledgement or membership.
//!             Latency: 1,000 messages a second in all, from the call to the delivery at another member, by the
//!             machine's common clock.
//!             Pauses: the longest time without a delivery at a member that goes on, while 1,000 messages a second are sent and
//!             the sequencer is killed (SIGKILL), and while three members send 30,000 messages of 1 KiB a second and a fourth
//!             one joins, which is given 100 MiB of state; the latter also without a joiner.
//! Blind spot  three processes share the machine's cores, so the rate is bounded by their CPU time together; no loss.
//! Run         cargo bench -p benches --bench groups [-- --quick]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use quorate::group::{Builder, Event, Events, Group, Total};
use quorate::node::{Address, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
struct Options {
    /// Short rounds, for a first look and for CI.
    #[arg(long)]
    quick: bool,
    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// One process of a run; started by the bench itself.
    #[command(hide = true)]
    Member {
        #[arg(long)]
        index: usize,
        #[arg(long)]
        mode: String,
        #[arg(long)]
        bytes: usize,
        #[arg(long)]
        millis: u64,
        #[arg(long)]
        contact: Option<String>,
    },
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let options = Options::parse();
    match options.role {
        Some(Role::Member { index, mode, bytes, millis, contact }) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let member = Member { index, mode, bytes, time: Duration::from_millis(millis), contact };
            runtime.block_on(member.run())
        }
        None => compare(options.quick),
    }
}

/// All runs, A B A B, and the table.
fn compare(quick: bool) -> Outcome<()> {
    let (rounds, millis) = if quick { (1, 500) } else { (5, 2000) };
    let cases = [("raw", 1024), ("one", 1024), ("all", 1024), ("raw", 64), ("one", 64), ("all", 64)];
    let mut rates: Vec<Vec<Report>> = cases.iter().map(|_| Vec::new()).collect();
    let mut late = Vec::new();
    for _ in 0..rounds {
        for (case, (mode, bytes)) in cases.iter().enumerate() {
            rates[case].push(run(mode, *bytes, millis)?);
        }
        late.push(run("slow", 64, millis)?);
    }
    println!("three processes, loopback TCP; medians of {rounds} rounds of {millis} ms");
    println!("{:<34} {:>14} {:>16} {:>10}", "", "msg/s/receiver", "us CPU/delivery", "x raw");
    let mut raw = 0.0;
    for ((mode, bytes), reports) in cases.iter().zip(&rates) {
        let rate = median(reports.iter().map(|report| report.rate));
        let cpu = median(reports.iter().map(|report| report.cpu_us));
        let name = match *mode {
            "raw" => {
                raw = rate;
                "plain TCP to two receivers"
            }
            "one" => "total order, sequencer sends",
            _ => "total order, all three send",
        };
        println!("{name:<28} {bytes:>5} B {rate:>14.0} {cpu:>16.2} {:>10.2}", rate / raw);
    }
    let pauses = |mode| (0..rounds).map(|_| run_pause(mode, millis.max(1000))).collect::<Outcome<Vec<_>>>();
    let (killed, joined, quiet) = (pauses("kill")?, pauses("join")?, pauses("quiet")?);
    let worst = |pauses: &[Pause]| pauses.iter().map(|pause| pause.gap_ms).fold(0.0, f64::max);
    let middle = |pauses: &[Pause]| median(pauses.iter().map(|pause| pause.gap_ms));
    println!("sequencer killed: {:.0} ms without delivery, {:.0} at worst", middle(&killed), worst(&killed));
    println!(
        "joiner with 100 MiB of state: joined after {:.0} ms; {:.1} ms without delivery at the others, {:.1} at worst; \
         without a joiner {:.1}, {:.1} at worst",
        median(joined.iter().map(|pause| pause.joined_ms)),
        middle(&joined),
        worst(&joined),
        middle(&quiet),
        worst(&quiet)
    );
    let at = |pick: fn(&Report) -> f64| median(late.iter().map(pick));
    println!(
        "total order, 1,000 msg/s, one way: p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us",
        at(|report| report.p50_us),
        at(|report| report.p99_us),
        at(|report| report.p999_us)
    );
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What one run gave.
#[derive(Default)]
struct Report {
    rate: f64,
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

/// A process of a run; killed when dropped.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(index: usize, mode: &str, bytes: usize, millis: u64, contact: Option<&str>) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["member", "--index", &index.to_string(), "--mode", mode]);
        command.args(["--bytes", &bytes.to_string(), "--millis", &millis.to_string()]);
        if let Some(contact) = contact {
            command.args(["--contact", contact]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self { child, input, output })
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("a process of the run has died".into());
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already when all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts three processes, lets them begin together, and sums up.
fn run(mode: &str, bytes: usize, millis: u64) -> Outcome<Report> {
    let mut first = Process::start(0, mode, bytes, millis, None)?;
    let contact = first.line()?;
    let mut processes = vec![first];
    for index in 1..3 {
        processes.push(Process::start(index, mode, bytes, millis, Some(&contact))?);
    }
    for process in &mut processes {
        let ready = process.line()?;
        if ready != "ready" {
            return Err(format!("expected a process to be ready, got {ready:?}").into());
        }
    }
    for process in &mut processes {
        writeln!(process.input, "go")?;
        process.input.flush()?;
    }
    let mut lines = Vec::new();
    for process in &mut processes {
        let line = process.line()?;
        lines.push(line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?);
    }
    // In the raw run the first process only sends.
    let receivers = if mode == "raw" { &lines[1..] } else { &lines[..] };
    let delivered: f64 = receivers.iter().map(|line| line[0]).sum();
    let cpu: f64 = lines.iter().map(|line| line[1]).sum();
    let at = |column: usize| median(receivers.iter().map(|line| line[column]));
    Ok(Report {
        rate: median(receivers.iter().map(|line| line[0])) / (millis as f64 / 1e3),
        cpu_us: cpu / delivered,
        p50_us: at(2),
        p99_us: at(3),
        p999_us: at(4),
    })
}

/// What a change of members cost the others.
struct Pause {
    /// The longest time without a delivery at a member that goes on.
    gap_ms: f64,
    joined_ms: f64,
}

/// Three processes under load, of which one is killed or to which another one comes.
fn run_pause(mode: &str, millis: u64) -> Outcome<Pause> {
    let mut first = Process::start(0, mode, 1024, millis, None)?;
    let contact = first.line()?;
    let mut processes = vec![first];
    for index in 1..3 {
        processes.push(Process::start(index, mode, 1024, millis, Some(&contact))?);
    }
    for process in &mut processes {
        process.line()?;
    }
    for process in &mut processes {
        writeln!(process.input, "go")?;
        process.input.flush()?;
    }
    // They warm up for a quarter of the time.
    std::thread::sleep(Duration::from_millis(millis / 2));
    let mut joined_ms = 0.0;
    let mut joiner = None;
    match mode {
        "kill" => drop(processes.remove(0)),
        "join" => {
            let mut fourth = Process::start(3, mode, 1024, millis, Some(&contact))?;
            joined_ms = fourth.line()?.parse()?;
            joiner = Some(fourth);
        }
        _ => {}
    }
    let mut gap_ms: f64 = 0.0;
    for process in &mut processes {
        let line = process.line()?;
        let gap: f64 = line.split_whitespace().nth(5).ok_or("no gap")?.parse()?;
        gap_ms = gap_ms.max(gap);
    }
    drop(joiner);
    Ok(Pause { gap_ms, joined_ms })
}

struct Member {
    index: usize,
    mode: String,
    bytes: usize,
    time: Duration,
    contact: Option<String>,
}

impl Member {
    async fn run(self) -> Outcome<()> {
        if self.mode == "raw" {
            return self.run_raw().await;
        }
        let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
        let builder = Builder::total("bench");
        let begun = Instant::now();
        let (group, mut events) = match &self.contact {
            None => {
                println!("{}", node.addresses()[0]);
                builder.create(&node).await?
            }
            Some(contact) => builder.join(&node, &[contact.parse::<Address>()?]).await?,
        };
        if self.index == 3 {
            while !matches!(events.next().await.ok_or("the membership ended")?, Event::State(_)) {}
            println!("{}", begun.elapsed().as_secs_f64() * 1e3);
            let _ = self.count(&mut events, self.time).await;
            return Ok(());
        }
        // The founder gives its state to one joiner after the other.
        let mut answered = 0;
        while !(self.is_complete(&group) && (self.index > 0 || answered == 2)) {
            if let Event::StateWanted(request) = events.next().await.ok_or("the membership ended")? {
                request.answer(Bytes::new());
                answered += 1;
            }
        }
        wait_go().await?;
        let sends = match self.mode.as_str() {
            "all" | "slow" | "join" | "quiet" => true,
            "kill" => self.index > 0,
            _ => self.index == 0,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let sender = sends.then(|| tokio::spawn(self.sender(group.clone(), stop.clone())));
        // A quarter of the time to warm up.
        self.count(&mut events, self.time / 4).await?;
        let cpu = cpu_us()?;
        let Counted { delivered, late, gap } = self.count(&mut events, self.time).await?;
        let cpu = cpu_us()? - cpu;
        stop.store(true, Ordering::Relaxed);
        let at = |quantile: f64| late.value_at_quantile(quantile) as f64 / 1e3;
        let gap_ms = gap.as_secs_f64() * 1e3;
        println!("{delivered} {cpu} {} {} {} {gap_ms}", at(0.5), at(0.99), at(0.999));
        // Keep delivering until all have measured: the parent ends the run.
        let _ = self.count(&mut events, self.time / 2).await;
        drop(sender);
        Ok(())
    }

    fn is_complete(&self, group: &Group<Total>) -> bool {
        group.view().is_some_and(|view| view.members.len() == 3)
    }

    fn sender(
        &self,
        group: Group<Total>,
        stop: Arc<AtomicBool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let bytes = self.bytes;
        // How many at a time, and how often.
        let pace = match self.mode.as_str() {
            "slow" => Some((1, 3)),
            "kill" => Some((1, 2)),
            "join" | "quiet" => Some((10, 1)),
            _ => None,
        };
        async move {
            let mut timer = tokio::time::interval(Duration::from_millis(pace.map_or(1, |(_, every)| every)));
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Some((burst, _)) = pace
                    && number.is_multiple_of(burst)
                {
                    timer.tick().await;
                }
                let mut payload = BytesMut::with_capacity(bytes);
                payload.put_u64_le(now_nanos());
                payload.put_bytes(0, bytes.saturating_sub(8));
                if group.cast(payload.freeze()).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn count(&self, events: &mut Events, time: Duration) -> Outcome<Counted> {
        let mut late = Histogram::new_with_bounds(1, LATE_NANOS_MAX, 3)?;
        let mut delivered = 0;
        let times_gaps = matches!(self.mode.as_str(), "kill" | "join" | "quiet");
        let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
        let state = Bytes::from(vec![0; if self.mode == "join" { STATE_BYTES } else { 0 }]);
        let end = Instant::now() + time;
        let end_of = tokio::time::sleep(time);
        tokio::pin!(end_of);
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event.ok_or("the membership ended")?,
                () = &mut end_of => break,
            };
            if let Event::StateWanted(request) = event {
                request.answer(state.clone());
            } else if let Event::Message { payload, .. } = event {
                delivered += 1;
                if times_gaps {
                    let now = Instant::now();
                    gap = gap.max(now - std::mem::replace(&mut last, now));
                }
                if self.mode == "slow"
                    && let Some(sent) = payload.first_chunk()
                {
                    late.saturating_record(now_nanos().saturating_sub(u64::from_le_bytes(*sent)).max(1));
                }
            }
            // The timer is only polled when no event waits.
            if delivered % 64 == 0 && Instant::now() >= end {
                break;
            }
        }
        Ok(Counted { delivered, late, gap: gap.max(if times_gaps { last.elapsed() } else { gap }) })
    }

    /// The limit of the medium: no order, no acknowledgement, no membership.
    async fn run_raw(self) -> Outcome<()> {
        let total = self.time + self.time / 4;
        match &self.contact {
            None => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                println!("{}", listener.local_addr()?);
                let (mut one, _) = listener.accept().await?;
                let (mut two, _) = listener.accept().await?;
                println!("ready");
                wait_line().await?;
                let block = vec![0; 64 << 10];
                let (cpu, end) = (cpu_us()?, Instant::now() + total + self.time / 4);
                let sent = async {
                    while Instant::now() < end {
                        tokio::try_join!(one.write_all(&block), two.write_all(&block))?;
                    }
                    Ok::<_, std::io::Error>(())
                };
                // The receivers stop first, and break the connection.
                let _ = sent.await;
                let cpu = (cpu_us()? - cpu) * self.time.as_secs_f64() / (total + self.time / 4).as_secs_f64();
                println!("0 {cpu} 0 0 0");
            }
            Some(contact) => {
                let mut stream = TcpStream::connect(contact).await?;
                println!("ready");
                wait_line().await?;
                let mut buffer = vec![0; 256 << 10];
                let warm = Instant::now() + self.time / 4;
                let mut warmed = 0;
                while Instant::now() < warm {
                    warmed += stream.read(&mut buffer).await?;
                }
                if warmed == 0 {
                    return Err("the sender sends nothing".into());
                }
                let (cpu, end) = (cpu_us()?, Instant::now() + self.time);
                let mut taken = 0;
                while Instant::now() < end {
                    taken += stream.read(&mut buffer).await?;
                }
                println!("{} {} 0 0 0", taken / self.bytes, cpu_us()? - cpu);
            }
        }
        Ok(())
    }
}

/// What a member saw in some time.
struct Counted {
    delivered: u64,
    late: Histogram<u64>,
    /// The longest time without a delivery.
    gap: Duration,
}

async fn wait_go() -> Outcome<()> {
    println!("ready");
    wait_line().await
}

/// Waits for the parent's word without blocking the runtime: members must keep answering each other meanwhile.
async fn wait_line() -> Outcome<()> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)
    });
    read.await??;
    Ok(())
}

fn now_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// User and system time of this process so far, in microseconds.
fn cpu_us() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Fields 14 and 15 of the whole line; the kernel counts in hundredths of a second on every Linux.
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks * 10_000.0)
}

const STATE_BYTES: usize = 100 << 20;

/// Messages later than this count as this late.
const LATE_NANOS_MAX: u64 = 60_000_000_000;
