//! Links over a socket's connections, and dialling them.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::SCHEME;
use super::config::UdpConfig;
use super::engine::Engine;
use super::socket::{BatchSocket, Path};
use crate::address::Address;
use crate::error::TransportError;
use crate::probe::refused;
use crate::stream;
use crate::tcp::{dial_any, io_error, no_address, resolve, to_address};
use crate::transport::Link;

/// Connects to the first place of the address that answers.
pub(super) async fn dial(config: &UdpConfig, address: &Address) -> Result<Link, TransportError> {
    let attempt = |place| {
        let (config, address) = (config.clone(), address.clone());
        async move { dial_place(&config, &address, place).await }
    };
    dial_any(resolve(address).await?, attempt).await.map_err(|error| match error {
        None => no_address(address),
        Some(source) if source.kind() == ErrorKind::TimedOut => {
            TransportError::TimedOut { address: address.clone(), limit_ms: config.connect_ms_max }
        }
        Some(source) => io_error(address, source),
    })
}

async fn dial_place(config: &UdpConfig, address: &Address, mut place: SocketAddr) -> io::Result<Link> {
    let (here, loopback): (IpAddr, IpAddr) = match place {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    };
    // It means this machine, as with TCP; but the answers come from an address, which must be the one that was dialled.
    if place.ip().is_unspecified() {
        place.set_ip(loopback);
    }
    let socket = BatchSocket::bind(config, SocketAddr::new(here, 0))?;
    let local = to_address(SCHEME, SocketAddr::new(source(here, place)?, socket.local_address()?.port()));
    let (engine, id) = Engine::dial(config, socket, Path { remote: place, local: None });
    let connection = Connection::new(&engine, id);
    // Dropped before it is done, the attempt is given up.
    let halves = halves(connection);
    tokio::select! {
        dialled = poll_fn(|cx| engine.poll_dialled(cx, halves.0.connection.id)) => dialled?,
        error = refused(place) => return Err(error),
    }
    Ok(stream::link(halves.0, halves.1, local, address.clone()))
}

/// The address of this machine from which it sends to `place`. Connecting a datagram socket only asks; nothing is sent.
/// The link's own socket stays without one, so that it survives when this machine gets another address.
fn source(here: IpAddr, place: SocketAddr) -> io::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((here, 0))?;
    socket.connect(place)?;
    Ok(socket.local_addr()?.ip())
}

/// The link of a connection that was accepted.
pub(super) fn accepted(engine: &Engine, id: u64, place: Path, port: u16) -> Link {
    let (reading, writing) = halves(Connection::new(engine, id));
    let ip = place.local.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let local = to_address(SCHEME, SocketAddr::new(ip, port));
    stream::link(reading, writing, local, to_address(SCHEME, place.remote))
}

/// What both halves hold.
struct Connection {
    engine: Engine,
    id: u64,
}

impl Connection {
    fn new(engine: &Engine, id: u64) -> Arc<Self> {
        Arc::new(Self { engine: engine.clone(), id })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.engine.release(self.id);
    }
}

fn halves(connection: Arc<Connection>) -> (Reading, Writing) {
    (Reading { connection: connection.clone() }, Writing { connection })
}

struct Reading {
    connection: Arc<Connection>,
}

struct Writing {
    connection: Arc<Connection>,
}

impl AsyncRead for Reading {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.connection.engine.poll_read(cx, self.connection.id, buffer)
    }
}

impl AsyncWrite for Writing {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.engine.poll_write(cx, self.connection.id, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.engine.poll_write(cx, self.connection.id, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.engine.flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.engine.poll_finish(cx, self.connection.id)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.connection.engine.drop_receiver(self.connection.id);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.connection.engine.drop_sender(self.connection.id);
    }
}
