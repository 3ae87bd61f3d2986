//! Full queues, full disks, failing disks, and the length of the journal.

use std::time::Duration;

use quorate::queue::{PutError, QueueConfig, QueueError, Queues, QueuesOpenError, WhenFull};
use quorate_journal::{
    AppendError, Config, Faults, FaultyStorage, Journal, MemoryStorage, OpenError, Record, Storage,
};

use super::{Outcome, config, open, take_all, texts};

#[tokio::test]
async fn q02_full_queue_rejects_or_waits_as_its_policy_says() -> Outcome {
    let queues = open(MemoryStorage::new());
    let settings = QueueConfig::new().messages_max(2).when_full(WhenFull::Reject);
    let queue = queues.queue_with("q", settings.clone()).await?;
    queue.put("1").await?;
    queue.put("2").await?;
    let full = queue.put("3").await;
    let Err(error @ PutError::Full { messages: 2, bytes: 2 }) = full else { panic!("{full:?}") };
    assert!(error.is_retryable());

    let queue = queues.queue_with("q", settings.when_full(WhenFull::Wait)).await?;
    let waiting: Vec<_> = ["3", "4", "5"]
        .into_iter()
        .map(|text| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.put(text).await })
        })
        .collect();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let delivery = queue.get(Duration::MAX).await?.ok_or("somebody waits to put it")?;
        assert!(queue.stats().messages <= 2);
        seen.push(String::from_utf8_lossy(delivery.payload()).into_owned());
        delivery.ack().await?;
    }
    assert_eq!(seen[..2], ["1", "2"]);
    for put in waiting {
        put.await??;
    }
    Ok(())
}

#[tokio::test]
async fn q02_bytes_are_limited_and_a_message_that_can_never_fit_is_refused() -> Outcome {
    let queues = open(MemoryStorage::new());
    let settings = QueueConfig::new().bytes_max(1000).message_bytes_max(600).when_full(WhenFull::Reject);
    let queue = queues.queue_with("q", settings).await?;
    let outcome = queue.put(vec![0; 601]).await;
    assert!(matches!(outcome, Err(PutError::TooLarge { size: 601, limit: 600 })), "{outcome:?}");
    queue.put(vec![0; 600]).await?;
    let outcome = queue.put(vec![0; 401]).await;
    assert!(matches!(outcome, Err(PutError::Full { messages: 1, bytes: 600 })), "{outcome:?}");
    queue.put(vec![0; 400]).await?;
    queue.poll()?.ok_or("the first")?.ack().await?;
    queue.put(vec![0; 600]).await?;
    Ok(())
}

#[tokio::test]
async fn q02_full_disk_fails_the_put_and_spares_the_queue() -> Outcome {
    let disk = FaultyStorage::with_faults(1, Faults { capacity_bytes: Some(60 << 10), ..Faults::default() });
    let queues = open(disk.clone());
    let queue = queues.queue("q").await?;
    let mut stored = 0;
    let error = loop {
        match queue.put(vec![stored as u8; 1000]).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PutError::Journal(AppendError::DiskFull)), "{error:?}");
    assert!(error.is_retryable());
    disk.set_faults(Faults::default());
    queue.put(vec![stored as u8; 1000]).await?;
    let held = take_all(&queue);
    let numbers: Vec<_> = held.iter().map(|delivery| delivery.payload()[0] as i32).collect();
    assert_eq!(numbers, (0..=stored).collect::<Vec<_>>(), "what failed is not there, the rest is");
    drop(held);
    queues.close().await;
    let queues = open(disk);
    assert_eq!(take_all(&queues.queue("q").await?).len() as i32, stored + 1);
    Ok(())
}

#[tokio::test]
async fn q02_failed_sync_fails_everyone_who_waits_with_a_typed_error() -> Outcome {
    let disk = FaultyStorage::new(1);
    let queues = open(disk.clone());
    let queue = queues.queue_with("q", QueueConfig::new().messages_max(1)).await?;
    let empty = queues.queue("empty").await?;
    queue.put("kept").await?;
    let getter = tokio::spawn({
        let empty = empty.clone();
        async move { empty.get(Duration::MAX).await.map(|delivery| delivery.is_some()) }
    });
    let putter = tokio::spawn({
        let queue = queue.clone();
        async move { queue.put("no room").await }
    });
    tokio::task::yield_now().await;
    disk.fail_sync(disk.syncs());
    let put = empty.put("unknown").await;
    assert!(matches!(put, Err(PutError::Journal(AppendError::Poisoned(_)))), "{put:?}");
    let got = getter.await?;
    assert!(matches!(got, Err(QueueError::Journal(AppendError::Poisoned(_)))), "{got:?}");
    let put = putter.await?;
    assert!(matches!(put, Err(PutError::Journal(AppendError::Poisoned(_)))), "{put:?}");
    assert!(matches!(queue.poll(), Err(QueueError::Journal(_))));
    let left = queues.close().await;
    assert!(left.failure.is_some());
    let queues = open(disk.crash());
    assert_eq!(texts(&take_all(&queues.queue("q").await?)), ["kept"]);
    Ok(())
}

