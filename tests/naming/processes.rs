//! The replicas are processes of their own, and are killed one after the other.

use std::process::Stdio;
use std::time::Duration;

use quorate::naming::{Directory, Entry, Names, Query};
use quorate::node::{Address, Node};
use tests::within;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Where the replica is to join; nothing for the founder.
const CONTACTS_VARIABLE: &str = "QUORATE_TEST_DIRECTORY";
/// Where it listens.
const LISTEN_VARIABLE: &str = "QUORATE_TEST_DIRECTORY_LISTEN";
const READY: &str = "the directory is at ";

/// The program of a replica. Does nothing unless the test below starts it.
#[tokio::test]
async fn replica_that_is_killed() {
    let Ok(contacts) = std::env::var(CONTACTS_VARIABLE) else { return };
    let contacts: Vec<Address> = contacts.split_whitespace().map(|text| text.parse().unwrap()).collect();
    let listen = std::env::var(LISTEN_VARIABLE).unwrap();
    let node = Node::builder().listen(listen.as_str()).start().await.unwrap();
    let _directory = if contacts.is_empty() {
        Directory::found(&node).await.unwrap()
    } else {
        Directory::join(&node, &contacts).await.unwrap()
    };
    println!("{READY}{}", node.addresses()[0]);
    std::future::pending::<()>().await;
}

/// Starts a replica; returns when it has the state and serves.
async fn start(listen: &str, contacts: &[Address]) -> (Child, Address) {
    let contacts: Vec<_> = contacts.iter().map(Address::to_string).collect();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::replica_that_is_killed", "--nocapture", "--test-threads=1"])
        .env(CONTACTS_VARIABLE, contacts.join(" "))
        .env(LISTEN_VARIABLE, listen)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = within(async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the replica starts");
            // The test harness does not end its own line first.
            if let Some((_, address)) = line.split_once(READY) {
                return address.parse().unwrap();
            }
        }
    })
    .await;
    (child, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_nothing_registered_is_lost_while_every_replica_is_killed_in_turn() {
    let mut replicas: Vec<(Child, Address)> = Vec::new();
    for _ in 0..3 {
        let contacts: Vec<_> = replicas.iter().map(|(_, address)| address.clone()).collect();
        replicas.push(start("tcp://127.0.0.1:0", &contacts).await);
    }
    let servers: Vec<_> = replicas.iter().map(|(_, address)| address.clone()).collect();
    let node = Node::builder().start().await.unwrap();
    let names = within(Names::connect(&node, &servers)).await.unwrap();
    let mut kept = Vec::new();
    for place in 0..replicas.len() {
        for number in 0..10 {
            let entry = Entry::default().with("before", place.to_string());
            kept.push(within(names.register(format!("{place}/{number}"), entry)).await.unwrap());
        }
        replicas[place].0.kill().await.unwrap();
        kept.push(within(names.register(format!("{place}/after"), Entry::default())).await.unwrap());
        let contacts: Vec<_> =
            servers.iter().filter(|address| **address != servers[place]).cloned().collect();
        replicas[place] = start(&servers[place].to_string(), &contacts).await;
    }
    for address in &servers {
        let names = within(Names::connect(&node, std::slice::from_ref(address))).await.unwrap();
        let found = within(names.lookup_latest(&Query::any())).await.unwrap();
        assert_eq!(found.len(), kept.len());
        assert_eq!(found.iter().filter(|found| found.attributes.contains_key("before")).count(), 30);
    }
    assert!(within(names.close(Duration::from_secs(30))).await);
}
