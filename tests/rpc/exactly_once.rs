//! Exactly-once methods: the effect and the answer are one record, in one process (catalogue R7).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate::codec::Postcard;
use quorate::node::Node;
use quorate::rpc::{
    CallError, ClientOptions, Doubt, Durable, DurableConfig, NotDurable, Refusal, Semantics, ServeError,
    ServeOptions, Serving, State, Transaction,
};
use quorate::service;
use quorate_journal::{Config, FaultyStorage, FileStorage, Journal, MemoryStorage, Record, Storage};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::support::{Over, soon};

#[service]
pub(crate) trait Safe {
    /// Adds to an account and gives its balance.
    #[exactly_once]
    async fn deposit(&self, account: u32, cents: u64) -> Result<u64, String>;
    /// Does the same in two transactions, and drops a third one.
    #[exactly_once]
    async fn deposit_twice(&self, account: u32, cents: u64) -> u64;
    /// Commits, and then does not return.
    #[exactly_once]
    async fn deposit_and(&self, account: u32, cents: u64, then: Then) -> u64;
    async fn balance(&self, account: u32) -> u64;
    /// How many deposits were begun: no journal is asked for that.
    async fn begun(&self) -> usize;
}

/// A service that keeps no journal.
#[service]
pub(crate) trait Plain {
    async fn ping(&self) -> u32;
}

struct Pong;

