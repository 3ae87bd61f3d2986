//! Three ways for a server to know a client's cart, and what becomes of it when the server starts anew.
//!
//! ```text
//! cargo run --example carts
//! ```
//! A stateless server is given the cart with every call; one with sessions keeps it while it is used; one with cookies gives
//! it to the client, sealed. It prints
//! ```text
//! before the restart: 3 with the call, 3 in the session, 3 in the cookie
//! after the restart: 6 with the call, 6 in the cookie; the server restarted, and its sessions are lost
//! ```

use std::error::Error;
use std::time::Duration;

use quorate::node::{Address, Node};
use quorate::rpc::cookies::{ClientState, Cookie, CookieError, CookieKey, Cookies};
use quorate::rpc::{RpcError, Serving, SessionId, SessionLost, Sessions, SessionsOptions};
use quorate::service;
use serde::{Deserialize, Serialize};

#[service]
trait Shop {
    #[idempotent]
    async fn total(&self, cart: Vec<u64>) -> u64;

    async fn open(&self) -> Result<SessionId, SessionLost>;
    async fn put(&self, cart: SessionId, price: u64) -> Result<u64, SessionLost>;

    #[idempotent]
    async fn seal(&self, cart: Option<Cookie>, price: u64) -> Result<(Cookie, u64), CookieError>;
}

#[derive(Default, Serialize, Deserialize)]
struct Cart(Vec<u64>);

impl Cart {
    fn put(&mut self, price: u64) -> u64 {
        self.0.push(price);
        self.0.iter().sum()
    }
}

impl ClientState for Cart {
    const VERSION: u16 = 1;
}

struct Till {
    carts: Sessions<Cart>,
    cookies: Cookies,
}

impl Shop for Till {
    async fn total(&self, cart: Vec<u64>) -> u64 {
        cart.iter().sum()
    }
    async fn open(&self) -> Result<SessionId, SessionLost> {
        self.carts.open(Cart::default()).map_err(|_| SessionLost::Evicted)
    }
    async fn put(&self, cart: SessionId, price: u64) -> Result<u64, SessionLost> {
        self.carts.with(cart, |cart| cart.put(price))
    }
    async fn seal(&self, cart: Option<Cookie>, price: u64) -> Result<(Cookie, u64), CookieError> {
        let mut cart = cart.map_or(Ok(Cart::default()), |cart| self.cookies.open(&cart))?;
        let total = cart.put(price);
        let sealed = self.cookies.seal(&cart).map_err(|_| CookieError::Malformed)?;
        Ok((sealed, total))
    }
}

/// One life of the server. The key is what its lives share; a real one comes from a file.
async fn server(at: &str) -> Result<(Node, Serving), Box<dyn Error>> {
    let node = Node::builder().id(1).listen(at).start().await?;
    let carts = Sessions::new(SessionsOptions::default(), |cart: &Cart| cart.0.len() * size_of::<u64>());
    let cookies = Cookies::new("shop", CookieKey::new(1, b"thirty-two bytes nobody may know")?);
    let serving = node.serve("shop", ShopServer::new(Till { carts, cookies }))?;
    Ok((node, serving))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (node, serving) = server("tcp://127.0.0.1:0").await?;
    let address: Address = node.addresses()[0].clone();
    let client = Node::builder().start().await?;
    let shop = ShopClient::connect(&client, "shop", &address).await?;

    let session = shop.open().await?;
    shop.put(session, 1).await?;
    let in_session = shop.put(session, 2).await?;
    let (cookie, _) = shop.seal(None, 1).await?;
    let (cookie, in_cookie) = shop.seal(Some(cookie), 2).await?;
    let with_call = shop.total(vec![1, 2]).await?;
    println!(
        "before the restart: {with_call} with the call, {in_session} in the session, {in_cookie} in the cookie"
    );

    drop(serving);
    node.shutdown(Duration::from_secs(5)).await;
    let (node, _serving) = server(&address.to_string()).await?;

    let with_call = shop.total(vec![1, 2, 3]).await?;
    let (_, in_cookie) = shop.seal(Some(cookie), 3).await?;
    let Err(RpcError::Application(lost)) = shop.put(session, 3).await else {
        return Err("the session should be lost".into());
    };
    println!("after the restart: {with_call} with the call, {in_cookie} in the cookie; {lost}");

    client.shutdown(Duration::from_secs(5)).await;
    node.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
