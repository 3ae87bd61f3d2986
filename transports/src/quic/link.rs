//! The streams of a QUIC connection as a link: one for each lane.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncWrite;

use super::SCHEME;
use crate::address::Address;
use crate::certificates::certificate;
use crate::connection::CHUNK_BYTES;
use crate::credentials::Credentials;
use crate::stream;
use crate::tcp::to_address;
use crate::transport::{BoxFuture, Link};

/// Why a connection or its stream did not come to be.
pub(super) enum Failure {
    Connection(ConnectionError),
    Io(io::Error),
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Opens the streams of a link, as who dialled.
pub(super) async fn open(connection: &Connection) -> Result<Vec<(RecvStream, Writing)>, Failure> {
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let (mut send, receive) = connection.open_bi().await?;
        // Without a byte the peer would not hear of the stream.
        send.write_all(&[number]).await.map_err(io::Error::from)?;
        streams.push((receive, Writing::new(send, number)?));
    }
    Ok(streams)
}

/// Takes the streams of a link, as who was dialled.
pub(super) async fn take(connection: &Connection) -> Result<Vec<(RecvStream, Writing)>, Failure> {
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let (send, mut receive) = connection.accept_bi().await?;
        let mut first = [u8::MAX];
        receive.read_exact(&mut first).await.map_err(io::Error::other)?;
        if first != [number] {
            return Err(io::Error::new(ErrorKind::InvalidData, "unknown kind of stream").into());
        }
        streams.push((receive, Writing::new(send, number)?));
    }
    Ok(streams)
}

pub(super) fn link(
    connection: &Connection,
    streams: Vec<(RecvStream, Writing)>,
    endpoint: &Endpoint,
    peer: Address,
) -> Link {
    let port = endpoint.local_addr().map_or(0, |local| local.port());
    let ip = connection.local_ip().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let local = to_address(SCHEME, SocketAddr::new(ip, port));
    let chain =
        connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let link = stream::bundle(streams, local, peer);
    if let Some(certificate) = certificate(chain.as_deref().map(Vec::as_slice)) {
        // Just made, so it is empty.
        let _ = link.credentials.set(Credentials::Certificate(certificate));
    }
    link
}

/// The sending half of a stream. Dropping it ends the direction; dropping both ends the connection, and what is under way is lost.
pub(super) struct Writing {
    send: SendStream,
    /// Waits until the peer's machine has everything, read or not: the connection must not go before.
    finishing: Option<BoxFuture<'static, io::Result<()>>>,
    /// The priority while it is favoured; 0 for a stream that never is.
    favour: i32,
    /// Bytes since it was last favoured anew.
    written: usize,
}

impl Writing {
    fn new(send: SendStream, number: u8) -> io::Result<Self> {
        // What is urgent goes first. The others share: a lane that always has something must not starve the last one.
        let favour = match number {
            0 => 2,
            1 => 1,
            _ => 0,
        };
        send.set_priority(favour).map_err(io::Error::other)?;
        Ok(Self { send, finishing: None, favour, written: 0 })
    }

    /// For the same reason what is urgent shares with all from time to time, a packet of one after a packet of the other.
    fn count(&mut self, written: usize) {
        let was_favoured = self.written < FAVOURED_BYTES;
        self.written = (self.written + written) % (FAVOURED_BYTES + SHARED_BYTES);
        let is_favoured = self.written < FAVOURED_BYTES;
        if is_favoured != was_favoured {
            // A stream that has ended has no priority.
            let _ = self.send.set_priority(if is_favoured { self.favour } else { 0 });
        }
    }
}

impl AsyncWrite for Writing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.send).poll_write(cx, bytes));
        if let Ok(count) = written {
            self.count(count);
        }
        Poll::Ready(written.map_err(io::Error::from))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The endpoint's task sends what was written.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { send, finishing, .. } = &mut *self;
        let finishing = finishing.get_or_insert_with(|| {
            let finished = send.finish();
            let stopped = send.stopped();
            Box::pin(async move {
                // Stopped before: the peer reads no more, so nobody waits for the rest.
                if finished.is_ok() {
                    stopped.await.map_err(io::Error::other)?;
                }
                Ok(())
            })
        });
        let finished = ready!(finishing.as_mut().poll(cx));
        self.finishing = Some(Box::pin(async { Ok(()) }));
        Poll::Ready(finished)
    }
}

/// Bytes that an urgent stream sends before the others, as many as a connection of one stream gives its earlier lanes.
const FAVOURED_BYTES: usize = 16 * CHUNK_BYTES;
/// Bytes that it then sends beside the others; more than one write, so that none steps over them.
const SHARED_BYTES: usize = 2 * CHUNK_BYTES;
/// Streams of a link: one for each lane.
pub(super) const STREAMS: u8 = 4;
