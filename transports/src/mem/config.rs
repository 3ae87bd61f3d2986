//! Limits of the memory transport.

/// Limits of one [`Mem`](super::Mem) world.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemConfig {
    /// Bytes under way in one direction of a link before the sender waits; one frame more may start below it.
    /// Default 256 KiB, about what a socket holds.
    pub link_bytes_max: usize,
    /// Links that wait to be accepted before a dialler waits. Default 128. At least 1.
    pub backlog_max: usize,
    /// How long a dialler waits for a place in a full backlog, in milliseconds. Default 5000.
    pub connect_ms_max: u64,
    /// Datagrams that wait to be received before further ones are dropped. Default 256. At least 1.
    pub datagrams_max: usize,
    /// The largest datagram in bytes. Default 65507, as UDP over IPv4.
    pub datagram_bytes_max: usize,
}

impl Default for MemConfig {
    fn default() -> Self {
        Self {
            link_bytes_max: 256 * 1024,
            backlog_max: 128,
            connect_ms_max: 5_000,
            datagrams_max: 256,
            datagram_bytes_max: 65_507,
        }
    }
}
