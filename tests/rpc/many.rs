//! Several servers: who is asked, who is asked instead, and how many answers are enough. And what a handler knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::node::Node;
use quorate::rpc::{
    Balance, Balanced, CallError, Nobody, Refusal, ServeOptions, Serving, Wanted, caller, together,
};
use quorate::service;
use tokio::sync::Notify;

use crate::support::{Over, soon};

#[service]
trait Oracle {
    async fn number(&self) -> u64;
    async fn wait(&self) -> u64;
    async fn fails(&self) -> Result<u64, u64>;
    /// The caller's node, and the microseconds that are left.
    async fn who(&self) -> (u64, u64);
    /// Asks the next one.
    async fn nested(&self) -> Result<(u64, u64), String>;
}

struct Delphi {
    number: u64,
    asked: AtomicU64,
    waiting: Notify,
    next: Option<OracleClient>,
}

impl Oracle for Delphi {
    async fn number(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.number
    }
    async fn wait(&self) -> u64 {
        self.waiting.notify_one();
        std::future::pending().await
    }
    async fn fails(&self) -> Result<u64, u64> {
        if self.number == 1 { Ok(1) } else { Err(self.number) }
    }
    async fn who(&self) -> (u64, u64) {
        let told = caller().map(|caller| {
            let left = caller.deadline().map(|deadline| deadline - tokio::time::Instant::now());
            (caller.node.node.0, left.map_or(0, |left| left.as_micros() as u64))
        });
        tokio::task::yield_now().await;
        assert_eq!(
            caller().map(|caller| caller.node.node.0),
            told.map(|told| told.0),
            "also in a task of its own"
        );
        told.unwrap_or_default()
    }
    async fn nested(&self) -> Result<(u64, u64), String> {
        tokio::task::yield_now().await;
        let next = self.next.as_ref().ok_or("nobody to ask")?;
        next.who().await.map_err(|error| error.to_string())
    }
}

struct Place {
    node: Node,
    serving: Option<Serving>,
    oracle: Arc<Delphi>,
    client: OracleClient,
}

async fn place(over: &Over, caller: &Node, number: u64, next: Option<OracleClient>) -> Place {
    let (node, address) = over.server(number).await;
    let (asked, waiting) = (AtomicU64::new(0), Notify::new());
    let oracle = Arc::new(Delphi { number, asked, waiting, next });
    let mut options = ServeOptions::default();
    options.executing_max = 1;
    let served = OracleServer::shared(Arc::clone(&oracle));
    let serving = Some(node.serve_with("oracle", served, options).unwrap());
    let client = OracleClient::connect(caller, "oracle", &address).await.unwrap();
    Place { node, serving, oracle, client }
}

async fn three(over: &Over, caller: &Node) -> [Place; 3] {
    [
        place(over, caller, 1, None).await,
        place(over, caller, 2, None).await,
        place(over, caller, 3, None).await,
    ]
}

#[tokio::test]
async fn r03_a_call_to_many_waits_for_as_many_answers_as_are_wanted() {
    for over in Over::all() {
        let node = over.client(9).await;
        let places = three(&over, &node).await;
        let clients = places.each_ref().map(|place| &place.client);
        let numbers = |answers: Vec<(usize, u64)>| {
            let mut numbers: Vec<u64> =
                answers.into_iter().map(|(place, number)| number * 10 + place as u64).collect();
            numbers.sort_unstable();
            numbers
        };

        let all = soon("all", together(Wanted::All, clients.map(|client| client.number()))).await.unwrap();
        assert_eq!(numbers(all), [10, 21, 32]);
        // One never answers: the others are enough, and it is cancelled.
        let asked = clients.map(|client| async move {
            if client.server().node().0 == 2 { client.wait().await } else { client.number().await }
        });
        let majority = soon("a majority", together(Wanted::Majority, asked)).await.unwrap();
        assert_eq!(numbers(majority), [10, 32]);
        while places[1].serving.as_ref().is_some_and(|serving| serving.stats().executing > 0) {
            tokio::task::yield_now().await;
        }
        let first =
            soon("the first", together(Wanted::First, clients.map(|client| client.fails()))).await.unwrap();
        assert_eq!(first, [(0, 1)]);
        // Too many say no: there is nothing to wait for.
        let error = soon("two", together(Wanted::AtLeast(2), clients.map(|client| client.fails())))
            .await
            .unwrap_err();
        assert_eq!((error.wanted, error.errors.len()), (2, 2), "{error}");
        let nobody = std::iter::empty::<std::future::Ready<Result<u64, CallError>>>();
        assert_eq!(together(Wanted::First, nobody).await.unwrap_err().wanted, 1);
    }
}

