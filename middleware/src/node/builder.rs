//! Starting a node.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quorate_transports::connection::{CodecId, ConnectionConfig, Lane, MESSAGE_BYTES_MIN};
use quorate_transports::{
    Address, AddressError, Credentials, Identity, Incarnation, Listener, NodeId, Registry, Transport,
};

use super::directory::Directory;
use super::error::StartError;
use super::inner::{Inner, Settings};
use super::{Alive, Node};

/// What a node is made of. Every part has a default; [`start`](Self::start) checks them together.
#[derive(Default)]
pub struct NodeBuilder {
    id: Option<NodeId>,
    incarnation: Option<Incarnation>,
    listen: Vec<Result<Address, AddressError>>,
    transports: Vec<Arc<dyn Transport>>,
    directory: Option<PathBuf>,
    codec: CodecId,
    limits: Limits,
    admit: Option<Box<Admit>>,
    seed: Option<u64>,
}

/// Decides on a peer: what it says that it is, and what its medium knows of it.
pub(super) type Admit = dyn Fn(Identity, Option<&Credentials>) -> bool + Send + Sync;

impl NodeBuilder {
    /// The node's lasting id, unique among the nodes that may meet. Without it the directory's owner, or else a
    /// random one.
    pub fn id(mut self, id: impl Into<NodeId>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Which life this is, for a node without a directory; a later life needs a larger number. Without it the
    /// microseconds since 1970. A directory counts for itself and ignores this.
    pub fn incarnation(mut self, incarnation: Incarnation) -> Self {
        self.incarnation = Some(incarnation);
        self
    }

    /// Listens there too: `"tcp://127.0.0.1:0"`. A node that listens nowhere can still dial.
    pub fn listen<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        self.listen.push(address.try_into().map_err(Into::into));
        self
    }

    /// Uses a transport. Those that need no settings are there without being named (`mem`, and when their features are
    /// on `tcp`, `udp`, `unix`), unless another one serves their scheme.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transports.push(Arc::new(transport));
        self
    }

    /// Owns a directory: it keeps the id and counts the lives. Made if need be.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// Refuses peers with another codec at the handshake. Without it none is compared there.
    pub fn codec(mut self, codec: CodecId) -> Self {
        self.codec = codec;
        self
    }

    /// Other limits than the defaults.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Takes only peers of which `decide` says yes, dialled ones and diallers. It is asked once per connection, before
    /// anything is delivered, with the identity that the peer claims and the credentials that its medium vouches for,
    /// if any. Without it everybody is taken whom the transport lets in: a claimed identity is then believed.
    pub fn admit(
        mut self,
        decide: impl Fn(Identity, Option<&Credentials>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.admit = Some(Box::new(decide));
        self
    }

    /// Where all of the node's chance comes from. Without it, from id and incarnation.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts the node in the current tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running, but a directory may have counted a life.
    /// # Panics
    /// Outside of a tokio runtime with time enabled, as tokio does.
    /// # Cancel safety
    /// Dropping the future leaves nothing running.
    pub async fn start(self) -> Result<Node, StartError> {
        self.limits.check()?;
        let asked = self.listen.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut registry = Registry::new();
        for transport in self.transports {
            registry.add_shared(transport)?;
        }
        registry.add_missing(quorate_transports::mem::Mem::of_process());
        #[cfg(feature = "tcp")]
        registry.add_missing(quorate_transports::tcp::Tcp::new());
        #[cfg(feature = "udp")]
        registry.add_missing(quorate_transports::udp::Udp::new());
        #[cfg(all(unix, feature = "unix"))]
        registry.add_missing(quorate_transports::unix::Unix::new());
        let random_id = || NodeId(RandomState::new().hash_one("node id"));
        let (directory, identity) = match &self.directory {
            Some(path) => {
                let (directory, identity) = Directory::open(path, self.id, random_id)?;
                (Some(directory), identity)
            }
            None => {
                let incarnation = self.incarnation.unwrap_or_else(life_by_the_clock);
                (None, Identity::new(self.id.unwrap_or_else(random_id), incarnation))
            }
        };
        let mut listeners: Vec<Box<dyn Listener>> = Vec::new();
        for address in &asked {
            listeners.push(registry.listen(address).await?);
        }
        let addresses = listeners.iter().map(|listener| listener.local_address()).collect();
        let seed = self.seed.unwrap_or(identity.node.0 ^ identity.incarnation.0.rotate_left(32));
        let settings = Settings { codec: self.codec, limits: self.limits, admit: self.admit, seed };
        let inner = Arc::new(Inner::new(identity, addresses, directory, registry, settings));
        for listener in listeners {
            Inner::spawn_accepting(&inner, listener);
        }
        tracing::info!(node = %identity, "node started");
        Ok(Node { _alive: Arc::new(Alive(inner.clone())), inner })
    }
}

