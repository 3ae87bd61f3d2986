//! Whole nodes over a simulated network: calls outlive partitions and resets, and a seed gives the same run again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::node::{Incarnation, Node};
use quorate::service;
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

#[test]
fn t05_whole_nodes_that_call_each_other_do_the_same_again_for_the_same_seed() {
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).1, run(8).1);
}
