//! Knobs of the simulated network.

use std::time::Duration;

use crate::fault::model::LinkModel;

/// How the network behaves before anybody breaks it, and its limits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SimConfig {
    /// The behaviour of links that have none of their own. Default: [`LinkModel::LOCAL`].
    pub link: LinkModel,
    /// Bytes that one direction of a connection holds before its sender waits; one frame more when that frame is
    /// larger than what is left. Default 256 KiB. Below 1 counts as 1.
    pub window_bytes: usize,
    /// Connections that wait to be accepted; beyond it the caller's attempt is dropped and repeated, as Linux does.
    /// Default 128.
    pub backlog: usize,
    /// How long sent data may stay unacknowledged before the sending end breaks. Default 15 s; shorter ones break
    /// connections over a hiccup, longer ones leave peers waiting after a partition.
    pub break_after: Duration,
    /// How long an attempt to connect lasts. Default 10 s.
    pub connect_timeout: Duration,
    /// The largest datagram. Default 65,507 bytes, UDP's.
    pub datagram_bytes_max: usize,
    /// Bytes of datagrams that wait in one socket or are on their way to it; further ones are dropped and traced.
    /// Default 1 MiB.
    pub datagram_queue_bytes: usize,
    /// Events that the trace keeps; its hash covers all. Default 4,096.
    pub trace_events_max: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            link: LinkModel::LOCAL,
            window_bytes: 256 * 1024,
            backlog: 128,
            break_after: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            datagram_bytes_max: 65_507,
            datagram_queue_bytes: 1024 * 1024,
            trace_events_max: 4_096,
        }
    }
}