impl Plain for Pong {
    async fn ping(&self) -> u32 {
        1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Then {
    Panic,
    Wait,
    ForgetToCommit,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Accounts(BTreeMap<u32, u64>);

#[derive(Debug, Serialize, Deserialize)]
enum Change {
    Deposit {
        account: u32,
        cents: u64,
    },
    /// The state's own code fails at it.
    Broken,
}

impl State for Accounts {
    type Change = Change;
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Deposit { account, cents } => *self.0.entry(*account).or_default() += cents,
            Change::Broken => panic!("this panic belongs to the test"),
        }
    }
}

struct Vault {
    accounts: Durable<Accounts>,
    begun: AtomicUsize,
    /// A permit for each handler that waits.
    waiting: Semaphore,
}

fn balance(transaction: &Transaction<Accounts>, account: u32) -> u64 {
    transaction.see(|accounts| accounts.0.get(&account).copied().unwrap_or(0))
}

impl Safe for Vault {
    async fn deposit(&self, account: u32, cents: u64) -> Result<u64, String> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut accounts = self.accounts.begin().await;
        if cents == 0 {
            return Err("nothing to deposit".into());
        }
        let after = balance(&accounts, account) + cents;
        accounts.change(if account == BROKEN { Change::Broken } else { Change::Deposit { account, cents } });
        accounts.commit();
        Ok(after)
    }
    async fn deposit_twice(&self, account: u32, cents: u64) -> u64 {
        let mut first = self.accounts.begin().await;
        first.change(Change::Deposit { account, cents });
        let before = balance(&first, account);
        first.commit();
        let mut second = self.accounts.begin().await;
        second.change(Change::Deposit { account, cents });
        second.commit();
        // A third one that comes to nothing takes nothing of them along.
        let mut third = self.accounts.begin().await;
        third.change(Change::Deposit { account, cents });
        drop(third);
        before
    }
    async fn deposit_and(&self, account: u32, cents: u64, then: Then) -> u64 {
        let mut accounts = self.accounts.begin().await;
        accounts.change(Change::Deposit { account, cents });
        if then == Then::ForgetToCommit {
            return balance(&accounts, account);
        }
        accounts.commit();
        self.waiting.add_permits(1);
        match then {
            Then::Panic => panic!("this panic belongs to the test"),
            _ => std::future::pending().await,
        }
    }
    async fn balance(&self, account: u32) -> u64 {
        self.accounts.read(|accounts| accounts.0.get(&account).copied().unwrap_or(0)).await.unwrap()
    }
    async fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

async fn open(storage: impl Storage, config: DurableConfig) -> Durable<Accounts> {
    let (journal, _) = Journal::open(storage, Config::new(1)).unwrap();
    Durable::open(journal, Accounts::default(), config).await.unwrap()
}

fn serve(node: &Node, accounts: &Durable<Accounts>) -> (Serving, std::sync::Arc<Vault>) {
    serve_with(node, accounts, ServeOptions::default())
}

fn serve_with(
    node: &Node,
    accounts: &Durable<Accounts>,
    options: ServeOptions,
) -> (Serving, std::sync::Arc<Vault>) {
    let vault = std::sync::Arc::new(Vault {
        accounts: accounts.clone(),
        begun: AtomicUsize::new(0),
        waiting: Semaphore::new(0),
    });
    let server = SafeServer::shared(vault.clone());
    (node.serve_durable("safe", server, options, accounts).unwrap(), vault)
}

#[tokio::test]
async fn r07_what_calls_changed_and_were_answered_outlives_the_server() {
    for over in Over::all() {
        let storage = MemoryStorage::new();
        let accounts = open(storage.clone(), DurableConfig::default()).await;
        let (server, address) = over.server_at(1, 1, over.anywhere()).await;
        let (serving, _) = serve(&server, &accounts);
        let node = over.client(2).await;
        let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
        assert_eq!(safe.deposit(7, 5).await, Ok(5));
        assert_eq!(safe.deposit(7, 6).await, Ok(11));
        let error = safe.deposit(7, 0).await.unwrap_err();
        assert_eq!(error.application().as_deref(), Some("nothing to deposit"));
        let stats = accounts.stats();
        assert_eq!((stats.calls.completed, stats.calls.seats), (3, 1), "{stats:?}");

        // The client goes on as if nothing had happened.
        drop(serving);
        server.shutdown(Duration::from_secs(5)).await;
        accounts.close().await;
        let accounts = open(storage, DurableConfig::default()).await;
        let (server, _) = over.server_at(1, 2, &address).await;
        let (_serving, _) = serve(&server, &accounts);
        assert_eq!(soon("the next life", safe.deposit(7, 7)).await, Ok(18));
        assert_eq!(soon("the next life", safe.balance(7)).await, Ok(18));
        assert_eq!(accounts.stats().calls.seats, 1, "its seat is the one that it had");
    }
}

#[tokio::test]
async fn r07_what_was_committed_in_a_call_that_does_not_return_did_not_happen() {
    for over in Over::all() {
        let accounts = open(MemoryStorage::new(), DurableConfig::default()).await;
        let (server, address) = over.server(1).await;
        let (_serving, vault) = serve(&server, &accounts);
        let node = over.client(2).await;
        let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();

        let error = safe.deposit_and(1, 5, Then::Panic).await.unwrap_err();
        assert_eq!(error, CallError::MaybeExecuted(Doubt::HandlerFailed));
        vault.waiting.acquire().await.unwrap().forget();

        let call = tokio::spawn({
            let safe = safe.clone();
            async move { safe.deposit_and(1, 5, Then::Wait).await }
        });
        soon("the commit", vault.waiting.acquire()).await.unwrap().forget();
        call.abort();

        assert_eq!(soon("its turn", safe.deposit_and(1, 5, Then::ForgetToCommit)).await, Ok(0));
        // Had the given-up call kept its turn, this would wait for ever.
        assert_eq!(soon("its turn", safe.deposit(1, 3)).await, Ok(3));
        assert_eq!(safe.balance(1).await, Ok(3));
    }
}

#[tokio::test]
async fn r07_a_call_that_commits_again_goes_on_with_its_transaction() {
    let accounts = open(MemoryStorage::new(), DurableConfig::default()).await;
    let (server, address) = Over::Tcp.server(1).await;
    let (_serving, _) = serve(&server, &accounts);
    let node = Over::Tcp.client(2).await;
    let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
    assert_eq!(soon("no deadlock", safe.deposit_twice(1, 5)).await, Ok(0));
    assert_eq!(safe.balance(1).await, Ok(10));
    assert_eq!(accounts.stats().durable, 2, "a seat and one record of both changes");
}

#[tokio::test]
async fn r07_calls_that_end_together_share_a_sync_and_old_records_give_way_to_a_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = DurableConfig::default();
    config.compact_records = 100;
    let accounts = open(FileStorage::open(directory.path().join("j")).unwrap(), config).await;
    let (server, address) = Over::Tcp.server_at(1, 1, "tcp://127.0.0.1:0").await;
    let (serving, _) = serve(&server, &accounts);
    let node = Over::Tcp.client(2).await;
    let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let safe = safe.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    safe.deposit(caller, 1).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        soon("a caller", caller).await.unwrap();
    }
    let stats = accounts.stats();
    assert_eq!((stats.durable, stats.calls.completed), (641, 640));
    assert!(stats.appends < stats.durable, "{stats:?}");
    assert!(stats.calls.kept_bytes < 64 * 200, "answers go when they are acknowledged: {stats:?}");

    drop(serving);
    server.shutdown(Duration::from_secs(5)).await;
    accounts.close().await;
    let accounts = open(FileStorage::open(directory.path().join("j")).unwrap(), config).await;
    let sums = accounts.read(|accounts| accounts.0.values().copied().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(sums, vec![10; 64]);
    let (server, _) = Over::Tcp.server_at(1, 2, &address).await;
    let (_serving, _) = serve(&server, &accounts);
    assert_eq!(soon("the next life", safe.deposit(3, 1)).await, Ok(11));
    assert_eq!(accounts.stats().calls.seats, 1, "the snapshot remembers the client");
}

