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
//! Restored    a directory that was restored from a copy sends to each neighbour again what waited when the copy was made, if
//!             that had gone to it since ([`QueueManager::forks`]); what is put after the restoring arrives once, as ever.
//! Limits      a message takes [`HOPS_MAX`] hops. What cannot be put where it goes (there is no such queue, it is too large
//!             for it, it went too far, nobody knows the way) is in the queue `undelivered` of the node where that showed. A
//!             full queue stops the channel that it is filled from, also one that rejects what others put. What others send
//!             is forwarded to nodes that this one knows, to at most [`LINES_MAX`] of them. A message travels in one piece: where
//!             the next node has a smaller limit, it is in `undelivered` with [`DeadReason::TooLarge`]
//!             (super::DeadReason::TooLarge), and what is behind it goes on. Of [`LIVES_MAX`] openings of a directory is
//!             known which message was put in which; a copy that is older may not be noticed as one.

mod channels;
mod envelope;
mod forward;
mod named;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_protocols::transfer::{BATCH_BYTES, Config, ITEM_BYTES, Life, Place, Transfer};
use quorate_transports::NodeId;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::channels::{Desk, Feed};
use self::envelope::Envelope;
use self::forward::{Line, forward};
use self::named::Routes;
use super::config::QueueConfig;
use super::error::{DeclareError, PutError, WorkError};
use super::face::{Queue, Queues, Receipt};
use super::message::{Durability, Message};
use super::room::wall_now;
use super::work::OWN_STATE;
use crate::driver::{self, Handle, Port, Setup};
use crate::node::{Channel, Node};

pub use self::named::{NamedPutError, NamedQueue};

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
    node: Node,
    queues: Queues,
    handle: Arc<Handle<Transfer>>,
    desk: Arc<Desk>,
    routes: Mutex<Routes>,
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
        // Whatever can come.
        let any_size =
            QueueConfig::new().deliveries_max(None).message_bytes_max(driver::message_bytes_max(node));
        let undelivered = queues.queue_with(UNDELIVERED, any_size).await?;
        let (birth, lives) = live(queues).await?;
        // What the manager before this one stored last may still be on its way, and its place with it.
        queues.room.journal.sync().await.map_err(|error| WorkError::Put(PutError::Journal(error)))?;
        let me = driver::new_life(node);
        let desk = Arc::new(Desk::default());
        let mut config = Config::new(birth, me.incarnation);
        config.message_bytes_max = driver::message_bytes_max(node);
        config.lives = lives;
        let machine = Transfer::new(config, places(queues), births(queues));
        let setup = Setup { port, me, machine, stable: None, wake: Arc::new(Notify::new()) };
        let handle = Arc::new(driver::start(node, setup, Feed::new(desk.clone())));
        let inner = Inner {
            node: node.clone(),
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

    /// From now on what is for `to` goes by way of `next`, a neighbour, which forwards it. What was put before, and what is put by a
    /// [`RemoteQueue`] that was opened before, goes the old way.
    pub fn route(&self, to: NodeId, next: NodeId) {
        self.routes().ways.insert(to.0, next.0);
    }

    /// Messages that wait here to be forwarded, or to be known to have arrived.
    pub async fn waiting(&self) -> usize {
        self.inner.lines.lock().await.open.values().map(|queue| queue.stats().messages).sum()
    }

    /// Messages of other nodes that not even the queue [`UNDELIVERED`] took, since the start; each was told in the log. They
    /// are larger than what a segment of the queues' journal holds, unless that queue was given a smaller limit.
    pub fn dropped(&self) -> u64 {
        self.inner.desk.dropped.load(Ordering::Relaxed)
    }

    /// How often since the start a neighbour had more messages from this directory than it knows of, and of another one: it
    /// was restored from a copy that was made before. Each was told in the log.
    pub fn forks(&self) -> u64 {
        self.inner.desk.forks.load(Ordering::Relaxed)
    }

    /// Stops the channels. What was not forwarded stays here for the next life.
    pub async fn stop(&self) {
        self.inner.handle.stop().await;
        self.inner.lines.lock().await.tasks.shutdown().await;
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        // Nothing panics while it is held.
        self.inner.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_hop(&self, to: u64) -> u64 {
        self.routes().next_hop(self.inner.me, to)
    }

    /// The transmission queue on the way to a node that others send to; `None` when this one does not know it. Whoever
    /// invents nodes must not make this one declare queues, which never go.
    async fn line_for_others(&self, to: u64) -> Result<Option<Queue>, DeclareError> {
        let next = self.next_hop(to);
        let lines = self.inner.lines.lock().await;
        if let Some(queue) = lines.open.get(&next) {
            return Ok(Some(queue.clone()));
        }
        let is_room = lines.open.len() < LINES_MAX;
        drop(lines);
        let node = &self.inner.node;
        let is_routed = {
            let routes = self.routes();
            routes.rest.is_some() || routes.ways.contains_key(&to)
        };
        let is_known = is_routed
            || !node.addresses_of(NodeId(next)).is_empty()
            || node.peers().iter().any(|peer| peer.node.0 == next);
        if is_room && is_known { self.line(next).await.map(Some) } else { Ok(None) }
    }

    /// The transmission queue to a neighbour; opened, it is served.
    async fn line(&self, to: u64) -> Result<Queue, DeclareError> {
        let mut lines = self.inner.lines.lock().await;
        if let Some(queue) = lines.open.get(&to) {
            return Ok(queue.clone());
        }
        let settings = settings(&self.inner.node);
        let queue = self.inner.queues.queue_with(&format!("{OUTGOING}{to}"), settings).await?;
        lines.open.insert(to, queue.clone());
        lines.tasks.spawn(forward(Line {
            to,
            queue: queue.clone(),
            queues: self.inner.queues.clone(),
            undelivered: self.inner.undelivered.number,
            handle: self.inner.handle.clone(),
            desk: self.inner.desk.clone(),
        }));
        Ok(queue)
    }
}

impl RemoteQueue {
    /// Stores a message here, to be forwarded; returns when it is synced. It is in that queue later. Of what a message may
    /// [ask for](Message), its durability is always synced; all else is asked of the queue at the end. So a repetition under a
    /// [name](Message::name) travels, too, and is known there: the receipt does not tell of it.
    ///
    /// # Errors
    /// See [`PutError`]; they are those of the transmission queue. [`PutError::TooLarge`] also when the connections of this
    /// node do not carry it; its size then counts what the message is wrapped in, a few hundred bytes at most.
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
        // Its number must never be given again: the other side would take the next message for this one. Its name is one of
        // the queue at the end: here it would be taken for the same name of another queue.
        Ok(Message::new(envelope.encode()).durability(Durability::Synced))
    }
}

