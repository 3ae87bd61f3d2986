//! What sockets do when there is no room, when somebody hangs, when connections break and when they are closed.

use std::time::Duration;

use bytes::Bytes;
use quorate::Node;
use quorate::node::Incarnation;
use quorate::socket::{
    BindError, ConnectError, Options, Publisher, Pull, Push, ReceiveError, Rejection, Replier, RequestError,
    RequestOptions, Requester, SendError, Subscriber, WhenFull,
};
use quorate_transports::fault::model::LinkModel;
use quorate_transports::sim::SimNetwork;

use crate::support::{Net, everywhere, nets, simulated, until, within};

const LONG: Duration = Duration::from_secs(30);
/// For a reply that does not come.
const SHORT: Duration = Duration::from_millis(500);

fn options(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    change(&mut options);
    options
}

fn number(body: &[u8]) -> u64 {
    u64::from_le_bytes(body[..8].try_into().unwrap())
}

#[tokio::test]
async fn s03_at_the_high_water_mark_a_sender_waits_drops_the_newest_or_drops_the_oldest() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let ten = options(|o| o.window_messages = 10);
        let address = &here.addresses()[0];

        let mut pull = Pull::bind(&here, "wait", ten.clone()).unwrap();
        let push = Push::connect(&there, "wait", address, Options::default()).await.unwrap();
        for n in 0..10_u64 {
            push.try_send(&n.to_le_bytes()).unwrap();
        }
        assert_eq!(push.try_send("one more"), Err(SendError::Full));
        let waiting = async {
            // Once dropped before it was ready, it must not have been sent.
            let dropped = push.send("dropped");
            assert!(tokio::time::timeout(Duration::from_millis(10), dropped).await.is_err());
            for n in 10..100_u64 {
                push.send(&n.to_le_bytes()).await.unwrap();
            }
        };
        let reading = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            for n in 0..100 {
                assert_eq!(number(&pull.receive().await.unwrap().body), n);
            }
        };
        within(async { tokio::join!(waiting, reading) }).await;
        assert_eq!((pull.try_receive(), push.stats().dropped), (Err(ReceiveError::Empty), 0));

        let mut pull = Pull::bind(&here, "newest", ten.clone()).unwrap();
        let newest = options(|o| o.when_full = Some(WhenFull::DropNewest));
        let push = Push::connect(&there, "newest", address, newest).await.unwrap();
        let sent: Vec<_> = async {
            let mut sent = Vec::new();
            for n in 0..100_u64 {
                sent.push(push.send(&n.to_le_bytes()).await);
            }
            sent
        }
        .await;
        // Whoever drops is told, and it is counted.
        assert_eq!(sent.iter().filter(|sent| **sent == Err(SendError::Full)).count(), 90);
        assert_eq!((push.stats().sent, push.stats().dropped), (10, 90));
        for n in 0..10 {
            assert_eq!(number(&within(pull.receive()).await.unwrap().body), n);
        }

        let mut pull = Pull::bind(&here, "oldest", ten).unwrap();
        let oldest = options(|o| {
            o.when_full = Some(WhenFull::DropOldest);
            o.queue_messages = 5;
        });
        let push = Push::connect(&there, "oldest", address, oldest).await.unwrap();
        for n in 0..100_u64 {
            push.send(&n.to_le_bytes()).await.unwrap();
        }
        assert_eq!(push.stats().dropped, 85);
        assert_eq!((push.links()[0].queued, push.links()[0].dropped), (5, 85));
        for n in (0..10).chain(95..100) {
            assert_eq!(number(&within(pull.receive()).await.unwrap().body), n);
        }
    }
}

