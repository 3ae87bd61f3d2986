//! What does a typed call cost over loopback TCP, alone and with many in flight?
//!
//! Set-up      server and client on a single-threaded runtime each, in two threads of one process; one connection;
//!             64 bytes there and back; deadline, cancellation, request ids, retransmission and the duplicate filter
//!             are on. Beside it, in the same rounds: the same bytes by blocking write and read, and by a
//!             hand-written tokio loop with length-prefixed frames. Every figure is the median of the rounds.
//! Blind spot  one machine, so the network costs nothing but its system calls; one process, so CPU time is that of
//!             both sides together, in steps of 10 ms; the pipelined rate has no rival here.
//! Run         cargo bench -p benches --bench rpc [-- --quick]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use quorate::node::Node;
use quorate::{Payload, service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

#[derive(Parser)]
struct Options {
    /// Short rounds, for a first look and for CI.
    #[arg(long)]
    quick: bool,
    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[service]
trait Echo {
    async fn echo(&self, bytes: Payload) -> Payload;
    #[idempotent]
    async fn echo_idempotent(&self, bytes: Payload) -> Payload;
}

struct Mirror;

impl Echo for Mirror {
    async fn echo(&self, bytes: Payload) -> Payload {
        bytes
    }
    async fn echo_idempotent(&self, bytes: Payload) -> Payload {
        bytes
    }
}

fn main() -> Outcome<()> {
    let options = Options::parse();
    let (rounds, span) =
        if options.quick { (3, Duration::from_millis(300)) } else { (7, Duration::from_secs(1)) };
    println!("{BYTES} B echo over loopback TCP; medians of {rounds} rounds of {span:?}\n");

    let blocking = blocking_server()?;
    let by_hand = by_hand_server()?;
    let quorate = Quorate::start()?;

    let mut lone = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        lone[0].push(blocking_lone(blocking, span)?);
        lone[1].push(by_hand_lone(by_hand, span)?);
        lone[2].push(quorate.lone(span)?);
    }
    println!(
        "{:<28}{:>10}{:>10}{:>16}{:>14}",
        "a lone call", "p50 us", "p99 us", "CPU us a call", "p50 ratio"
    );
    let base = median(lone[0].iter().map(|round| round.p50));
    for (name, rounds) in ["blocking write and read", "tokio by hand", "quorate"].into_iter().zip(&lone) {
        let p50 = median(rounds.iter().map(|round| round.p50));
        let p99 = median(rounds.iter().map(|round| round.p99));
        let cpu = median(rounds.iter().map(|round| round.cpu));
        println!("{name:<28}{p50:>10.1}{p99:>10.1}{cpu:>16.1}{:>14.2}", p50 / base);
    }

    println!("\n{:<28}{:>10}{:>26}", "in flight", "calls/s", "CPU us a call");
    for in_flight in [64, 1_024] {
        for (name, idempotent) in [("at most once", false), ("idempotent", true)] {
            let mut rates = Vec::new();
            let mut cpus = Vec::new();
            for _ in 0..rounds {
                let (rate, cpu) = quorate.pipelined(in_flight, idempotent, span)?;
                rates.push(rate);
                cpus.push(cpu);
            }
            let (rate, cpu) = (median(rates.into_iter()), median(cpus.into_iter()));
            println!("{:<28}{rate:>10.0}{cpu:>26.2}", format!("{in_flight}, {name}"));
        }
    }
    Ok(())
}

/// One round of calls one after the other, in microseconds.
struct Lone {
    p50: f64,
    p99: f64,
    cpu: f64,
}

struct Recorder {
    histogram: Histogram<u64>,
    cpu: Duration,
}

impl Recorder {
    fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self { histogram: Histogram::new_with_bounds(1, 60_000_000_000, 3)?, cpu: cpu_time() })
    }

    fn record(&mut self, began: Instant) {
        self.histogram.saturating_record(began.elapsed().as_nanos() as u64);
    }

    fn end(self) -> Lone {
        let cpu = cpu_time() - self.cpu;
        Lone {
            p50: self.histogram.value_at_quantile(0.5) as f64 / 1e3,
            p99: self.histogram.value_at_quantile(0.99) as f64 / 1e3,
            cpu: cpu.as_secs_f64() * 1e6 / self.histogram.len().max(1) as f64,
        }
    }
}

