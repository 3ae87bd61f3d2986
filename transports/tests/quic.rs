//! QUIC: who is let in, who is not and learns why, and that nothing is delivered without trust.
#![cfg(feature = "quic")]

mod authority;

use std::future::poll_fn;
use std::time::Duration;

use authority::Authority;
use quorate_transports::quic::{Quic, QuicConfig};
use quorate_transports::{
    Address, Certificates, Credentials, Inbox, Link, LinkError, Outbox, Transport, TransportError, TrustError,
};

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

/// The first packets of diallers that call nobody, each by a connection id of its own.
async fn first_packets(count: usize, certificates: &Certificates) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while packets.len() < count {
        // One for each: who gives up says so.
        let hole = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
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
        let sender = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
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
