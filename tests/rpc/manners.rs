//! Iterative and concurrent servers, and blocking code on threads (catalogue P1).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use quorate::node::Node;
use quorate::rpc::{CallError, Doubt, Manner, Refusal, ServeOptions, Serving, caller};
use quorate::service;
use tokio::sync::Semaphore;

use crate::support::{Over, soon};

#[service]
trait Shop {
    /// Waits, letting its thread go, for the test's word; gives its place in the order of beginnings.
    async fn wait(&self, customer: u64) -> u64;
    /// The same, holding its thread.
    async fn block(&self, customer: u64) -> u64;
    async fn quick(&self) -> u64;
    async fn fail(&self);
}

/// Opens once, for everybody who waits and blocks.
#[derive(Default)]
struct Door {
    is_open: Mutex<bool>,
    opened: Condvar,
}

struct Counter {
    customers: Mutex<Vec<u64>>,
    at_once: AtomicU64,
    most_at_once: AtomicU64,
    words: Semaphore,
    door: Door,
    knows_caller: AtomicBool,
}

impl Counter {
    fn enter(&self, customer: u64) -> (u64, Inside<'_>) {
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let mut customers = self.customers.lock().unwrap();
        customers.push(customer);
        self.knows_caller.fetch_and(caller().is_some(), Ordering::SeqCst);
        (customers.len() as u64, Inside(&self.at_once))
    }

    fn begun(&self) -> usize {
        self.customers.lock().unwrap().len()
    }

    fn open(&self) {
        *self.door.is_open.lock().unwrap() = true;
        self.door.opened.notify_all();
    }
}

struct Inside<'a>(&'a AtomicU64);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shop for Counter {
    async fn wait(&self, customer: u64) -> u64 {
        let (place, _inside) = self.enter(customer);
        self.words.acquire().await.expect("it stays open").forget();
        place
    }
    async fn block(&self, customer: u64) -> u64 {
        let (place, _inside) = self.enter(customer);
        let opened = self.door.opened.wait_while(self.door.is_open.lock().unwrap(), |is_open| !*is_open);
        drop(opened.unwrap());
        // Also a handler on a thread may wait as others do.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.knows_caller.fetch_and(caller().is_some(), Ordering::SeqCst);
        place
    }
    async fn quick(&self) -> u64 {
        0
    }
    async fn fail(&self) {
        panic!("by intention")
    }
}

struct Place {
    server: Node,
    counter: Arc<Counter>,
    serving: Serving,
    shop: ShopClient,
    /// The same from within the node.
    here: ShopClient,
}

async fn place(over: &Over, manner: Manner, executing_max: u32) -> Place {
    let (server, address) = over.server(1).await;
    let counter = Arc::new(Counter {
        customers: Mutex::default(),
        at_once: AtomicU64::new(0),
        most_at_once: AtomicU64::new(0),
        words: Semaphore::new(0),
        door: Door::default(),
        knows_caller: AtomicBool::new(true),
    });
    let mut options = ServeOptions::default();
    (options.manner, options.executing_max) = (manner, executing_max);
    let serving = server.serve_with("shop", ShopServer::shared(Arc::clone(&counter)), options).unwrap();
    let node = over.client(2).await;
    let shop = ShopClient::connect(&node, "shop", &address).await.unwrap();
    let here = ShopClient::connect_here(&server, "shop").await.unwrap();
    Place { server, counter, serving, shop, here }
}

