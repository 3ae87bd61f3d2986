//! The broker over queues: what crosses it, edits while it runs, what it rejects, and crashes.

use std::time::Duration;

use quorate::queue::broker::{Broker, EditError, Rejected, RuleBase};
use quorate::queue::{Message, Queue, QueueConfig, Queues, WhenFull};
use quorate_journal::{Config, FaultyStorage, MemoryStorage};
use tests::until;

use super::{Outcome, config, open, take_all, texts};

const RULES: &str = r#"{
    "rules": [
        { "name": "orders", "when": [{ "field": "/kind", "test": { "is": "order" } }],
          "change": [
              { "look_up": { "table": "customers", "key": "/customer", "to": "/name" } },
              { "remove": { "field": "/kind" } },
              { "split": { "field": "/article" } } ],
          "to": [{ "queue": { "name": "shelf", "format": "csv" } }, { "publish": { "topic": "$key" } }] } ],
    "subscriptions": [{ "topics": "shop/*", "queue": "shops" }],
    "tables": { "customers": { "7": "ann" } } }"#;

fn rules(json: &str) -> RuleBase {
    RuleBase::parse(json).expect("rules")
}

/// The next messages, acknowledged.
async fn drain(queue: &Queue, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let delivery = queue.get(Duration::from_secs(60)).await.expect("open").expect("it arrives");
        texts.push(String::from_utf8_lossy(delivery.payload()).into_owned());
        delivery.ack().await.expect("a good disk");
    }
    texts
}

