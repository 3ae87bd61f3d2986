//! Layers of tower around the calls of a client and around the handlers of a service (catalogue R11).

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use quorate::codec::Postcard;
use quorate::rpc::tower::{Answer, Calls, Incoming, Request, Response, layered};
use quorate::rpc::{CallError, Doubt, Key, Metadata, Objects, Refusal, RpcError, caller};
use quorate::service;
use tests::until;
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

use crate::objects::{Bench, Count, CounterServer, WorkshopClient, WorkshopServer};
use crate::support::{Over, soon};

const TOKEN: Key<String> = Key::new("token");

#[service]
trait Till {
    async fn add(&self, one: u64, other: u64) -> Result<u64, String>;
    async fn wait(&self) -> u64;
    #[one_way]
    async fn ring(&self);
}

struct Drawer {
    at_once: AtomicU64,
    most_at_once: AtomicU64,
    rung: AtomicU64,
    permits: Semaphore,
}

impl Till for Drawer {
    async fn add(&self, one: u64, other: u64) -> Result<u64, String> {
        one.checked_add(other).ok_or_else(|| "too much".to_owned())
    }
    async fn wait(&self) -> u64 {
        /// Also when it is cancelled.
        struct Gone<'a>(&'a AtomicU64);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        let _gone = Gone(&self.at_once);
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        self.permits.acquire().await.expect("it stays open").forget();
        at_once
    }
    async fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
    }
}

fn drawer() -> Arc<Drawer> {
    let count = || AtomicU64::new(0);
    Arc::new(Drawer { at_once: count(), most_at_once: count(), rung: count(), permits: Semaphore::new(0) })
}

/// An authentication of one's own: the client's side adds a token, the service's side wants it.
#[derive(Clone)]
struct Token(&'static str);

#[derive(Clone)]
struct WithToken<S>(S, &'static str);

impl<S> Layer<S> for Token {
    type Service = WithToken<S>;
    fn layer(&self, inner: S) -> WithToken<S> {
        WithToken(inner, self.0)
    }
}

impl<S: Service<Request, Response = Response>> Service<Request> for WithToken<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = S::Future;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }
    fn call(&mut self, request: Request) -> S::Future {
        let metadata = request.metadata().clone().with(&TOKEN, self.1).unwrap();
        self.0.call(request.with_metadata(metadata))
    }
}

impl<S: Service<Incoming, Response = Answer, Error = Refusal>> Service<Incoming> for WithToken<S> {
    type Response = Answer;
    type Error = Refusal;
    type Future = futures_of::Either<S::Future, Ready<Result<Answer, Refusal>>>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.0.poll_ready(cx)
    }
    fn call(&mut self, request: Incoming) -> Self::Future {
        let token = caller().unwrap().metadata().value(&TOKEN).unwrap();
        if request.method().name == "ring" || token.as_deref() == Some(self.1) {
            futures_of::Either::Inner(Box::pin(self.0.call(request)))
        } else {
            futures_of::Either::Own(ready(Err(Refusal::Denied)))
        }
    }
}

/// A future of either kind.
mod futures_of {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    pub(super) enum Either<A, B> {
        Inner(Pin<Box<A>>),
        Own(B),
    }

    impl<T, A: Future<Output = T>, B: Future<Output = T> + Unpin> Future for Either<A, B> {
        type Output = T;
        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
            match &mut *self {
                Self::Inner(inner) => inner.as_mut().poll(cx),
                Self::Own(own) => Pin::new(own).poll(cx),
            }
        }
    }
}

