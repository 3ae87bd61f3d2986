//! A replicated state machine on a log of its own: it outlives any minority, and with journals a restart of all.
//!
//! Guarantee   every replica applies the same commands in the same order, each once. A command that [`Logged::apply`] has
//!             answered is held by a majority, durably where there are journals, and is never lost while a majority of
//!             the journals is kept; it is not applied twice however often leaders change. [`Logged::read_latest`] sees
//!             everything that anybody was answered before it began (linearizable); [`Logged::read`] sees the own state,
//!             which may lag (sequential).
//! Method      the machine of [`quorate_protocols::agreement`], run by the driver on a channel of the node. Any replica takes
//!             commands and hands them to the leader; a new leader is handed again what is not known to be applied.
//! Outcome     applied, rejected or unknown: [`ApplyError::outcome`]. A caller that does not want to wait for ever for a
//!             majority bounds the wait with a time-out, and then does not know either.
//! Fences      terms grow, and each has one leader: a term is an epoch. [`Logged::apply_in_term`] is applied only while
//!             the given one lasts, and a resource outside keeps out those of earlier ones with a [`Fence`].
//! Restart     with a journal, a replica takes up its log under the same [`NodeId`]. Without, its promises are gone with its
//!             process: it must come back as another node that joins, or two leaders might be elected in one term.
//! Limits      [`Config`]. The state lives in memory, and snapshots of it are taken while the replica stands still.
//!
//! ```
//! use bytes::Bytes;
//! use quorate::replication::log::{Config, Logged, Storage};
//! use quorate::replication::{RestoreError, StateMachine};
//! use quorate::{Node, NodeId};
//!
//! /// Adds up.
//! struct Sum(u64);
//!
//! impl StateMachine for Sum {
//!     type Command = u64;
//!     type Response = u64;
//!     fn apply(&mut self, more: u64) -> u64 { self.0 += more; self.0 }
//!     fn snapshot(&self) -> Bytes { self.0.to_le_bytes().to_vec().into() }
//!     fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError> {
//!         let bytes = snapshot[..].try_into().map_err(|_| RestoreError("not eight bytes".into()))?;
//!         self.0 = u64::from_le_bytes(bytes);
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().id(NodeId(1)).listen("tcp://127.0.0.1:0").start().await?;
//! // As many founders as are wanted; here it is this process alone.
//! let sum: Logged<Sum> =
//!     Logged::open(&node, "sum", Storage::Memory, Sum(0), [NodeId(1)], Config::default()).await?;
//! assert_eq!(sum.apply(&2).await?, 2);
//! assert_eq!(sum.apply(&3).await?, 5);
//! assert_eq!(sum.read_latest(|sum| sum.0).await?, 5);
//! # Ok(()) }
//! ```

mod desk;
mod error;
mod fence;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::BytesMut;
use quorate_journal::Journal;
use quorate_protocols::agreement::{Change, Command, Members, Record, Replica};
use quorate_protocols::{ProcessId, Time};
use tokio::sync::{oneshot, watch};

pub use error::{ApplyError, ChangeError, OpenError, Outcome};
pub use fence::{Fence, Stale};
pub use quorate_protocols::agreement::{Config, Refusal};

use super::StateMachine;
use crate::codec::{Codec, Postcard};
use crate::driver::{
    self, Handle, Port, RecordsError, Setup, Stable, encode_records, read_records, save_records,
};
use crate::node::{Channel, Node, NodeId};
use desk::{Clerk, Desk, Waiting};

/// Where a replica keeps its log.
#[derive(Debug, Clone)]
pub enum Storage {
    /// In memory: a replica that ends is gone, and must not come back under its [`NodeId`].
    Memory,
    /// In a journal of its own, which is kept short.
    Journal(Journal),
}

/// One replica. Cheap to clone; all clones are the same replica. Dropping the last clone stops it at once, as a crash
/// would; the others go on if they are a majority.
pub struct Logged<S: StateMachine, C: Codec = Postcard> {
    inner: Arc<Inner<S>>,
    codec: PhantomData<fn() -> C>,
}

