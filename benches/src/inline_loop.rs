//! What is possible at all: loops over frames on tokio, with neither callers nor tasks nor a codec. Between processes
//! each read is answered with one write; inside one, two channels.

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

/// Every frame is length, number and payload; all that came with one read are answered with one write.
async fn echo() -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say_address(&listener.local_addr()?.to_string())?;
    let (mut stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut frames = Frames::new();
    let mut out = Vec::new();
    // A client that has enough hangs up with answers under way.
    while frames.read(&mut stream).await.is_ok() {
        while let Some((number, payload)) = frames.next() {
            put(&mut out, number, payload);
        }
        if stream.write_all(&out).await.is_err() {
            break;
        }
        out.clear();
    }
    say_result(&[])
}

/// Every answer makes room for the next question; with one in flight the time of each is taken.
async fn ask(task: &Task, in_flight: usize) -> Outcome<()> {
    let mut stream = TcpStream::connect(task.address()?).await?;
    stream.set_nodelay(true)?;
    let mut trips = Trips::new(task)?;
    let (mut frames, mut out, payload) = (Frames::new(), Vec::new(), task.payload());
    let mut open: Vec<u64> = (0..in_flight as u64).collect();
    open.iter().for_each(|number| put(&mut out, *number, &payload));
    let (mut answers, began) = (0, Instant::now());
    while trips.goes_on() {
        let start = Instant::now();
        stream.write_all(&out).await?;
        out.clear();
        frames.read(&mut stream).await?;
        while let Some((number, answer)) = frames.next() {
            let slot = number as usize % in_flight;
            if open[slot] != number || answer.len() != payload.len() {
                return Err("a wrong answer".into());
            }
            open[slot] += in_flight as u64;
            answers += 1;
            put(&mut out, open[slot], &payload);
        }
        if in_flight == 1 && !out.is_empty() {
            trips.took(start)?;
        }
    }
    drop(stream);
    if in_flight == 1 {
        return trips.say();
    }
    say_result(&[("messages", f64::from(answers)), ("seconds", began.elapsed().as_secs_f64())])
}

fn put(out: &mut Vec<u8>, number: u64, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(payload);
}

/// What has been read.
struct Frames {
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Frames {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], start: 0, filled: 0 }
    }

    async fn read(&mut self, stream: &mut TcpStream) -> Outcome<()> {
        self.buffer.copy_within(self.start..self.filled, 0);
        self.filled -= std::mem::take(&mut self.start);
        match stream.read(&mut self.buffer[self.filled..]).await? {
            0 => Err("closed".into()),
            read => {
                self.filled += read;
                Ok(())
            }
        }
    }

    fn next(&mut self) -> Option<(u64, &[u8])> {
        let rest = &self.buffer[self.start..self.filled];
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let payload = rest.get(..length)?;
        self.start += 12 + length;
        Some((u64::from_le_bytes(*number), payload))
    }
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