#[tokio::test]
async fn p01_an_iterative_service_begins_the_next_request_when_the_last_has_ended() {
    for over in Over::all() {
        let Place { counter, serving, shop, here, .. } = place(&over, Manner::Iterative, 100).await;
        let mut calls = Vec::new();
        for customer in 0..10 {
            calls.push(shop.wait_start(customer));
            // Each is there before the next comes.
            while u64::from(serving.stats().executing) <= customer {
                tokio::task::yield_now().await;
            }
        }
        // They all stand in one queue, whoever called.
        calls.push(here.wait_start(10));
        assert_eq!(counter.begun(), 1);
        // One of them gives up.
        drop(calls.remove(5));
        while serving.stats().executing > 10 {
            tokio::task::yield_now().await;
        }
        for (place, call) in calls.into_iter().enumerate() {
            counter.words.add_permits(1);
            assert_eq!(soon("the next", call).await, Ok(place as u64 + 1));
        }
        assert_eq!(*counter.customers.lock().unwrap(), [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]);
        assert_eq!(counter.most_at_once.load(Ordering::SeqCst), 1);
        assert!(counter.knows_caller.load(Ordering::SeqCst));
        assert_eq!(shop.fail().await, Err(CallError::MaybeExecuted(Doubt::HandlerFailed)));
        assert_eq!(soon("who comes after a failure", shop.quick()).await, Ok(0));
    }
}

#[tokio::test]
async fn p01_a_blocked_request_delays_nobody_in_the_concurrent_one_up_to_its_bound() {
    for over in Over::all() {
        let Place { counter, serving, shop, here, .. } = place(&over, Manner::Concurrent, 3).await;
        let blocked = [shop.wait_start(0), shop.wait_start(1)];
        while counter.begun() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(soon("a third", shop.quick()).await, Ok(0));
        assert_eq!(soon("one from within", here.quick()).await, Ok(0));
        let third = shop.wait_start(2);
        while counter.begun() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shop.quick().await, Err(CallError::NotExecuted(Refusal::Overloaded)));
        assert_eq!(serving.stats().executing, 3);
        counter.words.add_permits(3);
        for call in blocked.into_iter().chain([third]) {
            soon("what was blocked", call).await.unwrap();
        }
        assert_eq!(counter.most_at_once.load(Ordering::SeqCst), 3);
    }
}

// One thread for everything else: a handler that held it would stop the test, too.
#[tokio::test]
async fn p01_blocking_code_runs_on_so_many_threads_and_holds_up_nothing_else() {
    for over in Over::all() {
        let manner = Manner::Blocking { threads: 2 };
        let Place { server, counter, serving, shop, here } = place(&over, manner, 100).await;
        let other = place(&over, Manner::Concurrent, 100).await;
        let calls: Vec<_> = (0..6)
            .map(
                |customer| if customer < 4 { shop.block_start(customer) } else { here.block_start(customer) },
            )
            .collect();
        while counter.begun() < 2 || serving.stats().executing < 6 {
            tokio::task::yield_now().await;
        }
        // Both threads are held; everything else goes on.
        assert_eq!(soon("another service", other.shop.quick()).await, Ok(0));
        assert_eq!(counter.begun(), 2);
        let hurried = shop.with_deadline(Duration::from_millis(20));
        let error = soon("its deadline", hurried.quick()).await.unwrap_err();
        assert!(
            matches!(error, CallError::DeadlinePassed { .. } | CallError::MaybeExecuted(Doubt::Abandoned)),
            "{error:?}"
        );
        counter.open();
        for call in calls {
            soon("its turn", call).await.unwrap();
        }
        assert_eq!((counter.begun(), counter.most_at_once.load(Ordering::SeqCst)), (6, 2));
        assert!(counter.knows_caller.load(Ordering::SeqCst));
        assert_eq!(shop.fail().await, Err(CallError::MaybeExecuted(Doubt::HandlerFailed)));
        assert_eq!(soon("who comes after a failure", shop.quick()).await, Ok(0));
        // One that only waits is let go when nobody waits for it any more.
        let waiting = shop.wait_start(7);
        while counter.begun() < 7 {
            tokio::task::yield_now().await;
        }
        drop(waiting);
        while counter.at_once.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(serving.shutdown(Duration::from_secs(10)).await, 0);
        server.shutdown(Duration::from_secs(10)).await;
    }
}