struct Inner<S: StateMachine> {
    handle: Handle<Replica>,
    desk: Arc<Desk<S>>,
}

/// Where a replica stands, as far as it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The present term; later ones have larger numbers. For a [`Fence`], it is the epoch of who leads.
    pub term: u64,
    /// Who leads it.
    pub leader: Option<NodeId>,
    /// Those whose majority decides.
    pub voters: Vec<NodeId>,
    /// Those who only follow.
    pub learners: Vec<NodeId>,
    /// True when the replica has stopped for good.
    pub is_over: bool,
}

/// Totals since the opening; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commands applied, by whomever they were given.
    pub applied: u64,
    /// Commands that could not be decoded, and were applied nowhere.
    pub malformed: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Snapshots taken over from a leader.
    pub restored: u64,
}

impl<S: StateMachine, C: Codec> Logged<S, C> {
    /// Takes up the log in `storage` and takes part in the one of that `name` on `node`.
    ///
    /// `machine`: the state before any command, the same at all replicas. `founders`: who takes part before anything was
    /// decided, the same at all of them and at every start; nobody for a replica that is [added](Self::add_learner) later.
    /// Founders must know each other's addresses (`node.connect`).
    ///
    /// # Errors
    /// [`OpenError`]; nothing is running then.
    /// # Cancel safety
    /// Dropping the future leaves nothing running.
    pub async fn open(
        node: &Node,
        name: &str,
        storage: Storage,
        machine: S,
        founders: impl IntoIterator<Item = NodeId>,
        config: Config,
    ) -> Result<Self, OpenError> {
        let founders = Members::of_voters(founders.into_iter().map(|founder| ProcessId::any_life(founder.0)));
        let channel = Channel::named("log", name);
        let port = Port::open(node, channel)?;
        let me = driver::new_life(node);
        // Different for each process and life; nothing depends on its being hard to guess.
        let seed = me.node.rotate_left(32) ^ me.incarnation;
        let snapshot_name = format!("log-{channel}");
        let make = |records| {
            // The driver's clock starts at zero with the machine.
            Replica::new(me, Time::ZERO, seed, config, founders, records).map_err(OpenError::Log)
        };
        let (replica, stable) = match storage {
            Storage::Memory => (make(Vec::new())?, None),
            Storage::Journal(journal) => {
                let wrong = |error| match error {
                    RecordsError::Read(error) => error.into(),
                    RecordsError::Write(error) => error.into(),
                    RecordsError::Record(position, source) => OpenError::Record { position, source },
                    RecordsError::Snapshot(source) => OpenError::Snapshot { source },
                    RecordsError::Runtime => OpenError::Runtime,
                };
                let read = read_records::<Record>(&journal, &snapshot_name, RECORD_KIND);
                let (records, end) = read.await.map_err(wrong)?;
                let is_new = records.is_empty();
                let replica = make(records)?;
                if !is_new {
                    save_records(&journal, &snapshot_name, end, &replica.records()).await.map_err(wrong)?;
                }
                let snapshot = |replica: &Replica| encode_records(&replica.records());
                (replica, Some(Stable { journal, kind: RECORD_KIND, snapshot_name, snapshot }))
            }
        };
        let mut machine = machine;
        if replica.snapshot().index > 0 {
            machine.restore(replica.snapshot().data.clone())?;
        }
        let desk = Arc::new(Desk::new(machine, config.outstanding_max, replica.members()));
        let setup = Setup { port, me, machine: replica, stable, wake: desk.wake() };
        let handle = driver::start(node, setup, Clerk::<S, C>::new(desk.clone(), me));
        Ok(Self { inner: Arc::new(Inner { handle, desk }), codec: PhantomData })
    }

    /// Applies a command at all replicas and returns what it was answered.
    ///
    /// Waits for as long as there is no majority, and for room when [`Config::outstanding_max`] are under way: bound it
    /// with a time-out where that matters.
    ///
    /// # Errors
    /// [`ApplyError`]; it says whether the command may have been applied.
    /// # Cancel safety
    /// Dropping the future does not take the command back once it is under way; its outcome is then unknown.
    pub async fn apply(&self, command: &S::Command) -> Result<S::Response, ApplyError> {
        self.apply_in_term(command, 0).await
    }

