//! Peers that no node would wish for, and a node in another process that must not care: wrong versions, garbage, frames
//! that claim to be huge, first halves, silence.

use std::time::Duration;

use bytes::Bytes;
use quorate::node::{ConnectError, Limits, StartError};
use quorate::socket::{Options, Replier, Requester};
use quorate::{Address, Identity, Incarnation, Node, NodeId};
use quorate_transports::connection::{
    CodecId, ConnectionConfig, FRAME_BYTES_MAX, HandshakeError, Hello, Mismatch, dial,
};
use quorate_transports::{Outbox, Transport, TransportError};
use tests::{Net, Worker, nets_between_processes, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{told, work};

/// The program of the node that is bothered: it answers requests, and tells its figures when asked.
#[test]
fn host() {
    work(async |orders| {
        let mut limits = Limits::default();
        limits.connection.handshake_max = Duration::from_millis(500);
        limits.connection.message_bytes_max = 1 << 20;
        limits.assembly_bytes_max = 4 << 20;
        let node = orders.net.builder(1).limits(limits).start().await.expect("the node starts");
        let _serving = Replier::serve(&node, "echo", Options::default(), Bytes::copy_from_slice);
        orders.say(node.addresses()[0].as_str());
        while let Some(order) = orders.next().await {
            assert_eq!(order, "figures");
            let stats = node.stats();
            orders.say(&format!("{} {} {}", resident_kib(), stats.handshakes_refused, stats.breaks));
        }
    });
}

/// What [`host`] tells of itself.
struct Figures {
    resident_kib: u64,
    refused: u64,
    breaks: u64,
}

async fn figures(host: &mut Worker) -> Figures {
    host.tell("figures").await;
    let said = host.hear().await;
    let numbers: Vec<u64> = said.split(' ').map(|word| word.parse().expect("a number")).collect();
    Figures { resident_kib: numbers[0], refused: numbers[1], breaks: numbers[2] }
}

/// Asks until `wanted` is so.
async fn figures_when(host: &mut Worker, wanted: impl Fn(&Figures) -> bool) -> Figures {
    within(async {
        loop {
            let figures = figures(host).await;
            if wanted(&figures) {
                return figures;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn start(net: &Net) -> (Worker, Address) {
    let mut host = Worker::start("strangers::host", net, "");
    let address = host.hear().await.parse().expect("an address");
    (host, address)
}

/// Somebody with honest wishes, before, while and after the strangers are there.
async fn customer(net: &Net, address: &Address) -> (Node, Requester) {
    let node = net.dialler(2).start().await.expect("the node starts");
    let requester = Requester::connect(&node, "echo", address, Options::default()).await;
    (node, requester.expect("the host answers"))
}

async fn is_served(requester: &Requester) {
    assert_eq!(&within(requester.request("still here?")).await.expect("an answer")[..], b"still here?");
}

#[tokio::test]
async fn t01_a_place_that_another_process_listens_at_is_told_with_its_address_and_so_is_an_unknown_scheme() {
    for net in nets_between_processes() {
        let (_host, address) = start(&net).await;
        let (_node, requester) = customer(&net, &address).await;
        let started = net.dialler(3).listen(&address).start().await;
        let Err(StartError::Transport(TransportError::InUse { address: culprit })) = &started else {
            panic!("{started:?}")
        };
        assert_eq!(*culprit, address);
        // Nothing of a node that did not start is left: what it also listened at is free.
        let free = net.node(4).await;
        let also = free.addresses()[0].clone();
        within(free.shutdown(Duration::from_secs(10))).await;
        let started = net.dialler(3).listen(&also).listen("pigeon://loft").start().await;
        let error = started.expect_err("nobody flies there");
        assert!(told(&error).contains("no transport for pigeon://loft, known schemes: "), "{}", told(&error));
        net.dialler(5).listen(&also).start().await.expect("the place is free");
        is_served(&requester).await;
    }
}

/// The hello of wire.md, written by hand, of a peer that speaks only later versions.
fn hello_of_the_future() -> Vec<u8> {
    let mut hello = b"QRTE".to_vec();
    hello.extend([7, 0, 9, 0]);
    // In those versions it goes on in a way that nobody knows today.
    hello.extend([0xEE; 90]);
    [&(hello.len() as u32).to_le_bytes()[..], &hello].concat()
}

/// Takes one frame off a stream.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut frame = vec![0; stream.read_u32_le().await.expect("a length") as usize];
    stream.read_exact(&mut frame).await.expect("a whole frame");
    frame
}

#[tokio::test]
async fn t07_a_client_of_another_version_is_told_ours_and_nobody_else_notices() {
    let net = tests::tcp();
    let (mut host, address) = start(&net).await;
    let (_node, requester) = customer(&net, &address).await;
    let mut future = TcpStream::connect(address.rest()).await.expect("somebody listens");
    future.write_all(&hello_of_the_future()).await.expect("it takes bytes");
    // The answer begins as in all versions: magic, oldest, newest. Then the host hangs up.
    let answer = within(frame(&mut future)).await;
    assert_eq!(answer[..8], [b'Q', b'R', b'T', b'E', 1, 0, 1, 0]);
    assert_eq!(within(future.read(&mut [0; 8])).await.expect("a clean end"), 0);
    let figures = figures_when(&mut host, |figures| figures.refused == 1).await;
    assert_eq!(figures.breaks, 0);
    is_served(&requester).await;
}

/// The program of a server that speaks a later version only.
#[test]
fn server_of_the_future() {
    work(async |orders| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        orders.say(&format!("tcp://{}", listener.local_addr().expect("it listens")));
        loop {
            let (mut dialler, _) = listener.accept().await.expect("somebody comes");
            let first = frame(&mut dialler).await;
            assert_eq!(first[..4], *b"QRTE");
            dialler.write_all(&hello_of_the_future()).await.expect("it listens");
        }
    });
}

#[tokio::test]
async fn t07_a_server_of_another_version_is_a_typed_error_that_names_both_versions() {
    let net = tests::tcp();
    let mut server = Worker::start("strangers::server_of_the_future", &net, "");
    let address: Address = server.hear().await.parse().expect("an address");
    let node = net.node(2).await;
    for _ in 0..2 {
        let error = within(node.connect(&address)).await.expect_err("the versions differ");
        let expected = Mismatch::Version { ours: (1, 1), theirs: (7, 9) };
        assert!(
            matches!(&error, ConnectError::Handshake(HandshakeError::Mismatch { source, .. }) if *source == expected),
            "{error:?}"
        );
        let text = told(&error);
        assert!(
            text.contains(address.as_str()) && text.contains("versions 1 to 1, the peer 7 to 9"),
            "{text}"
        );
        assert!(!error.is_retryable());
    }
    server.kill().await;
}

/// A stream of bytes to the place where a node listens; none where the medium has no streams below its frames.
async fn raw(address: &Address) -> Option<Box<dyn Stream>> {
    match address.scheme() {
        "tcp" | "tls" => Some(Box::new(TcpStream::connect(address.rest()).await.expect("somebody listens"))),
        #[cfg(unix)]
        "unix" => {
            let stream = tokio::net::UnixStream::connect(address.rest()).await;
            Some(Box::new(stream.expect("somebody listens")))
        }
        _ => None,
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// True when the other side hangs up, in whatever manner, and has said nothing.
async fn is_hung_up_on(stream: &mut Box<dyn Stream>) -> bool {
    let mut heard = Vec::new();
    // A reset is an end, too.
    let _ = within(stream.read_to_end(&mut heard)).await;
    // TLS says which of its own rules was broken; a node says nothing.
    heard.len() < 64 && !heard.windows(4).any(|word| word == b"QRTE")
}

#[tokio::test]
async fn t07_strangers_of_every_kind_are_cut_off_in_bounded_memory_and_the_other_peers_go_on() {
    for net in nets_between_processes() {
        let (mut host, address) = start(&net).await;
        let (_node, requester) = customer(&net, &address).await;
        is_served(&requester).await;
        let before = figures(&mut host).await;

        let mut strangers = Vec::new();
        for round in 0..ROUNDS {
            let firsts: [&[u8]; 5] = [
                b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                // A frame of 4 GiB.
                &[&u32::MAX.to_le_bytes()[..], &[7; 60_000]].concat(),
                // A hello that ends in the middle of itself.
                &[&8_u32.to_le_bytes()[..], b"QRTE\x01\0\x01\0"].concat(),
                // The beginning of something, and then silence.
                b"\x20\0",
                b"",
            ];
            for first in firsts {
                if let Some(mut stream) = raw(&address).await {
                    // It may have hung up before all was said.
                    let _ = stream.write_all(first).await;
                    strangers.push(stream);
                }
            }
            if round % 4 == 0 {
                is_served(&requester).await;
            }
        }
        let raw_count = strangers.len() as u64;
        for stranger in &mut strangers {
            assert!(is_hung_up_on(stranger).await, "{net:?}");
        }
        // Who does not get through TLS is not seen by the node.
        let seen = if net.scheme() == "tls" { 0 } else { raw_count };
        figures_when(&mut host, |figures| figures.refused >= before.refused + seen).await;

        // Those who know how to introduce themselves, and then misbehave.
        let mut links = Vec::new();
        for id in 0..ROUNDS {
            for kind in 0..3 {
                let link = within(net.transport().connect(&address)).await.expect("somebody listens");
                let identity = Identity::new(NodeId(1_000 + id * 10 + kind), Incarnation(1));
                let hello = Hello::new(identity, CodecId::default(), 1 << 20, &[]);
                let dialled = within(dial(link, &hello, &ConnectionConfig::default())).await;
                let mut link = dialled.expect("it is polite so far").link;
                let mut outbox = Outbox::new(FRAME_BYTES_MAX * 2);
                match kind {
                    // A tag that no version knows.
                    0 => outbox.push(&[&[0x7F], b"what?"]),
                    // More than a frame may have.
                    1 => outbox.push(&[&[2], &[0; FRAME_BYTES_MAX + 1]]),
                    // A first part of a message that is never finished.
                    _ => outbox.push(&[&[6], &[0; FRAME_BYTES_MAX - 1]]),
                }
                .expect("room for one frame");
                let sent = std::future::poll_fn(|cx| link.sender.poll_send(cx, &mut outbox));
                let _ = within(sent).await;
                links.push(link);
            }
            is_served(&requester).await;
        }
        // Two of three broke a rule; the halves wait for their ends, within the budget for halves.
        figures_when(&mut host, |figures| figures.breaks >= 2 * ROUNDS).await;
        let after = figures(&mut host).await;
        let grown = after.resident_kib.saturating_sub(before.resident_kib);
        println!("{net:?}: {raw_count} without a name, {} with one, {grown} KiB", links.len());
        assert!(grown < GROWTH_KIB_MAX, "{net:?}: {grown} KiB");
        // The old customer, and a new one.
        is_served(&requester).await;
        let (_late, late) = customer_again(&net, &address).await;
        is_served(&late).await;
    }
}

async fn customer_again(net: &Net, address: &Address) -> (Node, Requester) {
    let node = net.dialler(3).start().await.expect("the node starts");
    let requester = Requester::connect(&node, "echo", address, Options::default()).await;
    (node, requester.expect("the host answers"))
}

/// Memory of this process; 0 where the system does not say.
pub(crate) fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Of each kind of stranger.
const ROUNDS: u64 = 24;
/// What the budget for halves, a buffer for each link that was open at some time and an allocator's habits explain; what
/// the strangers claimed to send is thousands of times more.
const GROWTH_KIB_MAX: u64 = 64 << 10;
