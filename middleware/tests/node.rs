//! What a node promises, on memory and on TCP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate::node::{
    Channel, ChannelHandler, ConnectError, Limits, NodeBuilder, PeerEvent, SendError, StartError, Transport,
};
use quorate::{Address, Identity, Incarnation, Lane, Node, NodeId};
use quorate_transports::connection::{CodecId, ConnectionConfig, HandshakeError, Hello, Mismatch, dial};
use quorate_transports::mem::Mem;
use quorate_transports::tcp::Tcp;
use quorate_transports::{Inbox, Outbox, TransportError};

const CHANNEL: Channel = Channel::named("test", "node");
const OTHER: Channel = Channel::named("test", "other");

/// A network that a test runs on.
#[derive(Clone)]
struct Net {
    mem: Mem,
    listen: &'static str,
}

impl Net {
    fn builder(&self, id: u64) -> NodeBuilder {
        Node::builder().id(id).incarnation(Incarnation(1)).listen(self.listen).transport(self.mem.clone())
    }

    async fn node(&self, id: u64) -> Node {
        self.builder(id).start().await.unwrap()
    }
}

fn mem() -> Net {
    Net { mem: Mem::new(), listen: "mem://" }
}

fn nets() -> [Net; 2] {
    [mem(), Net { mem: Mem::new(), listen: "tcp://127.0.0.1:0" }]
}

/// Keeps what a channel is told.
#[derive(Default)]
struct Seen {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    frames: Vec<(Identity, Bytes)>,
    events: Vec<PeerEvent>,
    is_shut: bool,
    is_blocked: bool,
    /// Connections that wait for the gate to open.
    blocked: Vec<Waker>,
    wakers: Vec<Waker>,
}

impl Seen {
    fn shut() -> Arc<Self> {
        let seen = Arc::new(Self::default());
        seen.state.lock().unwrap().is_shut = true;
        seen
    }

    fn open(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_shut = false;
        state.blocked.drain(..).for_each(Waker::wake);
    }

