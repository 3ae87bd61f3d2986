//! Three servers register under one name, a client finds them by it, one of them leaves, and the client does not notice.
//!
//! ```text
//! cargo run --example directory
//! ```
//! Prints who is registered, who answered six calls in turn, who is left, and who answered six calls then.

use std::time::Duration;

use quorate::naming::{Directory, Entry, Names, Query};
use quorate::{Node, service};

#[service]
trait Printer {
    /// Prints, and tells where.
    #[idempotent]
    async fn print(&self, text: String) -> String;
}

struct Room(&'static str);

impl Printer for Room {
    async fn print(&self, _: String) -> String {
        self.0.to_owned()
    }
}

type Problem = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Problem> {
    // The directory: three replicas survive the death of one.
    let mut hosts = Vec::new();
    for _ in 0..3 {
        let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
        let contacts: Vec<_> = hosts.iter().flat_map(|(node, _): &(Node, _)| node.addresses()).collect();
        let directory = match contacts.is_empty() {
            true => Directory::found(&node).await?,
            false => Directory::join(&node, &contacts).await?,
        };
        hosts.push((node, directory));
    }
    let directory: Vec<_> = hosts.iter().flat_map(|(node, _)| node.addresses()).collect();

    let mut printers = Vec::new();
    for room in ["attic", "cellar", "hall"] {
        let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
        let serving = node.serve("printer", PrinterServer::new(Room(room)))?;
        let names = Names::connect(&node, &directory).await?;
        let entry = Entry::at(&node.addresses()).with("room", room);
        let registration = names.register("printer", entry).await?;
        printers.push((node, serving, registration));
    }

    let node = Node::builder().start().await?;
    let names = Names::connect(&node, &directory).await?;
    let rooms = async || -> Result<String, Problem> {
        let found = names.lookup_latest(&Query::named("printer")).await?;
        let mut rooms: Vec<_> = found.iter().map(|found| found.attributes["room"].as_str()).collect();
        rooms.sort_unstable();
        Ok(rooms.join(", "))
    };
    println!("registered: {}", rooms().await?);
    let printer = PrinterClient::connect_by_name(&names, "printer").await?;
    // The first is bound; the others are about to be.
    while printer.clients().len() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let six = async || -> Result<String, Problem> {
        let mut answered = Vec::new();
        for page in 0..6 {
            let text = format!("page {page}");
            answered.push(printer.call_idempotent(async |printer| printer.print(text.clone()).await).await?);
        }
        answered.sort_unstable();
        Ok(answered.join(", "))
    };
    println!("printed in: {}", six().await?);

    let (gone, serving, registration) = printers.remove(0);
    registration.withdraw().await?;
    drop(serving);
    gone.shutdown(Duration::from_secs(5)).await;
    println!("registered: {}", rooms().await?);
    while printer.clients().len() > 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("printed in: {}", six().await?);
    Ok(())
}
