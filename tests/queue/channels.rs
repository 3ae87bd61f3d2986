//! What channels between nodes do with messages that their queues, disks and connections do not take at once, or not at all.

use std::time::Duration;

use quorate::node::Limits;
use quorate::queue::{
    DeadReason, ManagerError, Message, PutError, QueueConfig, QueueManager, Queues, UNDELIVERED, WhenFull,
};
use quorate::{Node, NodeId};
use quorate_journal::{AppendError, Config, Faults, FaultyStorage, FileStorage, MemoryStorage, Storage};
use tests::{memory, until, within};

use super::managers::{Site, drain};
use super::{Outcome, config};

/// Node 1, which knows where node 2 is.
async fn two(there: impl Storage) -> (Site, Site) {
    let net = memory();
    let sender = Site::open(&net, 1, MemoryStorage::new()).await;
    let receiver = Site::open(&net, 2, there).await;
    sender.node.add_address(NodeId(2), receiver.address());
    (sender, receiver)
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_a_name_belongs_to_the_queue_at_the_end_whatever_else_goes_the_same_way() -> Outcome {
    let (sender, receiver) = two(MemoryStorage::new()).await;
    let (billing, shipping) = (receiver.queue("billing").await, receiver.queue("shipping").await);
    let small = QueueConfig::new().message_bytes_max(3);
    for name in ["small", "smaller"] {
        receiver.queues.queue_with(name, small.clone()).await?;
    }
    for name in ["billing", "shipping", "small", "smaller"] {
        let remote = sender.manager.remote(NodeId(2), name).await?;
        remote.put(Message::new(name).name("order 7")).await?;
        if !name.starts_with("small") {
            remote.put(Message::new(name).name("order 7")).await?;
            remote.put("end").await?;
        }
    }
    assert_eq!(drain(&billing, 2).await, ["billing", "end"]);
    assert_eq!(drain(&shipping, 2).await, ["shipping", "end"]);
    let undelivered = receiver.queue(UNDELIVERED).await;
    assert_eq!(drain(&undelivered, 2).await, ["small", "smaller"], "both, under one name");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_more_than_one_append_holds_is_stored_in_parts_and_what_never_fits_is_counted() -> Outcome {
    let net = memory();
    let large = Config::new(1).segment_bytes(256 << 10).zero_fill_bytes(4 << 10);
    let sender = Site::on(net.node(1).await, Queues::open(MemoryStorage::new(), large)?).await;
    let receiver = Site::open(&net, 2, MemoryStorage::new()).await;
    let work = receiver.queue("work").await;
    let remote = sender.manager.remote(NodeId(2), "work").await?;
    // Some 40 KB at once, for segments of 16 KiB.
    let payload = |number: usize| format!("{number:01000}");
    for number in 0..40 {
        remote.put(payload(number)).await?;
        if number == 20 {
            remote.put(vec![b'x'; 20_000]).await?;
        }
    }
    sender.node.add_address(NodeId(2), receiver.address());
    assert_eq!(drain(&work, 40).await, (0..40).map(payload).collect::<Vec<_>>());
    assert_eq!(receiver.manager.dropped(), 1, "no queue of that node can hold it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_a_queue_that_rejects_holds_up_its_channel_too_and_keeps_the_order() -> Outcome {
    let (sender, receiver) = two(MemoryStorage::new()).await;
    let strict = QueueConfig::new().messages_max(3).when_full(WhenFull::Reject);
    let work = receiver.queues.queue_with("work", strict).await?;
    let remote = sender.manager.remote(NodeId(2), "work").await?;
    for number in numbers(20) {
        remote.put(number).await?;
    }
    until(|| work.stats().messages == 3).await;
    assert_eq!(drain(&work, 20).await, numbers(20));
    assert_eq!(receiver.queue(UNDELIVERED).await.stats().messages, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_a_disk_that_is_full_in_the_middle_of_a_batch_doubles_nothing() -> Outcome {
    let disk = FaultyStorage::new(1);
    let (sender, receiver) = two(disk.clone()).await;
    let small = QueueConfig::new().message_bytes_max(1000).deliveries_max(None);
    let work = receiver.queues.queue_with("work", small).await?;
    let probe = receiver.queue("probe").await;
    let remote = sender.manager.remote(NodeId(2), "work").await?;
    let mut used = 0;
    for name in disk.list()? {
        used += disk.content(&name).map_or(0, |content| content.len() as u64);
    }
    // Room for some of them; the first is too large, so they cannot be stored as one.
    disk.set_faults(Faults { capacity_bytes: Some(used + 8_000), ..Faults::default() });
    let payload = |number: usize| format!("{number:0900}");
    let mut unit = sender.queues.work();
    unit.send(&remote, vec![b'x'; 1001]);
    for number in 0..30 {
        unit.send(&remote, payload(number));
        if number % 10 == 8 {
            // Whatever fits into the sender's segments.
            std::mem::replace(&mut unit, sender.queues.work()).commit().await?;
        }
    }
    unit.commit().await?;
    until(|| work.stats().messages >= 3).await;
    within(async {
        while !matches!(probe.put(vec![0; 900]).await, Err(PutError::Journal(AppendError::DiskFull))) {}
    })
    .await;
    disk.set_faults(Faults::default());
    assert_eq!(drain(&work, 30).await, (0..30).map(payload).collect::<Vec<_>>());
    assert_eq!(drain(&receiver.queue(UNDELIVERED).await, 1).await[0].len(), 1001);
    assert!(work.poll()?.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_what_is_for_nodes_that_nobody_knows_makes_no_queues() -> Outcome {
    let (sender, receiver) = two(MemoryStorage::new()).await;
    for invented in 100..110 {
        sender.manager.route(NodeId(invented), NodeId(2));
        sender.manager.remote(NodeId(invented), "work").await?.put(invented.to_string()).await?;
    }
    let undelivered = receiver.queue(UNDELIVERED).await;
    let expected: Vec<_> = (100..110).map(|number| number.to_string()).collect();
    assert_eq!(drain(&undelivered, 10).await, expected);
    let names = receiver.queues.names();
    assert!(!names.iter().any(|name| name.starts_with("outgoing.10")), "{names:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_batches_fit_what_connections_carry_and_what_cannot_travel_is_refused_at_once() -> Outcome {
    let net = memory();
    let node = async |id| -> Node {
        let mut limits = Limits::default();
        limits.connection.message_bytes_max = 2048;
        net.builder(id).limits(limits).start().await.expect("good limits")
    };
    let queues = || Queues::open(MemoryStorage::new(), config()).expect("a good disk");
    let sender = Site::on(node(1).await, queues()).await;
    let receiver = Site::on(node(2).await, queues()).await;
    let work = receiver.queue("work").await;
    let remote = sender.manager.remote(NodeId(2), "work").await?;
    let payload = |number: usize| format!("{number:0900}");
    for number in 0..20 {
        remote.put(payload(number)).await?;
    }
    let large = remote.put(vec![0; 2000]).await;
    assert!(matches!(large, Err(PutError::TooLarge { limit: ..2048, .. })), "{large:?}");
    sender.node.add_address(NodeId(2), receiver.address());
    assert_eq!(drain(&work, 20).await, (0..20).map(payload).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_a_manager_that_nobody_holds_stops_also_while_a_message_waits_for_room() -> Outcome {
    let (sender, receiver) = two(MemoryStorage::new()).await;
    let work = receiver.queues.queue_with("work", QueueConfig::new().messages_max(1)).await?;
    let remote = sender.manager.remote(NodeId(2), "work").await?;
    remote.put("0").await?;
    remote.put("1").await?;
    until(|| work.stats().messages == 1).await;
    let Site { node, queues, manager } = receiver;
    drop(manager);
    let _again = within(async {
        loop {
            match QueueManager::start(&node, &queues).await {
                Err(ManagerError::Taken) => tokio::time::sleep(Duration::from_millis(1)).await,
                started => return started,
            }
        }
    })
    .await?;
    assert_eq!(drain(&work, 2).await, ["0", "1"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_what_the_next_node_cannot_take_is_a_dead_letter_here_and_what_is_behind_it_goes_on() -> Outcome {
    let net = memory();
    let sender = Site::open(&net, 1, MemoryStorage::new()).await;
    let mut limits = Limits::default();
    limits.connection.message_bytes_max = 2048;
    let small = net.builder(2).limits(limits).start().await?;
    let receiver = Site::on(small, Queues::open(MemoryStorage::new(), config())?).await;
    let work = receiver.queue("work").await;
    let remote = sender.manager.remote(NodeId(2), "work").await?;
    let large = |number: usize| format!("{number:03000}");
    for number in 0..20 {
        remote.put(number.to_string()).await?;
        if number % 7 == 0 {
            remote.put(large(number)).await?;
        }
    }
    sender.node.add_address(NodeId(2), receiver.address());
    assert_eq!(drain(&work, 20).await, numbers(20));
    let undelivered = sender.queue(UNDELIVERED).await;
    for number in [0, 7, 14] {
        let letter = undelivered.get(Duration::from_secs(60)).await?.ok_or("it is there")?;
        assert_eq!(letter.payload(), large(number).as_bytes());
        let story = letter.dead_letter().ok_or("it has a story")?;
        assert_eq!((story.queue.as_str(), story.reason), ("outgoing.2", DeadReason::TooLarge));
        letter.ack().await?;
    }
    until(|| sender.queues.names().len() == 2 && receiver.manager.dropped() == 0).await;
    while sender.manager.waiting().await > 0 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_a_directory_that_was_restored_from_a_copy_loses_nothing_that_is_put_afterwards_and_tells()
-> Outcome {
    let (place, copy) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let net = memory();
    let receiver = Site::open(&net, 2, MemoryStorage::new()).await;
    let work = receiver.queue("work").await;
    let sender = async || -> Result<Site, Box<dyn std::error::Error>> {
        let site = Site::open(&net, 1, FileStorage::open(place.path())?).await;
        site.node.add_address(NodeId(2), receiver.address());
        Ok(site)
    };
    let send = async |site: &Site, texts: &[&str]| -> Outcome {
        let remote = site.manager.remote(NodeId(2), "work").await?;
        for text in texts {
            remote.put((*text).to_owned()).await?;
        }
        assert_eq!(drain(&work, texts.len()).await, texts);
        while site.manager.waiting().await > 0 {
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    let copied = |from: &std::path::Path, to: &std::path::Path| -> Outcome {
        for old in std::fs::read_dir(to)? {
            std::fs::remove_file(old?.path())?;
        }
        for file in std::fs::read_dir(from)? {
            let file = file?;
            std::fs::copy(file.path(), to.join(file.file_name()))?;
        }
        Ok(())
    };
    let site = sender().await?;
    send(&site, &["0", "1", "2"]).await?;
    site.close().await;
    copied(place.path(), copy.path())?;
    // The other future, of two lives.
    for texts in [["3", "4"], ["5", "6"]] {
        let site = sender().await?;
        send(&site, &texts).await?;
        assert_eq!(site.manager.forks(), 0);
        site.close().await;
    }
    copied(copy.path(), place.path())?;
    let site = sender().await?;
    send(&site, &["three", "four"]).await?;
    assert_eq!(site.manager.forks(), 1, "it shows");
    send(&site, &["five"]).await?;
    site.close().await;
    let site = sender().await?;
    send(&site, &["six"]).await?;
    assert_eq!(site.manager.forks(), 0, "it is over");
    Ok(())
}
