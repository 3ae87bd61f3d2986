//! What every engine must do, each story on queues of its own.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use quorate::queue::engine::{EngineConfig, EngineDelivery, EngineError, EngineQueue, EngineQueues};
use quorate::queue::{Durability, Message};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::PATIENCE;

/// When a message that was given back is there again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Return {
    /// When the giving back has returned.
    AtOnce,
    /// Soon after.
    Later,
}

/// All of them at once.
pub(super) async fn all(queues: &EngineQueues, returns: Return) {
    let mut stories = JoinSet::new();
    macro_rules! tell {
        ($($story:ident)*) => { $({ let queues = queues.clone(); stories.spawn(async move { $story(queues).await }); })* };
    }
    tell!(order delayed leases let_go dead_letters kept given_up cancelled crowd woken keys priorities delays expiry names limits notified);
    stories.spawn(comes_back(queues.clone(), returns));
    while let Some(told) = stories.join_next().await {
        told.expect("the story ends well");
    }
}

async fn next(queue: &EngineQueue) -> EngineDelivery {
    queue.get(PATIENCE).await.expect("an engine that works").expect("a message")
}

fn text(delivery: &EngineDelivery) -> &str {
    std::str::from_utf8(delivery.payload()).expect("a text")
}

async fn done(delivery: EngineDelivery) {
    delivery.ack().await.expect("it is ours");
}

async fn order(queues: EngineQueues) {
    let queue = queues.queue("order").await.expect("declared");
    let again = queues.queue("order").await.expect("declared twice");
    let bytes: Vec<u8> = (0..=255).collect();
    let mut ids = Vec::new();
    for n in 0..5 {
        let receipt = queue.put([&[n], &bytes[..]].concat()).await.expect("put");
        assert_eq!(receipt.durability, queues.abilities().durability);
        assert!(!receipt.is_repeated);
        ids.extend(receipt.id);
    }
    assert!(ids.is_sorted() && (ids.is_empty() || ids.len() == 5), "{ids:?}");
    for n in 0..5 {
        let delivery = next(&again).await;
        assert_eq!((delivery.payload()[0], &delivery.payload()[1..]), (n, &bytes[..]));
        assert_eq!((delivery.deliveries(), delivery.key()), (1, None));
        delivery.renew().await.expect("it is ours");
        done(delivery).await;
    }
    assert!(queue.poll().await.expect("it works").is_none());
    queue.put("").await.expect("an empty message is one");
    let delivery = next(&queue).await;
    assert!(delivery.payload().is_empty());
    done(delivery).await;
}

async fn comes_back(queues: EngineQueues, returns: Return) {
    let queue = queues.queue("comes.back").await.expect("declared");
    for n in ["first", "second"] {
        queue.put(n).await.expect("put");
    }
    next(&queue).await.nack(Duration::ZERO).await.expect("it is ours");
    let mut delivery = next(&queue).await;
    if returns == Return::Later && text(&delivery) == "second" {
        let first = next(&queue).await;
        done(delivery).await;
        queue.put("second").await.expect("put");
        delivery = first;
    }
    assert_eq!((text(&delivery), delivery.deliveries()), ("first", 2), "before what came later");
    drop(delivery);
    let delivery = next(&queue).await;
    // The one that was dropped goes back in its own time.
    let other = next(&queue).await;
    let mut all = [(text(&delivery), delivery.deliveries()), (text(&other), other.deliveries())];
    all.sort();
    assert_eq!(all, [("first", 3), ("second", 1)]);
    done(delivery).await;
    done(other).await;
}

async fn delayed(queues: EngineQueues) {
    let queue = queues.queue("later").await.expect("declared");
    queue.put("failed").await.expect("put");
    let (delivery, began) = (next(&queue).await, Instant::now());
    delivery.nack(DELAY).await.expect("it is ours");
    queue.put("other").await.expect("put");
    let other = next(&queue).await;
    let delivery = next(&queue).await;
    let both = BTreeSet::from([text(&other), text(&delivery)]);
    assert_eq!(both, BTreeSet::from(["failed", "other"]));
    // The engine's clock may be coarser than ours.
    assert!(began.elapsed() > DELAY * 9 / 10, "it came after {:?}", began.elapsed());
    done(other).await;
    done(delivery).await;
}

