//! quorate's sockets: push and pull, requester and replier; between processes over TCP, inside one over memory.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate::node::{Address, Node};
use quorate::socket::{Options, Pull, Push, Replier, Requester};
use quorate_transports::mem::Mem;
use tokio::sync::oneshot;

use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};

pub const NAME: &str = "quorate";

const SOCKET: &str = "bench";

pub fn run(task: &Task) -> Outcome<()> {
    match task.side {
        Side::Server => runtime()?.block_on(async {
            let node = Node::builder().id(1).listen("tcp://127.0.0.1:0").start().await?;
            serve(&node, task, |address| say_address(&address.to_string())).await
        }),
        Side::Client => runtime()?.block_on(async {
            let node = Node::builder().id(2).start().await?;
            drive(&node, task, &task.address()?.parse()?).await
        }),
        Side::Both => both(task),
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Each side a node in a thread and a runtime of its own, as it is in a program with several runtimes.
fn both(task: &Task) -> Outcome<()> {
    let memory = Mem::new();
    let (place, told) = mpsc::channel();
    let (client_memory, client_task) = (memory.clone(), task.clone());
    let client = std::thread::spawn(move || -> Outcome<()> {
        let address = told.recv()?;
        runtime()?.block_on(async {
            let node = Node::builder().id(2).transport(client_memory).start().await?;
            drive(&node, &client_task, &address).await
        })
    });
    runtime()?.block_on(async {
        let node = Node::builder().id(1).transport(memory).listen("mem://bench").start().await?;
        serve(&node, task, |address| Ok(place.send(address.clone())?)).await
    })?;
    client.join().map_err(|_| "the client panicked")?
}

async fn serve(node: &Node, task: &Task, tell: impl FnOnce(&Address) -> Outcome<()>) -> Outcome<()> {
    let address = node.addresses().into_iter().next().ok_or("it listens nowhere")?;
    if task.kind == Kind::OneWay {
        let mut pull = Pull::bind(node, SOCKET, Options::default())?;
        tell(&address)?;
        let mut count = Count::default();
        loop {
            for message in pull.receive_batch().await? {
                if count.take(message) {
                    return count.say();
                }
            }
        }
    }
    let (ended, end) = oneshot::channel();
    let ended = std::sync::Mutex::new(Some(ended));
    let _serving = Replier::serve(node, SOCKET, Options::default(), move |question| {
        if question.len() == END_BYTES
            && let Ok(mut ended) = ended.lock()
            && let Some(ended) = ended.take()
        {
            // The main task waits for it.
            let _ = ended.send(());
        }
        Bytes::copy_from_slice(question)
    })?;
    tell(&address)?;
    end.await?;
    node.shutdown(Duration::from_secs(1)).await;
    if task.side == Side::Server { say_result(&[]) } else { Ok(()) }
}

async fn drive(node: &Node, task: &Task, address: &Address) -> Outcome<()> {
    // Handed over as it is kept: a large one is not copied.
    let payload = Bytes::from(task.payload());
    if task.kind == Kind::OneWay {
        let push = Push::connect(node, address.clone(), SOCKET, Options::default()).await?;
        let end = Instant::now() + task.time;
        while Instant::now() < end {
            for _ in 0..BURST {
                push.send(payload.clone()).await?;
            }
        }
        push.send(&[0; END_BYTES]).await?;
        push.close(Duration::from_secs(10)).await;
        return if task.side == Side::Client {
            say_result(&[])?;
            wait_for_caller()
        } else {
            Ok(())
        };
    }
    let requester = Requester::connect(node, address.clone(), SOCKET, Options::default()).await?;
    let mut trips = Trips::new(task)?;
    while trips.goes_on() {
        let start = Instant::now();
        requester.request(payload.clone()).await?;
        trips.took(start)?;
    }
    requester.request(&[0; END_BYTES]).await?;
    trips.say()
}
