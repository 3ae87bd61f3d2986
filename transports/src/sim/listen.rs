//! Listening in the simulated network.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::connection::Half;
use super::link::link;
use super::world::{Backlog, Place, World};
use super::{SCHEME, Shared, SimEventKind, parse};
use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{Link, Listener};

/// Opens a listener on the transport's own host.
pub(super) fn listen(
    shared: &Arc<Shared>,
    host: u32,
    life: u64,
    address: &Address,
) -> Result<Box<dyn Listener>, TransportError> {
    let mut world = shared.world();
    let (place, local) =
        world.place(host, life, address, |world, place| world.listeners.contains_key(place))?;
    world.core.record(SimEventKind::Listen, Some(host), None, 0, 0, u64::from(place.1));
    world.listeners.insert(place, Backlog { life, waiting: VecDeque::new(), waker: None });
    drop(world);
    Ok(Box::new(SimListener { shared: shared.clone(), place, life, local }))
}

impl World {
    /// Reads an own address and chooses a port where that is left open.
    pub(super) fn place(
        &mut self,
        host: u32,
        life: u64,
        address: &Address,
        is_taken: impl Fn(&Self, &Place) -> bool,
    ) -> Result<(Place, Address), TransportError> {
        let (name, port) = parse(address)?;
        if self.core.host_name(host).as_ref() != name {
            let reason = format!("this transport belongs to host {}", self.core.host_name(host));
            return Err(TransportError::BadAddress { address: address.clone(), reason });
        }
        if !self.core.is_alive(host, life) {
            return Err(TransportError::Io {
                address: address.clone(),
                source: ErrorKind::NetworkDown.into(),
            });
        }
        let in_use = || TransportError::InUse { address: address.clone() };
        let port = match port {
            0 => (0..PORT_TRIES)
                .map(|_| self.core.fresh_port(host))
                .collect::<Vec<_>>()
                .into_iter()
                .find(|port| !is_taken(self, &(host, *port)))
                .ok_or_else(in_use)?,
            port if is_taken(self, &(host, port)) => return Err(in_use()),
            port => port,
        };
        let local = Address::new(SCHEME, &format!("{name}:{port}")).map_err(|error| {
            TransportError::BadAddress { address: address.clone(), reason: error.to_string() }
        })?;
        Ok(((host, port), local))
    }
}

struct SimListener {
    shared: Arc<Shared>,
    place: Place,
    life: u64,
    local: Address,
}

impl Listener for SimListener {
    fn local_address(&self) -> Address {
        self.local.clone()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        let mut world = self.shared.world();
        if world.core.park(self.place.0, self.life, cx) {
            return Poll::Pending;
        }
        let life = self.life;
        // A listener of a dead host waits for ever: an error at once would let its task spin under paused time.
        let Some(backlog) = world.listeners.get_mut(&self.place).filter(|backlog| backlog.life == life)
        else {
            return Poll::Pending;
        };
        let Some(id) = backlog.waiting.pop_front() else {
            backlog.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        world.core.record(SimEventKind::Accept, Some(self.place.0), None, id, 0, 0);
        let Some((local, peer)) = world.addresses(id, 1) else { return Poll::Pending };
        drop(world);
        Poll::Ready(Ok(link(&self.shared, id, 1, local, peer)))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut world = self.shared.world();
        let life = self.life;
        if world.listeners.get(&self.place).is_some_and(|backlog| backlog.life == life)
            && let Some(backlog) = world.listeners.remove(&self.place)
        {
            for id in backlog.waiting {
                world.release(id, 1, Half::Sender);
                world.release(id, 1, Half::Receiver);
            }
        }
    }
}

/// Ports tried before a host counts as full.
const PORT_TRIES: usize = 64;
