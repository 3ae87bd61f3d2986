//! Errors of transports and links: they name the address, and what is known about what was sent.

use std::io;

use crate::address::Address;
use crate::frame::FrameError;

/// Why a listener, a link or a datagram socket did not come to be. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No transport is registered for the address's scheme.
    #[error("no transport for {address}, known schemes: {}", known.join(", "))]
    UnknownScheme {
        /// What was asked for.
        address: Address,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// A second transport was registered for a scheme.
    #[error("scheme {scheme} has a transport already")]
    SchemeTaken {
        /// The scheme.
        scheme: &'static str,
    },
    /// The transport cannot read the part behind the scheme.
    #[error("{address}: {reason}")]
    BadAddress {
        /// What was asked for.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody listens there already.
    #[error("{address} is in use")]
    InUse {
        /// What was asked for.
        address: Address,
    },
    /// Nobody listens there. May change.
    #[error("{address} refused the connection")]
    Refused {
        /// What was asked for.
        address: Address,
    },
    /// No answer in time. May change.
    #[error("{address} did not answer within {limit_ms} ms")]
    TimedOut {
        /// What was asked for.
        address: Address,
        /// How long was waited.
        limit_ms: u64,
    },
    /// The transport does not offer this.
    #[error("{scheme} has no {what}")]
    Unsupported {
        /// The transport.
        scheme: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// The operating system said no for another reason.
    #[error("{address}")]
    Io {
        /// What was asked for.
        address: Address,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl TransportError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Refused { .. } | Self::TimedOut { .. } | Self::Io { .. })
    }
}

/// Why a link can no longer be used. What was handed over and not confirmed by the peer may or may not have arrived.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The medium broke, or the peer vanished.
    #[error("link to {peer} broke")]
    Broken {
        /// The other end.
        peer: Address,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The peer's bytes are not frames within the limits.
    #[error("bad frame from {peer}")]
    Frame {
        /// The other end.
        peer: Address,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// This end was closed by its owner already.
    #[error("this end of the link is closed")]
    Closed,
}

impl LinkError {
    /// A broken link, told by the kind of the break.
    pub fn broken(peer: &Address, kind: io::ErrorKind) -> Self {
        Self::Broken { peer: peer.clone(), source: kind.into() }
    }
}
