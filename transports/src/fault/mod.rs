//! Faults on purpose, on any transport (catalogue T6), and the one model of what networks do to messages.
//!
//! Purpose     [`Faulty`] wraps a transport, real or not, and a [`FaultHandle`] drops, delays, doubles, reorders, corrupts,
//!             throttles and partitions its frames at run time. [`model`] is the pure part (no IO, no clock, no
//!             task); the simulated network and the simulator of protocol machines ask the same model.
//! Guarantee   without faults a wrapped transport keeps the whole contract. With [`Manner::Stream`] it still does: faults
//!             only delay, stall and break links. [`Manner::Frames`] breaks the contract on purpose, frame by frame.
//! Method      faults act where frames arrive, so that delays hold up nobody's sender; cuts act where they leave as
//!             well, so that one wrapped side is enough for a partition. Places are told apart by *sites*: each
//!             [`wrap`](FaultHandle::wrap) names one, and an address belongs to the site that listens or dials there.
//! Limits      [`FaultConfig::held_bytes_max`] held back per link, beyond which the link is not read. Repeatable only
//!             as far as the wrapped transport and the runtime are.
//!
//! ```
//! use quorate_transports::Transport;
//! use quorate_transports::fault::FaultHandle;
//! use quorate_transports::mem::Mem;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (faults, world) = (FaultHandle::new(42), Mem::new());
//! let (ann, bob) = (faults.wrap(1, world.clone()), faults.wrap(2, world));
//! let listener = ann.listen(&"mem://ann".parse()?).await?;
//! faults.change(|network| network.partition(&[&[1], &[2]]));
//! assert!(bob.connect(&listener.local_address()).await.is_err());
//! # Ok(()) }
//! ```

mod config;
mod datagram;
mod link;
mod listen;
pub mod model;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

pub use config::{FaultConfig, Manner};

use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{BoxFuture, DatagramSocket, Link, Listener, Transport};
use model::{Network, Rng};

/// The site of whoever was not wrapped by this handle.
pub const ELSEWHERE: u64 = u64::MAX;

/// Controls the faults of every transport that it has wrapped. Cheap to clone.
#[derive(Clone)]
pub struct FaultHandle {
    shared: Arc<Shared>,
}

impl FaultHandle {
    /// No faults yet; chance from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_config(seed, FaultConfig::default())
    }

    /// No faults yet, with limits of your own.
    pub fn with_config(seed: u64, config: FaultConfig) -> Self {
        let state = State {
            network: Network::default(),
            rng: Rng::new(seed),
            manner: Manner::Stream,
            sites: BTreeMap::new(),
            stats: FaultStats::default(),
            epoch: None,
            waiting: BTreeMap::new(),
            links: 0,
        };
        Self { shared: Arc::new(Shared { config, state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Wraps a transport; what it listens on and dials from is `site`. One site may wrap several transports.
    pub fn wrap<T: Transport>(&self, site: u64, transport: T) -> Faulty<T> {
        Faulty { inner: transport, shared: self.shared.clone(), site }
    }

    /// Changes links, cuts and isolations between sites, from the next frame on; what is held back already stays so.
    /// Links that waited for a cut to heal look again.
    pub fn change<R>(&self, change: impl FnOnce(&mut Network<u64>) -> R) -> R {
        let (result, waiting) = {
            let mut state = self.shared.state();
            (change(&mut state.network), std::mem::take(&mut state.waiting))
        };
        waiting.into_values().for_each(Waker::wake);
        self.shared.changed.notify_waiters();
        result
    }

    /// What a fault does to a link. [`Manner::Stream`] at first.
    pub fn set_manner(&self, manner: Manner) {
        self.shared.state().manner = manner;
        self.change(|_| ());
    }

    /// What was done so far.
    pub fn stats(&self) -> FaultStats {
        self.shared.state().stats
    }
}

impl fmt::Debug for FaultHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultHandle").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What faults have done, over all links of a handle. Totals that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FaultStats {
    /// Frames and datagrams that came by.
    pub frames: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost before a cut.
    pub cut: u64,
    /// Lost before a full queue.
    pub congested: u64,
    /// Arrived twice.
    pub duplicated: u64,
    /// Copies with a flipped bit.
    pub corrupted: u64,
    /// Copies that arrived later than they came.
    pub delayed: u64,
    /// Links that were reset.
    pub resets: u64,
}

/// A transport with faults. Made by [`FaultHandle::wrap`].
pub struct Faulty<T> {
    inner: T,
    shared: Arc<Shared>,
    site: u64,
}

impl<T: Clone> Clone for Faulty<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone(), site: self.site }
    }
}

impl<T: fmt::Debug> fmt::Debug for Faulty<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).field("site", &self.site).finish_non_exhaustive()
    }
}

impl<T: Transport> Transport for Faulty<T> {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = self.inner.listen(address).await?;
            Ok(listen::wrap(&self.shared, self.site, listener))
        })
    }

    /// As the wrapped transport's; and before a cut, waits for it to heal for [`FaultConfig::connect_timeout`].
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let limit = self.shared.config.connect_timeout;
            let waiting = tokio::time::timeout(limit, self.shared.until_open(self.site, address)).await;
            if waiting.is_err() {
                let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                return Err(TransportError::TimedOut { address: address.clone(), limit_ms });
            }
            let link = self.inner.connect(address).await?;
            Ok(link::wrap(&self.shared, self.site, Some(address), link))
        })
    }

    fn bind<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn DatagramSocket>, TransportError>> {
        Box::pin(async move {
            let socket = self.inner.bind(address).await?;
            Ok(datagram::wrap(&self.shared, self.site, socket))
        })
    }
}

/// What a handle and all that it has wrapped share.
struct Shared {
    config: FaultConfig,
    state: Mutex<State>,
    /// Told after every change, for those who connect.
    changed: Notify,
}

struct State {
    network: Network<u64>,
    rng: Rng,
    manner: Manner,
    /// Who listens or has dialled where.
    sites: BTreeMap<Address, u64>,
    stats: FaultStats,
    epoch: Option<Instant>,
    /// Halves of links that wait for a change.
    waiting: BTreeMap<u64, Waker>,
    /// Numbers given to halves of links.
    links: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until both ways between a site and whoever listens at an address are open.
    async fn until_open(&self, site: u64, address: &Address) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state();
                let there = state.site_of(address);
                if state.network.reaches(site, there) && state.network.reaches(there, site) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Makes an address known as the site's for as long as the returned value lives.
    fn register(self: &Arc<Self>, address: Address, site: u64) -> Registered {
        self.state().sites.insert(address.clone(), site);
        Registered { shared: self.clone(), address }
    }
}

impl State {
    fn site_of(&self, address: &Address) -> u64 {
        self.sites.get(address).copied().unwrap_or(ELSEWHERE)
    }

    fn epoch(&mut self) -> Instant {
        *self.epoch.get_or_insert_with(Instant::now)
    }

    /// Nanoseconds since the first use.
    fn now(&mut self) -> u64 {
        let elapsed: Duration = Instant::now().saturating_duration_since(self.epoch());
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    fn fresh_id(&mut self) -> u64 {
        self.links += 1;
        self.links
    }
}

/// An address that belongs to a site.
struct Registered {
    shared: Arc<Shared>,
    address: Address,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.state().sites.remove(&self.address);
    }
}
