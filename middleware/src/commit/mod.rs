//! Distributed commit: a transaction over several processes happens everywhere or nowhere.
//!
//! Guarantee   what [`Transactions`] reports as committed is committed by every participant, sooner or later, and
//!             what it reports as aborted by none, whoever is killed and restarted, as long as journals survive. A
//!             participant that voted yes keeps its promise across restarts and never decides alone.
//! Method      two-phase commit with presumed abort: the machine of `quorate_protocols::commit`, run by the driver on a
//!             channel of the node, its records in a journal behind the barrier.
//! Blocks      when the coordinator is down and no other participant knows the decision, those who voted yes wait;
//!             [`Transactions::in_doubt`] lists them. That is the price of two phases.
//! Limits      [`Config`]. The journal is compacted every 16,384 records.
//!
//! One value coordinates and takes part: open it on every process with the same name.
//!
//! ```
//! use bytes::Bytes;
//! use quorate::commit::{Config, Resource, Transactions, TxnId, Vote};
//! use quorate::journal::{self, Journal, MemoryStorage};
//! use quorate::{Node, NodeId};
//!
//! /// Agrees to everything that is not empty.
//! struct Agreeable;
//!
//! impl Resource for Agreeable {
//!     async fn prepare(&self, _: TxnId, payload: Bytes) -> Vote {
//!         if payload.is_empty() { Vote::No } else { Vote::Yes }
//!     }
//!     async fn commit(&self, txn: TxnId) { println!("{txn} happened") }
//!     async fn abort(&self, txn: TxnId) { println!("{txn} did not happen") }
//!     async fn restore(&self, _: TxnId, _: Bytes) {}
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().id(NodeId(7)).listen("tcp://127.0.0.1:0").start().await?;
//! let (journal, _) = Journal::open(MemoryStorage::new(), journal::Config::new(7))?;
//! let transactions = Transactions::open(&node, "orders", journal, Agreeable, Config::default()).await?;
//! // As many participants as are needed; here it is this process alone.
//! assert!(transactions.run([(NodeId(7), "a book".into())]).await?.is_committed());
//! assert!(!transactions.run([(NodeId(7), "".into())]).await?.is_committed());
//! # Ok(()) }
//! ```

mod desk;
mod error;
mod log;
mod resource;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_journal::Journal;
use quorate_protocols::commit::{Command, Manager, Work};
use tokio::sync::oneshot;

pub use error::{BeginError, OpenError};
pub use quorate_protocols::commit::{AbortReason, Config, TxnId, Vote};
pub use resource::{NoResource, Resource};

use crate::driver::{self, Handle, Port, Setup};
use crate::node::{Channel, Node, NodeId};
use desk::{Clerk, Desk};

/// The transactions of one process: begins them, and answers for the local [`Resource`] in those of others.
///
/// Cheap to clone. Dropping the last clone stops at once, as a crash would: what is open is taken up by the next
/// [`open`](Self::open) on the same journal. Its name is free when it has written its last record; wait for that with
/// [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Transactions {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle<Manager>,
    desk: Arc<Desk>,
    next_token: AtomicU64,
}

