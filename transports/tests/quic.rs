//! QUIC: who is let in, who is not and learns why, and that nothing is delivered without trust.
#![cfg(feature = "quic")]

mod authority;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use authority::Authority;
use bytes::Bytes;
use quorate_transports::connection::{
    CodecId, Connection, ConnectionConfig, Deliver, End, Established, Hello, Lane, SendError, Verdict,
    answer, dial,
};
use quorate_transports::quic::{Quic, QuicConfig};
use quorate_transports::{
    Address, Certificates, Credentials, Identity, Inbox, Incarnation, Link, LinkError, Listener, NodeId,
    Outbox, Transport, TransportError, TrustError,
};
use tokio::net::UdpSocket;

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("a test hangs")
}

fn place() -> Address {
    "quic://127.0.0.1:0".parse().unwrap()
}

async fn send(link: &mut Link, frame: &[u8]) -> Result<(), LinkError> {
    let mut outbox = Outbox::new(1 << 20);
    outbox.push(&[frame]).unwrap();
    poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await
}

async fn receive(link: &mut Link) -> Result<Vec<u8>, LinkError> {
    let mut inbox = Inbox::new(1 << 20);
    loop {
        if let Some(frame) = inbox.next_frame().unwrap() {
            return Ok(frame.to_vec());
        }
        assert!(poll_fn(|cx| link.receiver.poll_receive(cx, &mut inbox)).await?, "the stream ended");
    }
}

#[tokio::test]
async fn t04_both_ends_of_quic_know_the_certificate_of_the_other_one() {
    let authority = Authority::new();
    let ann = Quic::new(authority.certificates(&["127.0.0.1", "ann"]));
    let bob = Quic::new(authority.certificates(&["bob"]));
    let mut listener = ann.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let both = async { tokio::join!(bob.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) };
    let (dialled, accepted) = soon(both).await;
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    soon(send(&mut dialled, b"hello")).await.unwrap();
    assert_eq!(soon(receive(&mut accepted)).await.unwrap(), b"hello");
    for (link, name) in [(&dialled, "ann"), (&accepted, "bob")] {
        let Some(Credentials::Certificate(certificate)) = link.credentials.get() else { panic!("{link:?}") };
        assert_eq!(certificate.names(), [name]);
    }
    assert_eq!((ann.stats().accepted, ann.stats().refused), (1, 0));
}

#[tokio::test]
async fn t04_a_quic_listener_with_a_wrong_certificate_is_refused_with_the_reason() {
    let (authority, other) = (Authority::new(), Authority::new());
    let dialler = Quic::new(authority.certificates(&["bob"]));
    let cases: [(Certificates, TrustError); 4] = [
        (other.trusting(&authority, &["127.0.0.1"]), TrustError::UnknownAuthority),
        (authority.expired(&["127.0.0.1"]), TrustError::Expired),
        (authority.not_valid_yet(&["127.0.0.1"]), TrustError::NotValidYet),
        (authority.certificates(&["elsewhere"]), TrustError::WrongName),
    ];
    for (certificates, reason) in cases {
        let listening = Quic::new(certificates);
        let mut listener = listening.listen(&place()).await.unwrap();
        let target = listener.local_address();
        let dialled = soon(async {
            tokio::select! {
                dialled = dialler.connect(&target) => dialled,
                accepted = poll_fn(|cx| listener.poll_accept(cx)) => panic!("{accepted:?}"),
            }
        })
        .await;
        assert!(
            matches!(&dialled, Err(TransportError::Untrusted { source, .. }) if *source == reason),
            "{reason}: {dialled:?}"
        );
    }
}

