//! What can go wrong with a node.

use std::io;
use std::path::PathBuf;

use quorate_transports::connection::{HandshakeError, Lane};
use quorate_transports::{AddressError, Identity, NodeId, TransportError};

use super::channel::Channel;

/// Why a node did not start. Nothing is left running, and no address or directory is held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A text given as an address is none.
    #[error("bad address")]
    Address(#[from] AddressError),
    /// Two transports for one scheme, or listening failed.
    #[error("cannot set up a transport")]
    Transport(#[from] TransportError),
    /// A limit that cannot work.
    #[error("limit {name}: {reason}")]
    Limit {
        /// The field of [`Limits`](super::Limits).
        name: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another process uses the directory.
    #[error("directory {} is in use by another process", path.display())]
    DirectoryInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to another node. Nothing in it was touched.
    #[error("directory {} belongs to node {owner}, not to node {wanted}", path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: NodeId,
        /// Who asked.
        wanted: NodeId,
    },
    /// The directory's identity file is not what a node wrote. Nothing in it was touched.
    #[error("{}: {reason}", path.display())]
    DirectoryDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory cannot be used.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answers there, or the scheme is unknown.
    #[error("cannot connect")]
    Transport(#[from] TransportError),
    /// Somebody answers, but the two do not come together.
    #[error("the handshake failed")]
    Handshake(#[from] HandshakeError),
    /// Whoever answers is not wanted here: see [`admit`](super::NodeBuilder::admit).
    #[error("{identity} is not admitted")]
    NotAdmitted {
        /// Who it says that it is.
        identity: Identity,
    },
    /// The node knows as many peers as it may.
    #[error("too many peers ({limit})")]
    TooManyPeers {
        /// The limit.
        limit: usize,
    },
    /// The node is shutting down.
    #[error("the node is shut down")]
    ShutDown,
}

impl ConnectError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Transport(error) => error.is_retryable(),
            Self::Handshake(error) => {
                !matches!(error, HandshakeError::Mismatch { .. } | HandshakeError::Hello { .. })
            }
            Self::TooManyPeers { .. } => true,
            Self::NotAdmitted { .. } | Self::ShutDown => false,
        }
    }
}

/// Why a message was not queued. Nothing of it was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// As much waits as may wait. Wait for [`ready`](super::Node::ready), then retry.
    #[error("lane {lane} to node {to} is full ({limit} bytes)")]
    Full {
        /// The receiver.
        to: NodeId,
        /// The lane.
        lane: Lane,
        /// The limit in bytes.
        limit: usize,
    },
    /// There is neither a connection nor an address, or the node lives another life than the wanted one.
    #[error("node {to} is unreachable")]
    Unreachable {
        /// The receiver.
        to: NodeId,
    },
    /// The message is larger than a connection takes. Retrying cannot help.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size, the channel's header included.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The node is shutting down.
    #[error("the node is shut down")]
    ShutDown,
}

impl SendError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unreachable { .. })
    }
}

/// Somebody opened the channel already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("channel {channel} is open already")]
pub struct ChannelTaken {
    /// The channel.
    pub channel: Channel,
}
