//! Faults of a real network: links go down and up, strangers are silent, talk nonsense or come in crowds.
//!
//! Method      a test that breaks the network runs itself again inside a network namespace of its own.
#![cfg(target_os = "linux")]

#[path = "../../transports/tests/authority/mod.rs"]
mod authority;
#[path = "../../tests/src/namespace.rs"]
#[allow(unreachable_pub, reason = "public where it is a part of a library")]
mod namespace;

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use namespace::{in_namespace, ip};
use quorate::node::{Channel, ChannelGuard, ChannelHandler, Limits, NodeBuilder, PeerEvent, Transport};
use quorate::{Identity, Lane, Node, NodeId};
use quorate_transports::quic::Quic;
use quorate_transports::tcp::Tcp;
use quorate_transports::tls::Tls;
use quorate_transports::udp::Udp;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

const CHANNEL: Channel = Channel::named("test", "netns");
/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("a test hangs")
}

/// What a channel was told, in order.
#[derive(Default)]
struct Seen {
    told: Mutex<Vec<Told>>,
    changed: Notify,
}

#[derive(Debug, Clone, PartialEq)]
enum Told {
    Up,
    Down,
    Frame(Bytes),
}

impl Seen {
    fn tell(&self, told: Told) {
        self.told.lock().unwrap().push(told);
        self.changed.notify_waiters();
    }

    /// Waits for the next thing of this kind and forgets everything up to it.
    async fn next(&self, wanted: Told) {
        soon(async {
            loop {
                let changed = self.changed.notified();
                {
                    let mut told = self.told.lock().unwrap();
                    if let Some(at) = told.iter().position(|told| *told == wanted) {
                        told.drain(..=at);
                        return;
                    }
                }
                changed.await;
            }
        })
        .await;
    }
}

impl ChannelHandler for Seen {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        frames.drain(..).for_each(|frame| self.tell(Told::Frame(frame)));
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        self.tell(if matches!(event, PeerEvent::Up(_)) { Told::Up } else { Told::Down });
    }
}

/// Quick to find a silent peer and to dial again.
fn builder(id: u64, transport: impl Transport, place: &str) -> NodeBuilder {
    let mut limits = Limits::default();
    (limits.connection.heartbeat, limits.connection.silence_max) =
        (Duration::from_millis(200), Duration::from_millis(1500));
    (limits.backoff_min, limits.backoff_max) = (Duration::from_millis(50), Duration::from_millis(200));
    Node::builder().id(id).transport(transport).listen(place).limits(limits)
}

async fn survives_a_link_that_goes_down<T: Transport>(make: impl Fn() -> T, place: &str) {
    let (one, two) =
        (builder(1, make(), place).start().await.unwrap(), builder(2, make(), place).start().await.unwrap());
    let (here, there) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    let _open = (one.open(CHANNEL, here.clone()).unwrap(), two.open(CHANNEL, there.clone()).unwrap());
    soon(one.connect(&two.addresses()[0])).await.unwrap();
    for round in 0..2 {
        here.next(Told::Up).await;
        there.next(Told::Up).await;
        let hello = Bytes::from(format!("round {round}"));
        one.send(NodeId(2), Lane::Ordinary, CHANNEL, &[], hello.clone()).unwrap();
        there.next(Told::Frame(hello)).await;
        // No packet says that anything ended: each side holds a connection whose other end it cannot reach, until
        // the silence is too long.
        ip(&["link", "set", "lo", "down"]);
        here.next(Told::Down).await;
        there.next(Told::Down).await;
        ip(&["link", "set", "lo", "up"]);
    }
    here.next(Told::Up).await;
    there.next(Told::Up).await;
    assert!(one.peer_stats(NodeId(2)).unwrap().connections >= 3);
}

