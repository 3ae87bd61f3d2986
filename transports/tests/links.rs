//! What every link promises, shown on memory and on TCP.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::mem::{Mem, MemConfig};
use quorate_transports::{
    Address, FrameError, Inbox, Link, LinkError, Outbox, Registry, Transport, TransportError,
};

const FRAME_BYTES_MAX: usize = 1 << 20;

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.add(Mem::new()).unwrap();
    #[cfg(feature = "tcp")]
    registry.add(quorate_transports::tcp::Tcp::new()).unwrap();
    registry
}

/// Somewhere to listen, per transport.
fn places() -> Vec<Address> {
    let mut places = vec![address("mem://")];
    if cfg!(feature = "tcp") {
        places.extend([address("tcp://127.0.0.1:0"), address("tcp://localhost:0"), address("tcp://*:0")]);
    }
    places
}

/// What to dial to reach a listener, also one on all interfaces.
fn dialable(local: &Address) -> Address {
    address(&local.as_str().replace("[::]", "127.0.0.1").replace("0.0.0.0", "127.0.0.1"))
}

async fn pair(registry: &Registry, place: &Address) -> (Link, Link) {
    let mut listener = registry.listen(place).await.unwrap();
    let target = dialable(&listener.local_address());
    let (ours, theirs) = tokio::join!(registry.connect(&target), poll_fn(|cx| listener.poll_accept(cx)));
    (ours.unwrap(), theirs.unwrap())
}

async fn send(link: &mut Link, frames: &[&[u8]]) -> Result<(), LinkError> {
    let mut outbox = Outbox::new(FRAME_BYTES_MAX);
    for frame in frames {
        outbox.push(&[frame]).unwrap();
    }
    poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await
}

/// Everything until the peer's clean end.
async fn receive_all(link: &mut Link) -> Result<Vec<Bytes>, LinkError> {
    let mut inbox = Inbox::new(FRAME_BYTES_MAX);
    let mut frames = Vec::new();
    while poll_fn(|cx| link.receiver.poll_receive(cx, &mut inbox)).await? {
        while let Some(frame) = inbox.next_frame().unwrap() {
            frames.push(frame);
        }
    }
    Ok(frames)
}

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("a test hangs")
}

#[tokio::test]
async fn t03_closing_flushes_and_leaves_the_other_direction_open() {
    for place in places() {
        soon(async {
            let (mut ours, mut theirs) = pair(&registry(), &place).await;
            let big = vec![7u8; 300_000];
            let (sent, received) = tokio::join!(
                async {
                    send(&mut ours, &[b"one", b"", &big]).await?;
                    poll_fn(|cx| ours.sender.poll_close(cx)).await
                },
                receive_all(&mut theirs)
            );
            sent.unwrap();
            assert_eq!(received.unwrap(), [&b"one"[..], b"", &big], "{place}");
            assert!(matches!(send(&mut ours, &[b"late"]).await, Err(LinkError::Closed)), "{place}");
            send(&mut theirs, &[b"answer"]).await.unwrap();
            poll_fn(|cx| theirs.sender.poll_close(cx)).await.unwrap();
            assert_eq!(receive_all(&mut ours).await.unwrap(), [&b"answer"[..]], "{place}");
        })
        .await;
    }
}

#[tokio::test]
async fn t08_a_reader_that_does_not_read_stops_the_sender() {
    for place in places() {
        soon(async {
            let (mut ours, mut theirs) = pair(&registry(), &place).await;
            let mut outbox = Outbox::new(FRAME_BYTES_MAX);
            let mut taken = 0usize;
            let frame = vec![1u8; 64 * 1024];
            // Offers until the medium says that it is full.
            loop {
                outbox.push(&[&frame]).unwrap();
                if poll_fn(|cx| Poll::Ready(ours.sender.poll_send(cx, &mut outbox))).await.is_pending() {
                    break;
                }
                taken += frame.len();
                assert!(taken < 256 << 20, "{place} buffers without bound");
                tokio::task::yield_now().await;
            }
            let mut inbox = Inbox::new(FRAME_BYTES_MAX);
            let mut got = 0;
            let sending = async {
                poll_fn(|cx| ours.sender.poll_send(cx, &mut outbox)).await.unwrap();
                poll_fn(|cx| ours.sender.poll_close(cx)).await.unwrap();
            };
            let receiving = async {
                while poll_fn(|cx| theirs.receiver.poll_receive(cx, &mut inbox)).await.unwrap() {
                    while let Some(frame) = inbox.next_frame().unwrap() {
                        got += frame.len();
                    }
                }
            };
            tokio::join!(sending, receiving);
            assert_eq!(got, taken + frame.len(), "{place}");
        })
        .await;
    }
}

