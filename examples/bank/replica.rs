//! One replica of one branch: a node, a membership in the branch's group, transactions, a desk.

use std::error::Error;
use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::sync::Arc;
use std::time::Duration;

use quorate::commit::{self, Transactions};
use quorate::journal::{self, FileStorage, Journal};
use quorate::node::{Address, Node, NodeId};
use tokio::sync::mpsc;

use super::arguments::Replica;
use super::books::Books;
use super::desk::{DESK, DeskServer};
use super::processes::Place;
use super::teller::{Legs, Teller};

/// How long a branch may take to vote before its transaction is aborted: a killed replica does not vote.
const VOTE_MAX: Duration = Duration::from_secs(2);

/// Runs the replica until its standard input ends.
///
/// # Errors
/// When it cannot start, or when the main process speaks in riddles.
pub async fn run(replica: &Replica) -> Result<(), Box<dyn Error>> {
    let place = Place { branch: replica.branch, index: replica.index };
    let node = Node::builder()
        .id(NodeId(place.node()))
        .listen("tcp://127.0.0.1:0")
        .directory(&replica.directory)
        .start()
        .await?;
    let address = node.addresses().into_iter().next().ok_or("it listens nowhere")?;
    let mut orders = orders();
    say(&format!("ready {address}"))?;

    let books = Books::new(node.clone(), place);
    let is_founder = loop {
        match orders.recv().await {
            None => return Ok(()),
            Some(Order::Found) => break true,
            Some(Order::Join) => break false,
            Some(Order::Peer(other, address)) => books.meet(other, address.parse()?),
        }
    };
    let _membership = books.enter(is_founder).await;

    let storage = FileStorage::open(replica.directory.join("transactions"))?;
    let (journal, _) = Journal::open(storage, journal::Config::new(place.node()))?;
    let legs = Legs::new(Arc::clone(&books));
    let config = commit::Config { prepare_timeout: VOTE_MAX, ..commit::Config::default() };
    let transactions = Transactions::open(&node, "transfers", journal, legs.clone(), config).await?;
    legs.release().await;
    let teller = Teller::new(node.clone(), Arc::clone(&books), legs, transactions);
    let _serving = node.serve(DESK, DeskServer::new(teller))?;
    say("serving")?;

    while let Some(order) = orders.recv().await {
        if let Order::Peer(other, address) = order {
            books.meet(other, address.parse::<Address>()?);
        }
    }
    Ok(())
}

/// What the main process tells a replica.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    /// Another replica listens there.
    Peer(Place, String),
    /// Be the first member of the branch's group.
    Found,
    /// Join the branch's group.
    Join,
}

/// How many orders may wait; the main process sends a few per start of a process.
const ORDERS_MAX: usize = 64;

/// The orders, read on a thread of their own. The channel ends with the input, that is with the main process.
fn orders() -> mpsc::Receiver<Order> {
    let (sender, receiver) = mpsc::channel(ORDERS_MAX);
    // Not tokio's standard input: its blocked thread would keep the process alive at the end.
    std::thread::spawn(move || {
        for line in stdin().lock().lines() {
            let order = line.ok().and_then(|line| parse(&line));
            let Some(order) = order else { return };
            if sender.blocking_send(order).is_err() {
                return;
            }
        }
    });
    receiver
}

fn parse(line: &str) -> Option<Order> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["found"] => Some(Order::Found),
        ["join"] => Some(Order::Join),
        ["peer", branch, index, address] => {
            let place = Place { branch: branch.parse().ok()?, index: index.parse().ok()? };
            Some(Order::Peer(place, address.to_owned()))
        }
        _ => None,
    }
}

/// Tells the main process.
fn say(line: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
