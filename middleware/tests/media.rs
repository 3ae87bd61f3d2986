//! A node over every medium: the same promises, whatever carries them, and what the medium knows of the peer.

#[path = "../../transports/tests/authority/mod.rs"]
mod authority;

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use authority::Authority;
use bytes::Bytes;
use quorate::node::{
    Channel, ChannelHandler, ConnectError, Credentials, Limits, NodeBuilder, PeerEvent, SendError,
};
use quorate::{Identity, Incarnation, Lane, Node, NodeId};
use quorate_transports::connection::HandshakeError;
use quorate_transports::mem::Mem;
use quorate_transports::quic::Quic;
use quorate_transports::tcp::Tcp;
use quorate_transports::tls::Tls;
use quorate_transports::udp::Udp;
use quorate_transports::{LinkError, TransportError, TrustError};
use tokio::sync::Notify;

const CHANNEL: Channel = Channel::named("test", "media");

/// A medium, and the directory that its addresses stand in.
struct Medium {
    name: &'static str,
    listen: String,
    add: Box<dyn Fn(NodeBuilder) -> NodeBuilder>,
    _directory: tempfile::TempDir,
}

impl Medium {
    fn builder(&self, id: u64, life: u64) -> NodeBuilder {
        let mut limits = Limits::default();
        limits.backoff_min = Duration::from_millis(10);
        let node = Node::builder().id(id).incarnation(Incarnation(life)).listen(&*self.listen).limits(limits);
        (self.add)(node)
    }

    async fn node(&self, id: u64) -> Node {
        self.builder(id, 1).start().await.unwrap()
    }
}

fn media() -> Vec<Medium> {
    let medium = |name, listen: &str, add: Box<dyn Fn(NodeBuilder) -> NodeBuilder>| {
        let directory = tempfile::tempdir().unwrap();
        let listen = listen.replace("DIRECTORY", &directory.path().display().to_string());
        Medium { name, listen, add, _directory: directory }
    };
    let world = Mem::new();
    let certificates = Authority::new().certificates(&["127.0.0.1"]);
    let others = certificates.clone();
    vec![
        medium("mem", "mem://", Box::new(move |node| node.transport(world.clone()))),
        medium("tcp", "tcp://127.0.0.1:0", Box::new(|node| node.transport(Tcp::new()))),
        medium(
            "tls",
            "tls://127.0.0.1:0",
            Box::new(move |node| node.transport(Tls::new(certificates.clone()))),
        ),
        medium("quic", "quic://127.0.0.1:0", Box::new(move |node| node.transport(Quic::new(others.clone())))),
        medium("udp", "udp://127.0.0.1:0", Box::new(|node| node.transport(Udp::new()))),
        #[cfg(unix)]
        medium(
            "unix",
            "unix://DIRECTORY/*",
            Box::new(|node| node.transport(quorate_transports::unix::Unix::new())),
        ),
    ]
}

#[derive(Default)]
struct Seen {
    told: Mutex<Told>,
    changed: Notify,
}

#[derive(Default)]
struct Told {
    frames: Vec<(Identity, Bytes)>,
    events: Vec<PeerEvent>,
}

impl Seen {
    /// The frames, when there are so many.
    async fn frames(&self, count: usize) -> Vec<(Identity, Bytes)> {
        self.wait(|told| (told.frames.len() >= count).then(|| told.frames.clone())).await
    }

    async fn event(&self, event: PeerEvent) {
        self.wait(|told| told.events.contains(&event).then_some(())).await
    }

    async fn wait<T>(&self, what: impl Fn(&Told) -> Option<T>) -> T {
        soon(async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = what(&self.told.lock().unwrap()) {
                    return found;
                }
                changed.await;
            }
        })
        .await
    }
}

impl ChannelHandler for Seen {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        self.told.lock().unwrap().frames.extend(frames.drain(..).map(|frame| (from, frame)));
        self.changed.notify_waiters();
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        self.told.lock().unwrap().events.push(event);
        self.changed.notify_waiters();
    }
}

