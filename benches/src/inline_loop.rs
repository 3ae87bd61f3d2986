//! What is possible at all: loops over bytes on tokio, with neither callers nor calls. Between processes each read is
//! answered with one write; inside one, two channels.

use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::callers::runtime;
use crate::worker::{Kind, Outcome, Side, Task, Trips, say_address, say_result};

pub const NAME: &str = "inline loop";

/// A read takes up to this much.
const BUFFER_BYTES: usize = 256 << 10;

pub fn run(task: &Task) -> Outcome<()> {
    let Kind::Calls(calls) = task.kind else { return Err("it only answers".into()) };
    runtime()?.block_on(async {
        match task.side {
            Side::Server => echo().await,
            Side::Client => ask(task, calls.in_flight).await,
            Side::Both => channels(task, calls.in_flight).await,
        }
    })
}

async fn echo() -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say_address(&listener.local_addr()?.to_string())?;
    let (mut stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return say_result(&[]),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

/// Every answer that comes is the next question; with one in flight the time of each is taken.
async fn ask(task: &Task, in_flight: usize) -> Outcome<()> {
    let mut stream = TcpStream::connect(task.address()?).await?;
    stream.set_nodelay(true)?;
    let mut trips = Trips::new(task)?;
    let mut buffer = vec![0; BUFFER_BYTES.max(task.bytes)];
    let (mut answers, mut filled, began) = (0, 0, Instant::now());
    let first = task.payload().repeat(in_flight);
    let mut start = Instant::now();
    stream.write_all(&first).await?;
    while trips.goes_on() {
        filled += stream.read(&mut buffer[filled..]).await?;
        let whole = filled - filled % task.bytes;
        if whole == 0 {
            continue;
        }
        if in_flight == 1 {
            trips.took(start)?;
            start = Instant::now();
        }
        answers += whole / task.bytes;
        stream.write_all(&buffer[..whole]).await?;
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
    drop(stream);
    if in_flight == 1 {
        return trips.say();
    }
    say_result(&[("messages", answers as f64), ("seconds", began.elapsed().as_secs_f64())])
}

async fn channels(task: &Task, in_flight: usize) -> Outcome<()> {
    let (there, mut asked) = mpsc::channel::<Bytes>(in_flight);
    let (back, mut answered) = mpsc::channel::<Bytes>(in_flight);
    tokio::spawn(async move {
        while let Some(message) = asked.recv().await {
            if back.send(message).await.is_err() {
                return;
            }
        }
    });
    let task = task.clone();
    let asking = tokio::spawn(async move {
        let mut trips = Trips::new(&task)?;
        let payload = Bytes::from(task.payload());
        let (mut answers, began) = (0, Instant::now());
        for _ in 1..in_flight {
            there.send(payload.clone()).await?;
        }
        while trips.goes_on() {
            let start = Instant::now();
            there.send(payload.clone()).await?;
            answered.recv().await.ok_or("the echo has gone")?;
            answers += 1;
            if in_flight == 1 {
                trips.took(start)?;
            }
        }
        if in_flight == 1 {
            return trips.say();
        }
        say_result(&[("messages", f64::from(answers)), ("seconds", began.elapsed().as_secs_f64())])
    });
    asking.await?
}
