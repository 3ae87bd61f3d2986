//! Two processes that do not fit together: both are told the same, with both sides' values, over every medium.

use std::future::poll_fn;

use quorate_transports::connection::{
    CodecId, ConnectionConfig, HandshakeError, Hello, Mismatch, Verdict, answer, dial,
};
use quorate_transports::{Address, Identity, Incarnation, NodeId, Transport};
use tests::{Net, Orders, Worker, everywhere, nets_between_processes, within};

use crate::{told, work};

/// Says who it is; the first life of node 1, unless a test wants it otherwise.
fn hello(node: u64) -> Hello {
    Hello::new(Identity::new(NodeId(node), Incarnation(node + 10)), CodecId(1), 1 << 20, &[])
}

/// The other process: it answers one dialler after the other and says what came of it.
#[test]
fn answering() {
    work(async |orders: Orders| {
        let place: Address = orders.net.listen().parse().expect("an address");
        let mut listener = orders.net.transport().listen(&place).await.expect("a free place");
        orders.say(listener.local_address().as_str());
        while let Some(order) = orders.next().await {
            let verdict = match order.as_str() {
                "accept" => Verdict::Accept,
                "shut down" => Verdict::ShuttingDown,
                "duplicate" => Verdict::Duplicate,
                "refuse" => Verdict::Incompatible,
                other => panic!("{other}"),
            };
            let link = poll_fn(|cx| listener.poll_accept(cx)).await.expect("somebody dials");
            let answered = answer(link, &hello(1), &ConnectionConfig::default(), |_| verdict).await;
            match &answered {
                Ok(established) => {
                    let limit = established.agreement.message_bytes_max;
                    orders.say(&format!("agreed with {} on {limit} bytes", established.peer.identity));
                }
                Err(error) => orders.say(&told(error)),
            }
            // The link stays until the dialler has read.
            let _ = orders.next().await;
        }
    });
}

/// What comes of a hello here, and what the other process says of it.
async fn meet(
    net: &Net,
    worker: &mut Worker,
    address: &Address,
    (ours, order): (&Hello, &str),
) -> (Result<usize, HandshakeError>, String) {
    worker.tell(order).await;
    let link = within(net.transport().connect(address)).await.expect("somebody listens");
    let dialled = within(dial(link, ours, &ConnectionConfig::default())).await;
    let there = worker.hear().await;
    worker.tell("thanks").await;
    (dialled.map(|established| established.agreement.message_bytes_max), there)
}

async fn mismatches(net: Net) {
    let mut worker = Worker::start("handshakes::answering", &net, "");
    let address: Address = worker.hear().await.parse().expect("an address");
    let changed = |change: fn(&mut Hello)| {
        let mut ours = hello(2);
        change(&mut ours);
        ours
    };
    let cases: [(Hello, Mismatch, &str); 5] = [
        (
            changed(|ours| ours.versions = (7, 9)),
            Mismatch::Version { ours: (7, 9), theirs: (1, 1) },
            "we speak protocol versions 1 to 1, the peer 7 to 9",
        ),
        (
            changed(|ours| ours.codec = CodecId(9)),
            Mismatch::Codec { ours: 9, theirs: 1 },
            "our codec is 1, the peer's is 9",
        ),
        (
            changed(|ours| ours.message_bytes_max = 1_000),
            Mismatch::Limit { ours: 1_000, theirs: 1 << 20 },
            "we take 1048576 bytes, the peer takes 1000",
        ),
        (
            changed(|ours| ours.wanted = Some(NodeId(5))),
            Mismatch::Node { wanted: NodeId(5), found: hello(1).identity },
            "node 5 was wanted, 1#11 was found",
        ),
        (
            changed(|ours| ours.identity = Identity::new(NodeId(1), Incarnation(4))),
            Mismatch::SameNode { ours: Identity::new(NodeId(1), Incarnation(4)), theirs: hello(1).identity },
            "both sides are node 1: we are 1#11, the peer is 1#4",
        ),
    ];
    for (ours, expected, text) in cases {
        let (here, there) = meet(&net, &mut worker, &address, (&ours, "accept")).await;
        assert!(
            matches!(&here, Err(HandshakeError::Mismatch { source, .. }) if *source == expected),
            "{net:?}: {here:?}"
        );
        assert!(there.contains(text), "{net:?}: {there:?} without {text:?}");
    }

    // Both fit, and the answering side does not want.
    let ours = hello(2);
    let (here, there) = meet(&net, &mut worker, &address, (&ours, "shut down")).await;
    let known = hello(1).identity;
    assert!(
        matches!(&here, Err(HandshakeError::ShuttingDown { identity }) if *identity == known),
        "{here:?}"
    );
    assert_eq!(there, "2#12 is shutting down", "{net:?}");
    let (here, _) = meet(&net, &mut worker, &address, (&ours, "duplicate")).await;
    assert!(matches!(&here, Err(HandshakeError::Duplicate { identity }) if *identity == known), "{here:?}");
    let (here, _) = meet(&net, &mut worker, &address, (&ours, "refuse")).await;
    assert!(matches!(&here, Err(HandshakeError::Refused { identity }) if *identity == known), "{here:?}");

    // And after all of them two that fit, on the smaller limit.
    let ours = changed(|ours| ours.message_bytes_max = 5_000);
    let (here, there) = meet(&net, &mut worker, &address, (&ours, "accept")).await;
    assert_eq!(here.expect("they fit"), 5_000);
    assert_eq!(there, "agreed with 2#12 on 5000 bytes", "{net:?}");
    worker.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_each_mismatch_between_processes_is_told_to_both_with_both_values_over_every_medium() {
    everywhere(nets_between_processes(), mismatches).await;
}
