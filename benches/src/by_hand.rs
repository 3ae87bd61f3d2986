//! What a good engineer writes without a library: a batching tokio loop one way, blocking reads and writes for round
//! trips, channels inside a process.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};

pub const NAME: &str = "by hand";

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
        (Side::Both, Kind::OneWay) => channel_one_way(task),
        (Side::Both, Kind::RoundTrip | Kind::Calls(_)) => channel_round_trip(task),
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

fn channel_one_way(task: &Task) -> Outcome<()> {
    let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(CHANNEL_MESSAGES);
    let (payload, time) = (bytes::Bytes::from(task.payload()), task.time);
    let sending = std::thread::spawn(move || -> Outcome<()> {
        runtime()?.block_on(async {
            let end = Instant::now() + time;
            while Instant::now() < end {
                for _ in 0..BURST {
                    sender.send(payload.clone()).await?;
                }
            }
            Ok(sender.send(bytes::Bytes::from_static(&[0; END_BYTES])).await?)
        })
    });
    let mut count = Count::default();
    runtime()?.block_on(async {
        while let Some(message) = receiver.recv().await {
            if count.take(&message) {
                break;
            }
        }
    });
    count.say()?;
    sending.join().map_err(|_| "the sender panicked")?
}

fn channel_round_trip(task: &Task) -> Outcome<()> {
    let (there, mut asked) = mpsc::channel::<bytes::Bytes>(CHANNEL_MESSAGES);
    let (back, mut answered) = mpsc::channel::<bytes::Bytes>(CHANNEL_MESSAGES);
    let echoing = std::thread::spawn(move || -> Outcome<()> {
        runtime()?.block_on(async {
            while let Some(message) = asked.recv().await {
                back.send(message).await?;
            }
            Ok(())
        })
    });
    let payload = bytes::Bytes::from(task.payload());
    let mut trips = Trips::new(task)?;
    runtime()?.block_on(async {
        while trips.goes_on() {
            let start = Instant::now();
            there.send(payload.clone()).await?;
            answered.recv().await.ok_or("the echo has gone")?;
            trips.took(start)?;
        }
        drop(there);
        Outcome::Ok(())
    })?;
    trips.say()?;
    echoing.join().map_err(|_| "the echo panicked")?
}
