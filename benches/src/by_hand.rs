//! What a good engineer writes without a library: a batching tokio loop one way, blocking reads and writes for round
//! trips, channels inside a process: between two threads with a runtime each, and between two tasks of one.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};

pub const NAME: &str = "by hand";
pub const TWO_THREADS: &str = "tokio mpsc, 2 threads";
pub const ONE_THREAD: &str = "tokio mpsc, 1 thread";

/// A write is gathered up to this size, a read takes up to twice as much.
const BATCH_BYTES: usize = 64 << 10;
/// Messages that wait in a channel.
const CHANNEL_MESSAGES: usize = 1_024;

pub fn run(task: &Task) -> Outcome<()> {
    match (task.side, task.kind) {
        (Side::Server, Kind::OneWay) => runtime()?.block_on(count()),
        (Side::Client, Kind::OneWay) => runtime()?.block_on(send(task)),
        (Side::Server, Kind::RoundTrip | Kind::Calls(_)) => echo(),
        (Side::Client, Kind::RoundTrip | Kind::Calls(_)) => ask(task),
        (Side::Both, _) => channel(task),
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn count() -> Outcome<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    say_address(&listener.local_addr()?.to_string())?;
    let (mut stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let (mut buffer, mut filled) = (vec![0; 4 * BATCH_BYTES], 0);
    let mut count = Count::default();
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err("closed before the end".into());
        }
        filled += read;
        let mut rest = &buffer[..filled];
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some((message, behind)) = behind.split_at_checked(length) else { break };
            if count.take(message) {
                return count.say();
            }
            rest = behind;
        }
        let parsed = filled - rest.len();
        buffer.copy_within(parsed..filled, 0);
        filled -= parsed;
    }
}

async fn send(task: &Task) -> Outcome<()> {
    let mut stream = tokio::net::TcpStream::connect(task.address()?).await?;
    stream.set_nodelay(true)?;
    let payload = task.payload();
    let mut out = Vec::with_capacity(2 * BATCH_BYTES + payload.len());
    let put = |out: &mut Vec<u8>, message: &[u8]| {
        out.extend_from_slice(&(message.len() as u32).to_le_bytes());
        out.extend_from_slice(message);
    };
    let end = Instant::now() + task.time;
    while Instant::now() < end {
        for _ in 0..BURST {
            put(&mut out, &payload);
            if out.len() >= BATCH_BYTES {
                stream.write_all(&out).await?;
                out.clear();
            }
        }
    }
    put(&mut out, &[0; END_BYTES]);
    stream.write_all(&out).await?;
    say_result(&[])?;
    wait_for_caller()
}

fn echo() -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say_address(&listener.local_addr()?.to_string())?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 4 * BATCH_BYTES];
    loop {
        match stream.read(&mut buffer)? {
            0 => return say_result(&[]),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

fn ask(task: &Task) -> Outcome<()> {
    let mut stream = TcpStream::connect(task.address()?)?;
    stream.set_nodelay(true)?;
    let (payload, mut answer) = (task.payload(), task.payload());
    let mut trips = Trips::new(task)?;
    while trips.goes_on() {
        let start = Instant::now();
        stream.write_all(&payload)?;
        stream.read_exact(&mut answer)?;
        trips.took(start)?;
    }
    drop(stream);
    trips.say()
}

/// One runtime, or one for each side in a thread of its own.
fn channel(task: &Task) -> Outcome<()> {
    let (there, asked) = mpsc::channel::<Bytes>(CHANNEL_MESSAGES);
    let (back, answered) = mpsc::channel::<Bytes>(CHANNEL_MESSAGES);
    let one_thread = task.rival == ONE_THREAD;
    let driving = drive_channel(task.clone(), there, answered);
    let serving = serve_channel(task.kind, asked, back);
    if one_thread {
        return runtime()?.block_on(async {
            let driving = tokio::spawn(driving);
            serving.await?;
            driving.await?
        });
    }
    let driving = std::thread::spawn(move || runtime()?.block_on(driving));
    runtime()?.block_on(serving)?;
    driving.join().map_err(|_| "the sender panicked")?
}

async fn drive_channel(
    task: Task,
    there: mpsc::Sender<Bytes>,
    mut answered: mpsc::Receiver<Bytes>,
) -> Outcome<()> {
    let payload = Bytes::from(task.payload());
    if task.kind == Kind::OneWay {
        let end = Instant::now() + task.time;
        while Instant::now() < end {
            for _ in 0..BURST {
                there.send(payload.clone()).await?;
            }
        }
        return Ok(there.send(Bytes::from_static(&[0; END_BYTES])).await?);
    }
    let mut trips = Trips::new(&task)?;
    while trips.goes_on() {
        let start = Instant::now();
        there.send(payload.clone()).await?;
        answered.recv().await.ok_or("the echo has gone")?;
        trips.took(start)?;
    }
    trips.say()
}

async fn serve_channel(
    kind: Kind,
    mut asked: mpsc::Receiver<Bytes>,
    back: mpsc::Sender<Bytes>,
) -> Outcome<()> {
    let mut count = Count::default();
    while let Some(message) = asked.recv().await {
        if kind != Kind::OneWay {
            back.send(message).await?;
        } else if count.take(&message) {
            return count.say();
        }
    }
    Ok(())
}
