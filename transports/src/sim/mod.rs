//! `sim://`: a network inside one process, under tokio's time, with faults from a seed (catalogue T5).
//!
//! Purpose     whole programs (nodes, services, groups) run unchanged over a network that can be cut, slowed and lost at
//!             will, thousands of times faster than real time.
//! Guarantee   under a current-thread runtime with paused time (`#[tokio::test(start_paused = true)]`) the same seed
//!             and the same program give the same trace, bit for bit: [`SimNetwork::trace_hash`] tells. Streams keep
//!             the contract of every transport: whole frames, in order, once, until the link breaks.
//! Method      the pure [`model`](crate::fault::model) decides each frame's arrival; a receiver sleeps until the first is
//!             due. Loss on a stream is a retransmission's delay. A cut path stalls a stream; data that stays
//!             unacknowledged for [`SimConfig::break_after`] breaks the end that sent it, and the other end learns
//!             of it only if the path to it is open.
//! Addresses   `sim://host:port`; port 0 lets the network choose. A host is named by its first use.
//! Limits      tokio's timers tick in milliseconds, so an idle receiver sees an arrival up to one late;
//!             acknowledgements take no time of their own; a crash cuts the host's sockets, its tasks are the
//!             caller's to abort. Windows, backlogs, queues and the trace are bounded by [`SimConfig`].

mod config;
mod connection;
mod core;
mod datagram;
mod link;
mod listen;
pub mod plan;
mod trace;
mod world;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crate::address::Address;
use crate::error::TransportError;
use crate::fault::model::{Clock, LinkModel};
use crate::transport::{BoxFuture, DatagramSocket, Link, Listener, Transport};

pub use config::SimConfig;
pub use plan::{SimFault, SimStep};
pub use trace::{SimEvent, SimEventKind};

use world::World;

/// The network and the handle that breaks it. Cheap to clone; all clones are the same network.
///
/// # Example
/// ```
/// use quorate_transports::sim::SimNetwork;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use quorate_transports::Transport;
/// let network = SimNetwork::new(42);
/// let _server = network.transport("a").listen(&"sim://a:80".parse()?).await?;
/// network.partition(&[&["a"], &["b"]]);
/// let refused = network.transport("b").connect(&"sim://a:80".parse()?).await.unwrap_err();
/// assert_eq!(refused.to_string(), "sim://a:80 did not answer within 10000 ms");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SimNetwork {
    shared: Arc<Shared>,
}

/// What all handles, transports, listeners and links share. The lock is held for one poll, never across an await.
struct Shared {
    world: Mutex<World>,
}

impl Shared {
    fn world(&self) -> Guard<'_> {
        // A panic elsewhere is a failed test already; the state is still the best there is to report from.
        Guard { world: self.world.lock().unwrap_or_else(PoisonError::into_inner), woken: Woken(Vec::new()) }
    }
}

/// The lock on the world. When it goes, those who were woken meanwhile are woken in order, outside of it: a waker may
/// run the other end at once.
struct Guard<'a> {
    world: MutexGuard<'a, World>,
    // Fields are dropped in this order: first the lock, then this, which wakes.
    woken: Woken,
}

impl Deref for Guard<'_> {
    type Target = World;
    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.woken.0 = std::mem::take(&mut self.world.core.woken);
    }
}

/// Wakes when it is dropped.
struct Woken(Vec<Waker>);

impl Drop for Woken {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl SimNetwork {
    /// A whole network with [`SimConfig::default`], its chance drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_config(seed, SimConfig::default())
    }

    /// A whole network.
    pub fn with_config(seed: u64, config: SimConfig) -> Self {
        Self { shared: Arc::new(Shared { world: Mutex::new(World::new(seed, config)) }) }
    }

    /// The sockets of `host`, for the host's present life: after a crash the old transport and all it gave stay
    /// dead, and the program's next life takes a new one.
    pub fn transport(&self, host: &str) -> SimTransport {
        let mut world = self.world();
        let host = world.core.host_id(host);
        SimTransport { shared: self.shared.clone(), host, life: world.core.life(host) }
    }

    /// Changes every link that has no behaviour of its own.
    pub fn set_default_link(&self, model: LinkModel) {
        self.world().change(SimEventKind::Change, |network| network.set_default(model));
    }

    /// Gives the way from one host to another a behaviour of its own.
    pub fn set_link(&self, from: &str, to: &str, model: LinkModel) {
        let mut world = self.world();
        let (from, to) = (world.core.host_id(from), world.core.host_id(to));
        world.change(SimEventKind::Change, |network| network.set_link(from, to, model));
    }

    /// Returns all links to the default.
    pub fn reset_links(&self) {
        self.world().change(SimEventKind::Change, |network| network.reset_links());
    }

    /// Partitions hosts of different groups from each other. A host in no group keeps all its links.
    pub fn partition(&self, groups: &[&[&str]]) {
        let mut world = self.world();
        let groups: Vec<Vec<u32>> =
            groups.iter().map(|group| group.iter().map(|host| world.core.host_id(host)).collect()).collect();
        let groups: Vec<&[u32]> = groups.iter().map(Vec::as_slice).collect();
        world.change(SimEventKind::Cut, |network| network.partition(&groups));
    }

    /// Cuts the ways from every one of `from` to every one of `to`, not the ways back. Streams between them carry
    /// data one way without acknowledgements, until they break.
    pub fn partition_one_way(&self, from: &[&str], to: &[&str]) {
        let mut world = self.world();
        let from: Vec<u32> = from.iter().map(|host| world.core.host_id(host)).collect();
        let to: Vec<u32> = to.iter().map(|host| world.core.host_id(host)).collect();
        world.change(SimEventKind::Cut, |network| network.partition_one_way(&from, &to));
    }