#[tokio::test]
async fn t04_a_quic_dialler_with_a_wrong_certificate_is_refused_and_nothing_of_it_is_delivered() {
    let (authority, other) = (Authority::new(), Authority::new());
    let listening = Quic::new(authority.certificates(&["127.0.0.1"]));
    let mut listener = listening.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let cases: [(Certificates, TrustError); 2] = [
        (other.trusting(&authority, &["bob"]), TrustError::UnknownAuthority),
        (authority.expired(&["bob"]), TrustError::Expired),
    ];
    for (number, (certificates, reason)) in cases.into_iter().enumerate() {
        let dialler = Quic::new(certificates);
        let refused = async {
            // In TLS 1.3 the dialler is done before the listener has seen its certificate.
            let mut link = match dialler.connect(&target).await {
                Err(TransportError::Untrusted { source, .. }) => return source,
                link => link.unwrap(),
            };
            let _ = send(&mut link, b"let me in").await;
            match receive(&mut link).await.unwrap_err() {
                LinkError::Untrusted { source, .. } => source,
                error => panic!("{error:?}"),
            }
        };
        let error = soon(async {
            tokio::select! {
                error = refused => error,
                accepted = poll_fn(|cx| listener.poll_accept(cx)) => panic!("{accepted:?}"),
            }
        })
        .await;
        assert!(matches!(&error, TrustError::Refused { .. }), "{error:?}");
        let stats = listening.stats();
        assert_eq!((stats.accepted, stats.refused), (0, number as u64 + 1));
        assert_eq!(stats.untrusted_last.unwrap().1, reason);
    }
}

#[tokio::test]
async fn t04_over_quic_too_whose_certificate_was_revoked_is_refused_from_then_on() {
    let authority = Authority::new();
    let (ours, theirs) = (authority.numbered(&["127.0.0.1"], 6), authority.numbered(&["bob"], 7));
    let (listening, dialler) = (Quic::new(ours.clone()), Quic::new(theirs.clone()));
    let mut listener = listening.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let both = async { tokio::join!(dialler.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) };
    let (dialled, accepted) = soon(both).await;
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    for (lists, reason) in [
        (authority.revokes(&[7], 3000), TrustError::Revoked),
        (authority.revokes(&[], 2002), TrustError::RevocationUnknown),
    ] {
        ours.revoke(&lists).unwrap();
        let refused = async {
            match dialler.connect(&target).await {
                Err(error) => assert!(matches!(error, TransportError::Untrusted { .. }), "{error:?}"),
                Ok(mut link) => drop(receive(&mut link).await.unwrap_err()),
            }
        };
        soon(async {
            tokio::select! {
                () = refused => {}
                accepted = poll_fn(|cx| listener.poll_accept(cx)) => panic!("{accepted:?}"),
            }
        })
        .await;
        assert_eq!(listening.stats().untrusted_last.unwrap().1, reason);
    }
    soon(send(&mut dialled, b"still here")).await.unwrap();
    assert_eq!(soon(receive(&mut accepted)).await.unwrap(), b"still here");

    ours.revoke(&authority.revokes(&[5], 3000)).unwrap();
    theirs.revoke(&authority.revokes(&[6], 3000)).unwrap();
    let dialled = soon(async {
        tokio::select! {
            dialled = dialler.connect(&target) => dialled,
            accepted = poll_fn(|cx| listener.poll_accept(cx)) => panic!("{accepted:?}"),
        }
    });
    let error = dialled.await.unwrap_err();
    assert!(matches!(&error, TransportError::Untrusted { source: TrustError::Revoked, .. }), "{error:?}");
}

/// The first packets of diallers that call nobody, each by a connection id of its own.
async fn first_packets(count: usize, certificates: &Certificates) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while packets.len() < count {
        // One for each: who gives up says so.
        let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target: Address = format!("quic://{}", hole.local_addr().unwrap()).parse().unwrap();
        let quic = Quic::new(certificates.clone());
        let mut packet = vec![0; 2_000];
        let size = soon(async {
            tokio::select! {
                dialled = quic.connect(&target) => panic!("{dialled:?}"),
                received = hole.recv(&mut packet) => received.unwrap(),
            }
        });
        let size = size.await;
        packet.truncate(size);
        packets.push(packet);
    }
    packets
}

