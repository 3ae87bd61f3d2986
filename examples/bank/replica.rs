//! One replica of one branch: a node, a membership in the branch's group, transactions, a desk.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use quorate::commit::{self, Transactions};
use quorate::journal::{self, FileStorage, Journal};
use quorate::node::{Address, Node, NodeId};

use super::arguments::Replica;
use super::books::Books;
use super::desk::{DESK, DeskServer};
use super::processes::{Place, lines_told, say};
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
    let mut told = lines_told();
    say(&format!("ready {address}"))?;

    let books = Books::new(node.clone(), place);
    let is_founder = loop {
        let Some(line) = told.recv().await else { return Ok(()) };
        match parse(&line)? {
            Order::Found => break true,
            Order::Join => break false,
            Order::Peer(other, address) => books.meet(other, address.parse()?),
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

    while let Some(line) = told.recv().await {
        if let Order::Peer(other, address) = parse(&line)? {
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

fn parse(line: &str) -> Result<Order, String> {
    let words: Vec<&str> = line.split(' ').collect();
    let peer =
        |branch: &str, index: &str| Some(Place { branch: branch.parse().ok()?, index: index.parse().ok()? });
    let order = match words[..] {
        ["found"] => Some(Order::Found),
        ["join"] => Some(Order::Join),
        ["peer", branch, index, address] => {
            peer(branch, index).map(|place| Order::Peer(place, address.to_owned()))
        }
        _ => None,
    };
    order.ok_or_else(|| format!("told {line:?}"))
}
