//! Several nodes in one process, over every medium, with journals in files.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate::commit::{
    AbortReason, BeginError, Config, NoResource, OpenError, Outcome, Resource, Transactions, TxnId, Vote,
};
use quorate::{Node, NodeId};
use quorate_journal::{FaultyStorage, FileStorage, Journal, MemoryStorage, Record};
use tests::{nets, until};
use tokio::sync::Semaphore;

use crate::vault::{START, Vault, pay};

const LONG: Duration = Duration::from_secs(30);

/// A node for the stories in which nothing depends on the medium.
async fn node(id: u64) -> Node {
    tests::memory().node(id).await
}

/// Everyone knows where everyone is.
fn introduce(nodes: &[&Node]) {
    for one in nodes {
        for other in nodes {
            if one.identity() != other.identity() {
                one.add_address(other.identity().node, other.addresses()[0].clone());
            }
        }
    }
}

fn journal(directory: &Path, owner: u64) -> Journal {
    let storage = FileStorage::open(directory.join("commit")).unwrap();
    Journal::open(storage, quorate_journal::Config::new(owner)).unwrap().0
}

fn memory(owner: u64) -> Journal {
    Journal::open(MemoryStorage::new(), quorate_journal::Config::new(owner)).unwrap().0
}

async fn serve(node: &Node, journal: Journal, resource: impl Resource) -> Transactions {
    // No story here is about this time-out, however slow the machine.
    let config = Config { prepare_timeout: 20 * LONG, ..Config::default() };
    Transactions::open(node, "bank", journal, resource, config).await.unwrap()
}

fn transfer(amount: i64) -> [(NodeId, Bytes); 2] {
    [(NodeId(2), pay(-amount)), (NodeId(3), pay(amount))]
}

#[tokio::test]
async fn k02_a_transfer_between_two_vaults_commits_or_aborts_as_a_whole() {
    for net in nets() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
        introduce(&[&one, &two, &three]);
        let (left, right) = (directory.path().join("2"), directory.path().join("3"));
        let (left, right) = (Vault::open(&left, 2), Vault::open(&right, 3));
        let coordinator = serve(&one, memory(1), NoResource).await;
        let payer = serve(&two, memory(2), left.clone()).await;
        let payee = serve(&three, memory(3), right.clone()).await;

        let outcome = coordinator.run(transfer(300)).await.unwrap();
        assert!(outcome.is_committed(), "{outcome:?}");
        let outcome = coordinator.run(transfer(START)).await.unwrap();
        assert!(matches!(outcome, Outcome::Aborted(_, AbortReason::VotedNo(2))), "{outcome:?}");

        // The caller knows before everyone has applied it.
        for served in [&coordinator, &payer, &payee] {
            assert!(served.shutdown(LONG).await.is_nothing());
        }
        assert_eq!((left.balance(), right.balance()), (START - 300, START + 300));
        assert_eq!((left.held(), right.held()), (0, 0));
        let stats = coordinator.stats();
        assert_eq!((stats.committed, stats.aborted), (1, 1));
        assert_eq!(coordinator.run(transfer(1)).await, Err(BeginError::Stopped));
    }
}

#[tokio::test]
async fn a_coordinator_may_take_part_itself_and_many_transactions_run_at_once() {
    for net in nets() {
        let directory = tempfile::tempdir().unwrap();
        let (two, three) = (net.node(2).await, net.node(3).await);
        introduce(&[&two, &three]);
        let (left, right) = (directory.path().join("2"), directory.path().join("3"));
        let (left, right) = (Vault::open(&left, 2), Vault::open(&right, 3));
        let payer = serve(&two, memory(2), left.clone()).await;
        let payee = serve(&three, memory(3), right.clone()).await;
        let mut running = tokio::task::JoinSet::new();
        for amount in 1..=40 {
            let by = if amount % 2 == 0 { &payer } else { &payee }.clone();
            running.spawn(async move { by.run(transfer(amount)).await });
        }
        while let Some(done) = running.join_next().await {
            assert!(done.unwrap().unwrap().is_committed());
        }
        assert!(payer.shutdown(LONG).await.is_nothing() && payee.shutdown(LONG).await.is_nothing());
        assert_eq!((left.balance(), right.balance()), (START - 820, START + 820));
        assert_eq!(left.applied().len(), 40);
    }
}

/// Says yes when it is let.
#[derive(Clone)]
struct Hesitant(Arc<Semaphore>);

