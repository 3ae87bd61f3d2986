//! Settings of the UDP transport.

use std::time::Duration;

use super::BYTES_MAX;
use super::machine::{Limits, Nanos, PACKET_BYTES_MIN};

/// Settings of one [`Udp`](super::Udp) transport.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpConfig {
    /// How many routers a multicast datagram may pass. Default 1: it stays in the own network.
    pub multicast_hops_max: u32,
    /// Whether sockets of this machine get the multicast datagrams that it sends. Default true.
    pub multicast_loops: bool,
    /// Bytes that the system may keep of what was not received yet; it may allow less. Default 1 MiB. What does not fit
    /// is lost.
    pub receive_bytes_max: usize,
    /// The largest packet of a link, headers of the network not counted, from 1200 to 65507. Default 1200, which every
    /// network carries. A network that is known to carry more is used better with more; what it does not carry is
    /// lost, and the link breaks.
    pub packet_bytes: usize,
    /// Bytes of a link in one direction that each side keeps: what was sent and not acknowledged, what came and was not
    /// read. Default 1 MiB, from 4096 to 1 GiB. Larger carries more over long ways.
    pub link_bytes_max: usize,
    /// Of that, bytes that were never sent. Default 128 KiB, at least 4096. Larger makes urgent messages wait behind
    /// bulk ones, much smaller costs wake-ups.
    pub unsent_bytes_max: usize,
    /// Silence on a link before a sign of life is asked for, in milliseconds. Default 5000; of more than half of
    /// `silence_ms_max` only that holds.
    pub keepalive_ms: u32,
    /// Silence after which the peer of a link counts as gone, in milliseconds. Default 20000.
    pub silence_ms_max: u32,
    /// How long a connection attempt may take, name resolution included, in milliseconds. Default 5000. That is
    /// how long an address takes where nobody says anything.
    pub connect_ms_max: u64,
    /// How long a dialler that has proved its address may take for the rest, in milliseconds. Default 5000.
    pub handshake_ms_max: u32,
    /// Diallers of one listener that may be about it at the same time. Default 256. Beyond it the oldest is given up.
    pub handshakes_max: usize,
    /// Links of one listener that may wait to be accepted. Default 256; beyond it diallers wait.
    pub backlog_max: usize,
    /// Links of one listener in all. Default 65536; beyond it diallers wait.
    pub links_max: usize,
}

impl UdpConfig {
    /// What the machine keeps to.
    pub(super) fn limits(&self) -> Limits {
        let nanos = |ms: u64| Duration::from_millis(ms.max(1)).as_nanos().min(NANOS_MAX) as Nanos;
        let link_bytes_max = self.link_bytes_max.clamp(LINK_BYTES_MIN, LINK_BYTES_MAX);
        let silence_max = nanos(self.silence_ms_max.into());
        Limits {
            packet_bytes: self.packet_bytes.clamp(PACKET_BYTES_MIN, BYTES_MAX),
            send_bytes_max: link_bytes_max,
            unsent_bytes_max: self.unsent_bytes_max.max(LINK_BYTES_MIN),
            receive_bytes_max: link_bytes_max,
            // Who asks later than this gives up a peer that is well.
            keepalive: nanos(self.keepalive_ms.into()).min(silence_max / 2),
            silence_max,
            dial_max: nanos(self.connect_ms_max),
            handshake_max: nanos(self.handshake_ms_max.into()),
            handshakes_max: self.handshakes_max,
            backlog_max: self.backlog_max.max(1),
            connections_max: self.links_max,
        }
    }
}

/// A link below some packets makes no progress worth the name.
const LINK_BYTES_MIN: usize = 4096;
/// Larger than any path's bandwidth times its delay.
const LINK_BYTES_MAX: usize = 1 << 30;
/// A century: nothing overflows when it is added to the time.
const NANOS_MAX: u128 = 100 * 365 * 24 * 3_600 * 1_000_000_000;

impl Default for UdpConfig {
    fn default() -> Self {
        Self {
            multicast_hops_max: 1,
            multicast_loops: true,
            receive_bytes_max: 1024 * 1024,
            packet_bytes: PACKET_BYTES_MIN,
            link_bytes_max: 1024 * 1024,
            unsent_bytes_max: 128 * 1024,
            keepalive_ms: 5_000,
            silence_ms_max: 20_000,
            connect_ms_max: 5_000,
            handshake_ms_max: 5_000,
            handshakes_max: 256,
            backlog_max: 256,
            links_max: 65_536,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t03_a_udp_link_asks_for_a_sign_of_life_before_it_gives_up() {
        let config = UdpConfig { keepalive_ms: 60_000, silence_ms_max: 300, ..UdpConfig::default() };
        let limits = config.limits();
        assert!(limits.keepalive <= limits.silence_max / 2, "{limits:?}");
        assert_eq!(UdpConfig::default().limits().keepalive, Duration::from_secs(5).as_nanos() as Nanos);
    }

    #[test]
    fn t02_whatever_a_user_asks_for_a_udp_link_counts_without_an_overflow() {
        let config =
            UdpConfig { link_bytes_max: usize::MAX, packet_bytes: usize::MAX, ..UdpConfig::default() };
        let limits = config.limits();
        assert_eq!(limits.receive_bytes_max, LINK_BYTES_MAX);
        assert_eq!(limits.packet_bytes, BYTES_MAX);
    }
}
