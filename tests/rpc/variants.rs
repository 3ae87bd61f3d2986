//! Variants of the call: deferred, with a callback, one way, without messages; and how arguments are passed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quorate::codec::{Bincode, Codec, Json, Postcard};
use quorate::node::Node;
use quorate::rpc::{BindError, CallError, ClientOptions, Doubt, Here, Refusal, RpcError, ServeOptions};
use quorate::service;
use tokio::sync::{Notify, oneshot};

use crate::support::{Over, soon};

/// A workshop.
#[service]
trait Shop {
    /// Adds one.
    async fn next(&self, number: u64) -> u64;
    /// Halves what can be halved.
    async fn half(&self, number: u64) -> Result<u64, String>;
    /// Ends when the door opens.
    async fn wait(&self) -> u64;
    /// Never ends well.
    async fn fail(&self);
    /// Nobody waits for it.
    #[one_way]
    async fn ring(&self);
    /// Bytes as everybody writes them.
    async fn reversed(&self, bytes: Vec<u8>) -> Vec<u8>;
    /// Bytes that are shared.
    async fn front(&self, bytes: Bytes, length: u32) -> Result<Bytes, u32>;
    /// Sorts in place: copy/restore.
    async fn sort(&self, numbers: &mut Vec<u64>, largest: &mut u64) -> usize;
    /// Restores what it had done when it failed.
    async fn fill(&self, words: &mut Vec<String>) -> Result<(), String>;
}

#[derive(Default)]
struct Bench {
    door: Notify,
    rung: AtomicU64,
    rang: Notify,
    dropped: Arc<Notify>,
}

struct TellsWhenDropped(Arc<Notify>);

impl Drop for TellsWhenDropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Shop for Bench {
    async fn next(&self, number: u64) -> u64 {
        number + 1
    }
    async fn half(&self, number: u64) -> Result<u64, String> {
        if number.is_multiple_of(2) { Ok(number / 2) } else { Err(format!("{number} is odd")) }
    }
    async fn wait(&self) -> u64 {
        let _tell = TellsWhenDropped(Arc::clone(&self.dropped));
        self.door.notified().await;
        7
    }
    async fn fail(&self) {
        panic!("on purpose");
    }
    async fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.rang.notify_one();
    }
    async fn reversed(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.reverse();
        bytes
    }
    async fn front(&self, bytes: Bytes, length: u32) -> Result<Bytes, u32> {
        let size = bytes.len() as u32;
        if length <= size { Ok(bytes.slice(..length as usize)) } else { Err(size) }
    }
    async fn sort(&self, numbers: &mut Vec<u64>, largest: &mut u64) -> usize {
        numbers.sort_unstable();
        *largest = numbers.last().copied().unwrap_or_default();
        numbers.len()
    }
    async fn fill(&self, words: &mut Vec<String>) -> Result<(), String> {
        words.push("half".to_owned());
        if words.len() > 1 { Err("full".to_owned()) } else { Ok(()) }
    }
}

/// A client over each transport, and one of the server's own node.
async fn everywhere<C: Codec>(bench: &Arc<Bench>, check: impl AsyncFn(ShopClient<C>)) {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let served = ShopServer::shared(Arc::clone(bench)).with_codec::<C>();
        let _serving = server.serve("shop", served).unwrap();
        let node = over.client(2).await;
        let options = ClientOptions::default();
        check(ShopClient::<C>::connect_with(&node, "shop", &address, options).await.unwrap()).await;
        check(ShopClient::<C>::connect_with(&server, "shop", &address, options).await.unwrap()).await;
        check(ShopClient::<C>::connect_with(&server, "shop", Here, options).await.unwrap()).await;
    }
}

#[tokio::test]
async fn r03_a_deferred_call_has_left_before_anybody_waits_for_its_result() {
    let bench = Arc::new(Bench::default());
    everywhere::<Postcard>(&bench, async |shop| {
        shop.ring().await.unwrap();
        soon("the bell", bench.rang.notified()).await;
        let waiting = shop.wait_start();
        // Both are on their way: their order of collection is ours.
        let (first, second) = (shop.next_start(1), shop.half_start(3));
        assert_eq!(soon("the second", second).await, Err(RpcError::Application("3 is odd".to_owned())));
        assert_eq!(soon("the first", first).await, Ok(2));
        bench.door.notify_one();
        assert_eq!(soon("the door", waiting).await, Ok(7));
        soon("the handler", bench.dropped.notified()).await;
        // Dropping the handle drops the handler.
        let given_up = shop.wait_start();
        assert_eq!(shop.next(1).await, Ok(2), "it is behind the one that waits");
        drop(given_up);
        soon("the handler", bench.dropped.notified()).await;
    })
    .await;
}

