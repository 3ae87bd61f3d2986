//! No heap allocation per message from the plumbing of the trait (catalogue T1): frames go through links behind the
//! object-safe trait while a global allocator counts.
//!
//! Method      one thread sends and receives, so that the count of its allocations is all that the links do; what was
//!             allocated while buffers grew to their size is not counted.

use std::future::poll_fn;
use std::task::Poll;

use quorate_transports::mem::Mem;
use quorate_transports::tcp::Tcp;
#[cfg(unix)]
use quorate_transports::unix::Unix;
use quorate_transports::{Inbox, Link, Outbox, Transport};

/// The two ends of a link, and what goes through them.
struct Ends {
    sending: Link,
    receiving: Link,
    outbox: Outbox,
    inbox: Inbox,
}

impl Ends {
    async fn new(transport: &dyn Transport, place: &str) -> Self {
        let mut listener = transport.listen(&place.parse().unwrap()).await.unwrap();
        let target = listener.local_address();
        let accepting = poll_fn(|cx| listener.poll_accept(cx));
        let (dialled, accepted) = tokio::join!(transport.connect(&target), accepting);
        Self {
            sending: dialled.unwrap(),
            receiving: accepted.unwrap(),
            outbox: Outbox::new(1 << 20),
            inbox: Inbox::new(1 << 20),
        }
    }

    /// Sends so many frames of 64 bytes in one batch and takes them all.
    async fn pass(&mut self, frames: usize) {
        let Self { sending, receiving, outbox, inbox } = self;
        for _ in 0..frames {
            outbox.push(&[&[1; 16], &[2; 48]]).unwrap();
        }
        let mut left = frames;
        poll_fn(|cx| {
            loop {
                let sent = sending.sender.poll_send(cx, outbox).map(Result::unwrap);
                let received = receiving.receiver.poll_receive(cx, inbox).map(Result::unwrap);
                while let Some(length) = inbox.with_frame(<[u8]>::len).unwrap() {
                    assert_eq!(length, 64);
                    left -= 1;
                }
                match (sent, received) {
                    (Poll::Ready(()), _) if left == 0 => return Poll::Ready(()),
                    (_, Poll::Pending) => return Poll::Pending,
                    _ => {}
                }
            }
        })
        .await;
    }
}

/// Allocations for so many batches of so many frames, once the buffers have their size.
fn allocations(transport: &dyn Transport, place: &str, batches: usize, frames: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut ends = runtime.block_on(Ends::new(transport, place));
    let mut run = |batches: usize| {
        runtime.block_on(async {
            for _ in 0..batches {
                ends.pass(frames).await;
            }
        });
    };
    run(batches);
    allocation_counter::measure(|| run(batches)).count_total
}

fn check(transport: &dyn Transport, place: &str) {
    // Alone, in small batches, and in batches that take several reads.
    for (batches, frames) in [(5_000, 1), (1_000, 20), (100, 2_000)] {
        assert_eq!(
            allocations(transport, place, batches, frames),
            0,
            "{place}: {batches} times {frames} frames"
        );
    }
}

#[test]
fn t01_the_counter_counts() {
    let boxes = || drop((0..10).map(Box::new).map(std::hint::black_box).collect::<Vec<_>>());
    assert!(allocation_counter::measure(boxes).count_total > 10);
}

#[test]
fn t01_frames_through_the_trait_over_memory_allocate_nothing() {
    check(&Mem::new(), "mem://");
}

#[test]
fn t01_frames_through_the_trait_over_tcp_allocate_nothing() {
    check(&Tcp::new(), "tcp://127.0.0.1:0");
}

#[cfg(unix)]
#[test]
fn t01_frames_through_the_trait_over_local_sockets_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    check(&Unix::new(), &format!("unix://{}/*", folder.path().display()));
}
