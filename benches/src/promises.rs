//! What promises cost: the same call idempotent, at most once, and exactly once with a journal; and that journal alone.
//!
//! Plain       is the idempotent call: no reply is kept of it, and no copy of its request is looked for.
//! Durable     every answer waits for its record; a client has one call under way. The journal alone is given records of
//!             the same size by as many writers, in one process and without a network.
//! Blind spot  a disk of a virtual machine; what a sync costs there decides most of the second table.

use quorate::journal::{Config, FileStorage, Journal, Record};
use quorate::node::Node;
use quorate::rpc::{Durable, DurableConfig, Semantics, ServeOptions, State};
use quorate::{Payload, service};

use crate::callers::{self, Caller, runtime};
use crate::contest::Asked;
use crate::rpc::{EchoClient, EchoServer, Mirror, WithBytes, calls};
use crate::worker::{Argument, Kind, Outcome, Side, Task, say_address};

pub const PLAIN: &str = "idempotent";
pub const AT_MOST_ONCE: &str = "at most once";
pub const EXACTLY_ONCE: &str = "exactly once";
pub const JOURNAL: &str = "journal alone";

pub const TABLES: [(Asked, &[&str]); 2] = [
    (
        ("1,024 calls in flight, TCP, 64 B, by promise", calls(1_024, Argument::Bytes), 64, true),
        &[PLAIN, AT_MOST_ONCE],
    ),
    (
        ("64 calls in flight, TCP, 64 B, durable", calls(64, Argument::Bytes), 64, true),
        &[EXACTLY_ONCE, JOURNAL],
    ),
];

#[service]
trait Safe {
    #[exactly_once]
    async fn put(&self, bytes: Payload) -> Payload;
}

/// How many puts took effect.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Puts(u64);

impl State for Puts {
    type Change = u64;

    fn apply(&mut self, more: &u64) {
        self.0 += more;
    }
}

struct Chest(Durable<Puts>);

impl Safe for Chest {
    async fn put(&self, bytes: Payload) -> Payload {
        let mut puts = self.0.begin().await;
        puts.change(1);
        puts.commit();
        bytes
    }
}

/// One side of one run.
pub fn work(task: &Task) -> Outcome<()> {
    let Kind::Calls(calls) = task.kind else { return Err("promises are made to calls".into()) };
    let place = tempfile::tempdir()?;
    runtime()?.block_on(async {
        let node = match task.side {
            Side::Server => Node::builder().id(1).directory(place.path()).listen("tcp://127.0.0.1:0"),
            Side::Client => Node::builder().id(2),
            Side::Both => return Err("promises are made between processes".into()),
        };
        let node = node.start().await?;
        if task.side == Side::Server {
            let address = node.addresses().into_iter().next().ok_or("it listens nowhere")?;
            let puts = Durable::on(&node, "puts", Puts::default(), DurableConfig::default()).await?;
            let safe = SafeServer::new(Chest(puts.clone()));
            let _safe = node.serve_durable("safe", safe, ServeOptions::default(), &puts)?;
            let _echo = node.serve("echo", EchoServer::new(Mirror))?;
            say_address(&address.to_string())?;
            return callers::serve_until_told().await;
        }
        let bytes = Payload::from(task.payload());
        match task.rival.as_str() {
            EXACTLY_ONCE => {
                let client = SafeClient::connect(&node, "safe", task.address()?).await?;
                callers::run(task, calls, Putting { client, bytes }).await
            }
            JOURNAL => {
                let (journal, _) = Journal::open(FileStorage::open(place.path())?, Config::new(1))?;
                callers::run(task, calls, Appending(journal)).await
            }
            promise => {
                let client = EchoClient::connect(&node, "echo", task.address()?).await?;
                let semantics = if promise == PLAIN { Semantics::Idempotent } else { Semantics::AtMostOnce };
                let client = client.with_semantics(semantics);
                callers::run(task, calls, WithBytes { client, bytes }).await
            }
        }
    })
}

#[derive(Clone)]
struct Putting {
    client: SafeClient,
    bytes: Payload,
}

impl Caller for Putting {
    async fn call(&mut self) -> Outcome<()> {
        self.client.put(self.bytes.clone()).await?;
        Ok(())
    }
}

#[derive(Clone)]
struct Appending(Journal);

impl Caller for Appending {
    async fn call(&mut self) -> Outcome<()> {
        self.0.append(vec![Record::new(1, vec![7; RECORD_BYTES])]).await?;
        Ok(())
    }
}

/// What the record of such a call takes: whose it is, its answer, its change.
const RECORD_BYTES: usize = 126;
