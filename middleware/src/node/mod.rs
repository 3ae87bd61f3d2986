//! The node: one per process, everything that communicates is opened on it.
//!
//! Purpose     owns identity and incarnation, the listeners, one connection per peer, the channels that the ways to
//!             communicate share, and the end of it all.
//! Guarantee   messages of one lane to one peer arrive whole, in order, once, as long as one connection lasts. When
//!             it breaks, what was under way may be lost: the layers above repeat. A peer that restarts is a new
//!             [`Identity`]: `Down` for the old one comes before `Up` for the new one.
//!             Two nodes that dial each other at once have two connections for a moment, and what is sent on one may
//!             overtake what was sent on the other.
//! Method      two nodes that dial each other at once keep one connection; a broken one is dialled again with
//!             backoff and jitter. Senders encode straight into the connection's lanes; one task per connection
//!             writes and reads and hands batches to the channels' handlers.
//! Repeatable  no hash map order, no wall clock with [`NodeBuilder::incarnation`] given, one seed for all chance: a
//!             node over a simulated network under paused time does the same again.
//! Limits      [`Limits`]; every one has a name, and what exceeds it gets an error or a counter.

mod builder;
mod channel;
mod convert;
mod directory;
mod error;
mod inner;
mod link;
mod outlet;
mod peer;

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use builder::{Limits, NodeBuilder};
pub(crate) use channel::CHANNEL_BYTES;
pub use channel::{Channel, ChannelGuard, ChannelHandler, PeerEvent};
pub use convert::{identity_of, lane_of, process_id_of};
pub use error::{ChannelTaken, ConnectError, SendError, StartError};
pub use inner::{NodeStats, PeerStats};
pub use outlet::{Outlet, OutletBatch};
pub use quorate_transports::connection::{CodecId, ConnectionConfig, ConnectionStats, Lane, LaneStats};
pub use quorate_transports::{Address, Credentials, Identity, Incarnation, NodeId, Transport};

use inner::Inner;

/// A running node. Cheap to clone; all clones are the same node.
///
/// Dropping the last clone aborts: connections break, what waits is lost. [`shutdown`](Self::shutdown) flushes.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
    _alive: Arc<Alive>,
}

impl Node {
    /// Begins a node.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Who this node is, in this life.
    pub fn identity(&self) -> Identity {
        self.inner.identity
    }

    /// Where it can be dialled.
    pub fn addresses(&self) -> Vec<Address> {
        self.inner.addresses.clone()
    }

    /// A number that nothing else in this life of the node got: 1, 2, 3, ... For what is opened on the node and needs
    /// a name of its own on the wire.
    pub(crate) fn fresh_number(&self) -> u32 {
        self.inner.numbers.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// True from the moment at which the node begins to stop. What runs on the node ends then by itself.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.inner.stopping.subscribe()
    }

