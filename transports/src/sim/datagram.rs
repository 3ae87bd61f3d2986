//! Datagrams in the simulated network: lost, doubled, overtaken and damaged as the model says.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use super::trace::digest;
use super::world::{Mailbox, Place};
use super::{Shared, SimEventKind, parse};
use crate::address::Address;
use crate::error::{LinkError, TransportError};
use crate::frame::FrameError;
use crate::timer::{Timer, instant_at};
use crate::transport::DatagramSocket;

/// Opens a socket on the transport's own host.
pub(super) fn bind(
    shared: &Arc<Shared>,
    host: u32,
    life: u64,
    address: &Address,
) -> Result<Box<dyn DatagramSocket>, TransportError> {
    let mut world = shared.world();
    let (place, local) =
        world.place(host, life, address, |world, place| world.sockets.contains_key(place))?;
    world.core.record(SimEventKind::Listen, Some(host), None, 0, 0, u64::from(place.1));
    world.sockets.insert(place, Mailbox { life, queue: BTreeMap::new(), bytes: 0, waker: None });
    drop(world);
    Ok(Box::new(SimSocket { shared: shared.clone(), place, life, local, timer: Timer::default() }))
}

struct SimSocket {
    shared: Arc<Shared>,
    place: Place,
    life: u64,
    local: Address,
    timer: Timer,
}

impl DatagramSocket for SimSocket {
    fn local_address(&self) -> Address {
        self.local.clone()
    }

    fn datagram_bytes_max(&self) -> usize {
        self.shared.world().core.config.datagram_bytes_max
    }

    fn poll_send_to(
        &mut self,
        cx: &mut Context<'_>,
        to: &Address,
        datagram: &[u8],
    ) -> Poll<Result<(), LinkError>> {
        let mut guard = self.shared.world();
        let world = &mut *guard;
        let limit = world.core.config.datagram_bytes_max;
        if datagram.len() > limit {
            let source = FrameError::TooLarge { size: datagram.len(), limit };
            return Poll::Ready(Err(LinkError::Frame { peer: to.clone(), source }));
        }
        let (from, _) = self.place;
        if world.core.park(from, self.life, cx) {
            return Poll::Pending;
        }
        if !world.core.is_alive(from, self.life) {
            return Poll::Ready(Err(LinkError::broken(to, ErrorKind::NetworkDown)));
        }
        let Ok((name, port)) = parse(to) else {
            return Poll::Ready(Err(LinkError::broken(to, ErrorKind::InvalidInput)));
        };
        let host = world.core.host_id(name);
        let now = world.core.now();
        world.core.record(
            SimEventKind::Datagram,
            Some(from),
            Some(host),
            0,
            datagram.len(),
            digest(datagram),
        );
        let fate = world.core.network.fate(now, from, host, datagram.len(), &mut world.core.rng);
        if fate.is_empty() {
            world.core.record(SimEventKind::Lose, Some(from), Some(host), 0, datagram.len(), 0);
        }
        for copy in fate.iter() {
            let at = now.saturating_add(copy.delay_nanos);
            let room = world.core.config.datagram_queue_bytes;
            // A mailbox that is full, or that nobody has opened, loses it as a socket does.
            match world
                .sockets
                .get_mut(&(host, port))
                .filter(|mailbox| mailbox.bytes + cost(datagram) <= room)
            {
                Some(mailbox) => {
                    let mut bytes = BytesMut::from(datagram);
                    if let Some(corruption) = copy.corruption {
                        corruption.apply(&mut bytes);
                    }
                    mailbox.bytes += cost(datagram);
                    world.core.datagrams += 1;
                    mailbox.queue.insert((at, world.core.datagrams), (self.local.clone(), bytes.freeze()));
                    world.core.woken.extend(mailbox.waker.take());
                    world.core.record(SimEventKind::Arrive, Some(from), Some(host), 0, datagram.len(), at);
                }
                None => world.core.record(SimEventKind::Lose, Some(from), Some(host), 0, datagram.len(), at),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive_from(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Address, Bytes), LinkError>> {
        loop {
            let mut guard = self.shared.world();
            let world = &mut *guard;
            let (host, _) = self.place;
            if world.core.park(host, self.life, cx) {
                return Poll::Pending;
            }
            let now = world.core.now();
            let life = self.life;
            let Some(mailbox) = world.sockets.get_mut(&self.place).filter(|mailbox| mailbox.life == life)
            else {
                return Poll::Ready(Err(LinkError::broken(&self.local, ErrorKind::NetworkDown)));
            };
            let Some(first) = mailbox.queue.first_entry() else {
                mailbox.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let at = first.key().0;
            if at <= now {
                let (from, bytes) = first.remove();
                mailbox.bytes -= cost(&bytes);
                world.core.record(SimEventKind::Deliver, None, Some(host), 0, bytes.len(), digest(&bytes));
                return Poll::Ready(Ok((from, bytes)));
            }
            mailbox.waker = Some(cx.waker().clone());
            let at = instant_at(world.core.epoch(), at);
            drop(guard);
            if self.timer.poll_until(cx, at).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut world = self.shared.world();
        let life = self.life;
        if world.sockets.get(&self.place).is_some_and(|mailbox| mailbox.life == life) {
            world.sockets.remove(&self.place);
        }
    }
}

/// What a datagram counts against a mailbox's room.
fn cost(datagram: &[u8]) -> usize {
    datagram.len() + size_of::<(u64, u64, Address, Bytes)>()
}
