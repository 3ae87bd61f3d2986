//! quorate's sockets: push and pull, requester and replier; between processes over TCP, inside one over memory.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate::node::{Address, Node};
use quorate::socket::{Body, Options, Pull, Push, Replier, Requester};
use quorate_transports::mem::Mem;
use tokio::sync::oneshot;

use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};

pub const NAME: &str = "quorate";
/// A burst of messages handed over in one call, as the loop by hand gathers them.
pub const MANY: &str = "quorate, send_many";
pub const TWO_THREADS: &str = "quorate, 2 threads";
pub const ONE_THREAD: &str = "quorate, 1 thread";

const SOCKET: &str = "bench";
/// From here on the library does not copy what is handed over as `Bytes`.
const UNCOPIED_BYTES: usize = 8 << 10;

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

/// Each side a node: in a thread and a runtime of its own, or both in one, as tasks.
fn both(task: &Task) -> Outcome<()> {
    let memory = Mem::new();
    let (place, told) = oneshot::channel();
    let driving = drive_within(memory.clone(), task.clone(), told);
    let serving = serve_within(memory, task.clone(), place);
    if task.rival == ONE_THREAD {
        return runtime()?.block_on(async {
            let driving = tokio::spawn(driving);
            serving.await?;
            driving.await?
        });
    }
    let driving = std::thread::spawn(move || runtime()?.block_on(driving));
    runtime()?.block_on(serving)?;
    driving.join().map_err(|_| "the client panicked")?
}

async fn serve_within(memory: Mem, task: Task, place: oneshot::Sender<Address>) -> Outcome<()> {
    let node = Node::builder().id(1).transport(memory).listen("mem://bench").start().await?;
    let tell = |address: &Address| place.send(address.clone()).map_err(|_| "the client has gone".into());
    serve(&node, &task, tell).await
}

async fn drive_within(memory: Mem, task: Task, told: oneshot::Receiver<Address>) -> Outcome<()> {
    let node = Node::builder().id(2).transport(memory).start().await?;
    drive(&node, &task, &told.await?).await
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
    // Large ones are handed over as they are kept, and not copied; small ones are cheaper to copy than to share.
    let kept = Bytes::from(task.payload());
    let payload = || if task.bytes < UNCOPIED_BYTES { Body::Slice(&kept) } else { Body::Owned(kept.clone()) };
    if task.kind == Kind::OneWay {
        let push = Push::connect(node, SOCKET, address.clone(), Options::default()).await?;
        let end = Instant::now() + task.time;
        while Instant::now() < end {
            if task.rival == MANY {
                push.send_many((0..BURST).map(|_| payload())).await?;
            } else {
                for _ in 0..BURST {
                    push.send(payload()).await?;
                }
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
    let requester = Requester::connect(node, SOCKET, address.clone(), Options::default()).await?;
    let mut trips = Trips::new(task)?;
    while trips.goes_on() {
        let start = Instant::now();
        requester.request(payload()).await?;
        trips.took(start)?;
    }
    requester.request(&[0; END_BYTES]).await?;
    trips.say()
}
