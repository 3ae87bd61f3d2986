//! Whole nodes over a simulated network: calls outlive partitions and resets, and a seed gives the same run again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::node::{Incarnation, Node};
use quorate::rpc::{CallError, NotSent};
use quorate::{Payload, service};
use quorate_transports::fault::model::LinkModel;
use quorate_transports::sim::SimNetwork;

#[service]
pub(crate) trait Counter {
    async fn count(&self, number: u32) -> u32;
}

#[derive(Default)]
struct Counted(Mutex<Vec<u32>>);

impl Counter for Counted {
    async fn count(&self, number: u32) -> u32 {
        self.0.lock().unwrap().push(number);
        number
    }
}

/// A hundred calls, ten at a time, over a bad network that is cut and reset meanwhile. Returns what the service saw
/// and the hash of everything that travelled.
fn run(seed: u64) -> (Vec<u32>, u64, u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let network = SimNetwork::new(seed);
        network.set_default_link(LinkModel::BAD_WAN);
        let builder = |id, host| {
            Node::builder()
                .id(id)
                .incarnation(Incarnation(1))
                .seed(seed + id)
                .transport(network.transport(host))
        };
        let server = builder(1, "server").listen("sim://server:1").start().await.unwrap();
        let counted = Arc::new(Counted::default());
        let _serving = server.serve("counter", CounterServer::shared(Arc::clone(&counted))).unwrap();
        let node = builder(2, "client").start().await.unwrap();
        let counter = CounterClient::connect(&node, "counter", "sim://server:1").await.unwrap();
        let counter = counter.with_deadline(Duration::from_secs(300));
        for round in 0..10 {
            let calls: Vec<_> = (0..10)
                .map(|number| {
                    let counter = counter.clone();
                    tokio::spawn(async move { counter.count(round * 10 + number).await })
                })
                .collect();
            match round {
                2 => network.partition(&[&["server"], &["client"]]),
                5 => network.reset_connections("server", "client"),
                7 => network.partition_one_way(&["server"], &["client"]),
                _ => {}
            }
            if matches!(round, 2 | 7) {
                // Long enough for the connection to be given up.
                tokio::time::sleep(Duration::from_secs(40)).await;
                network.heal();
            }
            for (number, call) in calls.into_iter().enumerate() {
                assert_eq!(call.await.unwrap().unwrap(), round * 10 + number as u32, "seed {seed}");
            }
        }
        let seen = counted.0.lock().unwrap().clone();
        (seen, network.trace_hash(), counter.server().stats().retransmissions)
    })
}

#[test]
fn r06_calls_outlive_partitions_and_resets_and_are_executed_once() {
    for seed in 0..20 {
        let (mut seen, _, retransmissions) = run(seed);
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>(), "seed {seed}");
        assert!(retransmissions > 0, "seed {seed}");
    }
}

#[service]
pub(crate) trait Scale {
    /// Says how much it was.
    async fn weigh(&self, what: Payload) -> usize;
    #[one_way]
    async fn throw(&self, what: Payload);
}

#[derive(Default)]
struct Weighed(Mutex<usize>);

impl Scale for Weighed {
    async fn weigh(&self, what: Payload) -> usize {
        *self.0.lock().unwrap() += 1;
        what.len()
    }
    async fn throw(&self, _: Payload) {}
}

/// A service that its client cannot reach for a while, though their connection stands.
async fn behind_a_cut(
    network: &SimNetwork,
) -> (Node, quorate::rpc::Serving, Arc<Weighed>, Node, ScaleClient) {
    let builder = |id, host| {
        Node::builder().id(id).incarnation(Incarnation(1)).seed(id).transport(network.transport(host))
    };
    let server = builder(1, "server").listen("sim://server:1").start().await.unwrap();
    let weighed = Arc::new(Weighed::default());
    let serving = server.serve("scale", ScaleServer::shared(Arc::clone(&weighed))).unwrap();
    let node = builder(2, "client").start().await.unwrap();
    let scale = ScaleClient::connect(&node, "scale", "sim://server:1").await.unwrap();
    network.partition(&[&["server"], &["client"]]);
    (server, serving, weighed, node, scale)
}

#[tokio::test(start_paused = true)]
async fn r06_what_waited_for_room_longer_than_its_caller_is_not_executed() {
    let network = SimNetwork::new(1);
    let (_server, _serving, weighed, _node, scale) = behind_a_cut(&network).await;
    let heap = || Payload::from(vec![7; 1 << 20]);
    let impatient = scale.with_deadline(Duration::from_secs(2));
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let impatient = impatient.clone();
            tokio::spawn(async move { impatient.weigh(heap()).await })
        })
        .collect();
    for call in calls {
        assert!(matches!(call.await.unwrap(), Err(CallError::DeadlinePassed { .. })));
    }
    network.heal();
    assert_eq!(scale.with_deadline(Duration::from_secs(300)).weigh(heap()).await, Ok(1 << 20));
    let executed = *weighed.0.lock().unwrap();
    assert!(executed < 32, "{executed} of 65: only what had left may still be executed");
}

#[tokio::test(start_paused = true)]
async fn a_one_way_call_too_many_for_a_full_connection_is_not_sent_and_says_so() {
    let network = SimNetwork::new(2);
    let (_server, _serving, _weighed, _node, scale) = behind_a_cut(&network).await;
    let heap = Payload::from(vec![7; 1 << 18]);
    let mut thrown = 0;
    let error = loop {
        match scale.throw(heap.clone()).await {
            Ok(()) => thrown += 1,
            Err(error) => break error,
        }
        assert!(thrown < 1_000, "nothing bounds it");
    };
    assert!(matches!(error, CallError::NotSent(NotSent::NoRoom { .. })), "{error}");
    assert!(error.is_retryable());
    network.heal();
    assert_eq!(scale.with_deadline(Duration::from_secs(300)).weigh(heap.clone()).await, Ok(1 << 18));
    assert_eq!(scale.throw(heap).await, Ok(()));
}

#[test]
fn t05_whole_nodes_that_call_each_other_do_the_same_again_for_the_same_seed() {
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).1, run(8).1);
}