#[test]
fn t03_a_link_down_is_found_by_silence_and_after_it_is_up_the_nodes_meet_again() {
    in_namespace("t03_a_link_down_is_found_by_silence_and_after_it_is_up_the_nodes_meet_again", async {
        let certificates = authority::Authority::new().certificates(&["127.0.0.1"]);
        survives_a_link_that_goes_down(Tcp::new, "tcp://127.0.0.1:0").await;
        survives_a_link_that_goes_down(|| Tls::new(certificates.clone()), "tls://127.0.0.1:0").await;
        survives_a_link_that_goes_down(|| Quic::new(certificates.clone()), "quic://127.0.0.1:0").await;
        survives_a_link_that_goes_down(Udp::new, "udp://127.0.0.1:0").await;
    });
}

/// Gives the interface three addresses: the second dials the first, or later the third does.
fn add_addresses() {
    for address in ["10.1.0.1/32", "10.1.0.2/32", "10.1.0.3/32"] {
        ip(&["addr", "add", address, "dev", "lo"]);
    }
    dial_from("10.1.0.2");
}

/// From now on whoever dials 10.1.0.1 does it from this address, and so does whoever has dialled it without binding to one.
fn dial_from(address: &str) {
    ip(&["route", "replace", "local", "10.1.0.1", "dev", "lo", "table", "local", "src", address]);
}

/// Two nodes of which the first one has dialled the second one at 10.1.0.1.
struct Two {
    one: Node,
    two: Node,
    here: Arc<Seen>,
    there: Arc<Seen>,
    _open: [ChannelGuard; 2],
}

impl Two {
    async fn start<T: Transport>(make: impl Fn() -> T, place: &str) -> Self {
        let one = builder(1, make(), &place.replace("10.1.0.1", "127.0.0.1")).start().await.unwrap();
        let two = builder(2, make(), place).start().await.unwrap();
        let (here, there) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
        let open = [one.open(CHANNEL, here.clone()).unwrap(), two.open(CHANNEL, there.clone()).unwrap()];
        soon(one.connect(&two.addresses()[0])).await.unwrap();
        let two = Self { one, two, here, there, _open: open };
        two.meet().await;
        two
    }

    async fn meet(&self) {
        self.here.next(Told::Up).await;
        self.there.next(Told::Up).await;
    }

    async fn part(&self) {
        self.here.next(Told::Down).await;
        self.there.next(Told::Down).await;
    }

    /// A message in each direction.
    async fn talk(&self, text: &'static str) {
        self.one.send(NodeId(2), Lane::Ordinary, CHANNEL, &[], text.into()).unwrap();
        self.there.next(Told::Frame(text.into())).await;
        self.two.send(NodeId(1), Lane::Ordinary, CHANNEL, &[], text.into()).unwrap();
        self.here.next(Told::Frame(text.into())).await;
    }
}