async fn leases(queues: EngineQueues) {
    let queue = queues.queue_with("leases", EngineConfig::new().lease(LEASE)).await.expect("declared");
    queue.put("slow").await.expect("put");
    let lost = next(&queue).await;
    let delivery = next(&queue).await;
    // On a busy machine the second lease may have run out on the way, too.
    assert_eq!(text(&delivery), "slow");
    assert!(delivery.deliveries() >= 2, "delivery {}", delivery.deliveries());
    // Where the end is watched on both sides, ours is later by the way of the message.
    tokio::time::sleep(LEASE).await;
    assert!(matches!(lost.renew().await, Err(EngineError::LeaseLost)));
    assert!(matches!(lost.ack().await, Err(EngineError::LeaseLost)));
    // And it may run out once more.
    let mut delivery = Some(delivery);
    while let Some(late) = delivery.take() {
        match late.ack().await {
            Ok(()) => {}
            Err(EngineError::LeaseLost) => delivery = Some(next(&queue).await),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(queue.poll().await.expect("it works").is_none());
}

async fn let_go(queues: EngineQueues) {
    let config = EngineConfig::new().lease(LEASE);
    let queue = queues.queue_with("let-go", config).await.expect("declared");
    queue.put("left").await.expect("put");
    let delivery = next(&queue).await;
    // Where there is no runtime only the end of the lease can give it back.
    std::thread::spawn(move || drop(delivery)).join().expect("it is dropped");
    let delivery = next(&queue).await;
    assert_eq!((text(&delivery), delivery.deliveries()), ("left", 2));
    done(delivery).await;
}

async fn dead_letters(queues: EngineQueues) {
    let queue =
        queues.queue_with("poison", EngineConfig::new().deliveries_max(Some(2))).await.expect("declared");
    let dead = queues.queue("poison.dead").await.expect("declared");
    queue.put("poison").await.expect("put");
    for n in 1..=2 {
        let delivery = next(&queue).await;
        assert_eq!((text(&delivery), delivery.deliveries()), ("poison", n));
        delivery.nack(Duration::ZERO).await.expect("it is ours");
    }
    queue.put("good").await.expect("put");
    let delivery = next(&queue).await;
    assert_eq!(text(&delivery), "good");
    done(delivery).await;
    let delivery = loop {
        // Whoever takes buries.
        assert!(queue.poll().await.expect("it works").is_none());
        if let Some(delivery) = dead.get(Duration::from_millis(20)).await.expect("it works") {
            break delivery;
        }
    };
    assert_eq!(text(&delivery), "poison");
    done(delivery).await;
    assert!(dead.poll().await.expect("it works").is_none(), "once");
}

/// What is tried for ever is, also where the engine has a limit of its own.
async fn kept(queues: EngineQueues) {
    let queue = queues.queue("kept.dead").await.expect("declared");
    queue.put("looked at again and again").await.expect("put");
    for n in 1..=25 {
        let delivery = next(&queue).await;
        assert_eq!(delivery.deliveries(), n);
        delivery.nack(Duration::ZERO).await.expect("it is ours");
    }
    done(next(&queue).await).await;
}

async fn given_up(queues: EngineQueues) {
    let queue = queues.queue("given-up").await.expect("declared");
    assert!(queue.get(Duration::from_millis(10)).await.expect("it works").is_none());
    let waiting = tokio::time::timeout(Duration::from_millis(100), queue.get(Duration::MAX));
    assert!(waiting.await.is_err(), "nothing is there");
    queue.put("for whoever stays").await.expect("put");
    // It may have come for the one who has gone.
    let delivery = next(&queue).await;
    assert_eq!(text(&delivery), "for whoever stays");
    done(delivery).await;
}

/// Gets that are given up again and again take nothing out of the queue and wear nothing out.
async fn cancelled(queues: EngineQueues) {
    let config = EngineConfig::new().deliveries_max(Some(2));
    let queue = queues.queue_with("cancelled", config).await.expect("declared");
    let (begin, begun) = tokio::sync::oneshot::channel();
    let putting = tokio::spawn({
        let queue = queue.clone();
        async move {
            begun.await.expect("the test goes on");
            queue.put("for the patient").await.expect("put");
        }
    });
    let (mut begin, mut given_up) = (Some(begin), 0);
    let delivery = loop {
        tokio::select! {
            delivery = queue.get(Duration::MAX) => break delivery.expect("it works").expect("a message"),
            () = tokio::time::sleep(Duration::from_millis(10)) => given_up += 1,
        }
        if given_up == 20 {
            begin.take().expect("once").send(()).expect("it waits");
        }
    };
    assert_eq!((text(&delivery), delivery.deliveries()), ("for the patient", 1));
    done(delivery).await;
    putting.await.expect("it was put");
}

async fn crowd(queues: EngineQueues) {
    let queue = queues.queue("crowd").await.expect("declared");
    let mut workers = JoinSet::new();
    for _ in 0..4 {
        let queue = queue.clone();
        workers.spawn(async move {
            let mut seen = Vec::new();
            loop {
                let delivery = next(&queue).await;
                if text(&delivery) == "end" {
                    done(delivery).await;
                    return seen;
                }
                seen.push(text(&delivery).to_owned());
                done(delivery).await;
            }
        });
    }
    let sent: Vec<String> = (0..40).map(|n| format!("{n:02}")).collect();
    for payload in &sent {
        queue.put(payload.clone()).await.expect("put");
    }
    for _ in 0..4 {
        queue.put("end").await.expect("put");
    }
    let mut seen = workers.join_all().await.concat();
    seen.sort();
    assert_eq!(seen, sent, "each once");
}

async fn woken(queues: EngineQueues) {
    let queue = queues.queue("woken").await.expect("declared");
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { next(&queue).await }
    });
    tokio::task::yield_now().await;
    queue.put("at last").await.expect("put");
    let delivery = waiting.await.expect("it was woken");
    assert_eq!(text(&delivery), "at last");
    done(delivery).await;
}

