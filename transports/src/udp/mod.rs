//! Datagrams over UDP, to one receiver or to a multicast group, and links that are made of them.
//!
//! Guarantee   datagrams: as the contract of [`DatagramSocket`] says, each arrives whole or not at all, perhaps twice, in
//!             any order. Links: as the contract of every link says, over a path that loses, repeats, reorders and
//!             damages packets; a link survives a change of an end's address. Nothing authenticates the peer and nothing
//!             hides the bytes: who sees the packets can forge them, who does not see them can neither break nor
//!             change a link.
//! Names       `udp://host:port`; port 0 lets the system choose; `udp://*:port` on all interfaces. Binding to a
//!             multicast address, `udp://239.1.2.3:7000` or `udp://[ff02::1:2]:7000`, joins the group on all interfaces:
//!             the socket gets what is sent there, several sockets of a machine may do so, and any socket sends to the
//!             group by its address.
//! Links       `machine/` decides everything, `engine.rs` moves its packets: one socket per listener and per dialled link.
//!             No state is kept for an address that has not proved that it is there. That nobody
//!             listens is told by the network, if at all: [`TransportError::Refused`] where the host says so,
//!             [`TransportError::TimedOut`] where nobody says anything. A listener's port stays taken until its last link has ended.
//! Limits      [`BYTES_MAX`] per datagram; [`UdpConfig`].

mod config;
mod datagram;
mod engine;
mod link;
mod listen;
mod machine;
mod socket;

use std::time::Duration;

use tokio::time::timeout;

use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{BoxFuture, DatagramSocket, Link, Listener, Transport};

pub use config::UdpConfig;

/// The largest datagram in bytes: what IPv4 carries. One that does not fit into a packet of the network (some 1,400
/// bytes) travels in fragments, and is lost with any of them.
pub const BYTES_MAX: usize = 65_507;

/// The transport `udp://`.
#[derive(Debug, Clone, Default)]
pub struct Udp {
    config: UdpConfig,
}

impl Udp {
    /// With the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// With settings of your own.
    pub fn with_config(config: UdpConfig) -> Self {
        Self { config }
    }
}

impl Transport for Udp {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = listen::UdpListener::open(&self.config, address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let limit_ms = self.config.connect_ms_max;
            match timeout(Duration::from_millis(limit_ms), link::dial(&self.config, address)).await {
                Ok(dialled) => dialled,
                Err(_) => Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
            }
        })
    }

    fn bind<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn DatagramSocket>, TransportError>> {
        Box::pin(async move {
            let socket = datagram::UdpSocket::open(&self.config, address).await?;
            Ok(Box::new(socket) as Box<dyn DatagramSocket>)
        })
    }
}

const SCHEME: &str = "udp";
