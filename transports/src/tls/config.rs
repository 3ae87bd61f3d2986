//! Settings of the TLS transport.

use crate::tcp::TcpConfig;

/// Settings of one [`Tls`](super::Tls) transport.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsConfig {
    /// Of the connection below.
    pub tcp: TcpConfig,
    /// The name that a listener's certificate must be made out to. Without it the host of the dialled address; with
    /// it one name for all, for clusters whose nodes have no names of their own in the network.
    pub expected_name: Option<String>,
    /// How long a listener gives a dialler to prove who it is, and as long again to read that it is refused, in
    /// milliseconds. Default 5000. For who dials, [`TcpConfig::connect_ms_max`] bounds all of it.
    pub handshake_ms_max: u64,
    /// Diallers of one listener that may be doing either at the same time. Default 64. Beyond it the oldest one of the
    /// address that has most of them is given up.
    pub handshakes_max: usize,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self { tcp: TcpConfig::default(), expected_name: None, handshake_ms_max: 5_000, handshakes_max: 64 }
    }
}