#[tokio::test]
async fn s03_the_high_water_mark_in_bytes_holds_for_large_messages_too() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "large", options(|o| o.window_bytes = 100_000)).unwrap();
        let push = Push::connect(&there, "large", &here.addresses()[0], Options::default()).await.unwrap();
        let body = Bytes::from(vec![1; 60_000]);
        // The second begins below the mark, the third does not.
        push.try_send(body.clone()).unwrap();
        push.try_send(body.clone()).unwrap();
        assert_eq!(push.try_send(body.clone()), Err(SendError::Full));
        assert_eq!(within(pull.receive()).await.unwrap().body, body);
        within(push.send(body.clone())).await.unwrap();
        // Larger than the whole window: alone it goes.
        for expected in [60_000, 60_000, 5_000_000] {
            if expected == 60_000 {
                assert_eq!(within(pull.receive()).await.unwrap().body.len(), expected);
            } else {
                within(push.send(vec![2; expected])).await.unwrap();
                assert_eq!(within(pull.receive()).await.unwrap().body.len(), expected);
            }
        }
        let too_large = within(push.send(vec![0; 17 << 20])).await;
        assert!(matches!(too_large, Err(SendError::TooLarge { .. })), "{too_large:?}");
    }
}

#[tokio::test]
async fn s03_a_subscriber_that_hangs_hurts_no_other() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let publisher = Publisher::bind(&here, "ticks", Options::default()).unwrap();
        let small = options(|o| o.window_bytes = 10_000);
        let address = &here.addresses()[0];
        let mut readers = Vec::new();
        for _ in 0..20 {
            let reader = Subscriber::connect(&there, "ticks", address, Options::default()).await.unwrap();
            within(reader.subscribe("")).await.unwrap();
            readers.push(reader);
        }
        // On the same connection, and never read.
        let hung = Subscriber::connect(&there, "ticks", address, small).await.unwrap();
        within(hung.subscribe("")).await.unwrap();
        const COUNT: u64 = 2_000;
        for n in 0..COUNT {
            publisher.publish("", &[&n.to_le_bytes()[..], &[0; 92]].concat()).await.unwrap();
            if n % 100 == 99 {
                for reader in &mut readers {
                    for expected in n - 99..=n {
                        assert_eq!(number(&within(reader.receive()).await.unwrap().body), expected);
                    }
                }
            }
        }
        let links = publisher.links();
        let dropped: Vec<_> = links.iter().filter(|link| link.dropped > 0).collect();
        assert_eq!(dropped.len(), 1);
        assert_eq!(dropped[0].sent + dropped[0].dropped, COUNT);
        // What its mark allows and one message: that is all that it costs.
        assert!(dropped[0].sent * 106 < 10_000 + 2 * 106, "{:?}", dropped[0]);
        drop(hung);
        until(|| publisher.stats().links == 20).await;
    }
}

async fn no_link(net: Net) {
    let (here, there) = (net.node(1).await, net.node(2).await);
    let address = &here.addresses()[0];
    let _pull = Pull::bind(&here, "work", Options::default()).unwrap();
    let taken = Pull::bind(&here, "work", Options::default());
    assert!(matches!(taken, Err(BindError::NameTaken { .. })));
    let broken = Pull::bind(&here, "other", options(|o| o.window_messages = 0));
    assert!(matches!(broken, Err(BindError::Option { name: "window_messages", .. })));

    let wrong_kind = within(Pull::connect(&there, "work", address, Options::default())).await.unwrap_err();
    assert!(matches!(wrong_kind, ConnectError::Rejected { reason: Rejection::Kind, .. }), "{wrong_kind:?}");
    assert!(!wrong_kind.is_retryable());
    let no_socket = within(Push::connect(&there, "play", address, Options::default())).await.unwrap_err();
    assert!(matches!(no_socket, ConnectError::NoSocket { .. }), "{no_socket:?}");
    assert_eq!(no_socket.to_string(), format!("the node at {address} has no socket \"play\""));
    let no_address = Push::connect(&there, "work", "nonsense", Options::default()).await.unwrap_err();
    assert!(matches!(no_address, ConnectError::Address(_)));
    here.shutdown(LONG).await;
    let nobody = net.node(3).await;
    let no_node = within(Push::connect(&nobody, "work", address, Options::default())).await.unwrap_err();
    assert!(matches!(no_node, ConnectError::Node { .. }) && no_node.is_retryable(), "{no_node:?}");
}

