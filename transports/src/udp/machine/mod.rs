//! A reliable ordered stream of bytes in both directions over datagrams: the machine of `udp://` links.
//!
//! Guarantee   per link and direction: the bytes come out whole, in order, once, each direction ends on its own, and a
//!             link that cannot go on says so within [`Limits::silence_max`]. No state is kept for an address that has not
//!             proved that it is there, and it never gets more bytes than came from it. Packets that are damaged,
//!             repeated, of a former connection, or of a stranger who does not see the packets change nothing. A peer's
//!             address may change. Nothing authenticates or hides: who sees the packets can forge them.
//! Method      an [`Endpoint`] per socket finds the connection by its id; a `Connection` numbers its packets, tells which
//!             came (selective acknowledgements), sends again what got lost, and grants credit for what was read.
//!             Pure: time is an argument, in nanoseconds from any start; randomness comes from the seed given.
//! Source      the ideas of QUIC (RFC 9000, 9002) without its streams and its cryptography; SCTP's cookies (RFC 9260).
//! Limits      [`Limits`].

mod acks;
mod connection;
mod endpoint;
mod pace;
mod packet;
mod plant;
mod recovery;
mod runs;
mod stream;
#[cfg(test)]
mod tests;

pub(super) use endpoint::{Endpoint, Place, Transmit};

/// Nanoseconds from a start of the caller's choice, or between two moments.
pub(super) type Nanos = u64;

const MILLI: Nanos = 1_000_000;

/// The smallest packet that a path must carry, and the size of a hello.
pub(super) const PACKET_BYTES_MIN: usize = packet::HELLO_BYTES;

/// What an endpoint keeps to.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// The largest packet that leaves, at least [`PACKET_BYTES_MIN`].
    pub(super) packet_bytes: usize,
    /// Bytes of a direction that were written and not acknowledged.
    pub(super) send_bytes_max: usize,
    /// Bytes of a direction that were written and never sent.
    pub(super) unsent_bytes_max: usize,
    /// Bytes of a direction that came and were not read.
    pub(super) receive_bytes_max: usize,
    /// Silence before a sign of life is asked for.
    pub(super) keepalive: Nanos,
    /// Silence after which the peer counts as gone.
    pub(super) silence_max: Nanos,
    /// How long dialling may take.
    pub(super) dial_max: Nanos,
    /// How long a dialler that has proved its address may take for the rest.
    pub(super) handshake_max: Nanos,
    /// Diallers that may be about it at the same time; beyond it the oldest is given up.
    pub(super) handshakes_max: usize,
    /// Connections that nobody has accepted yet.
    pub(super) backlog_max: usize,
    /// Connections in all.
    pub(super) connections_max: usize,
}

/// Why a connection is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The peer is silent.
    Silence,
    /// Nobody answers there.
    NoAnswer,
    /// Somebody answers there and wants no connection.
    Refused,
    /// The peer has no such connection any more, or gave up its direction.
    Reset,
    /// The peer reads no more.
    Stopped,
}

/// What a look at the incoming direction gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Bytes(usize),
    Nothing,
    End,
}
