//! Lanes between processes, over every medium: a reader that does not read bounds the memory of the process that sends to
//! it, and what is urgent overtakes what is large.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate::node::{Channel, ChannelHandler, Lane, Node, NodeId, SendError};
use quorate::{Address, Identity};
use tests::{Net, Orders, Worker, everywhere, nets_between_processes, within};

use crate::strangers::resident_kib;
use crate::work;

const LOAD: Channel = Channel::named("test", "load");
const READER: NodeId = NodeId(1);
const PIECE_BYTES: usize = 64 * 1024;

/// Takes what comes, unless it sleeps.
#[derive(Default)]
struct Reading {
    is_awake: AtomicBool,
    waker: Mutex<Option<Waker>>,
    pieces: AtomicUsize,
    /// How many pieces had come before each urgent message.
    urgent: Mutex<Vec<usize>>,
}

impl Reading {
    fn wake(&self) {
        self.is_awake.store(true, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl ChannelHandler for Reading {
    fn poll_deliver(&self, cx: &mut Context<'_>, _: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if !self.is_awake.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        for frame in frames.drain(..) {
            if frame.len() == PIECE_BYTES {
                self.pieces.fetch_add(1, Ordering::SeqCst);
            } else {
                let before = self.pieces.load(Ordering::SeqCst);
                self.urgent.lock().unwrap_or_else(PoisonError::into_inner).push(before);
            }
        }
        Poll::Ready(())
    }
}

/// The process that reads when it is told to, and then tells what came.
#[test]
fn reader() {
    work(async |orders: Orders| {
        let node = orders.net.builder(READER.0).start().await.expect("the node starts");
        let reading = Arc::new(Reading::default());
        let _channel = node.open(LOAD, reading.clone()).expect("the channel is free");
        orders.say(node.addresses()[0].as_str());
        while let Some(order) = orders.next().await {
            reading.wake();
            let (pieces, urgent) = order.split_once(' ').expect("two numbers");
            let (pieces, urgent): (usize, usize) =
                (pieces.parse().expect("a number"), urgent.parse().expect("a number"));
            let is_all = || {
                let heard = reading.urgent.lock().unwrap_or_else(PoisonError::into_inner).len();
                reading.pieces.load(Ordering::SeqCst) >= pieces && heard >= urgent
            };
            tests::until(is_all).await;
            let before = reading.urgent.lock().unwrap_or_else(PoisonError::into_inner).clone();
            orders.say(&format!("{} {before:?}", reading.pieces.load(Ordering::SeqCst)));
        }
    });
}

/// The process that sends more than the other one reads. One thread, so that its driver does nothing between two lines of
/// this.
#[test]
fn sender() {
    let Some(orders) = Orders::of_this_process() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let node = orders.net.dialler(2).start().await.expect("the node starts");
        let (address, story) = orders.words.split_once(' ').expect("an address and a story");
        let address: Address = address.parse().expect("an address");
        within(node.connect(&address)).await.expect("the reader is there");
        match story {
            "fill" => fill(&orders, &node).await,
            "overtake" => overtake(&orders, &node).await,
            other => panic!("{other}"),
        }
        // Stays until it is killed: what it sent must not be cut off.
        let _ = orders.next().await;
    });
}

