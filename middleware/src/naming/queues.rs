//! Where queues are, as the directory has it: whoever has one says so, and whoever puts follows.
//!
//! Guarantee   as of the [directory](super): what [`offer`](QueueNames::offer) returned from is found while the offering process
//!             lives. Of several offers the latest counts. Who [opened](QueueNames::open) a queue learns of a later place by
//!             itself, some time later.

use std::fmt;
use std::time::Duration;

use quorate_transports::NodeId;
use tokio::task::AbortHandle;

use super::entry::{Entry, Found, Query};
use super::error::NamesError;
use super::names::{Names, Registration};
use crate::node::Node;
use crate::queue::{DeclareError, NamedPutError, NamedQueue, QueueManager, Receipt};

/// The queues of all nodes that share a directory. Clones are cheap.
#[derive(Clone)]
pub struct QueueNames {
    names: Names,
    manager: QueueManager,
}

/// A queue that is found by its name, and followed as long as this lives.
pub struct DirectedQueue {
    queue: NamedQueue,
    following: AbortHandle,
}

/// Why a queue was not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueNameError {
    /// The directory: it has no such name, or cannot be asked.
    #[error("the directory does not tell where the queue is")]
    Names(#[from] NamesError),
    /// It is not the name of a queue, or there are too many.
    #[error("not a name of a queue")]
    Declare(#[from] DeclareError),
    /// What is registered under the name is no queue.
    #[error("what is registered as {queue:?} names no node")]
    NoNode {
        /// The queue's name.
        queue: String,
    },
}

impl QueueNames {
    /// The queues that the directory behind `names` knows, put to by `manager`; both of the same node.
    pub fn new(names: &Names, manager: &QueueManager) -> Self {
        Self { names: names.clone(), manager: manager.clone() }
    }

    /// Says that this node has the queue called `queue`, until what is returned is dropped.
    ///
    /// # Errors
    /// See [`QueueNameError`].
    /// # Cancel safety
    /// As [`Names::register`].
    pub async fn offer(&self, queue: &str) -> Result<Registration, QueueNameError> {
        let node = self.names.node();
        self.manager.place(queue, node.identity().node)?;
        let entry = Entry::at(&node.addresses()).with(NODE, node.identity().node.0.to_string());
        Ok(self.names.register(name(queue), entry).await?)
    }

    /// The queue called `queue`, waiting at most `patience` (and at most 30 s) until somebody offers it.
    ///
    /// # Errors
    /// See [`QueueNameError`].
    /// # Cancel safety
    /// Dropping the future may leave the place that was found known.
    pub async fn open(&self, queue: &str, patience: Duration) -> Result<DirectedQueue, QueueNameError> {
        let named = self.manager.named(queue)?;
        let found = self.names.find(&name(queue), patience).await?;
        if !self.learn(queue, &found)? {
            return Err(QueueNameError::NoNode { queue: queue.to_owned() });
        }
        let (this, followed) = (self.clone(), queue.to_owned());
        let following = tokio::spawn(async move { this.follow(&followed).await }).abort_handle();
        Ok(DirectedQueue { queue: named, following })
    }

    async fn follow(&self, queue: &str) {
        let mut watch = self.names.watch(Query::named(name(queue)));
        loop {
            match watch.next().await {
                // Nobody offers it now: it stays where it was last, and what is put waits here for that node.
                Ok(found) => {
                    if let Err(error) = self.learn(queue, &found) {
                        tracing::warn!(queue, %error, "a place that cannot be kept");
                    }
                }
                Err(NamesError::Closed) => return,
                Err(error) => {
                    tracing::debug!(queue, %error, "the directory cannot be asked");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// Keeps the latest place of those that were found; whether there was one.
    fn learn(&self, queue: &str, found: &[Found]) -> Result<bool, DeclareError> {
        let place = |found: &Found| Some((found.version, NodeId(found.attributes.get(NODE)?.parse().ok()?)));
        let places = found.iter().filter_map(|found| Some((place(found)?, found)));
        let Some(((_, node), found)) = places.max_by_key(|((version, _), _)| *version) else {
            return Ok(false);
        };
        let own: &Node = self.names.node();
        if node != own.identity().node {
            for address in &found.addresses {
                own.add_address(node, address.clone());
            }
        }
        self.manager.place(queue, node)?;
        Ok(true)
    }
}

impl DirectedQueue {
    /// The queue's name.
    pub fn name(&self) -> &str {
        self.queue.name()
    }

    /// Puts a message to where the queue is known to be now; as [`NamedQueue::put`].
    ///
    /// # Errors
    /// See [`NamedPutError`].
    /// # Cancel safety
    /// As [`NamedQueue::put`].
    pub async fn put(&self, message: impl Into<crate::queue::Message>) -> Result<Receipt, NamedPutError> {
        self.queue.put(message).await
    }
}

impl Drop for DirectedQueue {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl fmt::Debug for QueueNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueNames").finish_non_exhaustive()
    }
}

impl fmt::Debug for DirectedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectedQueue").field("name", &self.name()).finish_non_exhaustive()
    }
}

fn name(queue: &str) -> String {
    format!("queue/{queue}")
}

/// The attribute with the node's number.
const NODE: &str = "node";
/// How long a directory that cannot be asked is left alone.
const ASK_AGAIN: Duration = Duration::from_secs(1);
