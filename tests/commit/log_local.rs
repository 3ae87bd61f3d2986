//! Replicas on a log over nodes of one process: what their users see when a leader goes, members change, journals stay.

use std::time::Duration;

use quorate::replication::log::{ApplyError, ChangeError, Config, Logged, OpenError, Refusal, Storage};
use quorate::{Node, NodeId};
use quorate_journal::{Journal, MemoryStorage};
use tests::{Net, until, within};

use crate::registers::{Ask, Registers};

async fn nodes(net: &Net, count: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    for id in 1..=count {
        nodes.push(net.node(id).await);
    }
    for node in &nodes {
        for (id, other) in (1..=count).zip(&nodes).filter(|(id, _)| NodeId(*id) != node.identity().node) {
            node.add_address(NodeId(id), other.addresses()[0].clone());
        }
    }
    nodes
}

fn config() -> Config {
    // Small, so that snapshots come.
    Config { log_entries_max: 40, log_entries_kept: 5, ..Config::default() }
}

async fn open(node: &Node, storage: Storage, founders: &[u64]) -> Logged<Registers> {
    let founders = founders.iter().copied().map(NodeId);
    Logged::open(node, "registers", storage, Registers::default(), founders, config()).await.unwrap()
}

/// The replica that leads and knows it.
async fn leader(replicas: &[Logged<Registers>]) -> usize {
    let mut found = None;
    until(|| {
        let living = || replicas.iter().map(Logged::progress).enumerate().filter(|(_, p)| !p.is_over);
        let newest = living().map(|(_, progress)| progress.term).max();
        found = living().find(|(at, progress)| {
            Some(progress.term) == newest && progress.leader == Some(NodeId(*at as u64 + 1))
        });
        found.is_some()
    })
    .await;
    found.map(|(at, _)| at).unwrap()
}

fn write(key: u64, value: u64) -> Ask {
    Ask::Write { key, value }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d05_replicas_on_a_log_outlive_their_leader_and_take_in_a_newcomer() {
    let net = tests::memory();
    let nodes = nodes(&net, 4).await;
    let mut replicas = Vec::new();
    for node in &nodes[..3] {
        replicas.push(open(node, Storage::Memory, &[1, 2, 3]).await);
    }
    for (value, replica) in (0..60).zip(replicas.iter().cycle()) {
        assert!(within(replica.apply(&write(value % 5, value))).await.unwrap());
    }
    let gone = leader(&replicas).await;
    replicas[gone].stop().await;
    assert!(matches!(replicas[gone].apply(&write(0, 0)).await, Err(ApplyError::Ended)));
    let left: Vec<_> = (0..3).filter(|at| *at != gone).collect();
    for (value, at) in (100..160).zip(left.iter().cycle()) {
        within(replicas[*at].apply(&write(value % 5, value))).await.unwrap();
        let other = left[usize::from(*at == left[0])];
        let seen = within(replicas[other].read_latest(|registers| registers.0[&(value % 5)])).await.unwrap();
        assert_eq!(seen, value, "a read at another replica sees what was answered before");
    }
    // The newcomer gets a snapshot, for the log begins long after its first entry.
    replicas.push(open(&nodes[3], Storage::Memory, &[]).await);
    let leading = leader(&replicas).await;
    let refused = within(replicas[leading].promote(NodeId(4))).await;
    assert!(matches!(refused, Err(ChangeError::Refused(Refusal::Behind(_)))), "{refused:?}");
    within(replicas[leading].add_learner(NodeId(4))).await.unwrap();
    until(|| replicas[3].stats().restored == 1).await;
    within(replicas[leading].promote(NodeId(4))).await.unwrap();
    within(replicas[leading].remove(NodeId(gone as u64 + 1))).await.unwrap();
    assert_eq!(replicas[leading].progress().voters.len(), 3);
    let seen = within(replicas[3].read_latest(|registers| registers.0.clone())).await.unwrap();
    assert_eq!(seen, replicas[leading].read(|registers| registers.0.clone()));
    assert!(seen.values().all(|value| *value >= 155), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d05_a_command_for_a_term_that_is_over_is_refused() {
    let net = tests::memory();
    let nodes = nodes(&net, 1).await;
    let replicas = [open(&nodes[0], Storage::Memory, &[1]).await];
    leader(&replicas).await;
    let term = replicas[0].progress().term;
    assert!(within(replicas[0].apply_in_term(&write(1, 1), term)).await.unwrap());
    // Nobody has led an earlier term than the first; a term that is still to come is waited for.
    let command = write(1, 2);
    let early = replicas[0].apply_in_term(&command, term + 1);
    let early = tokio::time::timeout(Duration::from_millis(50), early);
    assert!(early.await.is_err());
    assert_eq!(replicas[0].read(|registers| registers.0[&1]), 1);
    let again = Logged::<Registers>::open(
        &nodes[0],
        "registers",
        Storage::Memory,
        Registers::default(),
        [],
        config(),
    );
    assert!(matches!(again.await, Err(OpenError::Open(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d05_all_replicas_stop_and_their_journals_bring_the_state_back() {
    let net = tests::memory();
    let nodes = nodes(&net, 3).await;
    let disks = [0, 1, 2].map(|_| MemoryStorage::new());
    let journal =
        |at: usize| Journal::open(disks[at].clone(), quorate_journal::Config::new(at as u64)).unwrap().0;
    let mut term = 0;
    for life in 0..3 {
        let mut replicas = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            replicas.push(open(node, Storage::Journal(journal(at)), &[1, 2, 3]).await);
        }
        for value in 0..50 {
            within(replicas[value as usize % 3].apply(&write(life, value))).await.unwrap();
        }
        for replica in &replicas {
            let seen = within(replica.read_latest(|registers| registers.0.clone())).await.unwrap();
            assert_eq!(seen, (0..=life).map(|life| (life, 49)).collect());
        }
        for replica in &replicas {
            assert!(replica.progress().term > term, "a new life has a new term");
            replica.stop().await;
        }
        term = replicas[0].progress().term;
    }
}
