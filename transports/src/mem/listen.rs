//! Accepting links and receiving datagrams in memory.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Names, SCHEME, World};
use crate::address::Address;
use crate::error::{LinkError, TransportError};
use crate::frame::FrameError;
use crate::transport::{DatagramSocket, Link, Listener};

/// The listener of one name.
pub(super) struct MemListener {
    world: Arc<World>,
    address: Address,
    backlog: mpsc::Receiver<Link>,
}

impl MemListener {
    pub(super) fn open(world: &Arc<World>, address: &Address) -> Result<Self, TransportError> {
        let mut names = world.names();
        let address = choose(&mut names, address)?;
        if names.listeners.contains_key(&address) {
            return Err(TransportError::InUse { address });
        }
        let (sender, backlog) = mpsc::channel(world.config.backlog_max.max(1));
        names.listeners.insert(address.clone(), sender);
        Ok(Self { world: world.clone(), address, backlog })
    }
}

impl Listener for MemListener {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        self.backlog.poll_recv(cx).map(|link| {
            link.ok_or_else(|| TransportError::Io {
                address: self.address.clone(),
                source: io::ErrorKind::NotConnected.into(),
            })
        })
    }
}

impl Drop for MemListener {
    fn drop(&mut self) {
        self.world.names().listeners.remove(&self.address);
    }
}

/// Sender and payload.
pub(super) type Datagram = (Address, Bytes);

/// A datagram socket in memory.
pub(super) struct MemDatagrams {
    world: Arc<World>,
    address: Address,
    incoming: mpsc::Receiver<Datagram>,
}

impl MemDatagrams {
    pub(super) fn open(world: &Arc<World>, address: &Address) -> Result<Self, TransportError> {
        let mut names = world.names();
        let address = choose(&mut names, address)?;
        if names.sockets.contains_key(&address) {
            return Err(TransportError::InUse { address });
        }
        let (sender, incoming) = mpsc::channel(world.config.datagrams_max.max(1));
        names.sockets.insert(address.clone(), sender);
        Ok(Self { world: world.clone(), address, incoming })
    }
}

impl DatagramSocket for MemDatagrams {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn datagram_bytes_max(&self) -> usize {
        self.world.config.datagram_bytes_max
    }

    fn poll_send_to(
        &mut self,
        _: &mut Context<'_>,
        to: &Address,
        datagram: &[u8],
    ) -> Poll<Result<(), LinkError>> {
        let limit = self.datagram_bytes_max();
        if datagram.len() > limit {
            let source = FrameError::TooLarge { size: datagram.len(), limit };
            return Poll::Ready(Err(LinkError::Frame { peer: to.clone(), source }));
        }
        let receiver = self.world.names().sockets.get(to).cloned();
        if let Some(receiver) = receiver {
            // A full receiver loses it, as a socket does.
            let _ = receiver.try_send((self.address.clone(), Bytes::copy_from_slice(datagram)));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive_from(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Address, Bytes), LinkError>> {
        self.incoming.poll_recv(cx).map(|datagram| datagram.ok_or(LinkError::Closed))
    }
}

impl Drop for MemDatagrams {
    fn drop(&mut self) {
        self.world.names().sockets.remove(&self.address);
    }
}

fn choose(names: &mut Names, asked: &Address) -> Result<Address, TransportError> {
    if asked.scheme() != SCHEME {
        let reason = format!("the scheme is not {SCHEME}");
        return Err(TransportError::BadAddress { address: asked.clone(), reason });
    }
    Ok(if asked.rest().is_empty() { names.fresh("node") } else { asked.clone() })
}
