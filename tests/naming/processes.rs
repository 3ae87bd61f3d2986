//! The replicas are processes of their own, and are killed one after the other.

use std::time::Duration;

use quorate::naming::{Directory, Entry, Names, Query};
use quorate::node::{Address, Node};
use tests::{Net, Orders, Worker, tcp, within};

/// The program of a replica. Does nothing unless the test below starts it.
#[tokio::test]
async fn replica_that_is_killed() {
    let Some(orders) = Orders::of_this_process() else { return };
    let mut words = orders.words.split_whitespace();
    let listen = words.next().unwrap();
    let contacts: Vec<Address> = words.map(|text| text.parse().unwrap()).collect();
    let node = Node::builder().listen(listen).start().await.unwrap();
    let _directory = if contacts.is_empty() {
        Directory::found(&node).await.unwrap()
    } else {
        Directory::join(&node, &contacts).await.unwrap()
    };
    orders.say(&node.addresses()[0].to_string());
    while orders.next().await.is_some() {}
}

/// Starts a replica; returns when it has the state and serves.
async fn start(net: &Net, listen: &str, contacts: &[Address]) -> (Worker, Address) {
    let contacts: Vec<_> = contacts.iter().map(Address::to_string).collect();
    let words = format!("{listen} {}", contacts.join(" "));
    let mut replica = Worker::start("processes::replica_that_is_killed", net, &words);
    let address = replica.hear().await.parse().unwrap();
    (replica, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_nothing_registered_is_lost_while_every_replica_is_killed_in_turn() {
    let net = tcp();
    let mut replicas: Vec<(Worker, Address)> = Vec::new();
    for _ in 0..3 {
        let contacts: Vec<_> = replicas.iter().map(|(_, address)| address.clone()).collect();
        replicas.push(start(&net, net.listen(), &contacts).await);
    }
    let servers: Vec<_> = replicas.iter().map(|(_, address)| address.clone()).collect();
    let node = Node::builder().start().await.unwrap();
    let names = within(Names::connect(&node, &servers)).await.unwrap();
    let mut kept = Vec::new();
    for place in 0..servers.len() {
        for number in 0..10 {
            let entry = Entry::default().with("before", place.to_string());
            kept.push(within(names.register(format!("{place}/{number}"), entry)).await.unwrap());
        }
        replicas.remove(place).0.kill().await;
        kept.push(within(names.register(format!("{place}/after"), Entry::default())).await.unwrap());
        let contacts: Vec<_> =
            servers.iter().filter(|address| **address != servers[place]).cloned().collect();
        replicas.insert(place, start(&net, &servers[place].to_string(), &contacts).await);
    }
    for address in &servers {
        let names = within(Names::connect(&node, std::slice::from_ref(address))).await.unwrap();
        let found = within(names.lookup_latest(&Query::any())).await.unwrap();
        assert_eq!(found.len(), kept.len());
        assert_eq!(found.iter().filter(|found| found.attributes.contains_key("before")).count(), 30);
    }
    assert!(within(names.close(Duration::from_secs(30))).await);
}
