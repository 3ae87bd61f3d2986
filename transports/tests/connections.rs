//! What a connection promises on any link: shown on memory and on TCP.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::connection::{
    CHUNK_BYTES, CodecId, Connection, ConnectionConfig, Deliver, Driver, End, Ended, Established,
    FRAME_BYTES_MAX, HandshakeError, Hello, Lane, Mismatch, ProtocolError, SendError, Verdict, answer, dial,
};
use quorate_transports::mem::{Mem, MemConfig};
use quorate_transports::{
    Address, FrameError, Identity, Incarnation, Link, LinkError, NodeId, Outbox, Registry,
};

fn hello(node: u64) -> Hello {
    let identity = Identity::new(NodeId(node), Incarnation(node * 10));
    Hello::new(identity, CodecId(1), 16 << 20, &["mem://home".parse().unwrap()])
}

fn registry(mem: MemConfig) -> Registry {
    let mut registry = Registry::new();
    registry.add(Mem::with_config(mem)).unwrap();
    #[cfg(feature = "tcp")]
    registry.add(quorate_transports::tcp::Tcp::new()).unwrap();
    registry
}

fn places() -> Vec<Address> {
    let mut places = vec!["mem://".parse().unwrap()];
    if cfg!(feature = "tcp") {
        places.push("tcp://127.0.0.1:0".parse().unwrap());
    }
    places
}

async fn links(registry: &Registry, place: &Address) -> (Link, Link) {
    let mut listener = registry.listen(place).await.unwrap();
    let target = listener.local_address();
    let (ours, theirs) = tokio::join!(registry.connect(&target), poll_fn(|cx| listener.poll_accept(cx)));
    (ours.unwrap(), theirs.unwrap())
}

async fn shake_hands(
    place: &Address,
    ours: &Hello,
    theirs: &Hello,
) -> (Result<Established, HandshakeError>, Result<Established, HandshakeError>) {
    let config = ConnectionConfig::default();
    let (one, two) = links(&registry(MemConfig::default()), place).await;
    tokio::join!(dial(one, ours, &config), answer(two, theirs, &config, |_| Verdict::Accept))
}

/// Keeps what arrives, behind a gate.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Collected>>);

#[derive(Default)]
struct Collected {
    messages: Vec<Bytes>,
    is_shut: bool,
    wakers: Vec<Waker>,
}

impl Collector {
    fn shut() -> Self {
        let collector = Self::default();
        collector.0.lock().unwrap().is_shut = true;
        collector
    }

    fn open(&self) {
        let mut inner = self.0.lock().unwrap();
        inner.is_shut = false;
        inner.wakers.drain(..).for_each(Waker::wake);
    }

