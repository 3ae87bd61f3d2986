//! What a server remembers of its clients, and what they see of it when it starts anew (catalogue P3).

use std::time::{Duration, SystemTime};

use quorate::node::Node;
use quorate::rpc::cookies::{
    COOKIE_BYTES_MAX, ClientState, Cookie, CookieError, CookieKey, Cookies, SealError,
};
use quorate::rpc::{CallError, Doubt, NoRoom, RpcError, SessionId, SessionLost, Sessions, SessionsOptions};
use quorate::service;
use serde::{Deserialize, Serialize};
use tests::{Net, Orders, Worker, everywhere, nets_between_processes, within};

/// Three shops in one: in the first the customer carries the cart, in the second the shop has it, in the third the customer
/// carries a sealed one.
#[service]
trait Shop {
    #[idempotent]
    async fn total(&self, cart: Vec<u64>) -> u64;

    async fn open(&self) -> Result<SessionId, SessionLost>;
    async fn put(&self, cart: SessionId, price: u64) -> Result<u64, SessionLost>;

    #[idempotent]
    async fn seal(&self, cart: Option<Cookie>, price: u64) -> Result<Cookie, CookieError>;
    #[idempotent]
    async fn total_of(&self, cart: Cookie) -> Result<u64, CookieError>;
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Cart(Vec<u64>);

impl ClientState for Cart {
    const VERSION: u16 = 1;
}

struct Till {
    carts: Sessions<Cart>,
    cookies: Cookies,
    /// Whether a price of [`CRASH`] ends the process.
    crashes: bool,
}

impl Till {
    fn new(options: SessionsOptions, crashes: bool) -> Self {
        let carts = Sessions::new(options, |cart: &Cart| cart.0.len() * size_of::<u64>());
        Self { carts, cookies: Cookies::new("shop", key(1)), crashes }
    }