#[tokio::test]
async fn r04_calls_are_spread_over_servers_and_go_to_another_when_one_does_not_take_them() {
    assert_eq!(Balanced::<OracleClient>::new([], Balance::RoundRobin).err(), Some(Nobody));
    for over in Over::all() {
        let node = over.client(9).await;
        let mut places = three(&over, &node).await;
        let clients = || places.each_ref().map(|place| place.client.clone());

        let turns = Balanced::new(clients(), Balance::RoundRobin).unwrap();
        for _ in 0..6 {
            turns.call(async |client| client.number().await).await.unwrap();
        }
        assert_eq!(places.each_ref().map(|place| place.oracle.asked.load(Ordering::SeqCst)), [2, 2, 2]);

        // The one that is busy has the most in flight, and takes no second one.
        let busy = places[0].client.wait_start();
        soon("the busy one", places[0].oracle.waiting.notified()).await;
        let least = Balanced::new(clients(), Balance::LeastInFlight).unwrap();
        for _ in 0..6 {
            assert_ne!(least.call(async |client| client.number().await).await, Ok(1));
        }
        let refused = Err(CallError::NotExecuted(Refusal::Overloaded));
        assert_eq!(places[0].client.number().await, refused);
        for _ in 0..6 {
            assert_ne!(
                turns.call(async |client| client.number().await).await,
                Ok(1),
                "asked, refused, another asked"
            );
        }
        drop(busy);

        // A key stays where it is, unless its server goes.
        let of = |key: u64| turns.pick_for(&key).unwrap().server().node();
        let before: Vec<_> = (0..60).map(of).collect();
        assert!(places.iter().all(|place| before.contains(&place.node.identity().node)));
        drop(places[2].serving.take());
        places[2].node.shutdown(Duration::from_secs(5)).await;
        while places[2].client.server().is_reachable() {
            tokio::task::yield_now().await;
        }
        for (key, before) in before.into_iter().enumerate() {
            let after = of(key as u64);
            assert!(
                after != places[2].node.identity().node
                    && (after == before || before == places[2].node.identity().node)
            );
        }
        for _ in 0..6 {
            assert_ne!(soon("one that lives", turns.call(async |client| client.number().await)).await, Ok(3));
        }
    }
}

#[tokio::test]
async fn r11_a_handler_knows_its_caller_and_leaves_its_own_calls_no_more_time_than_it_has() {
    assert_eq!(caller(), None);
    for over in Over::all() {
        let node = over.client(9).await;
        let middle_node = over.client(8).await;
        let far = place(&over, &middle_node, 2, None).await;
        let near = place(&over, &node, 1, Some(far.client.clone())).await;
        let (who, left) = near.client.who().await.unwrap();
        assert_eq!(who, 9);
        assert!(left > 10_000_000 && left <= 30_000_000, "{left} us of the default");
        let hurried = near.client.with_deadline(Duration::from_secs(20));
        let (who, left) = hurried.nested().await.unwrap();
        assert_eq!(who, 8, "the one in the middle calls");
        assert!(left <= 20_000_000, "{left} us, although its own default is 30 s");
    }
}
