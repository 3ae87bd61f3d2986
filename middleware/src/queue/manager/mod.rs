//! Queues of other nodes: a put is stored here and forwarded when the other can be reached.
//!
//! Guarantee   a put to a [`RemoteQueue`] that returned is synced here, and sooner or later is in that queue of that node,
//!             once, whatever crashes and however often the connection breaks, as long as both keep their disks. Messages
//!             from one node to one queue of another come in the order of their puts.
//! Method      each node has a *queue manager*. A message for another node waits in a *transmission queue*, and a *channel*
//!             ([`transfer`](crate::protocols::transfer)) takes it over: the receiver stores messages and how far it has come
//!             in one unit of work, and only then the sender drops them. A node that is no neighbour is reached over others
//!             ([`QueueManager::route`]), each of which does the same.
//! Source      queue managers, transmission queues and message channels: Tanenbaum & van Steen, "Distributed Systems"
//!             (message-queuing systems).
//! Limits      a message takes [`HOPS_MAX`] hops. What cannot be put where it goes (there is no such queue, it is too large
//!             for it, it went too far) is in the queue `undelivered` of the node where that showed. A full queue stops the
//!             channel that it is filled from.

mod channels;
mod envelope;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_protocols::transfer::{Config, Place, Transfer};
use quorate_transports::NodeId;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::channels::{Desk, Feed};
use self::envelope::Envelope;
use super::config::QueueConfig;
use super::error::{DeclareError, PutError, WorkError};
use super::face::{Queue, Queues, Receipt};
use super::message::{Durability, Message};
use super::room::wall_now;
use super::work::OWN_STATE;
use crate::driver::{self, Handle, Port, Setup};
use crate::node::{Channel, Node};

/// The queue manager of a node. Clones are cheap and share it; the last one that goes stops the channels.
#[derive(Clone)]
pub struct QueueManager {
    inner: Arc<Inner>,
}

/// A queue of another node, seen from this one. Clones are cheap.
#[derive(Debug, Clone)]
pub struct RemoteQueue {
    node: u64,
    queue: Bytes,
    /// Towards it.
    outgoing: Queue,
    /// Which goes on forwarding while anybody may put.
    _manager: QueueManager,
}

