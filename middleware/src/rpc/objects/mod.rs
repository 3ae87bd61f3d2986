//! Remote objects: references that are passed as arguments and returned as results, and called like any service.
//!
//! Purpose     [`Objects::export`] makes a [`Remote`] of an implementation of a `#[service]` trait. It travels with calls,
//!             to whoever and on to others, and is called by its methods wherever it is: a callback is a reference that
//!             the caller hands in.
//! Guarantee   an object lives as long as anybody holds a reference to it and is heard by its owner within the lease; then
//!             it is dropped. Dropping a [`Remote`] lets go of it. A reference that has lost its object says so by a
//!             typed error: the object is gone, its node is gone, or another life of its node is there ([`Dangling`]).
//! Method      every node has one table of its objects, called over one binding for each pair of nodes, and one machine
//!             ([`quorate_protocols::objects`]) that keeps who holds what: reference listing with leases, batched for each
//!             peer.
//! Trust       a reference that has come makes its receiver dial the addresses in it, after those that it knows of the owner; a
//!             node that nobody but such a reference has told of is forgotten first when there are too many. A reference is
//!             no capability: objects are numbered in their order, and whoever reaches the node can call any of them. Let an
//!             object that not all may call look at its [`caller`](super::caller), or admit only peers that may.
//! Limits      [`ObjectsOptions`]. Cycles of references over several processes are not found; the references within an
//!             object are dropped with it.
//!
//! ```
//! use quorate::node::Node;
//! use quorate::rpc::{Objects, Remote};
//! use quorate::service;
//!
//! #[service]
//! pub trait Clock {
//!     /// Calls `bell` back so many times, and returns when it is done.
//!     async fn ring(&self, bell: Remote<BellClient>, times: u32);
//! }
//!
//! #[service]
//! pub trait Bell {
//!     async fn strike(&self, hour: u32);
//! }
//!
//! struct Tower;
//!
//! impl Clock for Tower {
//!     async fn ring(&self, bell: Remote<BellClient>, times: u32) {
//!         for hour in 1..=times {
//!             // Whoever rings does not mind when the bell is gone.
//!             let _ = bell.strike(hour).await;
//!         }
//!     }
//! }
//!
//! struct Loud(tokio::sync::mpsc::Sender<u32>);
//!
//! impl Bell for Loud {
//!     async fn strike(&self, hour: u32) {
//!         let _ = self.0.try_send(hour);
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let server = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let _tower_objects = Objects::on(&server)?;
//! let _serving = server.serve("clock", ClockServer::new(Tower))?;
//!
//! let node = Node::builder().start().await?;
//! let objects = Objects::on(&node)?;
//! let clock = ClockClient::connect(&node, "clock", &server.addresses()[0]).await?;
//! let (strikes, mut heard) = tokio::sync::mpsc::channel(8);
//! clock.ring(objects.export(BellServer::new(Loud(strikes)))?, 2).await?;
//! assert_eq!((heard.recv().await, heard.recv().await), (Some(1), Some(2)));
//! // Nobody holds the bell any more: soon it is dropped.
//! assert_eq!(heard.recv().await, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod counter;
mod home;
mod pledges;
mod promise;
mod remote;
mod target;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quorate_protocols::objects::ObjectsConfig;
pub use quorate_protocols::objects::ObjectsStats;

use super::client::{Client, ClientOptions};
use super::schema::Semantics;
use super::server::{ServeOptions, ServeStats, Service, Serving};
use crate::codec::Codec;
use crate::node::Node;

use counter::Counter;
pub(super) use home::Home;
pub(super) use pledges::keeping;
pub(super) use promise::Promise;
pub use promise::{Failed, Promised};
pub use remote::{ObjectId, Remote};
use target::Use;
pub(super) use target::{Target, Wrapped, wrap};

/// A generated client, as what a reference to an object is called by.
pub trait Stub: Clone + Send + Sync + 'static {
    /// How its arguments and results are encoded.
    type Codec: Codec;

    /// A stub that makes its calls by this client.
    fn by(client: Client<Self::Codec>) -> Self;

    /// The client that it makes its calls by.
    fn client(&self) -> &Client<Self::Codec>;
}

/// A generated server, as what can be exported.
pub trait Skeleton: Service {
    /// What it is called by elsewhere.
    type Stub: Stub;
}

/// How objects are exported and references held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectsOptions {
    /// How long the objects that a peer holds are kept for it when it is silent; a peer that died frees them then. Peers
    /// renew four times as often, with one message for all references. All nodes should say the same. Default 30 s:
    /// shorter frees sooner, and loses references in shorter partitions. At most a year.
    pub lease: Duration,
    /// How long a reference may be on its way to its receiver before its sender lets go of it. Default 60 s, at most a year.
    pub transit: Duration,
    /// Objects exported at once, at most. Default 65,536.
    pub exported_max: usize,
    /// Objects of this node that one peer may hold at once, at most. Default 16,384. Beside them, 16,384 references may
    /// be on their way to it.
    pub peer_max: usize,
    /// References to objects of other nodes held at once, at most. Default 65,536, of at most 4,096 nodes.
    pub held_max: usize,
    /// How the calls of references behave.
    pub calls: ClientOptions,
    /// How calls of exported objects are served, all together.
    pub serve: ServeOptions,
}

