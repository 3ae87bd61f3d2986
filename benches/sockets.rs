//! What do sockets cost per message, beside a hand-written tokio loop with length-delimited frames?
//!
//! Set-up      TCP over loopback, the two sides each in a thread with a runtime of its own. One way: push/pull against a
//!             loop that gathers 64 KiB before a write and parses in place; the clock stops when the reader has told
//!             that it got everything. "owned" hands each message over as `Bytes`, "borrowed" as a slice. Round trip:
//!             request/reply with a handler in the connection's task, and with a task that receives, against an echo of
//!             the loop and against blocking sockets. In process: push/pull on one node, one thread, through the
//!             node's own connection. Rivals alternate within every round; figures are medians of the rounds.
//! Blind spot  loopback has no distance and no loss; two busy threads share the machine's cores with the kernel's
//!             work, so ratios of one run are claims, rates are not.
//! Run         cargo bench -p benches --bench sockets [-- --quick] [-- --rounds N]

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Parser;
use hdrhistogram::Histogram;
use quorate::Node;
use quorate::socket::{Options as SocketOptions, Pull, Push, Replier, Requester};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
struct Options {
    /// Short rounds, for a first look and for CI.
    #[arg(long)]
    quick: bool,
    /// How often every rival runs.
    #[arg(long)]
    rounds: Option<usize>,
    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let options = Options::parse();
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 11 });
    println!("medians of {rounds} rounds; TCP over loopback, two threads, two runtimes\n");
    println!("{:<38} {:>12} {:>9}", "one way", "messages/s", "x hand");
    for (size, count) in [(64, 2_000_000), (1024, 500_000), (65_536, 10_000)] {
        let count = if options.quick { count / 2 } else { count * 3 };
        let rivals = [OneWay::HandBorrowed, OneWay::SocketBorrowed, OneWay::HandOwned, OneWay::SocketOwned];
        let mut rates = rivals.map(|rival| (rival, Vec::new()));
        for _ in 0..rounds {
            for (rival, rates) in &mut rates {
                rates.push(one_way(*rival, size, count)?);
            }
        }
        for (at, (rival, own)) in rates.iter().enumerate() {
            let hand = median(&rates[at & !1].1);
            let rate = median(own);
            println!("{:<38} {rate:>12.0} {:>9.2}", format!("{size:>6} B  {}", rival.name()), rate / hand);
        }
    }
    let mut rates = Vec::new();
    for _ in 0..rounds {
        rates.push(in_process(if options.quick { 2_000_000 } else { 10_000_000 })?);
    }
    println!("{:<38} {:>12.0}", "    64 B  in process, borrowed", median(&rates));

    println!("\n{:<38} {:>10} {:>10} {:>9}", "round trip, 64 B", "p50 us", "p99 us", "x hand");
    let rivals = [RoundTrip::Blocking, RoundTrip::Hand, RoundTrip::Handler, RoundTrip::Task];
    let mut runs = rivals.map(|rival| (rival, Vec::new(), Vec::new()));
    for _ in 0..rounds {
        for (rival, p50, p99) in &mut runs {
            let times = round_trips(*rival, if options.quick { 4_000 } else { 30_000 })?;
            p50.push(times.value_at_quantile(0.5) as f64 / 1e3);
            p99.push(times.value_at_quantile(0.99) as f64 / 1e3);
        }
    }
    let hand = median(&runs[1].1);
    for (rival, p50, p99) in &runs {
        let ratio = median(p50) / hand;
        println!("{:<38} {:>10.1} {:>10.1} {ratio:>9.2}", rival.name(), median(p50), median(p99));
    }
    println!("\ngoals: one way at least 0.50 x hand; round trip at most 1.15 x the blocking one");
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OneWay {
    HandBorrowed,
    SocketBorrowed,
    HandOwned,
    SocketOwned,
}

impl OneWay {
    fn name(self) -> &'static str {
        match self {
            Self::HandBorrowed => "by hand, borrowed",
            Self::SocketBorrowed => "push/pull, borrowed",
            Self::HandOwned => "by hand, owned",
            Self::SocketOwned => "push/pull, owned",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RoundTrip {
    Blocking,
    Hand,
    Handler,
    Task,
}

impl RoundTrip {
    fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking write/read",
            Self::Hand => "tokio, by hand",
            Self::Handler => "request/reply, handler",
            Self::Task => "request/reply, task",
        }
    }
}

