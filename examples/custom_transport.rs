//! A transport of your own: pipes inside this process, checked by the conformance suite, then under a node.
//!
//! ```text
//! cargo run --example custom_transport
//! ```
//! Prints one line per promise of the contract, then `hello through a pipe`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quorate::transports::conformance::{self, Subject};
use quorate::transports::{BoxFuture, Link, Listener, Transport, TransportError, stream};
use quorate::{Address, Node, service};
use tokio::io::duplex;
use tokio::sync::mpsc;

/// Serves `pipe://anything`; `pipe://` takes a fresh name.
#[derive(Clone, Default)]
struct Pipes {
    listeners: Arc<Mutex<BTreeMap<Address, mpsc::Sender<Link>>>>,
    names: Arc<AtomicU64>,
}

const SCHEME: &str = "pipe";
const BACKLOG: usize = 64;
const PIPE_BYTES: usize = 64 * 1024;

impl Pipes {
    fn fresh(&self, kind: &str, asked: &Address) -> Result<Address, TransportError> {
        let bad = |reason: String| TransportError::BadAddress { address: asked.clone(), reason };
        if asked.scheme() != SCHEME {
            return Err(bad(format!("the scheme is not {SCHEME}")));
        }
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        Address::new(SCHEME, &format!("{kind}-{number}")).map_err(|error| bad(error.to_string()))
    }
}

impl Transport for Pipes {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let fresh = self.fresh("place", address)?;
            let address = if address.rest().is_empty() { fresh } else { address.clone() };
            let mut listeners = self.listeners.lock().expect("no panic while it is held");
            if listeners.contains_key(&address) {
                return Err(TransportError::InUse { address });
            }
            let (sender, incoming) = mpsc::channel(BACKLOG);
            listeners.insert(address.clone(), sender);
            Ok(Box::new(PipeListener { pipes: self.clone(), address, incoming }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let here = self.fresh("dialler", address)?;
            let refused = || TransportError::Refused { address: address.clone() };
            let listeners = self.listeners.lock().expect("no panic while it is held");
            let backlog = listeners.get(address).ok_or_else(refused)?;
            // One pipe per direction: dropping a half must end its own direction only.
            let ((our_write, their_read), (their_write, our_read)) = (duplex(PIPE_BYTES), duplex(PIPE_BYTES));
            // A stream of bytes becomes a link of frames by one call.
            let theirs = stream::link(their_read, their_write, address.clone(), here.clone());
            backlog.try_send(theirs).map_err(|_| refused())?;
            Ok(stream::link(our_read, our_write, here, address.clone()))
        })
    }
}

struct PipeListener {
    pipes: Pipes,
    address: Address,
    incoming: mpsc::Receiver<Link>,
}

impl Listener for PipeListener {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        let address = &self.address;
        self.incoming
            .poll_recv(cx)
            .map(|link| link.ok_or_else(|| TransportError::Refused { address: address.clone() }))
    }
}

impl Drop for PipeListener {
    fn drop(&mut self) {
        self.pipes.listeners.lock().expect("no panic while it is held").remove(&self.address);
    }
}

#[service]
trait Greeter {
    async fn greet(&self) -> String;
}

struct Polite;

impl Greeter for Polite {
    async fn greet(&self) -> String {
        "hello through a pipe".to_owned()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", conformance::run(|| Subject::new(Pipes::default(), "pipe://")).await.into_result()?);
    let pipes = Pipes::default();
    let server = Node::builder().transport(pipes.clone()).listen("pipe://server").start().await?;
    let _serving = server.serve("greeter", GreeterServer::new(Polite))?;
    let client = Node::builder().transport(pipes).start().await?;
    let greeter = GreeterClient::connect(&client, "greeter", &server.addresses()[0]).await?;
    println!("{}", greeter.greet().await?);
    Ok(())
}
