//! Put, get, poll, notify; leases, redelivery, dead letters. Time stands still unless everyone sleeps.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use quorate::queue::{DeclareError, Message, QueueConfig, QueueError, Queues, QueuesOpenError};
use quorate::{Node, NodeId};
use quorate_journal::{FaultyStorage, FileStorage, MemoryStorage, OpenError};
use tokio::sync::mpsc;

use super::{Outcome, open, take_all, texts};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn q01_all_four_combinations_of_running_and_not_running_deliver() -> Outcome {
    let storage = MemoryStorage::new();
    // Both run; the receiver waits before there is anything.
    let queues = open(storage.clone());
    let queue = queues.queue("orders").await?;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.get(Duration::MAX).await }
    });
    queue.put("both run").await?;
    let delivery = waiting.await??.ok_or("it waits for ever")?;
    assert_eq!(delivery.payload(), "both run");
    delivery.ack().await?;
    // The sender runs, the receiver does not; then neither does.
    queue.put("receiver absent").await?;
    assert_eq!(queues.close().await.messages, 1);
    assert_eq!(open(storage.clone()).close().await.messages, 1);
    // The receiver runs, the sender does not.
    let queues = open(storage);
    let queue = queues.queue("orders").await?;
    let delivery = queue.poll()?.ok_or("it is there")?;
    assert_eq!((&delivery.payload()[..], delivery.deliveries()), (&b"receiver absent"[..], 1));
    delivery.ack().await?;
    assert!(queue.poll()?.is_none());
    assert!(queue.get(Duration::ZERO).await?.is_none());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_message_of_a_consumer_that_hangs_goes_to_one_that_waited_all_along() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue("q").await?;
    // Each of them began to wait when there was no message, and so no lease that could end.
    let (send, mut receive) = mpsc::channel(16);
    for _ in 0..3 {
        let (queue, send) = (queue.clone(), send.clone());
        tokio::spawn(async move {
            while let Ok(Some(delivery)) = queue.get(Duration::MAX).await {
                send.send(delivery.deliveries()).await.expect("the test listens");
                // Neither acknowledges nor comes back, while the others wait.
                std::future::pending::<()>().await;
            }
        });
    }
    tokio::task::yield_now().await;
    queue.put("work").await?;
    for deliveries in 1..=3 {
        let next = tokio::time::timeout(60 * SECOND, receive.recv()).await;
        assert_eq!(next, Ok(Some(deliveries)), "the lease of consumer {} ended after 30 s", deliveries - 1);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_whoever_waits_learns_of_a_lease_that_was_cut_short_also_when_another_left() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue("q").await?;
    queue.put("work").await?;
    let held = queue.poll()?.ok_or("it is there")?;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.get(Duration::MAX).await.map(|delivery| delivery.is_some()) }
    });
    let leaving = tokio::spawn({
        let queue = queue.clone();
        async move { queue.get(SECOND).await.map(|delivery| delivery.is_some()) }
    });
    tokio::task::yield_now().await;
    held.renew(5 * SECOND)?;
    assert!(!leaving.await??, "nothing came for it");
    assert!(tokio::time::timeout(6 * SECOND, waiting).await???, "the lease ends after 5 s, not after 30 s");
    Ok(())
}

