//! Every transport keeps the one contract (catalogue T2), by one line each.

use quorate_transports::conformance::{self, Subject};
use quorate_transports::fault::model::LinkModel;
use quorate_transports::mem::{Mem, MemConfig};
use quorate_transports::sim::SimNetwork;

#[tokio::test]
async fn t02_memory_keeps_the_contract() {
    conformance::run(|| Subject::new(Mem::new(), "mem://")).await.into_result().unwrap();
}

#[tokio::test]
async fn t02_memory_with_tiny_limits_keeps_the_contract() {
    let make = || {
        let mut config = MemConfig::default();
        (config.link_bytes_max, config.backlog_max, config.datagrams_max) = (1, 1, 1);
        Subject::new(Mem::with_config(config), "mem://")
    };
    conformance::run(make).await.into_result().unwrap();
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t02_tcp_keeps_the_contract() {
    use quorate_transports::tcp::Tcp;
    conformance::run(|| Subject::new(Tcp::new(), "tcp://127.0.0.1:0")).await.into_result().unwrap();
}

#[cfg(feature = "tcp")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_tcp_keeps_the_contract_on_several_threads() {
    use quorate_transports::tcp::Tcp;
    conformance::run(|| Subject::new(Tcp::new(), "tcp://localhost:0")).await.into_result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn t02_the_simulated_network_keeps_the_contract() {
    conformance::run(|| simulated(LinkModel::LOCAL)).await.into_result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn t02_the_simulated_network_keeps_the_contract_for_streams_on_a_bad_day() {
    let report = conformance::run(|| simulated(LinkModel::BAD_WAN)).await;
    // Streams hide what the link does; datagrams do not, and must not.
    assert!(report.failed().iter().all(|name| name.starts_with("datagrams")), "{report}");
}

fn simulated(link: LinkModel) -> Subject {
    let network = SimNetwork::new(7);
    network.set_default_link(link);
    Subject::pair(network.transport("b"), network.transport("a"), "sim://b:0")
}
