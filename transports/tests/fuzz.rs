//! A peer may send anything, in any pieces (catalogue T7, T8): the answer is frames or a typed error, at a bounded memory, and
//! never a panic or a hang.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use quorate_transports::connection::{
    CodecId, Connection, ConnectionConfig, Deliver, End, Ended, Established, FRAME_BYTES_MAX, HandshakeError,
    Hello, Lane, Verdict, answer, dial,
};
use quorate_transports::fault::model::{Chance, LatencyModel, LinkModel, LossModel};
use quorate_transports::fault::{FaultHandle, Manner};
use quorate_transports::frame::{HEADER_BYTES, READ_BYTES_MAX};
use quorate_transports::mem::Mem;
use quorate_transports::{
    Address, FrameError, Identity, Inbox, Incarnation, Link, NodeId, Outbox, Transport,
};

const FRAME_MAX: usize = 3_000;

/// Feeds a stream to an inbox in pieces of these sizes, over and over, taking frames after each piece. Returns the frames,
/// the error if one came, and the most memory that the inbox held.
fn feed(stream: &[u8], pieces: &[usize]) -> (Vec<Bytes>, Option<FrameError>, usize) {
    let mut inbox = Inbox::new(FRAME_MAX);
    let (mut frames, mut capacity) = (Vec::new(), 0);
    let mut rest = stream;
    let mut sizes = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let room = inbox.room();
        capacity = capacity.max(room.capacity());
        let size = sizes.next().unwrap_or(1).clamp(1, rest.len()).min(room.capacity() - room.len());
        let (piece, later) = rest.split_at(size);
        room.put_slice(piece);
        inbox.filled(size);
        rest = later;
        loop {
            match inbox.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(inbox.next_frame(), Err(error.clone()), "an error must not go away");
                    return (frames, Some(error), capacity);
                }
            }
        }
    }
    (frames, inbox.check_end().err(), capacity)
}

fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for frame in frames {
        stream.put_u32_le(frame.len() as u32);
        stream.put_slice(frame);
    }
    stream
}

fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let sizes = prop_oneof![4 => 0usize..30, 1 => 0usize..=FRAME_MAX];
    let frame = (sizes, any::<u8>()).prop_map(|(size, fill)| vec![fill; size]);
    prop::collection::vec(frame, 0..20)
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![3 => 1usize..6, 1 => 1usize..10_000], 1..10)
}

/// Tries a property on as many values as is usual, or on new ones for the seconds of `QUORATE_FUZZ_SECONDS`.
fn fuzz<S: Strategy>(values: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let seconds = std::env::var("QUORATE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let config = Config { source_file: Some(file!()), ..Config::default() };
    for rounds in 1_u64.. {
        let outcome = TestRunner::new(config.clone()).run(&values, &property);
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
        if Instant::now() >= end {
            println!("{} values", rounds * u64::from(config.cases));
            return;
        }
    }
}

#[test]
fn t01_frames_survive_any_pieces() {
    fuzz((frames(), pieces()), |(frames, pieces)| {
        let (got, error, _) = feed(&encode(&frames), &pieces);
        prop_assert_eq!(error, None);
        prop_assert_eq!(got, frames);
        Ok(())
    });
}

#[test]
fn t01_a_damaged_stream_gives_the_frames_before_the_damage() {
    let damage = (any::<Index>(), any::<u8>(), any::<Option<Index>>());
    fuzz((frames(), pieces(), damage), |(frames, pieces, (at, value, cut))| {
        let mut stream = encode(&frames);
        prop_assume!(!stream.is_empty());
        let at = at.index(stream.len());
        stream[at] = value;
        let length = cut.map_or(stream.len(), |cut| cut.index(stream.len() + 1));
        stream.truncate(length);
        let (got, error, capacity) = feed(&stream, &pieces);
        // Whole frames before the first damaged or missing byte.
        let mut end = 0;
        for (index, frame) in frames.iter().enumerate() {
            end += HEADER_BYTES + frame.len();
            if end > at.min(length) {
                break;
            }
            prop_assert_eq!(&got[index], frame);
        }
        prop_assert!(got.iter().all(|frame| frame.len() <= FRAME_MAX));
        prop_assert!(got.iter().map(|frame| frame.len() + HEADER_BYTES).sum::<usize>() <= stream.len());
        prop_assert!(capacity <= 2 * READ_BYTES_MAX + FRAME_MAX, "{} bytes held", capacity);
        if let Some(FrameError::TooLarge { size, limit }) = error {
            prop_assert!(size > limit && limit == FRAME_MAX);
        }
        Ok(())
    });
}

#[test]
fn t01_any_bytes_in_any_pieces_give_the_same_frames_and_the_same_end() {
    let bytes = prop::collection::vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..3_000);
    fuzz((bytes, pieces(), pieces()), |(bytes, one, other)| {
        let (frames, error, capacity) = feed(&bytes, &one);
        let (again, error_again, _) = feed(&bytes, &other);
        prop_assert_eq!(frames, again);
        prop_assert_eq!(error, error_again);
        prop_assert!(capacity <= 2 * READ_BYTES_MAX + FRAME_MAX, "{} bytes held", capacity);
        Ok(())
    });
}

