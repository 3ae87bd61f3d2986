//! Typed calls, beside what is possible by hand and beside the peers.
//!
//! Ours        deadline, cancellation, request ids, retransmission, duplicate filter and kept replies are on.
//! Blind spot  one machine, so the network costs nothing but its system calls; one connection; one thread a side.

use quorate::node::Node;
use quorate::{Payload, service};

use crate::Settings;
use crate::callers::{self, Caller, runtime};
use crate::contest::{Asked, contest};
use crate::promises;
use crate::worker::{Argument, Calls, Kind, Outcome, Side, Task, say_address};

const TABLES: [Asked; 6] = [
    ("a lone call, TCP, 64 B", calls(1, Argument::Bytes), 64, true),
    ("1,024 calls in flight, TCP, 64 B", calls(1_024, Argument::Bytes), 64, true),
    ("64 calls in flight, TCP, 4 KiB", calls(64, Argument::Bytes), 4 << 10, true),
    ("64 calls in flight, TCP, 4 KiB as Vec<u8>", calls(64, Argument::Vector), 4 << 10, true),
    ("a lone call, in process, 64 B", calls(1, Argument::Bytes), 64, false),
    ("1,024 calls in flight, in process, 64 B", calls(1_024, Argument::Bytes), 64, false),
];

pub const fn calls(in_flight: usize, argument: Argument) -> Kind {
    Kind::Calls(Calls { in_flight, argument })
}

pub fn run(settings: &Settings) -> Outcome<()> {
    contest(settings, &TABLES, &promises::TABLES)
}

#[service]
pub trait Echo {
    async fn bytes(&self, bytes: Payload) -> Payload;
    async fn vector(&self, bytes: Vec<u8>) -> Vec<u8>;
}

pub struct Mirror;

impl Echo for Mirror {
    async fn bytes(&self, bytes: Payload) -> Payload {
        bytes
    }
    async fn vector(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }
}

/// One side of one run.
pub fn work(task: &Task, calls: Calls) -> Outcome<()> {
    runtime()?.block_on(async {
        match task.side {
            Side::Server => {
                let node = Node::builder().id(1).listen("tcp://127.0.0.1:0").start().await?;
                let _serving = node.serve("echo", EchoServer::new(Mirror))?;
                let address = node.addresses().into_iter().next().ok_or("it listens nowhere")?;
                say_address(&address.to_string())?;
                callers::serve_until_told().await
            }
            Side::Client => {
                let node = Node::builder().id(2).start().await?;
                let client = EchoClient::connect(&node, "echo", task.address()?).await?;
                drive(task, calls, client).await
            }
            Side::Both => {
                let node = Node::builder().id(1).start().await?;
                let _serving = node.serve("echo", EchoServer::new(Mirror))?;
                let client = EchoClient::connect_here(&node, "echo").await?;
                drive(task, calls, client).await
            }
        }
    })
}

async fn drive(task: &Task, calls: Calls, client: EchoClient) -> Outcome<()> {
    match calls.argument {
        Argument::Bytes => {
            let bytes = Payload::from(task.payload());
            callers::run(task, calls, WithBytes { client, bytes }).await
        }
        Argument::Vector => {
            let bytes = task.payload();
            callers::run(task, calls, WithVector { client, bytes }).await
        }
    }
}

#[derive(Clone)]
pub struct WithBytes {
    pub client: EchoClient,
    pub bytes: Payload,
}

impl Caller for WithBytes {
    async fn call(&mut self) -> Outcome<()> {
        self.client.bytes(self.bytes.clone()).await?;
        Ok(())
    }
}

#[derive(Clone)]
struct WithVector {
    client: EchoClient,
    bytes: Vec<u8>,
}

impl Caller for WithVector {
    async fn call(&mut self) -> Outcome<()> {
        self.client.vector(self.bytes.clone()).await?;
        Ok(())
    }
}
