//! Services that end, come back, and call themselves, as seen by callers of the same node and of others.

use std::future::pending;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use quorate::node::Node;
use quorate::rpc::{CallError, Doubt, NotSent, Serving};
use quorate::service;
use tokio::sync::Notify;

use crate::support::{Over, soon};

/// Goes down, step by step.
#[service]
trait Stairs {
    /// So many steps, each a call of its own.
    async fn down(&self, steps: u32) -> u32;
    /// As many, and the last one breaks.
    async fn fall(&self, steps: u32) -> u32;
    /// Ends the service from within, and stays.
    async fn tear_down(&self);
    /// Stays.
    async fn sit(&self);
}

#[derive(Default)]
struct House {
    client: OnceLock<StairsClient>,
    serving: Mutex<Option<Serving>>,
    left: Arc<Notify>,
}

struct TellsWhenDropped(Arc<Notify>);

impl Drop for TellsWhenDropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Stairs for House {
    async fn down(&self, steps: u32) -> u32 {
        let Some(steps) = steps.checked_sub(1) else { return 0 };
        self.client.get().unwrap().down(steps).await.unwrap() + 1
    }
    async fn fall(&self, steps: u32) -> u32 {
        let steps = steps.checked_sub(1).expect("on purpose");
        self.client.get().unwrap().fall(steps).await.unwrap_or(steps)
    }
    async fn tear_down(&self) {
        let _tell = TellsWhenDropped(Arc::clone(&self.left));
        drop(self.serving.lock().unwrap().take());
        pending().await
    }
    async fn sit(&self) {
        let _tell = TellsWhenDropped(Arc::clone(&self.left));
        pending().await
    }
}

#[tokio::test]
async fn r03_calls_within_calls_of_the_same_node_do_not_exhaust_the_stack() {
    let node = Node::builder().id(1).start().await.unwrap();
    let house = Arc::new(House::default());
    let serving = node.serve("stairs", StairsServer::shared(Arc::clone(&house))).unwrap();
    let stairs = StairsClient::connect_here(&node, "stairs").await.unwrap();
    assert!(house.client.set(stairs.clone()).is_ok());
    assert_eq!(soon("the way down", stairs.down(1000)).await, Ok(1000));
    // A panic at the bottom is the business of the call above it alone.
    assert_eq!(soon("the fall", stairs.fall(200)).await, Ok(0));
    assert_eq!((serving.stats().executing, serving.stats().panicked), (0, 1));
}

#[tokio::test]
async fn r03_a_client_of_the_same_node_finds_the_service_when_it_is_served_again() {
    let node = Node::builder().id(1).start().await.unwrap();
    let serving = node.serve("stairs", StairsServer::new(House::default())).unwrap();
    let stairs = StairsClient::connect_here(&node, "stairs").await.unwrap();
    assert_eq!(soon("the first life", stairs.down(0)).await, Ok(0));
    drop(serving);
    // As by messages: who is asked in vain tells what it knows, and who asks later waits.
    let in_vain = soon("nobody", stairs.down(0)).await;
    assert_eq!(in_vain, Err(CallError::MaybeExecuted(Doubt::SessionLost)));
    let waiting = stairs.down_start(0);
    let _again = node.serve("stairs", StairsServer::new(House::default())).unwrap();
    assert_eq!(soon("the second life", waiting).await, Ok(0));
}

#[tokio::test]
async fn r03_a_client_of_the_same_node_does_not_keep_a_service_alive() {
    let node = Node::builder().id(1).start().await.unwrap();
    let house = Arc::new(House::default());
    let serving = node.serve("stairs", StairsServer::shared(Arc::clone(&house))).unwrap();
    let stairs = StairsClient::connect_here(&node, "stairs").await.unwrap();
    assert_eq!(soon("an answer", stairs.down(0)).await, Ok(0));
    drop(serving);
    let gone = async {
        while Arc::strong_count(&house) > 1 {
            tokio::task::yield_now().await;
        }
    };
    soon("the end of the service", gone).await;
}

#[tokio::test]
async fn r03_the_end_of_a_node_ends_its_calls_of_itself() {
    let node = Node::builder().id(1).start().await.unwrap();
    let house = Arc::new(House::default());
    let _serving = node.serve("stairs", StairsServer::shared(Arc::clone(&house))).unwrap();
    let stairs = StairsClient::connect_here(&node, "stairs").await.unwrap();
    let sitting = stairs.sit_start();
    node.shutdown(Duration::ZERO).await;
    assert_eq!(soon("the end", sitting).await, Err(CallError::NodeShutDown));
    soon("the handler", house.left.notified()).await;
    let late = soon("a late call", stairs.down(0)).await;
    assert_eq!(late, Err(CallError::NotSent(NotSent::NodeShutDown)));
}

#[tokio::test]
async fn r03_a_handler_that_ends_its_own_service_ends_with_it() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let house = Arc::new(House::default());
        let serving = server.serve("stairs", StairsServer::shared(Arc::clone(&house))).unwrap();
        *house.serving.lock().unwrap() = Some(serving);
        let stairs = StairsClient::connect(&over.client(2).await, "stairs", &address).await.unwrap();
        let _call = stairs.tear_down_start();
        soon("the handler", house.left.notified()).await;
    }
}