/// True when the engine can; else the message was refused.
async fn can(queue: &EngineQueue, is_able: bool, what: &str, message: Message) -> bool {
    match queue.put(message).await {
        Ok(_) => assert!(is_able, "{what} must be refused"),
        Err(EngineError::Unsupported { what: told }) => assert!(!is_able && told == what, "{what}: {told}"),
        Err(error) => panic!("{what}: {error:?}"),
    }
    is_able
}

async fn keys(queues: EngineQueues) {
    let queue = queues.queue("keys").await.expect("declared");
    let of = |key: &'static str, payload: &'static str| Message::new(payload).key(key);
    if !can(&queue, queues.abilities().keys, "keys", of("ann", "a1")).await {
        return;
    }
    for (key, payload) in [("ann", "a2"), ("bob", "b1")] {
        queue.put(of(key, payload)).await.expect("put");
    }
    let first = next(&queue).await;
    let other = next(&queue).await;
    assert_eq!((text(&first), text(&other)), ("a1", "b1"));
    assert_eq!(first.key().map(|key| &key[..]), Some(&b"ann"[..]));
    assert!(queue.poll().await.expect("it works").is_none(), "one of a key at a time");
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { next(&queue).await }
    });
    first.nack(Duration::ZERO).await.expect("it is ours");
    let first = waiting.await.expect("it was woken");
    assert_eq!(text(&first), "a1", "nothing overtakes within a key");
    done(first).await;
    let second = next(&queue).await;
    assert_eq!(text(&second), "a2");
    done(second).await;
    done(other).await;
}

async fn priorities(queues: EngineQueues) {
    let queue = queues.queue("priorities").await.expect("declared");
    if !can(&queue, queues.abilities().priorities, "priorities", Message::new("low").priority(1)).await {
        return;
    }
    queue.put("middle").await.expect("put");
    queue.put(Message::new("high").priority(9)).await.expect("put");
    for expected in ["high", "middle", "low"] {
        let delivery = next(&queue).await;
        assert_eq!(text(&delivery), expected);
        done(delivery).await;
    }
}

async fn delays(queues: EngineQueues) {
    let queue = queues.queue("delays").await.expect("declared");
    let began = Instant::now();
    if !can(&queue, queues.abilities().delays, "delays", Message::new("later").delay(DELAY)).await {
        return;
    }
    let delivery = next(&queue).await;
    assert!(began.elapsed() > DELAY * 9 / 10, "it came after {:?}", began.elapsed());
    done(delivery).await;
}