fn hello(node: u64) -> Hello {
    Hello::new(Identity::new(NodeId(node), Incarnation(1)), CodecId(1), MESSAGE_MAX, &[])
}

const MESSAGE_MAX: usize = 200_000;

/// Runs on a runtime of its own under paused time: a hang ends by the time limits of the code, at once.
fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(3_600), story).await.expect("it hangs") })
}

async fn links(one: &dyn Transport, two: &dyn Transport) -> (Link, Link) {
    let mut listener = two.listen(&"mem://".parse::<Address>().unwrap()).await.unwrap();
    let target = listener.local_address();
    let (ours, theirs) = tokio::join!(one.connect(&target), poll_fn(|cx| listener.poll_accept(cx)));
    (ours.unwrap(), theirs.unwrap())
}

/// Sends frames as they are, then closes, and keeps the receiving half.
async fn send_raw(mut link: Link, frames: Vec<Vec<u8>>) -> Link {
    let mut outbox = Outbox::new(usize::MAX);
    for frame in frames {
        outbox.push(&[&frame]).unwrap();
    }
    // The other side may have hung up in the middle, and should.
    if poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await.is_ok() {
        let _ = poll_fn(|cx| link.sender.poll_close(cx)).await;
    }
    link
}

/// Keeps messages.
#[derive(Clone, Default)]
struct Keep(Arc<Mutex<Vec<Bytes>>>);

impl Deliver for Keep {
    fn poll_deliver(&mut self, _: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        self.0.lock().unwrap().append(messages);
        Poll::Ready(())
    }
}

/// Garbage, or a valid hello with a few bytes changed, followed by garbage.
fn first_frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let garbage = prop::collection::vec(any::<u8>(), 0..200);
    let edits = prop::collection::vec((any::<Index>(), any::<u8>()), 0..3);
    let edited = edits.prop_map(|edits| {
        let mut frame = hello(2).encode(Verdict::Accept).to_vec();
        for (at, value) in edits {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        frame
    });
    (prop_oneof![garbage.clone(), edited], prop::collection::vec(garbage, 0..4))
        .prop_map(|(first, rest)| std::iter::once(first).chain(rest).collect())
}

