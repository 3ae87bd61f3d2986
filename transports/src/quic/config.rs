//! Settings of the QUIC transport.

/// Settings of one [`Quic`](super::Quic) transport.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuicConfig {
    /// The name that a listener's certificate must be made out to. Without it the host of the dialled address.
    pub expected_name: Option<String>,
    /// How long a connection attempt may take, name resolution and proofs included, in milliseconds. Default 5000.
    /// That is how long an address takes where nobody says anything.
    pub connect_ms_max: u64,
    /// How long a listener gives a dialler to prove who it is, in milliseconds. Default 5000.
    pub handshake_ms_max: u64,
    /// Diallers of one listener that may be doing so at the same time. Default 64. From half of it on, a newcomer must
    /// first show that it gets what is sent to its address, which costs it a round trip and the listener no memory;
    /// beyond it the oldest one of the address that has most of them is given up.
    pub handshakes_max: usize,
    /// Bytes of each lane of a link that may be under way in one direction; a link has four lanes. Default 1 MiB. Larger
    /// carries more over long ways and takes more memory.
    pub lane_bytes_max: u32,
    /// Peers of one datagram socket; datagrams to and of further ones are dropped. Default 256.
    pub datagram_peers_max: usize,
    /// Datagrams that wait to be received before further ones are dropped. Default 256. At least 1.
    pub datagrams_max: usize,
    /// Silence before a sign of life is sent on a link, in milliseconds. Default 5000.
    pub keepalive_ms: u32,
    /// Silence after which the peer counts as gone, in milliseconds. Default 20000; the smaller value of both sides
    /// holds. A datagram socket then forgets it, and proves who it is again when there is something to send.
    pub silence_ms_max: u32,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            expected_name: None,
            connect_ms_max: 5_000,
            handshake_ms_max: 5_000,
            handshakes_max: 64,
            lane_bytes_max: 1024 * 1024,
            datagram_peers_max: 256,
            datagrams_max: 256,
            keepalive_ms: 5_000,
            silence_ms_max: 20_000,
        }
    }
}
