//! How links end: by the will of a side, or by a break, and what the other side is told.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use quorate::socket::{
    Connected, Listener, Options, Pull, Push, ReceiveError, SendError, Socket, Subscriber,
};
use quorate_transports::sim::SimNetwork;

use crate::hostile::{REJECT, Raw, WELCOME, item};
use crate::support::{everywhere, nets, simulated, within};

const STREAM: u8 = 12;
const PUBLISHER: u8 = 4;
const PUSH: u8 = 2;

async fn accept(listener: &mut Listener) -> Connected {
    within(listener.accept()).await.unwrap()
}

#[tokio::test]
async fn s01_the_end_of_a_stream_of_bytes_is_told_apart_from_a_break() {
    let network = SimNetwork::new(1);
    let (here, there) = (simulated(&network, 1).await, simulated(&network, 2).await);
    let mut listener = Socket::new(&here, Options::default()).bind("pipe").unwrap().listen(1);
    let text = vec![7; 300_000];
    for is_broken in [true, false] {
        let socket = Socket::new(&there, Options::default());
        let writer = within(socket.connect("pipe", &here.addresses()[0])).await.unwrap().into_bytes();
        let mut reader = accept(&mut listener).await.into_bytes();
        within(writer.write(&text)).await.unwrap();
        let mut buffer = [0; 10_000];
        let mut left = text.len();
        while left > 0 {
            left -= within(reader.read(&mut buffer)).await.unwrap();
        }
        if is_broken {
            network.reset_connections("host1", "host2");
            for _ in 0..2 {
                assert_eq!(within(reader.read(&mut buffer)).await, Err(ReceiveError::Broken));
            }
            assert_eq!(within(reader.write(&text)).await, Err(SendError::Gone));
        } else {
            drop(writer);
            for _ in 0..2 {
                assert_eq!(within(reader.read(&mut buffer)).await, Ok(0));
            }
        }
    }
}

#[tokio::test]
async fn s01_a_stream_without_its_middle_is_broken_where_that_begins() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut listener = Socket::new(&here, Options::default()).bind("pipe").unwrap().listen(1);
        let (raw, answer) = Raw::hello(&there, &here, "pipe", STREAM, 1).await;
        assert_eq!(answer, WELCOME);
        let mut reader = accept(&mut listener).await;
        raw.data(0, 0, &item(b"first"));
        raw.data(3, 27, &item(b"fourth"));
        assert_eq!(&within(reader.receive()).await.unwrap().body[..], b"first");
        assert_eq!(within(reader.receive()).await, Err(ReceiveError::Broken));
    }
}

#[tokio::test]
async fn s01_the_word_of_the_end_waits_for_what_was_sent_before_it() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut listener = Socket::new(&here, Options::default()).bind("pipe").unwrap().listen(1);
        let (raw, _) = Raw::hello(&there, &here, "pipe", STREAM, 1).await;
        let mut reader = accept(&mut listener).await;
        // As over a medium whose lanes overtake each other.
        raw.close(2);
        raw.data(0, 0, &item(b"one"));
        raw.data(1, 7, &item(b"two"));
        for expected in [&b"one"[..], b"two"] {
            assert_eq!(&within(reader.receive()).await.unwrap().body[..], expected);
        }
        assert_eq!(within(reader.receive()).await, Err(ReceiveError::Closed));

        let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
        let (raw, _) = Raw::hello(&there, &here, "work", PUSH, 2).await;
        raw.close(1);
        raw.data(0, 0, &item(b"late"));
        assert_eq!(&within(pull.receive()).await.unwrap().body[..], b"late");
    }
}

#[tokio::test(start_paused = true)]
async fn s01_a_stream_without_its_end_is_broken_and_not_ended() {
    let network = SimNetwork::new(1);
    let (here, there) = (simulated(&network, 1).await, simulated(&network, 2).await);
    let mut listener = Socket::new(&here, Options::default()).bind("pipe").unwrap().listen(1);
    let (raw, _) = Raw::hello(&there, &here, "pipe", STREAM, 1).await;
    let mut reader = accept(&mut listener).await;
    raw.data(0, 0, &item(b"first"));
    raw.close(2);
    assert_eq!(&within(reader.receive()).await.unwrap().body[..], b"first");
    assert_eq!(within(reader.receive()).await, Err(ReceiveError::Broken));
}

#[tokio::test(start_paused = true)]
async fn s03_a_wish_that_a_publisher_does_not_answer_stands_and_its_subscriber_is_told() {
    let network = SimNetwork::new(1);
    let (here, there) = (simulated(&network, 1).await, simulated(&network, 2).await);
    let subscriber = Subscriber::bind(&here, "news", Options::default()).unwrap();
    let (_silent, answer) = Raw::hello(&there, &here, "news", PUBLISHER, 1).await;
    assert_eq!(answer, WELCOME);
    let told = within(subscriber.subscribe("weather")).await.unwrap_err();
    assert!(matches!(told, SendError::Unconfirmed { .. }), "{told:?}");
    assert_eq!(subscriber.stats().links, 1);
}

#[tokio::test]
async fn s03_one_node_cannot_take_all_the_links_of_a_socket() {
    for net in nets() {
        let (here, there, elsewhere) = (net.node(1).await, net.node(2).await, net.node(3).await);
        let mut options = Options::default();
        (options.links_max, options.links_per_peer_max) = (100, 2);
        let pull = Pull::bind(&here, "work", options).unwrap();
        let mut kept = Vec::new();
        for own in 1..=4 {
            let (raw, answer) = Raw::hello(&there, &here, "work", PUSH, own).await;
            assert_eq!(answer, if own <= 2 { WELCOME } else { REJECT });
            kept.push(raw);
        }
        let push = Push::connect(&elsewhere, "work", &here.addresses()[0], Options::default()).await;
        assert!(push.is_ok(), "{push:?}");
        assert_eq!(pull.stats().links, 3);
    }
}

#[tokio::test]
async fn t03_a_node_that_was_shut_down_has_given_its_places_back() {
    everywhere(tests::nets_between_processes(), |net| async move {
        for deadline in [Duration::ZERO, Duration::from_secs(10)] {
            let (here, there) = (net.node(1).await, net.node(2).await);
            let place = here.addresses()[0].clone();
            let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
            let push = within(Push::connect(&there, "work", &place, Options::default())).await.unwrap();
            within(push.send(b"work")).await.unwrap();
            within(pull.receive()).await.unwrap();
            within(here.shutdown(deadline)).await;
            // Whoever asks the system now, and asks once, gets it.
            let rest = place.rest();
            let again: io::Result<()> = match place.scheme() {
                "tcp" | "tls" => TcpListener::bind(rest).map(drop),
                "quic" | "udp" => UdpSocket::bind(rest).map(drop),
                #[cfg(unix)]
                "unix" => std::os::unix::net::UnixListener::bind(rest).map(drop),
                scheme => panic!("nobody knows how to ask for a place of {scheme}"),
            };
            again.unwrap_or_else(|error| panic!("{place} after {deadline:?}: {error}"));
        }
    })
    .await;
}
