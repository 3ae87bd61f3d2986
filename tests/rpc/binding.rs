//! The client cannot locate the server: typed, at once, with what was tried (catalogue R5).

use std::time::Duration;

use quorate::codec::{Json, Postcard};
use quorate::rpc::{BindError, ClientOptions, Patience, Rejection, ServeError};
use quorate::service;
use quorate_transports::mem::Mem;

use crate::support::{Over, soon};

#[service]
pub(crate) trait Bell {
    async fn ring(&self) -> u32;
}

struct Brass;

impl Bell for Brass {
    async fn ring(&self) -> u32 {
        1
    }
}

#[tokio::test]
async fn r05_nobody_at_the_address_is_told_at_once_with_the_address() {
    for over in Over::all() {
        let address = over.nobody();
        let node = over.client(2).await;
        let error = soon("the refusal", BellClient::connect(&node, "bell", &address)).await.err().unwrap();
        assert!(matches!(error, BindError::Unreachable { .. }), "{error:?}");
        assert!(error.is_retryable());
        let text = error.to_string();
        assert!(text.contains("bell") && text.contains(&address), "{text}");
    }
}

#[tokio::test]
async fn r05_a_node_without_the_service_says_so_at_once() {
    for over in Over::all() {
        let (server, address) = over.server(7).await;
        let node = over.client(2).await;
        // The node serves nothing at all, then something else, then the right thing under another name.
        let error = soon("no service", BellClient::connect(&node, "bell", &address)).await.err().unwrap();
        assert!(matches!(error, BindError::Rejected { reason: Rejection::NoSuchService, .. }), "{error:?}");
        let _other = server.serve("gong", BellServer::new(Brass)).unwrap();
        let error = soon("no service", BellClient::connect(&node, "bell", &address)).await.err().unwrap();
        assert!(matches!(error, BindError::Rejected { reason: Rejection::NoSuchService, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("\"bell\" of node 7") && text.contains(&address), "{text}");
        let bell = BellClient::connect(&node, "gong", &address).await.unwrap();
        assert_eq!(bell.ring().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn r05_another_codec_is_refused_at_binding() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let _serving = server.serve("bell", BellServer::new(Brass)).unwrap();
        let node = over.client(2).await;
        let binding = BellClient::<Json>::connect_with(&node, "bell", &address, ClientOptions::default());
        let error = soon("the mismatch", binding).await.err().unwrap();
        assert!(matches!(error, BindError::Rejected { reason: Rejection::CodecMismatch, .. }), "{error:?}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn r05_what_is_no_address_is_told() {
    let node = Over::Tcp.client(2).await;
    let error = BellClient::connect(&node, "bell", "somewhere").await.err().unwrap();
    assert!(matches!(error, BindError::Address(_)), "{error:?}");
}

#[tokio::test]
async fn a_name_is_served_once_until_it_is_free_again() {
    let (server, address) = Over::Tcp.server(1).await;
    let serving = server.serve("bell", BellServer::new(Brass)).unwrap();
    let error = server.serve("bell", BellServer::new(Brass)).unwrap_err();
    assert_eq!(error, ServeError::NameTaken { name: "bell".into() });
    drop(serving);
    let _again = server.serve("bell", BellServer::new(Brass)).unwrap();
    // A node may call itself.
    let bell = BellClient::connect(&server, "bell", &address).await.unwrap();
    assert_eq!(soon("calling oneself", bell.ring()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn r05_who_is_patient_waits_for_the_node_and_for_the_service() {
    let over = Over::Mem(Mem::new());
    let node = over.client(2).await;
    let mut options = ClientOptions::default();
    options.patience = Patience::WaitUntilAvailable;
    let early =
        BellClient::<Postcard>::connect_with(&node, "bell", "mem://tower", options).await.err().unwrap();
    assert!(matches!(early, BindError::Unreachable { .. }), "{early:?}");

    options.bind_deadline = Duration::from_secs(60);
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { BellClient::<Postcard>::connect_with(&node, "bell", "mem://tower", options).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (server, _) = over.server_at(1, 1, "mem://tower").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let _serving = server.serve("bell", BellServer::new(Brass)).unwrap();
    let bell = waiting.await.unwrap().unwrap();
    assert_eq!(bell.ring().await.unwrap(), 1);
}

#[tokio::test]
async fn r05_who_would_wait_for_ever_may_say_so() {
    let over = Over::Mem(Mem::new());
    let (server, address) = over.server(1).await;
    let _serving = server.serve("bell", BellServer::new(Brass)).unwrap();
    let mut options = ClientOptions::default();
    options.bind_deadline = Duration::MAX;
    options.call_deadline = Duration::MAX;
    options.retry_max = Duration::MAX;
    let node = over.client(2).await;
    let bell = BellClient::<Postcard>::connect_with(&node, "bell", &address, options).await.unwrap();
    assert_eq!(soon("the bell", bell.ring()).await.unwrap(), 1);
}
