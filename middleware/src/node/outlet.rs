//! The way to one life of a peer, found once and used often.
//!
//! Method      holds the connection itself, so a send takes one short lock and no look-up.
//! Limits      ends with its connection; another one may then stand: ask the node again.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use quorate_transports::Identity;
use quorate_transports::connection::{Connection, JOINED_PARTS_MAX, Lane};

use super::channel::Channel;
use super::error::SendError;
use super::inner::{Inner, send_on, translate};

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

    /// Queues `item`, joined to the last message in the lane when that was begun by this function under the same
    /// `stamp` and waits still; else as a new message made of `head` and `item`. What is sent faster than it leaves
    /// so travels as few large messages, and a lone one leaves at once. The receiver must tell items apart by
    /// itself. `head` and `item` have at most 7 parts together.
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
        debug_assert!(item.len() + 2 <= JOINED_PARTS_MAX);
        let sent = self.connection.send_joined(lane, stamp, &[&channel.0.to_le_bytes(), head], item);
        sent.map_err(|error| translate(error, self.to.node))
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

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outlet to {}", self.to)
    }
}