#[tokio::test]
async fn r03_a_callback_gets_the_result() {
    let bench = Arc::new(Bench::default());
    everywhere::<Postcard>(&bench, async |shop| {
        let (tell, told) = oneshot::channel();
        shop.half_start(8).then(move |result| drop(tell.send(result)));
        assert_eq!(soon("the callback", told).await.unwrap(), Ok(4));
    })
    .await;
}

#[tokio::test]
async fn r03_a_deferred_call_that_cannot_leave_says_so_when_it_is_awaited() {
    let (server, address) = Over::Tcp.server(1).await;
    let _serving = server.serve("shop", ShopServer::new(Bench::default())).unwrap();
    let node = Over::Tcp.client(2).await;
    let mut options = ClientOptions::default();
    options.calls_max = 2;
    let shop = ShopClient::<Postcard>::connect_with(&node, "shop", &address, options).await.unwrap();
    let _taken = [shop.wait_start(), shop.wait_start()];
    let error = soon("the third", shop.wait_start()).await.unwrap_err();
    assert!(error.is_retryable() && error.is_not_executed(), "{error}");
    let error = soon("too large", shop.reversed_start(vec![0; 17 << 20])).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(_)), "{error}");
}

#[tokio::test]
async fn r02_bytes_travel_as_one_run_whatever_the_user_calls_them() {
    async fn check<C: Codec>() {
        everywhere::<C>(&Arc::new(Bench::default()), async |shop| {
            for size in [0, 1, 900, 100_000] {
                let bytes: Vec<u8> = (0..size).map(|n: usize| n as u8).collect();
                let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
                assert_eq!(shop.reversed(bytes.clone()).await, Ok(reversed));
                let shared = Bytes::from(bytes);
                assert_eq!(
                    shop.front(shared.clone(), 1).await.ok(),
                    shared.get(..1).map(Bytes::copy_from_slice)
                );
                let error = shop.front_start(shared, 1 << 30).await.unwrap_err();
                assert_eq!(error, RpcError::Application(size as u32));
            }
        })
        .await;
    }
    check::<Postcard>().await;
    check::<Json>().await;
    check::<Bincode>().await;
}

#[tokio::test]
async fn r02_exclusive_references_are_copied_there_and_restored() {
    async fn check<C: Codec>() {
        everywhere::<C>(&Arc::new(Bench::default()), async |shop| {
            let (mut numbers, mut largest) = (vec![3, 9, 1], 0);
            assert_eq!(shop.sort(&mut numbers, &mut largest).await, Ok(3));
            assert_eq!((numbers, largest), (vec![1, 3, 9], 9));
            let mut words = Vec::new();
            assert_eq!(shop.fill(&mut words).await, Ok(()));
            assert_eq!(shop.fill(&mut words).await, Err(RpcError::Application("full".to_owned())));
            assert_eq!(words, ["half", "half"], "restored also when the method says no");
        })
        .await;
    }
    check::<Postcard>().await;
    check::<Json>().await;
    check::<Bincode>().await;
}

