//! Cancellation, overload, panics, drains, restarts: what the caller learns, and what is left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate::node::Node;
use quorate::rpc::{CallError, Doubt, NotSent, Refusal, ServeOptions, Serving};
use quorate::service;
use tokio::sync::{Notify, Semaphore};

use crate::support::{Over, soon};

#[service]
pub(crate) trait Workshop {
    /// Works until told to stop.
    async fn work(&self) -> u32;
    /// The same, and repeating it does no harm.
    #[idempotent]
    async fn look(&self) -> u32;
    async fn explode(&self, at_once: bool) -> u32;
    async fn life(&self) -> u32;
}

/// The service's inside, seen by the test.
#[derive(Default)]
struct Inside {
    life: u32,
    begun: AtomicU32,
    dropped: Arc<AtomicU32>,
    changed: Arc<Notify>,
    /// Each permit lets one piece of work end.
    may_end: Option<Semaphore>,
}

struct Shop(Arc<Inside>);

struct Alive(Arc<Inside>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Shop {
    async fn wait(&self) -> u32 {
        let _alive = Alive(Arc::clone(&self.0));
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
        match &self.0.may_end {
            Some(permits) => permits.acquire().await.unwrap().forget(),
            None => std::future::pending().await,
        }
        self.0.life
    }
}

impl Workshop for Shop {
    async fn work(&self) -> u32 {
        self.wait().await
    }
    async fn look(&self) -> u32 {
        self.wait().await
    }
    async fn explode(&self, at_once: bool) -> u32 {
        if !at_once {
            tokio::task::yield_now().await;
        }
        panic!("this panic belongs to the test")
    }
    async fn life(&self) -> u32 {
        self.0.life
    }
}

impl Inside {
    fn new(life: u32) -> Arc<Self> {
        Arc::new(Self { life, may_end: Some(Semaphore::new(0)), ..Self::default() })
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        soon(what, async {
            loop {
                let changed = self.changed.notified();
                if condition(self) {
                    return;
                }
                changed.await;
            }
        })
        .await;
    }

    async fn until_begun(&self, count: u32) {
        self.until("the beginning", |inside| inside.begun.load(Ordering::SeqCst) >= count).await;
    }

    fn let_end(&self, count: usize) {
        self.may_end.as_ref().unwrap().add_permits(count);
    }
}

async fn shop(
    over: &Over,
    inside: &Arc<Inside>,
    options: ServeOptions,
) -> (Node, Serving, Node, WorkshopClient) {
    let (server, address) = over.server(1).await;
    let serving = server.serve_with("shop", WorkshopServer::new(Shop(Arc::clone(inside))), options).unwrap();
    let node = over.client(2).await;
    let client = WorkshopClient::connect(&node, "shop", &address).await.unwrap();
    (server, serving, node, client)
}

#[tokio::test]
async fn r06_dropping_a_call_drops_the_handler_on_the_server() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let (_server, serving, _node, client) = shop(&over, &inside, ServeOptions::default()).await;
        let call = tokio::spawn({
            let client = client.clone();
            async move { client.work().await }
        });
        inside.until_begun(1).await;
        call.abort();
        inside.until("the handler's end", |inside| inside.dropped.load(Ordering::SeqCst) == 1).await;
        assert_eq!(client.server().outstanding(), 0);
        let stats = serving.stats();
        assert_eq!((stats.executing, stats.requests.aborted), (0, 1), "{stats:?}");
    }
}

#[tokio::test]
async fn a_handler_is_dropped_when_its_callers_deadline_passes() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let (_server, serving, _node, client) = shop(&over, &inside, ServeOptions::default()).await;
        let error = client.with_deadline(Duration::from_millis(20)).work().await.unwrap_err();
        assert_eq!(error, CallError::DeadlinePassed { deadline: Duration::from_millis(20), sent: true });
        inside.until("the handler's end", |inside| inside.dropped.load(Ordering::SeqCst) == 1).await;
        drop(serving);
    }
}

#[tokio::test]
async fn a_request_too_many_is_refused_as_overloaded_and_may_be_tried_again() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let mut options = ServeOptions::default();
        options.executing_max = 2;
        let (_server, _serving, _node, client) = shop(&over, &inside, options).await;
        let working: Vec<_> = (0..2)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.work().await })
            })
            .collect();
        inside.until_begun(2).await;
        let error = client.life().await.unwrap_err();
        assert_eq!(error, CallError::NotExecuted(Refusal::Overloaded));
        assert!(error.is_retryable());
        inside.let_end(2);
        for call in working {
            assert_eq!(soon("the work", call).await.unwrap().unwrap(), 1);
        }
        assert_eq!(client.life().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_panic_in_the_service_is_a_doubt_for_its_caller_and_nobody_else() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let (_server, serving, _node, client) = shop(&over, &inside, ServeOptions::default()).await;
        for at_once in [true, false] {
            let error = soon("the panic", client.explode(at_once)).await.unwrap_err();
            assert_eq!(error, CallError::MaybeExecuted(Doubt::HandlerFailed));
        }
        assert_eq!(client.life().await.unwrap(), 1);
        assert_eq!(serving.stats().panicked, 2);
        assert_eq!(serving.stats().executing, 0);
    }
}

