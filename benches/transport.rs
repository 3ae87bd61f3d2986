//! What does the transport contract cost per frame, beside a hand-written tokio loop with length-delimited frames?
//!
//! Set-up      one TCP connection over loopback, client and server each in a thread with a runtime of its own. One
//!             way: the client sends as fast as it can, the clock stops when the server answers that it has counted
//!             every frame. Round trip: one 64 B frame at a time. The loop by hand is a good one: it gathers 64 KiB
//!             before a write, reads up to 128 KiB at once, parses in place, TCP_NODELAY on both sides. "owned" hands
//!             each frame over as `Bytes`, "borrowed" as a slice. Rivals alternate within every round; figures are
//!             medians of the rounds.
//! Also        the same through a connection's lanes (tag, lock, heartbeat, liveness), through a node (channels), and over
//!             a link of `udp://`, whose reliability is made in user space.
//! Blind spot  loopback has no distance and no loss; two busy threads share the machine's cores with the kernel's
//!             work, so ratios of one run are claims, rates are not.
//! Run         cargo bench -p benches --bench transport [-- --quick] [-- --rounds N]

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Parser;
use hdrhistogram::Histogram;
use quorate::node::{Channel, ChannelHandler, Node, NodeId, PeerEvent, SendError};
use quorate_transports::connection::{
    CodecId, Connection, ConnectionConfig, Deliver, Hello, Lane, Verdict, answer, dial,
};
use quorate_transports::tcp::Tcp;
use quorate_transports::udp::Udp;
use quorate_transports::{Address, Identity, Inbox, Incarnation, Link, Listener, Outbox, Transport};
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
    let (bytes, turns) = if options.quick { (64 << 20, 4_000) } else { (512 << 20, 30_000) };

    println!("medians of {rounds} rounds; TCP over loopback, two threads, two runtimes\n");
    println!("{:<34} {:>12} {:>10} {:>9}", "one way", "frames/s", "MiB/s", "x hand");
    for size in [64, 4096] {
        let frames = (bytes / (size + 16)).min(if options.quick { 1_000_000 } else { 6_000_000 });
        let mut runs: Vec<(String, Vec<f64>)> = Vec::new();
        for _ in 0..rounds {
            for rival in ONE_WAY {
                let rate = one_way(rival, size, frames)?;
                let name = format!("{size:>4} B  {}", rival.name());
                match runs.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, rates)) => rates.push(rate),
                    None => runs.push((name, vec![rate])),
                }
            }
        }
        // Owned beside owned, borrowed beside borrowed; the layers above hand over owned frames.
        let (borrowed, owned) = (median(&runs[0].1), median(&runs[2].1));
        for (name, rates) in &runs {
            let rate = median(rates);
            let hand = if name.contains("borrowed") { borrowed } else { owned };
            let mib = rate * size as f64 / f64::from(1 << 20);
            println!("{name:<34} {rate:>12.0} {mib:>10.0} {:>9.2}", rate / hand);
        }
    }

    println!("\n{:<34} {:>12} {:>10} {:>9}", "round trip, 64 B", "p50 us", "p99 us", "x hand");
    let mut runs: Vec<(Rival, Vec<f64>, Vec<f64>)> =
        ROUND_TRIP.iter().map(|rival| (*rival, Vec::new(), Vec::new())).collect();
    for _ in 0..rounds {
        for (rival, p50, p99) in &mut runs {
            let times = round_trips(*rival, turns)?;
            p50.push(times.value_at_quantile(0.5) as f64 / 1e3);
            p99.push(times.value_at_quantile(0.99) as f64 / 1e3);
        }
    }
    let hand = median(&runs[0].1);
    for (rival, p50, p99) in &runs {
        let ratio = median(p50) / hand;
        println!("{:<34} {:>12.1} {:>10.1} {:>9.2}", rival.name(), median(p50), median(p99), ratio);
    }
    println!("\ngoals: link at least 0.90 x hand one way, at most 1.10 x hand per round trip");
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rival {
    HandBorrowed,
    LinkBorrowed,
    HandOwned,
    LinkOwned,
    LinkUdp,
    Connection,
    Node,
}

const ONE_WAY: [Rival; 7] = [
    Rival::HandBorrowed,
    Rival::LinkBorrowed,
    Rival::HandOwned,
    Rival::LinkOwned,
    Rival::LinkUdp,
    Rival::Connection,
    Rival::Node,
];
const ROUND_TRIP: [Rival; 5] =
    [Rival::HandOwned, Rival::LinkOwned, Rival::LinkUdp, Rival::Connection, Rival::Node];