async fn expiry(queues: EngineQueues) {
    let queue = queues.queue("expiry").await.expect("declared");
    let brief = Message::new("brief").expires_after(Duration::from_millis(1));
    if !can(&queue, queues.abilities().expiry, "expiry", brief).await {
        return;
    }
    queue.put(Message::new("long").expires_after(Duration::MAX)).await.expect("put");
    // The time that must have passed by then, whatever the machine does.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let delivery = next(&queue).await;
    assert_eq!(text(&delivery), "long");
    done(delivery).await;
    assert!(queue.poll().await.expect("it works").is_none());
}

async fn names(queues: EngineQueues) {
    let queue = queues.queue("names").await.expect("declared");
    let named = |payload: &'static str| Message::new(payload).name(&b"order \xff 7"[..]);
    if !can(&queue, queues.abilities().names, "names of messages", named("first")).await {
        return;
    }
    let delivery = next(&queue).await;
    done(delivery).await;
    let receipt = queue.put(named("again")).await.expect("put");
    assert!(receipt.is_repeated);
    queue.put(Message::new("other").name("order 8")).await.expect("put");
    let delivery = next(&queue).await;
    assert_eq!(text(&delivery), "other", "a repetition stores nothing");
    done(delivery).await;
}

async fn limits(queues: EngineQueues) {
    let queue =
        queues.queue_with("limits", EngineConfig::new().message_bytes_max(10)).await.expect("declared");
    let error = queue.put("eleven bytes").await.expect_err("too large");
    assert!(matches!(error, EngineError::TooLarge { size: 12, limit: 10 }), "{error:?}");
    let error = queue.put(Message::new("x").name("")).await.expect_err("no name");
    assert!(matches!(error, EngineError::Label { field: "name" }), "{error:?}");
    for (name, config) in [
        ("Orders", EngineConfig::new()),
        ("", EngineConfig::new()),
        ("limits", EngineConfig::new().lease(Duration::ZERO)),
        ("limits", EngineConfig::new().lease(Duration::MAX)),
        ("limits", EngineConfig::new().deliveries_max(Some(0))),
    ] {
        let error = queues.queue_with(name, config).await.expect_err("no such settings");
        assert!(matches!(error, EngineError::Declare(_)), "{error:?}");
    }
}

async fn notified(queues: EngineQueues) {
    let queue = queues.queue("notified").await.expect("declared");
    let (send, mut receive) = mpsc::channel(8);
    let guard = queue.notify(move |delivery: EngineDelivery| {
        let send = send.clone();
        async move {
            let payload = text(&delivery).to_owned();
            assert!(payload != "trips" || delivery.deliveries() > 1, "a handler that trips over a message");
            done(delivery).await;
            send.send(payload).await.expect("the test waits");
        }
    });
    for payload in ["one", "trips", "two"] {
        queue.put(payload).await.expect("put");
        assert_eq!(receive.recv().await.as_deref(), Some(payload));
    }
    drop(guard);
}

/// Leaves messages behind.
pub(super) async fn before_the_crash(queues: &EngineQueues) {
    let queue = queues.queue("crash").await.expect("declared");
    for n in 0..20 {
        queue.put(n.to_string()).await.expect("put");
    }
    done(next(&queue).await).await;
}

/// Finds them.
pub(super) async fn after_the_crash(queues: &EngineQueues) {
    let (mut n, mut again) = (1, 0);
    while n < 20 {
        let queue = match queues.queue("crash").await {
            Ok(queue) => queue,
            // The server has just been started.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match queue.get(PATIENCE).await {
            Ok(Some(delivery)) if text(&delivery) == n.to_string() => {
                done(delivery).await;
                n += 1;
            }
            // An acknowledgement may be lost where the engine does not confirm it; others may pass what comes back.
            Ok(Some(delivery))
                if text(&delivery) == "0" && queues.abilities().durability != Durability::Memory =>
            {
                again += 1;
                assert!(again == 1, "it was acknowledged again");
                done(delivery).await;
            }
            Ok(delivery) => panic!("instead of {n} came {delivery:?}"),
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
}

const DELAY: Duration = Duration::from_millis(300);
/// It does not end when a wait of a second does that began with it: RabbitMQ counts once more what crosses with the end of a wait.
const LEASE: Duration = Duration::from_millis(1500);