#[test]
fn t07_any_first_frames_lead_to_a_connection_or_a_typed_error() {
    fuzz((first_frames(), any::<bool>()), |(frames, dials)| {
        let first = frames.first().cloned().unwrap_or_default();
        let outcome = run(async {
            let world = Mem::new();
            let (ours, theirs) = links(&world, &world).await;
            let config = ConnectionConfig::default();
            let ours_hello = hello(1);
            let shaking = async {
                if dials {
                    dial(ours, &ours_hello, &config).await
                } else {
                    answer(ours, &ours_hello, &config, |_| Verdict::Accept).await
                }
            };
            let (outcome, _link) = tokio::join!(shaking, send_raw(theirs, frames));
            outcome
        });
        match outcome {
            // Only what reads as a hello is one.
            Ok(established) => {
                let (read, _) = Hello::decode(&first, hello(1).versions).unwrap();
                prop_assert_eq!(read, established.peer);
            }
            Err(HandshakeError::TimedOut { .. }) => {
                prop_assert!(false, "it waited although the peer had closed")
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        Ok(())
    });
}

#[test]
fn t08_any_frames_after_the_handshake_end_in_messages_or_a_typed_error() {
    let tag = prop_oneof![4 => 0u8..8, 1 => 0x10u8..0x13, 1 => any::<u8>()];
    let size = prop_oneof![6 => 0usize..20, 1 => 0usize..FRAME_BYTES_MAX + 10];
    fuzz(prop::collection::vec((tag, size), 0..30), |frames| {
        let raw: Vec<Vec<u8>> =
            frames.iter().map(|&(tag, size)| [vec![tag], vec![tag ^ 0x5a; size]].concat()).collect();
        let sent: usize = raw.iter().map(Vec::len).sum();
        let keep = Keep::default();
        let ended = run(async {
            let world = Mem::new();
            let (ours, mut theirs) = links(&world, &world).await;
            let config = ConnectionConfig::default();
            let (ours_hello, theirs_hello) = (hello(1), hello(2));
            let first = async {
                let mut outbox = Outbox::new(FRAME_BYTES_MAX);
                outbox.push(&[&theirs_hello.encode(Verdict::Accept)]).unwrap();
                poll_fn(|cx| theirs.sender.poll_send(cx, &mut outbox)).await.unwrap();
            };
            let accept = |_: &Hello| Verdict::Accept;
            let (established, ()) = tokio::join!(answer(ours, &ours_hello, &config, accept), first);
            let (_connection, driver) = established.unwrap().start(&config, keep.clone());
            let (ended, _link) = tokio::join!(driver, send_raw(theirs, raw));
            ended
        });
        // Every message is made of payload bytes that were sent; none is invented.
        let delivered: usize = keep.0.lock().unwrap().iter().map(Bytes::len).sum();
        prop_assert!(delivered <= sent);
        let is_typed = matches!(ended.end, End::Closed | End::Link(_) | End::Protocol(_));
        prop_assert!(is_typed, "{:?}", ended.end);
        Ok(())
    });
}

/// Two connections over links that lie, with messages of many sizes in all lanes.
async fn over_lies(seed: u64, model: LinkModel) -> (Vec<Bytes>, Option<Ended>) {
    let faults = FaultHandle::new(seed);
    let world = Mem::new();
    let (ours, theirs) = links(&faults.wrap(1, world.clone()), &faults.wrap(2, world)).await;
    let config = ConnectionConfig::default();
    let (ours_hello, theirs_hello) = (hello(1), hello(2));
    let shaking = async {
        tokio::join!(
            dial(ours, &ours_hello, &config),
            answer(theirs, &theirs_hello, &config, |_| Verdict::Accept)
        )
    };
    let (Ok(ours), Ok(theirs)) = shaking.await else { return (Vec::new(), None) };
    // The handshake is over; from now on the link lies.
    faults.set_manner(Manner::Frames);
    faults.change(|network| network.set_default(model));
    let start = |established: Established, keep: &Keep| established.start(&config, keep.clone());
    let (keep, ignored) = (Keep::default(), Keep::default());
    let (sending, sending_driver): (Connection, _) = start(ours, &ignored);
    let (_receiving, receiving_driver) = start(theirs, &keep);
    for (index, size) in [0, 1, 100, 70_000, 200_000, 3, 150_000, 9].into_iter().enumerate() {
        let sent =
            sending.send(Lane::ALL[index % Lane::COUNT], &[&[index as u8]], vec![7; size.max(1) - 1].into());
        sent.unwrap();
    }
    sending.close();
    let (_, ended) = tokio::join!(sending_driver, receiving_driver);
    let messages = keep.0.lock().unwrap().clone();
    (messages, Some(ended))
}

#[test]
fn t08_lying_links_end_connections_with_typed_errors() {
    let some = Chance::percent(20);
    let models = [
        LinkModel { loss: LossModel::Independent(some), ..LinkModel::PERFECT },
        LinkModel { duplication: some, ..LinkModel::PERFECT },
        LinkModel { reordering: some, ..LinkModel::PERFECT },
        LinkModel { corruption: some, ..LinkModel::PERFECT },
        LinkModel {
            latency: LatencyModel::Uniform { min: Duration::ZERO, max: Duration::from_millis(50) },
            ..LinkModel::PERFECT
        },
    ];
    for model in models {
        for seed in 0..100 {
            let (messages, ended) = run(over_lies(seed, model));
            let ended = ended.expect("the handshake was undisturbed");
            assert!(messages.len() <= 16, "seed {seed}, {model:?}: {} messages", messages.len());
            assert!(messages.iter().all(|message| message.len() <= MESSAGE_MAX));
            let is_typed =
                matches!(ended.end, End::Closed | End::Link(_) | End::Protocol(_) | End::Silent { .. });
            assert!(is_typed, "seed {seed}, {model:?}: {:?}", ended.end);
        }
    }
    let (messages, ended) = run(over_lies(0, LinkModel::PERFECT));
    assert_eq!(messages.len(), 8);
    assert!(matches!(ended.unwrap().end, End::Closed));
}

/// Garbage over a real socket.
#[cfg(feature = "tcp")]
#[tokio::test]
async fn t07_garbage_over_tcp_is_a_typed_error() {
    use quorate_transports::tcp::Tcp;
    use tokio::io::AsyncWriteExt;
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: quorate\r\n\r\n",
        &[0xff; 64],
        &[0; 64],
        b"\x03\0\0\0abc\x03\0\0\0abc",
        b"\x40\0\0\0QRTE half a hello",
    ];
    for bytes in garbage {
        let mut listener = Tcp::new().listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_address();
        let (client, link) = tokio::join!(
            tokio::net::TcpStream::connect(address.rest().to_owned()),
            poll_fn(|cx| listener.poll_accept(cx))
        );
        let mut client = client.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let config = ConnectionConfig::default();
        let error = answer(link.unwrap(), &hello(1), &config, |_| Verdict::Accept).await.unwrap_err();
        let is_typed = matches!(error, HandshakeError::Hello { .. } | HandshakeError::Link(_));
        assert!(is_typed, "{error:?} for {bytes:?}");
    }
}
