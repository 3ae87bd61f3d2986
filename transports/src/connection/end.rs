//! How a connection ended, and what it left.

use super::assembly::ProtocolError;
use super::shared::{ConnectionStats, Left};
use crate::error::LinkError;

/// How a connection ended.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub end: End,
    /// What had not been handed to the link. What was handed over may have been lost unless the end is
    /// [`End::Closed`].
    pub left: Left,
    /// Totals.
    pub stats: ConnectionStats,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// Both sides said goodbye, and each ended its direction once it had delivered what the other one sent.
    #[error("closed by agreement")]
    Closed,
    /// This side gave it up.
    #[error("aborted")]
    Aborted,
    /// The link broke, the peer vanished, or it sent a frame beyond the limit.
    #[error("the link failed")]
    Link(#[source] LinkError),
    /// The peer does not keep to the protocol.
    #[error("the peer broke the protocol")]
    Protocol(#[source] ProtocolError),
    /// Nothing came for so long.
    #[error("nothing came for {silence_ms} ms")]
    Silent {
        /// How long, in milliseconds.
        silence_ms: u64,
    },
}
