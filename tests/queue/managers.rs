//! Queues of other nodes: store-and-forward, over one hop and over two, while connections, nodes and processes come and go.

use std::path::Path;
use std::time::Duration;

use quorate::node::Address;
use quorate::queue::{
    ManagerError, Message, NamedPutError, Queue, QueueConfig, QueueManager, Queues, UNDELIVERED,
};
use quorate::{Node, NodeId};
use quorate_journal::{MemoryStorage, Storage};
use tests::{Net, Orders, Worker, everywhere, memory, nets, tcp, until};

use super::{Outcome, config};

/// A node with its queues and their manager.
pub(super) struct Site {
    pub(super) node: Node,
    pub(super) queues: Queues,
    pub(super) manager: QueueManager,
}

impl Site {
    pub(super) async fn open(net: &Net, id: u64, storage: impl Storage) -> Self {
        Self::on(net.node(id).await, Queues::open(storage, config()).expect("a good disk")).await
    }

    pub(super) async fn on(node: Node, queues: Queues) -> Self {
        let manager = QueueManager::start(&node, &queues).await.expect("its first");
        Self { node, queues, manager }
    }

    pub(super) fn address(&self) -> Address {
        self.node.addresses().remove(0)
    }

    pub(super) async fn queue(&self, name: &str) -> Queue {
        self.queues.queue_with(name, QueueConfig::new().deliveries_max(None)).await.expect("a good name")
    }

    /// As a crash would, but that what was accepted is stored.
    pub(super) async fn close(self) {
        self.manager.stop().await;
        self.queues.close().await;
        self.node.shutdown(Duration::from_secs(5)).await;
    }
}

