//! Naming: a directory in which services are found, itself a replicated service.
//!
//! Purpose     who offers something registers it under a name, with attributes; who needs it looks it up, or follows
//!             what becomes of it.
//! Guarantee   what [`Names::register`] returned from is in the directory until it is withdrawn or its lease runs out,
//!             also when a minority of the directory's replicas dies. A lease runs out only after its owner was not
//!             heard for as long as the lease is; a replica that takes over, and a directory that had no quorum, count
//!             anew, and a replica that stood still does not count that time. One handle never sees an older state of
//!             the directory after a newer one; what an owner registered it sees itself. A replica that knows that it has
//!             no quorum does not answer. [`Names::lookup_latest`] sees everything that was acknowledged to anybody
//!             before.
//! Method      the directory is a replicated state machine ([`Directory`], one a replica) that is served by RPC; a handle
//!             ([`Names`]) asks any replica and goes on to the next when one does not answer. Registrations are *soft
//!             state*: their owner keeps what it wants registered and makes the directory agree, also with a directory
//!             that was started anew and has lost everything.
//! Limits      flat names of [`NAME_BYTES_MAX`] bytes; entries of [`ENTRY_BYTES_MAX`]; 1,024 entries a handle; 16,384
//!             entries and leases a directory; leases of 1 s to 1 h; an answer carries the first 256 matches, by name;
//!             6,144 watches a replica, the others follow at the next one.
//!             Every node that may call the directory may register any name: keep it on networks that you trust, or
//!             behind `tls://` or `quic://` and [`NodeBuilder::admit`](crate::node::NodeBuilder::admit).
//! Source      van Steen & Tanenbaum, naming (flat and attribute-based naming, directory services); leases: Gray &
//!             Cheriton 1989.
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::Node;
//! use quorate::naming::{Directory, Entry, Names, Query};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let host = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let _directory = Directory::found(&host).await?;
//!
//! let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let names = Names::connect(&node, &host.addresses()).await?;
//! let printer = Entry::at(&node.addresses()).with("room", "12");
//! let _registration = names.register("printer", printer).await?;
//!
//! let found = names.lookup(&Query::named("printer").with("room", "12")).await?;
//! assert_eq!(found[0].addresses, node.addresses());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod book;
mod bound;
mod discover;
mod entry;
mod error;
mod keeper;
mod leases;
mod line;
mod names;
mod queues;
mod service;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quorate_transports::BoxFuture;
use tokio::task::AbortHandle;

pub use bound::{Bound, BoundError, BoundOptions};
pub use entry::{ENTRY_BYTES_MAX, Entry, Found, NAME_BYTES_MAX, Query};
pub use error::{DirectoryError, NameError, NamesError};
pub use names::{Names, NamesOptions, Registration, Status, Watch};
pub use queues::{DirectedQueue, QueueNameError, QueueNames};

use crate::group::{Builder, Events, Group, LeaveError, Total};
use crate::node::{Address, Node};
use crate::replication::Replicated;
use crate::rpc::Serving;

/// Who starts what is looked for and nobody has registered: a superserver.
pub trait Starter: Send + Sync + 'static {
    /// Somebody waits for `name`, which nobody has registered. Returns only when it is known that nobody will register
    /// it now, with the reason in a few words; is dropped when somebody has, or when nobody waits any more.
    fn start<'a>(&'a self, name: &'a str) -> BoxFuture<'a, String>;
}

type Replica = Replicated<book::Book, Group<Total>>;

/// One replica of a directory, in this process. Dropping it ends the replica at once, as a crash would;
/// [`leave`](Self::leave) is kinder to the others.
pub struct Directory {
    replica: Replica,
    leases: AbortHandle,
    serving: Option<Serving>,
}

impl Directory {
    /// Founds a directory with this replica alone. Two directories that were founded know nothing of each other.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn found(node: &Node) -> Result<Self, DirectoryError> {
        let (group, events) = Builder::total(service::SERVICE).create(node).await?;
        Self::start(node, group, events, None).await
    }

    /// As [`found`](Self::found), of a directory whose `starter` is told of every name that somebody
    /// [waits for](Names::find) and nobody has registered.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn found_with(node: &Node, starter: Arc<dyn Starter>) -> Result<Self, DirectoryError> {
        let (group, events) = Builder::total(service::SERVICE).create(node).await?;
        Self::start(node, group, events, Some(starter)).await
    }

    /// Adds a replica to the directory that the nodes at `contacts` serve; any one of them that lives will do. Returns
    /// when this replica has the state. A directory of three survives the death of one, of five of two.
    ///
    /// # Errors
    /// [`DirectoryError`].
    /// # Cancel safety
    /// Dropping the future leaves the group as a crash would.
    pub async fn join(node: &Node, contacts: &[Address]) -> Result<Self, DirectoryError> {
        let (group, events) = Builder::total(service::SERVICE).join(node, contacts).await?;
        Self::start(node, group, events, None).await
    }

    async fn start(
        node: &Node,
        group: Group<Total>,
        events: Events,
        starter: Option<Arc<dyn Starter>>,
    ) -> Result<Self, DirectoryError> {
        let identity = node.identity();
        // A life that no earlier directory of this node had, nor one of another node.
        let life = identity.node.0 ^ identity.incarnation.0.rotate_left(32) ^ u64::from(node.fresh_number());
        let replica = Replicated::start(group, events, book::Book::new(life));
        if !replica.wait_state().await {
            return Err(DirectoryError::NoState);
        }
        let office = service::Office::new(replica.clone(), service::WAITING_MAX, starter);
        let serving =
            node.serve_with(service::SERVICE, service::DeskServer::new(office), service::options())?;
        let leases = tokio::spawn(leases::watch(replica.clone())).abort_handle();
        Ok(Self { replica, leases, serving: Some(serving) })
    }

    /// How many entries this replica's state has.
    pub fn len(&self) -> usize {
        self.replica.read(book::Book::len)
    }

    /// True when nothing is registered, as far as this replica knows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the leases of those who registered what `query` finds, as if they had run out, with all that is registered
    /// under them: for who knows that an owner is dead. An owner that lives registers everything again. Tells how many
    /// leases ended; none while there is no quorum.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of them as they were.
    pub async fn expel(&self, query: &Query) -> usize {
        let owners = || self.replica.read(|book| book.owners(query));
        let before = owners().len();
        for _ in 0..EXPULSIONS_MAX {
            for (session, renewals) in owners() {
                let expire = book::Command::Expire { session, renewals };
                if !self.replica.progress().has_quorum || self.replica.apply(&expire).await.is_err() {
                    break;
                }
            }
        }
        before.saturating_sub(owners().len())
    }

    /// Where the replica stands: its view, whether it has a quorum, whether it has ended.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<crate::replication::Progress> {
        self.replica.watch()
    }

    /// Stops answering and leaves the group in good order; the others go on without this replica. Whoever waits for an
    /// answer asks the next one.
    ///
    /// # Errors
    /// [`LeaveError`]; the replica has ended all the same.
    /// # Cancel safety
    /// Dropping the future ends the replica at once.
    pub async fn leave(mut self, deadline: Duration) -> Result<(), LeaveError> {
        drop(self.serving.take());
        self.replica.leave(deadline).await
    }
}

/// A renewal that a dead owner had sent, and that comes between looking and ending, makes the end void: so often it is
/// tried.
const EXPULSIONS_MAX: usize = 3;

impl Drop for Directory {
    fn drop(&mut self) {
        // The task holds the replica.
        self.leases.abort();
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("me", &self.replica.me()).field("entries", &self.len()).finish()
    }
}