impl Resource for Hesitant {
    async fn prepare(&self, _: TxnId, _: Bytes) -> Vote {
        let _ = self.0.acquire().await;
        Vote::Yes
    }
    async fn commit(&self, _: TxnId) {}
    async fn abort(&self, _: TxnId) {}
    async fn restore(&self, _: TxnId, _: Bytes) {}
}

#[tokio::test]
async fn k02_a_promise_survives_the_restart_of_the_participant() {
    for net in nets() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
        introduce(&[&one, &two, &three]);
        let vault = Vault::open(directory.path(), 2);
        let hesitant = Hesitant(Arc::new(Semaphore::new(0)));
        let coordinator = serve(&one, memory(1), NoResource).await;
        let kept = journal(directory.path(), 2);
        let payer = serve(&two, kept.clone(), vault.clone()).await;
        let _payee = serve(&three, memory(3), hesitant.clone()).await;

        let transaction = coordinator.begin(transfer(10)).await.unwrap();
        let txn = transaction.id();
        until(|| payer.in_doubt() == [txn]).await;
        // Stopped in the middle: it leaves a promise behind.
        let left = payer.shutdown(Duration::ZERO).await;
        assert_eq!(left.in_doubt, 1);
        two.shutdown(LONG).await;
        kept.close().await;
        vault.close().await;

        let vault = Vault::open(directory.path(), 2);
        let two = net.node(2).await;
        introduce(&[&one, &two, &three]);
        let payer = serve(&two, journal(directory.path(), 2), vault.clone()).await;
        assert_eq!(vault.restored(), [txn].into());
        // At once, or a shutdown at this moment would find nothing to wait for.
        assert_eq!(payer.in_doubt(), [txn]);
        hesitant.0.add_permits(1);
        assert_eq!(transaction.outcome().await, Outcome::Committed(txn));
        until(|| vault.balance() == START - 10).await;
        assert!(payer.shutdown(LONG).await.is_nothing());
    }
}

#[tokio::test]
async fn k02_a_decision_survives_the_restart_of_the_coordinator() {
    for net in nets() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (net.node(1).await, net.node(2).await);
        // The participant can answer and not be reached again: the coordinator's connection is the only one.
        introduce(&[&one, &two]);
        let hesitant = Hesitant(Arc::new(Semaphore::new(1)));
        let kept = journal(directory.path(), 1);
        let coordinator = serve(&one, kept.clone(), NoResource).await;
        let slow = Slow(hesitant.0.clone());
        let participant = serve(&two, memory(2), slow).await;

        let outcome = coordinator.run([(NodeId(2), Bytes::new())]).await.unwrap();
        let txn = outcome.txn();
        assert_eq!(outcome, Outcome::Committed(txn));
        // Not acknowledged: the resource is still applying it.
        coordinator.shutdown(Duration::ZERO).await;
        one.shutdown(LONG).await;
        kept.close().await;

        let one = net.node(1).await;
        introduce(&[&one, &two]);
        let coordinator = serve(&one, journal(directory.path(), 1), NoResource).await;
        assert_eq!(coordinator.resumed(), [txn]);
        hesitant.0.add_permits(1);
        assert!(participant.shutdown(LONG).await.is_nothing());
        assert_eq!(participant.stats().applied, 1);
    }
}

/// Applies when it is let.
struct Slow(Arc<Semaphore>);

impl Resource for Slow {
    async fn prepare(&self, _: TxnId, _: Bytes) -> Vote {
        self.0.acquire().await.unwrap().forget();
        Vote::Yes
    }
    async fn commit(&self, _: TxnId) {
        self.0.acquire().await.unwrap().forget();
    }
    async fn abort(&self, _: TxnId) {}
    async fn restore(&self, _: TxnId, _: Bytes) {}
}

/// Panics when asked.
struct Broken;

impl Resource for Broken {
    async fn prepare(&self, _: TxnId, _: Bytes) -> Vote {
        panic!("a bug in the user's resource")
    }
    async fn commit(&self, _: TxnId) {}
    async fn abort(&self, _: TxnId) {}
    async fn restore(&self, _: TxnId, _: Bytes) {}
}