#[tokio::test]
async fn r07_a_method_that_needs_a_journal_is_not_served_without() {
    let (server, address) = Over::Tcp.server(1).await;
    let accounts = open(MemoryStorage::new(), DurableConfig::default()).await;
    let vault = Vault { accounts, begun: AtomicUsize::new(0), waiting: Semaphore::new(0) };
    let error = server.serve("safe", SafeServer::new(vault)).unwrap_err();
    assert_eq!(error, ServeError::NeedsDurable { name: "safe".into(), method: "deposit" });
    drop(address);
}

#[tokio::test]
async fn r07_who_calls_decides_how_often_a_call_is_executed() {
    let accounts = open(MemoryStorage::new(), DurableConfig::default()).await;
    let (server, address) = Over::Tcp.server(1).await;
    let (_serving, _) = serve(&server, &accounts);
    let node = Over::Tcp.client(2).await;
    let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
    // At most once: the change is durable all the same, its answer is not kept.
    assert_eq!(safe.with_semantics(Semantics::AtMostOnce).deposit(1, 5).await, Ok(5));
    assert_eq!(accounts.stats().calls.completed, 0);
    // Exactly once, of a method that does not ask for it.
    assert_eq!(safe.with_semantics(Semantics::ExactlyOnce).balance(1).await, Ok(5));
    assert_eq!(accounts.stats().calls.completed, 1);

    // A service without a journal cannot promise it, and says so.
    let _plain = server.serve("plain", PlainServer::new(Pong)).unwrap();
    let mut options = ClientOptions::default();
    options.exactly_once = true;
    let plain = PlainClient::<Postcard>::connect_with(&node, "plain", &address, options).await.unwrap();
    let error = plain.with_semantics(Semantics::ExactlyOnce).ping().await.unwrap_err();
    assert_eq!(error, CallError::NotExecuted(Refusal::NoJournal));
    assert!(error.is_not_executed() && !error.is_retryable());
}

#[tokio::test]
async fn r07_a_failed_journal_leaves_the_caller_in_doubt_and_the_next_one_refused() {
    let storage = FaultyStorage::new(7);
    let accounts = open(storage.clone(), DurableConfig::default()).await;
    let (server, address) = Over::Tcp.server(1).await;
    let (_serving, vault) = serve(&server, &accounts);
    let node = Over::Tcp.client(2).await;
    let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
    assert_eq!(safe.deposit(1, 5).await, Ok(5));
    storage.fail_sync(storage.syncs());
    let error = safe.deposit_twice(1, 5).await.unwrap_err();
    assert_eq!(error, CallError::MaybeExecuted(Doubt::JournalFailed));
    let begun = vault.begun.load(Ordering::SeqCst);
    let error = safe.deposit_twice(1, 5).await.unwrap_err();
    assert_eq!(error, CallError::NotExecuted(Refusal::JournalFailed));
    assert_eq!(vault.begun.load(Ordering::SeqCst), begun);
    // What the state shows now may be lost: nobody sees it.
    assert!(matches!(accounts.read(|_| ()).await, Err(NotDurable::Journal(_))));
}

