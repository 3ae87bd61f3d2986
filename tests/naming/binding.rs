//! Clients that find their servers by name: the servers are processes, come, go and are killed (catalogue R4, P6).

use std::sync::Arc;
use std::time::Duration;

use quorate::naming::{Bound, BoundError, BoundOptions, Directory, Entry, Names};
use quorate::node::{Address, Node};
use quorate::rpc::{Balance, CallError, Candidate, ClientOptions};
use quorate::service;
use tests::{Net, Orders, Worker, nets_between_processes, until, within};

use crate::{names, options};

#[service]
pub(crate) trait Teller {
    /// The number of the server's node.
    async fn number(&self) -> u64;
    /// As above, but this server never answers; the others do.
    async fn number_unless(&self, server: u64) -> u64;
}

struct Counter(u64, Arc<Orders>);

impl Teller for Counter {
    async fn number(&self) -> u64 {
        self.0
    }
    async fn number_unless(&self, server: u64) -> u64 {
        if server == self.0 {
            self.1.say("asked");
            std::future::pending().await
        }
        self.0
    }
}

/// The program of a server. Does nothing unless the test below starts it.
#[test]
fn teller() {
    let Some(orders) = Orders::of_this_process().map(Arc::new) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut words = orders.words.split(' ');
        let id: u64 = words.next().unwrap().parse().unwrap();
        let rack = words.next().unwrap();
        let directory: Vec<Address> = words.map(|text| text.parse().unwrap()).collect();
        let node = orders.net.node(id).await;
        let _serving = node.serve("teller", TellerServer::new(Counter(id, Arc::clone(&orders)))).unwrap();
        let names = Names::connect_with(&node, &directory, options(1)).await.unwrap();
        let entry = Entry::at(&node.addresses()).with("rack", rack);
        let registration = names.register("teller", entry).await.unwrap();
        orders.say("ready");
        assert_eq!(orders.next().await.as_deref(), Some("leave"));
        registration.withdraw().await.unwrap();
        orders.say("gone");
        // Still there for who knows it by its address.
        std::future::pending::<()>().await;
    });
}

async fn start(net: &Net, id: u64, directory: &[Address]) -> Worker {
    let directory: Vec<_> = directory.iter().map(Address::to_string).collect();
    let mut worker = Worker::start("binding::teller", net, &format!("{id} rack{id} {}", directory.join(" ")));
    assert_eq!(worker.hear().await, "ready");
    worker
}

/// A directory in this process, and a handle to it.
async fn found(net: &Net) -> (Node, Directory, Names) {
    let host = net.node(1).await;
    let directory = within(Directory::found(&host)).await.unwrap();
    let names = names(&net.node(2).await, &host.addresses(), 10).await;
    (host, directory, names)
}

