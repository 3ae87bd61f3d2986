//! Pauses, lost quorums and directories that are gone.

use std::time::Duration;

use quorate::naming::{Directory, Entry, Names, NamesError, NamesOptions, Query, Status};
use quorate::node::Node;
use tests::{nets, within};

use crate::{addresses, directory, names};

#[tokio::test(start_paused = true)]
async fn p06_a_pause_of_the_directory_costs_nobody_a_name() {
    let net = &nets()[0];
    let replicas = directory(net, 1).await;
    let owner = names(&net.node(10).await, &addresses(&replicas), 1).await;
    let mine = within(owner.register("service", Entry::default())).await.unwrap();
    let before = mine.status();
    assert!(matches!(before, Status::Registered { .. }), "{before:?}");
    for _ in 0..20 {
        // The host stands still, longer than the lease, and everybody on it.
        tokio::time::advance(Duration::from_secs(3)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(mine.status(), before);
    }
    let found = within(owner.lookup_latest(&Query::named("service"))).await.unwrap();
    let Status::Registered { version } = before else { unreachable!("it is registered") };
    assert_eq!(found[0].version, version, "it was never gone");
}

#[tokio::test(start_paused = true)]
async fn p06_a_replica_without_a_quorum_does_not_answer_for_the_others() {
    let net = &nets()[0];
    let mut replicas = directory(net, 3).await;
    let mut options = NamesOptions::default();
    options.deadline = Duration::from_secs(3);
    let node = net.node(10).await;
    let asker = within(Names::connect_with(&node, &addresses(&replicas[..1]), options)).await.unwrap();
    assert_eq!(within(asker.lookup(&Query::any())).await.unwrap(), []);
    for (node, replica) in replicas.drain(1..) {
        drop(replica);
        node.shutdown(Duration::ZERO).await;
    }
    let mut progress = replicas[0].1.watch();
    within(progress.wait_for(|progress| !progress.has_quorum)).await.unwrap();
    // It would not learn of anything that the others went on with, and so says nothing.
    let error = within(asker.lookup(&Query::any())).await.unwrap_err();
    assert!(matches!(error, NamesError::Unreachable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn p06_who_takes_leave_of_a_directory_that_is_gone_is_told() {
    let net = &nets()[0];
    let replicas = directory(net, 1).await;
    let owner = names(&net.node(10).await, &addresses(&replicas), 10).await;
    let clean = names(&net.node(11).await, &addresses(&replicas), 10).await;
    let mine = within(owner.register("service", Entry::default())).await.unwrap();
    for (node, replica) in replicas {
        drop(replica);
        node.shutdown(Duration::ZERO).await;
    }
    assert!(!within(owner.close(Duration::from_secs(30))).await, "nobody took it");
    assert!(!within(owner.close(Duration::from_secs(30))).await, "that does not change");
    assert_eq!(within(mine.withdraw()).await, Err(NamesError::Closed));
    assert!(within(clean.close(Duration::from_secs(30))).await, "there was nothing to take");
}

#[tokio::test]
async fn p06_who_waits_for_ever_may_say_so() {
    let net = &nets()[0];
    let replicas = directory(net, 1).await;
    let mut options = NamesOptions::default();
    options.deadline = Duration::MAX;
    let node = net.node(10).await;
    let names = within(Names::connect_with(&node, &addresses(&replicas), options)).await.unwrap();
    let _registration = within(names.register("service", Entry::default())).await.unwrap();
    assert_eq!(within(names.lookup(&Query::any())).await.unwrap().len(), 1);
}

#[tokio::test]
async fn p06_a_handle_on_its_node_does_not_keep_a_dropped_replica_alive() {
    let node = Node::builder().listen("tcp://127.0.0.1:0").start().await.unwrap();
    let replica = within(Directory::found(&node)).await.unwrap();
    let names = within(Names::connect(&node, &node.addresses())).await.unwrap();
    let mut progress = replica.watch();
    drop(replica);
    // Gone or over: it is no member any more.
    let _ = within(progress.wait_for(|progress| progress.is_over)).await;
    drop(names);
}
