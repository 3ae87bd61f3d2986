//! The server is another process and is killed in the middle of its work, again and again (catalogue R8).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use quorate::node::Node;
use quorate::rpc::{CallError, Doubt};
use quorate::service;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use crate::support::soon;

#[service]
pub(crate) trait Ledger {
    /// Writes the entry down: doing it twice is seen.
    async fn enter(&self, entry: u64) -> u64;
    /// The same for who does not mind.
    #[idempotent]
    async fn enter_again(&self, entry: u64) -> u64;
    /// Writes the entry down and crashes before it can answer.
    async fn enter_and_crash(&self, entry: u64);
}

/// Every execution is a line of a file, written at once, so that it outlives the process.
pub(crate) struct Lines(Mutex<std::fs::File>);

impl Lines {
    pub(crate) fn open(directory: &Path) -> Self {
        let lines = std::fs::File::options().create(true).append(true).open(directory.join(LINES_FILE));
        Self(Mutex::new(lines.unwrap()))
    }

    /// How often each entry was written in that directory.
    pub(crate) fn count(directory: &Path) -> BTreeMap<u64, u32> {
        let mut executed = BTreeMap::new();
        for entry in std::fs::read_to_string(directory.join(LINES_FILE)).unwrap().lines() {
            *executed.entry(entry.parse().unwrap()).or_default() += 1;
        }
        executed
    }

    fn add(&self, entry: u64) -> u64 {
        self.0.lock().unwrap().write_all(format!("{entry}\n").as_bytes()).unwrap();
        entry
    }
}

impl Ledger for Lines {
    async fn enter(&self, entry: u64) -> u64 {
        let entry = self.add(entry);
        // Between the effect and the reply: where a crash leaves the caller in doubt.
        tokio::task::yield_now().await;
        entry
    }
    async fn enter_again(&self, entry: u64) -> u64 {
        self.add(entry)
    }
    async fn enter_and_crash(&self, entry: u64) {
        self.add(entry);
        std::process::abort()
    }
}

/// The program of the server. Does nothing unless the test below starts it.
#[tokio::test]
async fn server_that_is_killed() {
    let Some((directory, address)) = place() else { return };
    let node = Node::builder()
        .id(1)
        .directory(directory.join("node"))
        .listen(address.as_str())
        .start()
        .await
        .unwrap();
    let _serving = node.serve("ledger", LedgerServer::new(Lines::open(&directory))).unwrap();
    println!("{READY}{}", node.addresses()[0]);
    std::future::pending::<()>().await;
}

/// Where a program of these tests lives, if it was started as one.
pub(crate) fn place() -> Option<(PathBuf, String)> {
    Some((std::env::var(DIRECTORY_VARIABLE).ok()?.into(), std::env::var(ADDRESS_VARIABLE).ok()?))
}

/// Starts a life of a program of these tests; returns when it says that it serves.
pub(crate) async fn start(program: &str, directory: &Path, address: &str) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", program, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY_VARIABLE, directory)
        .env(ADDRESS_VARIABLE, address)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = soon("the server's start", async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the server starts");
            // The test harness does not end its own line first.
            if let Some((_, address)) = line.split_once(READY) {
                return address.to_owned();
            }
        }
    })
    .await;
    (child, address)
}

#[derive(Default)]
struct Told {
    replied: Vec<u64>,
    not_executed: Vec<u64>,
    in_doubt: Vec<u64>,
}