#[tokio::test]
async fn s03_why_a_link_does_not_come_to_be_is_told() {
    everywhere(nets(), no_link).await;
}

#[tokio::test]
async fn s03_who_is_patient_waits_for_the_node_and_for_the_socket() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let address = here.addresses()[0].clone();
        let patient = options(|o| o.connect_wait = LONG);
        let waiting = tokio::spawn(async move {
            let push = Push::connect(&there, "late", &address, patient).await.unwrap();
            push.send("at last").await.unwrap();
            push.close(LONG).await
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut pull = Pull::bind(&here, "late", Options::default()).unwrap();
        assert_eq!(&within(pull.receive()).await.unwrap().body[..], b"at last");
        assert!(within(waiting).await.unwrap().is_nothing());
    }
}

#[tokio::test]
async fn s03_a_link_comes_back_when_the_other_socket_is_opened_again() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
        let push = Push::connect(&there, "work", &here.addresses()[0], Options::default()).await.unwrap();
        for round in 0..3_u64 {
            within(push.send(&round.to_le_bytes())).await.unwrap();
            assert_eq!(number(&within(pull.receive()).await.unwrap().body), round);
            drop(pull);
            until(|| push.stats().links == 0).await;
            assert_eq!(push.try_send("nobody"), Err(SendError::NoLink));
            pull = Pull::bind(&here, "work", Options::default()).unwrap();
        }
        // What a subscriber wants is told again to a publisher that comes back.
        let publisher = Publisher::bind(&here, "news", Options::default()).unwrap();
        let mut subscriber =
            Subscriber::connect(&there, "news", &here.addresses()[0], Options::default()).await.unwrap();
        within(subscriber.subscribe("a")).await.unwrap();
        drop(publisher);
        until(|| subscriber.stats().links == 0).await;
        let publisher = Publisher::bind(&here, "news", Options::default()).unwrap();
        within(async {
            while publisher.publish("abc", "again").await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        assert_eq!(&within(subscriber.receive()).await.unwrap().body[..], b"again");
    }
}

#[tokio::test]
async fn s03_closing_sends_what_waits_and_says_what_is_left() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "work", options(|o| o.window_messages = 10)).unwrap();
        let oldest = options(|o| o.when_full = Some(WhenFull::DropOldest));
        let push = Push::connect(&there, "work", &here.addresses()[0], oldest.clone()).await.unwrap();
        for n in 0..100_u64 {
            push.send(&n.to_le_bytes()).await.unwrap();
        }
        let closing = tokio::spawn(push.close(LONG));
        for n in 0..100 {
            assert_eq!(number(&within(pull.receive()).await.unwrap().body), n);
        }
        assert!(within(closing).await.unwrap().is_nothing());

        let push = Push::connect(&there, "work", &here.addresses()[0], oldest).await.unwrap();
        for n in 0..100_u64 {
            push.send(&n.to_le_bytes()).await.unwrap();
        }
        let left = within(push.close(Duration::from_millis(50))).await;
        assert_eq!((left.unsent, left.unconfirmed, left.links.len()), (90, 10, 1));
        // What had come is there still, and then there is no more.
        for n in 0..10 {
            assert_eq!(number(&within(pull.receive()).await.unwrap().body), n);
        }
        assert_eq!(pull.try_receive(), Err(ReceiveError::Empty));
    }
}

