//! Frames over TCP.
//!
//! Guarantee   as the contract says. Nothing authenticates the peer and nothing hides the bytes: use it inside a
//!             network that you trust.
//! Names       `tcp://host:port`, `tcp://[::1]:port`; port 0 lets the system choose; `tcp://*:port` listens on all
//!             interfaces, IPv6 and IPv4 by one socket where the system can. A host name that has several addresses
//!             is tried in the system's order.
//! Defaults    TCP_NODELAY, keepalive, address reuse: see [`TcpConfig`].
//! Limits      frames as the [`Inbox`](crate::Inbox) says, connecting within [`TcpConfig::connect_ms_max`].

mod config;
mod link;
mod listen;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

pub use config::TcpConfig;

use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{BoxFuture, Link, Listener, Transport};

/// The transport `tcp://`.
#[derive(Debug, Clone, Default)]
pub struct Tcp {
    config: TcpConfig,
}

impl Tcp {
    /// With the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// With settings of your own.
    pub fn with_config(config: TcpConfig) -> Self {
        Self { config }
    }
}

impl Transport for Tcp {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = listen::TcpListener::open(&self.config, address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let limit_ms = self.config.connect_ms_max;
            match tokio::time::timeout(Duration::from_millis(limit_ms), dial(address)).await {
                Ok(Ok(stream)) => {
                    link::link(&self.config, stream).map_err(|source| io_error(address, source))
                }
                Ok(Err(error)) => Err(error),
                Err(_) => Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
            }
        })
    }
}

/// Tries the addresses of the host one after the other.
async fn dial(address: &Address) -> Result<TcpStream, TransportError> {
    let mut last = None;
    for place in resolve(address).await? {
        match TcpStream::connect(place).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| no_address(address), |source| io_error(address, source)))
}

/// The socket addresses of a host and port.
async fn resolve(address: &Address) -> Result<Vec<SocketAddr>, TransportError> {
    let bad =
        |reason: &str| TransportError::BadAddress { address: address.clone(), reason: reason.to_owned() };
    let rest = address.rest();
    // Literals need no resolver, and so no thread.
    if let Ok(place) = rest.parse::<SocketAddr>() {
        return Ok(vec![place]);
    }
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("expected host:port"))?;
    let port: u16 = port.parse().map_err(|_| bad("the port is not a number from 0 to 65535"))?;
    if host.is_empty() {
        return Err(bad("the host is empty"));
    }
    if host.contains([':', '[', ']', '/', '*']) {
        return Err(bad("the host is malformed"));
    }
    let places: Vec<_> =
        tokio::net::lookup_host((host, port)).await.map_err(|source| io_error(address, source))?.collect();
    if places.is_empty() { Err(no_address(address)) } else { Ok(places) }
}

fn no_address(address: &Address) -> TransportError {
    TransportError::BadAddress { address: address.clone(), reason: "the host has no address".to_owned() }
}

fn io_error(address: &Address, source: io::Error) -> TransportError {
    let address = address.clone();
    match source.kind() {
        ErrorKind::AddrInUse => TransportError::InUse { address },
        ErrorKind::ConnectionRefused => TransportError::Refused { address },
        _ => TransportError::Io { address, source },
    }
}

fn to_address(place: SocketAddr) -> Address {
    // A dual-stack socket shows IPv4 peers as mapped addresses; show them as what they are.
    let place = SocketAddr::new(place.ip().to_canonical(), place.port());
    match Address::new(SCHEME, &place.to_string()) {
        Ok(address) => address,
        Err(error) => unreachable!("a socket address is a short printable text: {error}"),
    }
}

const SCHEME: &str = "tcp";
