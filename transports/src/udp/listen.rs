//! Accepting links over a socket.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::SCHEME;
use super::config::UdpConfig;
use super::engine::Engine;
use super::link;
use super::socket::BatchSocket;
use crate::address::Address;
use crate::error::TransportError;
use crate::release::Release;
use crate::tcp::{io_error, no_address, places, to_address};
use crate::transport::{BoxFuture, Link, Listener};

pub(super) struct UdpListener {
    engine: Engine,
    release: Release,
    local: SocketAddr,
    address: Address,
}

impl UdpListener {
    pub(super) async fn open(config: &UdpConfig, address: &Address) -> Result<Self, TransportError> {
        let mut last = no_address(address);
        for place in places(address).await? {
            let bound = bind(config, place).await;
            match bound.and_then(|socket| Ok((socket.local_address()?, socket))) {
                Ok((local, socket)) => {
                    let release = socket.release();
                    let engine = Engine::listen(config, socket);
                    return Ok(Self { engine, release, local, address: to_address(SCHEME, local) });
                }
                // Falling back to the other family would hide that somebody has the port.
                Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(io_error(address, error)),
                Err(error) => last = io_error(address, error),
            }
        }
        Err(last)
    }
}

impl Listener for UdpListener {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        match ready!(self.engine.poll_accept(cx)) {
            Ok((id, place)) => Poll::Ready(Ok(link::accepted(&self.engine, id, place, self.local.port()))),
            Err(error) => Poll::Ready(Err(io_error(&self.address, error))),
        }
    }

    fn released(&self) -> BoxFuture<'static, ()> {
        self.release.wait()
    }
}

impl Drop for UdpListener {
    fn drop(&mut self) {
        // Links live on, on the same socket; newcomers are refused.
        self.engine.stop_accepting();
    }
}

async fn bind(config: &UdpConfig, place: SocketAddr) -> std::io::Result<BatchSocket> {
    let mut tries = 0;
    loop {
        match BatchSocket::bind(config, place) {
            // Links that have ended keep their socket for a moment, in which they answer what is repeated.
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries < RELEASE_TRIES => {
                tries += 1;
                tokio::time::sleep(RELEASE_PAUSE).await;
            }
            bound => return bound,
        }
    }
}

/// How long to wait for an address that may be about to be free.
const RELEASE_TRIES: u32 = 40;
const RELEASE_PAUSE: Duration = Duration::from_millis(5);
