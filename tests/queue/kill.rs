//! A real process puts, gets and acknowledges, and is killed with SIGKILL again and again.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use quorate::queue::{Queue, QueueConfig, Queues};
use quorate_journal::{Config, FileStorage};

use super::take_all;

#[test]
fn q02_killed_process_loses_no_message_and_no_acknowledged_one_comes_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut told = Told::default();
    for life in 0..15_u64 {
        told.run_and_kill(directory.path(), life, 50 + life * 7919 % 600);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let left: BTreeSet<String> = runtime.block_on(async {
        let queues = open(directory.path());
        let queue = queue(&queues).await;
        let held = take_all(&queue);
        assert!(held.iter().map(|delivery| delivery.id()).is_sorted());
        let left: Vec<_> = held.iter().map(|delivery| text(delivery.payload())).collect();
        let distinct: BTreeSet<_> = left.iter().cloned().collect();
        assert_eq!(distinct.len(), left.len(), "a message is there twice");
        drop(held);
        queues.close().await;
        distinct
    });
    println!("{} put, {} acknowledged, {} left", told.put.len(), told.acknowledged.len(), left.len());
    assert!(told.put.len() > 500 && told.acknowledged.len() > 200);
    assert_eq!(left.intersection(&told.acknowledged).next(), None, "an acknowledged message came back");
    for message in &told.put {
        let is_accounted_for = told.acknowledging.contains(message) || left.contains(message);
        assert!(is_accounted_for, "{message} was put and is lost");
    }
}

/// Not a test: the process that the other one starts and kills. Without its variable it has nothing to do.
#[test]
fn worker_that_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) else { return };
    let life = std::env::var(LIFE_VARIABLE).expect("set with the other one");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let queues = open(Path::new(&directory));
        let queue = queue(&queues).await;
        // The test harness has begun a line that it does not end.
        tell("\nbegin", &life);
        let mut tasks = Vec::new();
        for producer in 0..4 {
            let (queue, life) = (queue.clone(), life.clone());
            tasks.push(tokio::spawn(async move {
                for serial in 0.. {
                    let message = format!("{life}-{producer}-{serial}");
                    queue.put(message.clone()).await.expect("a good disk");
                    tell("put", &message);
                }
            }));
        }
        for _ in 0..2 {
            let queue = queue.clone();
            tasks.push(tokio::spawn(async move {
                while let Some(delivery) = queue.get(Duration::MAX).await.expect("a good disk") {
                    let message = text(delivery.payload());
                    tell("acknowledging", &message);
                    delivery.ack().await.expect("a good disk");
                    tell("acknowledged", &message);
                }
            }));
        }
        for task in tasks {
            task.await.expect("killed before it ends");
        }
    });
}

#[derive(Default)]
struct Told {
    put: BTreeSet<String>,
    acknowledging: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
}

impl Told {
    /// Starts a worker, kills it after `count` lines, and takes in all that it told.
    fn run_and_kill(&mut self, directory: &Path, life: u64, count: u64) {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "kill::worker_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY_VARIABLE, directory)
            .env(LIFE_VARIABLE, life.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test starts itself");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let earlier = self.acknowledged.clone();
        let mut line = String::new();
        let mut told = 0;
        while lines.read_line(&mut line).expect("text") > 0 {
            // A last line that is cut tells nothing.
            let words = line.strip_suffix('\n').and_then(|line| line.split_once(' '));
            match words {
                Some(("put", message)) => {
                    assert!(self.put.insert(message.to_owned()), "{message} was put twice");
                }
                Some(("acknowledging", message)) => {
                    assert!(!earlier.contains(message), "{message} was delivered again");
                    self.acknowledging.insert(message.to_owned());
                }
                Some(("acknowledged", message)) => {
                    self.acknowledged.insert(message.to_owned());
                }
                _ => {}
            }
            line.clear();
            told += 1;
            if told == count {
                child.kill().expect("it runs");
            }
        }
        child.wait().expect("it ran");
        assert!(told >= count, "the worker ended by itself");
    }
}

fn open(directory: &Path) -> Queues {
    let storage = FileStorage::open(directory).expect("the last process is dead");
    Queues::open(storage, Config::new(1).segment_bytes(64 << 10).zero_fill_bytes(16 << 10))
        .expect("a good disk")
}

async fn queue(queues: &Queues) -> Queue {
    queues.queue_with("work", QueueConfig::new().deliveries_max(None)).await.expect("a good name")
}

/// One write per line: a line is there whole or it is no line.
fn tell(what: &str, message: &str) {
    std::io::stdout().lock().write_all(format!("{what} {message}\n").as_bytes()).expect("the parent reads");
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

const DIRECTORY_VARIABLE: &str = "QUORATE_QUEUE_WORKER_DIRECTORY";
const LIFE_VARIABLE: &str = "QUORATE_QUEUE_WORKER_LIFE";