async fn dead_and_silent(net: Net) {
    let asking = net.node(9).await;
    let requester: Requester = {
        let mut options = RequestOptions::default();
        options.reply_wait = SHORT;
        options.tries_max = 3;
        let node = net.node(1).await;
        let silent = Replier::bind(&node, "ask", Options::default()).unwrap();
        let made = Requester::connect(&asking, "ask", &node.addresses()[0], Options::default()).await;
        // It takes requests and never answers.
        tokio::spawn(async move {
            let (_node, mut silent) = (node, silent);
            let mut held = Vec::new();
            while let Ok(asked) = silent.receive().await {
                held.push(asked);
            }
        });
        made.unwrap().with(options)
    };
    let node = net.node(2).await;
    let mut replier = Replier::bind(&node, "ask", Options::default()).unwrap();
    requester.link("ask", &node.addresses()[0]).await.unwrap();
    let answering = tokio::spawn(async move {
        let mut tries = Vec::new();
        for _ in 0..4 {
            let asked = replier.receive().await.unwrap();
            tries.push(asked.tries_before());
            asked.reply("yes").await.unwrap();
        }
        tries
    });
    for _ in 0..4 {
        assert_eq!(&within(requester.request("?")).await.unwrap()[..], b"yes");
    }
    // Every second one was asked of the silent one first, and the replier was told.
    let tries = within(answering).await.unwrap();
    assert!(tries.iter().any(|tries| *tries > 0), "{tries:?}");
    // The replier is gone with its task: what is sent from now on goes to the silent one or nowhere.
    let error = within(requester.request("?")).await.unwrap_err();
    assert_eq!(error, RequestError::NoReply { tries: 3, waited: SHORT });
}

#[tokio::test]
async fn s03_a_request_goes_to_the_next_replier_when_one_dies_or_is_silent() {
    everywhere(nets(), dead_and_silent).await;
}

/// A push and a pull over a network that is reset and cut; returns what came, what was lost by count, and the trace.
fn run(seed: u64) -> (Vec<u64>, u64, u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let network = SimNetwork::new(seed);
        network.set_default_link(LinkModel::BAD_WAN);
        let builder = |id: u64, host: &str| {
            let node = Node::builder().id(id).incarnation(Incarnation(1)).seed(seed + id);
            node.transport(network.transport(host))
        };
        let here = builder(1, "here").listen("sim://here:1").start().await.unwrap();
        let there = builder(2, "there").start().await.unwrap();
        let mut pull = Pull::bind(&here, "work", options(|o| o.window_messages = 100)).unwrap();
        let patient = options(|o| o.connect_wait = LONG);
        let push = Push::connect(&there, "work", "sim://here:1", patient).await.unwrap();
        const COUNT: u64 = 5_000;
        let sending = async {
            for n in 0..COUNT {
                push.send(&n.to_le_bytes()).await.unwrap();
                match n {
                    1_000 | 3_000 => network.reset_connections("here", "there"),
                    2_000 => {
                        network.partition(&[&["here"], &["there"]]);
                        // Long enough for the connection to be given up.
                        tokio::time::sleep(Duration::from_secs(40)).await;
                        network.heal();
                    }
                    _ => {}
                }
            }
            push.close(Duration::from_secs(60)).await
        };
        let receiving = async {
            let mut got = Vec::new();
            while got.last() != Some(&(COUNT - 1)) {
                got.push(number(&pull.receive().await.unwrap().body));
            }
            got
        };
        let (left, got) = tokio::join!(sending, receiving);
        assert!(left.is_nothing(), "seed {seed}: {left:?}");
        (got, pull.stats().lost, network.trace_hash())
    })
}

#[test]
fn s03_links_outlive_resets_and_partitions_and_nothing_comes_twice_or_out_of_order() {
    for seed in 0..10 {
        let (got, _, _) = run(seed);
        assert!(got.is_sorted_by(|a, b| a < b), "seed {seed}");
        // A window may be under way when a connection breaks, three times.
        assert!(got.len() >= 5_000 - 3 * 101, "seed {seed}: {}", got.len());
    }
}

#[test]
fn s03_the_same_seed_gives_the_same_run_of_sockets() {
    for seed in 20..23 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn s03_a_crashed_subscriber_is_noticed_by_its_silence() {
    let network = SimNetwork::new(7);
    let (here, there) = (simulated(&network, 1).await, simulated(&network, 2).await);
    let publisher = Publisher::bind(&here, "ticks", Options::default()).unwrap();
    let subscriber = Subscriber::connect(&there, "ticks", &here.addresses()[0], Options::default()).await;
    subscriber.unwrap().subscribe("").await.unwrap();
    network.crash("host2");
    let began = tokio::time::Instant::now();
    until(|| publisher.stats().links == 0).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
