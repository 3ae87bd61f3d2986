//! Units of work, names that are known again, and how safe a message is.

use std::time::Duration;

use quorate::queue::{
    Durability, Message, PutError, Queue, QueueConfig, QueueError, Queues, Settled, WhenFull, WorkError,
};
use quorate_journal::{FaultyStorage, MemoryStorage};
use tests::within;

use super::{Outcome, config, open, take_all, texts};

const SECOND: Duration = Duration::from_secs(1);

async fn two(queues: &Queues) -> (Queue, Queue) {
    (queues.queue("from").await.expect("a good disk"), queues.queue("to").await.expect("a good disk"))
}

#[tokio::test]
async fn q04_a_unit_of_work_is_seen_as_a_whole_when_it_is_committed_and_leaves_no_trace_before() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let (from, to) = two(&queues).await;
    from.put("order").await?;
    let mut work = queues.work();
    work.ack(from.poll()?.ok_or("it is there")?).put(&to, "parcel").set("count", "1");
    assert_eq!((to.stats().messages, queues.state("count")), (0, None));
    drop(work);
    assert_eq!(from.stats().ready, 1, "rolled back");

    let mut work = queues.work();
    work.ack(from.poll()?.ok_or("it came back")?)
        .put(&to, "parcel")
        .put(&to, "bill")
        .set("count", "1")
        .set("gone", "x");
    let receipts = work.commit().await?;
    assert_eq!(receipts.len(), 2);
    let mut work = queues.work();
    work.unset("gone");
    work.commit().await?;
    queues.close().await;

    let queues = open(storage);
    let (from, to) = two(&queues).await;
    assert_eq!(from.stats().messages, 0);
    assert_eq!(texts(&take_all(&to)), ["parcel", "bill"]);
    assert_eq!((queues.state("count").as_deref(), queues.state("gone")), (Some(&b"1"[..]), None));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn q04_a_unit_of_work_that_cannot_be_done_says_why_and_gives_its_messages_back() -> Outcome {
    let queues = open(MemoryStorage::new());
    let strict = QueueConfig::new().messages_max(1).when_full(WhenFull::Reject).lease(SECOND);
    let from = queues.queue_with("from", strict.clone()).await?;
    let to = queues.queue_with("to", strict).await?;
    from.put("order").await?;
    to.put("in the way").await?;
    let mut work = queues.work();
    work.ack(from.poll()?.ok_or("it is there")?).put(&to, "parcel");
    let refused = work.commit().await;
    assert!(matches!(refused, Err(WorkError::Put(PutError::Full { .. }))), "{refused:?}");
    let late = from.poll()?.ok_or("it came back")?;
    tokio::time::advance(2 * SECOND).await;
    let other = from.poll()?.ok_or("the lease ended")?;
    let mut work = queues.work();
    work.ack(late).set("count", "1");
    assert!(matches!(work.commit().await, Err(WorkError::LeaseLost)));
    assert_eq!(queues.state("count"), None);
    let mut work = queues.work();
    work.set("", "no key");
    assert!(matches!(work.commit().await, Err(WorkError::Put(PutError::Label { .. }))));
    let mut work = queues.work();
    work.set("large", vec![0; 65 << 20]);
    assert!(matches!(work.commit().await, Err(WorkError::State { .. })));
    let strangers = open(MemoryStorage::new());
    let mut work = strangers.work();
    work.ack(other);
    assert!(matches!(work.commit().await, Err(WorkError::Foreign)));
    assert_eq!(from.stats().ready, 1);
    Ok(())
}

#[tokio::test]
async fn q04_a_unit_of_work_waits_for_room_where_that_is_the_policy() -> Outcome {
    let queues = open(MemoryStorage::new());
    let to = queues.queue_with("to", QueueConfig::new().messages_max(1)).await?;
    to.put("in the way").await?;
    let mut work = queues.work();
    work.put(&to, "parcel").set("count", "1");
    let waiting = tokio::spawn(work.commit());
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished() && queues.state("count").is_none());
    to.poll()?.ok_or("it is there")?.ack().await?;
    waiting.await??;
    assert_eq!(texts(&take_all(&to)), ["parcel"]);
    Ok(())
}