    /// Cuts a host off in both directions.
    pub fn isolate(&self, host: &str) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.change(SimEventKind::Cut, |network| network.isolate(host));
    }

    /// Ends a host's isolation; partitions remain.
    pub fn rejoin(&self, host: &str) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.change(SimEventKind::Heal, |network| network.rejoin(host));
    }

    /// Mends both directions between two hosts.
    pub fn heal_between(&self, a: &str, b: &str) {
        let mut world = self.world();
        let (a, b) = (world.core.host_id(a), world.core.host_id(b));
        world.change(SimEventKind::Heal, |network| network.heal(a, b));
    }

    /// Mends every cut and isolation.
    pub fn heal(&self) {
        self.world().change(SimEventKind::Heal, |network| network.heal_all());
    }

    /// True when nothing lies on the way from one host to another.
    pub fn reaches(&self, from: &str, to: &str) -> bool {
        let mut world = self.world();
        let (from, to) = (world.core.host_id(from), world.core.host_id(to));
        world.core.network.reaches(from, to)
    }

    /// The host's power fails: its sockets are dead at once, and nobody is told. Peers notice by silence, or by a
    /// reset when they send after [`restart`](Self::restart).
    pub fn crash(&self, host: &str) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.crash(host, false);
    }

    /// The host's program dies, as by SIGKILL: its sockets are dead at once, and the operating system resets its
    /// connections, so that reachable peers learn of it within a latency. The host stays up: the program's next
    /// life may start at once with a new [`transport`](Self::transport).
    pub fn kill(&self, host: &str) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.crash(host, true);
    }

    /// Brings a crashed host back, without sockets. Nothing happens when it is up.
    pub fn restart(&self, host: &str) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.restart(host);
    }

    /// Freezes the host's sockets, as a long garbage collection or SIGSTOP does: its polls stay pending, what arrives
    /// waits in its windows. Timers of its tasks run on: they belong to tokio.
    pub fn pause(&self, host: &str) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.set_paused(host, true);
    }

    /// Ends a pause.
    pub fn resume(&self, host: &str) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.set_paused(host, false);
    }

    /// Breaks every connection between two hosts, on both sides at once.
    pub fn reset_connections(&self, a: &str, b: &str) {
        let mut world = self.world();
        let (a, b) = (world.core.host_id(a), world.core.host_id(b));
        world.reset_connections(a, b);
    }

    /// Gives a host a wrong clock, for [`clock`](Self::clock) and [`sleep`](Self::sleep). tokio's own timers, and so those
    /// of nodes, keep true time on every host.
    pub fn set_clock(&self, host: &str, clock: Clock) {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.set_clock(host, clock);
    }

    /// What the host's clock shows now, from the network's first use on.
    pub fn clock(&self, host: &str) -> Duration {
        let mut world = self.world();
        let host = world.core.host_id(host);
        world.clock(host)
    }

    /// Sleeps until the host's clock has gone on by `time`: a timer as a program on a host with a wrong clock has it. A
    /// clock that is set meanwhile is looked at when the old one would have come there.
    ///
    /// # Cancel safety
    /// Dropping the future ends the timer.
    pub async fn sleep(&self, host: &str, time: Duration) {
        let until = self.clock(host).saturating_add(time);
        loop {
            let left = {
                let mut world = self.world();
                let host = world.core.host_id(host);
                world.until_clock(host, until)
            };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// True time since the network's first use.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.world().core.now())
    }

    /// The last [`SimConfig::trace_events_max`] events, oldest first.
    pub fn trace(&self) -> Vec<SimEvent> {
        self.world().core.trace.events()
    }

    /// A hash of all events so far, contents of frames included. Two runs of one seed that differ here are not the
    /// same run, and that is a bug of its own.
    pub fn trace_hash(&self) -> u64 {
        self.world().core.trace.hash()
    }

    /// Connections of which somebody still holds a half.
    pub fn connections(&self) -> usize {
        self.world().connection_count()
    }

    fn world(&self) -> Guard<'_> {
        self.shared.world()
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNetwork").field("trace_hash", &self.trace_hash()).finish_non_exhaustive()
    }
}

/// The sockets of one life of one host. Cheap to clone.
#[derive(Clone)]
pub struct SimTransport {
    shared: Arc<Shared>,
    host: u32,
    life: u64,
}

impl fmt::Debug for SimTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim transport of {}#{}", self.shared.world().core.host_name(self.host), self.life)
    }
}

impl Transport for SimTransport {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move { listen::listen(&self.shared, self.host, self.life, address) })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(link::connect(&self.shared, self.host, self.life, address))
    }

    fn bind<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn DatagramSocket>, TransportError>> {
        Box::pin(async move { datagram::bind(&self.shared, self.host, self.life, address) })
    }
}

/// Splits `sim://host:port`.
fn parse(address: &Address) -> Result<(&str, u16), TransportError> {
    let bad =
        |reason: &str| TransportError::BadAddress { address: address.clone(), reason: reason.to_owned() };
    if address.scheme() != SCHEME {
        return Err(bad("the scheme is not sim"));
    }
    let (host, port) =
        address.rest().rsplit_once(':').ok_or_else(|| bad("there is no port, as in sim://host:1"))?;
    let port = port.parse().map_err(|_| bad("the port is not a number up to 65535"))?;
    if host.is_empty() {
        return Err(bad("there is no host, as in sim://host:1"));
    }
    Ok((host, port))
}

const SCHEME: &str = "sim";
