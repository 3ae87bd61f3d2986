//! UDP datagrams, to one receiver and to a group.
#![cfg(feature = "udp")]

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::udp::{BYTES_MAX, Udp};
use quorate_transports::{Address, DatagramSocket, FrameError, LinkError, Transport, TransportError};

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("a test hangs")
}

async fn bind(place: &str) -> Result<Box<dyn DatagramSocket>, TransportError> {
    Udp::new().bind(&place.parse().unwrap()).await
}

async fn send(socket: &mut Box<dyn DatagramSocket>, to: &Address, datagram: &[u8]) -> Result<(), LinkError> {
    poll_fn(|cx| socket.poll_send_to(cx, to, datagram)).await
}

async fn receive(socket: &mut Box<dyn DatagramSocket>) -> (Address, Bytes) {
    soon(poll_fn(|cx| socket.poll_receive_from(cx))).await.unwrap()
}

#[tokio::test]
async fn t03_datagrams_travel_between_every_kind_of_socket() {
    for place in ["udp://127.0.0.1:0", "udp://localhost:0", "udp://*:0"] {
        let (mut one, mut two) = (bind(place).await.unwrap(), bind("udp://127.0.0.1:0").await.unwrap());
        let there = two.local_address();
        let largest = vec![7; BYTES_MAX];
        for datagram in [&b""[..], b"hello", &largest] {
            send(&mut one, &there, datagram).await.unwrap();
            let (from, got) = receive(&mut two).await;
            assert_eq!(got, datagram, "{place}");
            send(&mut two, &from, b"answer").await.unwrap();
            assert_eq!(receive(&mut one).await, (there.clone(), Bytes::from("answer")), "{place}");
        }
        let error = send(&mut one, &there, &vec![0; BYTES_MAX + 1]).await.unwrap_err();
        assert!(matches!(error, LinkError::Frame { source: FrameError::TooLarge { .. }, .. }));
    }
}

#[tokio::test]
async fn t03_a_datagram_to_nobody_is_lost_and_the_socket_goes_on() {
    let (mut one, mut two) =
        (bind("udp://127.0.0.1:0").await.unwrap(), bind("udp://127.0.0.1:0").await.unwrap());
    let nobody = bind("udp://127.0.0.1:0").await.unwrap().local_address();
    for to in [&nobody, &"udp://no-such-host:1".parse().unwrap(), &"mem://a".parse().unwrap()] {
        send(&mut one, to, b"anybody?").await.unwrap();
    }
    let there = two.local_address();
    send(&mut one, &there, b"somebody").await.unwrap();
    assert_eq!(receive(&mut two).await.1, "somebody");
    let here = one.local_address();
    send(&mut two, &here, b"still here").await.unwrap();
    assert_eq!(receive(&mut one).await.1, "still here");
    let error = bind(there.as_str()).await.err().unwrap();
    assert!(matches!(error, TransportError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn t01_a_multicast_datagram_reaches_every_member_of_the_group() {
    // A port that nobody has: multicast sockets share theirs.
    let port = bind("udp://0.0.0.0:0").await.unwrap().local_address();
    let port = port.rest().rsplit_once(':').unwrap().1.to_owned();
    let group = format!("udp://239.255.77.77:{port}");
    let members = match (bind(&group).await, bind(&group).await) {
        (Ok(one), Ok(two)) => [one, two],
        (one, two) => {
            println!("skipped: this machine lets nobody join {group}: {:?} {:?}", one.err(), two.err());
            return;
        }
    };
    let mut sender = bind("udp://0.0.0.0:0").await.unwrap();
    send(&mut sender, &group.parse().unwrap(), b"to all").await.unwrap();
    for mut member in members {
        let received = poll_fn(|cx| member.poll_receive_from(cx));
        match tokio::time::timeout(Duration::from_secs(2), received).await {
            Ok(received) => assert_eq!(received.unwrap().1, "to all"),
            // Such as a container without a route for multicast: the datagram was sent and went nowhere.
            Err(_) => return println!("skipped: this machine has no route for multicast"),
        }
    }
}
