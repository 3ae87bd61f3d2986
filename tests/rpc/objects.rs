//! Remote objects over real nodes: passed, returned, handed on, called back, let go of (catalogue R10, R2).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::codec::{Codec, Json, Postcard};
use quorate::node::Node;
use quorate::rpc::{
    CallError, Dangling, ExportError, NotSent, Objects, ObjectsError, ObjectsOptions, Refusal, Remote,
};
use quorate::service;
use tests::{everywhere, until};

use crate::support::{Over, soon};

/// Makes counters, and calls them.
#[service]
pub(crate) trait Workshop {
    async fn counter(&self, start: u64) -> Remote<CounterClient>;
    async fn add_to(&self, counter: Remote<CounterClient>, by: u64) -> Result<u64, String>;
    async fn keep(&self, counter: Remote<CounterClient>);
    async fn kept(&self) -> Option<Remote<CounterClient>>;
    async fn drop_kept(&self);
    #[references]
    async fn first(&self, pair: Pair) -> Remote<CounterClient>;
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Pair {
    left: Remote<CounterClient>,
    right: Option<Remote<CounterClient>>,
}

#[service]
pub(crate) trait Counter {
    async fn add(&self, by: u64) -> u64;
    async fn text(&self, text: &mut String);
    #[one_way]
    async fn tell(&self, by: u64);
}

/// A counter that says when it is dropped.
pub(crate) struct Count {
    value: AtomicU64,
    living: Arc<AtomicU64>,
}

impl Count {
    pub(crate) fn new(start: u64, living: &Arc<AtomicU64>) -> Self {
        living.fetch_add(1, Ordering::SeqCst);
        Self { value: AtomicU64::new(start), living: Arc::clone(living) }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.living.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Counter for Count {
    async fn add(&self, by: u64) -> u64 {
        self.value.fetch_add(by, Ordering::SeqCst) + by
    }
    async fn text(&self, text: &mut String) {
        text.push_str(&self.value.load(Ordering::SeqCst).to_string());
    }
    async fn tell(&self, by: u64) {
        self.add(by).await;
    }
}

pub(crate) struct Bench {
    objects: Arc<Objects>,
    living: Arc<AtomicU64>,
    kept: Mutex<Option<Remote<CounterClient>>>,
}

impl Bench {
    pub(crate) fn new(objects: &Arc<Objects>, living: &Arc<AtomicU64>) -> Self {
        Self { objects: Arc::clone(objects), living: Arc::clone(living), kept: Mutex::default() }
    }
}

impl Workshop for Bench {
    async fn counter(&self, start: u64) -> Remote<CounterClient> {
        self.objects.export(CounterServer::new(Count::new(start, &self.living))).unwrap()
    }
    async fn add_to(&self, counter: Remote<CounterClient>, by: u64) -> Result<u64, String> {
        counter.add(by).await.map_err(|error| error.to_string())
    }
    async fn keep(&self, counter: Remote<CounterClient>) {
        *self.kept.lock().unwrap() = Some(counter);
    }
    async fn kept(&self) -> Option<Remote<CounterClient>> {
        self.kept.lock().unwrap().clone()
    }
    async fn drop_kept(&self) {
        self.kept.lock().unwrap().take();
    }
    async fn first(&self, pair: Pair) -> Remote<CounterClient> {
        drop(pair.right);
        pair.left
    }
}

/// A node with a workshop, and how many of its counters live.
struct Shop {
    node: Node,
    address: String,
    objects: Arc<Objects>,
    living: Arc<AtomicU64>,
    _serving: quorate::rpc::Serving,
}

/// Short enough to be waited for, long enough for a machine that is busy.
fn quick() -> ObjectsOptions {
    let mut options = ObjectsOptions::default();
    options.lease = Duration::from_secs(2);
    options.transit = Duration::from_secs(4);
    options
}

impl Shop {
    async fn open<C: Codec>(over: &Over, id: u64) -> Self {
        let (node, address) = over.server(id).await;
        let (objects, living) = (Arc::new(Objects::with(&node, quick()).unwrap()), Arc::default());
        let bench = Bench::new(&objects, &living);
        let serving = node.serve("workshop", WorkshopServer::new(bench).with_codec::<C>()).unwrap();
        Self { node, address, objects, living, _serving: serving }
    }

    fn living(&self) -> u64 {
        self.living.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn r10_references_are_returned_passed_and_called_and_let_go_of_over_every_transport() {
    everywhere(tests::nets(), |net| {
        soon("the story", async move {
            let over = Over::Net(net);
            let shop = Shop::open::<Postcard>(&over, 1).await;
            let node = over.client(2).await;
            let objects = Objects::with(&node, quick()).unwrap();
            let workshop = WorkshopClient::connect(&node, "workshop", &shop.address).await.unwrap();

            let counter = workshop.counter(5).await.unwrap();
            assert_eq!(counter.add(2).await, Ok(7));
            let mut text = "now ".to_owned();
            counter.text(&mut text).await.unwrap();
            assert_eq!(text, "now 7");
            counter.tell(1).await.unwrap();
            until_equal(&counter, 8).await;
            // Home again: what comes back to its owner is the object itself.
            assert_eq!(workshop.add_to(counter.clone(), 2).await, Ok(10));
            assert_eq!(Remote::id(&counter).owner, shop.node.identity());
            assert_eq!(Remote::check(&counter), Ok(()));
            // A clone is the same object; another one is not.
            let other = workshop.counter(0).await.unwrap();
            assert!(counter == counter.clone() && counter != other);
            assert_eq!(shop.living(), 2);
            drop(other);
            until(|| shop.living() == 1).await;
            assert_eq!(counter.add(1).await, Ok(11));
            drop(counter);
            until(|| shop.living() == 0).await;
            until(|| shop.objects.stats().held_by_others == 0).await;
            assert_eq!(objects.stats().held, 0);
        })
    })
    .await;
}

async fn until_equal(counter: &Remote<CounterClient>, value: u64) {
    while counter.add(0).await != Ok(value) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn r10_a_server_calls_back_through_a_reference_of_its_client() {
    for over in Over::all() {
        let shop = Shop::open::<Json>(&over, 1).await;
        // It listens nowhere: it is called over its own connection.
        let node = over.client(2).await;
        let objects = Objects::with(&node, quick()).unwrap();
        let workshop =
            WorkshopClient::<Json>::connect_with(&node, "workshop", &*shop.address, Default::default());
        let workshop = workshop.await.unwrap();
        let living = Arc::default();
        let mine = objects.export(CounterServer::new(Count::new(100, &living))).unwrap();
        assert_eq!(soon("the callback", workshop.add_to(mine.clone(), 1)).await, Ok(101));
        assert_eq!(mine.add(1).await, Ok(102), "called without a message");
        // The server keeps it when the client does not.
        workshop.keep(mine).await.unwrap();
        let again = workshop.kept().await.unwrap().unwrap();
        assert_eq!(again.add(1).await, Ok(103));
        drop(again);
        until(|| shop.objects.stats().held == 1).await;
        assert_eq!(living.load(Ordering::SeqCst), 1);
        workshop.drop_kept().await.unwrap();
        until(|| living.load(Ordering::SeqCst) == 0).await;
        assert_eq!(objects.stats().exported, 0);
    }
}

#[tokio::test]
async fn r10_a_reference_is_handed_on_to_a_third_node_and_outlives_its_giver() {
    for over in Over::all() {
        let maker = Shop::open::<Postcard>(&over, 1).await;
        let keeper = Shop::open::<Postcard>(&over, 2).await;
        let giver = over.client(3).await;
        let objects = Objects::with(&giver, quick()).unwrap();
        let at_maker = WorkshopClient::connect(&giver, "workshop", &maker.address).await.unwrap();
        let at_keeper = WorkshopClient::connect(&giver, "workshop", &keeper.address).await.unwrap();
        let counter = at_maker.counter(1).await.unwrap();
        // The keeper has never heard of the maker; the reference says where it is.
        at_keeper.keep(counter).await.unwrap();
        until(|| objects.stats().held == 0).await;
        drop(objects);
        soon("the giver's end", giver.shutdown(Duration::from_secs(10))).await;

        let other = over.client(4).await;
        let _objects = Objects::with(&other, quick()).unwrap();
        let at_keeper = WorkshopClient::connect(&other, "workshop", &keeper.address).await.unwrap();
        let counter = at_keeper.kept().await.unwrap().unwrap();
        assert_eq!(Remote::id(&counter).owner, maker.node.identity());
        assert_eq!(soon("the call", counter.add(1)).await, Ok(2));
        at_keeper.drop_kept().await.unwrap();
        until(|| keeper.objects.stats().held == 0).await;
        assert_eq!(maker.living(), 1, "held by the last one alone");
        drop(counter);
        until(|| maker.living() == 0).await;
    }
}

#[tokio::test]
async fn r02_references_travel_within_other_values() {
    let over = Over::Tcp;
    let shop = Shop::open::<Postcard>(&over, 1).await;
    let node = over.client(2).await;
    let _objects = Objects::with(&node, quick()).unwrap();
    let workshop = WorkshopClient::connect(&node, "workshop", &shop.address).await.unwrap();
    let (left, right) = (workshop.counter(1).await.unwrap(), workshop.counter(2).await.unwrap());
    let first = workshop.first(Pair { left: left.clone(), right: Some(right) }).await.unwrap();
    assert_eq!(first, left);
    until(|| shop.living() == 1).await;
}

#[tokio::test]
async fn r10_a_dangling_reference_says_what_has_become_of_its_object() {
    everywhere(tests::nets(), |net| async move {
        let over = Over::Net(net);
        let shop = Shop::open::<Postcard>(&over, 1).await;
        let node = over.client(2).await;
        let objects = Objects::with(&node, quick()).unwrap();
        let workshop = WorkshopClient::connect(&node, "workshop", &shop.address).await.unwrap();

        // The object is gone, and its node lives.
        let counter = workshop.counter(1).await.unwrap();
        workshop.keep(counter.clone()).await.unwrap();
        let at_home = soon("the kept one", async {
            let there = WorkshopClient::connect_here(&shop.node, "workshop").await.unwrap();
            there.kept().await.unwrap().unwrap()
        });
        assert!(shop.objects.withdraw(&at_home.await));
        assert!(!objects.withdraw(&counter), "only its owner may");
        let error = counter.add(1).await.unwrap_err();
        assert_eq!(error, CallError::NotExecuted(Refusal::ObjectGone));
        assert_eq!(error.dangling(), Some(Dangling::ObjectGone));
        assert_eq!(shop.living(), 0);

        // The node is gone.
        let counter = workshop.counter(1).await.unwrap();
        assert_eq!(counter.add(1).await, Ok(2));
        let Shop { node: gone, address, .. } = shop;
        soon("the end", gone.shutdown(Duration::from_secs(10))).await;
        until(|| Remote::check(&counter) == Err(Dangling::NodeGone)).await;
        let error = counter.add(1).await.unwrap_err();
        assert_eq!(error, CallError::NotSent(NotSent::ObjectsNodeGone));

        // Another life of the node is there.
        let (later, _) = over.server_at(1, 2, &address).await;
        let _later_objects = Objects::with(&later, quick()).unwrap();
        until(|| Remote::check(&counter) == Err(Dangling::OtherLife)).await;
        let error = counter.add(1).await.unwrap_err();
        assert_eq!(error.dangling(), Some(Dangling::OtherLife));
    })
    .await;
}

#[tokio::test]
async fn r10_limits_of_objects_are_told() {
    let over = Over::Tcp;
    let (node, address) = over.server(1).await;
    let mut options = quick();
    options.exported_max = 3;
    options.peer_max = 2;
    let objects = Arc::new(Objects::with(&node, options).unwrap());
    assert!(matches!(Objects::on(&node), Err(ObjectsError::AlreadyOpen)));
    let mut endless = quick();
    endless.lease = Duration::MAX;
    assert!(matches!(Objects::with(&node, endless), Err(ObjectsError::TooLong("lease"))));
    let mut endless = quick();
    endless.transit = Duration::MAX;
    assert!(matches!(Objects::with(&node, endless), Err(ObjectsError::TooLong("transit"))));
    let living = Arc::default();
    let bench = Bench::new(&objects, &living);
    let _serving = node.serve("workshop", WorkshopServer::new(bench)).unwrap();

    let client = over.client(2).await;
    let workshop = WorkshopClient::connect(&client, "workshop", &address).await.unwrap();
    let error = workshop.counter(1).await.unwrap_err();
    assert!(matches!(error, CallError::BadReply(_)), "this node has not opened its objects: {error}");
    until(|| objects.stats().in_transit == 0).await;

    let _objects = Objects::with(&client, quick()).unwrap();
    let first = workshop.counter(1).await.unwrap();
    let _second = workshop.counter(2).await.unwrap();
    until(|| objects.stats().held_by_others == 2).await;
    // The third is made, and cannot be sent.
    assert!(matches!(workshop.counter(3).await, Err(CallError::MaybeExecuted(_))));
    let count = || CounterServer::new(Count::new(0, &living));
    let _mine = objects.export(count()).unwrap();
    assert_eq!(objects.export(count()).unwrap_err(), ExportError::TooMany { limit: 3 });
    drop(first);
    until(|| objects.stats().exported == 2).await;
    assert!(workshop.counter(4).await.is_ok());
}

#[tokio::test]
async fn r10_closing_gives_everything_back_and_drops_what_is_exported() {
    for over in Over::all() {
        let shop = Shop::open::<Postcard>(&over, 1).await;
        let node = over.client(2).await;
        let objects = Objects::with(&node, quick()).unwrap();
        let workshop = WorkshopClient::connect(&node, "workshop", &shop.address).await.unwrap();
        let living = Arc::default();
        workshop.keep(objects.export(CounterServer::new(Count::new(0, &living))).unwrap()).await.unwrap();
        let counter = workshop.counter(1).await.unwrap();
        until(|| shop.objects.stats().held_by_others == 1).await;

        assert_eq!(soon("the end", objects.shutdown(Duration::from_secs(10))).await, 0);
        until(|| shop.living() == 0 && living.load(Ordering::SeqCst) == 0).await;
        assert_eq!(shop.objects.stats().leases_expired, 0, "nobody had to wait for that");
        assert_eq!(counter.add(1).await, Err(CallError::NotSent(NotSent::NodeShutDown)));
        // They may be opened again, and are others then.
        let again = Objects::with(&node, quick()).unwrap();
        assert_eq!(workshop.counter(1).await.unwrap().add(1).await, Ok(2));
        assert_eq!(again.stats().exports, 0);
    }
}