/// Messages per second from one thread to the other.
fn one_way(rival: OneWay, size: usize, count: usize) -> Outcome<f64> {
    apart(
        move |place| async move {
            match rival {
                OneWay::HandBorrowed | OneWay::HandOwned => {
                    let listener = TcpListener::bind("127.0.0.1:0").await?;
                    place.send(listener.local_addr()?.to_string())?;
                    hand_count(listener.accept().await?.0, count, rival == OneWay::HandOwned).await
                }
                OneWay::SocketBorrowed | OneWay::SocketOwned => {
                    let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
                    let mut pull = Pull::bind(&node, "work", SocketOptions::default())?;
                    let done = Push::bind(&node, "done", SocketOptions::default())?;
                    place.send(node.addresses()[0].to_string())?;
                    if rival == OneWay::SocketOwned {
                        let mut sum = 0;
                        for _ in 0..count {
                            sum += u64::from(pull.receive().await?.body[0]);
                        }
                        assert_eq!(sum, 7 * count as u64);
                    } else {
                        count_borrowed(&mut pull, count).await?;
                    }
                    done.send("!").await?;
                    done.close(Duration::from_secs(5)).await;
                    Ok(())
                }
            }
        },
        move |place| async move {
            let payload = vec![7u8; size];
            match rival {
                OneWay::HandBorrowed | OneWay::HandOwned => {
                    let mut stream = TcpStream::connect(place).await?;
                    stream.set_nodelay(true)?;
                    let start = Instant::now();
                    hand_send(&mut stream, &payload, count).await?;
                    stream.read_u8().await?;
                    Ok(count as f64 / start.elapsed().as_secs_f64())
                }
                OneWay::SocketBorrowed | OneWay::SocketOwned => {
                    let node = Node::builder().start().await?;
                    let push = Push::connect(&node, &*place, "work", SocketOptions::default()).await?;
                    let mut done = Pull::connect(&node, &*place, "done", SocketOptions::default()).await?;
                    let start = Instant::now();
                    for _ in 0..count {
                        push.send(&payload).await?;
                    }
                    done.receive().await?;
                    Ok(count as f64 / start.elapsed().as_secs_f64())
                }
            }
        },
    )
}

async fn count_borrowed(pull: &mut Pull, count: usize) -> Outcome<()> {
    let (mut got, mut sum) = (0, 0);
    while got < count {
        for body in pull.receive_batch().await? {
            sum += u64::from(body[0]);
            got += 1;
        }
    }
    assert_eq!(sum, 7 * count as u64);
    Ok(())
}

fn in_process(count: usize) -> Outcome<f64> {
    runtime()?.block_on(async {
        let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
        let mut pull = Pull::bind(&node, "work", SocketOptions::default())?;
        let push = Push::connect(&node, &node.addresses()[0], "work", SocketOptions::default()).await?;
        let start = Instant::now();
        let sending = async {
            for _ in 0..count {
                push.send(&[7; 64]).await?;
            }
            Outcome::Ok(())
        };
        let (sent, got) = tokio::join!(sending, count_borrowed(&mut pull, count));
        sent?;
        got?;
        Ok(count as f64 / start.elapsed().as_secs_f64())
    })
}

/// Times of round trips, in nanoseconds.
fn round_trips(rival: RoundTrip, turns: usize) -> Outcome<Histogram<u64>> {
    if rival == RoundTrip::Blocking {
        return blocking(turns);
    }
    apart(
        move |place| async move {
            if rival == RoundTrip::Hand {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                place.send(listener.local_addr()?.to_string())?;
                return hand_echo(listener.accept().await?.0).await;
            }
            let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
            let mut done = Pull::bind(&node, "done", SocketOptions::default())?;
            let address = node.addresses()[0].to_string();
            if rival == RoundTrip::Handler {
                let echo = |body: &[u8]| Bytes::copy_from_slice(body);
                let _serving = Replier::serve(&node, "echo", SocketOptions::default(), echo)?;
                place.send(address)?;
                done.receive().await?;
                return Ok(());
            }
            let mut replier = Replier::bind(&node, "echo", SocketOptions::default())?;
            place.send(address)?;
            for _ in 0..turns {
                let asked = replier.receive().await?;
                let body = asked.body().clone();
                asked.reply(body).await?;
            }
            done.receive().await?;
            Ok(())
        },
        move |place| async move {
            let payload = [7u8; 64];
            let mut times = Histogram::new(3)?;
            if rival == RoundTrip::Hand {
                let mut stream = TcpStream::connect(place).await?;
                stream.set_nodelay(true)?;
                let (mut out, mut buffer) = (BytesMut::new(), BytesMut::with_capacity(READ_BYTES));
                for _ in 0..turns {
                    let start = Instant::now();
                    put(&mut out, &payload);
                    stream.write_all(&out).await?;
                    out.clear();
                    while hand_next(&mut buffer).is_none() {
                        hand_read(&mut stream, &mut buffer).await?;
                    }
                    times.record(nanos(start))?;
                }
                return Ok(times);
            }
            let node = Node::builder().start().await?;
            let requester = Requester::connect(&node, &*place, "echo", SocketOptions::default()).await?;
            for _ in 0..turns {
                let start = Instant::now();
                requester.request(&payload).await?;
                times.record(nanos(start))?;
            }
            let done = Push::connect(&node, &*place, "done", SocketOptions::default()).await?;
            done.send("!").await?;
            done.close(Duration::from_secs(5)).await;
            Ok(times)
        },
    )
}