impl Transactions {
    /// Takes up what `journal` says was open, and begins to serve on `node` under `name`.
    ///
    /// `resource` first hears, by [`Resource::restore`], of everything on which it had voted yes and whose end is
    /// not recorded. `journal`: one of its own, which it keeps short: what is over is dropped from it.
    /// The same `name` connects the processes that transact with each other.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is running then.
    /// # Cancel safety
    /// Dropping the future leaves nothing running; the resource may have heard of some transactions.
    pub async fn open(
        node: &Node,
        name: &str,
        journal: Journal,
        resource: impl Resource,
        config: Config,
    ) -> Result<Self, OpenError> {
        let channel = Channel::named("commit", name);
        let port = Port::open(node, channel)?;
        // Transactions that were begun before in this life of the node had numbers, too.
        let me = driver::new_life(node);
        let restored = log::restore(&journal, channel, me, config).await?;
        let desk = Arc::new(Desk::default());
        // Before the machine says so in its first turn: whoever asks or shuts down before that must not hear that nothing is open.
        desk.restored(restored.promised.iter().map(|(txn, _)| *txn), restored.committed);
        for (txn, payload) in restored.promised {
            resource.restore(txn, payload).await;
        }
        let clerk = Clerk::new(desk.clone(), resource);
        let stable = Some(log::stable(journal, channel));
        let setup = Setup { port, me, machine: restored.manager, stable, wake: desk.wake() };
        let handle = driver::start(node, setup, clerk);
        let inner = Inner { handle, desk, next_token: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs one transaction over these participants, each with its part, and returns how it ended.
    ///
    /// Returns when the decision is durable; participants may still be applying it.
    ///
    /// # Errors
    /// [`BeginError`]; nothing happened then.
    /// # Cancel safety
    /// Dropped before the transaction has a name, it is cancelled; after that it runs on and may commit. Use
    /// [`begin`](Self::begin) to keep the name.
    pub async fn run(&self, work: impl IntoIterator<Item = (NodeId, Bytes)>) -> Result<Outcome, BeginError> {
        Ok(self.begin(work).await?.outcome().await)
    }

    /// Begins one transaction over these participants, each with its part.
    ///
    /// # Errors
    /// [`BeginError`]; nothing happened then.
    /// # Cancel safety
    /// Dropping the future cancels the transaction.
    pub async fn begin(
        &self,
        work: impl IntoIterator<Item = (NodeId, Bytes)>,
    ) -> Result<Transaction, BeginError> {
        let token = self.inner.next_token.fetch_add(1, Ordering::Relaxed);
        let mut begun = self.inner.desk.expect(token).ok_or(BeginError::Stopped)?;
        let work = work.into_iter().map(|(node, payload)| Work { node: node.0, payload }).collect();
        let given = self.inner.handle.command(Command::Begin { token, work }).await;
        given.map_err(|_| BeginError::Stopped)?;
        let (txn, outcome) = begun.answer().await.map_err(|_| BeginError::Stopped)??;
        Ok(Transaction { txn, outcome, transactions: self.clone() })
    }

    /// What the local resource has voted yes on without knowing the decision: it holds these promises.
    pub fn in_doubt(&self) -> Vec<TxnId> {
        self.inner.desk.in_doubt()
    }

    /// Transactions that were begun here before the last restart, had committed, and had not been acknowledged by all:
    /// their callers may not have learned the outcome.
    pub fn resumed(&self) -> Vec<TxnId> {
        self.inner.desk.resumed()
    }

    /// Totals since the opening.
    pub fn stats(&self) -> Stats {
        self.inner.desk.stats()
    }

    /// Takes no new transactions, waits at most `deadline` until the own ones are decided and the resource is idle,
    /// then stops. What is left is taken up by the next [`open`](Self::open).
    ///
    /// # Cancel safety
    /// Dropping the future leaves it serving, but beginning nothing; call again.
    pub async fn shutdown(&self, deadline: Duration) -> Left {
        self.inner.desk.close();
        let _ = tokio::time::timeout(deadline, self.inner.desk.idle()).await;
        let left = self.inner.desk.left();
        self.inner.handle.stop().await;
        left
    }
}

impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactions").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// One transaction that was begun here. Dropping it does not stop it.
#[derive(Debug)]
pub struct Transaction {
    txn: TxnId,
    outcome: oneshot::Receiver<Outcome>,
    transactions: Transactions,
}

impl Transaction {
    /// Its name: keep it to know later what an uncertain outcome was about.
    pub fn id(&self) -> TxnId {
        self.txn
    }

    /// Waits for the decision.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the transaction running.
    pub fn outcome(self) -> impl Future<Output = Outcome> + Send {
        let Self { txn, outcome, transactions } = self;
        async move {
            let outcome = outcome.await.unwrap_or(Outcome::InDoubt(txn));
            drop(transactions);
            outcome
        }
    }

    /// Asks for an abort; one that is decided already stays so. The outcome tells.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the wish unsaid.
    pub async fn cancel(&self) {
        // One that has stopped decides nothing any more: the outcome will say that it is in doubt.
        let _ = self.transactions.inner.handle.command(Command::Cancel(self.txn)).await;
    }
}

/// How a transaction ended, as far as it is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a transaction may have been aborted, or its outcome be unknown"]
pub enum Outcome {
    /// Every participant commits; the decision is durable.
    Committed(TxnId),
    /// Every participant aborts.
    Aborted(TxnId, AbortReason),
    /// This process stopped serving before it knew. After the next opening: committed if
    /// [`Transactions::resumed`] lists it, else aborted, or committed and acknowledged by all.
    InDoubt(TxnId),
}

impl Outcome {
    /// True when it committed.
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Committed(_))
    }

    /// The transaction's name.
    pub fn txn(&self) -> TxnId {
        match self {
            Self::Committed(txn) | Self::Aborted(txn, _) | Self::InDoubt(txn) => *txn,
        }
    }
}

/// Totals since the opening; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Begun here and committed.
    pub committed: u64,
    /// Begun here and aborted.
    pub aborted: u64,
    /// Taken part in: the resource was asked to prepare.
    pub prepared: u64,
    /// Commits that the resource has applied.
    pub applied: u64,
    /// Aborts that the resource has applied.
    pub undone: u64,
    /// Calls of the resource that panicked; a prepare counts as a no, an end is taken up after a restart.
    pub panicked: u64,
}

/// What a shutdown did not wait for; the next opening takes it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// Begun here and not decided.
    pub undecided: usize,
    /// Voted yes and not told.
    pub in_doubt: usize,
    /// Told and not applied by the resource.
    pub unapplied: usize,
}

impl Left {
    /// True when everything had ended here.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}
