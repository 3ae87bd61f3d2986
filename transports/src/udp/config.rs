//! Settings of the UDP transport.

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
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { multicast_hops_max: 1, multicast_loops: true, receive_bytes_max: 1024 * 1024 }
    }
}