/// Sends until nothing has been taken for a while.
async fn fill(orders: &Orders, node: &Node) {
    let before = resident_kib();
    let mut sent = 0_usize;
    while sent * PIECE_BYTES < FILL_BYTES_MAX {
        // Each of its own memory.
        match node.send(READER, Lane::Bulk, LOAD, &[], vec![sent as u8; PIECE_BYTES].into()) {
            Ok(()) => sent += 1,
            Err(SendError::Full { .. }) => {
                let room = node.ready(READER, Lane::Bulk);
                // Too early at worst: then less was sent, and all that is claimed still holds.
                match tokio::time::timeout(Duration::from_millis(500), room).await {
                    Ok(ready) => ready.expect("the reader lives"),
                    Err(_) => break,
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    orders.say(&format!("{sent} {}", resident_kib().saturating_sub(before)));
}

/// Says something urgent whenever the lane for bulk is full; tells how many pieces had been queued each time.
async fn overtake(orders: &Orders, node: &Node) {
    let piece = Bytes::from(vec![7; PIECE_BYTES]);
    let (mut sent, mut queued_before) = (0, Vec::new());
    while queued_before.len() < URGENT {
        match node.send(READER, Lane::Bulk, LOAD, &[], piece.clone()) {
            Ok(()) => sent += 1,
            Err(SendError::Full { .. }) => {
                node.send(READER, Lane::Urgent, LOAD, &[b"urgent"], Bytes::new()).expect("there is room");
                queued_before.push(sent);
                node.ready(READER, Lane::Bulk).await.expect("the reader lives");
            }
            Err(error) => panic!("{error}"),
        }
    }
    orders.say(&format!("{sent} {queued_before:?}"));
}

async fn two(net: &Net, story: &str) -> (Worker, Worker) {
    let mut reader = Worker::start("lanes::reader", net, "");
    let address = reader.hear().await;
    let sender = Worker::start("lanes::sender", net, &format!("{address} {story}"));
    (reader, sender)
}

fn numbers(said: &str) -> Vec<usize> {
    let words = said.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
    words.map(|word| word.parse().expect("a number")).collect()
}

async fn slow_reader(net: Net) {
    let (mut reader, mut sender) = two(&net, "fill").await;
    let said = sender.hear().await;
    let &[sent, grown_kib] = &numbers(&said)[..] else { panic!("{said}") };
    println!("{net:?}: {} KiB taken for a reader that sleeps, {grown_kib} KiB more memory", sent * 64);
    assert!(sent * PIECE_BYTES < FILL_BYTES_MAX, "{net:?}: nothing held the sender back");
    assert!(grown_kib < GROWTH_KIB_MAX, "{net:?}: {grown_kib} KiB");
    // It wakes up, and nothing is missing.
    reader.tell(&format!("{sent} 0")).await;
    assert_eq!(numbers(&reader.hear().await), [sent], "{net:?}");
    sender.kill().await;
    reader.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_a_process_that_does_not_read_bounds_the_memory_of_the_one_that_sends_and_loses_nothing() {
    everywhere(nets_between_processes(), slow_reader).await;
}

async fn overtaking(net: Net) {
    let (mut reader, mut sender) = two(&net, "overtake").await;
    reader.tell(&format!("1 {URGENT}")).await;
    let queued = numbers(&sender.hear().await);
    let (sent, queued_before) = queued.split_first().expect("what was sent");
    let came = numbers(&reader.hear().await);
    let came_before = &came[1..];
    assert_eq!((queued_before.len(), came_before.len()), (URGENT, URGENT), "{net:?}");
    let overtaken: Vec<usize> =
        queued_before.iter().zip(came_before).map(|(queued, came)| queued.saturating_sub(*came)).collect();
    println!("{net:?}: of {sent} pieces each urgent message overtook {overtaken:?}");
    // A packet that the network loses may be late; all others pass at least what waits in the lane when it is full.
    let far = overtaken.iter().filter(|count| **count >= LANE_PIECES_MIN).count();
    assert!(4 * far >= 3 * URGENT, "{net:?}: {overtaken:?}");
    sender.kill().await;
    reader.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_what_is_urgent_overtakes_bulk_between_processes_over_every_medium() {
    everywhere(nets_between_processes(), overtaking).await;
}

/// More than any medium keeps for a reader, and than any lane.
const FILL_BYTES_MAX: usize = 512 << 20;
/// The lane, what was taken out of it, what the medium keeps in this process, and an allocator's habits.
const GROWTH_KIB_MAX: usize = 48 << 10;
const URGENT: usize = 20;
/// A lane that is full holds more than half of its 4 MiB; a little of that may have been taken out.
const LANE_PIECES_MIN: usize = 24;