#[tokio::test]
async fn a_resource_that_panics_votes_no() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        introduce(&[&one, &two]);
        let coordinator = serve(&one, memory(1), NoResource).await;
        let participant = serve(&two, memory(2), Broken).await;
        let outcome = coordinator.run([(NodeId(2), Bytes::new())]).await.unwrap();
        assert!(matches!(outcome, Outcome::Aborted(_, AbortReason::VotedNo(2))), "{outcome:?}");
        assert_eq!(participant.stats().panicked, 1);
    }
}

#[tokio::test]
async fn stopping_leaves_the_outcome_in_doubt_and_says_so() {
    let one = node(1).await;
    let coordinator = serve(&one, memory(1), NoResource).await;
    // Nobody knows where node 9 is.
    let transaction = coordinator.begin([(NodeId(9), Bytes::new())]).await.unwrap();
    let txn = transaction.id();
    let outcome = tokio::spawn(transaction.outcome());
    let left = coordinator.shutdown(Duration::ZERO).await;
    assert_eq!(left.undecided, 1);
    assert_eq!(outcome.await.unwrap(), Outcome::InDoubt(txn));
}

#[tokio::test]
async fn a_long_history_is_compacted_and_open_promises_are_kept() {
    let two = node(2).await;
    let disk = MemoryStorage::new();
    let config = || quorate_journal::Config::new(2).segment_bytes(64 * 1024);
    let (kept, _) = Journal::open(disk.clone(), config()).unwrap();
    let agreeable = Hesitant(Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)));
    let served = serve(&two, kept.clone(), agreeable.clone()).await;
    // Voted yes here; the other participant is nowhere, so it stays open.
    let open = served.begin([(NodeId(2), Bytes::new()), (NodeId(9), Bytes::new())]).await.unwrap();
    until(|| served.in_doubt() == [open.id()]).await;

    let mut running = tokio::task::JoinSet::new();
    // Four records each: more than the driver keeps.
    for _ in 0..64 {
        let served = served.clone();
        running.spawn(async move {
            for _ in 0..100 {
                assert!(served.run([(NodeId(2), Bytes::from_static(b"work"))]).await.unwrap().is_committed());
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    until(|| kept.first().as_u64() > 10_000).await;
    served.shutdown(Duration::ZERO).await;
    kept.close().await;

    let (again, _) = Journal::open(disk, config()).unwrap();
    let restored = Arc::new(Semaphore::new(0));
    let _served = serve(&two, again, Counting(restored.clone())).await;
    assert_eq!(restored.available_permits(), 1, "the one promise that was open");
}

/// Counts what comes back after a restart.
struct Counting(Arc<Semaphore>);

impl Resource for Counting {
    async fn prepare(&self, _: TxnId, _: Bytes) -> Vote {
        Vote::Yes
    }
    async fn commit(&self, _: TxnId) {}
    async fn abort(&self, _: TxnId) {}
    async fn restore(&self, _: TxnId, _: Bytes) {
        self.0.add_permits(1);
    }
}

#[tokio::test]
async fn a_journal_that_fails_stops_it_and_no_promise_is_made() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        introduce(&[&one, &two]);
        let disk = FaultyStorage::new(1);
        let (failing, _) = Journal::open(disk.clone(), quorate_journal::Config::new(1)).unwrap();
        let coordinator = serve(&one, failing, NoResource).await;
        let hesitant = Hesitant(Arc::new(Semaphore::new(0)));
        let participant = serve(&two, memory(2), hesitant.clone()).await;

        let transaction = coordinator.begin([(NodeId(2), Bytes::new())]).await.unwrap();
        let txn = transaction.id();
        // The next sync is the one that the decision waits for.
        disk.fail_sync(disk.syncs());
        hesitant.0.add_permits(1);
        assert_eq!(transaction.outcome().await, Outcome::InDoubt(txn));
        assert_eq!(participant.in_doubt(), [txn], "a decision that may not be durable is told to nobody");
        assert_eq!(coordinator.run([(NodeId(2), Bytes::new())]).await, Err(BeginError::Stopped));
    }
}

#[tokio::test]
async fn a_cancelled_transaction_aborts() {
    let one = node(1).await;
    let coordinator = serve(&one, memory(1), NoResource).await;
    let transaction = coordinator.begin([(NodeId(9), Bytes::new())]).await.unwrap();
    let txn = transaction.id();
    transaction.cancel().await;
    assert_eq!(transaction.outcome().await, Outcome::Aborted(txn, AbortReason::Cancelled));
}

#[tokio::test]
async fn k02_transactions_that_are_given_up_while_they_begin_leave_nothing() {
    let one = node(1).await;
    let coordinator = serve(&one, memory(1), NoResource).await;
    let mut cx = Context::from_waker(Waker::noop());
    let mut begin = || {
        let mut begin = Box::pin(coordinator.begin([(NodeId(9), Bytes::new())]));
        assert!(begin.as_mut().poll(&mut cx).is_pending());
        begin
    };
    // More than may wait for the machine, which does not run meanwhile: the last ones were never handed over.
    drop((0..2000).map(|_| begin()).collect::<Vec<_>>());
    // This one has its name by then, and nobody has heard it.
    let named = begin();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(named);
    let left = coordinator.shutdown(LONG).await;
    assert!(left.is_nothing(), "{left:?}");
}

#[tokio::test]
async fn k02_large_promises_on_a_slow_disk_wait_and_stop_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let one = node(1).await;
    let storage = FileStorage::open(directory.path().join("commit")).unwrap();
    // Room for one promise at a time.
    let config = quorate_journal::Config::new(1).waiting_bytes_max(4096);
    let (narrow, _) = Journal::open(storage, config).unwrap();
    let agreeable = Hesitant(Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)));
    let served = serve(&one, narrow, agreeable).await;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let served = served.clone();
        running.spawn(async move { served.run([(NodeId(1), vec![7; 3000].into())]).await });
    }
    while let Some(done) = running.join_next().await {
        assert!(done.unwrap().unwrap().is_committed());
    }
}