/// A bound on every wait, never what decides a test.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("a test hangs")
}

#[tokio::test]
async fn t02_a_node_keeps_its_promises_over_every_medium() {
    for medium in media() {
        println!("{}", medium.name);
        let (one, two) = (medium.node(1).await, medium.node(2).await);
        let seen = Arc::new(Seen::default());
        let _open = two.open(CHANNEL, seen.clone()).unwrap();
        soon(one.connect(&two.addresses()[0])).await.unwrap();
        // More than any medium holds, of every size, in order.
        const COUNT: usize = 2_000;
        let sender = one.clone();
        let sending = tokio::spawn(async move {
            for number in 0..COUNT {
                let body = Bytes::from(vec![
                    number as u8;
                    number * 37 % 9_000 + 300_000 * usize::from(number % 500 == 0)
                ]);
                loop {
                    match sender.send(
                        NodeId(2),
                        Lane::Ordinary,
                        CHANNEL,
                        &[&number.to_le_bytes()],
                        body.clone(),
                    ) {
                        Ok(()) => break,
                        Err(SendError::Full { .. }) => sender.ready(NodeId(2), Lane::Ordinary).await.unwrap(),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        for (number, (from, frame)) in seen.frames(COUNT).await.into_iter().enumerate() {
            assert_eq!((from, &frame[..8]), (one.identity(), &number.to_le_bytes()[..]), "{}", medium.name);
            assert!(frame[8..].iter().all(|byte| *byte == number as u8));
        }
        sending.await.unwrap();
        let stats = two.peer_stats(NodeId(1)).unwrap();
        let ordinary = stats.connection.unwrap().lanes[Lane::Ordinary as usize];
        assert_eq!((stats.connections, ordinary.messages_received), (1, COUNT as u64), "{}", medium.name);
        let ordinary = one.peer_stats(NodeId(2)).unwrap().connection.unwrap().lanes[Lane::Ordinary as usize];
        assert_eq!(
            (ordinary.messages_queued, ordinary.messages_waiting),
            (COUNT as u64, 0),
            "{}",
            medium.name
        );
        assert_eq!(ordinary.messages_refused, one.stats().refused);
        // A restarted peer is another one, and is found again.
        drop(one);
        seen.event(PeerEvent::Down(Identity::new(NodeId(1), Incarnation(1)))).await;
        let again = medium.builder(1, 2).start().await.unwrap();
        soon(again.connect(&two.addresses()[0])).await.unwrap();
        again.send(NodeId(2), Lane::Urgent, CHANNEL, &[b"again"], Bytes::new()).unwrap();
        assert_eq!(seen.frames(COUNT + 1).await[COUNT], (again.identity(), Bytes::from("again")));
        assert!(soon(again.shutdown(Duration::from_secs(10))).await.is_nothing(), "{}", medium.name);
        assert!(soon(two.shutdown(Duration::from_secs(10))).await.is_nothing(), "{}", medium.name);
    }
}

#[tokio::test]
async fn t04_a_peer_that_is_not_admitted_hears_so_and_nothing_of_it_is_delivered() {
    for medium in media() {
        let strict = medium.builder(1, 1).admit(|peer, _| peer.node == NodeId(2)).start().await.unwrap();
        let seen = Arc::new(Seen::default());
        let _open = strict.open(CHANNEL, seen.clone()).unwrap();
        let (friend, stranger) = (medium.node(2).await, medium.node(3).await);
        stranger.add_address(NodeId(1), strict.addresses()[0].clone());
        stranger.send(NodeId(1), Lane::Ordinary, CHANNEL, &[b"from a stranger"], Bytes::new()).unwrap();
        let error = soon(stranger.connect(&strict.addresses()[0])).await.unwrap_err();
        let ConnectError::Handshake(HandshakeError::Refused { identity }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(identity, strict.identity());
        let error = soon(strict.connect(&stranger.addresses()[0])).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotAdmitted { identity } if identity == stranger.identity()));
        soon(friend.connect(&strict.addresses()[0])).await.unwrap();
        friend.send(NodeId(1), Lane::Ordinary, CHANNEL, &[b"from a friend"], Bytes::new()).unwrap();
        assert_eq!(seen.frames(1).await, [(friend.identity(), Bytes::from("from a friend"))]);
    }
}

#[tokio::test]
async fn t04_a_node_believes_a_claimed_id_only_with_its_certificate() {
    let authority = Authority::new();
    let start = async |id: u64, name: &str| {
        let tls = Tls::new(authority.certificates(&[name, "127.0.0.1"]));
        // The rule of this cluster: node 7 has a certificate made out to node-7.
        let node = Node::builder().id(id).transport(tls).listen("tls://127.0.0.1:0").admit(|peer, known| {
            matches!(known, Some(Credentials::Certificate(certificate))
                if certificate.names().contains(&format!("node-{}", peer.node)))
        });
        node.start().await.unwrap()
    };
    let (one, two, thief) = (start(1, "node-1").await, start(2, "node-2").await, start(3, "node-2").await);
    soon(two.connect(&one.addresses()[0])).await.unwrap();
    let Some(Credentials::Certificate(certificate)) = one.credentials(NodeId(2)) else { panic!() };
    assert_eq!(certificate.names(), ["node-2"]);
    let error = soon(thief.connect(&one.addresses()[0])).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(HandshakeError::Refused { .. })), "{error:?}");
    let error = soon(one.connect(&thief.addresses()[0])).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotAdmitted { .. }), "{error:?}");
}

