//! What all clones of a node and its tasks share.
//!
//! Locks       the table of peers may be held while taking a peer's state; that may be held while taking `running`,
//!             `tasks` or a connection's own lock, never the other way; `up` is held while handlers are told, and nothing
//!             is held while taking it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::connection::{
    Budget, CodecId, Connection, ConnectionStats, End, Ended, HandshakeError, Hello, Lane,
    SendError as ConnectionSendError,
};
use quorate_transports::gate::Handshakes;
use quorate_transports::{Address, BoxFuture, Credentials, Identity, Incarnation, NodeId, Registry};
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::Left;
use super::builder::{Admit, Limits};
use super::channel::{CHANNEL_BYTES, Channel, ChannelGuard, ChannelHandler, Channels, PeerEvent};
use super::directory::Directory;
use super::error::{ChannelTaken, ConnectError, SendError};
use super::peer::{Peer, PeerState, Worth};

pub(super) struct Inner {
    pub(super) identity: Identity,
    pub(super) addresses: Vec<Address>,
    pub(super) directory: Option<Directory>,
    pub(super) registry: Registry,
    pub(super) codec: CodecId,
    pub(super) limits: Limits,
    pub(super) admit: Option<Box<Admit>>,
    pub(super) channels: Arc<Channels>,
    pub(super) serial: AtomicU64,
    /// Machines begun so far.
    pub(super) machines: AtomicU64,
    /// What [`Node::fresh_number`](super::Node::fresh_number) gave last.
    pub(super) numbers: AtomicU32,
    pub(super) counters: Counters,
    pub(super) handshakes: Handshakes,
    /// What incomplete messages of all connections may take.
    pub(super) assembly_budget: Budget,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    /// What handlers were told last, with the rank of the connection.
    up: Mutex<BTreeMap<NodeId, (Identity, u64)>>,
    pub(super) loopback: Mutex<Option<Connection>>,
    running: Mutex<Running>,
    /// True from the moment at which the node begins to stop: what runs on it ends, too.
    pub(super) stopping: watch::Sender<bool>,
    /// Told of every connection that ended.
    ended: Notify,
    tasks: Mutex<Tasks>,
    /// For each listener: ends when its place is free, once it and its links are gone.
    pub(super) releases: Mutex<Vec<BoxFuture<'static, ()>>>,
    pub(super) runtime: Handle,
    rng: Mutex<Xoshiro256PlusPlus>,
    /// The outcome of the shutdown; held while it runs.
    outcome: tokio::sync::Mutex<Option<Left>>,
}

/// Connections with a living task.
#[derive(Default)]
struct Running {
    is_stopping: bool,
    connections: BTreeMap<u64, (Identity, Connection)>,
    /// Sums of those that ended.
    totals: ConnectionStats,
    left: Left,
}

#[derive(Default)]
struct Tasks {
    /// Listening, shaking hands, dialling: stopped first.
    helpers: JoinSet<()>,
    connections: JoinSet<()>,
    /// The node was dropped: nobody would end what starts now.
    is_aborted: bool,
}

/// Which of the node's tasks one is.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Helper,
    Connection,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) breaks: AtomicU64,
    pub(super) dials_failed: AtomicU64,
    pub(super) handshakes_refused: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) expired: AtomicU64,
}

/// Totals of a node since its start; they only grow, but for `peers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct NodeStats {
    /// Peers connected now.
    pub peers: usize,
    /// Connections that came to be.
    pub connections: u64,
    /// Connections that ended otherwise than by agreement.
    pub breaks: u64,
    /// Attempts to dial that failed.
    pub dials_failed: u64,
    /// Incoming links that did not become connections.
    pub handshakes_refused: u64,
    /// Messages handed to links.
    pub messages_sent: u64,
    /// Frame bytes handed to links.
    pub bytes_sent: u64,
    /// Messages that came in.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Frames for channels that nobody opened.
    pub unclaimed: u64,
    /// Messages that were too short to name a channel.
    pub malformed: u64,
    /// Messages that a lane was too full for; their senders were told.
    pub refused: u64,
    /// Messages that waited in a connection when it broke.
    pub lost: u64,
    /// Messages that waited for a connection too long, or for another life of the peer.
    pub expired: u64,
}

/// What the user chose.
pub(super) struct Settings {
    pub(super) codec: CodecId,
    pub(super) limits: Limits,
    pub(super) admit: Option<Box<Admit>>,
    pub(super) seed: u64,
}

