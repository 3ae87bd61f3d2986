//! TLS: who is let in, who is not and learns why, and that nothing is delivered without trust.
#![cfg(feature = "tls")]

mod authority;

use std::future::poll_fn;
use std::time::Duration;

use authority::Authority;
use quorate_transports::tcp::Tcp;
use quorate_transports::tls::{Tls, TlsConfig};
use quorate_transports::{
    Address, Certificates, Credentials, Inbox, Link, LinkError, Listener, Outbox, Transport, TransportError,
    TrustError,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const PLACE: &str = "tls://127.0.0.1:0";

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("a test hangs")
}

fn place() -> Address {
    PLACE.parse().unwrap()
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
async fn t04_both_ends_know_the_certificate_of_the_other_one() {
    let authority = Authority::new();
    let (ann, bob) =
        (Tls::new(authority.certificates(&["127.0.0.1", "ann"])), Tls::new(authority.certificates(&["bob"])));
    let mut listener = ann.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let (dialled, accepted) =
        soon(async { tokio::join!(bob.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) }).await;
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    soon(send(&mut dialled, b"hello")).await.unwrap();
    assert_eq!(soon(receive(&mut accepted)).await.unwrap(), b"hello");
    for (link, name) in [(&dialled, "ann"), (&accepted, "bob")] {
        let Some(Credentials::Certificate(certificate)) = link.credentials.get() else { panic!("{link:?}") };
        assert_eq!(certificate.names(), [name]);
        assert!(!certificate.der().is_empty());
    }
    assert_eq!((ann.stats().accepted, ann.stats().refused), (1, 0));
}

#[tokio::test]
async fn t04_a_listener_with_a_wrong_certificate_is_refused_with_the_reason() {
    let (authority, other) = (Authority::new(), Authority::new());
    let dialler = Tls::new(authority.certificates(&["bob"]));
    let cases: [(Certificates, TrustError); 4] = [
        // Signed by another authority, which itself trusts the dialler's.
        (other.trusting(&authority, &["127.0.0.1"]), TrustError::UnknownAuthority),
        (authority.expired(&["127.0.0.1"]), TrustError::Expired),
        (authority.not_valid_yet(&["127.0.0.1"]), TrustError::NotValidYet),
        (authority.certificates(&["elsewhere"]), TrustError::WrongName),
    ];
    for (certificates, reason) in cases {
        let listening = Tls::new(certificates);
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
            matches!(&dialled, Err(TransportError::Untrusted { address, source }) if *address == target && *source == reason),
            "{reason}: {dialled:?}"
        );
    }
}

#[tokio::test]
async fn t04_a_dialler_with_a_wrong_certificate_is_refused_and_nothing_of_it_is_delivered() {
    let (authority, other) = (Authority::new(), Authority::new());
    let listening = Tls::new(authority.certificates(&["127.0.0.1"]));
    let mut listener = listening.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let cases: [(Certificates, TrustError, &str); 2] = [
        (other.trusting(&authority, &["bob"]), TrustError::UnknownAuthority, "UnknownCA"),
        (authority.expired(&["bob"]), TrustError::Expired, "CertificateExpired"),
    ];
    for (number, (certificates, reason, alert)) in cases.into_iter().enumerate() {
        let dialler = Tls::new(certificates);
        let refused = async {
            // In TLS 1.3 the dialler is done before the listener has seen its certificate.
            let mut link = dialler.connect(&target).await.unwrap();
            let _ = send(&mut link, b"let me in").await;
            receive(&mut link).await.unwrap_err()
        };
        let error = soon(async {
            tokio::select! {
                error = refused => error,
                accepted = poll_fn(|cx| listener.poll_accept(cx)) => panic!("{accepted:?}"),
            }
        })
        .await;
        assert!(
            matches!(&error, LinkError::Untrusted { source: TrustError::Refused { reason }, .. } if reason == alert),
            "{error:?}"
        );
        let stats = listening.stats();
        assert_eq!((stats.accepted, stats.refused), (0, number as u64 + 1));
        assert_eq!(stats.untrusted_last.unwrap().1, reason);
    }
}