#[tokio::test]
async fn q09_journal_stays_short_also_when_one_old_message_is_never_acknowledged() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue("q").await?;
    let old = queue.put("old").await?;
    let held = queue.poll()?.ok_or("the old one")?;
    let mut longest = 0;
    for _ in 0..400 {
        let puts: Vec<_> = (0..64)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.put("young").await })
            })
            .collect();
        for put in puts {
            put.await??;
        }
        let acks: Vec<_> = take_all(&queue).into_iter().map(|d| tokio::spawn(d.ack())).collect();
        for ack in acks {
            ack.await??;
        }
        longest = longest.max(storage.list()?.len());
    }
    // 400 * 64 messages of some 150 bytes each are 230 segments.
    assert!(longest < 20, "{longest} files");
    drop(held);
    queues.close().await;
    let queues = open(storage);
    let queue = queues.queue("q").await?;
    let delivery = queue.poll()?.ok_or("the old one")?;
    assert_eq!((delivery.id(), &delivery.payload()[..], delivery.deliveries()), (old.id, &b"old"[..], 2));
    delivery.ack().await?;
    assert!(queue.poll()?.is_none());
    Ok(())
}

#[tokio::test]
async fn q09_journal_stays_short_when_a_message_is_delivered_again_and_again() -> Outcome {
    let storage = MemoryStorage::new();
    let queues = open(storage.clone());
    let queue = queues.queue_with("q", QueueConfig::new().deliveries_max(None)).await?;
    let receipt = queue.put("poison").await?;
    let other = queues.queue("other").await?;
    let mut longest = 0;
    for _ in 0..200 {
        for _ in 0..64 {
            queue.poll()?.ok_or("it came back")?.nack(Duration::ZERO)?;
        }
        // Lets the journal catch up with the counts of deliveries, which nobody waits for.
        other.put("tick").await?;
        longest = longest.max(storage.list()?.len());
    }
    // 200 * 64 counts of some 48 bytes are 37 segments.
    assert!(longest < 20, "{longest} files");
    queues.close().await;
    let queues = open(storage);
    let queue = queues.queue_with("q", QueueConfig::new().deliveries_max(None)).await?;
    let delivery = queue.poll()?.ok_or("it is kept")?;
    assert_eq!((delivery.id(), delivery.deliveries()), (receipt.id, 200 * 64 + 1));
    Ok(())
}

/// The record that says which numbers were given out may be the one for which there is no room: for some size of the
/// messages it is.
#[tokio::test]
async fn q09_no_number_is_given_again_when_the_disk_is_full_as_the_journal_is_cut() -> Outcome {
    for size in 0..SIZES {
        let disk = FaultyStorage::new(1);
        let queues = open(disk.clone());
        let queue = queues.queue("q").await?;
        // The names, one segment, the next one's header, and no record in it.
        let names = disk.content("queues.snapshot").ok_or("the names")?.len() as u64;
        let capacity_bytes = Some(names + (16 << 10) + (4 << 10) + 8);
        disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
        let mut last = 0;
        while let Ok(receipt) = queue.put(vec![0; size]).await {
            last = receipt.id.as_u64();
            if queue.poll()?.ok_or("it is there")?.ack().await.is_err() {
                break;
            }
        }
        queues.close().await;
        disk.set_faults(Faults::default());
        let queues = open(disk);
        let next = queues.queue("q").await?.put("next").await?.id.as_u64();
        assert!(next > last, "{next} after {last}, with messages of {size} bytes");
    }
    Ok(())
}

/// How many sizes are tried.
const SIZES: usize = 100;

#[tokio::test]
async fn directory_that_is_not_the_queues_is_refused() -> Outcome {
    let storage = MemoryStorage::new();
    let (journal, _) = Journal::open(storage.clone(), config())?;
    journal.append(vec![Record::new(77, "something else")]).await?;
    journal.close().await;
    let outcome = Queues::open(storage.clone(), config()).map(drop);
    assert!(matches!(outcome, Err(QueuesOpenError::Record { .. })), "{outcome:?}");
    let outcome = Queues::open(storage, Config::new(2)).map(drop);
    assert!(
        matches!(outcome, Err(QueuesOpenError::Journal(OpenError::Owner { found: 1, expected: 2, .. }))),
        "{outcome:?}"
    );
    Ok(())
}
