//! Frames between tasks of one process, without a socket.
//!
//! Guarantee   as the contract says; bounded memory per direction; deterministic: nothing depends on time or chance.
//! Names       `mem://anything`; `mem://` alone takes a fresh name. A [`Mem`] is a world of its own: names of two
//!             worlds do not meet, so tests do not disturb each other. Clones share their world. A node that was given
//!             none takes the world [of the process](Mem::of_process).
//! Limits      [`MemConfig`].

mod config;
mod link;
mod listen;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

pub use config::MemConfig;

use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{BoxFuture, DatagramSocket, Link, Listener, Transport};

/// The transport `mem://`: a world of names inside this process.
#[derive(Clone, Debug, Default)]
pub struct Mem {
    world: Arc<World>,
}

impl Mem {
    /// A new, empty world.
    pub fn new() -> Self {
        Self::default()
    }

    /// The one world that everything in this process shares which has no world of its own.
    pub fn of_process() -> Self {
        static WORLD: OnceLock<Mem> = OnceLock::new();
        WORLD.get_or_init(Self::new).clone()
    }

    /// A new, empty world with limits of your own.
    pub fn with_config(config: MemConfig) -> Self {
        Self { world: Arc::new(World { config, names: Mutex::default() }) }
    }
}

impl Transport for Mem {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = listen::MemListener::open(&self.world, address)?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let refused = || TransportError::Refused { address: address.clone() };
            let (backlog, local) = {
                let mut names = self.world.names();
                let backlog = names.listeners.get(address).cloned().ok_or_else(refused)?;
                (backlog, names.fresh("dialler"))
            };
            // Waits while the backlog is full; fails when the listener goes.
            let limit_ms = self.world.config.connect_ms_max;
            let room = match timeout(Duration::from_millis(limit_ms), backlog.reserve()).await {
                Ok(room) => room.map_err(|_| refused())?,
                Err(_) => return Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
            };
            let (ours, theirs) = link::pair(&self.world.config, local, address.clone());
            room.send(theirs);
            Ok(ours)
        })
    }

    fn bind<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn DatagramSocket>, TransportError>> {
        Box::pin(async move {
            let socket = listen::MemDatagrams::open(&self.world, address)?;
            Ok(Box::new(socket) as Box<dyn DatagramSocket>)
        })
    }
}

/// The two ends of a link that no listener has to accept: for a node that talks to itself, and for tests.
pub fn link_pair(config: &MemConfig) -> (Link, Link) {
    let name = |rest| match Address::new(SCHEME, rest) {
        Ok(address) => address,
        Err(error) => unreachable!("a constant name is well-formed: {error}"),
    };
    link::pair(config, name("left"), name("right"))
}

/// What all clones of a [`Mem`] share.
#[derive(Debug, Default)]
struct World {
    config: MemConfig,
    names: Mutex<Names>,
}

impl World {
    fn names(&self) -> MutexGuard<'_, Names> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Names {
    listeners: BTreeMap<Address, mpsc::Sender<Link>>,
    sockets: BTreeMap<Address, mpsc::Sender<listen::Datagram>>,
    fresh: u64,
}

impl Names {
    /// A name that nobody was given before.
    fn fresh(&mut self, kind: &str) -> Address {
        loop {
            self.fresh += 1;
            if let Ok(address) = Address::new(SCHEME, &format!("{kind}-{}", self.fresh))
                && !self.listeners.contains_key(&address)
                && !self.sockets.contains_key(&address)
            {
                return address;
            }
        }
    }
}

const SCHEME: &str = "mem";