fn blocking(turns: usize) -> Outcome<Histogram<u64>> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let place = listener.local_addr()?;
    let echo = thread::spawn(move || -> Outcome<()> {
        let mut stream = listener.accept()?.0;
        stream.set_nodelay(true)?;
        let mut body = [0; 64];
        for _ in 0..turns {
            stream.read_exact(&mut body)?;
            stream.write_all(&body)?;
        }
        Ok(())
    });
    let mut stream = std::net::TcpStream::connect(place)?;
    stream.set_nodelay(true)?;
    let mut times = Histogram::new(3)?;
    let mut body = [7; 64];
    for _ in 0..turns {
        let start = Instant::now();
        stream.write_all(&body)?;
        stream.read_exact(&mut body)?;
        times.record(nanos(start))?;
    }
    match echo.join() {
        Ok(echoed) => echoed?,
        Err(_) => return Err("the echo panicked".into()),
    }
    Ok(times)
}

/// Runs a server and a client, each in a thread and a runtime of its own; the server tells where it listens.
fn apart<T, S, C>(
    server: impl FnOnce(mpsc::Sender<String>) -> S + Send + 'static,
    client: impl FnOnce(String) -> C,
) -> Outcome<T>
where
    S: Future<Output = Outcome<()>>,
    C: Future<Output = Outcome<T>>,
{
    let (sender, place) = mpsc::channel();
    let server = thread::spawn(move || runtime()?.block_on(server(sender)));
    let place = place.recv()?;
    let outcome = {
        let runtime = runtime()?;
        runtime.block_on(client(place))
    };
    // The client's end has closed the connection, so the server is done or about to be.
    match server.join() {
        Ok(served) => served?,
        Err(_) => return Err("the server panicked".into()),
    }
    outcome
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

// By hand.

fn put(out: &mut BytesMut, payload: &[u8]) {
    out.put_u32_le(payload.len() as u32);
    out.put_slice(payload);
}

async fn hand_send(stream: &mut TcpStream, payload: &[u8], frames: usize) -> Outcome<()> {
    let mut out = BytesMut::with_capacity(BATCH_BYTES + payload.len() + 4);
    for _ in 0..frames {
        put(&mut out, payload);
        if out.len() >= BATCH_BYTES {
            stream.write_all(&out).await?;
            out.clear();
        }
    }
    Ok(stream.write_all(&out).await?)
}

async fn hand_read(stream: &mut TcpStream, buffer: &mut BytesMut) -> Outcome<()> {
    if buffer.capacity() - buffer.len() < READ_BYTES / 2 {
        buffer.reserve(READ_BYTES);
    }
    if stream.read_buf(buffer).await? == 0 { Err("closed".into()) } else { Ok(()) }
}

/// The next whole frame, as long as the loop checks what a peer could claim.
fn hand_next(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = hand_length(buffer)?;
    buffer.advance(4);
    Some(buffer.split_to(length).freeze())
}

fn hand_length(buffer: &BytesMut) -> Option<usize> {
    let length = u32::from_le_bytes(*buffer.first_chunk()?) as usize;
    assert!(length <= FRAME_BYTES_MAX);
    (buffer.len() >= 4 + length).then_some(length)
}

async fn hand_count(mut stream: TcpStream, frames: usize, is_owned: bool) -> Outcome<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let (mut count, mut sum) = (0, 0u64);
    while count < frames {
        hand_read(&mut stream, &mut buffer).await?;
        if is_owned {
            while let Some(frame) = hand_next(&mut buffer) {
                sum += u64::from(frame[0]);
                count += 1;
            }
        } else {
            while let Some(length) = hand_length(&buffer) {
                sum += u64::from(buffer[4]);
                buffer.advance(4 + length);
                count += 1;
            }
        }
    }
    assert_eq!(sum, 7 * frames as u64);
    stream.write_u8(1).await?;
    Ok(())
}

async fn hand_echo(mut stream: TcpStream) -> Outcome<()> {
    stream.set_nodelay(true)?;
    let (mut out, mut buffer) = (BytesMut::new(), BytesMut::with_capacity(READ_BYTES));
    while hand_read(&mut stream, &mut buffer).await.is_ok() {
        while let Some(frame) = hand_next(&mut buffer) {
            put(&mut out, &frame);
        }
        stream.write_all(&out).await?;
        out.clear();
    }
    Ok(())
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Gathered before a write.
const BATCH_BYTES: usize = 64 * 1024;
/// The read buffer of the loop by hand.
const READ_BYTES: usize = 128 * 1024;
const FRAME_BYTES_MAX: usize = 1 << 20;