#[tokio::test]
async fn shutting_a_service_down_finishes_what_executes_and_refuses_the_rest() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let (_server, serving, _node, client) = shop(&over, &inside, ServeOptions::default()).await;
        let working = tokio::spawn({
            let client = client.clone();
            async move { client.work().await }
        });
        inside.until_begun(1).await;
        let stopping = tokio::spawn(serving.shutdown(Duration::from_secs(20)));
        // Refused as soon as the drain has begun; before that a call is still served.
        let error = soon("the drain", async {
            loop {
                match client.life().await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => return error,
                }
            }
        })
        .await;
        assert_eq!(error, CallError::NotExecuted(Refusal::ShuttingDown));
        inside.let_end(1);
        assert_eq!(soon("the work", working).await.unwrap().unwrap(), 1);
        assert_eq!(soon("the shutdown", stopping).await.unwrap(), 0, "nothing was cut off");
    }
}

#[tokio::test]
async fn shutting_down_within_no_time_tells_what_was_cut_off() {
    let inside = Inside::new(1);
    let (_server, serving, _node, client) = shop(&Over::Tcp, &inside, ServeOptions::default()).await;
    let _working = tokio::spawn(async move { client.work().await });
    inside.until_begun(1).await;
    assert_eq!(soon("the shutdown", serving.shutdown(Duration::ZERO)).await, 1);
    inside.until("the handler's end", |inside| inside.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn r08_after_a_restart_an_idempotent_call_is_answered_by_the_next_life_and_another_is_in_doubt() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let (server, serving, _node, client) = shop(&over, &inside, ServeOptions::default()).await;
        let address = server.addresses()[0].to_string();
        let calls = {
            let (first, second) = (client.clone(), client.clone());
            (
                tokio::spawn(async move { first.work().await }),
                tokio::spawn(async move { second.look().await }),
            )
        };
        inside.until_begun(2).await;
        // The end of the first life, as abrupt as it can be within one process.
        drop(serving);
        server.shutdown(Duration::ZERO).await;
        let next = Inside::new(2);
        next.let_end(10);
        let (server, _) = soon("the second life", async { over.server_at(1, 2, &address).await }).await;
        let _serving = server.serve("shop", WorkshopServer::new(Shop(Arc::clone(&next)))).unwrap();
        assert_eq!(
            soon("the doubt", calls.0).await.unwrap().unwrap_err(),
            CallError::MaybeExecuted(Doubt::SessionLost)
        );
        assert_eq!(soon("the next life's answer", calls.1).await.unwrap().unwrap(), 2);
        assert_eq!(soon("a new call", client.life()).await.unwrap(), 2, "the client needs no new binding");
        assert_eq!(client.server().stats().sessions, 2);
    }
}

#[tokio::test]
async fn a_dropped_client_leaves_nothing_behind_on_the_server() {
    let inside = Inside::new(1);
    let (_server, serving, node, client) = shop(&Over::Tcp, &inside, ServeOptions::default()).await;
    let working = tokio::spawn(async move { client.work().await });
    inside.until_begun(1).await;
    working.abort();
    inside.until("the handler's end", |inside| inside.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!(serving.stats().executing, 0);
    drop(node);
}

#[tokio::test]
async fn shutting_the_own_node_down_ends_its_calls_at_once() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let (_server, _serving, node, client) = shop(&over, &inside, ServeOptions::default()).await;
        let working = tokio::spawn({
            let client = client.clone();
            async move { client.work().await }
        });
        inside.until_begun(1).await;
        soon("the shutdown", node.shutdown(Duration::from_secs(5))).await;
        assert_eq!(soon("the call's end", working).await.unwrap().unwrap_err(), CallError::NodeShutDown);
        assert_eq!(
            soon("the refusal", client.work()).await.unwrap_err(),
            CallError::NotSent(NotSent::NodeShutDown)
        );
    }
}

#[tokio::test]
async fn a_service_that_goes_leaves_its_callers_in_doubt_and_one_that_comes_back_takes_new_calls() {
    for over in Over::all() {
        let inside = Inside::new(1);
        let (server, serving, _node, client) = shop(&over, &inside, ServeOptions::default()).await;
        let working = tokio::spawn({
            let client = client.clone();
            async move { client.work().await }
        });
        inside.until_begun(1).await;
        drop(serving);
        assert_eq!(
            soon("the doubt", working).await.unwrap().unwrap_err(),
            CallError::MaybeExecuted(Doubt::SessionLost)
        );
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.life().await }
        });
        let next = WorkshopServer::new(Shop(Inside::new(2)));
        let _serving = server.serve("shop", next).unwrap();
        assert_eq!(soon("the service's return", waiting).await.unwrap().unwrap(), 2);
    }
}
