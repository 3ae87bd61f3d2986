//! Puts that wait for the consumer, and messages that are put as one: the persistent cells of the three axes.

use std::time::Duration;

use quorate::queue::{PutError, Queue, QueueConfig, Queues, Settled};
use quorate_journal::{FaultyStorage, MemoryStorage};

use super::{Outcome, config, open, take_all, texts};

#[tokio::test]
async fn s06_a_put_that_waits_returns_when_its_message_was_acknowledged_and_not_when_it_was_stored() -> Outcome
{
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue("orders").await?;
    let putting = |queue: &Queue, text: &'static str| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.put_and_wait(text).await })
    };
    let waiting = putting(&queue, "an order");
    let delivery = queue.get(Duration::MAX).await?.ok_or("it waits for ever")?;
    // Stored, and delivered: neither is what it waits for.
    assert!(!waiting.is_finished());
    delivery.nack(Duration::ZERO)?;
    let delivery = queue.get(Duration::MAX).await?.ok_or("it waits for ever")?;
    assert!(!waiting.is_finished());
    delivery.ack().await?;
    assert_eq!(waiting.await??, Settled::Acknowledged);

    // Given up is told apart.
    let strict = queues.queue_with("strict", QueueConfig::new().deliveries_max(Some(2))).await?;
    let waiting = putting(&strict, "nobody can do this");
    for _ in 0..2 {
        strict.get(Duration::MAX).await?.ok_or("it waits for ever")?.nack(Duration::ZERO)?;
    }
    assert_eq!(waiting.await??, Settled::GivenUp);

    // Whoever does not wait any more leaves the message where it is.
    let waiting = putting(&queue, "patience ended");
    let delivery = queue.get(Duration::MAX).await?.ok_or("it waits for ever")?;
    waiting.abort();
    assert!(waiting.await.is_err());
    drop(delivery);
    assert_eq!(texts(&take_all(&queue)), ["patience ended"]);

    // The message outlives the queues; the waiting does not.
    let waiting = putting(&queue, "for the next life");
    let held = queue.get(Duration::MAX).await?.ok_or("it waits for ever")?;
    let held = [held, queue.get(Duration::MAX).await?.ok_or("it waits for ever")?];
    assert!(!waiting.is_finished());
    queues.close().await;
    assert_eq!(waiting.await??, Settled::Closed);
    drop(held);
    drop((strict, queue, queues));
    let queues = open(storage);
    let queue = queues.queue("orders").await?;
    assert_eq!(texts(&take_all(&queue)), ["patience ended", "for the next life"]);
    Ok(())
}

#[tokio::test]
async fn s06_messages_that_are_put_together_lie_together_whoever_else_puts() -> Outcome {
    let queues = open(MemoryStorage::new());
    let queue = queues.queue_with("parts", QueueConfig::new().messages_max(1_000)).await?;
    let putters: Vec<_> = (0..8)
        .map(|putter| {
            let queue = queue.clone();
            tokio::spawn(async move {
                for turn in 0..10 {
                    let parts = (0..5).map(|part| format!("{putter} {turn} {part}"));
                    let receipts = queue.put_all(parts).await.expect("there is room");
                    assert!(receipts.windows(2).all(|pair| pair[0].id.as_u64() + 1 == pair[1].id.as_u64()));
                }
            })
        })
        .collect();
    for putter in putters {
        putter.await?;
    }
    let all = texts(&take_all(&queue));
    assert_eq!(all.len(), 400);
    for parts in all.chunks(5) {
        let (whose, _) = parts[0].rsplit_once(' ').ok_or("three words")?;
        assert!((0..5).all(|part| parts[part] == format!("{whose} {part}")), "{parts:?}");
    }
    assert!(queue.put_all(Vec::<String>::new()).await?.is_empty());
    // What never fits is said at once.
    let refused = queue.put_all((0..1_001).map(|_| "x")).await;
    assert!(matches!(refused, Err(PutError::TooMany { count: 1_001, messages: 1_000, .. })), "{refused:?}");
    Ok(())
}

#[test]
fn s06_of_messages_that_are_put_together_a_crash_leaves_all_or_none() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut outcomes = [0, 0];
    for crash_at in 0.. {
        let disk = FaultyStorage::new(crash_at);
        disk.crash_at(crash_at);
        let mut told = false;
        runtime.block_on(async {
            let Ok(queues) = Queues::open(disk.clone(), config()) else { return };
            if let Ok(queue) = queues.queue("parts").await {
                told = queue.put_all(["one", "two", "three"]).await.is_ok();
            }
            queues.close().await;
        });
        let is_cut = disk.is_crashed();
        let disk = disk.crash();
        runtime.block_on(async {
            let queues = open(disk);
            let queue = queues.queue("parts").await.expect("a good disk");
            let found = texts(&take_all(&queue));
            assert!(found.is_empty() || found == ["one", "two", "three"], "crash at {crash_at}: {found:?}");
            assert!(!told || !found.is_empty(), "crash at {crash_at}: lost although told");
            outcomes[usize::from(!found.is_empty())] += 1;
        });
        if !is_cut {
            break;
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}