    fn see(&self, prices: &[u64]) {
        if self.crashes && prices.contains(&CRASH) {
            std::process::abort();
        }
    }
}

impl Shop for Till {
    async fn total(&self, cart: Vec<u64>) -> u64 {
        self.see(&cart);
        cart.iter().sum()
    }
    async fn open(&self) -> Result<SessionId, SessionLost> {
        self.carts.open(Cart::default()).map_err(|_| SessionLost::Evicted)
    }
    async fn put(&self, cart: SessionId, price: u64) -> Result<u64, SessionLost> {
        let sum = self.carts.with(cart, |cart| {
            cart.0.push(price);
            cart.0.iter().sum()
        });
        self.see(&[price]);
        sum
    }
    async fn seal(&self, cart: Option<Cookie>, price: u64) -> Result<Cookie, CookieError> {
        let Cart(mut prices) = cart.map_or(Ok(Cart::default()), |cart| self.cookies.open(&cart))?;
        prices.push(price);
        self.see(&[price]);
        Ok(self.cookies.seal(&Cart(prices)).expect("a small cart"))
    }
    async fn total_of(&self, cart: Cookie) -> Result<u64, CookieError> {
        self.cookies.open::<Cart>(&cart).map(|cart| cart.0.iter().sum())
    }
}

fn key(number: u32) -> CookieKey {
    CookieKey::new(number, &[number.to_le_bytes()[0]; 32]).unwrap()
}

/// The program of the shop. Does nothing unless the test below starts it.
#[tokio::test]
async fn shop_that_is_killed() {
    let Some(orders) = Orders::of_this_process() else { return };
    let builder = match orders.words.as_str() {
        "" => orders.net.builder(1),
        address => orders.net.dialler(1).listen(address),
    };
    let node = builder.start().await.unwrap();
    // The first one is at a place of its own choice, and crashes.
    let till = Till::new(SessionsOptions::default(), orders.words.is_empty());
    let _serving = node.serve("shop", ShopServer::new(till)).unwrap();
    orders.say(&node.addresses()[0].to_string());
    while orders.next().await.is_some() {}
}

/// A customer of a shop that is another process, and that process.
async fn shopping(net: &Net) -> (ShopClient, Node, Worker, String) {
    let mut shop = Worker::start(SHOP, net, "");
    let address = shop.hear().await;
    let node = net.dialler(2).start().await.unwrap();
    let client = within(ShopClient::connect(&node, "shop", &address)).await.unwrap();
    (client, node, shop, address)
}

/// The next life of the shop, at the same place.
async fn reopened(net: &Net, address: &str) -> Worker {
    let mut shop = Worker::start(SHOP, net, address);
    assert_eq!(shop.hear().await, address);
    shop
}

#[tokio::test(flavor = "multi_thread")]
async fn p03_a_restart_of_a_stateless_server_is_not_noticed() {
    everywhere(nets_between_processes(), |net| async move {
        let (client, _node, shop, address) = shopping(&net).await;
        assert_eq!(within(client.total(vec![1, 2])).await, Ok(3));
        // It crashes over this one; its next life answers it.
        let calling = tokio::spawn(async move { client.total(vec![1, CRASH]).await });
        shop.ended().await;
        let _shop = reopened(&net, &address).await;
        assert_eq!(within(calling).await.unwrap(), Ok(1 + CRASH));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p03_a_restart_of_a_stateful_server_loses_the_session_and_says_so() {
    everywhere(nets_between_processes(), |net| async move {
        let (client, _node, shop, address) = shopping(&net).await;
        let cart = within(client.open()).await.unwrap();
        assert_eq!(within(client.put(cart, 1)).await, Ok(1));
        assert_eq!(within(client.put(cart, 2)).await, Ok(3));
        let (calling, later) = (client.clone(), client.clone());
        let calling = tokio::spawn(async move { calling.put(cart, CRASH).await });
        shop.ended().await;
        let _shop = reopened(&net, &address).await;
        // What was under way is in doubt, and what comes later knows why.
        let doubt = within(calling).await.unwrap().unwrap_err();
        assert_eq!(doubt, RpcError::Call(CallError::MaybeExecuted(Doubt::SessionLost)));
        let lost = within(later.put(cart, 3)).await.unwrap_err();
        assert_eq!(lost, RpcError::Application(SessionLost::ServerRestarted));
        let cart = within(client.open()).await.unwrap();
        assert_eq!(within(client.put(cart, 4)).await, Ok(4), "it begins again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p03_a_cookie_outlives_the_server_that_made_it() {
    everywhere(nets_between_processes(), |net| async move {
        let (client, _node, shop, address) = shopping(&net).await;
        let cart = within(client.seal(None, 1)).await.unwrap();
        let calling = {
            let (client, cart) = (client.clone(), cart.clone());
            tokio::spawn(async move { client.seal(Some(cart), CRASH).await })
        };
        shop.ended().await;
        let _shop = reopened(&net, &address).await;
        let fuller = within(calling).await.unwrap().unwrap();
        assert_eq!(within(client.total_of(fuller)).await, Ok(1 + CRASH));
        // The price of it: an older cookie is as good as a newer one.
        assert_eq!(within(client.total_of(cart.clone())).await, Ok(1));
        let mut bytes = cart.as_bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let forged = within(client.total_of(bytes.into())).await.unwrap_err();
        assert_eq!(forged, RpcError::Application(CookieError::Forged));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn p03_a_client_is_told_whether_its_session_ran_out_or_made_room() {
    let mut options = SessionsOptions::default();
    (options.lease, options.sessions_max, options.when_full) = (Duration::from_secs(10), 2, NoRoom::Evict);
    let node = Node::builder().start().await.unwrap();
    let _serving = node.serve("shop", ShopServer::new(Till::new(options, false))).unwrap();
    let client = ShopClient::connect_here(&node, "shop").await.unwrap();
    let [one, two, three] = [(); 3].map(|()| client.open());
    let (one, two, three) = (one.await.unwrap(), two.await.unwrap(), three.await.unwrap());
    let lost = client.put(one, 1).await.unwrap_err();
    assert_eq!(lost, RpcError::Application(SessionLost::Evicted));
    for _ in 0..4 {
        tokio::time::advance(Duration::from_secs(6)).await;
        client.put(two, 1).await.unwrap();
    }
    let lost = client.put(three, 1).await.unwrap_err();
    assert_eq!(lost, RpcError::Application(SessionLost::Expired { lease: Duration::from_secs(10) }));
}

fn jars() -> [Cookies; 2] {
    [Cookies::new("shop", key(1)), Cookies::new("shop", key(1)).private()]
}

#[test]
fn p03_no_byte_of_a_cookie_can_be_changed_and_no_other_purpose_takes_it() {
    for cookies in jars() {
        let cart = Cart(vec![1, 2, 3]);
        let cookie = cookies.seal(&cart).unwrap();
        assert_eq!(cookies.open::<Cart>(&cookie), Ok(cart.clone()));
        let whole = cookie.as_bytes();
        for at in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1;
            let error = cookies.open::<Cart>(&bytes.into()).unwrap_err();
            let is_refused = matches!(
                error,
                CookieError::Malformed | CookieError::Forged | CookieError::UnknownKey { .. }
            );
            assert!(is_refused, "byte {at}: {error}");
            assert!(cookies.open::<Cart>(&whole[..at].to_vec().into()).is_err(), "cut at {at}");
        }
        let longer = [whole, b"!"].concat();
        assert_eq!(cookies.open::<Cart>(&longer.into()), Err(CookieError::Forged));
        for other in [Cookies::new("shopp", key(1)), Cookies::new("shop", key(2))] {
            assert!(other.clone().open::<Cart>(&cookie).is_err());
            assert!(other.private().open::<Cart>(&cookie).is_err());
        }
        let large = cookies.seal(&Cart(vec![u64::MAX; COOKIE_BYTES_MAX / 8])).unwrap_err();
        assert!(matches!(large, SealError::TooLarge { bytes } if bytes > COOKIE_BYTES_MAX), "{large}");
    }
    let [readable, private] = jars();
    let text = Note("in plain words".to_owned());
    let holds = |cookie: &Cookie| cookie.as_bytes().windows(5).any(|part| part == b"plain");
    assert!(holds(&readable.seal(&text).unwrap()) && !holds(&private.seal(&text).unwrap()));
    assert_ne!(private.seal(&text).unwrap(), private.seal(&text).unwrap(), "no two look alike");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note(String);

impl ClientState for Note {
    const VERSION: u16 = 2;
}

#[test]
fn p03_cookies_run_out_change_version_and_outlive_a_change_of_keys() {
    for cookies in jars() {
        let cookies = cookies.lifetime(Duration::from_secs(60));
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let cart = Cart(vec![7]);
        let cookie = cookies.seal_at(&cart, made).unwrap();
        let after = |seconds| cookies.open_at::<Cart>(&cookie, made + Duration::from_secs(seconds));
        assert_eq!(after(59), Ok(cart.clone()));
        assert_eq!(after(60), Err(CookieError::Expired { since: Duration::ZERO }));
        assert_eq!(after(90), Err(CookieError::Expired { since: Duration::from_secs(30) }));
        let version = CookieError::Version { found: 1, expected: 2 };
        assert_eq!(cookies.open_at::<Note>(&cookie, made), Err(version));
    }
    // New servers come one after the other: first all of them understand the new key, then they use it, then the old one
    // goes.
    let old = Cookies::new("shop", key(1));
    let ready = Cookies::new("shop", key(1)).understanding(key(2));
    let changed = Cookies::new("shop", key(2)).understanding(key(1));
    let new = Cookies::new("shop", key(2));
    let cart = Cart(vec![1]);
    for (maker, readers) in [(&old, [&old, &ready, &changed]), (&changed, [&ready, &changed, &new])] {
        let cookie = maker.seal(&cart).unwrap();
        for reader in readers {
            assert_eq!(reader.open::<Cart>(&cookie), Ok(cart.clone()));
        }
    }
    assert_eq!(new.open::<Cart>(&old.seal(&cart).unwrap()), Err(CookieError::UnknownKey { number: 1 }));
}

const SHOP: &str = "states::shop_that_is_killed";
/// The price that a shop cannot bear.
const CRASH: u64 = 1_000;