    /// As [`apply`](Self::apply), but only if the command gets its place while `term` lasts: for one that acts on the
    /// belief that it leads, or that whoever gave it a lease does. A term of zero means any.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); [`Refusal::Fenced`] when another term had begun.
    /// # Cancel safety
    /// As [`apply`](Self::apply).
    pub async fn apply_in_term(&self, command: &S::Command, term: u64) -> Result<S::Response, ApplyError> {
        let mut payload = BytesMut::new();
        C::encode(command, &mut payload)?;
        let payload = payload.freeze();
        let (sender, answer) = oneshot::channel();
        let command = |token| Command::Propose { token, fence: term, payload };
        self.inner.desk.ask(Waiting::Applied(sender), command).await?;
        // The sender is dropped unanswered when the replica ends.
        answer.await.map_err(|_| ApplyError::Unknown)?
    }

    /// Looks at this replica's own state. Quick work only: the replica stands still meanwhile.
    pub fn read<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        self.inner.desk.look(look)
    }

    /// Looks at a state that contains everything that any replica answered before this call.
    ///
    /// Costs a round of messages between the leader and a majority, shared by all reads of that moment, and no write.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); nothing was changed in any case.
    /// # Cancel safety
    /// Safe.
    pub async fn read_latest<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R, ApplyError> {
        let (sender, answer) = oneshot::channel();
        self.inner.desk.ask(Waiting::Done(sender), |token| Command::Read { token }).await?;
        answer.await.map_err(|_| ApplyError::Ended)??;
        Ok(self.read(look))
    }

    /// Lets `node` follow without a vote, from now on; it catches up, from a snapshot if need be. Only at the leader.
    ///
    /// # Errors
    /// [`ChangeError`].
    /// # Cancel safety
    /// Dropping the future does not take the change back once it is under way.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change(Change::Learner(ProcessId::any_life(node.0))).await
    }

    /// Gives a learner a vote once it holds nearly all of the log. Only at the leader.
    ///
    /// # Errors
    /// [`ChangeError`]; [`Refusal::Behind`] while it has not caught up, and of who is no learner.
    /// # Cancel safety
    /// As [`add_learner`](Self::add_learner).
    pub async fn promote(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change(Change::Voter(ProcessId::any_life(node.0))).await
    }

    /// Lets `node` take part no more. Only at the leader, which may remove itself. Who was removed may not be told: stop it.
    ///
    /// # Errors
    /// [`ChangeError`].
    /// # Cancel safety
    /// As [`add_learner`](Self::add_learner).
    pub async fn remove(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change(Change::Gone(ProcessId::any_life(node.0))).await
    }

    async fn change(&self, change: Change) -> Result<(), ChangeError> {
        let (sender, answer) = oneshot::channel();
        let asked =
            self.inner.desk.ask(Waiting::Done(sender), |token| Command::Reconfigure { token, change });
        asked.await.map_err(|_| ChangeError::Ended)?;
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ApplyError::Refused(reason))) => Err(ChangeError::Refused(reason)),
            _ => Err(ChangeError::Unknown),
        }
    }

    /// Where the replica stands.
    pub fn progress(&self) -> Progress {
        self.inner.desk.progress().borrow().clone()
    }

    /// Follows where the replica stands.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.inner.desk.progress().subscribe()
    }

    /// Totals since the opening.
    pub fn stats(&self) -> Stats {
        self.inner.desk.stats()
    }

    /// Stops this replica and waits until it has written its last record. Another one leads soon if this one did.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it stopping.
    pub async fn stop(&self) {
        self.inner.handle.stop().await;
    }
}

impl<S: StateMachine, C: Codec> Clone for Logged<S, C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), codec: PhantomData }
    }
}

impl<S: StateMachine, C: Codec> fmt::Debug for Logged<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logged").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

/// The kind of the machine's records in a journal.
const RECORD_KIND: u16 = 0x2F;