/// The next messages of a queue, acknowledged.
pub(super) async fn drain(queue: &Queue, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let delivery = queue.get(Duration::from_secs(60)).await.expect("open").expect("it arrives");
        texts.push(String::from_utf8_lossy(delivery.payload()).into_owned());
        delivery.ack().await.expect("a good disk");
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_what_is_put_for_another_node_waits_here_and_is_there_once_when_that_can_be_reached() {
    everywhere(nets(), |net| async move {
        let (here, there) = (MemoryStorage::new(), MemoryStorage::new());
        let sender = Site::open(&net, 1, here.clone()).await;
        let remote = sender.manager.remote(NodeId(2), "work").await.expect("a good name");
        for number in 0..20 {
            remote.put(number.to_string()).await.expect("a good disk");
        }
        assert_eq!(sender.manager.waiting().await, 20, "nobody is there yet");
        // What waits survives, too.
        sender.close().await;
        let sender = Site::open(&net, 1, here).await;
        let remote = sender.manager.remote(NodeId(2), "work").await.expect("a good name");

        let receiver = Site::open(&net, 2, there.clone()).await;
        receiver.queue("work").await;
        sender.node.add_address(NodeId(2), receiver.address());
        let work = receiver.queue("work").await;
        let expected: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(drain(&work, 20).await, expected);
        // The receiver goes and comes again while messages are put.
        receiver.close().await;
        for number in 20..40 {
            remote.put(number.to_string()).await.expect("a good disk");
        }
        let receiver = Site::open(&net, 2, there).await;
        sender.node.add_address(NodeId(2), receiver.address());
        let work = receiver.queue("work").await;
        let expected: Vec<_> = (20..40).map(|number| number.to_string()).collect();
        assert_eq!(drain(&work, 20).await, expected);
        let mut patience = 600;
        while sender.manager.waiting().await > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            patience -= 1;
            assert!(patience > 0, "what has arrived is dropped here");
        }
        assert!(work.poll().expect("open").is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_a_unit_of_work_sends_and_a_message_over_two_hops_keeps_what_it_asks_for() -> Outcome {
    let net = memory();
    let [first, middle, last] = [
        Site::open(&net, 1, MemoryStorage::new()).await,
        Site::open(&net, 2, MemoryStorage::new()).await,
        Site::open(&net, 3, MemoryStorage::new()).await,
    ];
    first.node.add_address(NodeId(2), middle.address());
    middle.node.add_address(NodeId(3), last.address());
    first.manager.route(NodeId(3), NodeId(2));
    let end = last.queue("end").await;
    let remote = first.manager.remote(NodeId(3), "end").await?;
    let local = first.queue("local").await;
    local.put("order").await?;
    let order = local.poll()?.ok_or("it is there")?;
    let mut work = first.queues.work();
    work.send(&remote, Message::new("parcel").key("ann").priority(7).name("p 1")).ack(order);
    work.commit().await?;
    remote.put(Message::new("late").expires_after(Duration::ZERO)).await?;
    remote.put(Message::new("parcel again").name("p 1")).await?;
    remote.put("bill").await?;
    let parcel = end.get(Duration::from_secs(60)).await?.ok_or("it arrives")?;
    assert_eq!(
        (&parcel.payload()[..], parcel.key().map(|key| &key[..]), parcel.priority()),
        (&b"parcel"[..], Some(&b"ann"[..]), 7)
    );
    parcel.ack().await?;
    assert_eq!(drain(&end, 1).await, ["bill"], "what expired and what was repeated is not there");

    // What cannot be delivered is kept where that shows.
    first.manager.remote(NodeId(3), "nowhere").await?.put("lost soul").await?;
    assert_eq!(drain(&last.queue(UNDELIVERED).await, 1).await, ["lost soul"]);
    // A circle ends.
    middle.manager.route(NodeId(9), NodeId(1));
    middle.node.add_address(NodeId(1), first.address());
    first.manager.route(NodeId(9), NodeId(2));
    first.manager.remote(NodeId(9), "anything").await?.put("sisyphus").await?;
    let (here, there) = (first.queue(UNDELIVERED).await, middle.queue(UNDELIVERED).await);
    until(|| here.stats().messages + there.stats().messages == 1).await;
    let second = QueueManager::start(&first.node, &first.queues).await;
    assert!(matches!(second, Err(ManagerError::Taken)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q05_a_full_queue_holds_up_its_channel_and_loses_nothing() -> Outcome {
    let net = memory();
    let sender = Site::open(&net, 1, MemoryStorage::new()).await;
    let receiver = Site::open(&net, 2, MemoryStorage::new()).await;
    let small = QueueConfig::new().messages_max(3).message_bytes_max(1000).deliveries_max(None);
    let work = receiver.queues.queue_with("work", small).await?;
    sender.node.add_address(NodeId(2), receiver.address());
    let remote = sender.manager.remote(NodeId(2), "work").await?;
    for number in 0..50 {
        remote.put(number.to_string()).await?;
    }
    remote.put(vec![b'x'; 2000]).await?;
    remote.put("50").await?;
    let expected: Vec<_> = (0..=50).map(|number| number.to_string()).collect();
    assert_eq!(drain(&work, 51).await, expected);
    assert_eq!(drain(&receiver.queue(UNDELIVERED).await, 1).await[0].len(), 2000);
    Ok(())
}

/// Not a test: one of the processes that the next one starts and kills. Node 1 counts, node 2 passes on, node 3 checks.
#[test]
fn site_that_is_killed() {
    let Some(orders) = Orders::of_this_process() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (id, directory) = orders.words.split_once(' ').expect("two words");
        let id: u64 = id.parse().expect("a number");
        let builder = orders.net.builder(id).directory(Path::new(directory));
        let node = builder.start().await.expect("the last life is over");
        let queues = Queues::on(&node).expect("a good disk");
        let manager = QueueManager::start(&node, &queues).await.expect("its only one");
        manager.route(NodeId(3), NodeId(2));
        let queue =
            queues.queue_with("end", QueueConfig::new().deliveries_max(None)).await.expect("a good name");
        orders.say(&format!("at {}", node.addresses()[0]));
        match id {
            1 => drop(tokio::spawn(count(queues.clone(), manager.clone()))),
            3 => drop(tokio::spawn(check(queues.clone(), queue, Orders::of_this_process()))),
            _ => {}
        }
        while let Some(order) = orders.next().await {
            let (peer, address) = order.split_once(' ').expect("two words");
            let address = address.parse().expect("an address");
            node.add_address(NodeId(peer.parse().expect("a number")), address);
        }
    });
}

/// Sends the numbers from 0 on, each once: the next one is part of the unit of work.
async fn count(queues: Queues, manager: QueueManager) {
    let remote = manager.remote(NodeId(3), "end").await.expect("a good name");
    let mut next = number(&queues, "next");
    loop {
        let mut work = queues.work();
        for _ in 0..100 {
            work.send(&remote, next.to_string());
            next += 1;
        }
        work.set("next", next.to_string());
        work.commit().await.expect("a good disk");
        while manager.waiting().await > 5_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Takes the numbers, each of which must be the next one.
async fn check(queues: Queues, queue: Queue, orders: Option<Orders>) {
    let orders = orders.expect("as before");
    let mut seen = number(&queues, "seen");
    loop {
        let deliveries = queue.get_many(100, Duration::MAX).await.expect("a good disk");
        let mut work = queues.work();
        for delivery in deliveries {
            let text = String::from_utf8_lossy(delivery.payload()).into_owned();
            if text != seen.to_string() {
                orders.say(&format!("wrong: {text} instead of {seen}"));
            }
            seen += 1;
            work.ack(delivery);
        }
        work.set("seen", seen.to_string());
        work.commit().await.expect("a good disk");
        orders.say(&format!("seen {seen}"));
    }
}

fn number(queues: &Queues, key: &str) -> u64 {
    let value = queues.state(key);
    value.map_or(0, |value| String::from_utf8_lossy(&value).parse().expect("a number"))
}

/// So many messages arrive; `QUORATE_MESSAGES=1000000` is what the catalogue asks for.
#[tokio::test]
async fn q05_every_message_goes_once_and_in_order_over_two_hops_while_all_processes_are_killed_at_random() {
    let place = tempfile::tempdir().expect("a directory for temporary files");
    let net = tcp();
    let words = |id: usize| format!("{id} {}", place.path().join(id.to_string()).display());
    let start = |id: usize| Worker::start("managers::site_that_is_killed", &net, &words(id));
    let mut sites = vec![start(1), start(2), start(3)];
    let mut addresses = Vec::new();
    for site in &mut sites {
        addresses.push(address(site).await);
    }
    introduce(&mut sites, &addresses).await;
    let asked = std::env::var("QUORATE_MESSAGES").ok().and_then(|count| count.parse::<u64>().ok());
    let step = asked.unwrap_or(1_000) / (KILLS + 1);
    let mut seen = 0;
    for round in 0..KILLS as usize {
        seen = wait_for(&mut sites[2], seen + step).await;
        // All of them in turn, now and then two at once.
        let victims = if round % 4 == 3 { vec![round % 3, (round + 1) % 3] } else { vec![round % 3] };
        for victim in victims {
            let old = sites.remove(victim);
            old.kill().await;
            sites.insert(victim, start(victim + 1));
            addresses[victim] = address(&mut sites[victim]).await;
        }
        introduce(&mut sites, &addresses).await;
    }
    seen = wait_for(&mut sites[2], seen + step).await;
    println!("{seen} messages in order, {KILLS} times killed");
}

/// Where a site listens, which it says first.
async fn address(site: &mut Worker) -> String {
    let said = site.hear().await;
    said.strip_prefix("at ").expect("its address first").to_owned()
}

/// Everybody learns where the others are.
async fn introduce(sites: &mut [Worker], addresses: &[String]) {
    for site in sites {
        for (index, address) in addresses.iter().enumerate() {
            site.tell(&format!("{} {address}", index + 1)).await;
        }
    }
}

/// Hears the last site until it has seen so many; gives how many it has.
async fn wait_for(last: &mut Worker, count: u64) -> u64 {
    loop {
        let said = last.hear().await;
        let seen: u64 = said.strip_prefix("seen ").and_then(|seen| seen.parse().ok()).expect(&said);
        if seen >= count {
            return seen;
        }
    }
}

const KILLS: u64 = 9;

/// Each node knows the one behind it only.
async fn chain(net: &Net, count: u64) -> Vec<Site> {
    let mut sites = Vec::new();
    for id in 1..=count {
        sites.push(Site::open(net, id, MemoryStorage::new()).await);
    }
    for pair in sites.windows(2) {
        let next = pair[1].node.identity().node;
        pair[0].node.add_address(next, pair[1].address());
        pair[0].manager.route_rest(next);
    }
    sites
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q06_a_name_is_enough_where_each_node_knows_its_nearest_router_only() -> Outcome {
    let net = memory();
    let sites = chain(&net, 4).await;
    let orders = sites[3].queue("orders").await;
    let named = sites[0].manager.named("orders")?;
    let error = named.put("nowhere").await.expect_err("nobody has said where it is");
    assert!(matches!(error, NamedPutError::Unknown { .. }), "{error:?}");
    sites[0].manager.place("orders", NodeId(4))?;
    for n in 0..20 {
        named.put(n.to_string()).await?;
    }
    let expected: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(drain(&orders, 20).await, expected);
    // Its own node has it by name, too.
    sites[3].manager.place("orders", NodeId(4))?;
    sites[3].manager.named("orders")?.put("at home").await?;
    assert_eq!(drain(&orders, 1).await, ["at home"]);
    sites[3].manager.place("bills", NodeId(4))?;
    let error = sites[3].manager.named("bills")?.put("x").await.expect_err("it has none");
    assert!(matches!(error, NamedPutError::NoQueue { .. }), "{error:?}");
    for site in sites {
        site.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q06_routers_in_a_circle_let_a_message_go_round_a_few_times_and_keep_it() -> Outcome {
    let net = memory();
    let sites = chain(&net, 3).await;
    sites[2].node.add_address(NodeId(1), sites[0].address());
    sites[2].manager.route_rest(NodeId(1));
    sites[0].manager.place("orders", NodeId(9))?;
    sites[0].manager.named("orders")?.put("for nobody").await?;
    let mut found = Vec::new();
    for site in &sites {
        found.push(site.queue(UNDELIVERED).await);
    }
    until(|| found.iter().any(|queue| queue.stats().messages > 0)).await;
    assert_eq!(found.iter().map(|queue| queue.stats().messages).sum::<usize>(), 1, "once");
    for site in sites {
        site.close().await;
    }
    Ok(())
}