#[tokio::test]
async fn r07_answers_that_wait_for_a_journal_that_hangs_hold_up_no_method_that_can_do_without_it() {
    let (journal, _) = Journal::open(MemoryStorage::new(), Config::new(1)).unwrap();
    let accounts =
        Durable::open(journal.clone(), Accounts::default(), DurableConfig::default()).await.unwrap();
    let (server, address) = Over::Tcp.server(1).await;
    let mut options = ServeOptions::default();
    options.executing_max = 3;
    let (serving, vault) = serve_with(&server, &accounts, options);
    let node = Over::Tcp.client(2).await;
    let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
    assert_eq!(safe.deposit(1, 5).await, Ok(5));
    // The journal's thread stands until it is let go.
    let (let_go, standing) = std::sync::mpsc::channel::<()>();
    let stand = move |_| {
        let _ = standing.recv();
    };
    journal.append_then(vec![Record::new(1, "")], stand).unwrap();
    for wave in 1..=3 {
        let deposits: Vec<_> = (0..3).map(|_| safe.deposit_start(wave, 5)).collect();
        let begun = async {
            while vault.begun.load(Ordering::SeqCst) < 1 + 3 * wave as usize {
                tokio::task::yield_now().await;
            }
        };
        soon("three more deposits", begun).await;
        assert_eq!(soon("who needs no journal", safe.begun()).await, Ok(1 + 3 * wave as usize));
        assert_eq!(serving.stats().executing, 0, "what only waits has left its place");
        if wave < 3 {
            continue;
        }
        // What waits is waited for, also by who drains; and it was answered only now.
        let draining = serving.drain(Duration::from_secs(60));
        let_go.send(()).unwrap();
        assert_eq!(soon("the drain", draining).await, 0);
        for (nth, deposit) in deposits.into_iter().enumerate() {
            assert_eq!(soon("a deposit", deposit).await, Ok(5 * (nth as u64 + 1)));
        }
    }
}

#[tokio::test]
async fn r07_a_state_that_panics_serves_nothing_any_more() {
    let accounts = open(MemoryStorage::new(), DurableConfig::default()).await;
    let (server, address) = Over::Tcp.server(1).await;
    let (_serving, _) = serve(&server, &accounts);
    let node = Over::Tcp.client(2).await;
    let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
    assert!(safe.deposit(BROKEN, 1).await.is_err());
    assert!(matches!(accounts.read(|_| ()).await, Err(NotDurable::Panicked)));
    assert_eq!(safe.deposit_twice(1, 1).await.unwrap_err(), CallError::NotExecuted(Refusal::JournalFailed));
}

#[tokio::test]
async fn r07_a_client_too_many_is_refused_and_one_that_was_away_for_long_makes_room() {
    let mut config = DurableConfig::default();
    (config.clients_max, config.lease) = (1, Duration::from_secs(3_600));
    let accounts = open(MemoryStorage::new(), config).await;
    let (server, address) = Over::Tcp.server(1).await;
    let (_serving, _) = serve(&server, &accounts);
    let node = Over::Tcp.client(2).await;
    let safe = SafeClient::connect(&node, "safe", &address).await.unwrap();
    assert_eq!(safe.deposit(1, 5).await, Ok(5));
    let Err(error) = SafeClient::connect(&node, "safe", &address).await else { panic!("it was let in") };
    assert!(error.to_string().contains("too many clients"), "{error}");
    assert!(error.is_retryable());
}

/// The account at which the state fails.
const BROKEN: u32 = 666;