/// What a node knows of its way to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PeerStats {
    /// The connection that is used now, lane by lane, with its round trip.
    pub connection: Option<ConnectionStats>,
    /// Connections that came to be used so far; all but the first are reconnects.
    pub connections: u64,
    /// Attempts that failed, or connections that broke soon, in a row.
    pub failures: u32,
    /// Messages that wait for a connection.
    pub backlog_messages: usize,
    /// What they take in bytes.
    pub backlog_bytes: usize,
}

impl Inner {
    pub(super) fn new(
        identity: Identity,
        addresses: Vec<Address>,
        directory: Option<Directory>,
        registry: Registry,
        settings: Settings,
    ) -> Self {
        let Settings { codec, limits, admit, seed } = settings;
        Self {
            identity,
            addresses,
            directory,
            registry,
            codec,
            handshakes: Handshakes::new(limits.handshakes_max),
            assembly_budget: Budget::new(limits.assembly_bytes_max),
            limits,
            admit,
            channels: Arc::default(),
            serial: AtomicU64::new(0),
            machines: AtomicU64::new(0),
            numbers: AtomicU32::new(0),
            counters: Counters::default(),
            peers: RwLock::default(),
            up: Mutex::default(),
            loopback: Mutex::default(),
            running: Mutex::default(),
            stopping: watch::Sender::new(false),
            ended: Notify::new(),
            tasks: Mutex::default(),
            releases: Mutex::default(),
            runtime: Handle::current(),
            rng: Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
            outcome: tokio::sync::Mutex::default(),
        }
    }

    // What the handle calls.

