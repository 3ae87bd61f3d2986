//! Knobs of the fault wrapper.

use std::time::Duration;

/// What a fault does to the frames of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As to a stream: a loss costs a retransmission's delay, a cut stalls, order is kept, nothing is doubled. Only
    /// corruption and resets are seen for what they are.
    Stream,
    /// As to single messages: whole frames are lost, doubled, overtaken. No stream does that; it shows what the layers
    /// above make of a transport that lies.
    Frames,
}

/// Limits of the fault wrapper.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FaultConfig {
    /// How long an attempt to connect waits before a cut. Default 1 s.
    pub connect_timeout: Duration,
    /// Bytes held back per link before it is no longer read; one read more may start below it. Default 4 MiB;
    /// 0 counts as 1.
    pub held_bytes_max: usize,
    /// Frames at the beginning of each direction of a link that [`Manner::Frames`] leaves alone. 1 lets a handshake
    /// through, which nobody repeats, so that links stand from the start. Default 0.
    pub frames_spared: u32,
}

impl Default for FaultConfig {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(1), held_bytes_max: 4 << 20, frames_spared: 0 }
    }
}
