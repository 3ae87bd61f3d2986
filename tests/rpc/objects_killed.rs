//! Holders and owners of remote objects are other processes, and are killed (catalogue R10).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::node::{Incarnation, Node};
use quorate::rpc::{Dangling, Objects, ObjectsOptions, Remote};
use tests::{Net, Orders, Worker, everywhere, nets_between_processes, until};

use crate::objects::{Bench, Count, CounterClient, CounterServer, WorkshopClient, WorkshopServer};
use crate::support::soon;

/// A lease that is over soon enough for a test, and not before a busy machine has renewed it.
fn options() -> ObjectsOptions {
    let mut options = ObjectsOptions::default();
    options.lease = Duration::from_secs(3);
    options.transit = Duration::from_secs(6);
    options
}

/// A process with a workshop: it makes counters, keeps one that it is given, and obeys.
#[tokio::test]
async fn workshop_that_is_killed() {
    let Some(orders) = Orders::of_this_process() else { return };
    let mut words = orders.words.split_whitespace();
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (id, life) = (number(), number());
    let at = words.next().unwrap_or(orders.net.listen());
    let builder = orders.net.dialler(id).incarnation(Incarnation(life));
    let node = builder.listen(at).start().await.unwrap();
    let objects = Arc::new(Objects::with(&node, options()).unwrap());
    let living = Arc::<AtomicU64>::default();
    let bench = Bench::new(&objects, &living);
    let _serving = node.serve("workshop", WorkshopServer::new(bench)).unwrap();
    orders.say(&node.addresses()[0].to_string());
    while let Some(order) = orders.next().await {
        // "hand on ADDRESS": what is kept here is given to the workshop there.
        let there =
            WorkshopClient::connect(&node, "workshop", order.trim_start_matches("hand on ")).await.unwrap();
        let here = WorkshopClient::connect_here(&node, "workshop").await.unwrap();
        let kept = here.kept().await.unwrap().unwrap();
        there.keep(kept).await.unwrap();
        orders.say("handed on");
    }
}

const WORKSHOP: &str = "objects_killed::workshop_that_is_killed";

/// The node of the test itself.
async fn node(net: &Net) -> (Node, Objects, Arc<AtomicU64>) {
    let node = net.dialler(1).listen(net.listen()).start().await.unwrap();
    let objects = Objects::with(&node, options()).unwrap();
    (node, objects, Arc::default())
}

async fn workshop(net: &Net, node: &Node, words: &str) -> (Worker, WorkshopClient, String) {
    let mut worker = Worker::start(WORKSHOP, net, words);
    let address = worker.hear().await;
    let client = WorkshopClient::connect(node, "workshop", &address).await.unwrap();
    (worker, client, address)
}

#[tokio::test]
async fn r10_a_holder_that_is_killed_frees_what_it_held_and_one_that_lives_keeps_it() {
    everywhere(nets_between_processes(), |net| async move {
        let (node, objects, living) = node(&net).await;
        let (worker, client, _) = workshop(&net, &node, "2 1").await;
        let counter = objects.export(CounterServer::new(Count::new(0, &living))).unwrap();
        client.keep(counter).await.unwrap();
        until(|| objects.stats().held_by_others == 1 && objects.stats().in_transit == 0).await;
        // Nothing but its lease keeps it now, and that is renewed for longer than it lasts.
        tokio::time::sleep(options().lease * 2).await;
        assert_eq!(living.load(Ordering::SeqCst), 1);
        assert_eq!(soon("the call", client.kept()).await.unwrap().unwrap().add(1).await, Ok(1));

        worker.kill().await;
        until(|| living.load(Ordering::SeqCst) == 0).await;
        let stats = objects.stats();
        assert_eq!((stats.exported, stats.leases_expired), (0, 1), "{stats:?}");
    })
    .await;
}

#[tokio::test]
async fn r10_a_reference_outlives_the_process_that_handed_it_on() {
    everywhere(nets_between_processes(), |net| async move {
        let (node, objects, living) = node(&net).await;
        let (mut giver, at_giver, _) = workshop(&net, &node, "2 1").await;
        let (taker, at_taker, taker_address) = workshop(&net, &node, "3 1").await;
        let counter = objects.export(CounterServer::new(Count::new(0, &living))).unwrap();
        at_giver.keep(counter).await.unwrap();
        giver.tell(&format!("hand on {taker_address}")).await;
        assert_eq!(giver.hear().await, "handed on");
        // It dies at once: whether the taker is registered already or not.
        giver.kill().await;
        until(|| objects.stats().leases_expired == 1).await;
        assert_eq!(living.load(Ordering::SeqCst), 1);
        let kept: Remote<CounterClient> = soon("the kept one", at_taker.kept()).await.unwrap().unwrap();
        assert_eq!(kept.add(5).await, Ok(5));
        drop(kept);
        taker.kill().await;
        until(|| living.load(Ordering::SeqCst) == 0).await;
    })
    .await;
}

#[tokio::test]
async fn r10_a_reference_to_an_object_of_a_killed_process_says_so() {
    everywhere(nets_between_processes(), |net| async move {
        let (node, objects, _) = node(&net).await;
        let (worker, client, address) = workshop(&net, &node, "2 1").await;
        let counter = soon("the counter", client.counter(7)).await.unwrap();
        assert_eq!(counter.add(1).await, Ok(8));
        worker.kill().await;
        until(|| Remote::check(&counter) == Err(Dangling::NodeGone)).await;
        assert_eq!(counter.add(1).await.unwrap_err().dangling(), Some(Dangling::NodeGone));

        let mut later = Worker::start(WORKSHOP, &net, &format!("2 2 {address}"));
        assert_eq!(later.hear().await, address);
        until(|| Remote::check(&counter) == Err(Dangling::OtherLife)).await;
        assert_eq!(counter.add(1).await.unwrap_err().dangling(), Some(Dangling::OtherLife));
        drop(counter);
        assert_eq!(objects.stats().held, 0);
    })
    .await;
}
