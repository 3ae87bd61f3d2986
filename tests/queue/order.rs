//! What a message asks for: its key, its priority, its time; and looking into a queue, emptying it, going back in it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate::queue::{
    DeadReason, DeclareError, Durability, Message, PutError, Queue, QueueConfig, QueueError, Settled,
    Standing, Start, WhenExpired,
};
use quorate_journal::MemoryStorage;
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{Outcome, open, take_all, texts};

const SECOND: Duration = Duration::from_secs(1);

fn payloads(queue: &Queue, start: Start) -> Vec<String> {
    let views = queue.browse(start, 1_000).expect("an open queue");
    views.iter().map(|view| String::from_utf8_lossy(&view.payload).into_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn q03_a_poisoned_message_delays_its_key_and_no_other_and_nothing_overtakes_within_a_key() -> Outcome {
    let queues = open(MemoryStorage::new());
    let settings = QueueConfig::new().deliveries_max(Some(3)).lease(10 * SECOND);
    let queue = queues.queue_with("q", settings).await?;
    for text in ["ann 1", "ann 2", "bob 1", "ann 3", "bob 2"] {
        queue.put(Message::new(text).key(&text.as_bytes()[..3])).await?;
    }
    queue.put("nobody's").await?;
    let held = take_all(&queue);
    assert_eq!(texts(&held), ["ann 1", "bob 1", "nobody's"], "one of each key at a time");
    let [poison, bob, free] = <[_; 3]>::try_from(held).map_err(|_| "three")?;
    free.ack().await?;
    bob.ack().await?;
    let bob = queue.poll()?.ok_or("bob goes on")?;
    assert_eq!(bob.payload(), "bob 2");
    // Ann's first fails again and again: at once, later, by a consumer that hangs.
    poison.nack(Duration::ZERO)?;
    queue.poll()?.ok_or("ann 1 again")?.nack(5 * SECOND)?;
    assert!(queue.poll()?.is_none(), "what waits for its delay is not overtaken");
    let hanging = queue.get(6 * SECOND).await?.ok_or("its delay is over")?;
    assert_eq!((&hanging.payload()[..], hanging.deliveries()), (&b"ann 1"[..], 3));
    bob.ack().await?;
    // Nobody else has a timer: the clock does not run ahead of the disk.
    let next = queue.get(Duration::MAX).await?.ok_or("the lease ends, and it is given up")?;
    assert_eq!((&next.payload()[..], next.key().map(|key| &key[..])), (&b"ann 2"[..], Some(&b"ann"[..])));
    assert!(queue.poll()?.is_none());
    next.ack().await?;
    assert_eq!(texts(&take_all(&queue)), ["ann 3"]);
    assert_eq!(payloads(&queues.queue("q.dead").await?, Start::First), ["ann 1"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_competing_consumers_that_fail_at_random_see_each_key_in_its_order() -> Outcome {
    let queues = open(MemoryStorage::new());
    let settings = QueueConfig::new().deliveries_max(None).lease(SECOND);
    let queue = queues.queue_with("q", settings).await?;
    for number in 0..200_u32 {
        queue.put(Message::new(number.to_string()).key(vec![number as u8 % 7])).await?;
    }
    // The last one of each key that anybody was given.
    let last = Arc::new(Mutex::new(vec![None; 7]));
    let (send, mut receive) = tokio::sync::mpsc::channel(200);
    for consumer in 0..6 {
        let (queue, send, last) = (queue.clone(), send.clone(), last.clone());
        let mut chance = Xoshiro256PlusPlus::seed_from_u64(consumer);
        tokio::spawn(async move {
            while let Ok(Some(delivery)) = queue.get(Duration::MAX).await {
                let key = delivery.key().map(|key| usize::from(key[0])).expect("all have one");
                let number: u32 = String::from_utf8_lossy(delivery.payload()).parse().expect("a number");
                if let Some(last) = last.lock().expect("nobody panics")[key].replace(number) {
                    assert!(number == last || number == last + 7, "{number} after {last}");
                }
                match chance.next_u64() % 5 {
                    0 => drop(delivery),
                    // The lease may be over: then it comes back by itself.
                    1 => drop(delivery.nack(SECOND / 2)),
                    2 => tokio::time::sleep(3 * SECOND).await,
                    _ => {
                        if delivery.ack().await.is_ok() {
                            send.send(number).await.expect("the test listens");
                        }
                    }
                }
            }
        });
    }
    drop(send);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let number = receive.recv().await.ok_or("a consumer found something wrong")?;
        assert!(seen.insert(number), "{number} was acknowledged twice");
    }
    assert_eq!(queue.stats().messages, 0);
    Ok(())
}

#[tokio::test]
async fn q03_priorities_go_first_and_a_key_counts_as_its_first_message() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue("q").await?;
    queue.put("usual").await?;
    queue.put(Message::new("urgent").priority(9)).await?;
    queue.put(Message::new("idle").priority(0)).await?;
    queue.put(Message::new("first of ann").key("ann").priority(1)).await?;
    queue.put(Message::new("urgent of ann").key("ann").priority(9)).await?;
    queue.put(Message::new("as urgent").priority(9)).await?;
    queues.close().await;
    let queues = open(storage);
    let queue = queues.queue("q").await?;
    let held = take_all(&queue);
    assert_eq!(texts(&held), ["urgent", "as urgent", "usual", "first of ann", "idle"]);
    assert_eq!(held.iter().map(|delivery| delivery.priority()).collect::<Vec<_>>(), [9, 9, 4, 1, 0]);
    for delivery in held {
        delivery.ack().await?;
    }
    assert_eq!(texts(&take_all(&queue)), ["urgent of ann"]);
    Ok(())
}

#[tokio::test]
async fn q03_what_expires_is_dropped_and_makes_room_also_when_nobody_gets() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("q", QueueConfig::new().messages_max(2)).await?;
    let brief = |text: &'static str| Message::new(text).expires_after(SECOND / 5);
    let before = Instant::now();
    queue.put(brief("gone")).await?;
    let held = queue.poll()?.ok_or("it is there")?;
    queue.put(brief("never seen")).await?;
    queue.put("waits for room").await?;
    assert!(before.elapsed() >= SECOND / 5, "there was room at once");
    held.ack().await?;
    assert_eq!(texts(&take_all(&queue)), ["waits for room"], "who has it may finish, nobody else gets it");
    assert_eq!(queue.stats().expired, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_what_expires_is_buried_where_that_is_asked_for() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("q", QueueConfig::new().when_expired(WhenExpired::Bury)).await?;
    let dead = queues.queue("q.dead").await?;
    let settled = tokio::spawn({
        let queue = queue.clone();
        async move { queue.put_and_wait(Message::new("late").expires_after(10 * SECOND)).await }
    });
    // The clock stands still as long as somebody runs.
    while queue.stats().messages == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(11 * SECOND).await;
    assert!(queue.poll()?.is_none());
    assert_eq!(settled.await??, Settled::Expired);
    let delivery = dead.get(Duration::MAX).await?.ok_or("it was buried")?;
    let story = delivery.dead_letter().ok_or("it has one")?;
    assert_eq!((story.queue.as_str(), story.reason), ("q", DeadReason::Expired));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_a_delayed_put_comes_when_it_is_due_also_after_a_restart() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue("q").await?;
    queue.put(Message::new("in a minute").delay(60 * SECOND)).await?;
    queue.put(Message::new("in an hour").delay(3600 * SECOND)).await?;
    queue.put("now").await?;
    assert_eq!(texts(&take_all(&queue)), ["now"]);
    let before = tokio::time::Instant::now();
    let delivery = queue.get(Duration::MAX).await?.ok_or("it waits for ever")?;
    assert_eq!(delivery.payload(), "now", "it was dropped, and is there at once");
    delivery.ack().await?;
    let delivery = queue.get(Duration::MAX).await?.ok_or("it waits for ever")?;
    assert_eq!(delivery.payload(), "in a minute");
    assert!(before.elapsed() >= 60 * SECOND);
    delivery.ack().await?;
    queues.close().await;
    let queue = open(storage).queue("q").await?;
    assert!(queue.poll()?.is_none(), "the restart does not hurry it");
    assert_eq!(queue.browse(Start::First, 9)?[0].standing, Standing::Delayed);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_a_consumer_has_as_many_messages_as_it_asked_for_and_not_more() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue("q").await?;
    queue.put_all((0..10).map(|number| number.to_string())).await?;
    let mut consumer = queue.consumer(3);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(consumer.next(SECOND).await?.ok_or("there are ten")?);
    }
    assert_eq!(queue.stats().ready, 7);
    assert!(consumer.next(SECOND).await?.is_none(), "three are out");
    held.remove(0).ack().await?;
    let fourth = consumer.next(SECOND).await?.ok_or("one came back")?;
    assert_eq!(fourth.payload(), "3");
    drop((held, fourth));
    assert_eq!(queue.stats().ready, 9);
    let many = queue.get_many(5, Duration::ZERO).await?;
    assert_eq!(texts(&many), ["1", "2", "3", "4", "5"]);
    Ok(())
}

#[tokio::test]
async fn q03_browsing_takes_nothing_and_a_purge_leaves_nothing_also_after_a_restart() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue("q").await?;
    let receipts = queue.put_all(["a", "b", "c", "d"]).await?;
    let held = queue.poll()?.ok_or("a")?;
    assert_eq!(payloads(&queue, Start::First), ["a", "b", "c", "d"]);
    assert_eq!(payloads(&queue, Start::At(receipts[2].id)), ["c", "d"]);
    let page = queue.browse(Start::First, 2)?;
    assert_eq!((page[0].standing, page[1].standing, page.len()), (Standing::Delivered, Standing::Ready, 2));
    assert_eq!((queue.stats().ready, page[0].deliveries), (3, 1));
    queue.purge().await?;
    assert!(matches!(held.ack().await, Err(QueueError::LeaseLost)));
    assert_eq!((queue.stats().messages, queue.stats().bytes, queue.stats().purged), (0, 0, 4));
    queue.put("e").await?;
    queues.close().await;
    let queue = open(storage).queue("q").await?;
    assert_eq!(payloads(&queue, Start::First), ["e"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q03_what_is_retained_can_be_read_again_and_is_delivered_again_after_a_seek_also_after_a_restart()
-> Outcome {
    let storage = MemoryStorage::new();
    let settings = QueueConfig::new().retain(100, Duration::from_secs(3600));
    let queues = open(storage.clone());
    let queue = queues.queue_with("q", settings.clone()).await?;
    let receipts = queue.put_all((0..10).map(|number| number.to_string())).await?;
    for delivery in take_all(&queue) {
        delivery.ack().await?;
    }
    assert_eq!((queue.stats().messages, queue.stats().kept), (0, 10));
    queues.close().await;

    let queues = open(storage.clone());
    let queue = queues.queue_with("q", settings.clone()).await?;
    assert!(queue.poll()?.is_none(), "kept is not waiting");
    assert_eq!(payloads(&queue, Start::At(receipts[7].id)), ["7", "8", "9"]);
    queue.seek(Start::At(receipts[8].id)).await?;
    assert_eq!(texts(&take_all(&queue)), ["8", "9"]);
    // By time: what was put from now on.
    tokio::time::advance(60 * SECOND).await;
    let later = queue.put("later").await?;
    let since = queue.browse(Start::At(later.id), 1)?[0].put_at - 30 * SECOND;
    assert_eq!(payloads(&queue, Start::Since(since)), ["later"]);
    queue.seek(Start::Since(since)).await?;
    assert_eq!(texts(&take_all(&queue)), ["later"]);
    queue.seek(Start::First).await?;
    assert_eq!(queue.stats().ready, 11);
    queue.seek(Start::End).await?;
    queues.close().await;

    let queues = open(storage.clone());
    let queue = queues.queue_with("q", settings).await?;
    assert_eq!((queue.stats().messages, queue.stats().kept), (0, 11));
    // Too many are trimmed, sooner or later, and so is everything when nothing is to be retained.
    let queue = queues.queue_with("q", QueueConfig::new().retain(4, Duration::from_secs(3600))).await?;
    queue.put("one more").await?;
    queue.poll()?.ok_or("it is there")?.ack().await?;
    queues.close().await;
    let queue = open(storage).queue("q").await?;
    assert_eq!(payloads(&queue, Start::First), ["8", "9", "later", "one more"]);
    Ok(())
}

#[tokio::test]
async fn q03_what_is_retained_is_trimmed_in_all_queues_of_a_unit_of_work_and_behind_a_seek() -> Outcome {
    let queues = open(MemoryStorage::new());
    let settings = QueueConfig::new().retain(2, Duration::from_secs(3600));
    let one = queues.queue_with("one", settings.clone()).await?;
    let two = queues.queue_with("two", settings).await?;
    for _ in 0..10 {
        let mut work = queues.work();
        for queue in [&one, &two] {
            queue.put("x").await?;
            work.ack(queue.poll()?.ok_or("it is there")?);
        }
        work.commit().await?;
    }
    tests::until(|| one.stats().kept <= 2 && two.stats().kept <= 2).await;
    two.put_all((0..10).map(|_| "passed over")).await?;
    two.seek(Start::End).await?;
    tests::until(|| two.stats().kept <= 2).await;
    Ok(())
}

#[tokio::test]
async fn q03_wrong_keys_and_names_are_refused() -> Outcome {
    let disk = MemoryStorage::new();
    let queues = open(disk.clone());
    // The one for its dead letters would have a name that is too long.
    let long = queues.queue(&"q".repeat(124)).await;
    assert!(matches!(long, Err(DeclareError::Name { .. })), "{long:?}");
    queues.queue(&"q".repeat(123)).await?;
    queues.close().await;
    let queue = open(disk).queue("q").await?;
    for message in [
        Message::new("x").key(vec![0; 256]),
        Message::new("x").name(vec![0; 256]),
        Message::new("x").name(Vec::new()),
    ] {
        let refused = queue.put(message).await;
        assert!(matches!(refused, Err(PutError::Label { .. })), "{refused:?}");
    }
    let receipt = queue.put(Message::new("x").key(vec![0; 255]).name(vec![1; 255])).await?;
    assert_eq!(receipt.durability, Durability::Synced);
    Ok(())
}