#[test]
fn t03_a_path_that_is_cut_in_one_direction_is_found_and_after_it_heals_the_nodes_meet_again() {
    let test = "t03_a_path_that_is_cut_in_one_direction_is_found_and_after_it_heals_the_nodes_meet_again";
    in_namespace(test, async {
        add_addresses();
        // So that a rule can come before the table of local addresses.
        ip(&["rule", "add", "pref", "5", "lookup", "local"]);
        ip(&["rule", "del", "pref", "0"]);
        let cut = ["from", "10.1.0.1", "to", "10.1.0.2", "blackhole"];
        let change = |verb| ip(&[&["rule", verb, "pref", "1"], &cut[..]].concat());
        async fn over<T: Transport>(make: impl Fn() -> T, place: &str, change: impl Fn(&'static str)) {
            let nodes = Two::start(make, place).await;
            nodes.talk("before").await;
            // What the first one says still arrives; it hears nothing.
            change("add");
            nodes.part().await;
            change("del");
            nodes.meet().await;
            nodes.talk("after").await;
        }
        over(Tcp::new, "tcp://10.1.0.1:0", change).await;
        over(Udp::new, "udp://10.1.0.1:0", change).await;
    });
}

#[test]
fn t03_a_changed_address_is_survived_over_udp_and_over_tcp_the_nodes_meet_again() {
    let test = "t03_a_changed_address_is_survived_over_udp_and_over_tcp_the_nodes_meet_again";
    in_namespace(test, async {
        add_addresses();
        let nodes = Two::start(Udp::new, "udp://10.1.0.1:0").await;
        nodes.talk("from the old address").await;
        dial_from("10.1.0.3");
        ip(&["addr", "del", "10.1.0.2/32", "dev", "lo"]);
        nodes.talk("from the new address").await;
        // It is the same connection.
        assert_eq!(nodes.one.peer_stats(NodeId(2)).unwrap().connections, 1);
        drop(nodes);
        let nodes = Two::start(Tcp::new, "tcp://10.1.0.1:0").await;
        nodes.talk("from the new address").await;
        ip(&["addr", "add", "10.1.0.2/32", "dev", "lo"]);
        dial_from("10.1.0.2");
        ip(&["addr", "del", "10.1.0.3/32", "dev", "lo"]);
        nodes.part().await;
        nodes.meet().await;
        nodes.talk("from the old address").await;
    });
}

#[test]
fn t03_a_peer_that_vanished_while_the_link_was_down_is_not_missed_for_ever() {
    in_namespace("t03_a_peer_that_vanished_while_the_link_was_down_is_not_missed_for_ever", async {
        let place = "tcp://127.0.0.1:0";
        let one = builder(1, Tcp::new(), place).start().await.unwrap();
        let two = builder(2, Tcp::new(), place).start().await.unwrap();
        let seen = Arc::new(Seen::default());
        let _open = one.open(CHANNEL, seen.clone()).unwrap();
        let address = two.addresses()[0].clone();
        soon(one.connect(&address)).await.unwrap();
        seen.next(Told::Up).await;
        // Its last words get lost.
        ip(&["link", "set", "lo", "down"]);
        drop(two);
        seen.next(Told::Down).await;
        ip(&["link", "set", "lo", "up"]);
        let _again = builder(2, Tcp::new(), address.as_str()).start().await.unwrap();
        seen.next(Told::Up).await;
    });
}

#[tokio::test]
async fn t07_silence_and_garbage_of_strangers_harm_no_node() {
    let node = builder(1, Tcp::new(), "tcp://127.0.0.1:0").start().await.unwrap();
    let place = node.addresses()[0].rest().to_owned();
    let mut strangers = Vec::new();
    for number in 0..300usize {
        let mut stranger = TcpStream::connect(&place).await.unwrap();
        let garbage: Vec<u8> = (0..number * 7).map(|at| (at * number) as u8).collect();
        match number % 3 {
            // Says nothing, and stays.
            0 => {}
            // The length of a frame that never comes.
            1 => stranger.write_all(&[0xff, 0xff, 0, 0, b'Q']).await.unwrap(),
            // Perhaps cut off in the middle.
            _ => drop(stranger.write_all(&garbage).await),
        }
        strangers.push(stranger);
    }
    let two = builder(2, Tcp::new(), "tcp://127.0.0.1:0").start().await.unwrap();
    assert_eq!(soon(two.connect(&node.addresses()[0])).await.unwrap(), node.identity());
    // All that have no place any more.
    soon(async {
        while node.stats().handshakes_refused < 236 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((node.stats().peers, node.stats().connections), (1, 1));
}

#[tokio::test]
async fn t03_thousands_of_connections_come_and_go() {
    let node = builder(1, Tcp::new(), "tcp://127.0.0.1:0").start().await.unwrap();
    let place = node.addresses()[0].rest().to_owned();
    for _ in 0..3_000 {
        drop(TcpStream::connect(&place).await.unwrap());
    }
    let two = builder(2, Tcp::new(), "tcp://127.0.0.1:0").start().await.unwrap();
    soon(two.connect(&node.addresses()[0])).await.unwrap();
    assert_eq!(node.peers(), [two.identity()]);
}