#[tokio::test]
async fn r03_a_service_of_the_same_node_is_called_without_messages() {
    // It listens nowhere.
    let node = Node::builder().id(1).start().await.unwrap();
    assert!(matches!(ShopClient::connect_here(&node, "shop").await, Err(BindError::Rejected { .. })));
    let bench = Arc::new(Bench::default());
    let mut options = ServeOptions::default();
    options.executing_max = 2;
    let serving = node.serve_with("shop", ShopServer::shared(Arc::clone(&bench)), options).unwrap();
    let shop = ShopClient::connect_here(&node, "shop").await.unwrap();
    let messages = node.stats().messages_sent;

    assert_eq!(shop.next(1).await, Ok(2));
    assert_eq!(shop.fail().await, Err(CallError::MaybeExecuted(Doubt::HandlerFailed)));
    let short = shop.with_deadline(Duration::from_millis(5));
    let passed = CallError::DeadlinePassed { deadline: Duration::from_millis(5), sent: true };
    assert_eq!(soon("the deadline", short.wait()).await, Err(passed));
    soon("the handler", bench.dropped.notified()).await;

    // Its limits hold too, and dropping a call frees its place.
    let waiting = [shop.wait_start(), shop.wait_start()];
    assert_eq!(shop.next(1).await, Err(CallError::NotExecuted(Refusal::Overloaded)));
    assert_eq!(serving.stats().executing, 2);
    drop(waiting);
    while serving.stats().executing > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(shop.next(1).await, Ok(2));
    let stats = serving.stats();
    assert_eq!((stats.requests.executed, stats.executed_here, stats.panicked), (0, 6, 1), "{stats:?}");
    assert_eq!(node.stats().messages_sent, messages);

    // Whoever executes may finish; whoever comes is refused.
    let last = shop.wait_start();
    tokio::task::yield_now().await;
    let ending = tokio::spawn(serving.shutdown(Duration::from_secs(20)));
    while shop.next(1).await != Err(CallError::NotExecuted(Refusal::ShuttingDown)) {
        tokio::task::yield_now().await;
    }
    bench.door.notify_one();
    assert_eq!(soon("the last", last).await, Ok(7));
    assert_eq!(soon("the end", ending).await.unwrap(), 0);
}

#[tokio::test]
async fn r03_the_end_of_a_service_ends_calls_of_its_own_node() {
    let node = Node::builder().id(1).start().await.unwrap();
    let serving = node.serve("shop", ShopServer::new(Bench::default())).unwrap();
    let shop = ShopClient::connect_here(&node, "shop").await.unwrap();
    let waiting = shop.wait_start();
    assert_eq!(shop.next(1).await, Ok(2));
    drop(serving);
    assert_eq!(soon("the end", waiting).await, Err(CallError::MaybeExecuted(Doubt::SessionLost)));
}

#[tokio::test]
async fn r03_a_hundred_thousand_outstanding_calls_need_less_than_200_bytes_each() {
    const CALLS: usize = 100_000;
    let (server, address) = Over::Tcp.server(1).await;
    let mut options = ServeOptions::default();
    (options.calls_max, options.executing_max) = (CALLS as u32, CALLS as u32);
    let bench = Arc::new(Bench::default());
    let serving = server.serve_with("shop", ShopServer::shared(Arc::clone(&bench)), options).unwrap();
    let node = Over::Tcp.client(2).await;
    let mut options = ClientOptions::default();
    options.calls_max = CALLS as u32;
    let shop = ShopClient::<Postcard>::connect_with(&node, "shop", &address, options).await.unwrap();
    let waiting: Vec<_> = (0..CALLS).map(|_| shop.wait_start()).collect();
    assert_eq!(shop.server().outstanding() as usize, CALLS);
    let bytes = shop.server().table_bytes() / CALLS;
    assert!(bytes < 200, "{bytes} bytes");
    while (serving.stats().executing as usize) < CALLS {
        tokio::task::yield_now().await;
    }
    bench.door.notify_waiters();
    for call in waiting {
        assert_eq!(soon("an answer", call).await, Ok(7));
    }
    assert_eq!(serving.stats().requests.executed, CALLS as u64);
}

/// A caller of the same node that never waits for anything does not keep its thread to itself.
#[tokio::test]
async fn r03_calls_of_the_same_node_let_other_tasks_live() {
    let node = Node::builder().id(1).start().await.unwrap();
    let _serving = node.serve("shop", ShopServer::new(Bench::default())).unwrap();
    let shop = ShopClient::connect_here(&node, "shop").await.unwrap();
    let stop = Arc::new(Mutex::new(false));
    let other = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move { *stop.lock().unwrap() = true }
    });
    let calling = async {
        while !*stop.lock().unwrap() {
            assert_eq!(shop.next(1).await, Ok(2));
        }
    };
    soon("the other task", calling).await;
    other.await.unwrap();
}