    pub(super) async fn connect(self: &Arc<Self>, address: &Address) -> Result<Identity, ConnectError> {
        if let Some(identity) = self.connected_at(address) {
            self.keep(identity.node, address);
            return Ok(identity);
        }
        let mut insists = false;
        loop {
            match Self::dial_once(self, address, None, insists).await {
                Ok(identity) => {
                    self.keep(identity.node, address);
                    return Ok(identity);
                }
                // The connection that the other side prefers stands already or is on its way. If it does not come,
                // the other side holds a dead one: insist, once.
                Err(ConnectError::Handshake(HandshakeError::Duplicate { identity })) if !insists => {
                    let waiting = self.wait_connected(identity.node);
                    if tokio::time::timeout(DUPLICATE_WAIT_MAX, waiting).await.is_ok() {
                        self.keep(identity.node, address);
                        return Ok(identity);
                    }
                    insists = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn add_address(self: &Arc<Self>, node: NodeId, address: Address) {
        if node != self.identity.node
            && let Ok(peer) = self.enter(node, Worth::Attempt, |state| state.give_address(address))
        {
            peer.changed.notify_waiters();
        }
    }

    pub(super) fn hear_address(&self, node: NodeId, address: Address) {
        // Without room for it, it is as if it had not been said.
        if node != self.identity.node
            && let Ok(peer) = self.enter(node, Worth::Hearsay, |state| state.hear_address(address))
        {
            peer.changed.notify_waiters();
        }
    }

    pub(super) fn addresses_of(&self, node: NodeId) -> Vec<Address> {
        let peer = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned();
        peer.map(|peer| peer.state().addresses()).unwrap_or_default()
    }

    pub(super) fn forget(self: &Arc<Self>, node: NodeId) {
        let peer = self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
        if let Some(peer) = peer {
            let mut state = peer.state();
            let dropped = state.clear();
            self.counters.expired.fetch_add(dropped as u64, Ordering::Relaxed);
            let active = state.active.iter().map(|active| (active.serial, active.connection.clone()));
            let beside = state.active.iter().flat_map(|active| &active.spares).chain(&state.lingering);
            let closing: BTreeMap<_, _> =
                active.chain(beside.map(|spare| (spare.serial, spare.connection.clone()))).collect();
            closing.values().for_each(Connection::close);
            let inner = self.clone();
            self.spawn(Role::Helper, async move {
                // A peer whose user takes nothing lives, but says no goodbye.
                let ended = inner.wait_ended(|serial| closing.contains_key(&serial));
                if tokio::time::timeout(FORGET_WAIT_MAX, ended).await.is_err() {
                    closing.values().for_each(Connection::abort);
                }
            });
            // A connection that is still closing ends with this entry; a new one gets a new entry.
            drop(state);
            peer.changed.notify_waiters();
        }
    }

    pub(super) fn peer_stats(&self, node: NodeId) -> Option<PeerStats> {
        let peer = self.peers().get(&node).cloned()?;
        let state = peer.state();
        Some(PeerStats {
            connection: state.active.as_ref().map(|active| active.connection.stats()),
            connections: state.connections,
            failures: state.failures,
            backlog_messages: state.backlog.messages.len(),
            backlog_bytes: state.backlog.bytes,
        })
    }

    pub(super) fn credentials(&self, node: NodeId) -> Option<Credentials> {
        let peer = self.peers().get(&node).cloned()?;
        let state = peer.state();
        state.active.as_ref().and_then(|active| active.credentials.clone())
    }

    pub(super) fn connected(&self) -> Vec<Identity> {
        let peers = self.peers();
        peers.values().filter_map(|peer| peer.state().active.as_ref().map(|active| active.identity)).collect()
    }

    pub(super) fn open(
        this: &Arc<Self>,
        channel: Channel,
        handler: Arc<dyn ChannelHandler>,
    ) -> Result<ChannelGuard, ChannelTaken> {
        // Held over both, so that the handler learns of each peer exactly once.
        let up = this.up();
        let guard = this.channels.open(channel, handler.clone())?;
        for (identity, _) in up.values() {
            handler.on_peer(PeerEvent::Up(*identity));
        }
        guard.introduce();
        Ok(guard)
    }

    pub(super) fn send(
        this: &Arc<Self>,
        to: NodeId,
        life: Option<Incarnation>,
        lane: Lane,
        channel: Channel,
        parts: &[&[u8]],
        body: Bytes,
    ) -> Result<(), SendError> {
        if to == this.identity.node {
            if life.is_some_and(|life| life != this.identity.incarnation) {
                return Err(SendError::Unreachable { to });
            }
            return send_on(&Self::loopback(this)?, to, lane, channel, parts, body);
        }
        let peers = this.peers();
        let Some(peer) = peers.get(&to) else {
            return Err(if this.is_stopping() { SendError::ShutDown } else { SendError::Unreachable { to } });
        };
        let mut state = peer.state();
        if let Some(active) = &state.active {
            if life.is_some_and(|life| life != active.identity.incarnation) {
                return Err(SendError::Unreachable { to });
            }
            match send_on(&active.connection, to, lane, channel, parts, body.clone()) {
                // It is about to end: wait for the next one.
                Err(SendError::Unreachable { .. }) => {}
                sent => return sent,
            }
        }
        if this.is_stopping() {
            return Err(SendError::ShutDown);
        }
        if !state.is_dialable() {
            return Err(SendError::Unreachable { to });
        }
        let size = CHANNEL_BYTES + parts.iter().map(|part| part.len()).sum::<usize>() + body.len();
        let limit = this.limits.connection.message_bytes_max;
        if size > limit {
            return Err(SendError::TooLarge { size, limit });
        }
        let limit = this.limits.backlog_bytes_max;
        if !state.backlog.push(limit, life, lane, channel, parts, &body) {
            return Err(SendError::Full { to, lane, limit });
        }
        Self::ensure_dialling(this, peer, &mut state);
        Ok(())
    }

    pub(super) async fn ready(this: &Arc<Self>, to: NodeId, lane: Lane) -> Result<(), SendError> {
        if to == this.identity.node {
            let ready = Self::loopback(this)?.ready(lane).await;
            return ready.map_err(|_| SendError::ShutDown);
        }
        loop {
            let Some(peer) = this.peers().get(&to).cloned() else {
                return Err(SendError::Unreachable { to });
            };
            let mut changed = pin!(peer.changed.notified());
            changed.as_mut().enable();
            let connection = {
                let state = peer.state();
                if this.is_stopping() {
                    return Err(SendError::ShutDown);
                }
                match &state.active {
                    Some(active) if active.connection.is_open() => Some(active.connection.clone()),
                    _ if !state.is_dialable() => return Err(SendError::Unreachable { to }),
                    _ if state.backlog.bytes <= this.limits.backlog_bytes_max / 2 => return Ok(()),
                    _ => None,
                }
            };
            match connection {
                Some(connection) => {
                    if connection.ready(lane).await.is_ok() {
                        return Ok(());
                    }
                    // It closed meanwhile: look again, its successor or the backlog may have room.
                }
                None => changed.await,
            }
        }
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> Left {
        let mut outcome = self.outcome.lock().await;
        if let Some(left) = &*outcome {
            return left.clone();
        }
        let connections: Vec<_> = {
            let mut running = self.running();
            running.is_stopping = true;
            running.connections.values().cloned().collect()
        };
        self.stopping.send_replace(true);
        // Listeners and diallers first: what they hold is free when they are gone.
        let mut helpers = std::mem::take(&mut self.tasks().helpers);
        helpers.shutdown().await;
        for peer in self.peers().values() {
            let mut state = peer.state();
            let mut running = self.running();
            running.left.unsent_messages += state.backlog.messages.len();
            running.left.unsent_bytes += state.backlog.bytes;
            drop(running);
            state.backlog.clear();
            drop(state);
            peer.changed.notify_waiters();
        }
        for (_, connection) in &connections {
            connection.close();
        }
        if tokio::time::timeout(deadline, self.wait_ended(|_| true)).await.is_err() {
            for (_, connection) in self.running().connections.values() {
                connection.abort();
            }
            // They end at their next turn; only a handler that blocks its thread can hold them up.
            let _ = tokio::time::timeout(ABORT_WAIT_MAX, self.wait_ended(|_| true)).await;
        }
        let mut tasks = std::mem::take(&mut self.tasks().connections);
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        // A socket may have to say goodbye still, and whoever starts here again wants its place.
        let _ = tokio::time::timeout(RELEASE_WAIT_MAX, self.wait_released()).await;
        if let Some(directory) = &self.directory {
            directory.release();
        }
        let left = self.running().left.clone();
        *outcome = Some(left.clone());
        tracing::info!(node = %self.identity, ?left, "node stopped");
        left
    }

    /// Waits until the places of all listeners are free. Nothing is forgotten when it is dropped.
    async fn wait_released(&self) {
        poll_fn(|cx| {
            let mut releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
            releases.retain_mut(|release| release.as_mut().poll(cx).is_pending());
            if releases.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Ends everything now, without waiting.
    pub(super) fn abort(&self) {
        self.running().is_stopping = true;
        self.stopping.send_replace(true);
        let mut tasks = self.tasks();
        tasks.is_aborted = true;
        tasks.helpers.abort_all();
        tasks.connections.abort_all();
        drop(tasks);
        if let Some(directory) = &self.directory {
            directory.release();
        }
    }

    pub(super) fn stats(&self) -> NodeStats {
        let peers = self.connected().len();
        let running = self.running();
        let mut sums = running.totals;
        for (_, connection) in running.connections.values() {
            add(&mut sums, &connection.stats());
        }
        drop(running);
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NodeStats {
            peers,
            connections: read(&counters.connections),
            breaks: read(&counters.breaks),
            dials_failed: read(&counters.dials_failed),
            handshakes_refused: read(&counters.handshakes_refused),
            messages_sent: sums.messages_sent,
            bytes_sent: sums.bytes_sent,
            messages_received: sums.messages_received,
            bytes_received: sums.bytes_received,
            unclaimed: read(&self.channels.unclaimed),
            malformed: read(&self.channels.malformed),
            refused: sums.lanes.iter().map(|lane| lane.messages_refused).sum(),
            lost: read(&counters.lost),
            expired: read(&counters.expired),
        }
    }

    // What the tasks call.

    pub(super) fn hello(&self, wanted: Option<NodeId>, insists: bool) -> Hello {
        let limit = self.limits.connection.message_bytes_max;
        let mut hello = Hello::new(self.identity, self.codec, limit, &self.addresses);
        hello.wanted = wanted;
        hello.insists = insists;
        hello
    }

    pub(super) fn peer_or_insert(&self, node: NodeId) -> Result<Arc<Peer>, ConnectError> {
        self.enter(node, Worth::Attempt, |_| {})
    }

    /// The peer's entry, and what is noted in it. For a new one in a full table the one of the least worth goes, up to
    /// `at_most`.
    fn enter(
        &self,
        node: NodeId,
        at_most: Worth,
        note: impl FnOnce(&mut PeerState),
    ) -> Result<Arc<Peer>, ConnectError> {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&node) {
            note(&mut peer.state());
            return Ok(peer.clone());
        }
        let limit = self.limits.peers_max;
        if peers.len() >= limit {
            let worths = peers.iter().filter_map(|(node, peer)| Some((peer.state().worth()?, *node)));
            let least = worths.min().filter(|(worth, _)| *worth <= at_most);
            let (_, least) = least.ok_or(ConnectError::TooManyPeers { limit })?;
            if let Some(peer) = peers.remove(&least) {
                // Whoever dials it finds that there is no reason to any more.
                let dropped = peer.state().clear();
                self.counters.expired.fetch_add(dropped as u64, Ordering::Relaxed);
                peer.changed.notify_waiters();
            }
        }
        let peer = Arc::new(Peer::new(node));
        // Before somebody else takes the entry for one of no worth.
        note(&mut peer.state());
        peers.insert(node, peer.clone());
        Ok(peer)
    }

    /// Tells the handlers that a connection stands, unless a later one was announced before.
    pub(super) fn announce_up(&self, identity: Identity, rank: u64) {
        let mut up = self.up();
        let before = up.get(&identity.node).copied();
        if before.is_some_and(|(_, later)| later > rank) {
            return;
        }
        up.insert(identity.node, (identity, rank));
        match before {
            Some((before, _)) if before == identity => {}
            before => {
                if let Some((before, _)) = before {
                    tracing::info!(node = %self.identity, peer = %before, "peer down");
                    self.channels.tell(PeerEvent::Down(before));
                }
                tracing::info!(node = %self.identity, peer = %identity, "peer up");
                self.channels.tell(PeerEvent::Up(identity));
            }
        }
    }

    /// Tells the handlers that a connection ended, unless a later one replaced it.
    pub(super) fn announce_down(&self, identity: Identity, rank: u64) {
        let mut up = self.up();
        if up.get(&identity.node) == Some(&(identity, rank)) {
            up.remove(&identity.node);
            tracing::info!(node = %self.identity, peer = %identity, "peer down");
            self.channels.tell(PeerEvent::Down(identity));
        }
    }

    /// Whom the handlers take for connected.
    #[cfg(test)]
    pub(super) fn announced(&self) -> Vec<Identity> {
        self.up().values().map(|(identity, _)| *identity).collect()
    }

    /// Enters a connection among the running ones; false when the node is stopping.
    pub(super) fn register(&self, serial: u64, identity: Identity, connection: &Connection) -> bool {
        let mut running = self.running();
        if running.is_stopping {
            return false;
        }
        running.connections.insert(serial, (identity, connection.clone()));
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Takes a connection out of the running ones; `ended` is `None` when its task was aborted or panicked.
    pub(super) fn unregister(&self, serial: u64, ended: Option<&Ended>) {
        let is_closed = ended.is_some_and(|ended| matches!(ended.end, End::Closed));
        let mut running = self.running();
        let Some((identity, connection)) = running.connections.remove(&serial) else { return };
        let (left, stats) = match ended {
            Some(ended) => (ended.left, ended.stats),
            None => (connection.left(), connection.stats()),
        };
        add(&mut running.totals, &stats);
        if !is_closed {
            self.counters.breaks.fetch_add(1, Ordering::Relaxed);
            self.counters.lost.fetch_add(left.messages as u64, Ordering::Relaxed);
            if running.is_stopping {
                running.left.unsent_messages += left.messages;
                running.left.unsent_bytes += left.bytes;
                if !running.left.unconfirmed.contains(&identity) {
                    running.left.unconfirmed.push(identity);
                }
            }
        }
        drop(running);
        self.ended.notify_waiters();
    }

    /// Starts a task, or drops it when the node was dropped.
    pub(super) fn spawn(&self, role: Role, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        if tasks.is_aborted {
            // What the task cleans up behind itself may look here again.
            drop(tasks);
            return;
        }
        let set = match role {
            Role::Helper => &mut tasks.helpers,
            Role::Connection => &mut tasks.connections,
        };
        while set.try_join_next().is_some() {}
        set.spawn_on(task, &self.runtime);
    }

    /// How long to pause after so many failures in a row.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let doubled = self.limits.backoff_min.saturating_mul(1 << (failures - 1).min(20));
        let pause = doubled.min(self.limits.backoff_max);
        let half = u64::try_from(pause.as_nanos() / 2).unwrap_or(u64::MAX).max(1);
        let random = self.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
        pause - Duration::from_nanos(random % half)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.running().is_stopping
    }

    fn connected_at(&self, address: &Address) -> Option<Identity> {
        self.peers().values().find_map(|peer| {
            let state = peer.state();
            let active = state.active.as_ref().filter(|active| active.connection.is_open())?;
            (state.given.contains(address) || state.told.contains(address)).then_some(active.identity)
        })
    }

    fn keep(self: &Arc<Self>, node: NodeId, address: &Address) {
        if let Ok(peer) = self.peer_or_insert(node) {
            let mut state = peer.state();
            state.give_address(address.clone());
            state.is_kept = true;
            Self::ensure_dialling(self, &peer, &mut state);
        }
    }

    /// Starts dialling when there is a reason to and nobody does.
    pub(super) fn ensure_dialling(this: &Arc<Self>, peer: &Arc<Peer>, state: &mut PeerState) {
        if !state.is_dialling && state.wants_connection() && !this.is_stopping() {
            state.is_dialling = true;
            this.spawn(Role::Helper, Self::redial(this.clone(), peer.clone()));
        }
    }

    async fn wait_connected(&self, node: NodeId) {
        loop {
            // The peer that a duplicate names may have no entry yet; its connection makes one.
            let Ok(peer) = self.peer_or_insert(node) else { return std::future::pending().await };
            let mut changed = pin!(peer.changed.notified());
            changed.as_mut().enable();
            if peer.state().active.is_some() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until none of the connections with such serial numbers is left.
    async fn wait_ended(&self, which: impl Fn(u64) -> bool) {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if !self.running().connections.keys().any(|serial| which(*serial)) {
                return;
            }
            ended.await;
        }
    }

    pub(super) fn peers(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> MutexGuard<'_, BTreeMap<NodeId, (Identity, u64)>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends with the channel before the parts.
pub(super) fn send_on(
    connection: &Connection,
    to: NodeId,
    lane: Lane,
    channel: Channel,
    parts: &[&[u8]],
    body: Bytes,
) -> Result<(), SendError> {
    let sent = behind(&channel.0.to_le_bytes(), parts, |parts| connection.send(lane, parts, body));
    sent.map_err(|error| translate(error, to))
}

/// Does something with `parts` behind the channel's header.
pub(super) fn behind<T>(header: &[u8], parts: &[&[u8]], act: impl FnOnce(&[&[u8]]) -> T) -> T {
    if parts.len() < PARTS_INLINE {
        let mut all: [&[u8]; PARTS_INLINE] = [&[]; PARTS_INLINE];
        all[0] = header;
        all[1..=parts.len()].copy_from_slice(parts);
        act(&all[..=parts.len()])
    } else {
        let all: Vec<&[u8]> = std::iter::once(header).chain(parts.iter().copied()).collect();
        act(&all)
    }
}

/// What a connection's refusal means to the node's user.
pub(super) fn translate(error: ConnectionSendError, to: NodeId) -> SendError {
    match error {
        ConnectionSendError::Full { lane, limit } => {
            tracing::trace!(peer = %to, %lane, limit, "lane full");
            SendError::Full { to, lane, limit }
        }
        ConnectionSendError::TooLarge { size, limit } => SendError::TooLarge { size, limit },
        _ => SendError::Unreachable { to },
    }
}

fn add(sums: &mut ConnectionStats, more: &ConnectionStats) {
    for (sum, lane) in sums.lanes.iter_mut().zip(&more.lanes) {
        sum.messages_refused += lane.messages_refused;
    }
    sums.messages_sent += more.messages_sent;
    sums.bytes_sent += more.bytes_sent;
    sums.messages_received += more.messages_received;
    sums.bytes_received += more.bytes_received;
}

/// How long a dialler that was turned away waits for the preferred connection before it insists.
const DUPLICATE_WAIT_MAX: Duration = Duration::from_millis(500);
/// How long the connection with a forgotten peer may take to flush and hear its goodbye before it is broken off.
const FORGET_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long aborted connections may take to notice.
const ABORT_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a node that stops waits for the places of its listeners. Over QUIC a connection that has ended answers what was
/// under way for three times as long as an answer may take, over UDP for up to 2 s when the peer says nothing more.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(3);
/// Parts of a message that need no allocation to put the channel before them.
const PARTS_INLINE: usize = 8;