#[tokio::test]
async fn t04_packets_with_invented_senders_cost_a_quic_listener_no_memory_and_displace_nobody() {
    const PLACES: usize = 8;
    let authority = Authority::new();
    let certificates = authority.certificates(&["127.0.0.1"]);
    let mut config = QuicConfig::default();
    (config.handshakes_max, config.handshake_ms_max) = (PLACES, 3_600_000);
    let quic = Quic::with_config(certificates.clone(), config);
    let mut listener = quic.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let (accepted, mut accepting) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok(link) = poll_fn(|cx| listener.poll_accept(cx)).await {
            accepted.send(link).await.unwrap();
        }
    });
    let mut retried = 0;
    let packets = first_packets(3 * PLACES, &certificates).await;
    for packet in packets {
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        sender.send_to(&packet, target.rest()).await.unwrap();
        let mut answer = [0; 2_000];
        soon(sender.recv(&mut answer)).await.unwrap();
        // The kind of a long header, RFC 9000, section 17.2: 3 is a retry.
        retried += usize::from(answer[0] >> 4 & 0b11 == 3);
    }
    assert_eq!(retried, 3 * PLACES - PLACES / 2);
    assert_eq!(quic.stats().refused, 0);
    // Half of the places are held by nobody for an hour, and whoever is real gets in beside them.
    let dialled = soon(quic.connect(&target)).await.unwrap();
    let accepted = soon(accepting.recv()).await.unwrap();
    assert_eq!((quic.stats().accepted, dialled.peer), (1, target));
    drop(accepted);
}

/// Keeps messages in the order in which they came.
#[derive(Clone, Default)]
struct Keep(Arc<Mutex<Vec<Bytes>>>);

impl Deliver for Keep {
    fn poll_deliver(&mut self, _: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        self.0.lock().unwrap().append(messages);
        Poll::Ready(())
    }
}

/// A way to `target` which loses full packets in that direction while there is a connection in `losing`, on which it sends
/// an urgent message at the moment at which it loses the second one; the place to dial.
async fn lossy_way(target: SocketAddr, losing: Arc<Mutex<Option<Connection>>>) -> SocketAddr {
    let (front, back) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    back.connect(target).await.unwrap();
    let here = front.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut there, mut back_again) = ([0; 2_000], [0; 2_000]);
        let (mut dialler, mut lost) = (None, 0);
        loop {
            tokio::select! {
                received = front.recv_from(&mut there) => {
                    let (size, from) = received.unwrap();
                    dialler = Some(from);
                    let connection = losing.lock().unwrap().clone().filter(|_| size > 1_000);
                    let Some(connection) = connection else {
                        back.send(&there[..size]).await.unwrap();
                        continue;
                    };
                    lost += 1;
                    // One may ask what the way can carry, and such questions are asked one by one.
                    if lost == 2 {
                        connection.send(Lane::Urgent, &[b"urgent"], Bytes::new()).unwrap();
                    }
                }
                received = back.recv(&mut back_again) => {
                    let size = received.unwrap();
                    front.send_to(&back_again[..size], dialler.unwrap()).await.unwrap();
                }
            }
        }
    });
    here
}

/// Who dialled by this way, and who answered.
async fn met(quic: &Quic, listener: &mut dyn Listener, way: &Address) -> (Established, Established) {
    let config = ConnectionConfig::default();
    let hello = |node| Hello::new(Identity::new(NodeId(node), Incarnation(1)), CodecId(1), 1 << 20, &[]);
    let (ours, theirs) = (hello(1), hello(2));
    let dialling = async { dial(quic.connect(way).await.unwrap(), &ours, &config).await.unwrap() };
    let answering = async {
        let link = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        answer(link, &theirs, &config, |_| Verdict::Accept).await.unwrap()
    };
    soon(async { tokio::join!(dialling, answering) }).await
}

