//! Frames over TCP.
//!
//! Guarantee   as the contract says. Nothing authenticates the peer and nothing hides the bytes: use it inside a
//!             network that you trust.
//! Names       `tcp://host:port`, `tcp://[::1]:port`; port 0 lets the system choose; `tcp://*:port` listens on all
//!             interfaces, IPv6 and IPv4 by one socket where the system can. Of a host name with several addresses the
//!             first in the system's order that answers is taken; each is tried 250 ms after the one before it.
//! Defaults    TCP_NODELAY, keepalive, address reuse: see [`TcpConfig`].
//! Limits      frames as the [`Inbox`](crate::Inbox) says, connecting within [`TcpConfig::connect_ms_max`].

mod config;
mod link;
mod listen;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use config::TcpConfig;
#[cfg(feature = "tls")]
pub(crate) use listen::TcpListener;
#[cfg(any(feature = "quic", feature = "udp"))]
pub(crate) use listen::places;

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
            let listener = listen::TcpListener::open(&self.config, SCHEME, address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let limit_ms = self.config.connect_ms_max;
            match timeout(Duration::from_millis(limit_ms), dial(&self.config, address)).await {
                Ok(dialled) => link::link(dialled?).map_err(|source| io_error(address, source)),
                Err(_) => Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
            }
        })
    }
}

/// Connects, its options set, without a time limit.
pub(crate) async fn dial(config: &TcpConfig, address: &Address) -> Result<TcpStream, TransportError> {
    let places = resolve(address).await?;
    match dial_any(places, TcpStream::connect).await {
        Ok(stream) => match link::prepare(config, &stream) {
            Ok(()) => Ok(stream),
            Err(source) => Err(io_error(address, source)),
        },
        Err(None) => Err(no_address(address)),
        Err(Some(source)) => Err(io_error(address, source)),
    }
}

/// The first of the places at which the attempt succeeds, or the last failure. Each gets a head start over the next one
/// and goes on beside it, so that one which swallows everything costs only that (RFC 8305 in its simplest form).
pub(crate) async fn dial_any<T, E, A>(
    places: Vec<SocketAddr>,
    attempt: impl Fn(SocketAddr) -> A,
) -> Result<T, Option<E>>
where
    T: Send + 'static,
    E: Send + 'static,
    A: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut places = places.into_iter();
    // Dropping it ends the attempts that are left.
    let mut attempts = JoinSet::new();
    let mut last = None;
    loop {
        let next = places.next();
        let is_last = next.is_none();
        if let Some(place) = next {
            attempts.spawn(attempt(place));
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => last = Some(error),
                // As if there were no tasks; a runtime that ends needs no answer.
                Err(lost) => lost.try_into_panic().map_or((), |panic| std::panic::resume_unwind(panic)),
            },
            () = tokio::time::sleep(HEAD_START), if !is_last => {}
            else => return Err(last),
        }
    }
}

/// The socket addresses of a host and port.
pub(crate) async fn resolve(address: &Address) -> Result<Vec<SocketAddr>, TransportError> {
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

pub(crate) fn no_address(address: &Address) -> TransportError {
    TransportError::BadAddress { address: address.clone(), reason: "the host has no address".to_owned() }
}

pub(crate) fn io_error(address: &Address, source: io::Error) -> TransportError {
    let address = address.clone();
    match source.kind() {
        ErrorKind::AddrInUse => TransportError::InUse { address },
        ErrorKind::ConnectionRefused => TransportError::Refused { address },
        _ => TransportError::Io { address, source },
    }
}

pub(crate) fn to_address(scheme: &str, place: SocketAddr) -> Address {
    // A dual-stack socket shows IPv4 peers as mapped addresses; show them as what they are.
    let place = SocketAddr::new(place.ip().to_canonical(), place.port());
    match Address::new(scheme, &place.to_string()) {
        Ok(address) => address,
        Err(error) => unreachable!("a socket address is a short printable text: {error}"),
    }
}

const SCHEME: &str = "tcp";
/// What RFC 8305, section 5, recommends.
const HEAD_START: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    /// Its backlog is full: on Linux it then answers nothing at all.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn t03_an_address_that_swallows_everything_does_not_hold_up_the_next_one() {
        use socket2::{Domain, Socket, Type};
        let hole = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        hole.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        hole.listen(0).unwrap();
        let hole_place = hole.local_addr().unwrap().as_socket().unwrap();
        let mut fill = Vec::new();
        while let Ok(filled) =
            tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(hole_place)).await
        {
            fill.push(filled.unwrap());
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        let dialled = tokio::time::timeout(
            Duration::from_secs(20),
            dial_any(vec![hole_place, place], TcpStream::connect),
        )
        .await;
        assert_eq!(dialled.unwrap().unwrap().peer_addr().unwrap(), place);
        let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = dial_any(vec![refusing, refusing], TcpStream::connect).await.unwrap_err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(dial_any(vec![], TcpStream::connect).await.unwrap_err().is_none());
    }
}
