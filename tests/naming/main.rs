//! A directory of several replicas, its owners and those who ask (catalogue P6).

use std::time::Duration;

use quorate::naming::{Directory, Entry, Found, NameError, Names, NamesError, NamesOptions, Query, Status};
use quorate::node::{Address, Node};
use tests::{Net, nets, within};

mod binding;
mod finding;
#[cfg(target_os = "linux")]
mod partition;
mod processes;
mod queues;
#[cfg(unix)]
mod superserver;
mod weather;

/// Replicas on nodes 1 to `count` of `net`.
async fn directory(net: &Net, count: u64) -> Vec<(Node, Directory)> {
    let mut replicas: Vec<(Node, Directory)> = Vec::new();
    for id in 1..=count {
        let node = net.node(id).await;
        let contacts: Vec<_> = replicas.iter().flat_map(|(node, _)| node.addresses()).collect();
        let replica = if contacts.is_empty() {
            within(Directory::found(&node)).await.expect("the directory is founded")
        } else {
            within(Directory::join(&node, &contacts)).await.expect("a replica joins")
        };
        replicas.push((node, replica));
    }
    replicas
}

fn addresses(replicas: &[(Node, Directory)]) -> Vec<Address> {
    replicas.iter().flat_map(|(node, _)| node.addresses()).collect()
}

fn options(lease: u64) -> NamesOptions {
    let mut options = NamesOptions::default();
    options.lease = Duration::from_secs(lease);
    options.deadline = Duration::from_secs(30);
    options
}

async fn names(node: &Node, servers: &[Address], lease: u64) -> Names {
    within(Names::connect_with(node, servers, options(lease))).await.expect("a replica answers")
}

