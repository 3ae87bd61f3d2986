//! A service whose process is started when somebody asks for it, and stopped when nobody does.
//!
//! ```text
//! cargo run --example on_demand
//! ```
//! The program is three things: the superserver of a host; with the argument `serve` the service, which only the
//! superserver starts; and a client that asks three times, and waits before the third. On a real host the superserver is
//! the program `quorate-superd` at its well-known address, and the settings below are its file. It prints
//! ```text
//! asked: a process was started
//! asked at once: by the same process
//! asked after a pause: by another process
//! ```

use std::error::Error;
use std::time::Duration;

use quorate::host::Tenant;
use quorate::naming::{Names, Query};
use quorate::{Node, service};
use quorate_superd::{Config, Service, Superserver};

#[service]
trait Clerk {
    /// Which process answers.
    async fn process(&self) -> u32;
}

struct Lazy;

impl Clerk for Lazy {
    async fn process(&self) -> u32 {
        std::process::id()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve().await,
        _ => host().await,
    }
}

/// The service: offers itself where the superserver says, and goes when it is told to.
async fn serve() -> Result<(), Box<dyn Error>> {
    let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
    let serving = node.serve("clerk", ClerkServer::new(Lazy))?;
    let tenant = Tenant::offer(&node, "clerk", serving).await?;
    tenant.retired().await;
    node.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

async fn host() -> Result<(), Box<dyn Error>> {
    let this = std::env::current_exe()?.display().to_string();
    let mut config = Config::default();
    let mut clerk = Service::new([&*this, "serve"]);
    clerk.idle_ms = Some(1_000);
    config.service.insert("clerk".to_owned(), clerk);
    let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
    let superserver = Superserver::start(&node, &config).await?;

    let client = Node::builder().start().await?;
    let names = Names::connect(&client, &node.addresses()).await?;
    let first = ask(&client, &names).await?;
    println!("asked: a process was started");
    assert_eq!(ask(&client, &names).await?, first);
    println!("asked at once: by the same process");
    let mut registered = names.watch(Query::named("clerk"));
    while !registered.next().await?.is_empty() {}
    assert_ne!(ask(&client, &names).await?, first);
    println!("asked after a pause: by another process");

    superserver.shutdown().await;
    client.shutdown(Duration::from_secs(5)).await;
    node.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// Finds the service, which starts it, and calls it.
async fn ask(node: &Node, names: &Names) -> Result<u32, Box<dyn Error>> {
    let found = names.find("clerk", Duration::from_secs(20)).await?;
    let address = &found.first().ok_or("nothing was found")?.addresses[0];
    Ok(ClerkClient::connect(node, "clerk", address).await?.process().await?)
}
