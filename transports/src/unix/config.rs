//! Settings of the transport over Unix domain sockets.

/// Settings of one [`Unix`](super::Unix) transport.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnixConfig {
    /// The permissions of the socket's file. Default 0o600: processes of the same user may connect, nobody else. A
    /// dialler needs the right to write, and to pass through the directories above. It is set before the socket
    /// listens, so nobody slips in earlier.
    pub mode: u32,
    /// How long a dialler waits for a place in a full backlog, in milliseconds. Default 5000.
    pub connect_ms_max: u64,
    /// Links that may wait to be accepted. Default 1024; the system may have a lower limit.
    pub backlog_max: i32,
}

impl Default for UnixConfig {
    fn default() -> Self {
        Self { mode: 0o600, connect_ms_max: 5_000, backlog_max: 1024 }
    }
}