/// Why a queue manager could not be started.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// This node has one already.
    #[error("the node has a queue manager already")]
    Taken,
    /// One of its queues cannot be opened.
    #[error("cannot open a queue of the queue manager")]
    Declare(#[from] DeclareError),
    /// Its own state cannot be stored.
    #[error("cannot store the queue manager's state")]
    Store(#[from] WorkError),
}

struct Inner {
    queues: Queues,
    handle: Arc<Handle<Transfer>>,
    desk: Arc<Desk>,
    /// Where what is not for a neighbour goes.
    routes: Mutex<BTreeMap<u64, u64>>,
    /// The transmission queues, and the tasks that serve them.
    lines: tokio::sync::Mutex<Lines>,
    undelivered: Queue,
    me: u64,
}

#[derive(Default)]
struct Lines {
    open: BTreeMap<u64, Queue>,
    tasks: JoinSet<()>,
}

impl QueueManager {
    /// Starts the queue manager of `node` over its queues, and goes on with what an earlier life had not forwarded.
    ///
    /// # Errors
    /// See [`ManagerError`].
    /// # Cancel safety
    /// Dropping the future may leave the queue `undelivered` created.
    pub async fn start(node: &Node, queues: &Queues) -> Result<Self, ManagerError> {
        let port = Port::open(node, Channel::named("queue", "manager")).map_err(|_| ManagerError::Taken)?;
        let undelivered = queues.queue_with(UNDELIVERED, QueueConfig::new().deliveries_max(None)).await?;
        let birth = birth(queues).await?;
        let me = driver::new_life(node);
        let desk = Arc::new(Desk::default());
        let machine = Transfer::new(Config::new(birth, me.incarnation), places(queues));
        let setup = Setup { port, me, machine, stable: None, wake: Arc::new(Notify::new()) };
        let handle = Arc::new(driver::start(node, setup, Feed::new(desk.clone())));
        let inner = Inner {
            queues: queues.clone(),
            handle,
            desk,
            routes: Mutex::default(),
            lines: tokio::sync::Mutex::default(),
            undelivered,
            me: me.node,
        };
        let manager = Self { inner: Arc::new(inner) };
        manager.serve().await;
        for name in queues.names() {
            if let Some(to) = name.strip_prefix(OUTGOING).and_then(|to| to.parse().ok()) {
                manager.line(to).await?;
            }
        }
        Ok(manager)
    }

    /// The queue called `queue` of another node, which need not be reachable now. (Tell the node where that one is:
    /// [`Node::add_address`].)
    ///
    /// # Errors
    /// See [`DeclareError`].
    /// # Cancel safety
    /// Dropping the future may leave the transmission queue created.
    pub async fn remote(&self, node: NodeId, queue: &str) -> Result<RemoteQueue, DeclareError> {
        super::config::check_name(queue)?;
        let outgoing = self.line(self.next_hop(node.0)).await?;
        let queue = Bytes::copy_from_slice(queue.as_bytes());
        Ok(RemoteQueue { node: node.0, queue, outgoing, _manager: self.clone() })
    }

    /// From now on what is for `to` goes by way of `next`, a neighbour, which forwards it.
    pub fn route(&self, to: NodeId, next: NodeId) {
        self.routes().insert(to.0, next.0);
    }

    /// Messages that wait here to be forwarded, or to be known to have arrived.
    pub async fn waiting(&self) -> usize {
        self.inner.lines.lock().await.open.values().map(|queue| queue.stats().messages).sum()
    }

    /// Stops the channels. What was not forwarded stays here for the next life.
    pub async fn stop(&self) {
        self.inner.handle.stop().await;
        self.inner.lines.lock().await.tasks.shutdown().await;
    }

    fn routes(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        // Nothing panics while it is held.
        self.inner.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_hop(&self, to: u64) -> u64 {
        // A table may be the same on all nodes: whoever is the way goes on directly.
        self.routes().get(&to).copied().filter(|next| *next != self.inner.me).unwrap_or(to)
    }

    /// The transmission queue to a neighbour; opened, it is served.
    async fn line(&self, to: u64) -> Result<Queue, DeclareError> {
        let mut lines = self.inner.lines.lock().await;
        if let Some(queue) = lines.open.get(&to) {
            return Ok(queue.clone());
        }
        let settings = QueueConfig::new().deliveries_max(None);
        let queue = self.inner.queues.queue_with(&format!("{OUTGOING}{to}"), settings).await?;
        lines.open.insert(to, queue.clone());
        lines.tasks.spawn(channels::forward(
            to,
            queue.clone(),
            self.inner.handle.clone(),
            self.inner.desk.clone(),
        ));
        Ok(queue)
    }
}

impl RemoteQueue {
    /// Stores a message here, to be forwarded; returns when it is synced. It is in that queue later. Of what a message may
    /// [ask for](Message), its durability is always synced; all else is asked of the queue at the end.
    ///
    /// # Errors
    /// See [`PutError`]; they are those of the transmission queue.
    /// # Cancel safety
    /// As [`Queue::put`].
    pub async fn put(&self, message: impl Into<Message>) -> Result<Receipt, PutError> {
        self.outgoing.put(self.wrap(message.into())?).await
    }

    /// The transmission queue, and what to put into it: for a unit of work, which then takes part in both.
    pub(super) fn outgoing(&self, message: Message) -> Result<(&Queue, Message), PutError> {
        Ok((&self.outgoing, self.wrap(message)?))
    }

    fn wrap(&self, message: Message) -> Result<Message, PutError> {
        message.check()?;
        let envelope = Envelope {
            hops: 0,
            node: self.node,
            queue: self.queue.clone(),
            label: message.label(wall_now()),
            payload: message.payload.clone(),
        };
        // Its number must never be given again: the other side would take the next message for this one.
        let mut wrapped = Message::new(envelope.encode()).durability(Durability::Synced);
        wrapped.name = message.name;
        Ok(wrapped)
    }
}

impl fmt::Debug for QueueManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueManager").field("node", &self.inner.me).finish_non_exhaustive()
    }
}

/// When this directory came to be, as its channels know it: decided once, and durable before anything is sent.
async fn birth(queues: &Queues) -> Result<u64, WorkError> {
    let key = format!("{OWN_STATE}birth");
    if let Some(birth) = queues.state(&key).and_then(|value| Some(u64::from_le_bytes(*value.first_chunk()?)))
    {
        return Ok(birth);
    }
    let birth = wall_now().as_nanos().max(1);
    let mut work = queues.own_work();
    work.set(key, birth.to_le_bytes().to_vec());
    work.commit().await?;
    Ok(birth)
}

/// How far this directory has come with the messages of others.
fn places(queues: &Queues) -> Vec<Place> {
    queues.own_entries(PLACES).into_iter().filter_map(|(key, value)| read_place(&key, &value)).collect()
}

fn read_place(key: &str, value: &[u8]) -> Option<Place> {
    let (birth, through) = value.split_first_chunk()?;
    let (birth, through) = (u64::from_le_bytes(*birth), u64::from_le_bytes(*through.first_chunk()?));
    Some(Place { from: key.parse().ok()?, birth, through })
}

/// Hops that a message takes at most: a circle in the routes is noticed.
pub const HOPS_MAX: u8 = 16;
/// What cannot be put where it goes is here.
pub const UNDELIVERED: &str = "undelivered";
/// Transmission queues are called so, with the neighbour's number behind it.
const OUTGOING: &str = "outgoing.";
/// The places of peers, in the queues' own state.
const PLACES: &str = "place.";
