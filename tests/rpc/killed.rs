//! A server with exactly-once methods is another process and is killed again and again (catalogue R7).
//!
//! Environment  `QUORATE_RPC_KILLS` kills so many servers instead of the test's own number.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::codec::Postcard;
use quorate::node::Node;
use quorate::rpc::{ClientOptions, Durable, DurableConfig, Patience, ServeOptions, State};
use quorate::service;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::processes::{READY, place, start};
use crate::support::soon;

#[service]
pub(crate) trait Register {
    /// Notes the entry and gives its number: the entries before it, and itself.
    #[exactly_once]
    async fn note(&self, entry: u64) -> u64;
    /// The same, and the server dies as soon as the record is durable, at about the moment when the answer leaves.
    #[exactly_once]
    async fn note_and_crash(&self, entry: u64) -> u64;
    /// All entries with how often they are noted.
    #[idempotent]
    async fn entries(&self) -> Vec<(u64, u32)>;
}

#[derive(Default, Serialize, Deserialize)]
struct Noted {
    entries: BTreeMap<u64, u32>,
    count: u64,
}

impl State for Noted {
    type Change = u64;
    fn apply(&mut self, entry: &u64) {
        *self.entries.entry(*entry).or_default() += 1;
        self.count += 1;
    }
}

struct Book(Durable<Noted>);

impl Register for Book {
    async fn note(&self, entry: u64) -> u64 {
        let mut noted = self.0.begin().await;
        noted.change(entry);
        let number = noted.see(|noted| noted.count + 1);
        noted.commit();
        number
    }
    async fn note_and_crash(&self, entry: u64) -> u64 {
        let noted = self.0.clone();
        tokio::spawn(async move {
            loop {
                let is_noted = noted.read(|noted| noted.entries.contains_key(&entry)).await;
                if is_noted.unwrap() {
                    std::process::abort();
                }
                tokio::task::yield_now().await;
            }
        });
        self.note(entry).await
    }
    async fn entries(&self) -> Vec<(u64, u32)> {
        self.0
            .read(|noted| noted.entries.iter().map(|(entry, count)| (*entry, *count)).collect())
            .await
            .unwrap()
    }
}

/// The program of the server. Does nothing unless the test below starts it.
#[tokio::test]
async fn register_that_is_killed() {
    let Some((directory, address)) = place() else { return };
    let node = Node::builder()
        .id(1)
        .directory(directory.join("node"))
        .listen(address.as_str())
        .start()
        .await
        .unwrap();
    let mut config = DurableConfig::default();
    // So that lives end in the middle of snapshots, too.
    config.compact_records = 500;
    let noted = Durable::on(&node, "register", Noted::default(), config).await.unwrap();
    let book = RegisterServer::new(Book(noted.clone()));
    let _serving = node.serve_durable("register", book, ServeOptions::default(), &noted).unwrap();
    println!("{READY}{}", node.addresses()[0]);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn r07_every_call_takes_effect_once_however_often_the_server_is_killed() {
    let kills = std::env::var("QUORATE_RPC_KILLS").ok().map_or(KILLS, |kills| kills.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let (mut server, address) = start(SERVER, directory.path(), "tcp://127.0.0.1:0").await;
    let node = Node::builder().id(2).start().await.unwrap();
    let mut options = ClientOptions::default();
    // The server is away for most of the time: its clients shall notice soon when it is back.
    (options.retry_max, options.patience) = (Duration::from_millis(100), Patience::WaitUntilAvailable);
    let register = RegisterClient::<Postcard>::connect_with(&node, "register", &address, options)
        .await
        .unwrap()
        .with_deadline(Duration::from_secs(600));

    let numbers: Arc<Mutex<BTreeMap<u64, u64>>> = Arc::default();
    let (answered, progress) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let is_over = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (register, numbers) = (register.clone(), Arc::clone(&numbers));
            let (answered, progress) = (Arc::clone(&answered), Arc::clone(&progress));
            let is_over = Arc::clone(&is_over);
            tokio::spawn(async move {
                for number in 0.. {
                    let entry = caller * 1_000_000 + number;
                    let place = register.note(entry).await.expect("an exactly-once call is answered");
                    numbers.lock().unwrap().insert(entry, place);
                    answered.fetch_add(1, Ordering::SeqCst);
                    progress.notify_waiters();
                    if is_over.load(Ordering::SeqCst) > 0 {
                        return;
                    }
                }
            })
        })
        .collect();
    for life in 1..=kills {
        // A little later in each life than in the one before, and again from the start: any moment is hit.
        let target = answered.load(Ordering::SeqCst) + 1 + life * 7 % 60;
        soon("progress", async {
            loop {
                let moved = progress.notified();
                if answered.load(Ordering::SeqCst) >= target {
                    return;
                }
                moved.await;
            }
        })
        .await;
        let crashing = (life % 3 == 0).then(|| {
            let register = register.clone();
            tokio::spawn(async move { register.note_and_crash(CRASHING + life as u64).await })
        });
        match &crashing {
            Some(_) => drop(soon("the crash", server.wait()).await.unwrap()),
            None => server.kill().await.unwrap(),
        }
        (server, _) = start(SERVER, directory.path(), &address).await;
        if let Some(crashing) = crashing {
            let place = soon("the recorded answer", crashing).await.unwrap().unwrap();
            numbers.lock().unwrap().insert(CRASHING + life as u64, place);
        }
    }
    is_over.store(1, Ordering::SeqCst);
    for caller in callers {
        soon("a caller's end", caller).await.unwrap();
    }

    let entries = register.entries().await.unwrap();
    server.kill().await.unwrap();
    let numbers = numbers.lock().unwrap();
    for (entry, count) in &entries {
        assert_eq!(*count, 1, "entry {entry} is noted {count} times");
        assert!(numbers.contains_key(entry), "entry {entry} is noted, and its caller was not answered");
    }
    assert_eq!(entries.len(), numbers.len(), "every answered entry is noted");
    let mut places: Vec<u64> = numbers.values().copied().collect();
    places.sort_unstable();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(places, expected, "each answer is the one that was recorded with its effect");
    println!(
        "{kills} kills, {} calls, each once; {} sessions",
        numbers.len(),
        register.server().stats().sessions
    );
}

const SERVER: &str = "killed::register_that_is_killed";
const CALLERS: u64 = 16;
const KILLS: usize = 12;
/// The entries of the calls that crash their server; no caller counts so far.
const CRASHING: u64 = 1_000_000_000;
