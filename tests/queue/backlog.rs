//! Backlogs that are longer than what is kept in memory.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use quorate::queue::{Message, Queue, QueueConfig, Queues, Start};
use quorate_journal::{Config, FaultyStorage, FileStorage, MemoryStorage};

use super::Outcome;

/// What is far in the backlog is known by its place in the journal only: it comes in the same order, with the same bytes,
/// also after a restart and after others were acknowledged in any order.
#[tokio::test]
async fn q09_a_long_backlog_keeps_its_order_its_bytes_and_its_acknowledgements_across_restarts() -> Outcome {
    let storage = MemoryStorage::new();
    let config = || Config::new(1).segment_bytes(256 << 10).zero_fill_bytes(0);
    let mut queues = Queues::open(storage.clone(), config())?;
    let mut queue = queues.queue("work").await?;
    let text = |number: u64| format!("{number} {}", "x".repeat(number as usize % 90));
    let mut expected = BTreeSet::new();
    for chunk in 0..60_u64 {
        let messages = (chunk * 100..chunk * 100 + 100).map(|number| {
            let message = Message::new(text(number)).priority(if number.is_multiple_of(7) { 6 } else { 4 });
            // Some with more than that is known of plain ones.
            let message =
                if number.is_multiple_of(11) { message.name(format!("name {number}")) } else { message };
            if number.is_multiple_of(13) { message.key(format!("key {}", number % 5)) } else { message }
        });
        queue.put_all(messages).await?;
    }
    for number in 0..6_000_u64 {
        expected.insert((!number.is_multiple_of(7), number));
    }
    let mut chance = 1_u64;
    for life in 0..4 {
        assert_eq!(queue.stats().messages, expected.len());
        let mut held = Vec::new();
        for _ in 0..1_000 {
            held.push(queue.poll()?.ok_or("there are more")?);
        }
        for delivery in &held {
            let number: u64 =
                std::str::from_utf8(delivery.payload())?.split(' ').next().unwrap_or("").parse()?;
            assert_eq!(delivery.payload(), text(number).as_bytes());
            if !number.is_multiple_of(13) {
                // Those of a key wait for one another; all others come by priority and age.
                let plain = |number: &u64| !number.is_multiple_of(13);
                let first = expected.iter().find(|(_, number)| plain(number)).copied();
                assert_eq!(first, Some((!number.is_multiple_of(7), number)), "life {life}");
            }
            assert!(expected.remove(&(!number.is_multiple_of(7), number)), "{number} comes again");
        }
        // Most are acknowledged, in no order; the others come back.
        let mut back = Vec::new();
        while !held.is_empty() {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let delivery = held.swap_remove((chance >> 33) as usize % held.len());
            if chance >> 60 == 0 {
                back.push(delivery);
            } else {
                delivery.ack().await?;
            }
        }
        for delivery in back {
            let number: u64 =
                std::str::from_utf8(delivery.payload())?.split(' ').next().unwrap_or("").parse()?;
            expected.insert((!number.is_multiple_of(7), number));
            delivery.nack(Duration::ZERO)?;
        }
        let views = queue.browse(Start::First, 5_000)?;
        assert_eq!(views.len(), expected.len().min(5_000));
        assert!(views.iter().map(|view| view.id).is_sorted());
        assert!(views.iter().all(|view| view.priority == 4 || view.priority == 6));
        queues.close().await;
        queues = Queues::open(storage.clone(), config())?;
        queue = queues.queue("work").await?;
    }
    // A name of what is far is known.
    let last = queue.browse(Start::End, 1)?;
    assert!(last.is_empty());
    let far = (0..6_000_u64).rev().find(|number| number.is_multiple_of(11)).ok_or("some have names")?;
    assert!(queue.put(Message::new("again").name(format!("name {far}"))).await?.is_repeated);
    queue.purge().await?;
    assert_eq!((queue.stats().messages, queue.stats().bytes), (0, 0));
    queues.close().await;
    Ok(())
}

