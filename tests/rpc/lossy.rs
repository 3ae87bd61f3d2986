//! The server is another process, and it dies, or messages between the two are lost and doubled (catalogue R5, R6, R8).

use std::time::Duration;

use quorate::codec::Postcard;
use quorate::node::Node;
use quorate::rpc::{ClientOptions, Patience};
use quorate_transports::fault::model::{Chance, LatencyModel, LinkModel, LossModel};
use quorate_transports::fault::{FaultConfig, FaultHandle, Manner};
use quorate_transports::tcp::Tcp;

use crate::processes::{LedgerClient, LedgerServer, Lines, READY, SERVER, place, start};
use crate::support::soon;

/// 30% of what arrives is lost, as much arrives twice, and it overtakes.
fn weather(seed: u64) -> FaultHandle {
    let mut config = FaultConfig::default();
    // The hello of each side is not sent again by anybody: without it, connecting would take seconds.
    config.frames_spared = 1;
    let faults = FaultHandle::with_config(seed, config);
    faults.set_manner(Manner::Frames);
    faults.change(|network| {
        network.set_default(LinkModel {
            latency: LatencyModel::Uniform { min: Duration::from_micros(100), max: Duration::from_millis(5) },
            loss: LossModel::Independent(Chance::percent(30)),
            duplication: Chance::percent(30),
            ..LinkModel::PERFECT
        });
    });
    faults
}

/// The program of the server. Does nothing unless a test below starts it.
#[tokio::test]
async fn server_in_bad_weather() {
    let Some((directory, address)) = place() else { return };
    let transport = weather(1).wrap(1, Tcp::new());
    let node = Node::builder().id(1).transport(transport).listen(address.as_str()).start().await.unwrap();
    let _serving = node.serve("ledger", LedgerServer::new(Lines::open(&directory))).unwrap();
    println!("{READY}{}", node.addresses()[0]);
    std::future::pending::<()>().await;
}

fn impatient() -> ClientOptions {
    let mut options = ClientOptions::default();
    (options.retry_min, options.retry_max) = (Duration::from_millis(30), Duration::from_millis(300));
    options.bind_deadline = Duration::from_secs(60);
    options
}

/// Enters `ENTRIES` entries over a bad network, several at a time; how often each was executed, and how often requests
/// were sent again.
async fn enter(seed: u64, repeatable: bool) -> (Vec<u32>, u64) {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, address) = start(WEATHERED, directory.path(), "tcp://127.0.0.1:0").await;
    let faults = weather(seed);
    let node = Node::builder().id(2).transport(faults.wrap(2, Tcp::new())).start().await.unwrap();
    let ledger =
        LedgerClient::<Postcard>::connect_with(&node, "ledger", &address, impatient()).await.unwrap();
    let ledger = ledger.with_deadline(Duration::from_secs(600));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                for entry in (caller..ENTRIES).step_by(CALLERS as usize) {
                    let answer =
                        if repeatable { ledger.enter_again(entry).await } else { ledger.enter(entry).await };
                    assert_eq!(answer, Ok(entry));
                }
            })
        })
        .collect();
    for caller in callers {
        soon("a caller's end", caller).await.unwrap();
    }
    server.kill().await.unwrap();
    let stats = faults.stats();
    assert!(stats.lost > 0 && stats.duplicated > 0, "{stats:?}");
    let executed = Lines::count(directory.path());
    let times = (0..ENTRIES).map(|entry| executed.get(&entry).copied().unwrap_or(0));
    (times.collect(), ledger.server().stats().retransmissions)
}

#[tokio::test]
async fn r06_requests_and_replies_that_are_lost_between_processes_are_sent_again_until_each_call_is_answered()
{
    let (executed, retransmissions) = enter(3, true).await;
    assert!(executed.iter().all(|times| *times >= 1), "{executed:?}");
    assert!(retransmissions > ENTRIES / 10, "{retransmissions}");
}

#[tokio::test]
async fn r08_requests_that_come_again_to_another_process_are_executed_once_and_idempotent_ones_more_often() {
    let (executed, retransmissions) = enter(4, false).await;
    assert_eq!(executed, vec![1; ENTRIES as usize]);
    assert!(retransmissions > 0);
    let (executed, _) = enter(4, true).await;
    assert!(executed.iter().any(|times| *times > 1), "that is what idempotent methods must bear");
}

#[tokio::test]
async fn r05_a_server_process_that_has_died_is_told_at_once_and_its_next_life_is_found_by_who_waits() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, address) = start(SERVER, directory.path(), "tcp://127.0.0.1:0").await;
    let node = Node::builder().id(2).start().await.unwrap();
    let ledger = LedgerClient::connect(&node, "ledger", &address).await.unwrap();
    assert_eq!(ledger.enter(1).await, Ok(1));
    server.kill().await.unwrap();

    // Somebody else, who has never met it.
    let stranger = Node::builder().id(3).start().await.unwrap();
    let error =
        LedgerClient::<Postcard>::connect_with(&stranger, "ledger", &address, ClientOptions::default())
            .await
            .err()
            .unwrap();
    assert!(error.to_string().contains(&address), "{error}");
    let mut patient = impatient();
    patient.patience = Patience::WaitUntilAvailable;
    let waiting = tokio::spawn({
        let (stranger, address) = (stranger.clone(), address.clone());
        async move { LedgerClient::<Postcard>::connect_with(&stranger, "ledger", &address, patient).await }
    });
    let (mut server, _) = start(SERVER, directory.path(), &address).await;
    let found = soon("the next life", waiting).await.unwrap().unwrap();
    assert_eq!(found.enter(2).await, Ok(2));
    assert_eq!(ledger.enter(3).await, Ok(3), "who was bound is bound again");
    server.kill().await.unwrap();
}

const WEATHERED: &str = "lossy::server_in_bad_weather";
const CALLERS: u64 = 16;
const ENTRIES: u64 = 400;