    async fn wait<T>(&self, what: impl Fn(&State) -> Option<T>) -> T {
        soon(std::future::poll_fn(|cx| {
            let mut state = self.state.lock().unwrap();
            match what(&state) {
                Some(found) => Poll::Ready(found),
                None => {
                    state.wakers.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
        .await
    }

    async fn frames(&self, count: usize) -> Vec<(Identity, Bytes)> {
        self.wait(|state| (state.frames.len() >= count).then(|| state.frames.clone())).await
    }

    async fn event(&self, event: PeerEvent) {
        self.wait(|state| state.events.contains(&event).then_some(())).await
    }

    fn events(&self) -> Vec<PeerEvent> {
        self.state.lock().unwrap().events.clone()
    }
}

impl ChannelHandler for Seen {
    fn poll_deliver(&self, cx: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let mut state = self.state.lock().unwrap();
        if state.is_shut {
            state.is_blocked = true;
            state.wakers.drain(..).for_each(Waker::wake);
            state.blocked.push(cx.waker().clone());
            return Poll::Pending;
        }
        state.frames.extend(frames.drain(..).map(|frame| (from, frame)));
        state.wakers.drain(..).for_each(Waker::wake);
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        let mut state = self.state.lock().unwrap();
        state.events.push(event);
        state.wakers.drain(..).for_each(Waker::wake);
    }
}

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("a test hangs")
}

fn send(node: &Node, to: u64, text: &str) -> Result<(), SendError> {
    node.send(NodeId(to), Lane::Ordinary, CHANNEL, &[text.as_bytes()], Bytes::new())
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[tokio::test]
async fn connected_nodes_know_and_hear_each_other() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        let (seen_one, seen_two) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
        let _open =
            (one.open(CHANNEL, seen_one.clone()).unwrap(), two.open(CHANNEL, seen_two.clone()).unwrap());
        let identity = soon(one.connect(&two.addresses()[0])).await.unwrap();
        assert_eq!(identity, two.identity());
        assert_eq!(one.peers(), [two.identity()]);
        send(&one, 2, "hello").unwrap();
        assert_eq!(seen_two.frames(1).await, [(one.identity(), Bytes::from("hello"))]);
        send(&two, 1, "hello yourself").unwrap();
        assert_eq!(seen_one.frames(1).await, [(two.identity(), Bytes::from("hello yourself"))]);
        // A second connect finds the connection.
        assert_eq!(soon(one.connect(&two.addresses()[0])).await.unwrap(), identity);
        assert_eq!(one.stats().connections, 1);
        assert_eq!(seen_one.events(), [PeerEvent::Up(two.identity())]);
        // Who opens later learns of the peer too.
        let late = Arc::new(Seen::default());
        let _late = two.open(OTHER, late.clone()).unwrap();
        assert_eq!(late.events(), [PeerEvent::Up(one.identity())]);
        assert!(soon(one.shutdown(Duration::from_secs(5))).await.is_nothing());
        seen_two.event(PeerEvent::Down(one.identity())).await;
    }
}

#[tokio::test]
async fn a_send_to_a_known_address_connects_by_itself() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        let seen = Arc::new(Seen::default());
        let _open = two.open(CHANNEL, seen.clone()).unwrap();
        assert_eq!(send(&one, 2, "x"), Err(SendError::Unreachable { to: NodeId(2) }));
        one.add_address(NodeId(2), two.addresses()[0].clone());
        for number in 0..100 {
            send(&one, 2, &number.to_string()).unwrap();
        }
        let frames = seen.frames(100).await;
        for (number, (from, frame)) in frames.iter().enumerate() {
            assert_eq!((from, &frame[..]), (&one.identity(), number.to_string().as_bytes()));
        }
        soon(one.ready(NodeId(2), Lane::Bulk)).await.unwrap();
        assert_eq!(
            soon(one.ready(NodeId(9), Lane::Bulk)).await,
            Err(SendError::Unreachable { to: NodeId(9) })
        );
    }
}

#[tokio::test]
async fn a_node_may_send_to_itself() {
    let one = mem().node(1).await;
    let seen = Arc::new(Seen::default());
    let _open = one.open(CHANNEL, seen.clone()).unwrap();
    send(&one, 1, "note to self").unwrap();
    assert_eq!(seen.frames(1).await, [(one.identity(), Bytes::from("note to self"))]);
    assert!(soon(one.shutdown(Duration::from_secs(5))).await.is_nothing());
    assert_eq!(send(&one, 1, "late"), Err(SendError::ShutDown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_dial_each_other_at_once_keep_one_connection() {
    for net in nets() {
        for round in 0..20 {
            let (one, two) = (net.node(1).await, net.node(2).await);
            let (seen_one, seen_two) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
            let _open =
                (one.open(CHANNEL, seen_one.clone()).unwrap(), two.open(CHANNEL, seen_two.clone()).unwrap());
            let (at_one, at_two) = (one.addresses()[0].clone(), two.addresses()[0].clone());
            if round % 2 == 0 {
                let (a, b) = soon(async { tokio::join!(one.connect(&at_two), two.connect(&at_one)) }).await;
                assert_eq!((a.unwrap(), b.unwrap()), (two.identity(), one.identity()));
            } else {
                one.add_address(NodeId(2), at_two);
                two.add_address(NodeId(1), at_one);
            }
            for number in 0..50 {
                send(&one, 2, &number.to_string()).unwrap();
                send(&two, 1, &number.to_string()).unwrap();
            }
            // Nothing is lost although one of two connections may have been given up on the way.
            assert_eq!((seen_one.frames(50).await.len(), seen_two.frames(50).await.len()), (50, 50));
            let (left_one, left_two) = soon(async {
                tokio::join!(one.shutdown(Duration::from_secs(5)), two.shutdown(Duration::from_secs(5)))
            })
            .await;
            assert!(left_one.is_nothing() && left_two.is_nothing(), "{left_one:?} {left_two:?}");
            for (seen, peer) in [(seen_one, two.identity()), (seen_two, one.identity())] {
                assert_eq!(seen.events(), [PeerEvent::Up(peer), PeerEvent::Down(peer)]);
                assert_eq!(seen.frames(0).await.len(), 50);
            }
        }
    }
}

#[tokio::test]
async fn a_restarted_peer_is_found_again_as_a_later_life() {
    for net in nets() {
        let one = net.node(1).await;
        let seen = Arc::new(Seen::default());
        let _open = one.open(CHANNEL, seen.clone()).unwrap();
        let two = net.node(2).await;
        let place = two.addresses()[0].clone();
        let first = soon(one.connect(&place)).await.unwrap();
        // Without a goodbye, as a crash does.
        drop(two);
        seen.event(PeerEvent::Down(first)).await;
        let again = Node::builder().id(2).incarnation(Incarnation(2)).transport(net.mem.clone());
        // Dropping a node stops its tasks soon, not at once.
        let two = soon(async {
            let again = again.listen(&place).start();
            match again.await {
                Ok(node) => node,
                Err(error) => panic!("{error:?}"),
            }
        })
        .await;
        let second = two.identity();
        assert_ne!(first, second);
        seen.event(PeerEvent::Up(second)).await;
        assert_eq!(seen.events(), [PeerEvent::Up(first), PeerEvent::Down(first), PeerEvent::Up(second)]);
        let seen_two = Arc::new(Seen::default());
        let _open = two.open(CHANNEL, seen_two.clone()).unwrap();
        let stale = one.send_to_life(first, Lane::Ordinary, CHANNEL, &[b"to the dead"], Bytes::new());
        assert_eq!(stale, Err(SendError::Unreachable { to: NodeId(2) }));
        one.send_to_life(second, Lane::Ordinary, CHANNEL, &[b"to the living"], Bytes::new()).unwrap();
        assert_eq!(seen_two.frames(1).await, [(one.identity(), Bytes::from("to the living"))]);
    }
}

#[tokio::test]
async fn shutdown_flushes_what_was_taken_and_frees_the_address() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        let seen = Arc::new(Seen::default());
        let _open = two.open(CHANNEL, seen.clone()).unwrap();
        soon(one.connect(&two.addresses()[0])).await.unwrap();
        let body = Bytes::from(vec![3; 30_000]);
        for _ in 0..100 {
            one.send(NodeId(2), Lane::Bulk, CHANNEL, &[], body.clone()).unwrap();
        }
        let left = soon(one.shutdown(Duration::from_secs(20))).await;
        assert!(left.is_nothing(), "{left:?}");
        assert_eq!(seen.frames(100).await.len(), 100);
        assert_eq!(send(&one, 2, "late"), Err(SendError::ShutDown));
        assert!(matches!(one.connect(&two.addresses()[0]).await, Err(ConnectError::ShutDown)));
        let heir = Node::builder().id(3).transport(net.mem.clone()).listen(&one.addresses()[0]).start().await;
        assert_eq!(heir.unwrap().addresses(), one.addresses());
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_says_what_was_left_when_a_peer_does_not_read() {
    let net = mem();
    let (one, two) = (net.node(1).await, net.node(2).await);
    let seen = Seen::shut();
    let _open = two.open(CHANNEL, seen.clone()).unwrap();
    one.connect(&two.addresses()[0]).await.unwrap();
    let body = Bytes::from(vec![3; 100_000]);
    let mut taken = 0;
    while one.send(NodeId(2), Lane::Bulk, CHANNEL, &[], body.clone()).is_ok() {
        taken += 1;
    }
    assert!(matches!(
        one.send(NodeId(2), Lane::Bulk, CHANNEL, &[], body),
        Err(SendError::Full { to: NodeId(2), lane: Lane::Bulk, .. })
    ));
    one.add_address(NodeId(7), address("mem://nobody"));
    send(&one, 7, "to nobody").unwrap();
    let left = one.shutdown(Duration::from_secs(3)).await;
    assert!(left.unsent_messages > 10 && left.unsent_messages <= taken + 1, "{left:?}");
    assert!(left.unsent_bytes > 1_000_000, "{left:?}");
    assert_eq!(left.unconfirmed, [two.identity()]);
    assert_eq!(one.shutdown(Duration::ZERO).await, left);
}

#[tokio::test]
async fn frames_of_a_channel_that_nobody_opened_are_counted() {
    let net = mem();
    let (one, two) = (net.node(1).await, net.node(2).await);
    soon(one.connect(&two.addresses()[0])).await.unwrap();
    let seen = Arc::new(Seen::default());
    let open = two.open(CHANNEL, seen.clone()).unwrap();
    assert_eq!(two.open(CHANNEL, seen.clone()).unwrap_err().channel, CHANNEL);
    for number in 0..10 {
        let channel = if number % 2 == 0 { CHANNEL } else { OTHER };
        one.send(NodeId(2), Lane::Ordinary, channel, &[&[number]], Bytes::new()).unwrap();
    }
    let frames: Vec<_> = seen.frames(5).await.into_iter().map(|(_, frame)| frame[0]).collect();
    assert_eq!(frames, [0, 2, 4, 6, 8]);
    drop(open);
    send(&one, 2, "into the void").unwrap();
    let shutdown = soon(one.shutdown(Duration::from_secs(5))).await;
    assert!(shutdown.is_nothing());
    assert_eq!(two.stats().unclaimed, 6);
    let _again = two.open(CHANNEL, seen).unwrap();
}

#[tokio::test]
async fn closing_a_blocked_channel_lets_the_others_go_on() {
    let net = mem();
    let (one, two) = (net.node(1).await, net.node(2).await);
    soon(one.connect(&two.addresses()[0])).await.unwrap();
    let (blocked, free) = (Seen::shut(), Arc::new(Seen::default()));
    let open = two.open(CHANNEL, blocked.clone()).unwrap();
    let _open = two.open(OTHER, free.clone()).unwrap();
    send(&one, 2, "stuck").unwrap();
    one.send(NodeId(2), Lane::Ordinary, OTHER, &[b"behind it"], Bytes::new()).unwrap();
    blocked.wait(|state| state.is_blocked.then_some(())).await;
    assert_eq!(free.frames(0).await.len(), 0);
    drop(open);
    assert_eq!(free.frames(1).await, [(one.identity(), Bytes::from("behind it"))]);
    blocked.open();
}

#[tokio::test]
async fn a_slow_channel_holds_its_sender_back_and_loses_nothing() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        let seen = Seen::shut();
        let _open = two.open(CHANNEL, seen.clone()).unwrap();
        soon(one.connect(&two.addresses()[0])).await.unwrap();
        let sender = one.clone();
        const COUNT: usize = 2000;
        let sending = tokio::spawn(async move {
            for number in 0..COUNT {
                let head = number.to_le_bytes();
                let body = Bytes::from(vec![0; 20_000]);
                while sender.send(NodeId(2), Lane::Ordinary, CHANNEL, &[&head], body.clone()).is_err() {
                    sender.ready(NodeId(2), Lane::Ordinary).await.unwrap();
                }
            }
        });
        // The sender cannot finish: forty megabytes do not fit anywhere.
        seen.wait(|state| state.is_blocked.then_some(())).await;
        assert!(!sending.is_finished());
        seen.open();
        let frames = seen.frames(COUNT).await;
        for (number, (_, frame)) in frames.iter().enumerate() {
            assert_eq!(frame[..8], number.to_le_bytes());
        }
        soon(sending).await.unwrap();
    }
}

#[tokio::test]
async fn the_wrong_node_at_an_address_is_not_talked_to() {
    let net = mem();
    let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
    let seen = Arc::new(Seen::default());
    let _open = three.open(CHANNEL, seen.clone()).unwrap();
    one.add_address(NodeId(3), two.addresses()[0].clone());
    one.add_address(NodeId(3), three.addresses()[0].clone());
    send(&one, 3, "for three").unwrap();
    assert_eq!(seen.frames(1).await, [(one.identity(), Bytes::from("for three"))]);
    assert!(two.peers().is_empty());

    let error = one.connect(&one.addresses()[0]).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ConnectError::Handshake(HandshakeError::Mismatch { source: Mismatch::SameNode { ours, .. }, .. })
                if *ours == one.identity()
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn bad_settings_are_typed_errors_naming_the_culprit() {
    let started = Node::builder().listen("nonsense").start().await;
    assert!(matches!(started, Err(StartError::Address(_))));
    let started = Node::builder().listen("pigeon://loft").start().await;
    let Err(StartError::Transport(TransportError::UnknownScheme { address: culprit, .. })) = started else {
        panic!("{started:?}")
    };
    assert_eq!(culprit.as_str(), "pigeon://loft");
    let mut limits = Limits::default();
    limits.backoff_max = Duration::from_millis(1);
    let started = Node::builder().limits(limits).start().await;
    assert!(matches!(started, Err(StartError::Limit { name: "backoff_max", .. })));
    let mut limits = Limits::default();
    limits.connection.heartbeat = Duration::MAX;
    let started = Node::builder().limits(limits).start().await;
    assert!(matches!(started, Err(StartError::Limit { name: "connection.silence_max", .. })));
    let net = mem();
    let one = net.node(1).await;
    let started = net.builder(2).listen(&one.addresses()[0]).start().await;
    let Err(StartError::Transport(TransportError::InUse { address: culprit })) = started else {
        panic!("{started:?}")
    };
    assert_eq!(culprit, one.addresses()[0]);
    let error = one.connect(&address("mem://nobody")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Transport(TransportError::Refused { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stays_away_costs_bounded_memory_and_is_given_up() {
    let net = mem();
    let one = net.node(1).await;
    one.add_address(NodeId(2), address("mem://nobody"));
    let body = Bytes::from(vec![0; 1000]);
    let mut taken = 0;
    let error = loop {
        match one.send(NodeId(2), Lane::Ordinary, CHANNEL, &[], body.clone()) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SendError::Full { limit: 0x10_0000, .. }), "{error:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let stats = one.stats();
    assert_eq!(stats.expired, taken);
    assert!((5..60).contains(&stats.dials_failed), "{stats:?}");
    // Nobody wants it any more, so nobody dials.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(one.stats().dials_failed, stats.dials_failed);
}

#[tokio::test]
async fn a_directory_keeps_the_id_and_counts_the_lives() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("a").join("node");
    let start = async |id: Option<u64>| {
        let builder = Node::builder().directory(&path);
        match id {
            Some(id) => builder.id(id).start().await,
            None => builder.start().await,
        }
    };
    let first = start(Some(7)).await.unwrap();
    assert_eq!(
        (first.identity(), first.directory()),
        (Identity::new(NodeId(7), Incarnation(1)), Some(&*path))
    );
    let second = start(Some(7)).await;
    assert!(matches!(&second, Err(StartError::DirectoryInUse { path: culprit }) if *culprit == path));
    first.shutdown(Duration::from_secs(1)).await;
    let second = start(None).await.unwrap();
    assert_eq!(second.identity(), Identity::new(NodeId(7), Incarnation(2)));
    drop(second);
    let foreign = start(Some(8)).await;
    assert!(
        matches!(foreign, Err(StartError::ForeignDirectory { owner: NodeId(7), wanted: NodeId(8), .. })),
        "{foreign:?}"
    );
    for damage in
        ["", "quorate node 1\nid x\n", "quorate node 1\nid 7\nincarnation 3\nmore\n", "quorate node 1\nid 7"]
    {
        std::fs::write(path.join("node"), damage).unwrap();
        let damaged = start(Some(7)).await;
        assert!(matches!(damaged, Err(StartError::DirectoryDamaged { .. })), "{damaged:?}");
        assert_eq!(std::fs::read_to_string(path.join("node")).unwrap(), damage);
    }
}

#[tokio::test]
async fn many_nodes_talk_all_to_all() {
    for net in nets() {
        let mut nodes = Vec::new();
        for id in 1..=8u64 {
            let node = net.node(id).await;
            let seen = Arc::new(Seen::default());
            let guard = node.open(CHANNEL, seen.clone()).unwrap();
            nodes.push((node, seen, guard));
        }
        for (node, ..) in &nodes {
            for (other, ..) in nodes.iter().filter(|(other, ..)| other.identity() != node.identity()) {
                node.add_address(other.identity().node, other.addresses()[0].clone());
                for _ in 0..20 {
                    send(node, other.identity().node.0, "hello").unwrap();
                }
            }
        }
        for (_, seen, _) in &nodes {
            let mut counts = BTreeMap::new();
            for (from, _) in seen.frames(7 * 20).await {
                *counts.entry(from).or_insert(0) += 1;
            }
            assert!(counts.len() == 7 && counts.values().all(|&count| count == 20), "{counts:?}");
        }
        let mut running = Vec::new();
        for (node, ..) in &nodes {
            let node = node.clone();
            running.push(tokio::spawn(async move { node.shutdown(Duration::from_secs(10)).await }));
        }
        for shutdown in running {
            let left = soon(shutdown).await.unwrap();
            assert!(left.is_nothing(), "{left:?}");
        }
    }
}

#[tokio::test]
async fn strangers_that_knock_cost_nothing() {
    let node = Node::builder().id(1).listen("tcp://127.0.0.1:0").start().await.unwrap();
    let place = &node.addresses()[0];
    for _ in 0..100 {
        drop(Tcp::new().connect(place).await.unwrap());
    }
    let two = Node::builder().id(2).start().await.unwrap();
    assert_eq!(soon(two.connect(place)).await.unwrap(), node.identity());
}

#[tokio::test(start_paused = true)]
async fn diallers_that_say_nothing_displace_each_other_and_not_a_newcomer() {
    let net = mem();
    let mut limits = Limits::default();
    limits.handshakes_max = 4;
    let node = net.builder(1).limits(limits).start().await.unwrap();
    let place = &node.addresses()[0];
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(net.mem.connect(place).await.unwrap());
    }
    let began = tokio::time::Instant::now();
    let two = net.node(2).await;
    assert_eq!(soon(two.connect(place)).await.unwrap(), node.identity());
    // Time stands still while anything can be done: nobody waited for anybody's deadline.
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(node.stats().handshakes_refused >= 96, "{:?}", node.stats());
}

#[tokio::test(start_paused = true)]
async fn halves_of_large_messages_from_many_peers_keep_within_one_budget() {
    let net = mem();
    let mut limits = Limits::default();
    (limits.assembly_bytes_max, limits.connection.message_bytes_max) = (1 << 20, 1 << 20);
    let node = net.builder(1).limits(limits).start().await.unwrap();
    let mut links = Vec::new();
    for id in 2..42 {
        let hello = Hello::new(Identity::new(NodeId(id), Incarnation(1)), CodecId::default(), 1 << 20, &[]);
        let link = net.mem.connect(&node.addresses()[0]).await.unwrap();
        let mut link = soon(dial(link, &hello, &ConnectionConfig::default())).await.unwrap().link;
        let mut outbox = Outbox::new(1 << 17);
        outbox.push(&[&[7], &[0; 1 << 16]]).unwrap();
        soon(std::future::poll_fn(|cx| link.sender.poll_send(cx, &mut outbox))).await.unwrap();
        links.push(link);
    }
    // Sixteen fit; the others are cut off long before their silence ends them.
    while node.stats().breaks < 24 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.peers().len(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_peer_that_takes_nothing_is_cut_off() {
    let net = mem();
    let (one, two) = (net.node(1).await, net.node(2).await);
    let (seen, stuck) = (Arc::new(Seen::default()), Seen::shut());
    let _open = (one.open(CHANNEL, seen.clone()).unwrap(), two.open(CHANNEL, stuck.clone()).unwrap());
    let peer = soon(one.connect(&two.addresses()[0])).await.unwrap();
    send(&one, 2, "farewell").unwrap();
    stuck.wait(|state| state.is_blocked.then_some(())).await;
    one.forget(NodeId(2));
    seen.event(PeerEvent::Down(peer)).await;
    assert_eq!((one.stats().breaks, one.peers()), (1, vec![]));
}

#[tokio::test]
async fn a_peer_that_says_goodbye_and_stays_cannot_pile_up_connections() {
    let net = mem();
    let node = net.node(1).await;
    let hello = Hello::new(Identity::new(NodeId(2), Incarnation(1)), CodecId::default(), 1 << 20, &[]);
    let mut links = Vec::new();
    for _ in 0..50 {
        let link = net.mem.connect(&node.addresses()[0]).await.unwrap();
        let mut link = soon(dial(link, &hello, &ConnectionConfig::default())).await.unwrap().link;
        let mut outbox = Outbox::new(100);
        outbox.push(&[&[0x12, 1]]).unwrap();
        std::future::poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await.unwrap();
        // Until it says goodbye too: then a next connection takes its place.
        let mut inbox = Inbox::new(100);
        while soon(std::future::poll_fn(|cx| link.receiver.poll_receive(cx, &mut inbox))).await.unwrap() {}
        links.push(link);
    }
    // A turn of each driver, for taking note; the silence that ends a connection anyway takes seconds.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let stats = node.stats();
    assert_eq!((stats.peers, stats.connections), (1, 50));
    assert!(stats.breaks >= 40, "{stats:?}");
}

/// Gives a peer that sends all the time every chance to be heard before it was introduced.
struct Slow {
    seen: Seen,
    heard: std::sync::mpsc::Sender<()>,
    hears: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl ChannelHandler for Slow {
    fn poll_deliver(&self, cx: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let _ = self.heard.send(());
        self.seen.poll_deliver(cx, from, frames)
    }

    fn on_peer(&self, event: PeerEvent) {
        let _ = self.hears.lock().unwrap().recv_timeout(Duration::from_millis(300));
        assert_eq!(self.seen.state.lock().unwrap().frames.len(), 0, "frames came before {event:?}");
        self.seen.on_peer(event);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_channel_opened_late_hears_of_a_peer_before_it_hears_the_peer() {
    let net = mem();
    let (one, two) = (net.node(1).await, net.node(2).await);
    soon(one.connect(&two.addresses()[0])).await.unwrap();
    let talking = tokio::spawn({
        let one = one.clone();
        async move {
            loop {
                let _ = send(&one, 2, "me, me, me");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let (heard, hears) = std::sync::mpsc::channel();
    let slow = Arc::new(Slow { seen: Seen::default(), heard, hears: Mutex::new(hears) });
    let _open = two.open(CHANNEL, slow.clone()).unwrap();
    slow.seen.frames(1).await;
    assert_eq!(slow.seen.events(), [PeerEvent::Up(one.identity())]);
    talking.abort();
}

/// Drops the last handle of its node when the first peer comes.
struct Quitter(Mutex<Option<Node>>);

impl ChannelHandler for Quitter {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, _: &mut Vec<Bytes>) -> Poll<()> {
        Poll::Ready(())
    }

    fn on_peer(&self, _: PeerEvent) {
        self.0.lock().unwrap().take();
    }
}

#[tokio::test]
async fn a_node_dropped_while_a_connection_begins_leaves_none_behind() {
    let net = mem();
    let (one, two) = (net.node(1).await, net.node(2).await);
    let seen = Arc::new(Seen::default());
    let _open = two.open(CHANNEL, seen.clone()).unwrap();
    let place = one.addresses()[0].clone();
    let quitter = Arc::new(Quitter(Mutex::new(None)));
    let guard = one.open(CHANNEL, quitter.clone()).unwrap();
    let identity = one.identity();
    *quitter.0.lock().unwrap() = Some(one);
    soon(two.connect(&place)).await.unwrap();
    seen.event(PeerEvent::Down(identity)).await;
    drop(guard);
}

/// Panics at the first frame.
struct Clumsy(Mutex<bool>);

impl ChannelHandler for Clumsy {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, _: &mut Vec<Bytes>) -> Poll<()> {
        assert!(
            !std::mem::take(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())),
            "oops"
        );
        Poll::Ready(())
    }
}

#[tokio::test]
async fn a_panic_in_a_handler_does_not_cut_a_node_off_from_itself() {
    let one = mem().node(1).await;
    let seen = Arc::new(Seen::default());
    let clumsy = Arc::new(Clumsy(Mutex::new(true)));
    let _open = (one.open(CHANNEL, seen.clone()).unwrap(), one.open(OTHER, clumsy).unwrap());
    one.send(NodeId(1), Lane::Ordinary, OTHER, &[b"careful"], Bytes::new()).unwrap();
    while one.stats().breaks < 2 {
        tokio::task::yield_now().await;
    }
    send(&one, 1, "still there?").unwrap();
    assert_eq!(seen.frames(1).await, [(one.identity(), Bytes::from("still there?"))]);
    assert!(soon(one.shutdown(Duration::from_secs(5))).await.is_nothing());
}