fn blocking_server() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            thread::spawn(move || {
                let mut buffer = [0; BYTES];
                while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
            });
        }
    });
    Ok(address)
}

fn blocking_lone(address: SocketAddr, span: Duration) -> Outcome<Lone> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = [7; BYTES];
    let mut recorder = Recorder::new()?;
    let end = Instant::now() + span;
    while Instant::now() < end {
        let began = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        recorder.record(began);
    }
    Ok(recorder.end())
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn by_hand_server() -> Outcome<SocketAddr> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || -> std::io::Result<()> {
        runtime()?.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let _ = tell.send(listener.local_addr()?);
            loop {
                let (mut stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(async move {
                    let mut frame = vec![0; BYTES + 4];
                    while stream.read_exact(&mut frame).await.is_ok()
                        && stream.write_all(&frame).await.is_ok()
                    {}
                });
            }
        })
    });
    Ok(told.recv()?)
}

fn by_hand_lone(address: SocketAddr, span: Duration) -> Outcome<Lone> {
    runtime()?.block_on(async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut frame = vec![7; BYTES + 4];
        let mut recorder = Recorder::new()?;
        let end = Instant::now() + span;
        while Instant::now() < end {
            let began = Instant::now();
            stream.write_all(&frame).await?;
            stream.read_exact(&mut frame).await?;
            recorder.record(began);
        }
        Ok(recorder.end())
    })
}

struct Quorate {
    runtime: Runtime,
    client: EchoClient,
    _node: Node,
}

impl Quorate {
    fn start() -> Outcome<Self> {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            runtime()?.block_on(async {
                let node = Node::builder().id(1).listen("tcp://127.0.0.1:0").start().await?;
                let _serving = node.serve("echo", EchoServer::new(Mirror))?;
                let _ = tell.send(node.addresses()[0].clone());
                std::future::pending().await
            })
        });
        let address = told.recv()?;
        let runtime = runtime()?;
        let (node, client) = runtime.block_on(async {
            let node = Node::builder().id(2).start().await?;
            let client = EchoClient::connect(&node, "echo", &address).await?;
            Ok::<_, Box<dyn std::error::Error>>((node, client))
        })?;
        Ok(Self { runtime, client, _node: node })
    }

    fn lone(&self, span: Duration) -> Outcome<Lone> {
        let client = self.client.clone();
        // In a task, as callers are: the future that a runtime blocks on costs a look at the poller more.
        let caller = self.runtime.spawn(async move {
            let bytes = Payload::from(vec![7; BYTES]);
            let mut recorder = Recorder::new()?;
            let end = Instant::now() + span;
            while Instant::now() < end {
                let began = Instant::now();
                client.echo(bytes.clone()).await?;
                recorder.record(began);
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(recorder.end())
        });
        Ok(self.runtime.block_on(caller)?.map_err(|error| error.to_string())?)
    }

    /// Calls a second, and the CPU microseconds of both sides for each.
    fn pipelined(&self, in_flight: usize, idempotent: bool, span: Duration) -> Outcome<(f64, f64)> {
        self.runtime.block_on(async {
            let calls = Arc::new(AtomicU64::new(0));
            let (cpu, began) = (cpu_time(), Instant::now());
            let end = began + span;
            let callers: Vec<_> = (0..in_flight)
                .map(|_| {
                    let (client, calls) = (self.client.clone(), Arc::clone(&calls));
                    tokio::spawn(async move {
                        let bytes = Payload::from(vec![7; BYTES]);
                        let mut count = 0;
                        while Instant::now() < end {
                            if idempotent {
                                client.echo_idempotent(bytes.clone()).await?;
                            } else {
                                client.echo(bytes.clone()).await?;
                            }
                            count += 1;
                        }
                        calls.fetch_add(count, Ordering::Relaxed);
                        Ok::<_, quorate::rpc::CallError>(())
                    })
                })
                .collect();
            for caller in callers {
                caller.await??;
            }
            let calls = calls.load(Ordering::Relaxed) as f64;
            Ok((calls / began.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64() * 1e6 / calls))
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of this process so far; zero where there is no /proc.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

const BYTES: usize = 64;