#[tokio::test]
async fn q04_what_a_unit_of_work_acknowledges_makes_room_for_what_it_puts() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("q", QueueConfig::new().messages_max(1).bytes_max(10)).await?;
    queue.put("first 567").await?;
    let mut work = queues.work();
    work.ack(queue.poll()?.ok_or("it is there")?).put(&queue, "second 78");
    within(work.commit()).await?;
    assert_eq!(texts(&take_all(&queue)), ["second 78"]);
    Ok(())
}

/// Takes the message that is in the way out of a queue.
async fn clear(queue: &Queue) -> Outcome {
    Ok(queue.poll()?.ok_or("it is there")?.ack().await?)
}

#[tokio::test]
async fn q02_whoever_is_woken_for_room_and_does_not_use_it_wakes_the_next() -> Outcome {
    let queues = open(MemoryStorage::new());
    let single = QueueConfig::new().messages_max(1);
    let (one, two) = (queues.queue_with("1", single.clone()).await?, queues.queue_with("2", single).await?);
    let orders = queues.queue_with("orders", QueueConfig::new().lease(Duration::from_millis(1))).await?;
    let put = |queue: &Queue| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.put("second").await })
    };
    // The first one in line cannot be done any more when its turn comes.
    orders.put("order").await?;
    one.put("in the way").await?;
    let mut work = queues.work();
    work.ack(orders.poll()?.ok_or("it is there")?).put(&one, "first");
    let first = tokio::spawn(work.commit());
    tokio::task::yield_now().await;
    let second = put(&one);
    tokio::task::yield_now().await;
    let _other = within(orders.get(Duration::MAX)).await?.ok_or("the lease ended")?;
    clear(&one).await?;
    assert!(matches!(within(first).await?, Err(WorkError::LeaseLost)));
    within(second).await??;

    // It needs room in another queue as well.
    two.put("in the way").await?;
    let mut work = queues.work();
    work.put(&one, "first").put(&two, "first");
    let first = tokio::spawn(work.commit());
    tokio::task::yield_now().await;
    let second = put(&one);
    tokio::task::yield_now().await;
    clear(&one).await?;
    within(second).await??;
    // There is more room now, although nothing has gone.
    queues.queue_with("2", QueueConfig::new().messages_max(2)).await?;
    clear(&one).await?;
    within(first).await??;
    Ok(())
}

#[tokio::test]
async fn q02_a_large_message_that_waits_for_room_keeps_none_from_a_small_one() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("q", QueueConfig::new().bytes_max(100)).await?;
    for _ in 0..5 {
        queue.put([b'o'; 20].to_vec()).await?;
    }
    let put = |size: usize| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.put(vec![b'x'; size]).await })
    };
    let large = [put(90), put(80)];
    tokio::task::yield_now().await;
    let small = [put(10), put(10)];
    tokio::task::yield_now().await;
    clear(&queue).await?;
    for small in small {
        within(small).await??;
    }
    assert!(large.iter().all(|large| !large.is_finished()));
    for _ in 0..6 {
        clear(&queue).await?;
    }
    for large in large {
        clear_all(&queue, &large).await?;
        within(large).await??;
    }
    Ok(())
}

/// Takes what is there until somebody who waits for room has it.
async fn clear_all<T>(queue: &Queue, waiting: &tokio::task::JoinHandle<T>) -> Outcome {
    while !waiting.is_finished() {
        if let Some(there) = queue.poll()? {
            there.ack().await?;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test]
async fn q02_a_queue_that_is_given_more_room_wakes_who_waits_for_it() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("q", QueueConfig::new().messages_max(1)).await?;
    queue.put("in the way").await?;
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.put("next").await })
        })
        .collect();
    tokio::task::yield_now().await;
    queues.queue_with("q", QueueConfig::new().messages_max(10)).await?;
    for waiting in waiting {
        within(waiting).await??;
    }
    Ok(())
}

