//! What two nodes speak on any link: a handshake, then messages in lanes (catalogue T7, T8).
//!
//! Guarantee   messages of one lane arrive whole, in order, once, until the connection ends; a message in an earlier
//!             lane overtakes what waits in later ones, behind at most one chunk of [`CHUNK_BYTES`]. Whoever sends
//!             to a peer that does not read is refused at a bounded memory. A graceful close flushes, waits for the
//!             peer's goodbye, and says what was left.
//! Method      everything that decides is a plain value: [`Hello`] and [`agree`], [`LaneQueues`] (who goes next),
//!             [`Assembly`] (what a frame means). [`Driver`] only moves bytes between these and the link.
//! Liveness    each side sends something every [`ConnectionConfig::heartbeat`]; nothing at all for
//!             [`ConnectionConfig::silence_max`] ends the connection. A side that stopped reading under backpressure
//!             goes on pinging, so slowness is not taken for death.
//! Layout      docs in `hello.rs` and `assembly.rs`; little-endian, versioned by the handshake.

mod assembly;
mod driver;
mod end;
mod handle;
mod handshake;
mod hello;
mod lanes;
mod look;
mod outgoing;
mod shared;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use assembly::{Assembly, Budget, ProtocolError, Received};
pub use driver::{Deliver, Driver};
pub use end::{End, Ended};
pub use handle::{Batch, Connection};
pub use handshake::{Established, HandshakeError, answer, dial};
pub use hello::{Agreement, CodecId, Hello, HelloError, Mismatch, Verdict, agree};
pub use lanes::{JOINED_BYTES_MAX, Lane, LaneQueues, LaneStats, SendError};
pub use shared::{ConnectionStats, Left, Source};

/// Settings of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionConfig {
    /// The largest message in bytes; the smaller value of both sides holds. Default 16 MiB, at least
    /// [`MESSAGE_BYTES_MIN`].
    pub message_bytes_max: usize,
    /// Bytes that may wait in each lane, in the order of [`Lane`]. Below half of it a lane takes any message, so it
    /// may exceed its limit by one message. Default 1, 1, 4 and 4 MiB.
    pub lane_bytes_max: [usize; Lane::COUNT],
    /// How often each side shows that it lives. Default 1 s. Shorter costs packets, longer finds the dead later.
    pub heartbeat: Duration,
    /// Silence after which the peer counts as gone; rounded up to whole heartbeats. Default 8 s. Shorter than a
    /// pause of the peer's machine cuts healthy connections.
    pub silence_max: Duration,
    /// How long the handshake may take. Default 5 s.
    pub handshake_max: Duration,
    /// How often the driver looks again before it sleeps, when something has just moved and looking was worth it lately.
    /// Default 50, some 20 us. None saves processor time between messages, and makes a fast round trip half as long
    /// again: a thread that sleeps has to be woken.
    pub looks_max: u32,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            message_bytes_max: 16 * MIB,
            lane_bytes_max: [MIB, MIB, 4 * MIB, 4 * MIB],
            heartbeat: Duration::from_secs(1),
            silence_max: Duration::from_secs(8),
            handshake_max: Duration::from_secs(5),
            looks_max: 50,
        }
    }
}

/// Payload bytes of one frame: 64 KiB, and room for what the layers above put before a body of 64 KiB. A larger message
/// travels in several, between which earlier lanes go first.
pub const CHUNK_BYTES: usize = 64 * 1024 + 256;
/// The largest frame on the link: a chunk and its tag.
pub const FRAME_BYTES_MAX: usize = CHUNK_BYTES + 1;
/// A peer that takes less than this cannot carry the layers above.
pub const MESSAGE_BYTES_MIN: usize = 1024;
