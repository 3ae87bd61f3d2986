//! Queues by their names alone: which node has them, and over whom it is reached.
//!
//! Guarantee   a put to a [`NamedQueue`] that returned is as a put to that node's queue: synced here, and there once. What was
//!             put is on its way to where the queue was said to be then; when the queue is said to be elsewhere later, the order
//!             of what was put before and after is not kept, and what was before is in `undelivered` there if the queue is gone.
//! Method      three tables, each of which may be all that a node knows: names to nodes ([`QueueManager::place`], by hand, or kept
//!             by the [directory](crate::naming::QueueNames)), nodes to the neighbours that lead there
//!             ([`QueueManager::route`]), and the neighbour for all the rest ([`QueueManager::route_rest`]): a router, which
//!             knows more.
//! Limits      [`PLACES_MAX`] names. Circles of routers are noticed by the hops that a message takes.

use std::collections::BTreeMap;

use quorate_transports::NodeId;

use super::QueueManager;
use crate::queue::config::check_name;
use crate::queue::error::{DeclareError, PutError};
use crate::queue::face::Receipt;
use crate::queue::message::Message;

/// What a node knows of others.
#[derive(Default)]
pub(super) struct Routes {
    /// Where what is not for a neighbour goes.
    pub(super) ways: BTreeMap<u64, u64>,
    /// Where all goes that is in none of the ways.
    pub(super) rest: Option<u64>,
    pub(super) places: BTreeMap<String, u64>,
}

impl Routes {
    pub(super) fn next_hop(&self, me: u64, to: u64) -> u64 {
        let next = self.ways.get(&to).copied().or(self.rest);
        // A table may be the same on all nodes: whoever is the way goes on directly.
        next.filter(|next| *next != me).unwrap_or(to)
    }
}

/// A queue of some node, known by its name. Clones are cheap.
#[derive(Debug, Clone)]
pub struct NamedQueue {
    manager: QueueManager,
    name: String,
}

/// Why a put by name did not complete.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NamedPutError {
    /// It is not known which node has the queue; nothing is stored.
    #[error("nobody knows where the queue {queue:?} is")]
    Unknown {
        /// Its name.
        queue: String,
    },
    /// This node is said to have the queue, and has none of that name; nothing is stored.
    #[error("there is no queue {queue:?} here")]
    NoQueue {
        /// Its name.
        queue: String,
    },
    /// There is no queue towards that node.
    #[error("no queue towards the node")]
    Declare(#[from] DeclareError),
    /// It cannot be put into the queue towards that node.
    #[error("cannot put the message")]
    Put(#[from] PutError),
}

impl QueueManager {
    /// From now on what is for nodes that no [route](Self::route) names goes by way of `next`, a router. A node that has
    /// neighbours beside it names them by `route(neighbour, neighbour)`.
    pub fn route_rest(&self, next: NodeId) {
        self.routes().rest = Some(next.0);
    }

    /// From now on the queue called `queue` is at `node`, which may be this one; whatever was said before.
    ///
    /// # Errors
    /// [`DeclareError::Name`], [`DeclareError::TooMany`].
    pub fn place(&self, queue: &str, node: NodeId) -> Result<(), DeclareError> {
        check_name(queue)?;
        let mut routes = self.routes();
        if routes.places.len() >= PLACES_MAX && !routes.places.contains_key(queue) {
            return Err(DeclareError::TooMany { limit: PLACES_MAX });
        }
        routes.places.insert(queue.to_owned(), node.0);
        Ok(())
    }

    /// Nobody knows any more where the queue called `queue` is.
    pub fn unplace(&self, queue: &str) {
        self.routes().places.remove(queue);
    }

    /// Which node has the queue called `queue`, as far as this one knows.
    pub fn located(&self, queue: &str) -> Option<NodeId> {
        self.routes().places.get(queue).copied().map(NodeId)
    }

    /// The queue called `queue`, wherever it is when something is put.
    ///
    /// # Errors
    /// [`DeclareError::Name`].
    pub fn named(&self, queue: &str) -> Result<NamedQueue, DeclareError> {
        check_name(queue)?;
        Ok(NamedQueue { manager: self.clone(), name: queue.to_owned() })
    }
}

impl NamedQueue {
    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores a message here, to be forwarded to where the queue is said to be now; as
    /// [`RemoteQueue::put`](super::RemoteQueue::put), or as [`Queue::put`](crate::queue::Queue::put) where that is this node.
    ///
    /// # Errors
    /// See [`NamedPutError`].
    /// # Cancel safety
    /// As [`Queue::put`](crate::queue::Queue::put).
    pub async fn put(&self, message: impl Into<Message>) -> Result<Receipt, NamedPutError> {
        let node = self.manager.located(&self.name);
        let node = node.ok_or_else(|| NamedPutError::Unknown { queue: self.name.clone() })?;
        if node.0 == self.manager.inner.me {
            let queue = self.manager.inner.queues.existing(&self.name);
            let queue = queue.ok_or_else(|| NamedPutError::NoQueue { queue: self.name.clone() })?;
            return Ok(queue.put(message).await?);
        }
        Ok(self.manager.remote(node, &self.name).await?.put(message).await?)
    }
}

/// More queues than one directory has.
const PLACES_MAX: usize = 16_384;
