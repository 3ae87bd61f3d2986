//! The replicas are processes in network namespaces of their own, joined by a bridge, and one of them is cut off.

use std::time::Duration;

use quorate::naming::{Directory, Entry, Names, NamesError, NamesOptions, Query};
use quorate::node::{Address, Node};
use tests::{Orders, Worker, in_namespace, ip, tcp, try_ip, within};

fn place(number: u64) -> Address {
    format!("tcp://10.1.0.{number}:7000").parse().unwrap()
}

fn options() -> NamesOptions {
    let mut options = NamesOptions::default();
    (options.lease, options.deadline) = (Duration::from_secs(2), Duration::from_secs(2));
    options
}

async fn names(node: &Node, servers: &[Address]) -> Names {
    within(Names::connect_with(node, servers, options())).await.unwrap()
}

/// The program of a replica, and of an owner who asks no other one. Does nothing unless the test below starts it.
#[tokio::test]
async fn replica_that_is_cut_off() {
    let Some(orders) = Orders::of_this_process() else { return };
    let number: u64 = orders.words.parse().unwrap();
    assert_eq!(orders.next().await.as_deref(), Some("connected"));
    ip(&["link", "set", "lo", "up"]);
    ip(&["addr", "add", &format!("10.1.0.{number}/24"), "dev", "eth0"]);
    ip(&["link", "set", "eth0", "up"]);
    let node = orders.net.dialler(number).listen(place(number)).start().await.unwrap();
    let contacts: Vec<Address> = (1..=REPLICAS).filter(|other| *other != number).map(place).collect();
    let mut directory = if number == 1 {
        Directory::found(&node).await.unwrap()
    } else {
        within(Directory::join(&node, &contacts)).await.unwrap()
    };
    let names = names(&node, &node.addresses()).await;
    orders.say("ready");
    let mut mine = Vec::new();
    while let Some(order) = orders.next().await {
        match order.split_once(' ') {
            Some(("register", name)) => {
                mine.push(within(names.register(name, Entry::default())).await.unwrap());
                orders.say("registered");
            }
            Some(("look", name)) => match within(names.lookup(&Query::named(name))).await {
                Ok(found) => orders.say(&format!("{} found", found.len())),
                Err(NamesError::Unreachable { .. }) => orders.say("no answer"),
                Err(error) => panic!("{error}"),
            },
            _ => {
                assert_eq!(order, "join again");
                let mut progress = directory.watch();
                within(progress.wait_for(|progress| progress.is_over)).await.unwrap();
                drop(progress);
                drop(directory);
                directory = within(Directory::join(&node, &contacts)).await.unwrap();
                orders.say("ready");
            }
        }
    }
}

/// Waits until so many are found.
async fn wait_for(names: &Names, name: &str, count: usize) {
    let mut watch = names.watch(Query::named(name));
    within(async { while watch.next().await.is_ok_and(|found| found.len() != count) {} }).await;
}

#[test]
fn p06_a_replica_that_is_cut_off_says_nothing_and_the_others_go_on() {
    let test = "partition::p06_a_replica_that_is_cut_off_says_nothing_and_the_others_go_on";
    in_namespace(test, async {
        if let Err(refused) = try_ip(&["link", "add", "bridge", "type", "bridge"]) {
            return println!("{test} skipped: no bridges: {refused}");
        }
        ip(&["addr", "add", "10.1.0.254/24", "dev", "bridge"]);
        ip(&["link", "set", "bridge", "up"]);
        let mut replicas = Vec::new();
        for number in 1..=REPLICAS {
            let mut replica =
                Worker::start_apart("partition::replica_that_is_cut_off", &tcp(), &number.to_string());
            let (port, process) = (port(number), replica.process().to_string());
            let peer = ["type", "veth", "peer", "name", "eth0", "netns", &process];
            ip(&[&["link", "add", &*port], peer.as_slice()].concat());
            ip(&["link", "set", &port, "master", "bridge", "up"]);
            replica.tell("connected").await;
            assert_eq!(replica.hear().await, "ready");
            replicas.push(replica);
        }
        let last = &mut replicas[REPLICAS as usize - 1];
        let node = Node::builder().listen("tcp://10.1.0.254:0").start().await.unwrap();
        let here = names(&node, &[place(1), place(2)]).await;
        let _before = within(here.register("before", Entry::default())).await.unwrap();
        for (order, answer) in [("register there", "registered"), ("look before", "1 found")] {
            last.tell(order).await;
            assert_eq!(last.hear().await, answer);
        }
        wait_for(&here, "there", 1).await;

        ip(&["link", "set", &port(REPLICAS), "nomaster"]);
        // The others go on without it, and whose owner they do not hear is registered no more.
        let during = async {
            loop {
                match here.register("during", Entry::default()).await {
                    Ok(registration) => return registration,
                    Err(error) => assert!(matches!(error, NamesError::Unreachable { .. }), "{error}"),
                }
            }
        };
        let _during = within(during).await;
        wait_for(&here, "there", 0).await;
        last.tell("look before").await;
        assert_eq!(last.hear().await, "no answer", "it does not know what the others have done");

        ip(&["link", "set", &port(REPLICAS), "master", "bridge"]);
        last.tell("join again").await;
        assert_eq!(last.hear().await, "ready");
        last.tell("look during").await;
        assert_eq!(last.hear().await, "1 found");
        // What its owner wants registered is again.
        wait_for(&here, "there", 1).await;
    });
}

/// The end of a replica's link at the bridge.
fn port(number: u64) -> String {
    format!("replica{number}")
}

const REPLICAS: u64 = 3;
