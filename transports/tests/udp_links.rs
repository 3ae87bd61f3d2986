//! Links over UDP: through a bad network, at another address, and among strangers.
#![cfg(feature = "udp")]

mod relay;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::time::Duration;

use quorate_transports::conformance::{self, Subject};
use quorate_transports::fault::model::{Chance, LatencyModel, LinkModel, LossModel};
use quorate_transports::udp::{Udp, UdpConfig};
use quorate_transports::{Address, Inbox, Link, LinkError, Listener, Outbox, Transport, TransportError};
use relay::{Relay, Relayed};
use tokio::net::UdpSocket;

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("a test hangs")
}

async fn listen(udp: &Udp) -> Box<dyn Listener> {
    udp.listen(&"udp://127.0.0.1:0".parse().unwrap()).await.unwrap()
}

async fn accept(listener: &mut Box<dyn Listener>) -> Link {
    soon(poll_fn(|cx| listener.poll_accept(cx))).await.unwrap()
}

async fn send(link: &mut Link, body: &[u8]) -> Result<(), LinkError> {
    let mut outbox = Outbox::new(1 << 20);
    outbox.push(&[body]).unwrap();
    soon(poll_fn(|cx| link.sender.poll_send(cx, &mut outbox))).await
}

async fn receive(link: &mut Link, inbox: &mut Inbox) -> Result<Option<Vec<u8>>, LinkError> {
    loop {
        if let Some(frame) = inbox.next_frame().unwrap() {
            return Ok(Some(frame.to_vec()));
        }
        if !soon(poll_fn(|cx| link.receiver.poll_receive(cx, inbox))).await? {
            return Ok(None);
        }
    }
}

fn place(address: &Address) -> std::net::SocketAddr {
    address.rest().parse().unwrap()
}

