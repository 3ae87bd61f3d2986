//! The way to one life of a peer, found once and used often.
//!
//! Method      holds the connection itself, so a send takes one short lock and no look-up.
//! Limits      ends with its connection; another one may then stand: ask the node again.

use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use quorate_transports::connection::{Batch, Connection, Lane, Source};
use quorate_transports::{Identity, NodeId};

use super::channel::{CHANNEL_BYTES, Channel};
use super::error::SendError;
use super::inner::{Inner, behind, send_on, translate};

/// Sends to one life of a peer over the connection that stood when it was asked for. Cheap to clone.
#[derive(Clone)]
pub struct Outlet {
    connection: Connection,
    to: Identity,
}

impl Outlet {
    pub(super) fn find(inner: &Arc<Inner>, to: Identity) -> Option<Self> {
        let connection = if to == inner.identity {
            Inner::loopback(inner).ok()?
        } else {
            let peer = inner.peers().get(&to.node).cloned()?;
            let state = peer.state();
            state.active.as_ref().filter(|active| active.identity == to)?.connection.clone()
        };
        Some(Self { connection, to })
    }

    /// Whom it leads to.
    pub fn peer(&self) -> Identity {
        self.to
    }

    /// As [`Node::send`](super::Node::send), but never waits for another connection.
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued. [`SendError::Unreachable`] when the connection is over or about to be:
    /// ask [`Node::outlet`](super::Node::outlet) for its successor.
    pub fn send(&self, lane: Lane, channel: Channel, parts: &[&[u8]], body: Bytes) -> Result<(), SendError> {
        send_on(&self.connection, self.to.node, lane, channel, parts, body)
    }

    /// Queues `item`, joined to the last message where [`OutletBatch::join`] may, or else as a new message made of
    /// `head` and `item`.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline]
    pub fn send_joined(
        &self,
        lane: Lane,
        channel: Channel,
        stamp: u64,
        head: &[u8],
        item: &[&[u8]],
    ) -> Result<(), SendError> {
        let mut batch = self.batch(lane, channel)?;
        if batch.join(stamp, item) {
            return Ok(());
        }
        behind(head, item, |parts| batch.push_joinable(stamp, parts))
    }

    /// Begins to queue messages for a channel of the peer. It holds the connection's lock until it is dropped: be
    /// quick.
    ///
    /// # Errors
    /// [`SendError::Unreachable`].
    #[inline]
    pub fn batch(&self, lane: Lane, channel: Channel) -> Result<OutletBatch<'_>, SendError> {
        match self.connection.batch(lane) {
            Ok(batch) => Ok(OutletBatch { batch, to: self.to.node, channel: channel.0.to_le_bytes() }),
            Err(error) => Err(translate(error, self.to.node)),
        }
    }

    /// Begins to hand over what was held back under `stamp`; see [`Connection::batch_held`].
    ///
    /// # Errors
    /// [`SendError::Unreachable`]: it is lost with its connection.
    pub(crate) fn batch_held(
        &self,
        lane: Lane,
        channel: Channel,
        stamp: u64,
    ) -> Result<OutletBatch<'_>, SendError> {
        match self.connection.batch_held(lane, stamp) {
            Ok(batch) => Ok(OutletBatch { batch, to: self.to.node, channel: channel.0.to_le_bytes() }),
            Err(error) => Err(translate(error, self.to.node)),
        }
    }

    /// True while so much waits that whoever sends on should let the connection's task run first. See
    /// [`Connection::is_crowded`].
    #[inline]
    pub fn is_crowded(&self) -> bool {
        self.connection.is_crowded()
    }

    /// Waits until a message of any permitted size would be taken. Others may be faster.
    ///
    /// # Errors
    /// [`SendError::Unreachable`] when the connection is over.
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn ready(&self, lane: Lane) -> Result<(), SendError> {
        self.connection.ready(lane).await.map_err(|error| translate(error, self.to.node))
    }
}

/// Messages for one channel of a peer, queued under one lock; they leave when it is dropped.
#[derive(Debug)]
pub struct OutletBatch<'a> {
    batch: Batch<'a>,
    to: NodeId,
    channel: [u8; CHANNEL_BYTES],
}

impl OutletBatch<'_> {
    /// As [`Outlet::send`].
    ///
    /// # Errors
    /// As [`Outlet::send`].
    pub fn push(&mut self, parts: &[&[u8]], body: Bytes) -> Result<(), SendError> {
        let channel = self.channel;
        behind(&channel, parts, |parts| self.batch.push(parts, body))
            .map_err(|error| translate(error, self.to))
    }

    /// Appends `item` to the last message in the lane when that was begun by [`push_joinable`](Self::push_joinable)
    /// under the same `stamp` and waits still. False otherwise: then begin another message with it. What is sent
    /// faster than it leaves so travels as few large messages, and a lone one leaves at once. The receiver must tell
    /// items apart by itself.
    #[inline]
    pub fn join(&mut self, stamp: u64, item: &[&[u8]]) -> bool {
        self.batch.join(stamp, item)
    }

    /// As [`push`](Self::push), of a message that others of the same `stamp` may be joined to.
    ///
    /// # Errors
    /// As [`Outlet::send`].
    pub fn push_joinable(&mut self, stamp: u64, parts: &[&[u8]]) -> Result<(), SendError> {
        let channel = self.channel;
        let pushed = behind(&channel, parts, |parts| self.batch.push_joinable(stamp, parts));
        pushed.map_err(|error| translate(error, self.to))
    }

    /// Asks to hold items back that would be joined; see [`Batch::hold_back`].
    #[inline]
    pub(crate) fn hold_back(&mut self, stamp: u64, source: &Weak<dyn Source>) -> Option<usize> {
        self.batch.hold_back(stamp, source)
    }

    /// Queues what was held back, behind `head` unless it can be joined.
    pub(crate) fn push_held(&mut self, stamp: u64, head: &[u8], items: &[u8]) {
        self.batch.push_held(stamp, &[&self.channel, head], items);
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outlet to {}", self.to)
    }
}