    /// Bytes of the largest message that [`send`](Self::send) takes, the channel's own 8 included.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.inner.limits.connection.message_bytes_max
    }

    /// The directory that it owns, when it was given one. Files and directories named `node*` in it are the node's.
    pub fn directory(&self) -> Option<&Path> {
        self.inner.directory.as_ref().map(|directory| directory.path())
    }

    /// Connects to whoever stands at `address`, or finds that it is connected already, and keeps the peer connected
    /// from now on: a broken connection is dialled again until [`forget`](Self::forget) or shutdown.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is kept then, and trying again later is up to the caller.
    /// # Cancel safety
    /// Dropping the future drops the attempt.
    pub async fn connect(&self, address: &Address) -> Result<Identity, ConnectError> {
        self.inner.connect(address).await
    }

    /// Notes where a node can be dialled. A send to it then connects by itself.
    ///
    /// At most 8 addresses are kept for a node; the oldest goes.
    pub fn add_address(&self, node: NodeId, address: Address) {
        self.inner.add_address(node, address);
    }

    /// Notes what somebody else says of where a node can be dialled. It is tried last, and what is known of a node by
    /// hearsay only is the first to be forgotten when there are too many peers.
    pub(crate) fn hear_address(&self, node: NodeId, address: Address) {
        self.inner.hear_address(node, address);
    }

    /// Where a node can be dialled, as far as this one was told: by its user, by the node itself, by others.
    pub fn addresses_of(&self, node: NodeId) -> Vec<Address> {
        self.inner.addresses_of(node)
    }

    /// Tells apart the machines that this life of the node runs, one after the other, counting from one.
    pub(crate) fn next_machine(&self) -> u64 {
        self.inner.machines.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Closes the connection with a node gracefully, in the background, and no longer dials it. It may dial us. A peer
    /// that does not say goodbye within 30 s is cut off.
    pub fn forget(&self, node: NodeId) {
        self.inner.forget(node);
    }

    /// What the medium of the connection with a node vouches for: the process on a local socket, the certificate of TLS.
    /// `None` when it is not connected, or its medium vouches for nothing.
    pub fn credentials(&self, node: NodeId) -> Option<Credentials> {
        self.inner.credentials(node)
    }

    /// The peers that are connected now.
    pub fn peers(&self) -> Vec<Identity> {
        self.inner.connected()
    }

    /// Opens a channel: from now on its frames go to `handler`, which is first told of every connected peer. Frames
    /// of a channel that nobody opened are counted and dropped, and their sender is told
    /// ([`ChannelHandler::on_refused`]).
    ///
    /// # Errors
    /// [`ChannelTaken`].
    pub fn open(
        &self,
        channel: Channel,
        handler: Arc<dyn ChannelHandler>,
    ) -> Result<ChannelGuard, ChannelTaken> {
        Inner::open(&self.inner, channel, handler)
    }

    /// What opened `channel` on this very node, when it can be used without messages.
    pub(crate) fn local(&self, channel: Channel) -> Option<Box<dyn Any + Send>> {
        self.inner.channels.local(channel)
    }

    /// Queues one message for a node: `parts` are copied, `body` is not copied when it is large. Never blocks.
    ///
    /// Without a connection, but with a known address, the message waits while the node is dialled in the
    /// background; at most [`Limits::backlog_wait_max`] across failed attempts. A node may send to itself.
    ///
    /// Taken does not mean received: see the module's guarantee.
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued.
    pub fn send(
        &self,
        to: NodeId,
        lane: Lane,
        channel: Channel,
        parts: &[&[u8]],
        body: Bytes,
    ) -> Result<(), SendError> {
        Inner::send(&self.inner, to, None, lane, channel, parts, body)
    }

    /// As [`send`](Self::send), but only to that life of the node: a message is never delivered to a later life.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::Unreachable`] also when the node is connected in another life.
    pub fn send_to_life(
        &self,
        to: Identity,
        lane: Lane,
        channel: Channel,
        parts: &[&[u8]],
        body: Bytes,
    ) -> Result<(), SendError> {
        Inner::send(&self.inner, to.node, Some(to.incarnation), lane, channel, parts, body)
    }

    /// The way to that life of a node, for whoever sends to it often. `None` unless it is connected now.
    pub fn outlet(&self, to: Identity) -> Option<Outlet> {
        Outlet::find(&self.inner, to)
    }

    /// Starts a task of something that was opened on the node. Its owner ends it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.inner.runtime.spawn(task).abort_handle()
    }

    /// Waits until a message of any permitted size to the node would be taken. Others may be faster.
    ///
    /// # Errors
    /// [`SendError::Unreachable`] when there is neither a connection nor an address, [`SendError::ShutDown`].
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn ready(&self, to: NodeId, lane: Lane) -> Result<(), SendError> {
        Inner::ready(&self.inner, to, lane).await
    }

    /// Stops: takes no more sends and connections, flushes, says goodbye to every peer and waits for theirs, at most
    /// `deadline`. Afterwards the addresses and the directory are free: over QUIC and UDP, where a socket answers what was
    /// under way for a while, that takes some 100 ms more, and up to 3 s when a peer says nothing.
    ///
    /// A second call waits for the same end.
    /// # Cancel safety
    /// Dropping the future leaves the node stopping; call again to wait.
    pub async fn shutdown(&self, deadline: Duration) -> Left {
        self.inner.shutdown(deadline).await
    }

    /// Figures of the way to one peer; `None` when the node does not know it.
    pub fn peer_stats(&self, node: NodeId) -> Option<PeerStats> {
        self.inner.peer_stats(node)
    }

    /// Totals since the start.
    pub fn stats(&self) -> NodeStats {
        self.inner.stats()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.inner.identity)
    }
}

/// What a shutdown could not finish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Left {
    /// Messages of which a part had not been handed to a link.
    pub unsent_messages: usize,
    /// Their bytes, overhead included.
    pub unsent_bytes: usize,
    /// Peers that did not confirm in time that they received everything.
    pub unconfirmed: Vec<Identity>,
}

impl Left {
    /// True when every message was received by its peer.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Ends the tasks with the last handle: they hold the inner part and would live for ever.
struct Alive(Arc<Inner>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.abort();
    }
}