#[tokio::test]
async fn t03_that_nobody_listens_at_a_udp_place_is_told_as_soon_as_the_network_tells() {
    let mut config = UdpConfig::default();
    config.connect_ms_max = 3_600_000;
    // A port that was free just now.
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let target: Address = format!("udp://{free}").parse().unwrap();
    let error = soon(Udp::with_config(config).connect(&target)).await.unwrap_err();
    assert!(matches!(&error, TransportError::Refused { address } if *address == target), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_udp_through_a_network_that_loses_doubles_reorders_and_damages_keeps_the_contract() {
    let model = LinkModel {
        latency: LatencyModel::Uniform { min: Duration::ZERO, max: Duration::from_micros(300) },
        loss: LossModel::Independent(Chance::percent(2)),
        duplication: Chance::percent(1),
        reordering: Chance::percent(1),
        reordering_delay: Duration::from_millis(2),
        corruption: Chance::ppm(5_000),
        ..LinkModel::PERFECT
    };
    // Larger packets make fewer of them for the process in the middle.
    let mut config = UdpConfig::default();
    config.packet_bytes = 8_000;
    let make = || Subject::new(Relayed::new(Udp::with_config(config.clone()), model, 1), "udp://127.0.0.1:0");
    let report = conformance::run(make).await;
    assert!(report.failed().iter().all(|name| name.starts_with("datagrams")), "{report}");
}

#[tokio::test]
async fn t03_a_udp_link_survives_that_its_peer_gets_another_address() {
    let udp = Udp::new();
    let mut listener = listen(&udp).await;
    let target = place(&listener.local_address());
    let relay = Relay::start(target, LinkModel::PERFECT, 1).await;
    let (dialled, mut there) = tokio::join!(udp.connect(&relay.address), accept(&mut listener));
    let mut here = dialled.unwrap();
    let (mut from_here, mut from_there) = (Inbox::new(1 << 20), Inbox::new(1 << 20));
    for round in 0..5u8 {
        let body = vec![round; 200_000];
        let sending = async {
            send(&mut here, &body).await.unwrap();
            receive(&mut here, &mut from_there).await.unwrap()
        };
        let answering = async {
            let got = receive(&mut there, &mut from_here).await.unwrap().unwrap();
            assert_eq!(got, body);
            send(&mut there, &got).await.unwrap();
        };
        let (answer, ()) = tokio::join!(sending, answering);
        assert_eq!(answer.unwrap(), body);
        relay.move_elsewhere().await;
    }
}

#[tokio::test]
async fn t03_a_udp_link_to_a_peer_that_vanished_breaks_after_the_silence() {
    let mut config = UdpConfig::default();
    (config.keepalive_ms, config.silence_ms_max) = (50, 300);
    let udp = Udp::with_config(config);
    let mut listener = listen(&udp).await;
    let relay = Relay::start(place(&listener.local_address()), LinkModel::PERFECT, 1).await;
    let (dialled, mut there) = tokio::join!(udp.connect(&relay.address), accept(&mut listener));
    let mut here = dialled.unwrap();
    // Nobody says that anything has ended.
    relay.task.abort();
    for link in [&mut here, &mut there] {
        let error = receive(link, &mut Inbox::new(100)).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::Broken { source, .. } if source.kind() == ErrorKind::TimedOut),
            "{error:?}"
        );
        let error = send(link, b"anybody?").await.unwrap_err();
        assert!(matches!(error, LinkError::Broken { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn t03_a_socket_whose_listener_is_gone_refuses_at_once_while_its_links_live_on() {
    let udp = Udp::new();
    let mut listener = listen(&udp).await;
    let address = listener.local_address();
    let (dialled, mut there) = tokio::join!(udp.connect(&address), accept(&mut listener));
    let mut here = dialled.unwrap();
    drop(listener);
    let error = soon(udp.connect(&address)).await.unwrap_err();
    assert!(
        matches!(&error, TransportError::Refused { address: refused } if *refused == address),
        "{error:?}"
    );
    send(&mut here, b"still there").await.unwrap();
    let got = receive(&mut there, &mut Inbox::new(100)).await.unwrap();
    assert_eq!(got.unwrap(), b"still there");
}

#[tokio::test]
async fn t07_strangers_who_talk_nonsense_to_a_udp_listener_get_little_and_harm_nobody() {
    let udp = Udp::new();
    let mut listener = listen(&udp).await;
    let address = listener.local_address();
    let (dialled, mut there) = tokio::join!(udp.connect(&address), accept(&mut listener));
    let mut here = dialled.unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut sent, mut got) = (0, 0);
    let mut answer = vec![0; 65_536];
    for number in 0..2_000usize {
        // Every length and every kind, some of them as long as a hello.
        let length = if number % 3 == 0 { 1_200 } else { number * 7 % 1_400 };
        let garbage: Vec<u8> =
            (0..length).map(|at| if at == 0 { number % 7 } else { at * number } as u8).collect();
        sent += stranger.send_to(&garbage, place(&address)).await.unwrap();
        while let Ok((count, _)) = stranger.try_recv_from(&mut answer) {
            got += count;
        }
    }
    assert!(got <= sent, "{got} bytes for {sent}");
    let mut inbox = Inbox::new(1 << 20);
    send(&mut here, &vec![7; 100_000]).await.unwrap();
    assert_eq!(receive(&mut there, &mut inbox).await.unwrap().unwrap(), vec![7; 100_000]);
    // Nobody of them became a link.
    assert!(
        tokio::time::timeout(Duration::from_millis(50), poll_fn(|cx| listener.poll_accept(cx)))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn t03_a_udp_link_that_is_closed_delivers_everything_first() {
    let udp = Udp::new();
    let mut listener = listen(&udp).await;
    let address = listener.local_address();
    let (dialled, mut there) = tokio::join!(udp.connect(&address), accept(&mut listener));
    let mut here = dialled.unwrap();
    let body = vec![3; 900_000];
    send(&mut here, &body).await.unwrap();
    let mut inbox = Inbox::new(1 << 20);
    let (closed, got) = tokio::join!(soon(poll_fn(|cx| here.sender.poll_close(cx))), async {
        let got = receive(&mut there, &mut inbox).await.unwrap().unwrap();
        assert!(receive(&mut there, &mut inbox).await.unwrap().is_none());
        got
    });
    closed.unwrap();
    assert_eq!(got, body);
}

#[tokio::test]
async fn t02_a_udp_listener_on_all_interfaces_is_reached_by_every_name_of_this_machine() {
    let udp = Udp::new();
    let mut listener = udp.listen(&"udp://*:0".parse().unwrap()).await.unwrap();
    let everywhere = place(&listener.local_address());
    let mut names =
        vec![format!("127.0.0.1:{}", everywhere.port()), format!("0.0.0.0:{}", everywhere.port())];
    // What the listener says of itself; with IPv6, that of it.
    names.push(everywhere.to_string());
    for name in names {
        let address = Address::new("udp", &name).unwrap();
        let (dialled, mut there) = tokio::join!(soon(udp.connect(&address)), accept(&mut listener));
        let mut here = dialled.unwrap();
        // No router stands between them: each end knows both addresses.
        assert_eq!(here.local, there.peer, "{name}");
        send(&mut here, name.as_bytes()).await.unwrap();
        assert_eq!(receive(&mut there, &mut Inbox::new(100)).await.unwrap().unwrap(), name.as_bytes());
    }
}

#[test]
fn t03_a_udp_link_whose_runtime_has_ended_is_broken_and_not_silent() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let (mut here, _there) = first.block_on(async {
        let udp = Udp::new();
        let mut listener = listen(&udp).await;
        let address = listener.local_address();
        let (dialled, there) = tokio::join!(udp.connect(&address), accept(&mut listener));
        (dialled.unwrap(), there)
    });
    let waiting = std::thread::spawn(move || {
        second.block_on(async move { receive(&mut here, &mut Inbox::new(100)).await.unwrap_err() })
    });
    drop(first);
    let error = waiting.join().unwrap();
    assert!(matches!(error, LinkError::Broken { .. }), "{error:?}");
}