impl Rival {
    fn name(self) -> &'static str {
        match self {
            Self::HandBorrowed => "by hand, borrowed",
            Self::LinkBorrowed => "link, borrowed",
            Self::HandOwned => "by hand, owned",
            Self::LinkOwned => "link, owned",
            Self::LinkUdp => "link over udp, owned",
            Self::Connection => "connection (lanes)",
            Self::Node => "node (channels)",
        }
    }

    /// What its link goes over.
    fn transport(self) -> Box<dyn Transport> {
        if self == Self::LinkUdp { Box::new(Udp::new()) } else { Box::new(Tcp::new()) }
    }
}

/// Frames per second from one thread to the other.
fn one_way(rival: Rival, size: usize, frames: usize) -> Outcome<f64> {
    apart(
        move |place| async move {
            match rival {
                Rival::HandBorrowed | Rival::HandOwned => {
                    let listener = TcpListener::bind("127.0.0.1:0").await?;
                    place.send(format!("tcp://{}", listener.local_addr()?).parse()?)?;
                    hand_count(listener.accept().await?.0, frames, rival == Rival::HandOwned).await
                }
                Rival::LinkBorrowed | Rival::LinkOwned | Rival::LinkUdp => {
                    let mut link = accept_over(rival.transport(), place).await?;
                    link_count(&mut link, frames, rival != Rival::LinkBorrowed).await
                }
                Rival::Connection => connection_serve(accept(place).await?, Mode::Count(frames)).await,
                Rival::Node => node_serve(place, Mode::Count(frames)).await,
            }
        },
        move |place| async move {
            let payload = vec![7u8; size];
            match rival {
                Rival::HandBorrowed | Rival::HandOwned => {
                    let mut stream = TcpStream::connect(place.rest()).await?;
                    stream.set_nodelay(true)?;
                    let start = Instant::now();
                    hand_send(&mut stream, &payload, frames).await?;
                    stream.read_u8().await?;
                    Ok(frames as f64 / start.elapsed().as_secs_f64())
                }
                Rival::LinkBorrowed | Rival::LinkOwned | Rival::LinkUdp => {
                    let mut link = rival.transport().connect(&place).await?;
                    let start = Instant::now();
                    link_send(&mut link, &payload, frames).await?;
                    link_hear(&mut link, &mut Inbox::new(FRAME_BYTES_MAX)).await?;
                    Ok(frames as f64 / start.elapsed().as_secs_f64())
                }
                Rival::Connection => connection_send(&place, &payload, frames).await,
                Rival::Node => node_send(&place, &payload, frames).await,
            }
        },
    )
}

/// Times of round trips, in nanoseconds.
fn round_trips(rival: Rival, turns: usize) -> Outcome<Histogram<u64>> {
    apart(
        move |place| async move {
            match rival {
                Rival::HandBorrowed | Rival::HandOwned => {
                    let listener = TcpListener::bind("127.0.0.1:0").await?;
                    place.send(format!("tcp://{}", listener.local_addr()?).parse()?)?;
                    hand_echo(listener.accept().await?.0).await
                }
                Rival::LinkBorrowed | Rival::LinkOwned | Rival::LinkUdp => {
                    link_echo(accept_over(rival.transport(), place).await?).await
                }
                Rival::Connection => connection_serve(accept(place).await?, Mode::Echo).await,
                Rival::Node => node_serve(place, Mode::Echo).await,
            }
        },
        move |place| async move {
            let payload = [7u8; 64];
            let mut times = Histogram::new(3)?;
            match rival {
                Rival::HandBorrowed | Rival::HandOwned => {
                    let mut stream = TcpStream::connect(place.rest()).await?;
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
                }
                Rival::LinkBorrowed | Rival::LinkOwned | Rival::LinkUdp => {
                    let mut link = rival.transport().connect(&place).await?;
                    let (mut outbox, mut inbox) = (Outbox::new(FRAME_BYTES_MAX), Inbox::new(FRAME_BYTES_MAX));
                    for _ in 0..turns {
                        let start = Instant::now();
                        outbox.push(&[&payload])?;
                        poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await?;
                        link_hear(&mut link, &mut inbox).await?;
                        times.record(nanos(start))?;
                    }
                }
                Rival::Connection => {
                    let config = ConnectionConfig::default();
                    let link = Tcp::new().connect(&place).await?;
                    let tally = Arc::new(Tally::default());
                    let deliver = Server { tally: tally.clone() };
                    let (connection, driver) = dial(link, &hello(2), &config).await?.start(&config, deliver);
                    tokio::spawn(driver);
                    for turn in 0..turns {
                        let start = Instant::now();
                        connection.send(Lane::Ordinary, &[&payload], Bytes::new())?;
                        tally.wait(turn as u64 + 1).await;
                        times.record(nanos(start))?;
                    }
                }
                Rival::Node => {
                    let node = Node::builder().id(2).start().await?;
                    let tally = Arc::new(Tally::default());
                    let _open = node.open(CHANNEL, tally.clone())?;
                    let server = node.connect(&place).await?;
                    for turn in 0..turns {
                        let start = Instant::now();
                        node.send(server.node, Lane::Ordinary, CHANNEL, &[&payload], Bytes::new())?;
                        tally.wait(turn as u64 + 1).await;
                        times.record(nanos(start))?;
                    }
                }
            }
            Ok(times)
        },
    )
}

