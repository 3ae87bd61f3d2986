//! A coordinator and two vaults as processes of their own, killed at random moments and started again.
//!
//! The processes are this test program again, running [`vault_or_coordinator`] with a role in their environment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quorate::commit::{Config, NoResource, Transactions};
use quorate::sim::Rng;
use quorate::{Node, NodeId};
use quorate_journal::{FileStorage, Journal};
use quorate_transports::Transport;
use quorate_transports::tcp::Tcp;

use crate::vault::{START, Vault, pay};

pub(crate) const ROLE: &str = "QUORATE_TEST_COMMIT_ROLE";
pub(crate) const DIRECTORY: &str = "QUORATE_TEST_COMMIT_DIRECTORY";
const KILLS: u32 = 15;
/// Transfers that must have been reported for the test to say something.
const TRANSFERS_MIN: usize = 10;
const LONG: Duration = Duration::from_secs(60);

#[test]
fn k02_books_balance_whoever_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let seed = u64::from(std::process::id());
    let mut rng = Rng::new(seed);
    println!("seed {seed}");
    let hire = |role| Crewman::hire(directory.path(), role, "killed::vault_or_coordinator");
    let mut crew: Vec<Crewman> = (1..=3).map(hire).collect();
    for _ in 0..KILLS {
        // The time at which a kill comes is the point of the test, and not waited for by anything.
        std::thread::sleep(rng.duration(Duration::from_millis(30)..Duration::from_millis(500)));
        let victim = rng.below(3) as usize;
        crew[victim].kill();
        std::thread::sleep(rng.duration(Duration::ZERO..Duration::from_millis(200)));
        crew[victim] = hire(victim as u64 + 1);
    }
    // On a busy machine a process may be killed before it has begun anything: what is to be judged is waited for.
    wait_until("transfers", || told(directory.path()).lines().count() > TRANSFERS_MIN);
    // The coordinator begins nothing any more, then the vaults learn what they are in doubt about and go.
    say(directory.path(), "begin-nothing");
    wait_for(directory.path(), "begins-nothing");
    say(directory.path(), "go");
    for vault in &mut crew[1..] {
        vault.see_off();
    }
    crew[0].kill();

    let vaults: Vec<Vault> = (2..=3).map(|role| Vault::open(&home(directory.path(), role), role)).collect();
    let (payer, payee) = (vaults[0].applied(), vaults[1].applied());
    let mirrored = payer.iter().map(|(txn, amount)| (*txn, -amount)).collect();
    assert_eq!(payee, mirrored, "a transaction is in both books or in none (seed {seed})");
    assert_eq!(vaults[0].balance() + vaults[1].balance(), 2 * START, "seed {seed}");
    let told = told(directory.path());
    let told: Vec<&str> = told.lines().collect();
    for txn in &told {
        let kept = payer.keys().any(|applied| applied.to_string() == *txn);
        assert!(kept, "{txn} was reported as committed and is in no book (seed {seed})");
    }
    println!("{} transfers in both books, {} of them reported", payer.len(), told.len());
}

/// Not a test of its own: what the processes run.
#[test]
fn vault_or_coordinator() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let role: u64 = role.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let node = arrive(&directory, role, Tcp::new()).await;
        let journal = journal(&directory, role);
        let config = Config {
            prepare_timeout: Duration::from_secs(2),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_millis(500),
            ..Config::default()
        };
        let meeting = tokio::spawn(meet(directory.clone(), role, node.clone()));
        if role == 1 {
            let transactions = Transactions::open(&node, "bank", journal, NoResource, config).await.unwrap();
            coordinate(&directory, &transactions).await;
        } else {
            let vault = Vault::open(&home(&directory, role), role);
            let transactions = Transactions::open(&node, "bank", journal, vault, config).await.unwrap();
            heard(&directory, "go").await;
            let left = transactions.shutdown(LONG).await;
            assert!(left.is_nothing(), "{left:?}");
            node.shutdown(Duration::from_secs(5)).await;
        }
        meeting.abort();
    });
}

/// Moves money to and fro until told to stop, and notes what it was told.
async fn coordinate(directory: &Path, transactions: &Transactions) {
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (transactions, directory) = (transactions.clone(), directory.to_owned());
        let mut rng = Rng::labelled(u64::from(std::process::id()), worker);
        workers.spawn(async move {
            while !directory.join("begin-nothing").exists() {
                let amount = rng.between(0, 800) as i64 - 400;
                let work = [(NodeId(2), pay(amount)), (NodeId(3), pay(-amount))];
                let outcome = transactions.run(work).await.unwrap();
                if outcome.is_committed() {
                    note(&directory, &outcome.txn().to_string());
                }
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    say(directory, "begins-nothing");
    // Goes on answering for what it has decided, until it is killed.
    std::future::pending::<()>().await;
}

fn note(directory: &Path, line: &str) {
    use std::io::Write;
    let path = home(directory, 1).join("committed");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    // One write, so that a kill leaves the line or not.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

pub(crate) async fn arrive(directory: &Path, role: u64, transport: impl Transport) -> Node {
    let node = Node::builder()
        .id(NodeId(role))
        .directory(home(directory, role).join("node"))
        .listen("tcp://127.0.0.1:0")
        .transport(transport)
        .start()
        .await
        .unwrap();
    let address = directory.join(format!("{role}.address"));
    let written = directory.join(format!("{role}.address.new"));
    std::fs::write(&written, node.addresses()[0].to_string()).unwrap();
    std::fs::rename(written, address).unwrap();
    node
}

/// Keeps an eye on where the others are: each life has another port.
pub(crate) async fn meet(directory: PathBuf, role: u64, node: Node) {
    let mut known = [const { String::new() }; 4];
    loop {
        for other in (1..=3).filter(|other| *other != role) {
            let found =
                std::fs::read_to_string(directory.join(format!("{other}.address"))).unwrap_or_default();
            if found != known[other as usize] {
                node.forget(NodeId(other));
                node.add_address(NodeId(other), found.parse().unwrap());
                known[other as usize] = found;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn journal(directory: &Path, role: u64) -> Journal {
    let storage = FileStorage::open(home(directory, role).join("commit")).unwrap();
    Journal::open(storage, quorate_journal::Config::new(role)).unwrap().0
}

pub(crate) fn home(directory: &Path, role: u64) -> PathBuf {
    directory.join(role.to_string())
}

pub(crate) fn say(directory: &Path, word: &str) {
    std::fs::write(directory.join(word), "").unwrap();
}

pub(crate) async fn heard(directory: &Path, word: &str) {
    while !directory.join(word).exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn wait_for(directory: &Path, word: &str) {
    wait_until(word, || directory.join(word).exists());
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < LONG, "nobody says {what:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the coordinator noted as committed.
fn told(directory: &Path) -> String {
    std::fs::read_to_string(home(directory, 1).join("committed")).unwrap_or_default()
}

/// A process, which does not outlive the test.
pub(crate) struct Crewman(Child);

impl Crewman {
    /// `function`: what it runs, a test of this program.
    pub(crate) fn hire(directory: &Path, role: u64, function: &str) -> Self {
        std::fs::create_dir_all(home(directory, role)).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", function, "--nocapture"])
            .env(ROLE, role.to_string())
            .env(DIRECTORY, directory)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub(crate) fn kill(&mut self) {
        // It must be alive until here: a process that gave up is a failure of its own.
        assert!(self.0.try_wait().unwrap().is_none(), "a process ended by itself");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn see_off(&mut self) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(started.elapsed() < 2 * LONG, "a vault does not go");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Crewman {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