#[tokio::test]
async fn q01_notify_calls_the_handler_for_what_is_there_and_what_comes_until_its_guard_goes() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue("news").await?;
    queue.put("old").await?;
    let (send, mut receive) = mpsc::channel(16);
    let guard = queue.notify(move |delivery| {
        let send = send.clone();
        async move {
            let text = String::from_utf8_lossy(delivery.payload()).into_owned();
            delivery.ack().await.expect("a good disk");
            send.send(text).await.expect("the test listens");
        }
    });
    queue.put("new").await?;
    assert_eq!(receive.recv().await.as_deref(), Some("old"));
    assert_eq!(receive.recv().await.as_deref(), Some("new"));
    drop(guard);
    assert_eq!(receive.recv().await, None, "the handler is gone");
    queue.put("unheard").await?;
    assert_eq!(texts(&take_all(&queue)), ["unheard"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_messages_come_in_the_order_in_which_they_were_put_also_after_they_came_back() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue("q").await?;
    for text in ["a", "b", "c", "d"] {
        queue.put(text).await?;
    }
    let mut held = take_all(&queue);
    assert_eq!(texts(&held), ["a", "b", "c", "d"]);
    // One nacked with a delay, one nacked at once, one dropped, one kept.
    let kept = held.pop().ok_or("four")?;
    drop(held.pop());
    held.pop().ok_or("four")?.nack(Duration::ZERO)?;
    held.pop().ok_or("four")?.nack(5 * SECOND)?;
    let held = take_all(&queue);
    assert_eq!(texts(&held), ["b", "c"], "old places, in order");
    assert!(held.iter().all(|delivery| delivery.deliveries() == 2));
    drop(held);
    tokio::time::advance(5 * SECOND).await;
    assert_eq!(texts(&take_all(&queue)), ["a", "b", "c"]);
    kept.ack().await?;
    assert_eq!(queue.stats().messages, 3);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_expired_lease_redelivers_with_its_count_and_a_renewed_one_does_not() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("q", QueueConfig::new().lease(10 * SECOND)).await?;
    queue.put("slow").await?;
    queue.put("renewed").await?;
    let slow = queue.poll()?.ok_or("the first")?;
    let renewed = queue.poll()?.ok_or("the second")?;
    renewed.renew(60 * SECOND)?;
    assert!(queue.poll()?.is_none());
    let again = queue.get(30 * SECOND).await?.ok_or("the lease ran out")?;
    assert_eq!((&again.payload()[..], again.deliveries(), again.id()), (&b"slow"[..], 2, slow.id()));
    assert!(matches!(slow.ack().await, Err(QueueError::LeaseLost)), "it is someone else's now");
    assert!(queue.get(5 * SECOND).await?.is_none());
    again.ack().await?;
    renewed.ack().await?;
    assert_eq!(queue.stats().messages, 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_late_acknowledgement_counts_while_nobody_else_got_the_message() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("q", QueueConfig::new().lease(SECOND)).await?;
    queue.put("late").await?;
    let late = queue.poll()?.ok_or("it is there")?;
    tokio::time::advance(5 * SECOND).await;
    assert!(late.renew(SECOND).is_ok(), "nobody looked at the clock yet");
    tokio::time::advance(5 * SECOND).await;
    late.ack().await?;
    assert!(queue.poll()?.is_none());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_message_that_nobody_can_work_on_goes_to_the_dead_letters_with_its_story() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let settings = QueueConfig::new().deliveries_max(Some(3)).lease(SECOND);
    let queue = queues.queue_with("work", settings).await?;
    let receipt = queue.put("poison").await?;
    queue.put("fine").await?;
    drop(queue.poll()?);
    queue.poll()?.ok_or("second time")?.nack(Duration::ZERO)?;
    let third = queue.poll()?.ok_or("third time")?;
    assert_eq!(third.deliveries(), 3);
    let fine = queue.get(SECOND / 2).await?.ok_or("a poisoned message holds up nobody")?;
    assert_eq!(fine.payload(), "fine");
    fine.ack().await?;
    assert!(queue.get(2 * SECOND).await?.is_none(), "the third lease ran out, too");
    let dead = queues.queue("work.dead").await?;
    let delivery = dead.get(Duration::MAX).await?.ok_or("it is there")?;
    assert_eq!(delivery.payload(), "poison");
    let story = delivery.dead_letter().ok_or("it has one")?;
    assert_eq!((story.queue.as_str(), story.id, story.deliveries), ("work", receipt.id, 3));
    assert_eq!(queue.stats().buried, 1);
    drop((third, delivery));
    queues.close().await;

    let queues = open(storage);
    assert_eq!(queues.names(), ["work", "work.dead"]);
    assert!(queues.queue("work").await?.poll()?.is_none());
    let dead = queues.queue("work.dead").await?;
    let delivery = dead.poll()?.ok_or("it survived")?;
    assert_eq!(delivery.dead_letter().map(|story| story.deliveries), Some(3));
    delivery.ack().await?;
    Ok(())
}

#[tokio::test]
async fn q03_deliveries_are_counted_across_a_restart_and_what_was_held_is_ready_again() -> Outcome {
    let storage = MemoryStorage::new();
    for restart in 1..=3 {
        let queues = open(storage.clone());
        let queue = queues.queue("q").await?;
        if restart == 1 {
            queue.put("m").await?;
        }
        let delivery = queue.poll()?.ok_or("it is ready")?;
        assert_eq!(delivery.deliveries(), restart);
        queues.close().await;
    }
    Ok(())
}

#[tokio::test]
async fn q03_a_delivery_costs_no_sync_and_its_acknowledgement_one() -> Outcome {
    let disk = FaultyStorage::new(1);
    let queues = open(disk.clone());
    let queue = queues.queue("q").await?;
    queue.put_all((0..MESSAGES).map(|number| format!("{number}"))).await?;
    let (before, begun) = (disk.syncs(), Instant::now());
    for _ in 0..MESSAGES {
        queue.poll()?.ok_or("it is ready")?.ack().await?;
    }
    // What was only written is synced every 100 ms, also when nobody asks for it; and a segment may come to its end.
    let aside = begun.elapsed().as_millis() as u64 / 100 + 1 + 3 * disk.files_created();
    let syncs = disk.syncs() - before;
    assert!(syncs <= MESSAGES + aside, "{syncs} syncs");
    queues.close().await;
    Ok(())
}

const MESSAGES: u64 = 200;

#[tokio::test]
async fn q03_a_message_that_kills_each_consumer_is_given_up_also_when_that_shows_after_a_restart() -> Outcome
{
    let storage = MemoryStorage::new();
    for life in 1..=4 {
        let queues = open(storage.clone());
        let queue = queues.queue_with("q", QueueConfig::new().deliveries_max(Some(3))).await?;
        if life == 1 {
            queue.put(Message::new("poison").key("k")).await?;
            queue.put(Message::new("behind it").key("k")).await?;
        }
        let delivery = queue.get(60 * SECOND).await?.ok_or("something is ready")?;
        if life < 4 {
            assert_eq!((&delivery.payload()[..], delivery.deliveries()), (&b"poison"[..], life));
        } else {
            assert_eq!(delivery.payload(), "behind it");
            let dead = take_all(&queues.queue("q.dead").await?);
            assert_eq!(texts(&dead), ["poison"]);
            assert_eq!(dead[0].dead_letter().map(|letter| letter.deliveries), Some(3));
        }
        // It is still held when all ends.
        queues.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q03_competing_consumers_get_each_message_once() -> Outcome {
    let directory = tempfile::tempdir()?;
    let queues = open(FileStorage::open(directory.path())?);
    let queue = queues.queue("work").await?;
    let mut producers = Vec::new();
    for producer in 0..8 {
        let queue = queue.clone();
        producers.push(tokio::spawn(async move {
            for number in 0..50_u32 {
                queue.put(format!("{producer} {number}")).await.expect("a good disk");
            }
        }));
    }
    let (send, mut receive) = mpsc::channel(400);
    let mut consumers = Vec::new();
    for _ in 0..8 {
        let (queue, send) = (queue.clone(), send.clone());
        consumers.push(tokio::spawn(async move {
            while let Ok(Some(delivery)) = queue.get(Duration::MAX).await {
                let text = String::from_utf8_lossy(delivery.payload()).into_owned();
                delivery.ack().await.expect("a good disk");
                send.send(text).await.expect("the test listens");
            }
        }));
    }
    let mut seen = BTreeSet::new();
    for _ in 0..400 {
        assert!(seen.insert(receive.recv().await.ok_or("a consumer died")?), "delivered twice");
    }
    for producer in producers {
        producer.await?;
    }
    assert_eq!((queue.stats().messages, queue.stats().delivered), (0, 400));
    // Closing wakes those that wait for ever.
    queues.close().await;
    for consumer in consumers {
        consumer.await?;
    }
    assert!(matches!(queue.poll(), Err(QueueError::Closed)));
    Ok(())
}

#[tokio::test]
async fn abandoned_put_is_stored_once_and_seen_without_a_restart() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue("q").await?;
    for number in 0..50 {
        // Polled once, then dropped: the message is on its way.
        let put = queue.put(format!("{number:02}"));
        tokio::select! {
            biased;
            outcome = put => drop(outcome?),
            () = std::future::ready(()) => {}
        }
    }
    queue.put("last").await?;
    let held = take_all(&queue);
    assert_eq!(held.len(), 51);
    assert!(texts(&held).is_sorted());
    Ok(())
}

#[tokio::test]
async fn queues_of_a_node_live_in_its_directory_and_belong_to_it() -> Outcome {
    let directory = tempfile::tempdir()?;
    let start = |id, directory: &std::path::Path| Node::builder().id(NodeId(id)).directory(directory).start();
    let node = start(7, &directory.path().join("a")).await?;
    let queues = Queues::on(&node)?;
    queues.queue("q").await?.put("kept").await?;
    let second = Queues::on(&node).map(drop);
    assert!(matches!(second, Err(QueuesOpenError::Journal(OpenError::InUse { .. }))), "{second:?}");
    queues.close().await;
    let queues = Queues::on(&node)?;
    assert_eq!(texts(&take_all(&queues.queue("q").await?)), ["kept"]);
    queues.close().await;
    node.shutdown(SECOND).await;

    std::fs::create_dir(directory.path().join("b"))?;
    std::fs::rename(directory.path().join("a/queues"), directory.path().join("b/queues"))?;
    let other = start(8, &directory.path().join("b")).await?;
    let stolen = Queues::on(&other).map(drop);
    assert!(matches!(stolen, Err(QueuesOpenError::Journal(OpenError::Owner { found: 7, .. }))), "{stolen:?}");
    other.shutdown(SECOND).await;
    let homeless = Node::builder().id(NodeId(9)).start().await?;
    assert!(matches!(Queues::on(&homeless), Err(QueuesOpenError::NoDirectory)));
    homeless.shutdown(SECOND).await;
    Ok(())
}

#[tokio::test]
async fn wrong_names_and_settings_are_refused_by_name() -> Outcome {
    let queues = open(MemoryStorage::new());
    for name in ["", "Orders", "a/b", &"x".repeat(129)] {
        assert!(matches!(queues.queue(name).await, Err(DeclareError::Name { .. })), "{name}");
    }
    let outcome = queues.queue_with("q", QueueConfig::new().messages_max(0)).await;
    assert!(matches!(outcome, Err(DeclareError::Config { field: "messages_max" })), "{outcome:?}");
    assert!(queues.names().is_empty());
    Ok(())
}
