//! The README's program: a service that one node offers and another one calls, over TCP.
//!
//! ```text
//! cargo run --example hello
//! ```
//! Prints `hello, world`.

use quorate::{Node, service};

#[service]
trait Greeter {
    async fn greet(&self, name: String) -> String;
}

struct Polite;

impl Greeter for Polite {
    async fn greet(&self, name: String) -> String {
        format!("hello, {name}")
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
    let _serving = server.serve("greeter", GreeterServer::new(Polite))?;
    let client = Node::builder().start().await?;
    let greeter = GreeterClient::connect(&client, "greeter", &server.addresses()[0]).await?;
    println!("{}", greeter.greet("world".to_owned()).await?);
    Ok(())
}