fn numbers(tellers: &Bound<TellerClient>) -> Vec<u64> {
    let mut numbers: Vec<u64> = tellers.clients().iter().map(|client| client.node().0).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_servers_found_by_name_are_asked_in_turn_and_killed_ones_are_passed_over_and_replaced() {
    for net in nets_between_processes() {
        let (host, _directory, names) = found(&net).await;
        let nobody = TellerClient::connect_by_name(&names, "teller").await;
        assert!(matches!(nobody, Err(BoundError::Nobody { .. })), "{nobody:?}");
        let mut workers = Vec::new();
        for id in 11..=13 {
            workers.push(start(&net, id, &host.addresses()).await);
        }
        let tellers = within(TellerClient::connect_by_name(&names, "teller")).await.unwrap();
        until(|| tellers.clients().len() == 3).await;
        let mut asked = Vec::new();
        for _ in 0..6 {
            asked.push(within(tellers.call(async |teller| teller.number().await)).await.unwrap());
        }
        asked.sort_unstable();
        assert_eq!(asked, [11, 11, 12, 12, 13, 13]);
        let of = |key: u64| tellers.pick_for(&key).unwrap().node().0;
        let before: Vec<u64> = (0..60).map(of).collect();
        assert!((11..=13).all(|id| before.contains(&id)));

        // One is killed while it executes: what may be made twice goes to another one at once, the other call is in
        // doubt as soon as nobody believes any more that the server comes back.
        let mut options = BoundOptions::default();
        options.near = Some(("rack".to_owned(), "rack11".to_owned()));
        let near = within(Bound::<TellerClient>::connect(&names, "teller", options)).await.unwrap();
        until(|| near.clients().len() == 3).await;
        let calls = async {
            let once = near.call(async |teller| teller.number_unless(11).await);
            let again = near.call_idempotent(async |teller| teller.number_unless(11).await);
            tokio::join!(once, again)
        };
        let mut doomed = workers.remove(0);
        let killing = async {
            // Both have arrived there before it dies.
            assert_eq!((doomed.hear().await, doomed.hear().await), ("asked".to_owned(), "asked".to_owned()));
            doomed.kill().await;
        };
        let ((once, again), ()) = within(async { tokio::join!(calls, killing) }).await;
        assert!(matches!(again, Ok(12 | 13)), "{again:?}");
        assert!(matches!(once, Err(CallError::MaybeExecuted(_))), "{once:?}");
        for _ in 0..6 {
            let number = within(tellers.call(async |teller| teller.number().await)).await.unwrap();
            assert_ne!(number, 11);
        }
        until(|| numbers(&tellers) == [12, 13]).await;
        for (key, before) in before.iter().enumerate() {
            let after = of(key as u64);
            assert!(after == *before || *before == 11, "only the keys of the dead one move");
        }

        // One leaves by itself, and one more comes; the dead one comes back in another life at another place.
        workers[0].tell("leave").await;
        assert_eq!(workers[0].hear().await, "gone");
        until(|| numbers(&tellers) == [13]).await;
        for id in [14, 11] {
            workers.push(start(&net, id, &host.addresses()).await);
        }
        until(|| numbers(&tellers) == [11, 13, 14]).await;
        let mut asked = Vec::new();
        for _ in 0..3 {
            asked.push(within(tellers.call(async |teller| teller.number().await)).await.unwrap());
        }
        asked.sort_unstable();
        assert_eq!(asked, [11, 13, 14]);
        // Nobody is left.
        for worker in workers.drain(..) {
            worker.kill().await;
        }
        until(|| tellers.clients().is_empty()).await;
        let none = tellers.call(async |teller| teller.number().await).await.unwrap_err();
        assert!(none.is_not_executed() && none.is_retryable(), "{none}");
        assert!(tellers.pick().is_none() && tellers.pick_for(&1).is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_the_nearest_server_is_preferred_and_attributes_choose_among_those_of_a_name() {
    let net = tests::tcp();
    let (host, _directory, names) = found(&net).await;
    let mut workers = Vec::new();
    for id in 11..=13 {
        workers.push(start(&net, id, &host.addresses()).await);
    }
    let mut options = BoundOptions::default();
    options.near = Some(("rack".to_owned(), "rack12".to_owned()));
    options.balance = Balance::LeastInFlight;
    let near = within(Bound::<TellerClient>::connect(&names, "teller", options)).await.unwrap();
    until(|| near.clients().len() == 3).await;
    for _ in 0..5 {
        assert_eq!(within(near.call(async |teller| teller.number().await)).await, Ok(12));
    }
    // From another task, too.
    let near = Arc::new(near);
    let elsewhere = Arc::clone(&near);
    let asked = tokio::spawn(async move {
        let once = elsewhere.call(async |teller: &TellerClient| teller.number().await).await;
        let again = elsewhere.call_idempotent(async |teller: &TellerClient| teller.number().await).await;
        (once, again)
    });
    assert_eq!(within(asked).await.unwrap(), (Ok(12), Ok(12)));
    let mut options = BoundOptions::default();
    options.attributes.insert("rack".to_owned(), "rack13".to_owned());
    let chosen = within(Bound::<TellerClient>::connect(&names, "teller", options)).await.unwrap();
    assert_eq!(numbers(&chosen), [13]);
    // The near one dies: whoever is left is asked.
    workers.remove(1).kill().await;
    for _ in 0..5 {
        let number = within(near.call_idempotent(async |teller| teller.number().await)).await;
        assert!(matches!(number, Ok(11 | 13)), "{number:?}");
    }
}

#[tokio::test]
async fn r04_a_name_whose_servers_cannot_be_bound_to_says_why() {
    let net = tests::tcp();
    let (_host, _directory, names) = found(&net).await;
    // Somebody stands there, and does not serve.
    let other = net.node(20).await;
    let _registration = within(names.register("teller", Entry::at(&other.addresses()))).await.unwrap();
    let mut client = ClientOptions::default();
    client.bind_deadline = Duration::from_millis(300);
    let mut options = BoundOptions::default();
    options.client = client;
    let address = other.addresses()[0].to_string();
    within(async {
        loop {
            let bound = Bound::<TellerClient>::connect(&names, "teller", options.clone()).await;
            let error = bound.unwrap_err();
            assert!(matches!(error, BoundError::Unbound { .. }), "{error:?}");
            // Unless the machine was too busy for the first answer.
            if error.to_string().contains(&address) {
                break;
            }
        }
    })
    .await;
}
