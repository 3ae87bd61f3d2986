//! Queues that are found by their names in a directory (catalogue Q6).

use std::time::Duration;

use quorate::NodeId;
use quorate::journal::{Config, MemoryStorage};
use quorate::naming::{NamesError, QueueNameError, QueueNames};
use quorate::queue::{QueueManager, Queues};
use tests::{Net, memory, until, within};

use crate::{addresses, directory, names};

struct Site {
    queues: Queues,
    manager: QueueManager,
    names: QueueNames,
}

async fn site(net: &Net, id: u64, servers: &[quorate::Address]) -> Site {
    let node = net.node(id).await;
    let queues = Queues::open(MemoryStorage::new(), Config::new(id)).expect("a good disk");
    let manager = within(QueueManager::start(&node, &queues)).await.expect("its first");
    let names = QueueNames::new(&names(&node, servers, 10).await, &manager);
    Site { queues, manager, names }
}

async fn next(queues: &Queues, name: &str) -> String {
    let queue = queues.queue(name).await.expect("a good name");
    let delivery = within(queue.get(Duration::MAX)).await.expect("open").expect("it arrives");
    let text = String::from_utf8_lossy(delivery.payload()).into_owned();
    delivery.ack().await.expect("a good disk");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn q06_a_queue_is_found_in_the_directory_and_followed_when_another_node_has_it() {
    let net = memory();
    let replicas = directory(&net, 1).await;
    let servers = addresses(&replicas);
    let (producer, one, other) =
        (site(&net, 10, &servers).await, site(&net, 11, &servers).await, site(&net, 12, &servers).await);
    let told = within(producer.names.open("orders", Duration::ZERO)).await;
    assert!(matches!(told, Err(QueueNameError::Names(NamesError::Refused(_)))), "{told:?}");

    one.queues.queue("orders").await.expect("a good name");
    let offer = within(one.names.offer("orders")).await.expect("it is taken");
    let orders = within(producer.names.open("orders", Duration::from_secs(30))).await.expect("it is offered");
    orders.put("first").await.expect("a good disk");
    assert_eq!(next(&one.queues, "orders").await, "first");

    other.queues.queue("orders").await.expect("a good name");
    let _offer = within(other.names.offer("orders")).await.expect("it is taken");
    within(offer.withdraw()).await.expect("it is out");
    until(|| producer.manager.located("orders") == Some(NodeId(12))).await;
    orders.put("second").await.expect("a good disk");
    assert_eq!(next(&other.queues, "orders").await, "second");
    for site in [producer, one, other] {
        site.manager.stop().await;
        site.queues.close().await;
    }
}