fn rooms(found: &[Found]) -> Vec<&str> {
    found.iter().map(|found| found.attributes["room"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_what_is_registered_is_found_by_name_and_by_attributes_until_it_is_withdrawn() {
    for net in nets() {
        let replicas = directory(&net, 3).await;
        let node = net.node(10).await;
        let owner = names(&node, &addresses(&replicas[..1]), 10).await;
        let asker = names(&net.node(11).await, &addresses(&replicas[2..]), 10).await;

        let printer = |room: &str| Entry::at(&node.addresses()).with("room", room).with("colour", "yes");
        let mut first = within(owner.register("printer", printer("12"))).await.unwrap();
        let second = within(owner.register("printer", printer("13"))).await.unwrap();
        let third = within(owner.register("scanner", printer("12"))).await.unwrap();

        let found = within(asker.lookup_latest(&Query::named("printer"))).await.unwrap();
        assert_eq!(rooms(&found), ["12", "13"]);
        assert_eq!(found[0].addresses, node.addresses());
        assert!(found[0].version < found[1].version, "the later one has the larger version");
        let query = Query::any().with("room", "12").with("colour", "yes");
        let names_there: Vec<_> =
            within(asker.lookup(&query)).await.unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names_there, ["printer", "scanner"]);
        assert!(within(asker.lookup(&query.with("colour", "no"))).await.unwrap().is_empty());

        within(first.update(printer("14"))).await.unwrap();
        let Status::Registered { version } = first.status() else { panic!("{:?}", first.status()) };
        let found = within(asker.lookup_latest(&Query::named("printer"))).await.unwrap();
        assert_eq!((rooms(&found), found[0].version), (vec!["14", "13"], version));

        within(first.withdraw()).await.unwrap();
        let found = within(asker.lookup_latest(&Query::named("printer"))).await.unwrap();
        assert_eq!(rooms(&found), ["13"]);
        drop((second, third));
        let mut watch = asker.watch(Query::any());
        while !within(watch.next()).await.unwrap().is_empty() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_a_watch_tells_every_last_state_whichever_replica_it_asks() {
    for net in nets() {
        let replicas = directory(&net, 2).await;
        let owner = names(&net.node(10).await, &addresses(&replicas[..1]), 10).await;
        let asker = names(&net.node(11).await, &addresses(&replicas[1..]), 10).await;
        let mut watch = asker.watch(Query::named("counter"));
        assert!(within(watch.next()).await.unwrap().is_empty(), "what is there now comes at once");
        let entry = |number: usize| Entry::default().with("room", number.to_string());
        let mut counter = within(owner.register("counter", entry(0))).await.unwrap();
        let follow = tokio::spawn(async move {
            let mut last = 0;
            while last < 100 {
                let found = within(watch.next()).await.unwrap();
                let number = rooms(&found)[0].parse::<usize>().unwrap();
                assert!(number > last || number == 0, "{number} after {last}");
                last = number;
            }
        });
        for number in 1..=100 {
            within(counter.update(entry(number))).await.unwrap();
        }
        within(follow).await.expect("the last state comes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_a_lease_ends_when_its_owner_is_silent_and_not_before() {
    for net in nets() {
        let replicas = directory(&net, 3).await;
        let asker = names(&net.node(11).await, &addresses(&replicas), 10).await;
        let living = names(&net.node(12).await, &addresses(&replicas), 1).await;
        let _stays = within(living.register("living", Entry::default())).await.unwrap();
        let node = net.node(10).await;
        let owner = names(&node, &addresses(&replicas), 1).await;
        let _goes = within(owner.register("mortal", Entry::default())).await.unwrap();
        let mut watch = asker.watch(Query::any());
        while within(watch.next()).await.unwrap().len() < 2 {}
        // The process dies without a word.
        node.shutdown(Duration::ZERO).await;
        let left = within(watch.next()).await.unwrap();
        assert_eq!(left.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["living"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_handles_go_on_when_the_replica_that_they_asked_dies() {
    for net in nets() {
        let mut replicas = directory(&net, 3).await;
        let servers = addresses(&replicas);
        let owner = names(&net.node(10).await, &servers, 10).await;
        let asker = names(&net.node(11).await, &servers, 10).await;
        let mut mine = within(owner.register("service", Entry::default().with("room", "1"))).await.unwrap();
        let mut watch = asker.watch(Query::named("service"));
        assert_eq!(rooms(&within(watch.next()).await.unwrap()), ["1"]);
        // All asked the first one.
        let (node, replica) = replicas.remove(0);
        drop(replica);
        node.shutdown(Duration::ZERO).await;
        within(mine.update(Entry::default().with("room", "2"))).await.unwrap();
        assert_eq!(rooms(&within(watch.next()).await.unwrap()), ["2"]);
        let found = within(asker.lookup_latest(&Query::named("service"))).await.unwrap();
        assert_eq!(rooms(&found), ["2"], "{net:?}: registered once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_a_directory_that_lost_everything_gets_it_back_from_the_owners() {
    let net = &nets()[1];
    let mut replicas = directory(net, 1).await;
    let servers = addresses(&replicas);
    let owner = names(&net.node(10).await, &servers, 1).await;
    let mut mine = within(owner.register("service", Entry::default().with("room", "1"))).await.unwrap();
    let (node, replica) = replicas.remove(0);
    drop(replica);
    node.shutdown(Duration::ZERO).await;
    // Another one is founded under the same address.
    let node = Node::builder().listen(&servers[0]).start().await.expect("the address is free");
    let _again = within(Directory::found(&node)).await.expect("the directory is founded");
    while within(mine.changed()).await.unwrap() == Status::Pending {}
    let found = within(owner.lookup_latest(&Query::named("service"))).await.unwrap();
    assert_eq!(rooms(&found), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p06_errors_name_the_culprit() {
    let net = &nets()[1];
    let node = net.node(10).await;
    assert_eq!(Names::connect(&node, &[]).await.unwrap_err(), NamesError::NoAddress);
    // Somebody listens there, and serves no directory.
    let other = net.node(11).await;
    let mut hasty = NamesOptions::default();
    hasty.deadline = Duration::from_millis(200);
    let error = within(Names::connect_with(&node, &other.addresses(), hasty)).await.unwrap_err();
    assert!(error.to_string().contains(&other.addresses()[0].to_string()), "{error}");

    let replicas = directory(net, 1).await;
    let names_of = within(Names::connect(&node, &addresses(&replicas))).await.unwrap();
    let refused = names_of.register("", Entry::default()).await.unwrap_err();
    assert_eq!(refused, NamesError::Refused(NameError::Name { bytes: 0 }));
    let mut short = NamesOptions::default();
    short.lease = Duration::from_millis(1);
    let refused = within(Names::connect_with(&node, &addresses(&replicas), short)).await.unwrap_err();
    assert!(matches!(refused, NamesError::Refused(NameError::Lease { .. })), "{refused}");

    let registration = within(names_of.register("a", Entry::default())).await.unwrap();
    assert!(within(names_of.close(Duration::from_secs(30))).await, "the directory takes it out");
    assert!(replicas[0].1.is_empty());
    assert_eq!(names_of.register("b", Entry::default()).await.unwrap_err(), NamesError::Closed);
    assert_eq!(within(registration.withdraw()).await, Ok(()), "it is out already");
}