    async fn wait_for(&self, count: usize) -> Vec<Bytes> {
        poll_fn(|cx| {
            let mut inner = self.0.lock().unwrap();
            if inner.messages.len() >= count {
                return Poll::Ready(inner.messages.clone());
            }
            inner.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Deliver for Collector {
    fn poll_deliver(&mut self, cx: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        let mut inner = self.0.lock().unwrap();
        if inner.is_shut {
            inner.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        inner.messages.append(messages);
        inner.wakers.drain(..).for_each(Waker::wake);
        Poll::Ready(())
    }
}

/// Two connections over one link, their drivers spawned.
struct Pair {
    ours: Connection,
    our_end: tokio::task::JoinHandle<Ended>,
    our_inbox: Collector,
    theirs: Connection,
    their_end: tokio::task::JoinHandle<Ended>,
    their_inbox: Collector,
}

async fn pair(place: &Address, mem: MemConfig, config: &ConnectionConfig, their_inbox: Collector) -> Pair {
    let (one, two) = links(&registry(mem), place).await;
    let (ours, theirs) = (hello(1), hello(2));
    let (one, two) =
        tokio::join!(dial(one, &ours, config), answer(two, &theirs, config, |_| Verdict::Accept));
    let our_inbox = Collector::default();
    let (ours, driver) = one.unwrap().start(config, our_inbox.clone());
    let our_end = tokio::spawn(driver);
    let (theirs, driver) = two.unwrap().start(config, their_inbox.clone());
    let their_end = tokio::spawn(driver);
    Pair { ours, our_end, our_inbox, theirs, their_end, their_inbox }
}

/// A connection whose other end is a bare link that has shaken hands.
async fn against_bare_link(place: &Address, inbox: Collector) -> (Connection, Driver<Collector>, Link) {
    let (one, two) = shake_hands(place, &hello(1), &hello(2)).await;
    let (connection, driver) = one.unwrap().start(&ConnectionConfig::default(), inbox);
    (connection, driver, two.unwrap().link)
}

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("a test hangs")
}

#[tokio::test]
async fn t07_a_handshake_introduces_both_sides() {
    for place in places() {
        let (one, two) = soon(shake_hands(&place, &hello(1), &hello(2))).await;
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!((one.peer, one.is_dialled), (hello(2), true));
        assert_eq!((two.peer, two.is_dialled), (hello(1), false));
        assert_eq!(one.agreement, two.agreement);
    }
}

#[tokio::test]
async fn t07_a_mismatch_is_the_same_typed_error_on_both_sides_naming_both_values() {
    for place in places() {
        let check = async |ours: Hello, theirs: Hello, expected: [Mismatch; 2]| {
            let (one, two) = soon(shake_hands(&place, &ours, &theirs)).await;
            for (result, expected) in [one, two].into_iter().zip(expected) {
                match result {
                    Err(HandshakeError::Mismatch { source, .. }) => assert_eq!(source, expected, "{place}"),
                    other => panic!("{place}: {other:?}"),
                }
            }
        };
        let mut other = hello(2);
        other.codec = CodecId(7);
        let expected = [Mismatch::Codec { ours: 1, theirs: 7 }, Mismatch::Codec { ours: 7, theirs: 1 }];
        check(hello(1), other, expected).await;

        let mut other = hello(2);
        other.versions = (3, 4);
        let expected = [
            Mismatch::Version { ours: (1, 1), theirs: (3, 4) },
            Mismatch::Version { ours: (3, 4), theirs: (1, 1) },
        ];
        check(hello(1), other, expected).await;

        let mut ours = hello(1);
        ours.wanted = Some(NodeId(9));
        let mismatch = Mismatch::Node { wanted: NodeId(9), found: hello(2).identity };
        check(ours, hello(2), [mismatch.clone(), mismatch]).await;
    }
}

#[tokio::test]
async fn t07_the_answering_side_decides() {
    for place in places() {
        let config = ConnectionConfig::default();
        let (one, two) = links(&registry(MemConfig::default()), &place).await;
        let (ours, theirs) = (hello(1), hello(2));
        let (one, two) = soon(async {
            tokio::join!(dial(one, &ours, &config), answer(two, &theirs, &config, |_| Verdict::Duplicate))
        })
        .await;
        assert!(matches!(one, Err(HandshakeError::Duplicate { identity }) if identity == theirs.identity));
        assert!(matches!(two, Err(HandshakeError::Duplicate { identity }) if identity == ours.identity));
    }
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t07_a_stranger_is_a_typed_error_and_hears_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let config = ConnectionConfig::default();
    let registry = registry(MemConfig::default());
    let mut listener = registry.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x05\0\0\0hello", b"\0\0\0\0"] {
        let mut stranger = tokio::net::TcpStream::connect(listener.local_address().rest()).await.unwrap();
        stranger.write_all(first).await.unwrap();
        let link = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        let ours = hello(1);
        let error =
            soon(answer(link, &ours, &config, |_| panic!("a stranger was considered"))).await.unwrap_err();
        assert!(
            matches!(
                error,
                HandshakeError::Hello { .. }
                    | HandshakeError::Link(LinkError::Frame { source: FrameError::TooLarge { .. }, .. })
            ),
            "{error:?}"
        );
        let mut heard = Vec::new();
        // An end or a reset, as the system likes.
        let _ = soon(stranger.read_to_end(&mut heard)).await;
        assert!(heard.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn t07_a_silent_peer_is_given_up_in_time() {
    let (one, _two) = links(&registry(MemConfig::default()), &places()[0]).await;
    let error = dial(one, &hello(1), &ConnectionConfig::default()).await.unwrap_err();
    assert!(matches!(error, HandshakeError::TimedOut { limit_ms: 5000, .. }), "{error:?}");
}

#[tokio::test]
async fn t08_messages_of_all_sizes_arrive_in_order_per_lane_in_both_directions() {
    for place in places() {
        let p = soon(pair(&place, MemConfig::default(), &ConnectionConfig::default(), Collector::default()))
            .await;
        const COUNT: usize = 400;
        let send = async |connection: &Connection| {
            for number in 0..COUNT {
                let size = [0, 1, 63, 4096, 9000, CHUNK_BYTES, CHUNK_BYTES + 1, 200_000][number % 8];
                let lane = Lane::ALL[number % 3 + 1];
                let head = (number as u32).to_le_bytes();
                let body = Bytes::from(vec![number as u8; size]);
                while connection.send(lane, &[&head, &[lane as u8]], body.clone()).is_err() {
                    connection.ready(lane).await.unwrap();
                }
            }
        };
        soon(async { tokio::join!(send(&p.ours), send(&p.theirs)) }).await;
        for inbox in [&p.our_inbox, &p.their_inbox] {
            let mut last = [None; 4];
            for message in soon(inbox.wait_for(COUNT)).await {
                let number = u32::from_le_bytes(message[..4].try_into().unwrap());
                let last = &mut last[usize::from(message[4])];
                assert!(last.is_none_or(|last| last + 3 == number), "{place}");
                *last = Some(number);
                assert!(message[5..].iter().all(|&b| b == number as u8));
            }
        }
        p.ours.close();
        let (ours, theirs) = soon(async { tokio::join!(p.our_end, p.their_end) }).await;
        assert!(
            matches!(ours.unwrap().end, End::Closed) && matches!(theirs.unwrap().end, End::Closed),
            "{place}"
        );
    }
}

#[tokio::test]
async fn t08_a_slow_reader_bounds_the_senders_memory_and_loses_nothing() {
    for place in places() {
        let mut config = ConnectionConfig::default();
        config.lane_bytes_max = [256 * 1024; 4];
        let p = soon(pair(&place, MemConfig::default(), &config, Collector::shut())).await;
        let body = Bytes::from(vec![5; 30_000]);
        let mut taken = 0usize;
        let mut refused_in_a_row = 0;
        // Until the link, too, takes no more.
        while refused_in_a_row < 1000 {
            match p.ours.send(Lane::Ordinary, &[&taken.to_le_bytes()], body.clone()) {
                Ok(()) => (taken, refused_in_a_row) = (taken + 1, 0),
                Err(SendError::Full { lane: Lane::Ordinary, limit }) => {
                    assert_eq!(limit, 256 * 1024);
                    refused_in_a_row += 1;
                }
                Err(other) => panic!("{other}"),
            }
            assert!(p.ours.left().bytes <= 256 * 1024 + FRAME_BYTES_MAX + 4, "{place}");
            tokio::task::yield_now().await;
        }
        // Other lanes are not affected, and waiting is possible.
        p.ours.send(Lane::Control, &[b"control"], Bytes::new()).unwrap();
        p.their_inbox.open();
        soon(p.ours.ready(Lane::Ordinary)).await.unwrap();
        let messages = soon(p.their_inbox.wait_for(taken + 1)).await;
        let numbers: Vec<_> = messages
            .iter()
            .filter(|message| message.len() > 8)
            .map(|message| usize::from_le_bytes(message[..8].try_into().unwrap()))
            .collect();
        assert_eq!(numbers, (0..taken).collect::<Vec<_>>(), "{place}");
    }
}

#[tokio::test]
async fn t08_whoever_sends_without_a_pause_is_told_to_let_the_driver_write() {
    for place in places() {
        let config = ConnectionConfig::default();
        let p = soon(pair(&place, MemConfig::default(), &config, Collector::default())).await;
        p.ours.send(Lane::Ordinary, &[b"first"], Bytes::new()).unwrap();
        soon(p.their_inbox.wait_for(1)).await;
        // Nothing else runs in this thread meanwhile.
        let mut count = 0;
        while !p.ours.is_crowded() {
            p.ours.send(Lane::Ordinary, &[&[7; 1_000]], Bytes::new()).unwrap();
            count += 1;
        }
        assert!((200..300).contains(&count), "{place}: told after {count}");
        soon(p.their_inbox.wait_for(1 + count)).await;
        assert!(!p.ours.is_crowded(), "{place}");
    }
}

#[tokio::test]
async fn t08_urgent_overtakes_bulk_that_was_queued_before() {
    // A link that holds one chunk, so that the lanes decide and not the medium.
    let mut mem = MemConfig::default();
    mem.link_bytes_max = CHUNK_BYTES;
    let p = soon(pair(&places()[0], mem, &ConnectionConfig::default(), Collector::shut())).await;
    let bulk = Bytes::from(vec![1; CHUNK_BYTES]);
    let mut count = 0;
    while p.ours.send(Lane::Bulk, &[], bulk.clone()).is_ok() {
        count += 1;
    }
    // Both drivers run until they are stuck at the gate.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    p.ours.send(Lane::Urgent, &[b"now"], Bytes::new()).unwrap();
    p.their_inbox.open();
    let messages = soon(p.their_inbox.wait_for(count + 1)).await;
    let before = messages.iter().position(|message| &message[..] == b"now").unwrap();
    // One chunk waits at the gate, one or two are in the link, one is being written.
    assert!(before <= 4, "{before} of {count} went first");
    assert!(messages.iter().all(|message| message == &bulk || &message[..] == b"now"));
}

#[cfg(all(feature = "tcp", target_os = "linux"))]
#[tokio::test]
async fn t08_urgent_overtakes_bulk_that_the_system_has_not_taken() {
    let p =
        soon(pair(&places()[1], MemConfig::default(), &ConnectionConfig::default(), Collector::shut())).await;
    let bulk = Bytes::from(vec![1; CHUNK_BYTES]);
    let mut count = 0;
    let mut refused_in_a_row = 0;
    // Until the system, too, takes no more from a reader that does not read.
    while refused_in_a_row < 2000 {
        if p.ours.send(Lane::Bulk, &[], bulk.clone()).is_ok() {
            (count, refused_in_a_row) = (count + 1, 0);
        } else {
            refused_in_a_row += 1;
            tokio::task::yield_now().await;
        }
    }
    p.ours.send(Lane::Urgent, &[b"now"], Bytes::new()).unwrap();
    p.their_inbox.open();
    let messages = soon(p.their_inbox.wait_for(count + 1)).await;
    let before = messages.iter().position(|message| &message[..] == b"now").unwrap();
    // The reader's own buffer and 128 KiB on this side; left to itself the system took four megabytes more.
    assert!(before <= 32, "{before} of {count} went first");
}

#[tokio::test]
async fn t08_close_flushes_what_was_taken() {
    for place in places() {
        let p = soon(pair(&place, MemConfig::default(), &ConnectionConfig::default(), Collector::default()))
            .await;
        let body = Bytes::from(vec![1; 50_000]);
        for _ in 0..60 {
            p.ours.send(Lane::Bulk, &[], body.clone()).unwrap();
        }
        p.theirs.send(Lane::Ordinary, &[b"last word"], Bytes::new()).unwrap();
        p.ours.close();
        assert_eq!(p.ours.send(Lane::Control, &[], Bytes::new()), Err(SendError::Closed));
        assert_eq!(p.ours.ready(Lane::Control).await, Err(SendError::Closed));
        let (ours, theirs) = soon(async { tokio::join!(p.our_end, p.their_end) }).await;
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        assert!(
            matches!((&ours.end, &theirs.end), (End::Closed, End::Closed)),
            "{place}: {ours:?} {theirs:?}"
        );
        assert_eq!((ours.left.messages, ours.left.bytes), (0, 0));
        assert_eq!(p.their_inbox.wait_for(60).await.len(), 60);
        assert_eq!(p.our_inbox.wait_for(1).await, [&b"last word"[..]]);
        assert!(!p.theirs.is_open());
    }
}

#[tokio::test(start_paused = true)]
async fn t08_closed_by_agreement_means_delivered_on_both_sides() {
    let place = "mem://".parse().unwrap();
    let config = ConnectionConfig::default();
    for both_close in [false, true] {
        let mut pair = pair(&place, MemConfig::default(), &config, Collector::shut()).await;
        pair.ours.send(Lane::Ordinary, &[b"last words"], Bytes::new()).unwrap();
        pair.ours.close();
        if both_close {
            pair.theirs.close();
        }
        let early = tokio::time::timeout(Duration::from_secs(5), &mut pair.our_end).await;
        assert!(early.is_err(), "{early:?}, but the peer's user has taken nothing");
        pair.their_inbox.open();
        for end in [pair.our_end, pair.their_end] {
            let end = soon(end).await.unwrap().end;
            assert!(matches!(end, End::Closed), "{end}");
        }
        assert_eq!(pair.their_inbox.wait_for(1).await, ["last words"]);
    }
}

#[tokio::test]
async fn t08_an_abort_says_what_was_left() {
    let mut mem = MemConfig::default();
    mem.link_bytes_max = 1;
    let p = soon(pair(&places()[0], mem, &ConnectionConfig::default(), Collector::shut())).await;
    for _ in 0..10 {
        p.ours.send(Lane::Bulk, &[], vec![0; CHUNK_BYTES].into()).unwrap();
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    p.ours.close();
    p.ours.abort();
    let ended = soon(p.our_end).await.unwrap();
    assert!(matches!(ended.end, End::Aborted), "{ended:?}");
    assert_eq!(ended.left.messages as u64 + ended.stats.messages_sent, 10);
    assert!((6..10).contains(&ended.left.messages), "{ended:?}");
    assert!(ended.left.bytes >= ended.left.messages * CHUNK_BYTES);
    let ended = soon(async {
        p.their_inbox.open();
        p.their_end.await.unwrap()
    })
    .await;
    assert!(matches!(ended.end, End::Link(LinkError::Broken { .. })), "{ended:?}");
}

#[tokio::test]
async fn t08_garbage_ends_the_connection_with_a_typed_error_after_what_came_before_it() {
    for place in places() {
        let check = async |frame: &[u8], expected: fn(&End) -> bool| {
            let inbox = Collector::default();
            let (_connection, driver, mut bare) = soon(against_bare_link(&place, inbox.clone())).await;
            let mut outbox = Outbox::new(10 * FRAME_BYTES_MAX);
            outbox.push(&[b"\x02good"]).unwrap();
            outbox.push(&[frame]).unwrap();
            let sending = poll_fn(|cx| bare.sender.poll_send(cx, &mut outbox));
            let (_, ended) = soon(async { tokio::join!(sending, driver) }).await;
            assert!(expected(&ended.end), "{place}: {ended:?}");
            assert_eq!(inbox.wait_for(1).await, [&b"good"[..]]);
        };
        check(b"", |end| matches!(end, End::Protocol(ProtocolError::Empty))).await;
        check(b"\xffx", |end| matches!(end, End::Protocol(ProtocolError::UnknownTag { tag: 0xff }))).await;
        check(&[2; FRAME_BYTES_MAX + 1], |end| {
            matches!(end, End::Link(LinkError::Frame { source: FrameError::TooLarge { .. }, .. }))
        })
        .await;
    }
}

#[tokio::test]
async fn t08_a_peer_that_vanishes_without_goodbye_is_an_error() {
    for place in places() {
        let (connection, driver, bare) = soon(against_bare_link(&place, Collector::default())).await;
        drop(bare);
        let ended = soon(driver).await;
        assert!(matches!(ended.end, End::Link(LinkError::Broken { .. })), "{place}: {ended:?}");
        assert_eq!(connection.send(Lane::Control, &[], Bytes::new()), Err(SendError::Closed));
        assert_eq!(connection.ready(Lane::Control).await, Err(SendError::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn t08_silence_ends_a_connection_but_slowness_does_not() {
    let (_connection, driver, _bare) = against_bare_link(&places()[0], Collector::default()).await;
    let ended = driver.await;
    assert!(matches!(ended.end, End::Silent { silence_ms: 8000 }), "{ended:?}");

    let p = pair(&places()[0], MemConfig::default(), &ConnectionConfig::default(), Collector::shut()).await;
    while p.ours.send(Lane::Bulk, &[], vec![0; CHUNK_BYTES].into()).is_ok() {}
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(p.ours.is_open() && p.theirs.is_open());
    p.their_inbox.open();
    p.ours.close();
    assert!(matches!(p.our_end.await.unwrap().end, End::Closed));
    assert!(matches!(p.their_end.await.unwrap().end, End::Closed));
}
