//! Files that a process finds when it starts: damaged, cut off, somebody else's. Made by a process that was killed, as they
//! are in life; every case works on a copy of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::Node;
use quorate::commit::{Config, NoResource, Transactions};
use quorate::journal::{self, FileStorage, Journal, OpenError, Record};
use quorate::node::StartError;
use quorate::queue::{Queues, QueuesOpenError};
use tests::{Worker, memory, within};

use crate::{told, work};

/// The program of the process whose files these are: puts messages, and waits to be killed.
#[test]
fn owner() {
    work(async |orders| {
        let node = node(Path::new(&orders.words), 1).await.expect("the directory is its own");
        let queues = Queues::on(&node).expect("a good disk");
        let queue = queues.queue("work").await.expect("a good name");
        for number in 0..MESSAGES {
            queue.put(message(number)).await.expect("a good disk");
        }
        orders.say("all are put");
        while orders.next().await.is_some() {}
    });
}

async fn node(directory: &Path, id: u64) -> Result<Node, StartError> {
    Node::builder().id(id).directory(directory).start().await
}

fn message(number: usize) -> String {
    format!("message {number} {}", "x".repeat(number))
}

/// A directory with a queue in it, as a killed process leaves it.
async fn left_behind(place: &Path) -> PathBuf {
    let directory = place.join("home");
    let words = directory.display().to_string();
    let mut owner = Worker::start("disks::owner", &memory(), &words);
    assert_eq!(owner.hear().await, "all are put");
    // Also while it lives nobody else gets in.
    let error = node(&directory, 1).await.expect_err("it is taken");
    assert!(matches!(&error, StartError::DirectoryInUse { path } if *path == directory), "{error:?}");
    owner.kill().await;
    directory
}

/// Every file below a directory.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("it can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let content = std::fs::read(&path).expect("it can be read");
            found.insert(path, content);
        }
    }
    found
}

/// A copy to do harm to.
fn copy(from: &Path, to: &Path) -> PathBuf {
    for (path, content) in files(from) {
        let path = to.join(path.strip_prefix(from).expect("below it"));
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        std::fs::write(path, content).expect("it can be written");
    }
    to.to_owned()
}

/// The segment that holds the messages.
fn segment(directory: &Path) -> PathBuf {
    let segments = files(&directory.join("queues"));
    let mut segments =
        segments.into_keys().filter(|path| path.extension().is_some_and(|end| end == "segment"));
    let first = segments.next().expect("there is one");
    assert_eq!(segments.next(), None, "the messages fit into one");
    first
}