/// The limits of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Of each connection: message size, bytes per lane, heartbeat, handshake.
    pub connection: ConnectionConfig,
    /// Bytes that may wait for a peer that is not connected. Default 1 MiB, at most the smallest lane. Below half of
    /// it any message is taken, so one message may exceed it.
    pub backlog_bytes_max: usize,
    /// How long a message may wait for a peer across failed attempts to dial it. Default 5 s. Longer means that a
    /// peer which comes back hears older things.
    pub backlog_wait_max: Duration,
    /// The pause after the first failed attempt. Default 50 ms; doubles with each further one.
    pub backoff_min: Duration,
    /// The longest pause between attempts. Default 2 s. Each pause is shortened by up to a half at random, so that
    /// many nodes do not come back at once.
    pub backoff_max: Duration,
    /// Peers that the node knows at the same time, connected or not. Default 1024. For a newcomer one is forgotten that
    /// is not connected and that the user did not name; first those that nobody but others has told of.
    pub peers_max: usize,
    /// Handshakes of incoming connections at the same time. Default 64. Beyond it the oldest one of the address that
    /// has most of them is given up.
    pub handshakes_max: usize,
    /// Bytes that incomplete messages of all peers may take together. Default 256 MiB, at least one message; a peer
    /// whose part does not fit is cut off. Whole messages do not count.
    pub assembly_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connection: ConnectionConfig::default(),
            backlog_bytes_max: 1024 * 1024,
            backlog_wait_max: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            peers_max: 1024,
            handshakes_max: 64,
            assembly_bytes_max: 256 * 1024 * 1024,
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), StartError> {
        let connection = &self.connection;
        let smallest_lane = connection.lane_bytes_max.into_iter().min().unwrap_or(0);
        let rules = [
            (connection.message_bytes_max < MESSAGE_BYTES_MIN, "connection.message_bytes_max", "below 1024"),
            (
                u32::try_from(connection.message_bytes_max).is_err(),
                "connection.message_bytes_max",
                "above 4 GiB",
            ),
            (smallest_lane < MESSAGE_BYTES_MIN, "connection.lane_bytes_max", "a lane has less than 1024"),
            (connection.heartbeat.is_zero(), "connection.heartbeat", "zero"),
            (
                connection.silence_max / 2 < connection.heartbeat,
                "connection.silence_max",
                "less than two heartbeats",
            ),
            (connection.handshake_max.is_zero(), "connection.handshake_max", "zero"),
            (self.backlog_bytes_max > smallest_lane, "backlog_bytes_max", "more than a lane takes"),
            (self.backoff_min.is_zero(), "backoff_min", "zero"),
            (self.backoff_max < self.backoff_min, "backoff_max", "less than backoff_min"),
            (self.peers_max == 0, "peers_max", "zero"),
            (self.handshakes_max == 0, "handshakes_max", "zero"),
            (
                self.assembly_bytes_max < connection.message_bytes_max,
                "assembly_bytes_max",
                "less than one message",
            ),
        ];
        debug_assert_eq!(connection.lane_bytes_max.len(), Lane::COUNT);
        match rules.into_iter().find(|(is_broken, ..)| *is_broken) {
            Some((_, name, reason)) => Err(StartError::Limit { name, reason }),
            None => Ok(()),
        }
    }
}

/// Larger than in every earlier life, as long as the clock is not set back across a restart.
fn life_by_the_clock() -> Incarnation {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Incarnation(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
