//! The primitives in their order and out of it, and urgent messages that overtake a transfer.

use std::time::Duration;

use bytes::Bytes;
use quorate::socket::{
    AnySocket, ConnectError, Options, PrimitiveError, ReceiveError, Rejection, SendError, Socket, SocketState,
};

use crate::support::{nets, until, within};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn s01_primitives_in_their_order_carry_messages_both_ways_until_the_close() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let bound = Socket::new(&here, Options::default()).bind("door").unwrap();
        let address = here.addresses()[0].clone();
        let connect = || Socket::new(&there, Options::default()).connect("door", address.clone());
        // Bound is not listening.
        let early = within(connect()).await.unwrap_err();
        assert!(matches!(early, ConnectError::Rejected { reason: Rejection::Busy, .. }), "{early:?}");
        let mut listener = bound.listen(2);
        let one = within(connect()).await.unwrap();
        let mut two = within(connect()).await.unwrap();
        let full = within(connect()).await.unwrap_err();
        assert!(matches!(full, ConnectError::Rejected { reason: Rejection::Busy, .. }), "{full:?}");
        // Sent before it was accepted.
        one.send("one").await.unwrap();
        two.send("two").await.unwrap();
        let (mut first, mut second) = (listener.accept().await.unwrap(), listener.accept().await.unwrap());
        assert_eq!(&within(second.receive()).await.unwrap().body[..], b"two");
        assert_eq!(&within(first.receive()).await.unwrap().body[..], b"one");
        second.send("back").await.unwrap();
        assert_eq!(&within(two.receive()).await.unwrap().body[..], b"back");
        // What was sent before the close is read, and then the end; the other connection goes on.
        for n in 0..1_000_u32 {
            one.send(&n.to_le_bytes()).await.unwrap();
        }
        assert!(within(one.close(LONG)).await.is_nothing());
        for n in 0..1_000_u32 {
            assert_eq!(within(first.receive()).await.unwrap().body, n.to_le_bytes()[..]);
        }
        assert_eq!(within(first.receive()).await, Err(ReceiveError::Closed));
        assert_eq!(first.send("?").await, Err(SendError::Gone));
        // What was accepted outlives the listener.
        drop(listener);
        two.send("still here").await.unwrap();
        assert_eq!(&within(second.receive()).await.unwrap().body[..], b"still here");
        drop(second);
        assert_eq!(within(two.receive()).await, Err(ReceiveError::Closed));
    }
}

#[tokio::test]
async fn s01_a_stream_of_bytes_has_no_borders_and_an_end() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut listener = Socket::new(&here, Options::default()).bind("pipe").unwrap().listen(1);
        let writer = Socket::new(&there, Options::default()).connect("pipe", &here.addresses()[0]).await;
        let writer = writer.unwrap().into_bytes();
        let mut reader = listener.accept().await.unwrap().into_bytes();
        let text: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let writing = async {
            for piece in text.chunks(170_001) {
                writer.write(piece).await.unwrap();
            }
            assert!(writer.close(LONG).await.is_nothing());
        };
        let reading = async {
            let mut got = Vec::new();
            let mut buffer = vec![0; 77_777];
            loop {
                match reader.read(&mut buffer).await.unwrap() {
                    0 => return got,
                    count => got.extend_from_slice(&buffer[..count]),
                }
            }
        };
        let ((), got) = within(async { tokio::join!(writing, reading) }).await;
        assert!(got == text, "{} of {} bytes", got.len(), text.len());
    }
}