#[tokio::test]
async fn what_cannot_be_opened_or_begun_says_why() {
    let one = node(1).await;
    let coordinator = serve(&one, memory(1), NoResource).await;
    let again = Transactions::open(&one, "bank", memory(1), NoResource, Config::default()).await;
    assert!(matches!(again, Err(OpenError::Open(_))));
    let nobody = coordinator.run([]).await.unwrap_err();
    assert!(matches!(nobody, BeginError::Refused(_)) && !nobody.is_retryable(), "{nobody}");

    let foreign = memory(1);
    foreign.append(vec![Record::new(0x2C, "not a record of transactions")]).await.unwrap();
    let damaged = Transactions::open(&one, "other", foreign, NoResource, Config::default()).await;
    assert!(matches!(damaged, Err(OpenError::Record { .. })));
}

/// Never answers.
struct Silent;

impl Resource for Silent {
    async fn prepare(&self, _: TxnId, _: Bytes) -> Vote {
        std::future::pending().await
    }
    async fn commit(&self, _: TxnId) {}
    async fn abort(&self, _: TxnId) {}
    async fn restore(&self, _: TxnId, _: Bytes) {}
}

#[test]
fn k02_transactions_end_with_their_runtime_and_tell_who_waits() {
    let new = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let runtime = new();
    let (node, transactions, open) = runtime.block_on(async {
        let node = node(1).await;
        let transactions = serve(&node, memory(1), Silent).await;
        let open = transactions.begin([(NodeId(1), Bytes::from_static(b"work"))]).await.unwrap();
        (node, transactions, open)
    });
    runtime.shutdown_timeout(LONG);
    let txn = open.id();
    new().block_on(async {
        let waited = tokio::time::timeout(LONG, open.outcome()).await;
        assert_eq!(waited, Ok(Outcome::InDoubt(txn)));
        let refused = tokio::time::timeout(LONG, transactions.run(transfer(1))).await;
        assert_eq!(refused, Ok(Err(BeginError::Stopped)));
    });
    drop((node, transactions));
}

#[tokio::test]
async fn k02_transactions_that_are_opened_again_give_no_number_twice() {
    let node = node(1).await;
    let journal = memory(1);
    let mut numbers = BTreeSet::new();
    for round in 0..20 {
        let opened = async {
            loop {
                match Transactions::open(&node, "bank", journal.clone(), NoResource, Config::default()).await
                {
                    Ok(transactions) => return transactions,
                    // The one before is at its last record.
                    Err(OpenError::Open(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let transactions = tokio::time::timeout(LONG, opened).await.unwrap();
        // Nobody takes part, so it does not end. A later transaction of its number would pass for it.
        let open = transactions.begin([(NodeId(9), Bytes::from_static(b"work"))]).await.unwrap();
        assert!(numbers.insert(open.id()), "round {round}: {} again", open.id());
        drop((open, transactions));
    }
}
