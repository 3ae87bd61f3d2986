//! Every transport keeps the one contract (catalogue T2), by one line each.

#[cfg(any(feature = "quic", feature = "tls"))]
mod authority;

use std::time::Duration;

use quorate_transports::conformance::{self, Subject};
use quorate_transports::fault::FaultHandle;
use quorate_transports::fault::model::{Chance, LatencyModel, LinkModel, LossModel};
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

#[cfg(feature = "tls")]
#[tokio::test]
async fn t02_tls_keeps_the_contract() {
    use quorate_transports::tls::Tls;
    let certificates = authority::Authority::new().certificates(&["127.0.0.1"]);
    let make = || Subject::new(Tls::new(certificates.clone()), "tls://127.0.0.1:0");
    conformance::run(make).await.into_result().unwrap();
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_tls_keeps_the_contract_on_several_threads() {
    use quorate_transports::tls::Tls;
    let certificates = authority::Authority::new().certificates(&["localhost", "127.0.0.1", "::1"]);
    let make = || Subject::new(Tls::new(certificates.clone()), "tls://localhost:0");
    conformance::run(make).await.into_result().unwrap();
}

#[cfg(feature = "quic")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_quic_keeps_the_contract() {
    use quorate_transports::quic::Quic;
    let certificates = authority::Authority::new().certificates(&["127.0.0.1"]);
    let make = || Subject::new(Quic::new(certificates.clone()), "quic://127.0.0.1:0");
    conformance::run(make).await.into_result().unwrap();
}

#[cfg(feature = "udp")]
#[tokio::test]
async fn t02_udp_keeps_the_contract() {
    use quorate_transports::udp::Udp;
    conformance::run(|| Subject::new(Udp::new(), "udp://127.0.0.1:0")).await.into_result().unwrap();
}

#[cfg(feature = "udp")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_udp_keeps_the_contract_on_several_threads() {
    use quorate_transports::udp::Udp;
    conformance::run(|| Subject::new(Udp::new(), "udp://localhost:0")).await.into_result().unwrap();
}

#[cfg(all(unix, feature = "unix"))]
#[tokio::test]
async fn t02_unix_domain_sockets_keep_the_contract() {
    use quorate_transports::unix::Unix;
    let directory = tempfile::tempdir().unwrap();
    let place = format!("unix://{}/*", directory.path().display());
    conformance::run(|| Subject::new(Unix::new(), &place)).await.into_result().unwrap();
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

#[tokio::test]
async fn t02_a_wrapper_without_faults_keeps_the_contract() {
    let make = || Subject::new(FaultHandle::new(1).wrap(1, Mem::new()), "mem://");
    conformance::run(make).await.into_result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn t02_a_wrapper_with_stream_faults_keeps_the_contract_for_streams() {
    let make = || {
        let faults = FaultHandle::new(2);
        let latency = LatencyModel::Uniform { min: Duration::ZERO, max: Duration::from_millis(5) };
        let loss = LossModel::Independent(Chance::percent(5));
        faults.change(|network| network.set_default(LinkModel { latency, loss, ..LinkModel::PERFECT }));
        let world = Mem::new();
        Subject::pair(faults.wrap(1, world.clone()), faults.wrap(2, world), "mem://")
    };
    let report = conformance::run(make).await;
    assert!(report.failed().iter().all(|name| name.starts_with("datagrams")), "{report}");
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t02_a_wrapper_without_faults_over_tcp_keeps_the_contract() {
    use quorate_transports::tcp::Tcp;
    let make = || Subject::new(FaultHandle::new(1).wrap(1, Tcp::new()), "tcp://127.0.0.1:0");
    conformance::run(make).await.into_result().unwrap();
}

fn simulated(link: LinkModel) -> Subject {
    let network = SimNetwork::new(7);
    network.set_default_link(link);
    Subject::pair(network.transport("b"), network.transport("a"), "sim://b:0")
}