#[tokio::test]
async fn r08_a_server_that_is_killed_again_and_again_executes_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, address) = start(SERVER, directory.path(), "tcp://127.0.0.1:0").await;
    let node = Node::builder().id(2).start().await.unwrap();
    let ledger = LedgerClient::connect(&node, "ledger", &address).await.unwrap();

    let told = Arc::new(Mutex::new(Told::default()));
    let (replies, progress) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (ledger, told) = (ledger.clone(), Arc::clone(&told));
            let (replies, progress) = (Arc::clone(&replies), Arc::clone(&progress));
            tokio::spawn(async move {
                for number in 0.. {
                    let entry = caller * 1_000_000 + number;
                    // Every fourth may be repeated: it must always succeed in the end.
                    let repeatable = number % 4 == 0;
                    let answer =
                        if repeatable { ledger.enter_again(entry).await } else { ledger.enter(entry).await };
                    let mut told = told.lock().unwrap();
                    match answer {
                        Ok(echo) => {
                            assert_eq!(echo, entry);
                            if !repeatable {
                                told.replied.push(entry);
                            }
                            replies.fetch_add(1, Ordering::SeqCst);
                            progress.notify_waiters();
                        }
                        Err(_) if repeatable => panic!("an idempotent call failed: {answer:?}"),
                        Err(CallError::MaybeExecuted(_)) => told.in_doubt.push(entry),
                        Err(error) if error.is_not_executed() => told.not_executed.push(entry),
                        Err(error) => panic!("{error:?}"),
                    }
                    drop(told);
                    if replies.load(Ordering::SeqCst) > (KILLS + 1) * REPLIES_A_LIFE {
                        return;
                    }
                }
            })
        })
        .collect();
    for life in 1..=KILLS {
        soon("progress", async {
            loop {
                let moved = progress.notified();
                if replies.load(Ordering::SeqCst) >= life * REPLIES_A_LIFE {
                    return;
                }
                moved.await;
            }
        })
        .await;
        // Every other time it dies at the worst moment: the effect is there, the reply is not.
        let crashing = (life % 2 == 0).then(|| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.enter_and_crash(CRASHING + life as u64).await })
        });
        match &crashing {
            Some(_) => drop(soon("the crash", server.wait()).await.unwrap()),
            None => server.kill().await.unwrap(),
        }
        (server, _) = start(SERVER, directory.path(), &address).await;
        if let Some(crashing) = crashing {
            let error = soon("the doubt", crashing).await.unwrap().unwrap_err();
            assert_eq!(error, CallError::MaybeExecuted(Doubt::SessionLost));
        }
    }
    for caller in callers {
        soon("a caller's end", caller).await.unwrap();
    }
    server.kill().await.unwrap();

    let executed = Lines::count(directory.path());
    let count = |entry: &u64| executed.get(entry).copied().unwrap_or(0);
    let told = told.lock().unwrap();
    for entry in &told.replied {
        assert_eq!(count(entry), 1, "entry {entry} was answered");
    }
    for entry in &told.not_executed {
        assert_eq!(count(entry), 0, "entry {entry} was said not to be executed");
    }
    for life in (2..=KILLS as u64).step_by(2) {
        assert_eq!(count(&(CRASHING + life)), 1, "executed in life {life}, and in no later one");
    }
    for entry in &told.in_doubt {
        assert!(count(entry) <= 1, "entry {entry} was in doubt");
    }
    assert!(told.replied.len() > KILLS * REPLIES_A_LIFE / 2);
    assert_eq!(ledger.server().stats().sessions, KILLS as u64 + 1, "one session for each life");
    println!(
        "{} answered, {} not executed, {} in doubt ({} of them executed)",
        told.replied.len(),
        told.not_executed.len(),
        told.in_doubt.len(),
        told.in_doubt.iter().filter(|entry| count(entry) == 1).count()
    );
}

const CALLERS: u64 = 16;
const KILLS: usize = 6;
const REPLIES_A_LIFE: usize = 500;
/// The entries of the calls that crash their server; no caller counts so far.
const CRASHING: u64 = 1_000_000_000;
const LINES_FILE: &str = "lines";
pub(crate) const READY: &str = "ready ";
pub(crate) const SERVER: &str = "processes::server_that_is_killed";
const DIRECTORY_VARIABLE: &str = "QUORATE_TEST_RPC_DIRECTORY";
const ADDRESS_VARIABLE: &str = "QUORATE_TEST_RPC_ADDRESS";