#[tokio::test]
async fn q07_messages_are_matched_enriched_split_converted_routed_and_published() -> Outcome {
    let queues = open(MemoryStorage::new());
    let broker = Broker::on(&queues, "in").start().await?;
    assert_eq!(broker.edit(0, rules(RULES)).await?.revision, 1);
    let input = queues.queue("in").await?;
    let order = r#"{"kind": "order", "customer": 7, "article": ["apples", "pears"]}"#;
    input.put(Message::new(order).key("shop/eu").priority(7)).await?;
    let (shelf, shops) = (queues.queue("shelf").await?, queues.queue("shops").await?);
    let delivery = shelf.get(Duration::from_secs(60)).await?.ok_or("it arrives")?;
    assert_eq!(delivery.payload(), "article,customer,name\napples,7,ann\n");
    assert_eq!((delivery.key().map(|key| &key[..]), delivery.priority()), (Some(&b"shop/eu"[..]), 7));
    delivery.ack().await?;
    assert_eq!(drain(&shelf, 1).await, ["article,customer,name\npears,7,ann\n"]);
    assert_eq!(drain(&shops, 2).await[1], r#"{"article":"pears","customer":7,"name":"ann"}"#);
    until(|| broker.stats().taken == 1).await;
    assert_eq!((broker.stats().sent, broker.stats().rejected, input.stats().messages), (4, 0, 0));
    broker.stop().await;
    queues.close().await;
    Ok(())
}

#[tokio::test]
async fn q07_what_nobody_can_work_on_is_rejected_with_the_reason_and_may_be_tried_after_an_edit() -> Outcome {
    let queues = open(MemoryStorage::new());
    let small = QueueConfig::new().message_bytes_max(40);
    let shelf = queues.queue_with("shelf", small).await?;
    let broker = Broker::on(&queues, "in").start().await?;
    broker.edit(0, rules(RULES)).await?;
    let input = queues.queue("in").await?;
    let long = format!(r#"{{"kind": "order", "customer": 7, "article": ["{}"]}}"#, "x".repeat(40));
    let poison = [
        &b"\xff{"[..],
        br#"{"kind": "bill"}"#,
        br#"{"kind": "order", "customer": 8, "article": []}"#,
        long.as_bytes(),
    ];
    for (n, payload) in poison.into_iter().enumerate() {
        input.put(Message::new(payload.to_vec()).key(format!("k/{n}"))).await?;
    }
    let good = r#"{"kind": "order", "customer": 7, "article": ["figs"]}"#;
    input.put(Message::new(good).key("k/good")).await?;
    // The good one behind them is not held up.
    assert_eq!(drain(&shelf, 1).await, ["article,customer,name\nfigs,7,ann\n"]);
    until(|| broker.stats().rejected == 4 && broker.stats().taken == 5).await;
    let rejected: Vec<_> = take_all(broker.rejected())
        .iter()
        .map(|delivery| Rejected::read(delivery.payload()).expect("the broker's own"))
        .collect();
    for (rejected, (payload, reason)) in rejected.iter().zip(poison.iter().zip([
        "no rule matches, and it is not json: expected value at line 1 column 1",
        "no rule matches",
        r#"rule "orders", change 1: the table "customers" has no "8""#,
        "cannot be put: a message cannot be put: message of 69 bytes exceeds the limit of 40",
    ])) {
        assert_eq!((&rejected.payload[..], &rejected.reason[..], rejected.revision), (*payload, reason, 1));
    }
    // Now bills are wanted.
    let mut base = (*broker.rules().await).clone();
    base.rules.extend(rules(r#"{"rules": [{"name": "bills", "to": [{"queue": {"name": "bills"}}]}]}"#).rules);
    let edited = broker.edit(1, base.clone()).await?;
    assert_eq!(edited.revision, 2);
    assert!(matches!(broker.edit(1, base).await, Err(EditError::Stale { current: 2 })));
    assert_eq!(broker.retry_rejected(10).await?, 4);
    assert_eq!(drain(&queues.queue("bills").await?, 1).await, [r#"{"kind":"bill"}"#]);
    until(|| broker.stats().taken == 9).await;
    assert_eq!(broker.rejected().stats().messages, 3);
    broker.stop().await;
    queues.close().await;
    Ok(())
}

#[tokio::test]
async fn q07_an_edit_counts_from_one_message_on_and_is_there_after_a_restart() -> Outcome {
    let to = |queue: &str| {
        let rule = format!(
            r#"{{"name": "all", "read": "text", "to": [{{"queue": {{"name": "{queue}", "format": "text"}}}}]}}"#
        );
        rules(&format!(r#"{{"rules": [{rule}]}}"#))
    };
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let broker = Broker::on(&queues, "in").start().await?;
    broker.edit(0, to("old")).await?;
    let input = queues.queue("in").await?;
    let putting = tokio::spawn({
        let input = input.clone();
        async move {
            for n in 0..200 {
                input.put(format!("{n:03}")).await.expect("a good disk");
            }
        }
    });
    until(|| broker.stats().taken > 20).await;
    let edited = broker.edit(1, to("new")).await?;
    putting.await?;
    until(|| broker.stats().taken == 200).await;
    let (old, new) = (queues.queue("old").await?, queues.queue("new").await?);
    let (before, after) = (texts(&take_all(&old)), texts(&take_all(&new)));
    let all: Vec<String> = (0..200).map(|n| format!("{n:03}")).collect();
    assert_eq!([before.clone(), after].concat(), all, "each once, in order, by one of the two");
    assert!(before.len() > 20 && edited.after.is_some());
    broker.stop().await;
    queues.close().await;

    let queues = open(storage);
    let broker = Broker::on(&queues, "in").start().await?;
    assert_eq!((broker.rules().await.revision, broker.rules().await.rules[0].name.as_str()), (2, "all"));
    let wrong = rules(r#"{"rules": [{"name": "x", "read": "xml"}]}"#);
    assert!(matches!(broker.edit(2, wrong).await, Err(EditError::Rules(_))));
    assert_eq!(broker.rules().await.revision, 2, "as they were");
    broker.stop().await;
    queues.close().await;
    Ok(())
}

#[test]
fn q07_after_a_crash_at_every_disk_operation_every_message_has_left_exactly_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut cut_by_place = [0, 0];
    for crash_at in 0.. {
        let disk = FaultyStorage::new(crash_at);
        disk.crash_at(crash_at);
        let mut told = 0;
        runtime.block_on(async {
            let Ok(queues) = Queues::open(disk.clone(), config()) else { return };
            let work = async {
                let broker = Broker::on(&queues, "in").start().await.ok()?;
                broker.edit(0, rules(RULES)).await.ok()?;
                let input = queues.queue("in").await.ok()?;
                for payload in [r#"{"kind": "order", "customer": 7, "article": ["a", "b"]}"#, "poison"] {
                    input.put(Message::new(payload).key("shop/x")).await.ok()?;
                    told += 1;
                }
                // The disk dies or the work is done.
                until(|| broker.stats().taken >= 2 || disk.is_crashed()).await;
                broker.stop().await;
                Some(())
            };
            // A broker whose disk has died ends, or waits for ever to be told.
            let _ = tokio::time::timeout(Duration::from_secs(30), work).await;
            queues.close().await;
        });
        let is_cut = disk.is_crashed();
        let disk = disk.crash();
        runtime.block_on(async {
            let queues = open(disk);
            let broker = Broker::on(&queues, "in").start().await.expect("stored rules are good");
            if broker.rules().await.revision == 0 {
                broker.edit(0, rules(RULES)).await.expect("a good disk");
            }
            let input = queues.queue("in").await.expect("a good disk");
            until(|| input.stats().messages == 0).await;
            broker.stop().await;
            let mut found = Vec::new();
            for name in ["shelf", "shops"] {
                let queue = queues.queue(name).await.expect("a good disk");
                found.push(drain(&queue, queue.stats().messages).await.len());
            }
            found.push(broker.rejected().stats().messages);
            let is_there = |count: usize| {
                count <= 2 && found == [2 * count.min(1), 2 * count.min(1), count.saturating_sub(1)]
            };
            assert!((told..=2).any(is_there), "crash at {crash_at}: {told} told, found {found:?}");
            cut_by_place[usize::from(told == 2)] += 1;
        });
        if !is_cut {
            break;
        }
    }
    assert!(cut_by_place[0] > 0 && cut_by_place[1] > 1, "{cut_by_place:?}");
}

#[tokio::test]
async fn q07_a_target_that_is_full_holds_up_the_broker_which_buries_nothing_and_takes_an_edit() -> Outcome {
    let queues = open(MemoryStorage::new());
    let strict = QueueConfig::new().messages_max(1).when_full(WhenFull::Reject);
    queues.queue_with("full", strict).await?;
    let broker = Broker::on(&queues, "in").start().await?;
    let to = |queue: &str| {
        let target = format!(r#""to": [{{ "queue": {{ "name": "{queue}" }} }}]"#);
        rules(&format!(r#"{{ "rules": [{{ "name": "all", {target} }}] }}"#))
    };
    broker.edit(0, to("full")).await?;
    let (input, dead) = (queues.queue("in").await?, queues.queue("in.dead").await?);
    for _ in 0..5 {
        input.put("{}").await?;
    }
    until(|| broker.stats().repeated > 20).await;
    broker.edit(1, to("other")).await?;
    drain(&queues.queue("other").await?, 4).await;
    until(|| broker.stats().taken == 5).await;
    assert_eq!((input.stats().messages, dead.stats().messages, broker.stats().rejected), (0, 0, 0));
    broker.stop().await;
    Ok(())
}

#[tokio::test]
async fn q07_what_is_rejected_may_be_as_large_as_anything_that_was_put() -> Outcome {
    let queues = Queues::open(MemoryStorage::new(), Config::new(1).segment_bytes(4 << 20))?;
    let broker = Broker::on(&queues, "in").start().await?;
    let payload = vec![0xFF; 700_000];
    queues.queue("in").await?.put(payload.clone()).await?;
    let delivery = broker.rejected().get(Duration::from_secs(60)).await?.ok_or("it arrives")?;
    assert_eq!(Rejected::read(delivery.payload()).ok_or("it is one")?.payload, payload);
    broker.stop().await;
    Ok(())
}