/// What becomes of a dialler whom the listener must not let in.
async fn refused_dialler(dialler: &Tls, listener: &mut dyn Listener) -> LinkError {
    let target = listener.local_address();
    let refused = async {
        let mut link = dialler.connect(&target).await.unwrap();
        let _ = send(&mut link, b"let me in").await;
        receive(&mut link).await.unwrap_err()
    };
    soon(async {
        tokio::select! {
            error = refused => error,
            accepted = poll_fn(|cx| listener.poll_accept(cx)) => panic!("{accepted:?}"),
        }
    })
    .await
}

#[tokio::test]
async fn t04_whose_certificate_was_revoked_is_refused_from_then_on_and_links_that_stand_go_on() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (ours, theirs) = (authority.numbered(&["127.0.0.1"], 6), authority.numbered(&["bob"], 7));
    let (listening, dialler) = (Tls::new(ours.clone()), Tls::new(theirs.clone()));
    let mut listener = listening.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let (dialled, accepted) =
        soon(async { tokio::join!(dialler.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) }).await;
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());

    ours.revoke(&authority.revokes(&[7], 3000)).unwrap();
    let error = refused_dialler(&dialler, &mut *listener).await;
    assert!(
        matches!(&error, LinkError::Untrusted { source: TrustError::Refused { reason }, .. } if reason == "CertificateRevoked"),
        "{error:?}"
    );
    assert_eq!(listening.stats().untrusted_last.unwrap().1, TrustError::Revoked);
    soon(send(&mut dialled, b"still here")).await.unwrap();
    assert_eq!(soon(receive(&mut accepted)).await.unwrap(), b"still here");

    // What cannot be told is refused: no list of the one who signed, or one that is out of date.
    for lists in [other.revokes(&[], 3000), authority.revokes(&[], 2002)] {
        ours.revoke(&lists).unwrap();
        refused_dialler(&dialler, &mut *listener).await;
        assert_eq!(listening.stats().untrusted_last.unwrap().1, TrustError::RevocationUnknown);
    }
    let error = ours.revoke("nonsense").unwrap_err();
    assert_eq!(error.what, "lists");
    refused_dialler(&dialler, &mut *listener).await;

    // On none of several lists; and the dialler looks as well.
    ours.revoke(&[other.revokes(&[7], 3000), authority.revokes(&[5], 3000)].concat()).unwrap();
    let both = async { tokio::join!(dialler.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) };
    let (dialled, accepted) = soon(both).await;
    assert!(dialled.is_ok() && accepted.is_ok());
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

