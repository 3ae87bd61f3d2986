//! Exactly-once calls: the service's state, its changes, and what each call was answered, in one journal.
//!
//! Purpose     a method declared `#[exactly_once]` takes effect once and is answered, however often its request is sent
//!             and its server is killed, as long as its caller lives and waits.
//! Guarantee   what a call changed in a [`Durable`] state and what it is answered are one record of the journal: a crash
//!             leaves both or neither. The answer leaves when the record is durable; whoever asks again gets the same
//!             answer. Calls that end at about the same time share one sync.
//! Method      the records are those of [`Completions`](quorate_protocols::rpc::Completions); a client has a durable
//!             *seat*, and keeps one answer for each of its slots there until it has acknowledged it. One append is
//!             under way at a time, and what ends meanwhile is the next one, so that none can follow one that failed.
//!             Now and then a snapshot of the state and the records replaces the journal's beginning.
//! Not covered what a handler does besides: messages, files, other services. Nor a caller that dies: what it had under way
//!             happened once or not at all, and its next life has to ask which.
//! Limits      [`DurableConfig`]; a record is bounded by what the journal takes as one append; while 64 MiB of records wait
//!             for a journal that is slow, further calls are refused as overloaded; transactions of one state take turns; the state is written out, while calls wait, after [`DurableConfig::compact_records`] records.
//!
//! ```
//! use quorate::node::Node;
//! use quorate::rpc::{Durable, DurableConfig, ServeOptions, State};
//! use quorate::service;
//! use quorate_journal::{Config, Journal, MemoryStorage};
//!
//! #[service]
//! pub trait Counter {
//!     /// Adds, once for each call.
//!     #[exactly_once]
//!     async fn add(&self, amount: u64) -> u64;
//! }
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize)]
//! struct Total(u64);
//!
//! impl State for Total {
//!     type Change = u64;
//!     fn apply(&mut self, amount: &u64) { self.0 += amount }
//! }
//!
//! struct Counting(Durable<Total>);
//!
//! impl Counter for Counting {
//!     async fn add(&self, amount: u64) -> u64 {
//!         let mut total = self.0.begin().await;
//!         let after = total.see(|total| total.0 + amount);
//!         total.change(amount);
//!         total.commit();
//!         after // durable together with the change, before it leaves
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let (journal, _) = Journal::open(MemoryStorage::new(), Config::new(1))?; // or `Durable::on(&node, ..)`: on disk
//! let total = Durable::open(journal, Total::default(), DurableConfig::default()).await?;
//! let counting = CounterServer::new(Counting(total.clone()));
//! let _serving = node.serve_durable("counter", counting, ServeOptions::default(), &total)?;
//!
//! let counter = CounterClient::connect(&node, "counter", &node.addresses()[0]).await?;
//! assert_eq!((counter.add(5).await?, counter.add(5).await?), (5, 10));
//! # Ok(()) }
//! ```

mod error;
mod journal;
mod keeper;
mod store;
mod transaction;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quorate_journal::Journal;
use quorate_protocols::rpc::{CompletionStats, CompletionsConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::{DurableOpenError, NotDurable};
pub(super) use keeper::{Ending, Keeper, Task};
pub use transaction::{Committed, Transaction};

use crate::node::Node;
use store::Store;

/// The state of a service that outlives crashes.
pub trait State: Serialize + DeserializeOwned + Send + 'static {
    /// One change, as the journal keeps it. What it says must be final: not "withdraw if there is enough", but
    /// "withdraw".
    type Change: Serialize + DeserializeOwned + Send + 'static;

    /// Applies one change. Deterministic, for the same changes make the state again after a restart; quick, for all
    /// other calls wait; and without failure: a panic here stops the state for good, as its journal does not tell any
    /// more what it is.
    fn apply(&mut self, change: &Self::Change);
}

/// A [`State`] with its journal and its records of exactly-once calls. Cheap to clone; clones share it.
///
/// Give one clone to the service and serve it with [`Node::serve_durable`](crate::node::Node::serve_durable).
pub struct Durable<S: State> {
    store: Arc<Store<S>>,
}