/// Where the last byte that is not zero ends.
fn used(content: &[u8]) -> usize {
    content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// The messages that the queue of a directory gives, which are the first ones that were put.
async fn messages(directory: &Path) -> Result<usize, QueuesOpenError> {
    let node = node(directory, 1).await.expect("its own directory");
    let queues = Queues::on(&node)?;
    let queue = queues.queue("work").await.expect("a good name");
    let mut held = Vec::new();
    while let Some(delivery) = queue.poll().expect("an open queue") {
        assert_eq!(delivery.payload(), message(held.len()).as_bytes());
        held.push(delivery);
    }
    let count = held.len();
    drop(held);
    queues.close().await;
    Ok(count)
}

#[tokio::test]
async fn q02_a_bit_that_flipped_under_a_queue_is_told_with_file_and_place_or_does_no_harm() {
    let place = tempfile::tempdir().expect("a directory");
    let origin = left_behind(place.path()).await;
    let whole = std::fs::read(segment(&origin)).expect("it can be read");
    let used = used(&whole);
    let (mut refused, mut shortened, mut harmless) = (0, 0, 0);
    for (case, at) in (0..used).step_by(used / CASES).enumerate() {
        let directory = copy(&origin, &place.path().join(format!("flip {case}")));
        let file = segment(&directory);
        let mut content = whole.clone();
        content[at] ^= 1 << (case % 8);
        std::fs::write(&file, content).expect("it can be written");
        let before = files(&directory.join("queues"));
        match messages(&directory).await {
            Ok(MESSAGES) => harmless += 1,
            // Damage behind which nothing proves that there was more is a torn tail.
            Ok(count) => {
                assert!(count >= MESSAGES - 2, "{count} of {MESSAGES} after a flip at {at} of {used}");
                shortened += 1;
            }
            Err(error) => {
                let text = told(&error);
                assert!(text.contains(&file.display().to_string()), "{text}");
                if let QueuesOpenError::Journal(OpenError::Corrupt(corruption)) = &error {
                    let offset = corruption.offset as usize;
                    assert!(offset <= at && at - offset < 2_000, "{text}: it was at {at}");
                    assert!(text.contains(&format!("at byte {offset}")), "{text}");
                }
                assert_eq!(files(&directory.join("queues")), before, "nothing was changed");
                // With the bit as it was, all is as it was.
                std::fs::write(&file, &whole).expect("it can be written");
                assert_eq!(messages(&directory).await.expect("a good disk"), MESSAGES);
                refused += 1;
            }
        }
    }
    println!("{refused} refused, {shortened} lost the tail, {harmless} harmless");
    assert!(refused > CASES / 2 && shortened <= CASES / 10, "{refused} {shortened} {harmless}");
}

#[tokio::test]
async fn q02_a_journal_that_was_cut_off_under_a_queue_gives_its_longest_whole_beginning() {
    let place = tempfile::tempdir().expect("a directory");
    let origin = left_behind(place.path()).await;
    let whole = std::fs::read(segment(&origin)).expect("it can be read");
    let used = used(&whole);
    let mut last = 0;
    for (case, length) in (SEGMENT_HEADER_BYTES..=used).step_by(used / CASES).enumerate() {
        let directory = copy(&origin, &place.path().join(format!("cut {case}")));
        std::fs::write(segment(&directory), &whole[..length]).expect("it can be written");
        let count = messages(&directory).await.expect("a tail may be torn");
        assert!(count >= last, "a longer file holds less");
        last = count;
        // It goes on from there.
        assert_eq!(messages(&directory).await.expect("a good disk"), count);
    }
    assert!(last >= MESSAGES * 9 / 10, "{last}");
    // Not even a header: that is no torn tail.
    let directory = copy(&origin, &place.path().join("stump"));
    let file = segment(&directory);
    std::fs::write(&file, &whole[..20]).expect("it can be written");
    let error = messages(&directory).await.expect_err("no journal");
    assert!(told(&error).contains(&format!("{} is not a journal file", file.display())), "{}", told(&error));
}

#[tokio::test]
async fn q02_the_list_of_queues_that_is_damaged_is_told_with_its_file() {
    let place = tempfile::tempdir().expect("a directory");
    let origin = left_behind(place.path()).await;
    let file = origin.join("queues/queues.snapshot");
    let whole = std::fs::read(&file).expect("it can be read");
    for at in 0..whole.len() {
        let mut content = whole.clone();
        content[at] ^= 0x10;
        std::fs::write(&file, content).expect("it can be written");
        let error = messages(&origin).await.expect_err("a flipped bit");
        assert!(told(&error).contains(&file.display().to_string()), "{at}: {}", told(&error));
    }
    std::fs::write(&file, whole).expect("it can be written");
    assert_eq!(messages(&origin).await.expect("a good disk"), MESSAGES);
}

#[tokio::test]
async fn q02_what_belongs_to_another_node_is_refused_with_both_names_and_left_alone() {
    let place = tempfile::tempdir().expect("a directory");
    let origin = left_behind(place.path()).await;
    let before = files(&origin);
    let error = node(&origin, 2).await.expect_err("it is node 1's");
    assert!(matches!(error, StartError::ForeignDirectory { .. }), "{error:?}");
    let expected = format!("directory {} belongs to node 1, not to node 2", origin.display());
    assert_eq!(told(&error), expected);
    assert_eq!(files(&origin), before);
    // The same for the queues alone, in the right place of the wrong node.
    let other = place.path().join("other");
    let two = node(&other, 2).await.expect("a fresh directory");
    copy(&origin.join("queues"), &other.join("queues"));
    let before = files(&other.join("queues"));
    let error = Queues::on(&two).expect_err("they are node 1's");
    let QueuesOpenError::Journal(OpenError::Owner { found: 1, expected: 2, .. }) = &error else {
        panic!("{error:?}")
    };
    assert!(told(&error).contains(&other.join("queues").display().to_string()), "{}", told(&error));
    assert_eq!(files(&other.join("queues")), before);
    // And what is no directory of a node at all.
    let damaged = place.path().join("damaged");
    std::fs::create_dir(&damaged).expect("it can be made");
    for text in ["", "quorate node 2\n", "quorate node 1\nid one\n", "\u{1}\u{2}"] {
        std::fs::write(damaged.join("node"), text).expect("it can be written");
        let error = node(&damaged, 1).await.expect_err("no node wrote that");
        assert!(matches!(error, StartError::DirectoryDamaged { .. }), "{error:?}");
        assert!(told(&error).starts_with(&damaged.join("node").display().to_string()), "{}", told(&error));
        assert_eq!(std::fs::read_to_string(damaged.join("node")).expect("it is there"), text);
    }
}

#[tokio::test]
async fn k02_a_damaged_journal_of_transactions_is_refused_with_file_and_place() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = place.path().join("transactions");
    let open = || {
        let storage = FileStorage::open(&directory)?;
        Journal::open(storage, journal::Config::new(1))
    };
    // Decisions of earlier lives.
    let one = memory().node(1).await;
    let (kept, _) = open().expect("a good disk");
    let served = Transactions::open(&one, "bank", kept.clone(), NoResource, Config::default()).await;
    let served = served.expect("nothing is there yet");
    for _ in 0..20 {
        let transaction = served.begin([(quorate::NodeId(9), "work".into())]).await.expect("it begins");
        transaction.cancel().await;
        assert!(!within(transaction.outcome()).await.is_committed());
    }
    kept.append(vec![Record::new(0x2C, "something else")]).await.expect("a good disk");
    served.shutdown(Duration::ZERO).await;
    kept.close().await;
    // A record that is whole, and none of transactions.
    let (kept, _) = open().expect("a good disk");
    let again = Transactions::open(&one, "bank", kept.clone(), NoResource, Config::default()).await;
    let error = again.expect_err("a strange record");
    assert!(told(&error).contains("of the journal is none of transactions: "), "{}", told(&error));
    kept.close().await;
    // Damage in the middle: what lies behind it was durable.
    let file =
        files(&directory).into_keys().find(|path| path.extension().is_some_and(|end| end == "segment"));
    let file = file.expect("a segment");
    let mut content = std::fs::read(&file).expect("it can be read");
    content[SEGMENT_HEADER_BYTES + 3] ^= 1;
    std::fs::write(&file, content).expect("it can be written");
    // It lies before the last segment, and is found when it is read.
    let (kept, _) = open().expect("the last segment is whole");
    let again = Transactions::open(&one, "bank", kept.clone(), NoResource, Config::default()).await;
    let error = again.expect_err("a flipped bit");
    kept.close().await;
    let expected = format!("{} at byte {SEGMENT_HEADER_BYTES}", file.display());
    assert!(told(&error).contains(&expected), "{}", told(&error));
}

const MESSAGES: usize = 300;
const CASES: usize = 60;
/// Of the journal's format.
const SEGMENT_HEADER_BYTES: usize = 4096;