#[tokio::test]
async fn t03_a_peer_that_vanishes_ends_the_link_on_both_directions() {
    for place in places() {
        soon(async {
            let (mut ours, theirs) = pair(&registry(), &place).await;
            drop(theirs);
            // Either an error or the end, but never a wait and never a frame.
            assert!(receive_all(&mut ours).await.map_or(true, |frames| frames.is_empty()), "{place}");
            loop {
                if send(&mut ours, &[b"into the void"]).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn t01_errors_of_setting_up_name_the_culprit() {
    let registry = registry();
    let unknown = address("pigeon://loft");
    let error = registry.connect(&unknown).await.unwrap_err();
    assert!(
        matches!(&error, TransportError::UnknownScheme { address, known } if *address == unknown && known.contains(&"mem"))
    );
    assert!(error.to_string().contains("pigeon://loft"));
    assert!(matches!(
        registry.bind(&address("tcp://127.0.0.1:0")).await.err(),
        Some(TransportError::Unsupported { scheme: "tcp", .. })
    ));

    for place in places() {
        let listener = registry.listen(&place).await.unwrap();
        let taken = listener.local_address();
        let error = registry.listen(&taken).await.err().unwrap();
        assert!(matches!(&error, TransportError::InUse { address } if *address == taken), "{error:?}");
        drop(listener);
        let target = dialable(&taken);
        let error = registry.connect(&target).await.unwrap_err();
        assert!(matches!(&error, TransportError::Refused { address } if *address == target), "{error:?}");
        drop(registry.listen(&taken).await.unwrap());
    }
    for bad in [
        "tcp://",
        "tcp://localhost",
        "tcp://localhost:x",
        "tcp://:80",
        "tcp://localhost:70000",
        "tcp://*:x",
        "tcp://a/b:1",
    ] {
        let error = registry.listen(&address(bad)).await.err().unwrap();
        assert!(matches!(error, TransportError::BadAddress { .. }), "{bad}: {error:?}");
    }
}

#[tokio::test]
async fn t01_names_of_two_memory_worlds_do_not_meet() {
    let (one, two) = (Mem::new(), Mem::new());
    let place = address("mem://a");
    let _listener = one.listen(&place).await.unwrap();
    assert!(matches!(two.connect(&place).await, Err(TransportError::Refused { .. })));
    let _other = two.listen(&place).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn t03_a_dialler_does_not_wait_for_ever_for_a_listener_that_accepts_nobody() {
    let mut config = MemConfig::default();
    config.backlog_max = 1;
    let mem = Mem::with_config(config);
    let place = address("mem://busy");
    let _listener = mem.listen(&place).await.unwrap();
    let _waiting = mem.connect(&place).await.unwrap();
    let error = soon(mem.connect(&place)).await.unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { limit_ms: 5_000, .. }), "{error:?}");
}

#[tokio::test]
async fn t01_memory_datagrams_arrive_whole_or_are_dropped() {
    let mut config = MemConfig::default();
    config.datagrams_max = 2;
    config.datagram_bytes_max = 4;
    let mem = Mem::with_config(config);
    let mut one = mem.bind(&address("mem://one")).await.unwrap();
    let mut two = mem.bind(&address("mem://two")).await.unwrap();
    let to = two.local_address();
    for payload in [&b"a"[..], b"b", b"lost"] {
        poll_fn(|cx| one.poll_send_to(cx, &to, payload)).await.unwrap();
    }
    let large = poll_fn(|cx| one.poll_send_to(cx, &to, b"large")).await;
    assert!(matches!(
        large,
        Err(LinkError::Frame { source: FrameError::TooLarge { size: 5, limit: 4 }, .. })
    ));
    for expected in [&b"a"[..], b"b"] {
        let (from, payload) = poll_fn(|cx| two.poll_receive_from(cx)).await.unwrap();
        assert_eq!((from.as_str(), &payload[..]), ("mem://one", expected));
    }
    assert!(poll_fn(|cx| Poll::Ready(two.poll_receive_from(cx))).await.is_pending());
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t01_a_stream_that_ends_inside_a_frame_is_a_typed_error() {
    use tokio::io::AsyncWriteExt;
    let registry = registry();
    let mut listener = registry.listen(&address("tcp://127.0.0.1:0")).await.unwrap();
    let place = listener.local_address();
    let mut raw = tokio::net::TcpStream::connect(place.rest()).await.unwrap();
    let mut theirs = soon(poll_fn(|cx| listener.poll_accept(cx))).await.unwrap();
    raw.write_all(&[9, 0, 0, 0, 1, 2]).await.unwrap();
    drop(raw);
    let error = soon(receive_all(&mut theirs)).await.unwrap_err();
    assert!(
        matches!(error, LinkError::Frame { source: FrameError::Truncated { got: 6, size: 13 }, .. }),
        "{error:?}"
    );
}