/// How a durable state remembers its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DurableConfig {
    /// Clients that can be remembered. Default 16,384, some 200 bytes each and the answers that they have not
    /// acknowledged. One more is refused, unless another one was silent for longer than its lease.
    pub clients_max: usize,
    /// Answers kept for one client, at most one for each of its calls under way. Default 1,024; a call too many is
    /// refused as overloaded.
    pub answers_max: usize,
    /// Bytes of answers kept for one client. Default 1 MiB; beyond it its calls are refused as overloaded until it has
    /// acknowledged some.
    pub answer_bytes_max: usize,
    /// How long a silent client is remembered when another one needs the room. Default 5 min. Who was away for longer
    /// may be told that nothing is known of what it had under way.
    pub lease: Duration,
    /// Records after which a snapshot replaces them. Default 65,536. Few make for many snapshots of a large state, many
    /// for a slow restart.
    pub compact_records: u64,
}

impl Default for DurableConfig {
    fn default() -> Self {
        let table = CompletionsConfig::default();
        Self {
            clients_max: table.seats_max,
            answers_max: table.slots_max,
            answer_bytes_max: table.reply_bytes_max,
            lease: table.lease,
            compact_records: 65_536,
        }
    }
}

/// What a durable state has done and keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DurableStats {
    /// The completion records.
    pub calls: CompletionStats,
    /// Records that are durable, since the opening.
    pub durable: u64,
    /// Appends that made them durable: each shared by all that ended at about the same time.
    pub appends: u64,
    /// Snapshots written.
    pub snapshots: u64,
}

impl<S: State> Durable<S> {
    /// Takes up what `journal` holds, or begins with `initial` when it holds nothing.
    ///
    /// `journal`: one of its own.
    ///
    /// # Errors
    /// [`DurableOpenError`]; the journal is as it was.
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn open(journal: Journal, initial: S, config: DurableConfig) -> Result<Self, DurableOpenError> {
        Ok(Self { store: Store::open(journal, initial, config).await? })
    }

    /// As [`open`](Self::open), with the journal in `name` in the node's directory.
    ///
    /// # Errors
    /// [`DurableOpenError::NoDirectory`]; else as [`open`](Self::open).
    /// # Cancel safety
    /// As [`open`](Self::open).
    #[cfg(unix)]
    pub async fn on(
        node: &Node,
        name: &str,
        initial: S,
        config: DurableConfig,
    ) -> Result<Self, DurableOpenError> {
        let directory = node.directory().ok_or(DurableOpenError::NoDirectory)?.join(name);
        let owner = node.identity().node.0;
        let opened = tokio::task::spawn_blocking(move || {
            let storage = quorate_journal::FileStorage::open(directory)?;
            Journal::open(storage, quorate_journal::Config::new(owner))
        });
        let (journal, _) = opened.await.map_err(|_| DurableOpenError::Runtime)??;
        Self::open(journal, initial, config).await
    }

    /// Begins a transaction, or, in an exactly-once call that has committed one, goes on with it. Waits while another
    /// call has one: keep the awaiting short between this and [`Transaction::commit`].
    ///
    /// # Cancel safety
    /// Dropping the future gives its turn up.
    pub async fn begin(&self) -> Transaction<S> {
        Transaction::begin(Arc::clone(&self.store)).await
    }

    /// Looks at the state, and returns when what was seen is durable: no crash can take it back. Quick work only: all
    /// calls wait.
    ///
    /// # Errors
    /// [`NotDurable`]: the journal failed.
    /// # Cancel safety
    /// Nothing is changed in any case.
    pub async fn read<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R, NotDurable> {
        let (seen, stable) = self.store.look(look)?;
        self.store.stable(stable).await?;
        Ok(seen)
    }

    /// Totals and what is kept.
    pub fn stats(&self) -> DurableStats {
        self.store.stats()
    }

    /// Takes no more changes and returns when those so far are durable and the journal's directory is unlocked.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn close(&self) {
        self.store.close().await;
    }

    pub(super) fn keeper(&self) -> Arc<dyn Keeper> {
        Arc::clone(&self.store) as _
    }
}

impl<S: State> Clone for Durable<S> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store) }
    }
}

impl<S: State> fmt::Debug for Durable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