#[tokio::test]
async fn s01_a_call_out_of_order_is_a_typed_error_that_names_the_state() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let address = here.addresses()[0].clone();
        let out_of_order = |error: PrimitiveError| match error {
            PrimitiveError::OutOfOrder { call, state } => (call, state),
            other => panic!("{other:?}"),
        };
        let mut socket = AnySocket::new(&here, Options::default());
        assert_eq!(out_of_order(socket.listen(1).unwrap_err()), ("listen on", SocketState::Unbound));
        assert_eq!(out_of_order(socket.accept().await.unwrap_err()), ("accept from", SocketState::Unbound));
        let error = socket.send("?").await.unwrap_err();
        assert_eq!(error.to_string(), "cannot send on a socket that is unbound");
        socket.bind("door").unwrap();
        assert_eq!(out_of_order(socket.bind("again").unwrap_err()), ("bind", SocketState::Bound));
        assert_eq!(out_of_order(socket.receive().await.unwrap_err()), ("receive on", SocketState::Bound));
        let connecting = socket.connect("door", &address).await.unwrap_err();
        assert_eq!(out_of_order(connecting), ("connect", SocketState::Bound));
        socket.listen(1).unwrap();
        assert_eq!(out_of_order(socket.listen(1).unwrap_err()), ("listen on", SocketState::Listening));
        let mut caller = AnySocket::new(&there, Options::default());
        within(caller.connect("door", &address)).await.unwrap();
        let mut called = within(socket.accept()).await.unwrap();
        caller.send("in order").await.unwrap();
        assert_eq!(&within(called.receive()).await.unwrap().body[..], b"in order");
        assert_eq!(out_of_order(called.bind("x").unwrap_err()), ("bind", SocketState::Connected));
        assert!(within(caller.close(LONG)).await.unwrap().is_nothing());
        assert_eq!(out_of_order(caller.send("?").await.unwrap_err()), ("send on", SocketState::Closed));
        assert_eq!(out_of_order(caller.close(LONG).await.unwrap_err()), ("close", SocketState::Closed));
        assert!(matches!(within(called.receive()).await, Err(PrimitiveError::Receive(ReceiveError::Closed))));
    }
}

#[tokio::test]
async fn s02_an_urgent_message_overtakes_a_transfer_which_stays_whole_and_in_order() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut roomy = Options::default();
        roomy.window_bytes = 64 << 20;
        let mut listener = Socket::new(&here, roomy.clone()).bind("pipe").unwrap().listen(1);
        let sender = Socket::new(&there, roomy).connect("pipe", &here.addresses()[0]).await.unwrap();
        let mut reader = listener.accept().await.unwrap();
        const COUNT: u64 = 2_000;
        const SIZE: usize = 10_000;
        let sending = async {
            for n in 0..COUNT {
                let body = [&n.to_le_bytes()[..], &vec![n as u8; SIZE - 8]].concat();
                sender.send(Bytes::from(body)).await.unwrap();
                if n % 500 == 250 {
                    sender.send_urgent(&n.to_le_bytes()).await.unwrap();
                }
            }
        };
        let reading = async {
            let (mut next, mut urgent, mut waited) = (0, Vec::new(), 0);
            while next < COUNT || urgent.len() < 4 {
                // From the moment on which it is here it goes before all that waits, but for the chunk in hand.
                let is_here = reader.is_urgent_waiting();
                let received = reader.receive().await.unwrap();
                let number = u64::from_le_bytes(received.body[..8].try_into().unwrap());
                if received.is_urgent {
                    urgent.push(number);
                    waited = 0;
                } else {
                    assert_eq!((number, received.body.len()), (next, SIZE));
                    next += 1;
                    waited += if is_here { SIZE } else { 0 };
                    assert!(waited <= 64 * 1024, "{waited} bytes went before an urgent message");
                }
            }
            urgent
        };
        let ((), urgent) = within(async { tokio::join!(sending, reading) }).await;
        assert_eq!(urgent, [250, 750, 1_250, 1_750]);

        // Nothing of the transfer is read: what is urgent is here nevertheless, ahead of megabytes.
        for n in 0..300_u64 {
            let body = [&n.to_le_bytes()[..], &vec![n as u8; SIZE - 8]].concat();
            sender.send(Bytes::from(body)).await.unwrap();
        }
        sender.send_urgent("stop").await.unwrap();
        until(|| reader.is_urgent_waiting()).await;
        let received = within(reader.receive()).await.unwrap();
        assert!(received.is_urgent && &received.body[..] == b"stop", "{received:?}");
        for n in 0..300_u64 {
            assert_eq!(within(reader.receive()).await.unwrap().body[..8], n.to_le_bytes());
        }
    }
}