/// A way to `target` which carries ten packets in a millisecond in that direction, keeps a hundred and loses the rest.
async fn narrow_way(target: SocketAddr) -> SocketAddr {
    let (front, back) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    back.connect(target).await.unwrap();
    let here = front.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut there, mut back_again) = ([0; 2_000], [0; 2_000]);
        let (mut dialler, mut waiting) = (None, VecDeque::new());
        let mut pace = tokio::time::interval(Duration::from_millis(1));
        loop {
            tokio::select! {
                received = front.recv_from(&mut there) => {
                    let (size, from) = received.unwrap();
                    dialler = Some(from);
                    if waiting.len() < 100 {
                        waiting.push_back(there[..size].to_vec());
                    }
                }
                _ = pace.tick() => {
                    for packet in waiting.drain(..waiting.len().min(10)) {
                        back.send(&packet).await.unwrap();
                    }
                }
                received = back.recv(&mut back_again) => {
                    let size = received.unwrap();
                    front.send_to(&back_again[..size], dialler.unwrap()).await.unwrap();
                }
            }
        }
    });
    here
}

#[tokio::test]
async fn t08_over_quic_urgent_messages_without_end_starve_no_lane() {
    let authority = Authority::new();
    let quic = Quic::new(authority.certificates(&["127.0.0.1"]));
    let mut listener = quic.listen(&place()).await.unwrap();
    let way = narrow_way(listener.local_address().rest().parse().unwrap()).await;
    let way: Address = format!("quic://{way}").parse().unwrap();
    let (dialled, answered) = met(&quic, &mut *listener, &way).await;
    let config = ConnectionConfig::default();
    let (sending, sending_driver) = dialled.start(&config, Keep::default());
    let kept = Keep::default();
    let (_receiving, receiving_driver) = answered.start(&config, kept.clone());
    tokio::spawn(sending_driver);
    tokio::spawn(receiving_driver);
    // More than the way carries, so that there is always something urgent to be sent.
    let flood = sending.clone();
    let flood = tokio::spawn(async move {
        let urgent = Bytes::from(vec![1; 16_000]);
        loop {
            match flood.send(Lane::Urgent, &[], urgent.clone()) {
                Ok(()) => {}
                Err(SendError::Full { .. }) => flood.ready(Lane::Urgent).await.unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
    });
    let has_come = |kind: u8| kept.0.lock().unwrap().iter().any(|message| message[0] == kind);
    let comes = async |kind| {
        soon(async {
            while !has_come(kind) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    };
    comes(1).await;
    sending.send(Lane::Ordinary, &[], vec![2; 30_000].into()).unwrap();
    sending.send(Lane::Bulk, &[], vec![3; 60_000].into()).unwrap();
    comes(2).await;
    comes(3).await;
    assert!(!flood.is_finished());
    flood.abort();
}

#[tokio::test]
async fn t03_closing_a_direction_of_quic_waits_for_receipt_and_not_for_the_reader() {
    const FRAMES: u8 = 15;
    let authority = Authority::new();
    let mut config = QuicConfig::default();
    // As much as the peer takes without reading, almost.
    config.lane_bytes_max = 16 * 1024;
    let quic = Quic::with_config(authority.certificates(&["127.0.0.1"]), config);
    let mut listener = quic.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let both = async { tokio::join!(quic.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) };
    let (dialled, accepted) = soon(both).await;
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    for number in 0..FRAMES {
        soon(send(&mut dialled, &[number; 1_000])).await.unwrap();
    }
    soon(poll_fn(|cx| dialled.sender.poll_close(cx))).await.unwrap();
    // The other direction is open, and what was closed is all there.
    soon(send(&mut accepted, b"go on")).await.unwrap();
    assert_eq!(soon(receive(&mut dialled)).await.unwrap(), b"go on");
    let (mut inbox, mut received) = (Inbox::new(1 << 20), Vec::new());
    while soon(poll_fn(|cx| accepted.receiver.poll_receive(cx, &mut inbox))).await.unwrap() {
        while let Some(frame) = inbox.next_frame().unwrap() {
            received.push(frame);
        }
    }
    assert_eq!(received, (0..FRAMES).map(|number| vec![number; 1_000]).collect::<Vec<_>>());
    soon(send(&mut accepted, b"still open")).await.unwrap();
    assert_eq!(soon(receive(&mut dialled)).await.unwrap(), b"still open");
}

#[tokio::test]
async fn t04_that_nobody_listens_is_told_as_soon_as_the_network_tells() {
    let authority = Authority::new();
    let mut config = QuicConfig::default();
    config.connect_ms_max = 3_600_000;
    let quic = Quic::with_config(authority.certificates(&["127.0.0.1"]), config);
    // A port that was free just now.
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let target: Address = format!("quic://{free}").parse().unwrap();
    let error = soon(quic.connect(&target)).await.unwrap_err();
    assert!(matches!(&error, TransportError::Refused { address } if *address == target), "{error:?}");
}

#[tokio::test]
async fn t04_an_urgent_message_arrives_while_a_bulk_one_waits_for_packets_that_were_lost() {
    let authority = Authority::new();
    let quic = Quic::new(authority.certificates(&["127.0.0.1"]));
    let mut listener = quic.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let losing = Arc::default();
    let way = lossy_way(target.rest().parse().unwrap(), Arc::clone(&losing)).await;
    let way: Address = format!("quic://{way}").parse().unwrap();
    let config = ConnectionConfig::default();
    let (dialled, answered) = met(&quic, &mut *listener, &way).await;
    let kept = Keep::default();
    let (sending, sending_driver) = dialled.start(&config, Keep::default());
    let (_receiving, receiving_driver) = answered.start(&config, kept.clone());
    let sending_driver = tokio::spawn(sending_driver);
    let receiving_driver = tokio::spawn(receiving_driver);
    let have_come = async |count: usize| {
        soon(async {
            while kept.0.lock().unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        kept.0.lock().unwrap().clone()
    };
    *losing.lock().unwrap() = Some(sending.clone());
    // Small enough to leave at once, so that the medium has room for more.
    sending.send(Lane::Bulk, &[], vec![3; 6_000].into()).unwrap();
    // The urgent message is sent when packets of the bulk one are lost already.
    assert_eq!(have_come(1).await, [&b"urgent"[..]]);
    *losing.lock().unwrap() = None;
    assert_eq!(have_come(2).await[1], vec![3; 6_000]);
    sending.close();
    let (sent, received) = soon(async { tokio::join!(sending_driver, receiving_driver) }).await;
    assert!(matches!((sent.unwrap().end, received.unwrap().end), (End::Closed, End::Closed)));
}

#[tokio::test]
async fn t04_datagrams_over_quic_go_both_ways_and_strangers_are_not_heard() {
    let (authority, other) = (Authority::new(), Authority::new());
    let quic = Quic::new(authority.certificates(&["127.0.0.1"]));
    let (mut ann, mut bob) = (quic.bind(&place()).await.unwrap(), quic.bind(&place()).await.unwrap());
    let stranger = Quic::new(other.trusting(&authority, &["127.0.0.1"]));
    let mut carl = stranger.bind(&place()).await.unwrap();
    let (to_ann, to_bob) = (ann.local_address(), bob.local_address());
    poll_fn(|cx| carl.poll_send_to(cx, &to_ann, b"believe me")).await.unwrap();
    soon(async {
        while quic.stats().refused == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    // Together, before there is a connection, and back over the one that there is.
    for number in 0..5 {
        poll_fn(|cx| bob.poll_send_to(cx, &to_ann, &[number])).await.unwrap();
    }
    for number in 0..5 {
        let heard = soon(poll_fn(|cx| ann.poll_receive_from(cx))).await.unwrap();
        assert_eq!(heard, (to_bob.clone(), Bytes::from(vec![number])));
    }
    poll_fn(|cx| ann.poll_send_to(cx, &to_bob, b"back")).await.unwrap();
    let heard = soon(poll_fn(|cx| bob.poll_receive_from(cx))).await.unwrap();
    assert_eq!(heard, (to_ann, Bytes::from_static(b"back")));
    assert_eq!((quic.stats().accepted, quic.stats().refused), (1, 1));
}