impl fmt::Debug for QueueManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueManager").field("node", &self.inner.me).finish_non_exhaustive()
    }
}

/// Of the transmission queues: what they hold can be sent, and a message of the usual size also when it is wrapped.
fn settings(node: &Node) -> QueueConfig {
    let usual = QueueConfig::new().deliveries_max(None);
    let wrapped = usual.message_bytes_max + Envelope::BYTES_MAX;
    let carried = driver::message_bytes_max(node).saturating_sub(BATCH_BYTES + ITEM_BYTES);
    usual.message_bytes_max(wrapped.min(carried))
}

/// When this directory came to be, as its channels know it, and its lives with the one that begins: durable before anything
/// is sent.
async fn live(queues: &Queues) -> Result<(u64, Vec<Life>), WorkError> {
    let now = wall_now().as_nanos().max(1);
    let [birth_key, lives_key] = ["birth", "lives"].map(|key| format!("{OWN_STATE}{key}"));
    let mut work = queues.own_work();
    let known = queues.state(&birth_key).and_then(|value| number(&value));
    let birth = known.unwrap_or_else(|| {
        work.set(birth_key, now.to_le_bytes().to_vec());
        now
    });
    let stored = queues.state(&lives_key).unwrap_or_default();
    let stored = stored.chunks_exact(LIFE_BYTES);
    let mut lives: Vec<Life> =
        stored.filter_map(|life| Some(Life { first: number(life)?, mark: number(&life[8..])? })).collect();
    let first = queues.room.lock().books.next.as_u64();
    // A life in which nothing was put has marked nothing.
    lives.retain(|life| life.first < first);
    lives.push(Life { first, mark: now });
    lives.drain(..lives.len().saturating_sub(LIVES_MAX));
    let bytes = lives.iter().flat_map(|life| [life.first, life.mark]).flat_map(u64::to_le_bytes);
    work.set(lives_key, bytes.collect::<Vec<u8>>());
    work.commit().await?;
    Ok((birth, lives))
}

/// What single neighbours are told instead of that birth.
fn births(queues: &Queues) -> Vec<(u64, u64)> {
    let entries = queues.own_entries(BORN);
    entries.into_iter().filter_map(|(key, value)| Some((key.parse().ok()?, number(&value)?))).collect()
}

fn number(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*value.first_chunk()?))
}

/// How far this directory has come with the messages of others.
fn places(queues: &Queues) -> Vec<Place> {
    queues.own_entries(PLACES).into_iter().filter_map(|(key, value)| read_place(&key, &value)).collect()
}

fn read_place(key: &str, value: &[u8]) -> Option<Place> {
    let (birth, through) = (number(value)?, number(value.get(8..)?)?);
    // Older versions stored none.
    let mark = value.get(16..).and_then(number).unwrap_or(0);
    Some(Place { from: key.parse().ok()?, birth, through, mark })
}

/// Hops that a message takes at most: a circle in the routes is noticed.
pub const HOPS_MAX: u8 = 16;
/// Neighbours that this node forwards to for others, if it does not send to them itself. Each may have a full queue.
pub const LINES_MAX: usize = 1024;
/// What cannot be put where it goes is here.
pub const UNDELIVERED: &str = "undelivered";
/// Transmission queues are called so, with the neighbour's number behind it.
const OUTGOING: &str = "outgoing.";
/// Of so many openings of the directory is known which numbers they gave.
const LIVES_MAX: usize = 256;
const LIFE_BYTES: usize = 16;
/// What single neighbours are told to be the birth of the directory, in the queues' own state.
const BORN: &str = "born.";
/// The places of peers, in the queues' own state.
const PLACES: &str = "place.";
