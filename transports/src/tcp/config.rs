//! Settings of the TCP transport.

/// Settings of one [`Tcp`](super::Tcp) transport.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpConfig {
    /// How long a connection attempt may take, name resolution included, in milliseconds. Default 5000.
    pub connect_ms_max: u64,
    /// Idle time before the system asks whether the peer still lives, in seconds. Default 30, at least 1. The
    /// connection layer's pings find a dead peer sooner; this one cleans up where there is no such layer.
    pub keepalive_idle_s: u64,
    /// Time between further questions, in seconds. Default 10, at least 1.
    pub keepalive_interval_s: u64,
    /// Bytes that the system takes from this side before it has sent them, on Linux; other systems decide alone.
    /// Default 128 KiB. Larger makes urgent messages wait behind bulk ones, much smaller costs wake-ups.
    pub unsent_bytes_max: u32,
    /// Links that may wait to be accepted. Default 1024; the system may have a lower limit.
    pub backlog_max: i32,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            connect_ms_max: 5_000,
            keepalive_idle_s: 30,
            keepalive_interval_s: 10,
            unsent_bytes_max: 128 * 1024,
            backlog_max: 1024,
        }
    }
}
