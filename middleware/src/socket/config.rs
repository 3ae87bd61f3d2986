//! The settings of a socket.

use std::time::Duration;

use super::error::BindError;
use super::flow::Amount;
use crate::node::Lane;

/// What happens to a message for which there is no room: the other side has granted no more (its high-water mark), or
/// the connection's lane is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The sender waits.
    Wait,
    /// The new message is dropped and counted, and its sender is told.
    DropNewest,
    /// It waits in a queue of the link, at most [`Options::queue_messages`] and [`Options::queue_bytes`]; the oldest
    /// ones there are dropped and counted.
    DropOldest,
}

/// How a socket behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// What to do when there is no room. Default: a publisher drops the newest, every other socket waits.
    pub when_full: Option<WhenFull>,
    /// The receive high-water mark of each link, in messages: so many may be under way or wait here for their
    /// reader. Default 65,536. Smaller ones bound the memory, and the rate over a long way.
    pub window_messages: u64,
    /// The same in bytes; one message may exceed it. Default 1 MiB.
    pub window_bytes: u64,
    /// The send high-water mark of each link with [`WhenFull::DropOldest`], in messages. Default 1,000.
    pub queue_messages: usize,
    /// The same in bytes; one message may exceed it. Default 1 MiB.
    pub queue_bytes: usize,
    /// Links at the same time; one more is turned away. Default 16,384; a pair has one whatever this says.
    pub links_max: usize,
    /// The same for links with one other node, which may have many sockets. Default 1,024.
    pub links_per_peer_max: usize,
    /// How long connecting waits for a node and a socket that are not there (yet). Default: not at all.
    pub connect_wait: Duration,
    /// The lane that ordinary messages travel in. Default [`Lane::Ordinary`].
    pub lane: Lane,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            when_full: None,
            window_messages: 65_536,
            window_bytes: 1024 * 1024,
            queue_messages: 1_000,
            queue_bytes: 1024 * 1024,
            links_max: 16_384,
            links_per_peer_max: 1_024,
            connect_wait: Duration::ZERO,
            lane: Lane::Ordinary,
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<(), BindError> {
        let rules = [
            (self.window_messages == 0, "window_messages", "zero"),
            (self.window_bytes == 0, "window_bytes", "zero"),
            (self.queue_messages == 0, "queue_messages", "zero"),
            (self.links_max == 0, "links_max", "zero"),
            (self.links_per_peer_max == 0, "links_per_peer_max", "zero"),
            (self.lane == Lane::Control, "lane", "the control lane is the node's"),
        ];
        match rules.into_iter().find(|(is_broken, ..)| *is_broken) {
            Some((_, name, reason)) => Err(BindError::Option { name, reason }),
            None => Ok(()),
        }
    }

    /// What a peer may send here before it is granted more: ordinary and urgent messages.
    pub(super) fn windows(&self) -> [Amount; 2] {
        [Amount { messages: self.window_messages, bytes: self.window_bytes }, URGENT_WINDOW]
    }
}

/// Urgent messages are few and small; this much of them may wait for a reader.
const URGENT_WINDOW: Amount = Amount { messages: 64, bytes: 64 * 1024 };