#[tokio::test]
async fn r11_a_layer_of_ones_own_lets_in_who_has_a_token_over_every_transport() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let drawer = drawer();
        let till = layered(TillServer::shared(Arc::clone(&drawer)), &Token("right"));
        let _serving = server.serve("till", till).unwrap();
        let node = over.client(2).await;
        let apart = TillClient::connect(&node, "till", &address).await.unwrap();
        let here = TillClient::connect_here(&server, "till").await.unwrap();
        for till in [apart, here] {
            let denied = Err(RpcError::Call(CallError::NotExecuted(Refusal::Denied)));
            assert_eq!(soon("a refusal", till.add(1, 2)).await, denied);
            assert_eq!(soon("a refusal", till.with_layer(&Token("wrong")).add(1, 2)).await, denied);
            let till = till.with_layer(&Token("right"));
            assert_eq!(soon("an answer", till.add(1, 2)).await, Ok(3));
            assert_eq!(till.add(u64::MAX, 2).await, Err(RpcError::Application("too much".to_owned())));
            assert_eq!(soon("an answer", till.add_start(3, 4)).await, Ok(7));
            // What was given later stands outside: the inner one has the last word.
            assert_eq!(soon("an answer", till.with_layer(&Token("wrong")).add(5, 6)).await, Ok(11));
            till.ring().await.unwrap();
        }
        soon("two rings", async {
            while drawer.rung.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn r11_time_outs_and_limits_of_tower_work_on_either_side_and_say_what_is_known() {
    let over = Over::Mem(quorate_transports::mem::Mem::new());
    let (server, address) = over.server(1).await;
    let drawer = drawer();
    let layers = ServiceBuilder::new().concurrency_limit(2).timeout(Duration::from_secs(10));
    let till = layered(TillServer::shared(Arc::clone(&drawer)), &layers);
    let serving = server.serve("till", till).unwrap();
    let node = over.client(2).await;
    let till = TillClient::connect(&node, "till", &address).await.unwrap();

    // The service's: two of three are begun, the third when their time is over.
    let began = tokio::time::Instant::now();
    for call in [till.wait_start(), till.wait_start(), till.wait_start()] {
        assert_eq!(call.await, Err(CallError::MaybeExecuted(Doubt::Abandoned)));
    }
    assert!(began.elapsed() >= Duration::from_secs(20));
    assert_eq!((drawer.most_at_once.load(Ordering::SeqCst), serving.stats().executing), (2, 0));

    // The client's: one at a time and no longer than a second; one more is not sent.
    let layers = ServiceBuilder::new().load_shed().concurrency_limit(1).timeout(Duration::from_secs(1));
    let limited = till.with_layer(&layers);
    let other = limited.clone();
    let (first, second) = tokio::join!(limited.wait(), other.wait());
    let (CallError::Layer(first), CallError::Layer(second)) = (first.unwrap_err(), second.unwrap_err())
    else {
        panic!("the layer ends them")
    };
    assert!(first.is_sent() && !second.is_sent(), "{first}, {second}");
    assert!(first.get().is::<tower::timeout::error::Elapsed>(), "{first}");
    assert!(CallError::Layer(second).is_not_executed() && !CallError::Layer(first).is_not_executed());
    // Dropped by the layer, it was cancelled at the service.
    while serving.stats().executing > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drawer.permits.add_permits(1);
    limited.wait().await.unwrap();
}

#[tokio::test]
async fn r11_a_client_is_a_service_of_tower() {
    let over = Over::Tcp;
    let (server, address) = over.server(1).await;
    let _serving = server.serve("till", TillServer::shared(drawer())).unwrap();
    let till = TillClient::connect(&over.client(2).await, "till", &address).await.unwrap();
    let add = TillClient::<Postcard>::SCHEMA.methods.iter().find(|method| method.name == "add").unwrap();
    let calls: Calls = till.server().calls();
    let request = Request::new::<Postcard, _>(add, &(1_u64, 2_u64)).unwrap();
    assert_eq!((request.method().name, request.arguments().len()), ("add", 2));
    let request = request.with_metadata(Metadata::new().with(&TOKEN, "right").unwrap());
    let shed = ServiceBuilder::new().load_shed().service(calls);
    let response = soon("an answer", shed.oneshot(request)).await.unwrap();
    assert_eq!(response.decode::<Postcard, Result<u64, String>>().unwrap(), Ok(3));
    assert!(response.decode::<Postcard, String>().is_err());
}

#[tokio::test]
async fn r11_a_reference_in_a_request_that_a_layer_drops_is_not_on_its_way() {
    let over = Over::Tcp;
    let (server, address) = over.server(1).await;
    let (there, living) = (Arc::new(Objects::on(&server).unwrap()), Arc::default());
    let _serving = server.serve("workshop", WorkshopServer::new(Bench::new(&there, &living))).unwrap();
    let node = over.client(2).await;
    let objects = Objects::on(&node).unwrap();
    let workshop = WorkshopClient::connect(&node, "workshop", &address).await.unwrap();
    let refusing = |_: Request| Err::<Request, Refusal>(Refusal::Denied);
    let workshop = workshop.with_layer(&ServiceBuilder::new().filter(refusing));
    let counter = objects.export(CounterServer::new(Count::new(0, &living))).unwrap();
    assert!(soon("a refusal", workshop.keep(counter)).await.is_err());
    assert_eq!(objects.stats().in_transit, 0);
    until(|| living.load(Ordering::SeqCst) == 0).await;
}
