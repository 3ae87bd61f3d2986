//! zmq.rs, ZeroMQ's protocol in Rust: PUSH and PULL, REQ and REP. It has no transport inside a process.

use std::time::Instant;

use bytes::Bytes;
use zeromq::{PullSocket, PushSocket, RepSocket, ReqSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::runtime;
use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};

pub fn run(task: &Task) -> Outcome<()> {
    runtime()?.block_on(async {
        match (task.side, task.kind) {
            (Side::Server, Kind::OneWay) => count().await,
            (Side::Server, Kind::RoundTrip) => echo().await,
            (Side::Client, Kind::OneWay) => push(task).await,
            (Side::Client, Kind::RoundTrip) => ask(task).await,
            (_, Kind::Calls(_)) => Err("zmq.rs has no typed calls".into()),
            (Side::Both, _) => Err("zmq.rs has no transport inside a process".into()),
        }
    })
}

async fn count() -> Outcome<()> {
    let mut socket = PullSocket::new();
    say_address(&socket.bind("tcp://127.0.0.1:0").await?.to_string())?;
    let mut count = Count::default();
    loop {
        let message = socket.recv().await?;
        if count.take(message.get(0).ok_or("an empty message")?) {
            return count.say();
        }
    }
}

async fn push(task: &Task) -> Outcome<()> {
    let mut socket = PushSocket::new();
    socket.connect(task.address()?).await?;
    let payload = Bytes::from(task.payload());
    let end = Instant::now() + task.time;
    while Instant::now() < end {
        for _ in 0..BURST {
            socket.send(ZmqMessage::from(payload.clone())).await?;
        }
    }
    socket.send(ZmqMessage::from(vec![0u8])).await?;
    say_result(&[])?;
    wait_for_caller()
}

async fn echo() -> Outcome<()> {
    let mut socket = RepSocket::new();
    say_address(&socket.bind("tcp://127.0.0.1:0").await?.to_string())?;
    loop {
        let message = socket.recv().await?;
        let is_last = message.get(0).is_some_and(|part| part.len() == END_BYTES);
        socket.send(message).await?;
        if is_last {
            return say_result(&[]);
        }
    }
}

async fn ask(task: &Task) -> Outcome<()> {
    let mut socket = ReqSocket::new();
    socket.connect(task.address()?).await?;
    let payload = Bytes::from(task.payload());
    let mut trips = Trips::new(task)?;
    while trips.goes_on() {
        let start = Instant::now();
        socket.send(ZmqMessage::from(payload.clone())).await?;
        socket.recv().await?;
        trips.took(start)?;
    }
    socket.send(ZmqMessage::from(vec![0u8])).await?;
    trips.say()?;
    wait_for_caller()
}