#[tokio::test]
async fn t04_a_stranger_gets_no_word_in_with_a_node_and_is_told_why() {
    let (authority, other) = (Authority::new(), Authority::new());
    let node = |id, certificates| {
        Node::builder().id(id).transport(Tls::new(certificates)).listen("tls://127.0.0.1:0").start()
    };
    let one = node(1u64, authority.certificates(&["127.0.0.1"])).await.unwrap();
    let stranger = node(2, other.trusting(&authority, &["127.0.0.1"])).await.unwrap();
    let seen = Arc::new(Seen::default());
    let _open = one.open(CHANNEL, seen.clone()).unwrap();
    stranger.add_address(NodeId(1), one.addresses()[0].clone());
    stranger.send(NodeId(1), Lane::Ordinary, CHANNEL, &[b"psst"], Bytes::new()).unwrap();
    let error = soon(stranger.connect(&one.addresses()[0])).await.unwrap_err();
    let ConnectError::Handshake(HandshakeError::Link(LinkError::Untrusted { source, .. })) = error else {
        panic!("{error:?}")
    };
    assert_eq!(source, TrustError::Refused { reason: "UnknownCA".to_owned() });
    let error = soon(one.connect(&stranger.addresses()[0])).await.unwrap_err();
    let ConnectError::Transport(TransportError::Untrusted { source, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(source, TrustError::UnknownAuthority);
    let told = seen.told.lock().unwrap();
    assert!(told.frames.is_empty() && told.events.is_empty());
}

#[cfg(unix)]
#[tokio::test]
async fn t03_a_node_knows_the_process_at_the_other_end_of_a_local_socket() {
    let medium = media().pop().unwrap();
    let this = i32::try_from(std::process::id()).unwrap();
    let is_this = move |known: Option<&Credentials>| matches!(known, Some(Credentials::Process(process)) if process.process == Some(this));
    let one = medium.builder(1, 1).admit(move |_, known| is_this(known)).start().await.unwrap();
    let two = medium.node(2).await;
    soon(two.connect(&one.addresses()[0])).await.unwrap();
    assert!(is_this(two.credentials(NodeId(1)).as_ref()));
    assert_eq!(two.credentials(NodeId(3)), None);
}