impl Default for ObjectsOptions {
    fn default() -> Self {
        let config = ObjectsConfig::default();
        Self {
            lease: config.lease,
            transit: config.transit,
            exported_max: config.exported_max,
            peer_max: config.holder_max,
            held_max: config.held_max,
            calls: ClientOptions::default(),
            serve: ServeOptions::default(),
        }
    }
}

/// Why references cannot be used on a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectsError {
    /// They are opened already: there is one table of objects in a node.
    #[error("the node has its objects opened already")]
    AlreadyOpen,
    /// A lease or a transit of nothing.
    #[error("the {0} must be longer than nothing")]
    NoTime(&'static str),
    /// A lease or a transit of more than a year.
    #[error("the {0} must not be longer than a year")]
    TooLong(&'static str),
}

/// Why an object is not exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// So many objects are exported already.
    #[error("{limit} objects are exported already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// A method is declared `#[exactly_once]`: its records would outlive the object.
    #[error("method {method:?} is exactly-once, and an object does not outlive its process")]
    ExactlyOnce {
        /// The method.
        method: &'static str,
    },
    /// The objects of the node are closed.
    #[error("the objects of the node are closed")]
    Closed,
}

/// What has become of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Dangling {
    /// Its node lives, and does not have the object any more.
    #[error("the object is gone")]
    ObjectGone,
    /// Its node has not been heard for longer than the lease. When it is heard again and still has the object, the
    /// reference is as good as before. After ten leases this node asks it no more by itself: a call, or another reference
    /// of that node, makes it ask again.
    #[error("the node of the object is gone")]
    NodeGone,
    /// Its node has begun another life; objects do not outlive theirs.
    #[error("the node of the object has begun another life")]
    OtherLife,
}

/// The remote objects of a node: those that it exports, and the references that it holds. A node that sends or receives
/// references has opened this. Dropping it closes: all exported objects are dropped, all references dangle.
pub struct Objects {
    home: Arc<Home>,
    serving: Option<Serving>,
}

impl Objects {
    /// Opens the remote objects of the node, with the usual limits.
    ///
    /// Must be called within a tokio runtime.
    /// # Errors
    /// [`ObjectsError::AlreadyOpen`].
    pub fn on(node: &Node) -> Result<Self, ObjectsError> {
        Self::with(node, ObjectsOptions::default())
    }

    /// As [`on`](Self::on), with limits of the caller's choice.
    ///
    /// # Errors
    /// [`ObjectsError`].
    pub fn with(node: &Node, options: ObjectsOptions) -> Result<Self, ObjectsError> {
        let times = [("lease", options.lease), ("transit", options.transit)];
        if let Some((name, _)) = times.iter().find(|(_, time)| time.is_zero()) {
            return Err(ObjectsError::NoTime(name));
        }
        if let Some((name, _)) = times.iter().find(|(_, time)| *time > TIME_MAX) {
            return Err(ObjectsError::TooLong(name));
        }
        let home = Home::open(node, options).map_err(|_| ObjectsError::AlreadyOpen)?;
        let counter = Counter(Arc::downgrade(&home));
        let serving = node.serve_with(counter::SERVICE, counter, options.serve);
        let serving = serving.map_err(|_| ObjectsError::AlreadyOpen)?;
        Ok(Self { home, serving: Some(serving) })
    }

    /// Makes a reference to an object of this node: `service` is called by whoever gets it. It is dropped when nobody
    /// holds a reference any more.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export<S: Skeleton>(&self, service: S) -> Result<Remote<S::Stub>, ExportError> {
        let once = |semantics: Semantics| semantics == Semantics::ExactlyOnce;
        if let Some(method) = service.schema().methods.iter().find(|method| once(method.semantics)) {
            return Err(ExportError::ExactlyOnce { method: method.name });
        }
        let reference = self.home.export(Box::new(service))?;
        Remote::of_use(&self.home, reference).ok_or(ExportError::Closed)
    }

    /// Drops an object although others hold it: they find it gone. False when it is not this node's, or is gone.
    pub fn withdraw<K: Stub>(&self, object: &Remote<K>) -> bool {
        self.home.withdraw(object.reference())
    }

    /// Totals and present numbers.
    pub fn stats(&self) -> ObjectsStats {
        self.home.stats()
    }

    /// What became of the calls of exported objects that came by messages, of all together.
    pub fn calls(&self) -> ServeStats {
        self.serving.as_ref().map(Serving::stats).unwrap_or_default()
    }

    /// Takes no new calls of objects, lets those that execute finish, at most until `deadline`; then tells the owners of
    /// what is held here that it is not held any more, and drops all exported objects. Tells how many handlers had to be
    /// dropped.
    ///
    /// # Cancel safety
    /// Dropping the future closes at once.
    pub async fn shutdown(mut self, deadline: Duration) -> usize {
        match self.serving.take() {
            Some(serving) => serving.shutdown(deadline).await,
            None => 0,
        }
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        self.serving.take();
        self.home.close();
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "remote objects of {:?}", self.home.node)
    }
}

/// Far below what the clock can count in multiples.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