#[tokio::test]
async fn q04_a_repetition_that_asks_for_more_than_the_first_was_is_refused() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue("q").await?;
    let named = || Message::new("x").name("n");
    let first = queue.put(named().durability(Durability::Memory)).await?;
    let refused = queue.put(named()).await;
    let Err(error @ PutError::InMemory { id }) = refused else { panic!("{refused:?}") };
    assert!(id == first.id && error.is_retryable());
    assert!(queue.put(named().durability(Durability::Memory)).await?.is_repeated);
    clear(&queue).await?;
    assert!(queue.put(named()).await?.is_repeated, "it has done its work");
    Ok(())
}

#[test]
fn q04_a_crash_at_every_disk_operation_leaves_a_unit_of_work_whole_and_it_costs_one_sync() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut outcomes = [0, 0];
    for crash_at in 0.. {
        let disk = FaultyStorage::new(crash_at);
        disk.crash_at(crash_at);
        let mut is_told = false;
        runtime.block_on(async {
            let Ok(queues) = Queues::open(disk.clone(), config()) else { return };
            let transfer = async {
                let from = queues.queue("from").await.ok()?;
                let to = queues.queue("to").await.ok()?;
                from.put("a").await.ok()?;
                let delivery = from.poll().ok()??;
                let mut work = queues.work();
                work.ack(delivery).put(&to, "b").set("state", "c");
                let before = disk.syncs();
                work.commit().await.ok()?;
                assert!(disk.is_crashed() || disk.syncs() - before <= 1, "one sync");
                Some(())
            };
            is_told = transfer.await.is_some();
            queues.close().await;
        });
        let is_cut = disk.is_crashed();
        let disk = disk.crash();
        runtime.block_on(async {
            let queues = open(disk);
            let (from, to) = two(&queues).await;
            let found = (texts(&take_all(&from)), texts(&take_all(&to)), queues.state("state"));
            let is_before = found.1.is_empty() && found.2.is_none();
            let is_after = found == (vec![], vec!["b".to_owned()], Some("c".into()));
            assert!(is_before || is_after, "crash at {crash_at}: {found:?}");
            assert!(is_after || !is_told, "crash at {crash_at}: lost although told");
            outcomes[usize::from(is_after)] += 1;
        });
        if !is_cut {
            break;
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[tokio::test]
async fn q04_a_put_that_is_repeated_under_its_name_stores_nothing_also_at_once_and_after_a_restart() -> Outcome
{
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue_with("q", QueueConfig::new().deduplicate(3)).await?;
    let named = |name: &'static str| Message::new(name).name(name);
    let both = tokio::join!(queue.put(named("a")), queue.put(named("a")));
    let (one, two) = (both.0?, both.1?);
    assert_eq!((one.id, one.is_repeated, two.is_repeated), (two.id, false, true));
    let twice = queue.put_all([named("b"), named("b")]).await?;
    assert_eq!((twice[0].id, twice[0].is_repeated, twice[1].is_repeated), (twice[1].id, false, true));
    let other = queues.queue("other").await?.put(named("a")).await?;
    assert!(!other.is_repeated, "each queue has its own names");
    for delivery in take_all(&queue) {
        delivery.ack().await?;
    }
    assert_eq!(queue.put_and_wait(named("a")).await?, Settled::Unknown, "it has left, and is known");
    queues.close().await;

    let queues = open(storage);
    let queue = queues.queue_with("q", QueueConfig::new().deduplicate(3)).await?;
    assert!(queue.put(named("a")).await?.is_repeated);
    queue.put(named("c")).await?;
    queue.put(named("d")).await?;
    assert!(!queue.put(named("a")).await?.is_repeated, "the last three are c, d and b");
    assert!(queue.put(named("c")).await?.is_repeated);
    assert_eq!(texts(&take_all(&queue)), ["c", "d", "a"]);
    Ok(())
}

#[tokio::test]
async fn q04_names_and_state_survive_that_the_journal_is_cut_behind_them() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue("q").await?;
    let first = queue.put(Message::new("first").name("first")).await?;
    queue.poll()?.ok_or("it is there")?.ack().await?;
    let mut work = queues.work();
    work.set("state", "kept");
    work.commit().await?;
    for _ in 0..100 {
        queue.put_all((0..50).map(|_| "young")).await?;
        let mut work = queues.work();
        for delivery in take_all(&queue) {
            work.ack(delivery);
        }
        work.commit().await?;
    }
    // 5,000 messages of some 150 bytes are 45 segments.
    assert!(quorate_journal::Storage::list(&storage)?.len() < 20);
    queues.close().await;
    let queues = open(storage);
    let queue = queues.queue("q").await?;
    let again = queue.put(Message::new("first").name("first")).await?;
    assert_eq!((again.id, again.is_repeated), (first.id, true));
    assert_eq!(queues.state("state").as_deref(), Some(&b"kept"[..]));
    assert!(queue.put("new").await?.id.as_u64() > 5_000);
    Ok(())
}

#[tokio::test]
async fn q02_a_receipt_says_how_safe_the_message_is_and_a_restart_agrees() -> Outcome {
    let disk = FaultyStorage::new(1);
    let queues = open(disk.clone());
    let queue = queues.queue("q").await?;
    let before = disk.operations();
    let memory = queue.put(Message::new("memory").durability(Durability::Memory)).await?;
    assert_eq!((memory.durability, memory.position), (Durability::Memory, None));
    assert_eq!(disk.operations(), before, "it costs no disk");
    let written = queue.put(Message::new("written").durability(Durability::Written)).await?;
    assert!(written.durability >= Durability::Written && written.position.is_some());
    let synced = queue.put("synced").await?;
    assert_eq!(synced.durability, Durability::Synced);
    assert!(written.position < synced.position);
    let held = take_all(&queue);
    assert_eq!(texts(&held), ["memory", "written", "synced"], "in the order of their puts");
    drop(held);
    queues.close().await;
    let queues = open(disk);
    let queue = queues.queue("q").await?;
    let held = take_all(&queue);
    assert_eq!(texts(&held), ["written", "synced"]);
    assert!(held.iter().all(|delivery| delivery.id() > memory.id));
    Ok(())
}

#[tokio::test]
async fn q02_a_message_in_memory_does_what_the_others_do() -> Outcome {
    let disk = FaultyStorage::new(1);
    let queues = open(disk.clone());
    let queue = queues.queue_with("q", QueueConfig::new().deliveries_max(Some(2))).await?;
    let dead = queues.queue("q.dead").await?;
    let before = disk.operations();
    let light = |text: &'static str| Message::new(text).durability(Durability::Memory);
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.put_and_wait(light("watched")).await }
    });
    queue.get(Duration::MAX).await?.ok_or("it waits for ever")?.ack().await?;
    assert_eq!(waiting.await??, Settled::Acknowledged);
    queue.put(light("poison").name("n")).await?;
    assert!(queue.put(light("poison").name("n")).await?.is_repeated);
    drop(queue.poll()?);
    drop(queue.poll()?);
    assert_eq!(texts(&take_all(&dead)), ["poison"]);
    assert_eq!(disk.operations(), before, "nothing of it costs the disk anything");
    // With something durable in one unit it is done with that.
    queue.put(light("light")).await?;
    let mut work = queues.work();
    work.ack(queue.poll()?.ok_or("it is there")?).put(&queue, "heavy");
    work.commit().await?;
    let held = queue.poll()?.ok_or("it is there")?;
    assert_eq!(held.payload(), "heavy");
    assert!(queue.poll()?.is_none());
    disk.fail_sync(disk.syncs());
    let failed = held.ack().await;
    assert!(matches!(failed, Err(QueueError::Journal(_))), "{failed:?}");
    Ok(())
}
