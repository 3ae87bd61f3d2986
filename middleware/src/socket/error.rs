//! What can go wrong with a socket.

use std::time::Duration;

use super::wire::Rejection;
use crate::node::{Address, ChannelTaken, ConnectError as NodeConnectError};

/// Why a socket was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket of this node has the name.
    #[error("the name {name:?} is taken")]
    NameTaken {
        /// The name.
        name: String,
        /// The node's word for it.
        #[source]
        source: ChannelTaken,
    },
    /// An option that cannot work.
    #[error("option {name}: {reason}")]
    Option {
        /// The field of [`Options`](super::Options).
        name: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Why no link came to be. Nothing is kept; trying again is up to the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What was given as an address is none.
    #[error("bad address")]
    Address(#[from] quorate_transports::AddressError),
    /// The socket could not be opened.
    #[error("cannot open the socket")]
    Bind(#[from] BindError),
    /// No node could be reached at the address.
    #[error("cannot reach {address}")]
    Node {
        /// Where.
        address: Address,
        /// What the node says.
        #[source]
        source: NodeConnectError,
    },
    /// The node there has no socket of that name (yet).
    #[error("the node at {address} has no socket {name:?}")]
    NoSocket {
        /// Where.
        address: Address,
        /// The socket's name.
        name: String,
    },
    /// The socket there does not take this one.
    #[error("socket {name:?} at {address} refused")]
    Rejected {
        /// Where.
        address: Address,
        /// The socket's name.
        name: String,
        /// Its reason.
        #[source]
        reason: Rejection,
    },
    /// The node there did not answer.
    #[error("socket {name:?} at {address} did not answer within {waited:?}")]
    NoAnswer {
        /// Where.
        address: Address,
        /// The socket's name.
        name: String,
        /// How long was waited.
        waited: Duration,
    },
    /// This socket is closed.
    #[error("the socket is closed")]
    Closed,
}

impl ConnectError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Node { source, .. } => source.is_retryable(),
            Self::NoSocket { .. } | Self::NoAnswer { .. } => true,
            Self::Rejected { reason, .. } => *reason == Rejection::Busy,
            Self::Address(_) | Self::Bind(_) | Self::Closed => false,
        }
    }
}

/// Why a message was not sent. Nothing of it left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no room now. With [`WhenFull::DropNewest`](super::WhenFull::DropNewest) the message counts as dropped.
    #[error("no room on any link")]
    Full,
    /// No other socket is linked now.
    #[error("no link stands")]
    NoLink,
    /// The link that the message was meant for is over.
    #[error("the link is over")]
    Gone,
    /// A wish of a subscriber stands, and is repeated, but not every publisher has answered in time.
    #[error("not every publisher has answered within {waited:?}")]
    Unconfirmed {
        /// How long was waited.
        waited: Duration,
    },
    /// The message is larger than a connection takes. Retrying cannot help.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size, overhead included.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
}

impl SendError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::NoLink)
    }
}

/// Why not all of several messages were sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sent} messages were sent, the next one was not")]
pub struct SendManyError {
    /// How many were sent: the first ones.
    pub sent: u64,
    /// Why the next one was not; nothing of it and of those after it left.
    #[source]
    pub source: SendError,
}

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Nothing waits now.
    #[error("nothing has come")]
    Empty,
    /// The socket is closed, or the only link that it could come from, and everything that had come was received.
    #[error("the socket is closed")]
    Closed,
    /// The only link that it could come from broke. Everything that came before the break was received; what the other
    /// side sent behind that is lost, if it did send more.
    #[error("the link broke")]
    Broken,
}

/// Why a request has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It was not sent.
    #[error("the request was not sent")]
    NotSent(#[from] SendError),
    /// It was sent `tries` times and nobody answered in time. It may have been worked on, as often as it was sent.
    #[error("no reply within {waited:?}, asked {tries} times")]
    NoReply {
        /// How often it was sent.
        tries: u32,
        /// How long each reply was waited for.
        waited: Duration,
    },
    /// As many requests wait for replies as may.
    #[error("too many requests under way ({limit})")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}
