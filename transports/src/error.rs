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
    /// Whoever answers there has not proved to be the right one, or does not believe that we are. Nothing was sent.
    #[error("{address} is not trusted")]
    Untrusted {
        /// What was asked for.
        address: Address,
        /// Why.
        #[source]
        source: TrustError,
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
    /// The two sides do not trust each other. Nothing was delivered, on either side.
    #[error("no trust between us and {peer}")]
    Untrusted {
        /// The other end.
        peer: Address,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// This end was closed by its owner already.
    #[error("this end of the link is closed")]
    Closed,
}

/// Why two sides that use certificates do not trust each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// No trusted authority has signed the peer's certificate.
    #[error("the peer's certificate is of an unknown authority")]
    UnknownAuthority,
    /// The peer's certificate was valid once.
    #[error("the peer's certificate has expired")]
    Expired,
    /// The peer's certificate will be valid later, by this side's clock.
    #[error("the peer's certificate is not valid yet")]
    NotValidYet,
    /// The peer's certificate is made out to somebody else than was dialled.
    #[error("the peer's certificate is made out to another name")]
    WrongName,
    /// Its authority has taken back the peer's certificate.
    #[error("the peer's certificate was revoked")]
    Revoked,
    /// No current list of its authority says whether the peer's certificate was revoked.
    #[error("no current list says whether the peer's certificate was revoked")]
    RevocationUnknown,
    /// The peer showed none.
    #[error("the peer has no certificate")]
    NoCertificate,
    /// Something else is wrong with the peer's certificate.
    #[error("the peer's certificate is bad: {reason}")]
    BadCertificate {
        /// What.
        reason: String,
    },
    /// The peer does not trust this side.
    #[error("the peer refuses us: {reason}")]
    Refused {
        /// What it says, in the words of TLS.
        reason: String,
    },
    /// The peer does not speak TLS, or not this one.
    #[error("no agreement with the peer: {reason}")]
    Protocol {
        /// What went wrong.
        reason: String,
    },
}

impl LinkError {
    /// A broken link, told by the kind of the break.
    pub fn broken(peer: &Address, kind: io::ErrorKind) -> Self {
        Self::Broken { peer: peer.clone(), source: kind.into() }
    }
}