/// Runs a server and a client, each in a thread and a runtime of its own; the server tells where it listens.
fn apart<T, S, C>(
    server: impl FnOnce(mpsc::Sender<Address>) -> S + Send + 'static,
    client: impl FnOnce(Address) -> C,
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

// A link of the transport contract.

async fn accept(place: mpsc::Sender<Address>) -> Outcome<Link> {
    accept_over(Box::new(Tcp::new()), place).await
}

async fn accept_over(transport: Box<dyn Transport>, place: mpsc::Sender<Address>) -> Outcome<Link> {
    let anywhere = format!("{}://127.0.0.1:0", transport.scheme()).parse()?;
    let mut listener: Box<dyn Listener> = transport.listen(&anywhere).await?;
    place.send(listener.local_address())?;
    Ok(poll_fn(|cx| listener.poll_accept(cx)).await?)
}

async fn link_send(link: &mut Link, payload: &[u8], frames: usize) -> Outcome<()> {
    let mut outbox = Outbox::new(FRAME_BYTES_MAX);
    for _ in 0..frames {
        outbox.push(&[payload])?;
        if outbox.bytes() >= BATCH_BYTES {
            poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await?;
        }
    }
    Ok(poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await?)
}

/// Waits for one frame.
async fn link_hear(link: &mut Link, inbox: &mut Inbox) -> Outcome<Bytes> {
    loop {
        if let Some(frame) = inbox.next_frame()? {
            return Ok(frame);
        }
        if !poll_fn(|cx| link.receiver.poll_receive(cx, inbox)).await? {
            return Err("closed".into());
        }
    }
}

async fn link_count(link: &mut Link, frames: usize, is_owned: bool) -> Outcome<()> {
    let mut inbox = Inbox::new(FRAME_BYTES_MAX);
    let (mut count, mut sum) = (0, 0u64);
    while count < frames {
        if !poll_fn(|cx| link.receiver.poll_receive(cx, &mut inbox)).await? {
            return Err("closed".into());
        }
        if is_owned {
            while let Some(frame) = inbox.next_frame()? {
                sum += u64::from(frame[0]);
                count += 1;
            }
        } else {
            while let Some(first) = inbox.with_frame(|frame| frame[0])? {
                sum += u64::from(first);
                count += 1;
            }
        }
    }
    assert_eq!(sum, 7 * frames as u64);
    link_send(link, b"1", 1).await
}

async fn link_echo(mut link: Link) -> Outcome<()> {
    let (mut outbox, mut inbox) = (Outbox::new(FRAME_BYTES_MAX), Inbox::new(FRAME_BYTES_MAX));
    while poll_fn(|cx| link.receiver.poll_receive(cx, &mut inbox)).await.unwrap_or(false) {
        while let Some(frame) = inbox.next_frame()? {
            outbox.push(&[&frame])?;
        }
        poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await?;
    }
    Ok(())
}

// A connection with its lanes, and a node with its channels.

/// Counts what arrives and wakes who waits for it.
#[derive(Default)]
struct Tally {
    count: AtomicU64,
    waiting: Mutex<Option<(u64, Waker)>>,
}

impl Tally {
    fn add(&self, count: usize) {
        let count = count as u64 + self.count.fetch_add(count as u64, Ordering::AcqRel);
        let mut waiting = lock(&self.waiting);
        if waiting.as_ref().is_some_and(|(wanted, _)| *wanted <= count)
            && let Some((_, waker)) = waiting.take()
        {
            waker.wake();
        }
    }

    async fn wait(&self, wanted: u64) {
        poll_fn(|cx| {
            let mut waiting = lock(&self.waiting);
            if self.count.load(Ordering::Acquire) >= wanted {
                return Poll::Ready(());
            }
            *waiting = Some((wanted, cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy)]
enum Mode {
    Count(usize),
    Echo,
}

struct Server {
    tally: Arc<Tally>,
}

impl Deliver for Server {
    fn poll_deliver(&mut self, _: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        self.tally.add(messages.len());
        Poll::Ready(())
    }
}

struct Echo(Arc<OnceLock<Connection>>);

impl Deliver for Echo {
    fn poll_deliver(&mut self, _: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        if let Some(connection) = self.0.get() {
            for message in messages.drain(..) {
                if connection.send(Lane::Ordinary, &[&message], Bytes::new()).is_err() {
                    break;
                }
            }
        }
        Poll::Ready(())
    }
}

fn hello(node: u64) -> Hello {
    Hello::new(Identity::new(NodeId(node), Incarnation(1)), CodecId(0), 16 << 20, &[])
}

async fn connection_serve(link: Link, mode: Mode) -> Outcome<()> {
    let config = ConnectionConfig::default();
    let established = answer(link, &hello(1), &config, |_| Verdict::Accept).await?;
    match mode {
        Mode::Echo => {
            let handle = Arc::new(OnceLock::new());
            let (connection, driver) = established.start(&config, Echo(handle.clone()));
            handle.get_or_init(|| connection);
            driver.await;
        }
        Mode::Count(frames) => {
            let tally = Arc::new(Tally::default());
            let (connection, driver) = established.start(&config, Server { tally: tally.clone() });
            let answering = async move {
                tally.wait(frames as u64).await;
                connection.send(Lane::Ordinary, &[b"1"], Bytes::new())
            };
            let (_, answered) = tokio::join!(driver, answering);
            answered?;
        }
    }
    Ok(())
}

async fn connection_send(place: &Address, payload: &[u8], frames: usize) -> Outcome<f64> {
    let config = ConnectionConfig::default();
    let link = Tcp::new().connect(place).await?;
    let tally = Arc::new(Tally::default());
    let deliver = Server { tally: tally.clone() };
    let (connection, driver) = dial(link, &hello(2), &config).await?.start(&config, deliver);
    let driver = tokio::spawn(driver);
    let start = Instant::now();
    for _ in 0..frames {
        while connection.send(Lane::Ordinary, &[payload], Bytes::new()).is_err() {
            connection.ready(Lane::Ordinary).await?;
        }
    }
    tally.wait(1).await;
    let rate = frames as f64 / start.elapsed().as_secs_f64();
    connection.close();
    driver.await?;
    Ok(rate)
}

struct NodeEcho(Node);

impl ChannelHandler for NodeEcho {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        for frame in frames.drain(..) {
            if self.0.send(from.node, Lane::Ordinary, CHANNEL, &[&frame], Bytes::new()).is_err() {
                break;
            }
        }
        Poll::Ready(())
    }
}

impl ChannelHandler for Tally {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        self.add(frames.len());
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        // The server waits for the end of its client with this.
        if matches!(event, PeerEvent::Down(_)) {
            self.add(DOWN as usize);
        }
    }
}

async fn node_serve(place: mpsc::Sender<Address>, mode: Mode) -> Outcome<()> {
    let node = Node::builder().id(1).listen("tcp://127.0.0.1:0").start().await?;
    let tally = Arc::new(Tally::default());
    let open = match mode {
        Mode::Echo => {
            let _ends = node.open(ENDS, tally.clone())?;
            let open = node.open(CHANNEL, Arc::new(NodeEcho(node.clone())))?;
            place.send(node.addresses()[0].clone())?;
            tally.wait(DOWN).await;
            open
        }
        Mode::Count(frames) => {
            let open = node.open(CHANNEL, tally.clone())?;
            place.send(node.addresses()[0].clone())?;
            tally.wait(frames as u64).await;
            node.send(NodeId(2), Lane::Ordinary, CHANNEL, &[b"1"], Bytes::new())?;
            tally.wait(DOWN).await;
            open
        }
    };
    drop(open);
    node.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

async fn node_send(place: &Address, payload: &[u8], frames: usize) -> Outcome<f64> {
    let node = Node::builder().id(2).start().await?;
    let tally = Arc::new(Tally::default());
    let open = node.open(CHANNEL, tally.clone())?;
    let server = node.connect(place).await?.node;
    let start = Instant::now();
    for _ in 0..frames {
        while let Err(error) = node.send(server, Lane::Ordinary, CHANNEL, &[payload], Bytes::new()) {
            match error {
                SendError::Full { .. } => node.ready(server, Lane::Ordinary).await?,
                error => return Err(error.into()),
            }
        }
    }
    tally.wait(1).await;
    let rate = frames as f64 / start.elapsed().as_secs_f64();
    drop(open);
    node.shutdown(Duration::from_secs(5)).await;
    Ok(rate)
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

const CHANNEL: Channel = Channel::named("bench", "transport");
const ENDS: Channel = Channel::named("bench", "ends");
/// Counted for the end of a peer; no bench sends so many frames.
const DOWN: u64 = 1 << 40;
/// Gathered before a write.
const BATCH_BYTES: usize = 64 * 1024;
/// The read buffer of the loop by hand.
const READ_BYTES: usize = 128 * 1024;
const FRAME_BYTES_MAX: usize = 1 << 20;