/// What opening reads does not grow with the backlog's bytes: the checkpoint has the books, the journal what came after it.
#[tokio::test]
async fn q09_opening_reads_the_checkpoint_and_what_came_after_it_and_without_one_the_whole_journal() -> Outcome
{
    let disk = FaultyStorage::new(1);
    let config = || Config::new(1).segment_bytes(16 << 10).zero_fill_bytes(0);
    let queues = Queues::open(disk.clone(), config())?;
    let (queue, other) = (queues.queue("work").await?, queues.queue("other").await?);
    for number in 0..400_u64 {
        queue.put_all((0..10).map(|part| format!("{number} {part} {}", "x".repeat(400)))).await?;
        if number.is_multiple_of(10) {
            // Some of everything that a checkpoint has.
            other
                .put(Message::new(format!("{number}")).key("k").name(format!("{number}")).priority(7))
                .await?;
            let mut work = queues.work();
            work.set(format!("cell {}", number % 30), number.to_string());
            work.commit().await?;
            queue.poll()?.ok_or("there are some")?.ack().await?;
        }
    }
    let (messages, others) = (queue.stats().messages, texts_of(&other)?);
    queues.close().await;
    let before = disk.bytes_read();
    let queues = Queues::open(disk.clone(), config())?;
    let read = disk.bytes_read() - before;
    assert!(read < 800 << 10, "{read} bytes were read, of more than 1,600 KiB");
    let (queue, other) = (queues.queue("work").await?, queues.queue("other").await?);
    assert_eq!((queue.stats().messages, texts_of(&other)?), (messages, others.clone()));
    assert_eq!(queues.state("cell 0").as_deref(), Some(&b"390"[..]));
    assert!(other.put(Message::new("again").name("390")).await?.is_repeated);
    queues.close().await;

    // Damaged, it is told in the log of the program, and is replaced.
    assert!(disk.flip_bit("books.snapshot", 5000));
    for is_whole in [false, true] {
        let before = disk.bytes_read();
        let queues = Queues::open(disk.clone(), config())?;
        let read = disk.bytes_read() - before;
        assert_eq!(read < 800 << 10, is_whole, "{read} bytes were read");
        let (queue, other) = (queues.queue("work").await?, queues.queue("other").await?);
        assert_eq!((queue.stats().messages, texts_of(&other)?), (messages, others.clone()));
        queues.close().await;
    }
    Ok(())
}

fn texts_of(queue: &Queue) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let views = queue.browse(Start::First, 1000)?;
    Ok(views.iter().map(|view| String::from_utf8_lossy(&view.payload).into_owned()).collect())
}

/// Measured in processes of their own, where nothing else allocates.
#[test]
fn q09_a_backlog_takes_little_memory_while_it_grows_after_a_crash_and_while_it_is_acknowledged_in_any_order()
{
    let directory = tempfile::tempdir().expect("a temporary directory");
    for phase in ["fill", "drain"] {
        let status = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "backlog::process_with_a_backlog", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY_VARIABLE, directory.path())
            .env(PHASE_VARIABLE, phase)
            .status()
            .expect("this test starts itself");
        assert!(status.success(), "{phase}: {status}");
    }
}

/// Not a test: the process that the other one starts. Without its variables it has nothing to do.
#[test]
fn process_with_a_backlog() {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) else { return };
    let phase = std::env::var(PHASE_VARIABLE).expect("set with the other one");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(async {
        if phase == "fill" { fill(Path::new(&directory)).await } else { drain(Path::new(&directory)).await }
    });
    outcome.expect("a good disk");
    // Not closed: what the next phase finds is what a crash leaves.
    std::process::exit(0);
}

async fn fill(directory: &Path) -> Outcome {
    let (_queues, queue) = backlog(directory).await?;
    let empty = resident_bytes();
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let queue = queue.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..MESSAGES / 16 / 50 {
                queue.put_all((0..50).map(|_| vec![7; 1024])).await.expect("a good disk");
            }
        }));
    }
    for task in tasks {
        task.await?;
    }
    assert_eq!(queue.stats().messages, MESSAGES);
    check("filled", empty);
    Ok(())
}

async fn drain(directory: &Path) -> Outcome {
    let empty = resident_bytes();
    let (_queues, queue) = backlog(directory).await?;
    check("opened", empty);
    let mut held = Vec::new();
    let (mut chance, mut taken) = (1_u64, 0);
    while taken < MESSAGES || !held.is_empty() {
        if taken < MESSAGES && held.len() < 500 {
            let got = queue.get_many(500, Duration::from_secs(60)).await?;
            taken += got.len();
            held.extend(got);
        }
        let mut under_way = Vec::new();
        for _ in 0..held.len().div_ceil(2) {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (chance >> 33) as usize % held.len();
            under_way.push(tokio::spawn(held.swap_remove(at).ack()));
        }
        for ack in under_way {
            ack.await??;
        }
        if taken % 10_000 < 500 {
            check("drained in part", empty);
        }
    }
    assert_eq!(queue.stats().messages, 0);
    check("drained", empty);
    Ok(())
}

async fn backlog(directory: &Path) -> Result<(Queues, Queue), Box<dyn std::error::Error>> {
    let queues = Queues::open(FileStorage::open(directory)?, Config::new(1))?;
    let queue = queues.queue_with("work", QueueConfig::new().messages_max(MESSAGES)).await?;
    Ok((queues, queue))
}

fn check(when: &str, empty: u64) {
    let above = resident_bytes().saturating_sub(empty) >> 20;
    println!("{when}: {above} MiB above the empty process");
    // The journal's buffers, the committer's batch and 8 MiB of wanted bytes; the payloads alone are 39 MiB.
    assert!(above < 30, "{when}: {above} MiB above the empty process");
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or_default() << 10
}

const DIRECTORY_VARIABLE: &str = "QUORATE_QUEUE_BACKLOG_DIRECTORY";
const PHASE_VARIABLE: &str = "QUORATE_QUEUE_BACKLOG_PHASE";
const MESSAGES: usize = 40_000;
