//! Accepting TCP connections.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll, ready};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use super::config::TcpConfig;
use super::{io_error, link, no_address, resolve, to_address};
use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{Link, Listener};

pub(crate) struct TcpListener {
    config: TcpConfig,
    listener: tokio::net::TcpListener,
    address: Address,
}

impl TcpListener {
    /// Listens for any transport over TCP; `scheme` is what its addresses begin with.
    pub(crate) async fn open(
        config: &TcpConfig,
        scheme: &str,
        address: &Address,
    ) -> Result<Self, TransportError> {
        let mut last = None;
        for place in places(address).await? {
            match listen(config, place).and_then(|listener| Ok((listener.local_addr()?, listener))) {
                Ok((local, listener)) => {
                    return Ok(Self { config: config.clone(), listener, address: to_address(scheme, local) });
                }
                // Falling back to the other family would hide that somebody has the port.
                Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(io_error(address, error)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| no_address(address), |source| io_error(address, source)))
    }
}

impl TcpListener {
    /// Takes the next connection, its options set.
    pub(crate) fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<TcpStream, TransportError>> {
        loop {
            match self.listener.poll_accept(cx) {
                Poll::Pending => return Poll::Pending,
                // A dialler that went away before it was accepted is no news.
                Poll::Ready(Err(error)) if is_dialler_gone(&error) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(io_error(&self.address, error))),
                Poll::Ready(Ok((stream, _))) => match link::prepare(&self.config, &stream) {
                    Ok(()) => return Poll::Ready(Ok(stream)),
                    Err(error) if is_dialler_gone(&error) => {}
                    Err(error) => return Poll::Ready(Err(io_error(&self.address, error))),
                },
            }
        }
    }
}

impl Listener for TcpListener {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        loop {
            match link::link(ready!(self.poll_stream(cx))?) {
                Ok(link) => return Poll::Ready(Ok(link)),
                Err(error) if is_dialler_gone(&error) => {}
                Err(error) => return Poll::Ready(Err(io_error(&self.address, error))),
            }
        }
    }
}

/// Where to listen, best first.
pub(crate) async fn places(address: &Address) -> Result<Vec<SocketAddr>, TransportError> {
    let Some(port) = address.rest().strip_prefix("*:") else { return resolve(address).await };
    let port: u16 = port.parse().map_err(|_| TransportError::BadAddress {
        address: address.clone(),
        reason: "the port is not a number from 0 to 65535".to_owned(),
    })?;
    // Dual stack first; a system without IPv6 gets the rest.
    Ok(vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()])
}

fn listen(config: &TcpConfig, place: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(place), Type::STREAM, Some(Protocol::TCP))?;
    if place.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restarted process gets its port back although connections of its earlier life linger. On Windows the option
    // would let two processes share the port.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&place.into())?;
    socket.listen(config.backlog_max.max(1))?;
    tokio::net::TcpListener::from_std(socket.into())
}

fn is_dialler_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::InvalidInput
            | ErrorKind::Interrupted
    )
}