#[tokio::test]
async fn t04_who_is_revoked_before_it_has_proved_who_it_is_is_refused() {
    let authority = Authority::new();
    let ours = authority.numbered(&["127.0.0.1"], 6);
    let (listening, dialler) = (Tls::new(ours.clone()), Tls::new(authority.numbered(&["bob"], 7)));
    let mut listener = listening.listen(&place()).await.unwrap();
    let target = listener.local_address();
    // Between them somebody who keeps the listener's first word for a while.
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through: Address = format!("tls://{}", relay.local_addr().unwrap()).parse().unwrap();
    let (begun, has_begun) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel();
    let relaying = tokio::spawn(async move {
        let (mut one, _) = relay.accept().await.unwrap();
        let mut two = TcpStream::connect(target.rest()).await.unwrap();
        let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
        let count = loop {
            tokio::select! {
                count = one.read(&mut asked) => two.write_all(&asked[..count.unwrap()]).await.unwrap(),
                count = two.read(&mut answered) => break count.unwrap(),
            }
        };
        begun.send(()).unwrap();
        may_go_on.await.unwrap();
        one.write_all(&answered[..count]).await.unwrap();
        // It ends with an error when one of them breaks it off.
        let _ = tokio::io::copy_bidirectional(&mut one, &mut two).await;
    });
    let dialling = tokio::spawn(async move {
        let mut link = dialler.connect(&through).await.ok()?;
        receive(&mut link).await.ok()
    });
    let refused = async {
        has_begun.await.unwrap();
        ours.revoke(&authority.revokes(&[7], 3000)).unwrap();
        go_on.send(()).unwrap();
        while listening.stats().refused == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(async {
        tokio::select! {
            accepted = poll_fn(|cx| listener.poll_accept(cx)) => panic!("{accepted:?}"),
            () = refused => {}
        }
    })
    .await;
    assert_eq!(listening.stats().untrusted_last.unwrap().1, TrustError::Revoked);
    drop(listener);
    assert_eq!(soon(dialling).await.unwrap(), None);
    soon(relaying).await.unwrap();
}

#[tokio::test]
async fn t04_garbage_and_silence_hold_up_no_dialler() {
    let authority = Authority::new();
    let mut config = TlsConfig::default();
    config.handshakes_max = 4;
    let tls = Tls::with_config(authority.certificates(&["127.0.0.1"]), config);
    let mut listener = tls.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let plain: Address = target.as_str().replace("tls", "tcp").parse().unwrap();
    let mut strangers = Vec::new();
    for number in 0..50 {
        let mut link = Tcp::new().connect(&plain).await.unwrap();
        if number % 2 == 0 {
            send(&mut link, &[number; 3000]).await.unwrap();
        }
        strangers.push(link);
    }
    let (dialled, accepted) =
        soon(async { tokio::join!(tls.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) }).await;
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    soon(send(&mut dialled, b"hello")).await.unwrap();
    assert_eq!(soon(receive(&mut accepted)).await.unwrap(), b"hello");
    assert_eq!(tls.stats().accepted, 1);
    assert!(tls.stats().refused >= 46, "{:?}", tls.stats());
}

#[tokio::test]
async fn t04_who_is_turned_away_and_does_not_go_keeps_no_more_than_a_place() {
    let authority = Authority::new();
    let mut config = TlsConfig::default();
    (config.handshakes_max, config.handshake_ms_max) = (4, 3_600_000);
    let tls = Tls::with_config(authority.certificates(&["127.0.0.1"]), config);
    let mut listener = tls.listen(&place()).await.unwrap();
    let plain: Address = listener.local_address().as_str().replace("tls", "tcp").parse().unwrap();
    let _accepting = tokio::spawn(async move { poll_fn(|cx| listener.poll_accept(cx)).await });
    let mut strangers = Vec::new();
    for number in 0..40 {
        let mut link = Tcp::new().connect(&plain).await.unwrap();
        // Refused at once, and neither reads that nor hangs up.
        send(&mut link, &[number; 100]).await.unwrap();
        strangers.push(link);
    }
    let mut ended = tokio::task::JoinSet::new();
    for mut link in strangers {
        ended.spawn(async move {
            let mut inbox = Inbox::new(1 << 20);
            // The alert, and then the end.
            while let Ok(true) = poll_fn(|cx| link.receiver.poll_receive(cx, &mut inbox)).await {}
            // Few enough bytes to be listened to for long: an error tells that nobody does.
            let mut outbox = Outbox::new(1 << 20);
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            while poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await.is_ok() {
                outbox.push(&[b"still here"]).unwrap();
                pace.tick().await;
            }
        });
    }
    soon(async {
        for _ in 0..36 {
            ended.join_next().await.unwrap().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn t04_one_name_for_all_nodes_needs_no_names_in_the_network() {
    let authority = Authority::new();
    let mut config = TlsConfig::default();
    config.expected_name = Some("cluster.example".to_owned());
    let tls = Tls::with_config(authority.certificates(&["cluster.example"]), config);
    let mut listener = tls.listen(&place()).await.unwrap();
    let target = listener.local_address();
    let (dialled, accepted) =
        soon(async { tokio::join!(tls.connect(&target), poll_fn(|cx| listener.poll_accept(cx))) }).await;
    assert!(dialled.is_ok() && accepted.is_ok());
}

#[test]
fn t04_unusable_certificates_are_typed_errors_naming_the_part() {
    let authority = Authority::new();
    let (chain, key) = authority.signed(&["a"]);
    let (_, other_key) = authority.signed(&["b"]);
    let check = |authorities: &str, chain: &str, key: &str, part: &str| {
        let error = Certificates::from_pem(authorities, chain, key).unwrap_err();
        assert_eq!(error.what, part, "{error:?}");
    };
    check("", &chain, &key, "authorities");
    check(&authority.pem(), "nonsense", &key, "chain");
    check(&authority.pem(), &chain, "nonsense", "key");
    check(&authority.pem(), &chain, &other_key, "chain and key");
}
